"""One servo motor of a twin: its control table, its encoder, and how it protects itself."""

from __future__ import annotations

import math

from robolearn_hardware.servo.calibration import MotorCalibration, stored_values
from robolearn_hardware.servo.registers import FEETECH_STS, MOTORS, RAD_PER_TICK, TICKS

_AMBIENT_C = 25.0
_RISE_C = 40.0
"""Above the room, at full load for long."""
_WARM_UP_S = 300.0
_HOT_C = 85
_MOVING_RAD_S = 0.05
_FASTEST = 32_767
"""As far as the register goes."""
_FULL_LOAD_RAD = 0.1
"""Distance from the goal at which a motor that stands still pushes with all it has."""
_RESTART_S = 0.3
_OVERHEATED, _OVERLOADED = 1 << 2, 1 << 5

# Dynamixel, Protocol 2.0, "Error" of a status packet.
_RESULT_FAIL, _DATA_LIMIT, _ACCESS = 0x01, 0x06, 0x07


class TwinMotor:
    """Answers to reads and writes of its control table as the real one does, as far as drivers notice.

    Angles are those of its joint (rad; a gripper's opening 0..1), turned into ticks by ``calibration``, which is the
    truth about this motor.
    """

    def __init__(self, calibration: MotorCalibration, *, grips: bool, id: int, number: int | None = None) -> None:
        self.id = id
        self.model = MOTORS[calibration.motor]
        self.table = self.model.table
        self._calibration = calibration
        self._grips = grips
        self.silent_until_s = 0.0
        self._number = self.model.number if number is None else number
        self._stored = bytearray(256)
        for register in self.table.registers.values():
            self._stored[register.address : register.address + register.size] = register.encode(register.initial)
        self._memory = bytearray(self._stored)
        self._keep("model_number", self._number)
        self._keep("id", id)
        self._keep("temperature_limit", self.model.temperature_limit)
        if self.table.counts_turns:
            self._keep("operating_mode", 4)  # as calibration leaves it
        for register, value in stored_values(calibration).items():
            self._keep(register, value)
        self._memory[:] = self._stored
        self.temperature = _AMBIENT_C
        self.hot = False
        self._strained_s = 0.0
        self._encoder = 0.0
        self._base: int | None = None

    def __getitem__(self, register: str) -> int:
        at = self.table[register]
        return at.decode(bytes(self._memory[at.address : at.address + at.size]))

    def __setitem__(self, register: str, value: int) -> None:
        at = self.table[register]
        self._memory[at.address : at.address + at.size] = at.encode(value)

    @property
    def torque(self) -> bool:
        return self["torque_enable"] == 1 and not self._weak

    @property
    def strength(self) -> float:
        """The share of its greatest torque that it may use."""
        if self._feetech:
            return self["torque_limit"] / 1000
        if self["operating_mode"] == 5:
            return min(self["goal_current"] * self.model.current_unit / self.model.stall_current, 1.0)
        return 1.0

    @property
    def _feetech(self) -> bool:
        return self.table is FEETECH_STS

    @property
    def _weak(self) -> bool:
        return self._feetech and (
            self["torque_limit"] == 0 or bool(self["hardware_error"] & self["unloading_condition"])
        )

    @property
    def _offset(self) -> int:
        """The homing offset as far as it counts (e-Manual, "Homing Offset(20)")."""
        offset = self["homing_offset"]
        return 0 if self.table.counts_turns and self["operating_mode"] == 3 and abs(offset) > 1024 else offset

    @property
    def error(self) -> int:
        """The error byte of its status packets, apart from what is wrong with a request."""
        if self._feetech:
            return self["hardware_error"]
        return 0x80 if self["hardware_error"] else 0

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._memory[address : address + size]).ljust(size, b"\0")

    def write(self, address: int, data: bytes) -> int:
        """Returns what is wrong with it: 0, or an error number of the protocol."""
        end = address + len(data)
        if end > len(self._memory) or any(address <= last and first < end for first, last in self.table.read_only):
            return 0 if self._feetech else _ACCESS
        if not self._feetech and address < self.table.ram and self["torque_enable"]:
            return _ACCESS  # "Data in the EEPROM Area can only be written when Torque Enable(64) is 0"
        before = self["torque_enable"]
        old = bytes(self._memory[address:end])
        self._memory[address:end] = data
        if problem := self._refuses():
            self._memory[address:end] = old
            return problem
        if address < self.table.ram and not (self._feetech and self["lock"]):
            self._stored[address : min(end, self.table.ram)] = data[: self.table.ram - address]
        if self["torque_enable"] != before:
            if self._feetech:
                self["hardware_error"] = self["hardware_error"] & ~_OVERLOADED
            elif self["torque_enable"]:
                self["goal_position"] = self["present_position"]
            self._strained_s = 0.0
        return 0

    def restart(self, now_s: float) -> None:
        """Loses power and comes back."""
        self._memory[:] = self._stored
        self._base = None
        self._strained_s = 0.0
        self.silent_until_s = now_s + _RESTART_S
        self._present(self._encoder, 0.0, 0.0)

    def goal(self) -> float:
        """Where it drives its joint to, rad; a gripper 0..1."""
        ticks = self["goal_position"]
        if self._feetech:
            ticks = min(max(ticks, self["min_position_limit"]), self["max_position_limit"])
        ticks -= self.table.offset_sign * (self._offset - self._calibration.homing_offset) + (self._base or 0)
        return self._calibration.opening(ticks) if self._grips else self._calibration.radians(ticks)

    def sense(self, angle: float, velocity: float, effort: float, dt_s: float) -> None:
        """Its joint is at ``angle`` (rad; a gripper 0..1) with ``velocity`` (per s), driven by ``effort`` (-1..1)."""
        calibration = self._calibration
        if self._grips:
            span = calibration.range_high - calibration.range_low
            ticks = calibration.range_low + (angle if calibration.direction > 0 else 1 - angle) * span
            speed = velocity * span * calibration.direction
        else:
            ticks = calibration.zero + calibration.direction * angle / RAD_PER_TICK
            speed = calibration.direction * velocity / RAD_PER_TICK
        # Its encoder knows nothing of homing offsets.
        self._encoder = ticks - self.table.offset_sign * calibration.homing_offset
        load = effort
        if not self.torque:
            load = 0.0
        elif abs(speed) * RAD_PER_TICK < _MOVING_RAD_S:
            away = self.goal() - angle
            load = min(max(away / (0.05 if self._grips else _FULL_LOAD_RAD), -1.0), 1.0)
        self._protect(load, dt_s)
        self._present(self._encoder, speed, load * calibration.direction)

    def _present(self, encoder: float, speed: float, load: float) -> None:
        if self._base is None:  # after power-on it knows its place within one turn
            self._base = -math.floor(encoder / TICKS) * TICKS
        position = round(encoder) + self.table.offset_sign * self._offset
        self["present_position"] = position + self._base if self.table.counts_turns else position % TICKS
        velocity = round(speed * RAD_PER_TICK / self.model.velocity_unit)
        self["present_velocity"] = min(max(velocity, -_FASTEST), _FASTEST)
        current = round(load * self.model.stall_current / self.model.current_unit)
        if self._feetech:
            self["present_load"] = min(max(round(1000 * load), -1000), 1000)
            current = abs(current)
        self["present_current"] = current
        self["present_temperature"] = _HOT_C if self.hot else round(self.temperature)
        self["moving"] = int(abs(speed) * RAD_PER_TICK > _MOVING_RAD_S)

    def _protect(self, load: float, dt_s: float) -> None:
        target = _AMBIENT_C + _RISE_C * load * load
        self.temperature += (target - self.temperature) * min(dt_s / _WARM_UP_S, 1.0)
        self._strained_s = self._strained_s + dt_s if abs(load) > 0.8 else 0.0
        error = self["hardware_error"]
        if self._feetech and not self.hot:
            error &= ~_OVERHEATED  # Dynamixel's stays until it is restarted
        if self.hot:
            error |= _OVERHEATED
        if self._strained_s > 2.0:
            error |= _OVERLOADED
        self["hardware_error"] = error
        if not self._feetech and error & self["shutdown"]:
            self["torque_enable"] = 0
        if self._feetech and error & self["unloading_condition"] & _OVERHEATED:
            self["torque_enable"] = 0

    def _refuses(self) -> int:
        """Of what was just written: an error number of Dynamixel's protocol; Feetech's motors say nothing."""
        if self._feetech:
            return 0
        if self["torque_enable"] and self["hardware_error"] & self["shutdown"]:
            return _RESULT_FAIL
        within = self["min_position_limit"] <= self["goal_position"] <= self["max_position_limit"]
        if self["operating_mode"] == 3 and self["torque_enable"] and not within:
            return _DATA_LIMIT
        return 0

    def _keep(self, register: str, value: int) -> None:
        at = self.table[register]
        self._stored[at.address : at.address + at.size] = at.encode(value)
