"""Franka Research 3 through pylibfranka, joint positions by libfranka's asynchronous control.

libfranka moves the robot's 1 kHz reference towards the newest target within the joints' velocities, so that targets may
come at any rate and a missed one is not a missed packet; the robot's own joint impedance controller follows. When this
process is gone the robot stops by itself after 20 ms without a packet.

pylibfranka speaks to the Research 3 only; ``fer.py`` drives the older robot (FER, Panda).
SDK, modes and errors: Franka Control Interface documentation, https://frankarobotics.github.io.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.device_clock import DeviceClock
from robolearn_hardware.devices import ArmInfo, Condition, DeviceError, DeviceGoneError, NotReadyError
from robolearn_hardware.limits import limits_of
from robolearn_hardware.network.franka_hand import Hand
from robolearn_hardware.network.link import LinkedArm
from robolearn_hardware.network.reach import reach
from robolearn_hardware.network.session import Pace, Reading
from robolearn_hardware.twins.franka import FrankaTwin
from robolearn_hardware.twins.host import Twins

JOINTS = tuple(f"joint{i + 1}" for i in range(7))
_PORTS = {1337: "robot control"}
_GOAL_TOLERANCE = 0.01  # rad; only what the SDK calls "reached"
_SETTLE_S = 1.0
_OLDEST_NS = 20_000_000  # a robot stops when packets are later; and a simulator's clock may be slower than ours
_RELEASED = "it follows nothing; a person may guide it by the buttons at its wrist; hold ends that"


@dataclass(frozen=True)
class Fr3Config:
    """A Franka Research 3 in a rig file."""

    address: str
    """IP address, or "twin"."""
    rate_hz: float = 100.0
    """Of targets and readings."""
    gripper: Literal["none", "hand"] = "hand"
    realtime: Literal["enforce", "ignore"] = "enforce"
    """"ignore" lets it run on a kernel that is not real-time: packets may come late, and the robot may stop."""
    speed: float = 0.5
    """Share of the joints' greatest velocities."""
    collision_torque: float = 20.0
    """N m, of every joint: more is a collision, and the robot stops (a reflex)."""
    collision_force: float = 30.0
    """N, and N m, at the tool: likewise."""

    def open(self, name: str) -> LinkedArm:
        return LinkedArm(_info(name, self), partial(Fr3Session, name, self), Pace(self.rate_hz, self.speed))

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.address != "twin":
            return self
        return replace(self, address=twins.start(name, FrankaTwin).address, realtime="ignore")


def _info(name: str, config: Fr3Config) -> ArmInfo:
    return ArmInfo(name, "fr3", JOINTS, limits_of("fr3"), config.gripper == "hand", config.rate_hz)


