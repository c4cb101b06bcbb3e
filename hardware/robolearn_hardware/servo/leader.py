"""A leader arm of servo motors: a person moves it, a follower goes along."""

from __future__ import annotations

from robolearn_hardware.devices import DeviceGoneError, Intent
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.calibration import Calibration
from robolearn_hardware.servo.chain import ServoChain
from robolearn_hardware.servo.models import ServoArmModel

_RATE_HZ = 100.0
_DEADLINE_S = 9.0


class ServoLeader:
    """See ``devices.Teleoperator``. Enabled while every motor answers and none has a fault."""

    def __init__(self, name: str, model: ServoArmModel, calibration: Calibration, bus: ServoBus) -> None:
        self._chain = ServoChain(name, model, calibration, bus)
        self.info = self._chain.info(_RATE_HZ)
        """Its joints and their limits."""

    def __enter__(self) -> ServoLeader:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Its motors go off: hold it, or let it rest, before.

        Raises:
            DeviceError: as ``Arm.connect``.
        """
        try:
            with self._chain.bus.within(_DEADLINE_S):
                self._chain.connect()
                for motor in self._chain.ids:
                    self._chain.bus.write(motor, "torque_enable", 0)
        except BaseException:
            self._chain.bus.close()
            raise

    def read(self) -> Intent:
        """At most 0.1 s."""
        if not self._chain.bus.is_open:
            raise DeviceGoneError(f"{self._chain.name} is not connected; connect first")
        state = self._chain.read()
        return Intent(
            state.capture_ns,
            enabled=state.whole and not self._chain.faults,
            positions=state.positions,
            gripper=min(max(state.gripper, 0.0), 1.0),
        )

    def close(self) -> None:
        """Its motors stay off. May be called twice."""
        self._chain.bus.close()
