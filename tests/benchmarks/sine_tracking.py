"""How well an arm follows a sine of 0.5 Hz, sent at a fixed rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import Arm, Condition

SINE_HZ = 0.5
_FIRST_S = 1.0  # not counted


def follow_sine(name: str, arm: Arm, rate_hz: float, amplitude_rad: float, seconds: float) -> dict[str, Any]:
    """A row of ``hardware_tracking.json``: the error is the commanded angle less the measured one at its capture time,
    the delay that at which the two agree best. Every joint moves."""

    def sine(t_s: Any) -> Any:
        return amplitude_rad * np.sin(2 * math.pi * SINE_HZ * np.asarray(t_s))

    middle = arm.state().positions
    captured, measured = [], []
    start = now_ns() + SECOND_NS // 10
    for tick in range(round(seconds * rate_hz)):
        wait_until_ns(start + tick * period_ns(rate_hz))
        arm.command(middle + sine((now_ns() - start) / SECOND_NS))
        state = arm.state()
        if state.condition is Condition.READY:
            captured.append((state.capture_ns - start) / SECOND_NS)
            measured.append(state.positions - middle)
    times, angles = np.array(captured), np.array(measured)
    times, angles = times[times > _FIRST_S], angles[times > _FIRST_S]
    delays = np.arange(0.0, 0.4, 0.002)
    errors = [_rms(angles - sine(times - delay)[:, None]) for delay in delays]
    error = angles - sine(times)[:, None]
    return {
        "device": name,
        "rms_rad": round(_rms(error), 4),
        "max_rad": round(float(np.abs(error).max()), 4),
        "delay_ms": round(1e3 * float(delays[int(np.argmin(errors))]), 1),
        "rms_without_delay_rad": round(min(errors), 4),
    }


def _rms(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))
