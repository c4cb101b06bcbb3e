"""What a person does between two readings of their hand: a motion that an arm can follow without stopping at each.

A reading says where the person wanted the arm at an instant. Taken for a place to rest at, each would make the arm slow
down until the next. Instead, a fading-memory filter of the second degree (constant acceleration; Brookner, Tracking and
Kalman Filtering Made Easy, 1998, chapter 7) makes of the readings a motion of the hand, and a critically damped low
pass of the third order makes of that a motion whose acceleration is continuous. The low pass is 3 / _SMOOTH late; a
part of that is made up for by looking ahead, and the rest stays: a filter that follows a constant velocity without
delay cannot but go beyond where a person turns round.

What a reading takes to get here (5 ms from a leader arm, 100 ms from a phone) is not made up for: the arm follows that
much later. Where a reading is later than they are on average, the motion goes on, and no more once two did not come.

An arm that is behind, because the person is faster than it can be, is not thrown after them: it is led to where they
are, at rest while they slow down, and with less than their velocity otherwise, so that it can stop where they do. An
arm that is taken over in motion comes to rest, and the person moves it from there.
"""

from __future__ import annotations

from math import exp

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import JointLimits
from robolearn_hardware.motion import RAMP_S, Setpoint

_MEMORY_S = 0.02
"""Of the estimate of the hand's motion: a reading counts 1/e of the newest after it."""
_SMOOTH = 50.0
"""1/s: the three poles of the low pass."""
_AHEAD_S = 0.018
"""By which the low pass is shown where the hand will be."""
_CLOSE_RAD, _FAR_RAD = 0.01, 0.1
"""Within the first a joint is given all of the person's velocity; from twice that far on _SOME of it, while they do not
slow down; and from twice the second on none."""
_SOME = 0.4
_MISSED = 2
"""Readings that may fail to come."""
_NEW = 0.05
"""Share of the newest reading in the average delay."""
_FIRST_S, _LONGEST_S = 0.01, 0.06
"""Taken for the time between two readings at first; how long a motion is extrapolated at most."""


class Tracker:
    """Of one arm's joints. ``measure`` at each reading, ``follow`` at each tick."""

    def __init__(self, limits: JointLimits) -> None:
        """``limits``: of the arm. ``begin`` next."""
        self._fastest = limits.velocity
        known = np.isfinite(limits.acceleration)
        self._quickest = np.where(known, limits.acceleration, limits.velocity / RAMP_S)
        self.begin(np.zeros(limits.joints))

    def begin(self, positions: np.ndarray) -> None:
        """Somebody else than before moves the arm, which comes to rest at ``positions`` (J,) rad."""
        self._read_ns = 0
        self._interval_s, self._delay_s = _FIRST_S, 0.0
        self._hand = _resting(positions)
        self.rest(positions)

    def rest(self, positions: np.ndarray) -> None:
        """The arm comes to rest at ``positions`` (J,) rad: from there it is led to the person who moves it."""
        self._led = _resting(positions)
        self._led_ns = 0

    def measure(self, read_ns: int, positions: np.ndarray, now_ns: int) -> None:
        """The person wanted the joints at ``positions`` (J,) rad at ``read_ns``, later than at the last call. This is
        heard at ``now_ns``."""
        delay_s = (now_ns - read_ns) / SECOND_NS
        if not self._read_ns:
            self._delay_s = delay_s
            self._hand = _resting(positions)
        else:
            passed_s = (read_ns - self._read_ns) / SECOND_NS
            kept = exp(-passed_s / _MEMORY_S)
            expected, (_, v, a) = self._ahead(passed_s), self._hand
            missed = positions - expected
            v = v + passed_s * a + 1.5 * (1 - kept) ** 2 * (1 + kept) / passed_s * missed
            a = a + (1 - kept) ** 3 / passed_s**2 * missed
            self._hand = Setpoint(
                expected + (1 - kept**3) * missed,
                np.clip(v, -self._fastest, self._fastest),
                np.clip(a, -self._quickest, self._quickest),
            )
            self._interval_s += _NEW * (passed_s - self._interval_s)
            self._delay_s += _NEW * (delay_s - self._delay_s)
        self._read_ns = read_ns

    def _ahead(self, age_s: float) -> np.ndarray:
        p, v, a = self._hand
        return p + age_s * (v + age_s / 2 * a)

    def follow(self, at_ns: int, sent: Setpoint, dt_s: float) -> Setpoint | None:
        """Where to be at ``at_ns``; None where the person has been silent for too long: the arm stops, and ``rest`` is
        to be told where.

        Args:
            sent: the setpoint of the tick before, ``dt_s`` earlier.
        """
        age_s = (at_ns - self._read_ns) / SECOND_NS - self._delay_s
        if age_s > min((1 + _MISSED) * self._interval_s, _LONGEST_S):
            return None
        passed_s = (at_ns - self._led_ns) / SECOND_NS if self._led_ns else dt_s
        self._led = smoothed(self._led, self._ahead(age_s + _AHEAD_S), passed_s)
        self._led_ns = at_ns
        p, v, a = self._led
        behind = np.abs(p - sent.positions - dt_s * sent.velocities)
        close, near = (np.clip(2 - behind / within, 0, 1) for within in (_CLOSE_RAD, _FAR_RAD))
        share = np.maximum(close, np.where(v * a < 0, 0, _SOME * near))
        return Setpoint(p, share * v, share * a)


def _resting(positions: np.ndarray) -> Setpoint:
    return Setpoint(positions.copy(), np.zeros(len(positions)), np.zeros(len(positions)))


def smoothed(led: Setpoint, positions: np.ndarray, passed_s: float) -> Setpoint:
    """``led`` after ``passed_s`` on its way to rest at ``positions``: the difference e of the two follows
    (d/dt + w)^3 e = 0, in closed form."""
    w, t = _SMOOTH, passed_s
    c0 = led.positions - positions
    c1 = led.velocities + w * c0
    c2 = (led.accelerations + 2 * w * c1 - w**2 * c0) / 2
    e, e1, e2 = c0 + t * (c1 + t * c2), c1 + 2 * t * c2, 2 * c2
    left = exp(-w * t)
    return Setpoint(positions + left * e, left * (e1 - w * e), left * (e2 - 2 * w * e1 + w**2 * e))
