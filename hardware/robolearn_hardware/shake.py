"""Latency of arms and cameras, measured by a small irregular motion of one joint."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from robolearn_hardware.cameras.latency import Latency, joint_speed, latency_by_correlation, picture_speed
from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import Arm, Camera, Condition, DeviceError, Frame, NotReadyError

AMPLITUDE_RAD = 0.1
_WAVES = ((0.6, 0.37), (0.4, 0.93))
"""Share of the amplitude, Hz: they never repeat within a run."""
_RAMP_S = 1.0


@dataclass(frozen=True, eq=False)
class Shaken:
    """What was sent to an arm and what it did; n ticks."""

    sent_ns: np.ndarray
    """(n,)"""
    sent: np.ndarray
    """(n, J) rad"""
    measured_ns: np.ndarray
    """(n,) capture times"""
    measured: np.ndarray
    """(n, J) rad"""


def shake(arm: Arm, *, seconds: float, joint: int = 0, amplitude_rad: float = AMPLITUDE_RAD) -> Shaken:
    """Move one joint of a connected arm to and fro around where it stands, and back.

    Raises:
        DeviceError: no such joint, or no room for it within its limits.
        NotReadyError: the arm stopped.
    """
    info = arm.info
    if not 0 <= joint < info.joints:
        raise DeviceError(f"{info.name} has joints 0 to {info.joints - 1}, not {joint}")
    start = arm.state().positions
    low, high = info.limits.low, info.limits.high
    if not low[joint] + amplitude_rad <= start[joint] <= high[joint] - amplitude_rad:
        raise DeviceError(
            f"joint {joint} of {info.name} stands at {start[joint]:.2f} rad and has no room for {amplitude_rad:g} rad "
            f"to both sides within {low[joint]:.2f} to {high[joint]:.2f}; move it towards its middle"
        )
    rate_hz = min(info.rate_hz, 100.0)
    period = period_ns(rate_hz)
    begun = due = now_ns()
    rows: list[tuple[int, np.ndarray, int, np.ndarray]] = []
    while (t := (due - begun) / SECOND_NS) <= seconds:
        ramp = np.clip(min(t, seconds - t) / _RAMP_S, 0, 1)
        wanted = np.clip(start, low, high)
        wave = sum(share * np.sin(2 * np.pi * hz * t) for share, hz in _WAVES)
        wanted[joint] = start[joint] + amplitude_rad * ramp * wave
        sent_ns = now_ns()
        arm.command(wanted)
        state = arm.state()
        if state.condition not in (Condition.READY, Condition.DEGRADED):
            raise NotReadyError(f"{info.name} does not move any more: {state.condition.name.lower().replace('_', ' ')}")
        if state.condition is Condition.READY:
            rows.append((sent_ns, wanted, state.capture_ns, state.positions))
        due = max(due + period, now_ns())
        wait_until_ns(due)
    return Shaken(*(np.array(column) for column in zip(*rows, strict=True)))


def arm_latency(arm: Arm, *, seconds: float = 8.0, joint: int = 0) -> Latency:
    """From a command to the motion of the joint. Raises as ``shake``."""
    shaken = shake(arm, seconds=seconds, joint=joint)
    times, first = np.unique(shaken.measured_ns, return_index=True)  # a reading may come twice
    return latency_by_correlation(shaken.sent_ns, shaken.sent[:, joint], times, shaken.measured[first, joint])


def camera_latency(camera: Camera, arm: Arm, *, seconds: float = 8.0, joint: int = 0) -> Latency:
    """From the motion of the arm to the capture time of the picture that shows it. Both connected.

    Raises:
        DeviceError: as ``shake``; the camera stopped, or does not see the arm move.
    """
    frames: list[Frame] = []
    problem: list[DeviceError] = []
    done = threading.Event()

    def watch() -> None:
        try:
            while not done.is_set():
                frames.append(camera.read())
        except DeviceError as error:
            problem.append(error)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        shaken = shake(arm, seconds=seconds, joint=joint)
    finally:
        done.set()
        watching.join()
    if problem:
        raise problem[0]
    times, first = np.unique(shaken.measured_ns, return_index=True)
    moved = joint_speed(times, shaken.measured[first])
    seen = picture_speed(np.array([frame.capture_ns for frame in frames]), [frame.colour for frame in frames])
    return latency_by_correlation(*moved, *seen)
