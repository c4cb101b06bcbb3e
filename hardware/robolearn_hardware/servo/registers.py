"""What the motors keep where: control tables and units, as the vendors publish them. Drivers and twins read them here.

Sources:
- Feetech STS3215: "STS3215 Memory Table" (STS3215_Memory_Table_EN.xlsx, doc.feetech.cn), addresses 0 to 69, and the
  product page of STS3215 (7.4 V, 1:345). Negative numbers are sign and magnitude, low byte first.
- Dynamixel X: e-Manual, emanual.robotis.com/docs/en/dxl/x/MODEL/, "Control Table of EEPROM Area" and "of RAM Area".
  Negative numbers are two's complement, low byte first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

TICKS = 4096
"""Encoder steps of one turn, of every motor here (12 bits)."""
RAD_PER_TICK = 2 * math.pi / TICKS
RPM = 2 * math.pi / 60
"""rad/s"""


@dataclass(frozen=True)
class Register:
    address: int
    size: int
    """Bytes."""
    sign_bit: int | None = None
    """Of a number kept as sign and magnitude (Feetech)."""
    signed: bool = False
    """Two's complement (Dynamixel)."""
    initial: int = 0
    """After power-on, or as the factory delivers it."""

    def decode(self, data: bytes) -> int:
        if self.sign_bit is None:
            return int.from_bytes(data, "little", signed=self.signed)
        number = int.from_bytes(data, "little")
        magnitude = number & ((1 << self.sign_bit) - 1)
        return -magnitude if number >> self.sign_bit & 1 else magnitude

    def encode(self, value: int) -> bytes:
        """Raises OverflowError: it does not fit."""
        if self.sign_bit is None:
            return value.to_bytes(self.size, "little", signed=self.signed)
        if abs(value) >> self.sign_bit:
            raise OverflowError(f"{value} does not fit {self.sign_bit} bits and a sign")
        return (abs(value) | (value < 0) << self.sign_bit).to_bytes(self.size, "little")


@dataclass(frozen=True)
class ControlTable:
    """The registers of a family of motors."""

    registers: Mapping[str, Register]
    ram: int
    """First address of the RAM area; below it values outlast power."""
    read_only: tuple[tuple[int, int], ...]
    """Ranges of addresses [first, last] that cannot be written."""
    offset_sign: int
    """present position = encoder + offset_sign * homing offset"""
    counts_turns: bool
    """Positions go on beyond one turn, and start anew within one when the motor does."""
    state: tuple[str, ...]
    """What is read in each tick, one block of neighbours: the first and the last register delimit it."""
    error_names: Mapping[int, str]
    """Bit of the error byte -> what it says."""
    baud_rates: tuple[int, ...]
    """At which its motors can be set to speak, likelier ones first."""

    def __getitem__(self, name: str) -> Register:
        return self.registers[name]


FEETECH_STS = ControlTable(
    registers={
        "firmware_major": Register(0, 1, initial=3),
        "firmware_minor": Register(1, 1, initial=10),
        "model_number": Register(3, 2),
        "id": Register(5, 1, initial=1),
        "baud_rate": Register(6, 1),
        "return_delay_time": Register(7, 1),
        "response_status_level": Register(8, 1, initial=1),
        "min_position_limit": Register(9, 2),
        "max_position_limit": Register(11, 2, initial=4095),
        "temperature_limit": Register(13, 1, initial=70),
        "max_torque_limit": Register(16, 2, initial=1000),
        "unloading_condition": Register(19, 1, initial=44),
        "position_p_gain": Register(21, 1, initial=32),
        "position_d_gain": Register(22, 1, initial=32),
        "position_i_gain": Register(23, 1),
        "homing_offset": Register(31, 2, sign_bit=11),
        "operating_mode": Register(33, 1),
        "protection_time": Register(35, 1, initial=200),
        "overload_torque": Register(36, 1, initial=80),
        "torque_enable": Register(40, 1),
        "acceleration": Register(41, 1),
        "goal_position": Register(42, 2, sign_bit=15),
        "goal_velocity": Register(46, 2, sign_bit=15),
        "torque_limit": Register(48, 2, initial=1000),
        "lock": Register(55, 1),
        "present_position": Register(56, 2, sign_bit=15),
        "present_velocity": Register(58, 2, sign_bit=15),
        "present_load": Register(60, 2, sign_bit=10),
        "present_voltage": Register(62, 1),
        "present_temperature": Register(63, 1),
        "hardware_error": Register(65, 1),
        "moving": Register(66, 1),
        "present_current": Register(69, 2, sign_bit=15),
    },
    ram=40,
    read_only=((0, 4), (56, 70)),
    offset_sign=-1,
    counts_turns=False,
    state=("present_position", "present_velocity", "present_load", "present_temperature", "present_current"),
    error_names={0: "input voltage", 1: "angle sensor", 2: "over-temperature", 3: "over-current", 5: "overload"},
    baud_rates=(1_000_000, 500_000, 115_200, 57_600, 38_400),
)

