"""UFACTORY xArm 5, 6, 7 and Lite 6 through xarm-python-sdk, joint positions in servo mode.

Each tick asks the control box for joint positions, velocities and torques, and sends one setpoint (set_servo_angle_j).
The box holds the last setpoint when no more come. Codes and modes: xArm developer manual and the SDK's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.devices import ArmInfo, Condition, DeviceError, DeviceGoneError, NotReadyError
from robolearn_hardware.limits import limits_of
from robolearn_hardware.network.link import LinkedArm
from robolearn_hardware.network.reach import reach
from robolearn_hardware.network.session import SILENCE_S, Pace, Reading
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.xarm import XarmTwin

Gripper = Literal["none", "xarm", "lite6"]

_PORTS = {502: "commands", 30002: "reports"}
_POSITION_MODE, _SERVO_MODE, _MANUAL_MODE = 0, 1, 2
_STOPPED = 4  # states from here on do not move
_EMERGENCY = (1, 2, 3)
_PROTECTIVE = (21, 22, 23, 24, 31, 35)  # kinematics, self-collision, joint limit, speed limit, collision, fence
_SLOW_S, _FAST_S = 2.0, 0.1  # answers awaited while preparing, and between two ticks
_GREATEST = 7.0  # rad; a reading beyond is a broken packet
_GRIPPER_NS = 100_000_000  # its bus is slow
_GRIPPER_PULSES, _GRIPPER_SPEED = 850, 5000
_GRIPPER_STEP = 0.01


@dataclass(frozen=True)
class XarmConfig:
    """A UFACTORY arm in a rig file. Use a subclass, which is a kind."""

    MODEL: ClassVar[str] = ""
    AXES: ClassVar[int] = 0
    TYPES: ClassVar[tuple[int, ...]] = ()
    """What the control box reports as the arm's type."""

    address: str
    """IP address, or "twin"."""
    rate_hz: float = 100.0
    """At most 250, says the manual."""
    gripper: Gripper = "none"
    plant: str = "first_order"
    """What moves behind the twin, see ``twins.plant.make_plant``."""

    def open(self, name: str) -> LinkedArm:
        return LinkedArm(_info(name, self), partial(XarmSession, name, self), Pace(self.rate_hz))

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.address != "twin":
            return self
        return replace(self, address=twins.start(name, partial(XarmTwin, self.MODEL, self.plant)).address)


class Xarm5Config(XarmConfig):
    MODEL, AXES, TYPES = "xarm5", 5, (5,)


class Xarm6Config(XarmConfig):
    MODEL, AXES, TYPES = "xarm6", 6, (6,)


class Xarm7Config(XarmConfig):
    MODEL, AXES, TYPES = "xarm7", 7, (7,)


class Lite6Config(XarmConfig):
    MODEL, AXES, TYPES = "lite6", 6, (9,)


def _info(name: str, config: XarmConfig, serial: str = "", firmware: str = "") -> ArmInfo:
    made = serial[2:6]  # the revision
    limits = limits_of(config.MODEL, "1305" if made.isdigit() and int(made) >= 1305 else "")
    names = tuple(f"joint{i + 1}" for i in range(config.AXES))
    return ArmInfo(name, config.MODEL, names, limits, config.gripper != "none", config.rate_hz, serial, firmware)