class Fr3Session:
    """A ``session.Session``."""

    def __init__(self, name: str, config: Fr3Config) -> None:
        self._name = name
        self._config = config
        self._sdk: Any = None
        self._robot: Any = None
        self._handler: Any = None
        self._hand: Hand | None = None
        self._clock = DeviceClock()
        self._refused = ""
        self._released = False

    def open(self) -> ArmInfo:
        try:
            import pylibfranka
        except ImportError:
            raise DeviceError("the Franka Research 3 needs pylibfranka: pip install 'robolearn[franka]'") from None
        self._sdk = sdk = pylibfranka
        config, host = self._config, self._config.address
        reach(self._name, host, _PORTS)
        kind = sdk.RealtimeConfig.kIgnore if config.realtime == "ignore" else sdk.RealtimeConfig.kEnforce
        try:
            self._robot = sdk.Robot(host, kind)
            torques, forces = [config.collision_torque] * 7, [config.collision_force] * 6
            self._robot.set_collision_behavior(torques, torques, forces, forces)
            if config.gripper == "hand":
                self._hand = Hand(host)
        except sdk.RealtimeException:
            raise DeviceError(
                f"{self._name}: this kernel is not real-time (PREEMPT_RT), or this user may not use it so; "
                "set realtime: ignore in the rig to go on at your own risk"
            ) from None
        except (RuntimeError, sdk.FrankaException) as error:
            raise DeviceError(f"{self._name}: the robot at {host} refuses: {_line(error)}") from None
        return _info(self._name, config)

    def prepare(self) -> None:
        sdk = self._sdk
        state = self._robot.read_once()
        condition, reason = self._condition(state)
        if condition in (Condition.EMERGENCY_STOP, Condition.PROTECTIVE_STOP):
            raise NotReadyError(f"{self._name}: {reason}")
        kind = sdk.AsyncPositionControlHandler
        velocities = (limits_of("fr3").velocity * self._config.speed).tolist()
        result = self._asking(lambda: kind.configure(self._robot, kind.Configuration(velocities, _GOAL_TOLERANCE)))
        if result.error_message:
            raise NotReadyError(f"{self._name}: the robot takes no motion: {result.error_message}; recover")
        self._handler = result.handler
        self._refused, self._released = "", False

    def read(self) -> Reading:
        try:
            state = self._robot.read_once()
        except RuntimeError as error:
            raise DeviceGoneError(f"{self._name}: {_line(error)}; check cable and power, then connect") from None
        now = now_ns()
        captured = self._clock.map(round(state.time.to_sec() * SECOND_NS), now)
        condition, reason = self._condition(state)
        return Reading(
            max(captured, now - _OLDEST_NS),
            now,
            condition,
            np.array(state.q),
            np.array(state.dq),
            np.array(state.tau_J),
            np.nan if self._hand is None else self._hand.opened(),
            np.array(state.O_F_ext_hat_K),
            None,
            reason,
        )

    def _condition(self, state: Any) -> tuple[Condition, str]:
        mode, modes = state.robot_mode, self._sdk.RobotMode
        if mode == modes.UserStopped:
            return Condition.EMERGENCY_STOP, "the user stop is pressed; a person must release it, then recover"
        if mode == modes.Reflex:
            return Condition.PROTECTIVE_STOP, f"reflex {state.current_errors}; recover ends it"
        if mode == modes.Guiding:
            return Condition.RELEASED, "a person guides it by the buttons at its wrist"
        if self._released:
            return Condition.RELEASED, _RELEASED
        if self._handler is None:
            return Condition.FAULT, "it is not under control; recover"
        if self._refused:
            return Condition.FAULT, f"the robot refused a target ({self._refused}); recover"
        return Condition.READY, ""

    def send(self, positions: np.ndarray, gripper: float) -> None:
        target = self._sdk.AsyncPositionControlHandler.JointPositionTarget(positions.tolist())
        result = self._asking(lambda: self._handler.set_joint_position_target(target))
        if not result.was_successful:
            self._refused = result.error_message or "no reason given"
        if self._hand is not None:
            self._hand.go(gripper)

    def idle(self) -> None:
        pass

    def hold(self) -> None:
        if self._released:
            self.prepare()
        elif self._handler is not None and not self._refused:
            self.send(np.array(self._robot.read_once().q), np.nan)

    def release(self) -> None:
        self._let_go()
        self._released = True

    def recover(self) -> None:
        self._let_go()
        try:
            self._robot.automatic_error_recovery()
        except RuntimeError as error:
            reason = self._condition(self._robot.read_once())[1]
            raise NotReadyError(f"{self._name}: {reason or _line(error)}") from None
        self._await_mode()
        self.prepare()

    def _await_mode(self) -> None:
        """The packets after a recovery still tell of the reflex for a moment."""
        end = now_ns() + round(_SETTLE_S * SECOND_NS)
        while self._robot.read_once().robot_mode == self._sdk.RobotMode.Reflex and now_ns() < end:
            pass  # each reading waits for a packet

    def close(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        """End the control that is under way, whatever state it is in; without that the SDK begins no other."""
        handler, self._handler = self._handler, None
        if handler is not None:
            with contextlib.suppress(RuntimeError):
                handler.stop_control()

    def _asking(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except RuntimeError as error:
            raise NotReadyError(f"{self._name}: {_line(error)}; recover") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
