"""Universal Robots e-Series and UR20 through ur_rtde, joint positions by servoJ.

The control script of ur_rtde repeats the last servoJ by itself, so that a gap in the stream ends in a hold. The
watchdog ends the script, and with it any motion, when this process is gone (killed, stopped, cut off). The robot must
be in remote control, with PolyScope 5.6 or later. Grippers at its tool are not driven.

SDK: https://sdurobotics.gitlab.io/ur_rtde. Bits and modes: Universal Robots, RTDE guide. Dashboard: Dashboard Server
e-Series manual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.device_clock import DeviceClock
from robolearn_hardware.devices import ArmInfo, Condition, DeviceError, DeviceGoneError, NotReadyError
from robolearn_hardware.limits import limits_of
from robolearn_hardware.network.link import LinkedArm
from robolearn_hardware.network.reach import reach
from robolearn_hardware.network.session import SILENCE_S, Pace, Reading
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.ur.server import UrTwin

T = TypeVar("T")

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
_PORTS = {29999: "dashboard", 30004: "RTDE", 30003: "scripts"}
_VARIABLES = [
    "timestamp",
    "actual_q",
    "actual_qd",
    "actual_current",
    "actual_TCP_force",
    "joint_temperatures",
    "robot_mode",
    "safety_mode",
    "runtime_state",
    "robot_status_bits",
    "safety_status_bits",
]
_GREATEST = 7.0  # rad; a reading beyond is a broken packet: joints turn to +-2 pi
_RUNNING = 7  # robot_mode
_PLAYING = 2  # runtime_state
_PROTECTIVE, _SAFEGUARD, _SYSTEM_EMERGENCY, _ROBOT_EMERGENCY, _EMERGENCY, _VIOLATION, _FAULT = 2, 4, 5, 6, 7, 8, 9
_EMERGENCY_BITS = 1 << _SYSTEM_EMERGENCY | 1 << _ROBOT_EMERGENCY | 1 << _EMERGENCY
_WATCHDOG_HZ = 3.0
_KICK_NS = 50_000_000
_UNLOCK_S = 6.0  # a controller refuses for 5 s
_POWER_S = 3.2  # each of two steps
_SCRIPT_S = 3.0


@dataclass(frozen=True)
class UrConfig:
    """A Universal Robots arm in a rig file. Use a subclass, which is a kind."""

    MODEL: ClassVar[str] = ""
    REPORTS: ClassVar[str] = ""
    """What its dashboard calls the model."""

    address: str
    """IP address, or "twin"."""
    rate_hz: float = 500.0
    lookahead_s: float = 0.1
    """Of servoJ, 0.03 to 0.2: smooths, and delays as much."""
    gain: float = 300.0
    """Of servoJ, 100 to 2000."""
    plant: str = "first_order"
    """What moves behind the twin, see ``twins.plant.make_plant``."""

    def open(self, name: str) -> LinkedArm:
        return LinkedArm(_info(name, self), partial(UrSession, name, self), Pace(self.rate_hz))

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.address != "twin":
            return self
        return replace(self, address=twins.start(name, partial(UrTwin, self.MODEL, self.plant)).address)


class Ur3eConfig(UrConfig):
    MODEL, REPORTS = "ur3e", "UR3"


class Ur5eConfig(UrConfig):
    MODEL, REPORTS = "ur5e", "UR5"


class Ur10eConfig(UrConfig):
    MODEL, REPORTS = "ur10e", "UR10"


class Ur16eConfig(UrConfig):
    MODEL, REPORTS = "ur16e", "UR16"


class Ur20Config(UrConfig):
    MODEL, REPORTS = "ur20", "UR20"


def _info(name: str, config: UrConfig, serial: str = "", firmware: str = "") -> ArmInfo:
    limits = limits_of(config.MODEL)
    return ArmInfo(name, config.MODEL, JOINTS, limits, False, config.rate_hz, serial, firmware)


class UrSession:
    """A ``session.Session``."""

    def __init__(self, name: str, config: UrConfig) -> None:
        self._name = name
        self._config = config
        self._dashboard: Any = None
        self._receive: Any = None
        self._control: Any = None
        self._clock = DeviceClock()
        self._last: Reading | None = None
        self._timestamp = -1.0
        self._sent_ns = 0
        self._released = False

    def open(self) -> ArmInfo:
        try:
            from dashboard_client import DashboardClient
            from rtde_receive import RTDEReceiveInterface
        except ImportError:
            raise DeviceError("Universal Robots arms need ur_rtde: pip install 'robolearn[ur]'") from None
        config, host = self._config, self._config.address
        reach(self._name, host, _PORTS)
        self._dashboard = DashboardClient(host)
        model, serial, version = self._say(
            lambda d: (d.connect(2000), (d.getRobotModel(), d.getSerialNumber(), d.polyscopeVersion()))[1]
        )
        if model.upper().removesuffix("E") != config.REPORTS:
            raise DeviceError(
                f"{self._name}: the robot at {host} is a {model!r}, the rig says {config.MODEL}; "
                "correct the rig's kind or address"
            )
        try:
            self._receive = RTDEReceiveInterface(host, config.rate_hz, _VARIABLES)
        except RuntimeError as error:
            raise DeviceError(f"{self._name}: the controller at {host} refuses RTDE: {_line(error)}") from None
        self._await(lambda: self._receive.getTimestamp() > 0.0, 1.0, "sends no readings")
        return _info(self._name, config, serial, version)

    def prepare(self) -> None:
        from rtde_control import RTDEControlInterface

        self._refuse_if_stopped()
        if not self._say(lambda d: d.isInRemoteControl()):
            raise NotReadyError(
                f"{self._name} is not in remote control; switch it at the top right of the teach pendant, then recover"
            )
        try:
            if self._control is None or not self._control.isConnected():
                self._control = RTDEControlInterface(self._config.address, self._config.rate_hz)
            else:
                self._control.reuploadScript()
            self._await(
                lambda: self._receive.getRuntimeState() == _PLAYING, _SCRIPT_S, "does not start the control script"
            )
            # A script that has just begun may not be reading yet.
            self._await(lambda: self._control.setWatchdog(_WATCHDOG_HZ), 1.5, "does not accept commands", 0.1)
        except RuntimeError as error:
            raise NotReadyError(f"{self._name}: the control script does not run: {_line(error)}") from None
        self._sent_ns = now_ns()
        self._released = False

    def read(self) -> Reading:
        receive, now = self._receive, now_ns()
        bits = receive.getSafetyStatusBits(), receive.getRobotMode(), receive.getRuntimeState()
        condition, reason = self._condition(*bits)
        timestamp = receive.getTimestamp()
        if timestamp != self._timestamp:
            self._take(receive, timestamp, now)
        if self._last is None:
            raise DeviceError(f"{self._name}: the controller sends no readings that make sense; restart it")
        if now - self._last.received_ns > SILENCE_S * SECOND_NS:
            raise DeviceGoneError(f"{self._name}: silent for {SILENCE_S:g} s; check cable and power, then connect")
        # What it is ready for may have changed since its last package: by what this session did.
        self._last = replace(self._last, condition=condition, reason=reason)
        return self._last

    def _take(self, receive: Any, timestamp: float, now: int) -> None:
        """Keep the present package, unless it is broken, or another has come while it was read."""
        positions = np.array(receive.getActualQ())
        velocities = np.array(receive.getActualQd())
        currents = np.array(receive.getActualCurrent())
        wrench = np.array(receive.getActualTCPForce())
        temperatures = np.array(receive.getJointTemperatures())
        if receive.getTimestamp() != timestamp:
            return
        numbers = np.concatenate([positions, velocities, currents, wrench])
        if not np.isfinite(numbers).all() or np.abs(positions).max() > _GREATEST or not timestamp > 0.0:
            return
        captured = self._clock.map(round(timestamp * SECOND_NS), now)
        self._timestamp = timestamp
        self._last = Reading(
            captured,
            now,
            Condition.READY,
            positions,
            velocities,
            currents,
            wrench=wrench,
            temperatures=temperatures,
        )

    def _condition(self, safety: int, mode: int, runtime: int) -> tuple[Condition, str]:
        stopped = _stopped(safety, mode)
        if stopped is not None:
            return stopped
        if self._released:
            return Condition.RELEASED, "a person guides it by hand; hold ends that"
        if self._control is None or runtime != _PLAYING:
            return Condition.FAULT, "its control script does not run (a person or the watchdog ended it?); recover"
        return Condition.READY, ""

    def send(self, positions: np.ndarray, gripper: float) -> None:
        config = self._config
        done = self._control.servoJ(positions.tolist(), 0.0, 0.0, 1.0 / config.rate_hz, config.lookahead_s, config.gain)
        self._sent_ns = now_ns() if done else self._sent_ns

    def idle(self) -> None:
        runs = self._released or (self._last is not None and self._last.condition == Condition.READY)
        if self._control is not None and runs and now_ns() - self._sent_ns > _KICK_NS:
            self._control.kickWatchdog()
            self._sent_ns = now_ns()

    def hold(self) -> None:
        if self._control is None or not self._control.isProgramRunning():
            return  # it stands
        if self._released:
            self._control.endFreedriveMode()
            self._released = False
        self._control.servoStop()

    def release(self) -> None:
        self._refuse_if_stopped()
        if self._control is None:
            raise NotReadyError(f"{self._name} has no control script; recover starts it")
        self._control.servoStop()
        if not self._control.freedriveMode():
            raise NotReadyError(f"{self._name} does not let go; look at the teach pendant")
        self._released = True
        self._sent_ns = now_ns()

    def recover(self) -> None:
        then = self._receive.getTimestamp()  # what a person did just now is in the packages after this one
        self._await(lambda: self._receive.getTimestamp() > then + 2 / self._config.rate_hz, 0.4, "sends no readings")
        safety = self._receive.getSafetyStatusBits()
        if safety & 1 << _PROTECTIVE:
            self._unlock()
        if safety & _EMERGENCY_BITS == 0 and self._receive.getRobotMode() != _RUNNING:
            self._power_on()
        self.prepare()

    def _unlock(self) -> None:
        refused = ""

        def unlocked() -> bool:
            nonlocal refused
            try:
                self._say(lambda d: (d.closeSafetyPopup(), d.unlockProtectiveStop()))
            except NotReadyError as error:
                refused = str(error)
                return False
            return True

        self._await(unlocked, _UNLOCK_S, "stays in its protective stop", every_s=0.25, why=lambda: refused)
        self._await(lambda: not self._receive.isProtectiveStopped(), 0.5, "stays in its protective stop")

    def _power_on(self) -> None:
        self._say(lambda d: d.powerOn())
        self._await(lambda: self._receive.getRobotMode() >= 5, _POWER_S, "is not powered on yet; recover again")
        self._say(lambda d: d.brakeRelease())
        self._await(
            lambda: self._receive.getRobotMode() == _RUNNING, _POWER_S, "is releasing its brakes; recover again"
        )

    def close(self) -> None:
        if self._control is not None and self._control.isProgramRunning():
            self._control.stopScript()

    def _refuse_if_stopped(self) -> None:
        stopped = _stopped(self._receive.getSafetyStatusBits(), self._receive.getRobotMode())
        if stopped is not None:
            raise NotReadyError(f"{self._name}: {stopped[1]}")

    def _say(self, what: Callable[[Any], T]) -> T:
        """Ask the dashboard, over a new connection where the old one has broken."""
        try:
            if self._dashboard.isConnected():
                return what(self._dashboard)
        except RuntimeError:
            pass
        try:
            self._dashboard.disconnect()
            self._dashboard.connect(2000)
            return what(self._dashboard)
        except RuntimeError as error:
            raise NotReadyError(
                f"{self._name}: the dashboard at {self._config.address}:29999 does not do this ({_line(error)}); "
                "is that a UR controller, and is it up?"
            ) from None

    def _await(
        self, done: Callable[[], bool], limit_s: float, what: str, every_s: float = 0.01, why: Callable[[], str] = str
    ) -> None:
        end = now_ns() + round(limit_s * SECOND_NS)
        while not done():
            if now_ns() > end:
                raise NotReadyError(f"{self._name} {what} (after {limit_s:g} s; look at the teach pendant) {why()}")
            wait_until_ns(now_ns() + round(every_s * SECOND_NS))


def _stopped(safety: int, mode: int) -> tuple[Condition, str] | None:
    """Why the controller lets nothing move: from RTDE's safety_status_bits and robot_mode."""
    if safety & _EMERGENCY_BITS:
        return Condition.EMERGENCY_STOP, "the emergency stop is pressed; a person must release it, then recover"
    if safety & (1 << _VIOLATION | 1 << _FAULT):
        return Condition.FAULT, "safety fault; look at the teach pendant and restart the robot there"
    if safety & 1 << _PROTECTIVE:
        return Condition.PROTECTIVE_STOP, "protective stop; see why on the teach pendant, then recover"
    if safety & 1 << _SAFEGUARD:
        return Condition.PROTECTIVE_STOP, "safeguard stop; close the safeguard, then recover"
    if mode != _RUNNING:
        return Condition.RELEASED, "its motors are off or its brakes closed; recover switches them on"
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
