"""Twins of servo buses in the tests' own process, and arms that are driven through the vendors' SDKs to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from robolearn_hardware.devices import Arm, ArmState, Condition, Teleoperator
from robolearn_hardware.servo.arm import ServoArm
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.calibration import Calibration, default_calibration
from robolearn_hardware.servo.dynamixel import DynamixelWire
from robolearn_hardware.servo.feetech import FeetechWire
from robolearn_hardware.servo.models import MODELS
from robolearn_hardware.servo.registers import FEETECH_STS
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.servo_bus import ServoBusTwin

Device = TypeVar("Device", Arm, Teleoperator)

KINDS = ("so101", "koch")
"""One arm for each vendor."""


class Bench:
    """A twin of an arm, and what leads to it."""

    def __init__(self, kind: str, calibration: Calibration | None = None, **options: Any) -> None:
        self.model = MODELS[kind]
        self.calibration = calibration or default_calibration(self.model)
        options.setdefault("baud", self.model.baud)
        self.twin = ServoBusTwin(self.calibration, wire_time=False, **options)
        self.twin.start()

    def fault(self, **faults: Any) -> None:
        self.twin.fault(Faults(**faults))

    def bus(self, port: str | Path | None = None, *, reply_s: float = 0.02) -> ServoBus:
        wire = FeetechWire() if self.model.table is FEETECH_STS else DynamixelWire()
        return ServoBus("arm", wire, str(port or self.twin.address), self.model.baud, reply_s=reply_s)

    def arm(self, calibration: Calibration | None = None, *, port: str | Path | None = None) -> ServoArm:
        return ServoArm("arm", self.model, calibration or self.calibration, self.bus(port))


@contextmanager
def bench(kind: str, calibration: Calibration | None = None, **options: Any) -> Iterator[Bench]:
    it = Bench(kind, calibration, **options)
    try:
        yield it
    finally:
        it.twin.close()


@contextmanager
def connected(device: Device) -> Iterator[Device]:
    """Anything that a rig's configuration has opened."""
    device.connect()
    try:
        yield device
    finally:
        device.close()


def read_until(arm: Arm, holds: Callable[[ArmState], bool], seconds: float = 20.0) -> ArmState:
    """Read until ``holds``, or for so long; the last reading."""
    end = time.monotonic() + seconds
    state = arm.state()
    while not holds(state) and time.monotonic() < end:
        time.sleep(0.005)
        state = arm.state()
    return state


def ready(state: ArmState) -> bool:
    return state.condition is Condition.READY