DYNAMIXEL_X = ControlTable(
    registers={
        "model_number": Register(0, 2),
        "firmware_version": Register(6, 1, initial=45),
        "id": Register(7, 1, initial=1),
        "baud_rate": Register(8, 1, initial=1),
        "return_delay_time": Register(9, 1, initial=250),
        "drive_mode": Register(10, 1),
        "operating_mode": Register(11, 1, initial=3),
        "secondary_id": Register(12, 1, initial=255),
        "homing_offset": Register(20, 4, signed=True),
        "temperature_limit": Register(31, 1, initial=72),
        "current_limit": Register(38, 2, initial=1193),
        "velocity_limit": Register(44, 4, initial=265),
        "max_position_limit": Register(48, 4, initial=4095),
        "min_position_limit": Register(52, 4),
        "shutdown": Register(63, 1, initial=52),
        "torque_enable": Register(64, 1),
        "status_return_level": Register(68, 1, initial=2),
        "hardware_error": Register(70, 1),
        "position_d_gain": Register(80, 2),
        "position_i_gain": Register(82, 2),
        "position_p_gain": Register(84, 2, initial=800),
        "bus_watchdog": Register(98, 1),
        "goal_current": Register(102, 2, signed=True, initial=1193),
        "goal_velocity": Register(104, 4, signed=True),
        "profile_acceleration": Register(108, 4),
        "profile_velocity": Register(112, 4),
        "goal_position": Register(116, 4, signed=True),
        "moving": Register(122, 1),
        "present_current": Register(126, 2, signed=True),
        "present_velocity": Register(128, 4, signed=True),
        "present_position": Register(132, 4, signed=True),
        "present_voltage": Register(144, 2),
        "present_temperature": Register(146, 1),
    },
    ram=64,
    read_only=((0, 6), (70, 70), (120, 147)),
    offset_sign=1,
    counts_turns=True,
    state=("present_current", "present_velocity", "present_position"),
    error_names={0: "input voltage", 2: "over-temperature", 3: "encoder", 4: "electrical shock", 5: "overload"},
    baud_rates=(1_000_000, 57_600, 2_000_000, 115_200, 3_000_000, 4_000_000, 9_600),
)


@dataclass(frozen=True)
class MotorModel:
    """One kind of motor."""

    name: str
    number: int
    """What its register "model_number" holds."""
    table: ControlTable
    velocity_unit: float
    """rad/s of one unit of present_velocity"""
    current_unit: float
    """A of one unit of present_current. XL430 measures none: its share of the greatest load, -1..1."""
    speed: float
    """rad/s without load, at its nominal voltage"""
    temperature_limit: int
    """deg C, above which it switches itself off"""
    stall_current: float
    """In the unit of its readings, at its nominal voltage: what a twin reports at full load."""
    current_control: bool = False
    """Has the mode "current-based position" (5), in which the current of a grip can be bounded."""


def _dynamixel(
    name: str, number: int, current: float, rpm: float, limit: int, stall: float, *, current_control: bool = False
) -> MotorModel:
    return MotorModel(name, number, DYNAMIXEL_X, 0.229 * RPM, current, rpm * RPM, limit, stall, current_control)


MOTORS: dict[str, MotorModel] = {
    motor.name: motor
    for motor in (
        # Speed in ticks/s; current 6.5 mA; 52 rev/min at 7.4 V; about 2.4 A when stalled at 7.4 V.
        MotorModel("sts3215", 777, FEETECH_STS, RAD_PER_TICK, 0.0065, 52 * RPM, 70, 2.4),
        _dynamixel("xl430-w250", 1060, 0.001, 61, 72, 1.0),
        _dynamixel("xl330-m288", 1200, 0.001, 103, 70, 1.47, current_control=True),
        _dynamixel("xl330-m077", 1190, 0.001, 383, 70, 1.47, current_control=True),
        _dynamixel("xm430-w350", 1020, 0.00269, 46, 80, 2.3, current_control=True),
        _dynamixel("xm540-w270", 1120, 0.00269, 30, 80, 4.4, current_control=True),
        _dynamixel("xc430-w150", 1070, 0.001, 106, 72, 1.0),
    )
}
"""By name. XL430 and XC430 have no current sensor (e-Manual: "Present Load", 0.1 %, at 126)."""


def motor_named(number: int, table: ControlTable) -> MotorModel | None:
    """The motor of a family whose model number this is; None when it is unknown."""
    return next((motor for motor in MOTORS.values() if motor.number == number and motor.table is table), None)