class XarmSession:
    """A ``session.Session``."""

    def __init__(self, name: str, config: XarmConfig) -> None:
        self._name = name
        self._config = config
        self._arm: Any = None
        self._last: Reading | None = None
        self._prepared = False
        self._released = False
        self._gripper = np.nan
        self._gripper_wanted = np.nan
        self._gripper_ns = 0

    def open(self) -> ArmInfo:
        try:
            from xarm.wrapper import XArmAPI
        except ImportError:
            raise DeviceError("UFACTORY arms need their SDK: pip install 'robolearn[xarm]'") from None
        config, host = self._config, self._config.address
        reach(self._name, host, _PORTS)
        self._arm = XArmAPI(host, is_radian=True, do_not_open=True, forbid_uds=True, check_cmdnum_limit=False)
        try:
            self._arm.connect()
        except Exception as error:  # the SDK raises nothing more specific
            raise DeviceError(f"{self._name}: the control box at {host} does not answer: {error}") from None
        axes, kind = self._arm.axis, self._arm.device_type
        if axes != config.AXES or kind not in config.TYPES:
            raise DeviceError(
                f"{self._name}: the control box at {host} drives an arm of {axes} axes, type {kind}; the rig says "
                f"{config.MODEL} ({config.AXES} axes, type {config.TYPES[0]}); correct the rig's kind or address"
            )
        self._arm.set_timeout(_FAST_S)
        return _info(self._name, config, self._arm.sn or "", ".".join(map(str, self._arm.version_number)))

    def prepare(self) -> None:
        arm = self._arm
        with self._patiently():
            self._refuse_if_error()
            arm.motion_enable(True)
            arm.set_mode(_SERVO_MODE)
            arm.set_state(0)
            self._await(lambda: arm.mode == _SERVO_MODE and arm.state < _STOPPED, 2.0, "does not enter servo mode")
            if self._config.gripper == "xarm":
                codes = arm.set_gripper_enable(True), arm.set_gripper_mode(0), arm.set_gripper_speed(_GRIPPER_SPEED)
                if any(codes):
                    raise NotReadyError(f"{self._name}: its gripper does not answer (codes {codes}); is it there?")
        self._prepared, self._released = True, False

    def read(self) -> Reading:
        asked = now_ns()
        code, found = self._arm.get_joint_states(num=3)
        now = now_ns()
        if code == 0:
            values = np.array(found, np.float64)[:, : self._config.AXES]
            if np.isfinite(values).all() and np.abs(values[0]).max() < _GREATEST:
                condition, reason = self._condition()
                hot = np.array(self._arm.temperatures[: self._config.AXES], np.float64)
                self._read_gripper(now)
                positions, velocities, torques = values
                self._last = Reading(
                    (asked + now) // 2,
                    now,
                    condition,
                    positions,
                    velocities,
                    torques,
                    self._gripper,
                    temperatures=hot,
                    reason=reason,
                )
        last = self._last
        if last is None:
            raise DeviceError(f"{self._name}: the control box does not tell joint positions (code {code}); restart it")
        if now - last.received_ns > SILENCE_S * SECOND_NS or not self._arm.connected:
            raise DeviceGoneError(f"{self._name}: the control box is silent; check cable and power, then connect")
        return last

    def _condition(self) -> tuple[Condition, str]:
        arm = self._arm
        if arm.has_err_warn:
            arm.get_err_warn_code()
        if arm.has_error:
            code = int(arm.error_code)
            if code in _EMERGENCY:
                return Condition.EMERGENCY_STOP, f"{_meaning(code)}; release it, then recover"
            kind = Condition.PROTECTIVE_STOP if code in _PROTECTIVE else Condition.FAULT
            return kind, f"{_meaning(code)}; recover clears it"
        if self._released:
            return Condition.RELEASED, "a person guides it by hand; hold ends that"
        # A report may be older than what was set since: the box is asked before it is called stopped.
        stopped = arm.state >= _STOPPED and arm.get_state()[1] >= _STOPPED
        if not self._prepared or arm.mode != _SERVO_MODE or stopped:
            return Condition.FAULT, "it is not in servo mode (stopped, perhaps in UFACTORY Studio?); recover"
        return Condition.READY, ""

    def _read_gripper(self, now: int) -> None:
        if self._config.gripper == "xarm" and self._prepared and now - self._gripper_ns > _GRIPPER_NS:
            self._gripper_ns = now
            code, pulses = self._arm.get_gripper_position(check_baud=False)
            if code == 0:
                self._gripper = float(np.clip(pulses / _GRIPPER_PULSES, 0.0, 1.0))

    def send(self, positions: np.ndarray, gripper: float) -> None:
        self._arm.set_servo_angle_j(positions.tolist(), speed=np.pi, mvacc=20.0, is_radian=True)
        if np.isnan(gripper) or abs(gripper - self._gripper_wanted) < _GRIPPER_STEP:
            return
        self._gripper_wanted = gripper
        if self._config.gripper == "xarm":
            self._arm.set_gripper_position(gripper * _GRIPPER_PULSES, wait=False, no_check=True)
        else:
            opens = gripper > 0.5
            (self._arm.open_lite6_gripper if opens else self._arm.close_lite6_gripper)(sync=False)
            self._gripper = float(opens)

    def idle(self) -> None:
        pass  # reading keeps the connection

    def hold(self) -> None:
        if self._released:
            self.prepare()
        elif self._last is not None and self._last.condition == Condition.READY:
            self._arm.set_servo_angle_j(self.read().positions.tolist(), speed=np.pi, mvacc=20.0, is_radian=True)

    def release(self) -> None:
        arm = self._arm
        with self._patiently():
            self._refuse_if_error()
            arm.set_mode(_MANUAL_MODE)
            arm.set_state(0)
            self._await(lambda: arm.mode == _MANUAL_MODE and arm.state < _STOPPED, 1.0, "does not let go")
        self._released = True

    def recover(self) -> None:
        with self._patiently():
            self._arm.clean_error()
            self._arm.clean_warn()
        self.prepare()

    def close(self) -> None:
        pass  # it holds its last setpoint; the process takes the connection with it

    def _refuse_if_error(self) -> None:
        code, found = self._arm.get_err_warn_code()
        if code == 0 and found[0]:
            raise NotReadyError(f"{self._name}: {self._condition()[1]}")

    @contextmanager
    def _patiently(self) -> Iterator[None]:
        self._arm.set_timeout(_SLOW_S)
        try:
            yield
        finally:
            self._arm.set_timeout(_FAST_S)

    def _await(self, done: Callable[[], bool], limit_s: float, what: str) -> None:
        end = now_ns() + round(limit_s * SECOND_NS)
        while not done():
            if now_ns() > end:
                raise NotReadyError(
                    f"{self._name} {what} within {limit_s:g} s (mode {self._arm.mode}, state {self._arm.state}); "
                    "look at UFACTORY Studio, then recover"
                )
            wait_until_ns(now_ns() + SECOND_NS // 50)


def _meaning(code: int) -> str:
    from xarm.core.config.x_code import ControllerErrorCodeMap

    title = ControllerErrorCodeMap.get(code, {}).get("en", {}).get("title", "unknown")
    return f"error {code}: {title}"
