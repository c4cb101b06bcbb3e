"""Calibration of a servo arm: where each joint's zero and ends are, in ticks of its encoder, and of which arm.

The file (YAML, ``Calibration``) says it for this program; homing offset and range also stand in the motors' EEPROM, so
that a file of another arm is found out. ``calibrate_middle`` and ``record_ranges`` make one over a bus.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import DeviceError
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.models import MODELS, ServoArmModel
from robolearn_hardware.servo.registers import MOTORS, RAD_PER_TICK, TICKS, motor_named

VERSION = 1
MIDDLE = TICKS // 2
"""Tick that ``calibrate_middle`` gives to every motor: as far from the encoder's seam as can be."""
_STRICT = ConfigDict(extra="forbid")


@checked_dataclass(frozen=True, config=_STRICT)
class MotorCalibration:
    """One motor. Ticks are as the motor reports them, with its homing offset in effect."""

    id: int
    motor: str
    """Its model, a name of ``registers.MOTORS``."""
    homing_offset: int
    """As in its EEPROM."""
    range_low: int
    """As in its EEPROM (Min Position Limit)"""
    range_high: int
    zero: int = MIDDLE
    """Tick of 0 rad."""
    direction: int = 1
    """-1 where more ticks is a smaller angle; for a gripper, where it opens towards ``range_low``."""
    stored_range: tuple[int, int] | None = None
    """What its EEPROM has for a range, where that is another: a gripper that the factory leaves a whole turn."""

    def radians(self, ticks: float) -> float:
        return self.direction * (ticks - self.zero) * RAD_PER_TICK

    def ticks(self, radians: float) -> int:
        return round(self.zero + self.direction * radians / RAD_PER_TICK)

    @property
    def ends(self) -> tuple[float, float]:
        """Of the range, rad, the lower one first."""
        first, second = self.radians(self.range_low), self.radians(self.range_high)
        return min(first, second), max(first, second)

    def opening(self, ticks: float) -> float:
        """Of a gripper: 0 closed, 1 open."""
        share = (ticks - self.range_low) / (self.range_high - self.range_low)
        return share if self.direction > 0 else 1 - share

    def opening_ticks(self, opening: float) -> int:
        share = opening if self.direction > 0 else 1 - opening
        return round(self.range_low + share * (self.range_high - self.range_low))


@checked_dataclass(frozen=True, config=_STRICT)
class Calibration:
    arm: str
    """A name of ``models.MODELS``."""
    motors: dict[str, MotorCalibration]
    """By the motor's name in the model."""
    version: int = VERSION

    @property
    def fingerprint(self) -> str:
        """Of what stands in the motors: 12 hexadecimal digits."""
        stored = [(m.id, m.motor, *stored_values(m).values()) for m in self.motors.values()]
        return hashlib.sha256(json.dumps(stored).encode()).hexdigest()[:12]


