"""What an arm and a leader have in common: joints in radians, read from the motors of one bus, and their health."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import ArmInfo, DeviceError, DeviceGoneError, DeviceTimeoutError, JointLimits
from robolearn_hardware.limits import narrowed
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.calibration import Calibration, check_calibration
from robolearn_hardware.servo.models import ServoArmModel
from robolearn_hardware.servo.registers import MOTORS, RAD_PER_TICK, TICKS

_MOTOR_SILENT_NS, _LINE_SILENT_NS = SECOND_NS // 2, SECOND_NS
"""How long one motor may be silent while others answer, and how long all of them: an adapter, or what runs a twin, may
stand still for a while."""
_UNANSWERED = 5
"""So many questions must have had no answer, too: a computer that stood still itself has not asked so often. A reading
takes 0.1 s at most."""
_HEALTH_NS = SECOND_NS // 10
"""Between two looks at one motor's temperature or torque."""
_LATE_NS = SECOND_NS // 5
"""Later than this no answer comes. Longer, and a line with a loss now and then would never be looked after."""
_SHADOWS_AGREE_RAD = 0.1
_STEP_TICKS = 400
"""Farther no joint moves between two readings of a control loop."""


@dataclass
class _Silence:
    """Of a motor, or of the line."""

    since_ns: int = 0
    unanswered: int = 0

    def go_on(self, at_ns: int) -> None:
        self.since_ns = self.since_ns if self.unanswered else at_ns
        self.unanswered += 1

    def lasts(self, at_ns: int, limit_ns: int) -> bool:
        return self.unanswered >= _UNANSWERED and at_ns - self.since_ns > limit_ns


@dataclass(frozen=True, eq=False)
class ChainState:
    capture_ns: int
    """Of the oldest value in it."""
    received_ns: int
    whole: bool
    """Every motor answered."""
    positions: np.ndarray
    """(J,) rad"""
    velocities: np.ndarray
    """(J,) rad/s"""
    efforts: np.ndarray
    """(J,) see ``MotorModel.current_unit``"""
    gripper: float
    """0 closed, 1 open; NaN where there is none"""
    temperatures: np.ndarray
    """(J,) deg C"""


