"""How late one signal is against another: pictures against the arm they show, measured motion against commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import DeviceError

_STEP_S = 0.001
_RIVAL = 0.05
"""Another peak so close below the best one could be the true one."""


@dataclass(frozen=True)
class Latency:
    lag_s: float
    """By which the second signal is later than the first."""
    confidence: float
    """Correlation of the two at that lag, 0 to 1; 0 where another lag fits as well, or none within the range."""


def latency_by_correlation(
    times_a: np.ndarray, values_a: np.ndarray, times_b: np.ndarray, values_b: np.ndarray, *, longest_s: float = 0.5
) -> Latency:
    """The lag at which b(t) resembles a(t - lag) most, by the greatest Pearson correlation between -longest_s and
    longest_s. Units of the values do not matter. A motion that repeats itself within ``longest_s`` cannot be told
    apart; a hand moving to and fro irregularly can.

    Args:
        times_a, times_b: (n,), (m,) ns of CLOCK_MONOTONIC, increasing.
        values_a, values_b: (n,), (m,).

    Raises:
        DeviceError: they overlap for less than four times ``longest_s``, or one does not change.
    """
    start, end = max(times_a[0], times_b[0]), min(times_a[-1], times_b[-1])
    overlap_s = (end - start) / SECOND_NS
    if overlap_s < 4 * longest_s:
        raise DeviceError(
            f"the two signals overlap for {max(0.0, overlap_s):.1f} s; record {4 * longest_s:g} s at least"
        )
    grid_s = np.arange(0, overlap_s, _STEP_S)
    a, b = (
        np.interp(grid_s, (np.asarray(times) - start) / SECOND_NS, np.asarray(values, np.float64))
        for times, values in ((times_a, values_a), (times_b, values_b))
    )
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        raise DeviceError("one of the two signals does not change; move the arm while recording")
    most = round(longest_s / _STEP_S)
    middle = _normalised(b[most : len(b) - most])
    correlation = np.array([_normalised(a[most - k : len(a) - most - k]) @ middle for k in range(-most, most + 1)])
    best = int(correlation.argmax())
    peaks = np.flatnonzero((correlation[1:-1] >= correlation[:-2]) & (correlation[1:-1] > correlation[2:])) + 1
    rivals = [peak for peak in peaks if peak != best and correlation[peak] > correlation[best] - _RIVAL]
    at_edge = best in (0, 2 * most)
    ambiguous = at_edge or any(
        correlation[min(best, p) : max(best, p)].min() < correlation[best] - _RIVAL for p in rivals
    )
    offset = 0.0 if at_edge else _vertex(*correlation[best - 1 : best + 2])
    lag_s = (best - most + offset) * _STEP_S
    return Latency(lag_s, 0.0 if ambiguous else float(max(0.0, correlation[best])))


def picture_speed(times_ns: np.ndarray, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """How fast pictures change: instants (n - 1,) between two of n, ns, and the mean absolute change per second of
    every fourth pixel. Whether the camera moves or what it sees does, that goes with the speed of the arm."""
    small = [picture[::4, ::4].astype(np.float32) for picture in pictures]
    return _speed(times_ns, np.array([np.abs(after - before).mean() for before, after in pairwise(small)]))


def joint_speed(times_ns: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Instants (n - 1,) between two of n readings, ns, and the speed of the joints (n, J) together, rad/s."""
    return _speed(times_ns, np.linalg.norm(np.diff(np.atleast_2d(positions.T).T, axis=0), axis=1))


def _speed(times_ns: np.ndarray, changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Changes (n - 1,) between n instants, per second, each over a span of three usual steps around it: a picture
    that a busy machine stamps late stands next to its successor, and over that moment alone would seem to race."""
    seconds = (np.asarray(times_ns) - times_ns[0]) / SECOND_NS
    total = np.concatenate([[0.0], np.cumsum(changes)])
    between, half = (seconds[:-1] + seconds[1:]) / 2, 1.5 * np.median(np.diff(seconds))
    start, end = (np.clip(between + side, 0, seconds[-1]) for side in (-half, half))
    speed = (np.interp(end, seconds, total) - np.interp(start, seconds, total)) / (end - start)
    return times_ns[:-1] + np.diff(times_ns) // 2, speed


def _normalised(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean()
    length = np.linalg.norm(centred)
    return centred / length if length else centred


def _vertex(left: float, middle: float, right: float) -> float:
    """Where the parabola through three neighbours has its top, in steps from the middle one."""
    bend = left - 2 * middle + right
    return 0.5 * (left - right) / bend if bend else 0.0
