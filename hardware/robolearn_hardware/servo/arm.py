"""An arm of servo motors."""

from __future__ import annotations

import dataclasses

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.devices import (
    ArmState,
    Condition,
    DeviceError,
    DeviceGoneError,
    DeviceTimeoutError,
    LimitError,
    NotReadyError,
)
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.calibration import Calibration, MotorCalibration
from robolearn_hardware.servo.chain import ServoChain
from robolearn_hardware.servo.models import ServoArmModel, ServoJoint
from robolearn_hardware.servo.registers import FEETECH_STS, MOTORS, MotorModel

_RATE_HZ = 100.0
_DEADLINE_S = 9.0
_OUTSIDE_RAD = 0.06
"""How far outside its limits a joint may stand at connect: play, and sagging onto the stop."""
_COOL_C = 10
"""Below its limit, at which a motor that was too hot is put to work again."""
_RESTART_NS = 3 * SECOND_NS
_GRIP = 0.35
"""Share of the greatest current or torque with which a gripper closes."""


class ServoArm:
    """See ``devices.Arm``. Goals are written at once: motors of these buses have no clock of their own."""

    def __init__(self, name: str, model: ServoArmModel, calibration: Calibration, bus: ServoBus) -> None:
        self._chain = ServoChain(name, model, calibration, bus)
        self._bus = bus
        self.info = self._chain.info(_RATE_HZ)
        self._condition = Condition.RELEASED
        """While it is connected: READY, FAULT or RELEASED."""

    def __enter__(self) -> ServoArm:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Nothing moves: the goal is where it stands before torque comes on. Torque that was on stays on, unless a
        motor needs a setting that it takes only without."""
        try:
            with self._bus.within(_DEADLINE_S):
                self._chain.connect()
                self.info = dataclasses.replace(self.info, firmware=self._chain.firmware())
                if outside := self._chain.outside(self.info.limits, _OUTSIDE_RAD):
                    raise DeviceError(f"{self.info.name}: {outside}; move it inside by hand, then connect again")
                if self._chain.faults:
                    self._condition = Condition.FAULT
                    raise NotReadyError(self._why())
                self._engage()
        except NotReadyError:
            raise
        except BaseException:
            self._bus.close()
            raise

    def state(self) -> ArmState:
        self._require_connection()
        state = self._chain.read()
        if self._condition is Condition.READY:
            for motor, on in self._chain.torque.items():
                if not on:
                    self._chain.faults.setdefault(motor, "has let go: its power was interrupted, or it protects itself")
            if self._chain.faults:
                self._condition = Condition.FAULT
                self._stay()
        condition = self._condition
        if condition is Condition.READY and not state.whole:
            condition = Condition.DEGRADED
        return ArmState(
            state.capture_ns,
            state.received_ns,
            condition,
            state.positions,
            state.velocities,
            state.efforts,
            state.gripper,
            temperatures=state.temperatures,
            fault=self._faults() if condition is Condition.FAULT else "",
        )

    def command(self, positions: np.ndarray, gripper: float | None = None, *, effect_ns: int = 0) -> None:
        goals = self._chain.goals(self.info.limits.check(self.info.name, positions), self._checked(gripper))
        self._require_connection()
        if self._condition is not Condition.READY:
            raise NotReadyError(self._why())
        self._bus.write_all("goal_position", goals)

    def hold(self) -> None:
        self._require_connection()
        self._chain.read()
        if self._condition is Condition.RELEASED:
            with self._bus.within(_DEADLINE_S):
                self._engage()
        else:
            self._stay()

    def release(self) -> None:
        self._require_connection()
        for motor in self._chain.ids:
            self._bus.write(motor, "torque_enable", 0)
        self._condition = Condition.RELEASED

    def recover(self) -> None:
        """Restart what has a fault (Dynamixel) or switch its torque off and on (Feetech); then as after ``connect``."""
        if not self._bus.is_open:
            raise NotReadyError(f"{self.info.name} is not connected; connect first")
        try:
            with self._bus.within(_DEADLINE_S):
                for motor in self._chain.faults:
                    self._restart(motor)
                self._chain.start()
                if self._chain.faults:
                    raise NotReadyError(self._why())
                self._engage()
        except NotReadyError:
            raise
        except DeviceError as error:
            raise NotReadyError(f"{error}") from None

    def close(self) -> None:
        """It stays held at its last target."""
        self._bus.close()

    def _engage(self) -> None:
        """Settings, goal where it stands, torque."""
        for joint, motor in zip(self._chain.model.motors, self._chain.motors, strict=True):
            self._configure(joint, motor)
        self._chain.start()
        for motor, goal in self._chain.stand().items():
            self._bus.write(motor, "goal_position", goal)
        for motor in self._chain.ids:
            self._bus.write(motor, "torque_enable", 1)
        self._chain.torque.clear()
        self._condition = Condition.READY

    def _configure(self, joint: ServoJoint, motor: MotorCalibration) -> None:
        kind = MOTORS[motor.motor]
        for register, value in _settings(kind, joint, grips=joint.name == self._chain.model.gripper).items():
            if self._bus.read(motor.id, register) == value:
                continue
            if kind.table[register].address < kind.table.ram and "lock" not in kind.table.registers:
                self._bus.write(motor.id, "torque_enable", 0)
            self._bus.write(motor.id, register, value)

    def _restart(self, motor: int) -> None:
        kind = MOTORS[self._chain.motors[self._chain.ids.index(motor)].motor]
        called = self._chain.called(motor)
        try:
            temperature = self._bus.read(motor, "present_temperature")
        except DeviceTimeoutError:
            raise NotReadyError(f"{self.info.name}: {called} does not answer; check its cable") from None
        if temperature > kind.temperature_limit - _COOL_C and "temperature" in self._chain.faults[motor]:
            raise NotReadyError(
                f"{self.info.name}: {called} is at {temperature} deg C; let it cool below "
                f"{kind.temperature_limit - _COOL_C}"
            )
        if not self._bus.reboot(motor):
            self._bus.write(motor, "torque_enable", 0)
            return
        until = now_ns() + _RESTART_NS
        while now_ns() < until:
            wait_until_ns(now_ns() + SECOND_NS // 10)
            try:
                self._bus.ping(motor)
                return
            except DeviceTimeoutError:
                continue
        raise NotReadyError(f"{self.info.name}: {called} has not come back; check its cable and power")

    def _stay(self) -> None:
        self._bus.write_all("goal_position", self._chain.stand())

    def _require_connection(self) -> None:
        if not self._bus.is_open:
            raise DeviceGoneError(f"{self.info.name} is not connected; connect first")

    def _checked(self, gripper: float | None) -> float | None:
        if gripper is None or self._chain.gripper is None:
            return None
        if not -1e-6 <= gripper <= 1 + 1e-6:
            raise LimitError(f"{self.info.name}: the gripper is told {gripper}; it goes from 0 (closed) to 1 (open)")
        return gripper

    def _why(self) -> str:
        if self._condition is Condition.RELEASED:
            return f"{self.info.name} is released; hold or recover it first"
        return f"{self.info.name} has stopped: {self._faults()}. Remove the cause, then recover"

    def _faults(self) -> str:
        faults = [f"{self._chain.called(motor)}: {fault}" for motor, fault in self._chain.faults.items()]
        return "; ".join(faults) or "a motor had a fault"


def _settings(kind: MotorModel, joint: ServoJoint, *, grips: bool) -> dict[str, int]:
    """Registers of a motor that follows goals at policy rate, in the order in which they are to be written.

    Feetech: with the lock on, what is written to the EEPROM's addresses acts and is forgotten with the power; half the
    factory's stiffness keeps light arms from shaking. Dynamixel: positions over many turns, so that no joint's range
    meets the seam of the encoder; a gripper's current is bounded where the motor can.
    """
    if kind.table is FEETECH_STS:
        return {
            "lock": 1,
            "operating_mode": 0,
            "return_delay_time": 0,
            "position_p_gain": 16,
            "position_i_gain": 0,
            "position_d_gain": 32,
            "acceleration": 254,
            "goal_velocity": 0,
            "torque_limit": round(1000 * _GRIP) if grips else 1000,
        }
    settings = {"return_delay_time": 0, "operating_mode": 4, "bus_watchdog": 0}
    settings |= {"profile_acceleration": 0, "profile_velocity": 0}
    if joint.gains is not None:
        gains = ("position_p_gain", "position_i_gain", "position_d_gain")
        settings |= dict(zip(gains, joint.gains, strict=True))
    if grips and kind.current_control:
        settings |= {"operating_mode": 5, "goal_current": round(_GRIP * kind.stall_current / kind.current_unit)}
    return settings