class ServoChain:
    """The motors of an arm in its joints' terms. Methods raise what ``ServoBus`` does."""

    def __init__(self, name: str, model: ServoArmModel, calibration: Calibration, bus: ServoBus) -> None:
        self.name, self.model, self.calibration, self.bus = name, model, calibration, bus
        self.names = [joint.name for joint in model.motors]
        motors = [calibration.motors[joint] for joint in self.names]
        self.ids = [motor.id for motor in motors]
        self.motors = motors
        self.gripper = self.names.index(model.gripper) if model.gripper else None
        self._joints = [self.names.index(joint.name) for joint in model.joints]
        self._leader = [self.names.index(joint.shadow_of or joint.name) for joint in model.motors]
        """For each motor the one that it goes with: itself, but for a shadow."""
        self._zero = np.array([motor.zero for motor in motors], np.float64)
        self._scale = np.array([motor.direction for motor in motors]) * RAD_PER_TICK
        kinds = [MOTORS[motor.motor] for motor in motors]
        self._velocity_unit = np.array([motor.direction for motor in motors]) * [kind.velocity_unit for kind in kinds]
        self._current_unit = np.array([motor.direction for motor in motors]) * [kind.current_unit for kind in kinds]
        self._turns = np.zeros(len(motors), np.int64)
        """Ticks to add to what a motor reports: it may have started a turn off, or gone over its encoder's seam."""
        self.faults: dict[int, str] = {}
        """Motor's ID -> what is wrong with it."""
        self.torque: dict[int, bool] = {}
        """Motor's ID -> whether it was on when last looked at."""

    def info(self, rate_hz: float) -> ArmInfo:
        """Without its firmware. Raises DeviceError: the calibration leaves nothing of a joint's range."""
        joints = self.model.joints
        ends = np.array([self.calibration.motors[joint.name].ends for joint in joints])
        unknown = np.full(len(joints), np.inf)
        calibrated = JointLimits(ends[:, 0], ends[:, 1], unknown, unknown, unknown)
        return ArmInfo(
            self.name,
            self.model.name,
            tuple(joint.name for joint in joints),
            narrowed(self.model.limits, calibrated),
            self.gripper is not None,
            rate_hz,
            self.calibration.fingerprint,
        )

    def connect(self) -> None:
        """Open the port, see that the motors are the calibrated ones, and read them all.

        Raises:
            DeviceError: as ``ServoBus.open`` and ``check_calibration``; or two motors of one joint disagree.
        """
        self.bus.open()
        check_calibration(self.bus, self.calibration)
        self._check_modes()
        self.start()

    def start(self) -> None:
        """Read every motor anew, after connecting or after one has restarted."""
        n = len(self.ids)
        self._order = list(self.ids)
        self._ticks, self._velocity, self._current = np.zeros(n), np.zeros(n), np.zeros(n)
        self._temperature = np.array([float(self.bus.read(motor, "present_temperature")) for motor in self.ids])
        self._captured, self._received = [now_ns()] * n, now_ns()
        self._silences, self._line_silence = [_Silence() for _ in self.ids], _Silence()
        self._asked_ns = dict.fromkeys(self.ids, 0)
        self._health, self._health_ns = 0, now_ns()
        self._turns[:] = 0
        mask = "shutdown" if "shutdown" in self.bus.table.registers else "unloading_condition"
        self._mask = {motor: self.bus.read(motor, mask) for motor in self.ids}
        raw = [self.bus.read(motor, "present_position") for motor in self.ids]
        for i, motor in enumerate(self.motors):
            middle = (motor.range_low + motor.range_high) / 2
            self._turns[i] = round((middle - raw[i]) / TICKS) * TICKS
        self._ticks[:] = raw + self._turns
        self._check_shadows()
        self._look_for_faults()

    def firmware(self) -> str:
        first = self.ids[0]
        if "firmware_version" in self.bus.table.registers:
            return str(self.bus.read(first, "firmware_version"))
        return f"{self.bus.read(first, 'firmware_major')}.{self.bus.read(first, 'firmware_minor')}"

    def read(self) -> ChainState:
        """One exchange with all motors; now and then one more for the health of one of them.

        Raises:
            DeviceGoneError: the port has gone, or nothing has answered for 1 s and to five questions.
        """
        start = now_ns()
        found = self.bus.read_state(self._order)
        end = now_ns()
        for motor, reading in found.items():
            i = self.ids.index(motor)
            values = reading.values
            self._ticks[i] = self._unwrapped(i, values["present_position"])
            self._velocity[i] = values["present_velocity"]
            current = values["present_current"]
            self._current[i] = np.copysign(current, values.get("present_load", current))  # Feetech's has no direction
            self._temperature[i] = values.get("present_temperature", self._temperature[i])
            self._captured[i], self._silences[i] = (start + end) // 2, _Silence()
            self._notice(motor, reading.error, end)
        if silent := next((motor for motor in self._order if motor not in found), None):
            self._order.remove(silent)  # those behind it may only have waited for it
            self._order.append(silent)
        if found:
            self._received, self._line_silence = end, _Silence()
            for i, motor in enumerate(self.ids):
                if motor not in found:
                    self._silences[i].go_on(start)
                    if self._silences[i].lasts(end, _MOTOR_SILENT_NS):
                        self.faults.setdefault(motor, "does not answer; check its cable")
        else:
            self._line_silence.go_on(start)
            if self._line_silence.lasts(end, _LINE_SILENT_NS):
                self.bus.close()
                raise DeviceGoneError(
                    f"{self.name}: no motor has answered for 1 s on {self.bus.address}; check its power and cable (a "
                    "twin: is this machine overloaded?), then connect again"
                )
        if len(found) < len(self.ids):
            self._health_ns = max(self._health_ns, end + _LATE_NS)  # a late answer must not pass for that
        elif end >= self._health_ns:
            self._look_after(end)
        return self._state(whole=len(found) == len(self.ids))

    def stand(self) -> dict[int, int]:
        """Goals that keep every motor where it was last read: ID -> ticks as the motor counts them."""
        return self._as_motors_count(self._ticks)

    def goals(self, positions: np.ndarray, gripper: float | None) -> dict[int, int]:
        """ID -> ticks as the motor counts them, for joint ``positions`` (J,) rad, shadows too."""
        angles = np.zeros(len(self.ids))
        angles[self._joints] = positions
        ticks = np.rint(self._zero + angles[self._leader] / self._scale).astype(int)
        if self.gripper is not None and gripper is not None:
            ticks[self.gripper] = self.motors[self.gripper].opening_ticks(gripper)
        goals = self._as_motors_count(ticks)
        if self.gripper is not None and gripper is None:
            del goals[self.ids[self.gripper]]
        return goals

    def joint_of(self) -> dict[int, int]:
        """ID -> the joint (from 0) that it moves, shadows too, without the gripper."""
        joints = {motor: joint for joint, motor in enumerate(self._joints)}
        return {self.ids[i]: joints[leader] for i, leader in enumerate(self._leader) if leader in joints}

    def outside(self, limits: JointLimits, slack: float) -> str:
        """Which joint stands more than ``slack`` rad outside ``limits``, in words; "" when none does."""
        positions = self._state(whole=True).positions
        for i, joint in enumerate(self.model.joints):
            low, high = limits.low[i], limits.high[i]
            if not low - slack <= positions[i] <= high + slack:
                return f"{joint.name} stands at {positions[i]:.2f} rad, its limits are {low:.2f} to {high:.2f}"
        return ""

    def called(self, motor: int) -> str:
        return f"motor {motor} ({self.names[self.ids.index(motor)]})"

    def _as_motors_count(self, ticks: np.ndarray) -> dict[int, int]:
        own = ticks - self._turns if self.bus.table.counts_turns else ticks % TICKS
        return dict(zip(self.ids, own.astype(int).tolist(), strict=True))

    def _unwrapped(self, i: int, reported: int) -> int:
        """Ticks of motor ``i`` without a leap of whole turns since the last reading."""
        ticks = reported + int(self._turns[i])
        leap = ticks - int(self._ticks[i])
        turns = round(leap / TICKS)
        if not turns or abs(leap - turns * TICKS) > _STEP_TICKS:
            return ticks
        self._turns[i] -= turns * TICKS
        if self.bus.table.counts_turns:  # it does so when it starts anew, and then it has no torque
            self.faults.setdefault(self.ids[i], "has started anew: its power was interrupted")
        return ticks - turns * TICKS

    def _state(self, *, whole: bool) -> ChainState:
        angles = (self._ticks - self._zero) * self._scale
        opening = np.nan if self.gripper is None else self.motors[self.gripper].opening(self._ticks[self.gripper])
        return ChainState(
            min(self._captured),
            self._received,
            whole,
            angles[self._joints],
            (self._velocity * self._velocity_unit)[self._joints],
            (self._current * self._current_unit)[self._joints],
            float(opening),
            self._temperature[self._joints],
        )

    def _notice(self, motor: int, bits: int, now: int) -> None:
        """A motor's fault bits. Dynamixel's only says that there is something: ask what, not at every tick."""
        if not bits or motor in self.faults or now < self._asked_ns[motor] + _MOTOR_SILENT_NS:
            return
        self._asked_ns[motor] = now
        try:
            if bits == 0x80:
                bits = self.bus.read(motor, "hardware_error", tries=1)
        except DeviceTimeoutError:
            return
        if bits & self._mask[motor]:
            self.faults[motor] = self.bus.errors(motor, bits)

    def _look_for_faults(self) -> None:
        self.faults.clear()
        for motor in self.ids:
            bits = self.bus.read(motor, "hardware_error")
            if bits & self._mask[motor]:
                self.faults[motor] = self.bus.errors(motor, bits)

    def _look_after(self, now: int) -> None:
        """Temperature and torque, of one motor at a time."""
        self._health_ns = now + _HEALTH_NS
        registers = ["torque_enable"]
        if "present_temperature" not in self.bus.table.state:
            registers.append("present_temperature")
        register = registers[self._health % len(registers)]
        motor = self.ids[self._health // len(registers) % len(self.ids)]
        self._health += 1
        try:
            value = self.bus.read(motor, register, tries=1)
            if register == "torque_enable" and value != 1:
                value = self.bus.read(motor, register, tries=1)  # it is about to stop the arm: a second look
        except DeviceTimeoutError:
            return
        if register == "torque_enable":
            self.torque[motor] = value == 1
        else:
            self._temperature[self.ids.index(motor)] = value

    def _check_modes(self) -> None:
        if not self.bus.table.counts_turns:
            return
        for motor in self.motors:
            if abs(motor.homing_offset) > 1024 and self.bus.read(motor.id, "operating_mode") == 3:
                raise DeviceError(
                    f"{self.name}: {self.called(motor.id)} was set to position control, in which its homing offset "
                    "does not count (e-Manual, Homing Offset); set operating mode 4, or run `robolearn calibrate`"
                )

    def _check_shadows(self) -> None:
        angles = (self._ticks - self._zero) * self._scale
        for i, leader in enumerate(self._leader):
            if abs(angles[i] - angles[leader]) > _SHADOWS_AGREE_RAD:
                raise DeviceError(
                    f"{self.name}: {self.names[i]} stands at {angles[i]:.2f} rad and {self.names[leader]} at "
                    f"{angles[leader]:.2f}, but they move one joint and would fight; calibrate the arm"
                )