def load_calibration(path: Path, model: ServoArmModel) -> Calibration:
    """Read a calibration of an arm of ``model``.

    Raises:
        DeviceError: missing, not YAML, of another kind of arm, lacking a motor, with impossible values.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DeviceError(f"no calibration {path}: {error.strerror}; `robolearn calibrate` makes one") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeviceError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        calibration = TypeAdapter(Calibration).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DeviceError(f"{path}: {'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}") from None
    if calibration.version != VERSION:
        raise DeviceError(
            f"{path} is a calibration of version {calibration.version}, valid: {VERSION}; calibrate again"
        )
    if calibration.arm != model.name:
        raise DeviceError(f"{path} calibrates an arm of kind {calibration.arm}, not {model.name}; name its own file")
    names = {motor.name for motor in model.motors}
    if set(calibration.motors) != names:
        wrong = ", ".join(sorted(set(calibration.motors) ^ names))
        raise DeviceError(f"{path} does not fit the motors of {model.name}: {wrong}; calibrate again")
    for name, motor in calibration.motors.items():
        if motor.direction not in (-1, 1) or not 0 <= motor.id <= 252 or motor.motor not in MOTORS:
            raise DeviceError(f"{path}: {name}: direction is 1 or -1, id 0 to 252, motor one of {', '.join(MOTORS)}")
        if not 0 < motor.range_high - motor.range_low < TICKS or not abs(motor.zero) < 2 * TICKS:
            raise DeviceError(f"{path}: {name}: range_low must be below range_high, both within one turn of 4096 ticks")
    ids = [motor.id for motor in calibration.motors.values()]
    if len(set(ids)) < len(ids):
        raise DeviceError(f"{path}: two motors have the same id; each has its own on the bus")
    return calibration


def save_calibration(path: Path, calibration: Calibration) -> None:
    content = {"version": calibration.version, "arm": calibration.arm}
    motors = {name: dataclasses.asdict(motor) for name, motor in calibration.motors.items()}
    text = yaml.safe_dump(content, sort_keys=False) + "motors:\n"
    text += "".join(f"  {name}: {json.dumps(motor)}\n".replace('"', "") for name, motor in motors.items())
    path.write_text(text)


def default_calibration(model: ServoArmModel) -> Calibration:
    """Of an arm as the factory delivers it: no homing offset, zero at tick 2048, ranges as the model has them."""
    motors = {}
    for joint in model.motors:
        full = math.isclose(joint.high - joint.low, 2 * math.pi)
        ends = sorted(round(MIDDLE + joint.direction * end / RAD_PER_TICK) for end in (joint.low, joint.high))
        low, high = (0, TICKS - 1) if full else ends
        stored = (0, TICKS - 1) if joint.name == model.gripper and model.factory_calibrated else None
        motors[joint.name] = MotorCalibration(
            joint.motor, joint.kind, 0, low, high, direction=joint.direction, stored_range=stored
        )
    return Calibration(model.name, motors)


def check_calibration(bus: ServoBus, calibration: Calibration) -> None:
    """That the motors on the bus are there, and hold the homing offsets and ranges of ``calibration``.

    Raises:
        DeviceError: see ``ServoBus.check``; or this is the calibration of another robot.
    """
    bus.check({motor.id: (name, MOTORS[motor.motor]) for name, motor in calibration.motors.items()})
    for name, motor in calibration.motors.items():
        for register, wanted in stored_values(motor).items():
            found = bus.read(motor.id, register)
            if found != wanted:
                raise DeviceError(
                    f"{bus.name}: this calibration is of another robot, or the arm was calibrated anew: motor "
                    f"{motor.id} ({name}) has {register.replace('_', ' ')} {found}, the calibration {wanted}; name the "
                    "arm's own file in the rig, or run `robolearn calibrate`"
                )


def calibrate_middle(bus: ServoBus, model: ServoArmModel, pose: Sequence[float] | None = None) -> Calibration:
    """Make the arm's present pose the middle of its motors. It goes limp: somebody holds every joint at mid-range, or
    at ``pose`` (rad, one per entry of ``model.motors``; an arm built for another, such as GELLO, wants that).

    Writes the homing offsets to the motors, and the whole turn as their range until ``record_ranges``.

    Raises:
        DeviceError: a motor is missing, of an unknown or other family, or does not take the value.
    """
    motors = {}
    for i, joint in enumerate(model.motors):
        kind = motor_named(bus.ping(joint.motor), bus.table)
        if kind is None:
            raise DeviceError(
                f"{bus.name}: motor {joint.motor} ({joint.name}) is of an unknown model; is this its arm?"
            )
        _unlock(bus, joint.motor)
        if "drive_mode" in bus.table.registers:
            bus.write(joint.motor, "operating_mode", 4)  # homing offsets beyond a quarter turn count in this mode only
        bus.write(joint.motor, "homing_offset", 0)
        encoder = bus.read(joint.motor, "present_position") % TICKS
        offset = (MIDDLE - encoder) * bus.table.offset_sign
        if abs(offset) > MIDDLE - 1:  # one tick of half a turn does not fit Feetech's 11 bits
            offset = int(math.copysign(MIDDLE - 1, offset))
        motor = MotorCalibration(joint.motor, kind.name, offset, 0, TICKS - 1, direction=joint.direction)
        if pose is not None:
            motor = dataclasses.replace(motor, zero=MIDDLE - motor.direction * round(pose[i] / RAD_PER_TICK))
        _store(bus, motor)
        motors[joint.name] = motor
    return Calibration(model.name, motors)


def record_ranges(
    bus: ServoBus, calibration: Calibration, stop: Callable[[], bool], *, rate_hz: float = 50.0
) -> Calibration:
    """Sample until ``stop()`` while somebody moves every joint from one end to the other; then store the ranges.

    The zero of a joint with published limits is put where both its ends fit them best; a joint that turns without an
    end keeps a whole turn.

    Raises:
        DeviceError: a motor is lost, or a joint was not moved: the message names it.
    """
    ids = [motor.id for motor in calibration.motors.values()]
    low: dict[int, int] = dict.fromkeys(ids, TICKS * 512)
    high: dict[int, int] = dict.fromkeys(ids, -TICKS * 512)
    turns: dict[int, int] = {}  # where a motor has counted whole turns since it was put on power
    start, ticks = now_ns(), 0
    while not stop():
        for motor, reading in bus.read_state(ids).items():
            position = reading.values["present_position"]
            position += turns.setdefault(motor, round((MIDDLE - position) / TICKS) * TICKS)
            low[motor], high[motor] = min(low[motor], position), max(high[motor], position)
        ticks += 1
        wait_until_ns(start + ticks * period_ns(rate_hz))
    joints = {joint.name: joint for joint in MODELS[calibration.arm].motors}
    motors = {}
    for name, motor in calibration.motors.items():
        joint = joints[name]
        if not joint.full_turn:
            moved = high[motor.id] - low[motor.id]
            if not 100 <= moved < TICKS:
                raise DeviceError(
                    f"{bus.name}: {name} was moved by {max(moved, 0) * RAD_PER_TICK:.2f} rad; move every joint from "
                    "one end to the other, and hold the arm at mid-range when it begins"
                )
            motor = dataclasses.replace(motor, range_low=low[motor.id], range_high=high[motor.id], stored_range=None)
            if (joint.low, joint.high) != (-math.pi, math.pi):
                middle = (motor.range_low + motor.range_high) / 2
                angle = (joint.low + joint.high) / 2
                motor = dataclasses.replace(motor, zero=round(middle - motor.direction * angle / RAD_PER_TICK))
        _unlock(bus, motor.id)
        _store(bus, motor)
        motors[name] = motor
    return dataclasses.replace(calibration, motors=motors)


def stored_values(motor: MotorCalibration) -> dict[str, int]:
    """What of it stands in the motor's EEPROM: register -> value."""
    low, high = motor.stored_range or (motor.range_low, motor.range_high)
    return {
        "homing_offset": motor.homing_offset,
        "min_position_limit": max(low, 0),
        "max_position_limit": min(high, TICKS - 1),
    }


def _unlock(bus: ServoBus, motor: int) -> None:
    bus.write(motor, "torque_enable", 0)  # a Dynamixel's EEPROM can be written only then
    if "lock" in bus.table.registers:
        bus.write(motor, "lock", 0)


def _store(bus: ServoBus, motor: MotorCalibration) -> None:
    for register, value in stored_values(motor).items():
        bus.write(motor.id, register, value)
    if "lock" in bus.table.registers:
        bus.write(motor.id, "lock", 1)
