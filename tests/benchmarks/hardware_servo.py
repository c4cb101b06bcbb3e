"""Loop rates of servo arms and how well their twins follow a sine, through the vendors' SDKs.

    python tests/benchmarks/hardware.py --only servo

A loop reads the state of all motors and writes all goals, as fast as it goes. The twin is in a process of its own; its
wire takes the time that the bytes take at 1 Mbaud, and its adapter holds each answer back for 1 ms (FTDI told to, and
USB CDC) or 16 ms (FTDI as delivered); "no wire" is a wire that takes no time, which shows what the software takes.

A sine of 0.5 Hz and 0.4 rad is sent at 100 Hz; its error is the commanded angle less the measured one at the time of
its capture, and its delay is the one at which the two agree best.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sine_tracking import follow_sine

from robolearn_hardware.devices import Condition
from robolearn_hardware.servo.arm import ServoArm
from robolearn_hardware.servo.bus import ServoBus
from robolearn_hardware.servo.calibration import default_calibration
from robolearn_hardware.servo.dynamixel import DynamixelWire
from robolearn_hardware.servo.feetech import FeetechWire
from robolearn_hardware.servo.models import MODELS
from robolearn_hardware.servo.registers import FEETECH_STS
from robolearn_hardware.twins.process import Twin
from robolearn_hardware.twins.servo_bus import ServoBusTwin

ARMS = {
    "so101": "SO-101, 6 Feetech STS3215",
    "koch": "Koch, 6 Dynamixel XL430/XL330",
    "viperx": "ViperX, 9 Dynamixel XM540/XM430",
}
WIRES = {
    "no wire": {"wire_time": False},
    "1 Mbaud, 1 ms USB": {"usb_latency_s": 0.001},
    "1 Mbaud, 16 ms USB": {"usb_latency_s": 0.016},
}
SINE_RAD, CONTROL_HZ = 0.4, 100.0


@contextmanager
def connected(kind: str, **options: Any) -> Iterator[ServoArm]:
    model = MODELS[kind]
    calibration = default_calibration(model)
    wire = FeetechWire() if model.table is FEETECH_STS else DynamixelWire()
    with Twin(functools.partial(ServoBusTwin, calibration, baud=model.baud, **options)) as twin:
        bus = ServoBus(kind, wire, twin.address, model.baud, reply_s=0.03)
        with ServoArm(kind, model, calibration, bus) as arm:
            yield arm


def rows(seconds: float = 5.0) -> list[dict[str, Any]]:
    """Of ``hardware_loops.json``. cpu: share of one core that the driver's process takes."""
    found = []
    for kind, name in ARMS.items():
        for wire, options in WIRES.items():
            with connected(kind, **options) as arm:
                goal = arm.state().positions
                times, lost, busy, begun = [], 0, time.process_time(), time.monotonic()
                while time.monotonic() - begun < seconds:
                    start = time.perf_counter()
                    lost += arm.state().condition is Condition.DEGRADED
                    arm.command(goal, 0.5)
                    times.append(time.perf_counter() - start)
                took = time.monotonic() - begun
                p50, p99 = np.percentile(times, [50, 99]) * 1e3
                found.append(
                    {
                        "device": f"{name}, {wire}",
                        "hz": round(len(times) / took, 1),
                        "p50_ms": round(p50, 2),
                        "p99_ms": round(p99, 2),
                        "cpu": round((time.process_time() - busy) / took, 3),
                        "lost": lost,
                    }
                )
    return found


def tracking_rows(seconds: float = 8.0) -> list[dict[str, Any]]:
    """Of ``hardware_tracking.json``."""
    found = []
    for kind, name in ARMS.items():
        with connected(kind) as arm:
            found.append(follow_sine(f"{name}, {list(WIRES)[1]}", arm, CONTROL_HZ, SINE_RAD, seconds))
    return found
