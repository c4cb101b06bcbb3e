"""Franka Emika Robot (FER, Panda) through franky, joint impedance tracking.

franky's own thread feeds the robot at 1 kHz with the torques of an impedance controller, and the link moves its
reference: setpoints may come at any rate, and a missed one is not a missed packet. Contact is soft: the torque is
``stiffness`` times the error, so that friction leaves a few milliradians. When this process is gone the robot stops by
itself after 20 ms without a packet.

A FER ends at libfranka 0.9. franky-control from PyPI is built for the Research 3; the same package built for libfranka
0.9.2 is in franky's releases (https://github.com/TimSchneider42/franky). Not tried on a FER: its twin is franky-sim,
which is a Research 3, driven with the franky of PyPI.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.device_clock import DeviceClock
from robolearn_hardware.devices import ArmInfo, Condition, DeviceError, DeviceGoneError, NotReadyError
from robolearn_hardware.limits import limits_of
from robolearn_hardware.network.franka_hand import Hand
from robolearn_hardware.network.link import LinkedArm
from robolearn_hardware.network.reach import reach
from robolearn_hardware.network.session import Pace, Reading
from robolearn_hardware.twins.franka import FrankaTwin
from robolearn_hardware.twins.host import Twins

Seven = tuple[float, float, float, float, float, float, float]

JOINTS = tuple(f"joint{i + 1}" for i in range(7))
_PORTS = {1337: "robot control"}
_SETTLE_S = 0.2
_OLDEST_NS = 20_000_000  # a robot stops when packets are later
_FREE = 0.05  # share of the damping that is left to a person who guides it
_NOT_READY = (Condition.EMERGENCY_STOP, Condition.PROTECTIVE_STOP)


@dataclass(frozen=True)
class FerConfig:
    """A Franka Emika Robot (Panda) in a rig file."""

    address: str
    """IP address, or "twin" (which is a Research 3)."""
    rate_hz: float = 100.0
    """Of setpoints and readings."""
    gripper: Literal["none", "hand"] = "hand"
    realtime: Literal["enforce", "ignore"] = "enforce"
    """"ignore" lets it run on a kernel that is not real-time: packets may come late, and the robot may stop."""
    speed: float = 0.5
    """Share of the joints' greatest velocities."""
    stiffness: Seven = (200.0, 200.0, 200.0, 200.0, 100.0, 60.0, 30.0)
    """N m/rad. Stiffer follows closer and needs a quicker machine: late torques make it swing."""
    collision_torque: float = 20.0
    """N m, of every joint: more is a collision, and the robot stops (a reflex)."""
    collision_force: float = 30.0
    """N, and N m, at the tool: likewise."""
    urdf: str = "panda"
    """What the robot must be, by its own model; "fr3" lets this drive a Research 3."""

    def open(self, name: str) -> LinkedArm:
        return LinkedArm(_info(name, self), partial(FerSession, name, self), Pace(self.rate_hz, self.speed))

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.address != "twin":
            return self
        return replace(self, address=twins.start(name, FrankaTwin).address, realtime="ignore", urdf="fr3")


def _info(name: str, config: FerConfig) -> ArmInfo:
    return ArmInfo(name, "fer", JOINTS, limits_of("fer"), config.gripper == "hand", config.rate_hz)


class FerSession:
    """A ``session.Session``."""

    def __init__(self, name: str, config: FerConfig) -> None:
        self._name = name
        self._config = config
        self._stiffness = np.array(config.stiffness)
        self._damping = 2.0 * np.sqrt(self._stiffness)  # as franky's own, "critical" for unit inertia
        self._sdk: Any = None
        self._robot: Any = None
        self._motion: Any = None
        self._hand: Hand | None = None
        self._clock = DeviceClock()
        self._last: Reading | None = None
        self._device_ns = -1
        self._previous: np.ndarray | None = None
        self._released = False

    def open(self) -> ArmInfo:
        try:
            import franky
        except ImportError:
            raise DeviceError("Franka arms need franky: pip install 'robolearn[franka]'") from None
        self._sdk = sdk = franky
        config, host = self._config, self._config.address
        reach(self._name, host, _PORTS)
        kind = sdk.RealtimeConfig.Ignore if config.realtime == "ignore" else sdk.RealtimeConfig.Enforce
        try:
            self._robot = sdk.Robot(host, realtime_config=kind)
            self._robot.set_collision_behavior(config.collision_torque, config.collision_force)
        except sdk.RealtimeException:
            raise DeviceError(
                f"{self._name}: this kernel is not real-time (PREEMPT_RT), or this user may not use it so; "
                "set realtime: ignore in the rig to go on at your own risk"
            ) from None
        except sdk.IncompatibleVersionException as error:
            raise DeviceError(
                f"{self._name}: {_line(error)}; a FER needs the franky that is built for libfranka 0.9.2"
            ) from None
        except sdk.Exception as error:
            raise DeviceError(f"{self._name}: the robot at {host} refuses: {_line(error)}") from None
        found = self._model()
        if found != config.urdf:
            raise DeviceError(
                f"{self._name}: the robot at {host} is a {found!r}, the rig says fer; use kind fr3, or correct the "
                "address"
            )
        if config.gripper == "hand":
            self._hand = Hand(host)
        return _info(self._name, config)

    def _model(self) -> str:
        """The name in the robot's own URDF, which only a Research 3 has."""
        try:
            return ElementTree.fromstring(self._robot.model_urdf).get("name", "")
        except (self._sdk.Exception, AttributeError):
            return "panda"

    def prepare(self) -> None:
        self._refuse_if_stopped()
        sdk = self._sdk
        self._motion = sdk.JointImpedanceTrackingMotion(stiffness=self._stiffness, damping=self._damping)
        self._refer(np.array(self._robot.state.q), np.zeros(7))

        def begin() -> None:
            self._robot.move(self._motion, asynchronous=True)
            wait_until_ns(now_ns() + round(_SETTLE_S * SECOND_NS))
            self._robot.poll_motion()

        self._asking(begin)
        self._released = False

    def read(self) -> Reading:
        try:
            state = self._robot.state
        except (self._sdk.Exception, RuntimeError) as error:
            raise DeviceGoneError(f"{self._name}: {_line(error)}; check cable and power, then connect") from None
        now = now_ns()
        device_ns = round(state.time.to_sec() * SECOND_NS)
        if self._last is None or device_ns != self._device_ns:
            self._device_ns = device_ns
            captured = self._clock.map(device_ns, now)
            self._last = Reading(
                max(captured, now - _OLDEST_NS),
                now,
                Condition.READY,
                np.array(state.q),
                np.array(state.dq),
                np.array(state.tau_J),
                np.nan if self._hand is None else self._hand.opened(),
                np.array(state.O_F_ext_hat_K),
            )
        condition, reason = self._condition(state)
        self._last = replace(self._last, condition=condition, reason=reason)
        return self._last

    def _condition(self, state: Any) -> tuple[Condition, str]:
        mode, modes = state.robot_mode, self._sdk.RobotMode
        if mode == modes.UserStopped:
            return Condition.EMERGENCY_STOP, "the user stop is pressed; a person must release it, then recover"
        if mode == modes.Reflex:
            return Condition.PROTECTIVE_STOP, f"reflex {state.current_errors}; recover ends it"
        if mode == modes.Guiding:
            return Condition.RELEASED, "a person guides it by the buttons at its wrist"
        if self._released:
            return Condition.RELEASED, "a person guides it by hand; hold ends that"
        if self._motion is None or not self._robot.is_in_control:
            return Condition.FAULT, f"not under control (errors of its motion: {state.last_motion_errors}); recover"
        return Condition.READY, ""

    def send(self, positions: np.ndarray, gripper: float) -> None:
        velocities = np.zeros(7)
        if self._previous is not None:
            velocities = (positions - self._previous) * self._config.rate_hz
        self._previous = positions
        self._refer(positions, velocities)
        if self._hand is not None:
            self._hand.go(gripper)

    def idle(self) -> None:
        self._previous = None

    def hold(self) -> None:
        if self._motion is None or not self._robot.is_in_control:
            return  # the robot holds by itself
        self._refer(np.array(self._robot.state.q), np.zeros(7))
        self._gains(1.0, 1.0)
        self._released = False

    def release(self) -> None:
        self._refuse_if_stopped()
        if self._motion is None or not self._robot.is_in_control:
            raise NotReadyError(f"{self._name} is not under control; recover first")
        self._gains(0.0, _FREE)
        self._released = True

    def recover(self) -> None:
        self._motion = None
        with contextlib.suppress(self._sdk.Exception):
            self._robot.join_motion(0.1)  # raises what ended the last motion, which the next one would raise otherwise
        self._asking(self._robot.recover_from_errors)
        end = now_ns() + SECOND_NS
        while self._robot.state.robot_mode == self._sdk.RobotMode.Reflex and now_ns() < end:
            pass  # the packets after a recovery still tell of the reflex for a moment; each reading waits for one
        self.prepare()

    def close(self) -> None:
        if self._robot.is_in_control:
            self._asking(self._robot.stop)

    def _refer(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        self._motion.set_reference(self._sdk.JointReference(q=positions, dq=velocities))

    def _gains(self, stiffness: float, damping: float) -> None:
        gains = self._sdk.JointImpedanceGains(stiffness=stiffness * self._stiffness, damping=damping * self._damping)
        self._motion.set_gains(gains)

    def _refuse_if_stopped(self) -> None:
        condition, reason = self._condition(self._robot.state)
        if condition in _NOT_READY:
            raise NotReadyError(f"{self._name}: {reason}")

    def _asking(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except (self._sdk.Exception, RuntimeError) as error:
            reason = self._condition(self._robot.state)[1]
            raise NotReadyError(f"{self._name}: {reason or _line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
