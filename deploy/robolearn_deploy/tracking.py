"""What a person does between two readings of their hand: a motion that an arm can follow without stopping at each.

A reading says where the person wanted the arm at an instant. Taken for a place to rest at, each would make the arm slow
down until the next. Instead, an alpha-beta filter (a constant velocity, critically damped; Brookner, Tracking and
Kalman Filtering Made Easy, 1998, chapter 1) makes of the readings a position and a velocity, and a critically damped
filter of the third order makes of these a motion whose acceleration is continuous.

What a reading takes to get here (5 ms from a leader arm, 100 ms from a phone) is not made up for by looking ahead: the
arm follows that much later. It looks ahead only where a reading is later than they are on average, and no more once two
did not come. An arm that is behind is not thrown after a person: it is led to where they are, at rest, until it is
there; a motion to meet them underway would overshoot when they slow down.
"""

from __future__ import annotations

from math import exp

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.motion import Setpoint

_MEMORY_S = 0.02
"""Of the alpha-beta filter: a reading counts 1/e of the newest after it."""
_SMOOTH_HZ = 40.0
"""Of the filter of the third order: 1/s, its poles."""
_BEHIND_RAD = 0.05
"""Within it a joint is given the person's velocity; from twice as far on none."""
_MISSED = 2
"""Readings that may fail to come."""
_NEW = 0.05
"""Share of the newest reading in the average delay."""
_FIRST_S, _LONGEST_S = 0.01, 0.06
"""Taken for the time between two readings at first; how long a motion is extrapolated at most."""


class Tracker:
    """Of one arm's joints. ``measure`` at each reading, ``follow`` at each tick."""

    def __init__(self, fastest: np.ndarray) -> None:
        """``fastest`` (J,) rad/s: of the arm."""
        self._fastest = fastest
        self.forget()

    def forget(self) -> None:
        """The person, and where the arm was led."""
        self._read_ns = 0
        self._interval_s, self._delay_s = _FIRST_S, 0.0
        self._positions = self._velocities = np.zeros(len(self._fastest))
        self._led: Setpoint | None = None
        self._led_ns = 0

    def measure(self, read_ns: int, positions: np.ndarray, now_ns: int) -> None:
        """The person wanted the joints at ``positions`` (J,) rad at ``read_ns``, later than at the last call. This is
        heard at ``now_ns``."""
        delay_s = (now_ns - read_ns) / SECOND_NS
        if not self._read_ns:
            self._delay_s = delay_s
            self._positions, self._velocities = positions.copy(), np.zeros_like(positions)
        else:
            passed_s = (read_ns - self._read_ns) / SECOND_NS
            kept = exp(-passed_s / _MEMORY_S)
            expected = self._positions + passed_s * self._velocities
            missed = positions - expected
            self._positions = expected + (1 - kept**2) * missed
            velocities = self._velocities + (1 - kept) ** 2 / passed_s * missed
            self._velocities = np.clip(velocities, -self._fastest, self._fastest)
            self._interval_s += _NEW * (passed_s - self._interval_s)
            self._delay_s += _NEW * (delay_s - self._delay_s)
        self._read_ns = read_ns

    def follow(self, at_ns: int, sent: Setpoint, dt_s: float) -> Setpoint | None:
        """Where to be at ``at_ns``; None where the person has been silent for too long: the arm stops, and goes on from
        there when they are back.

        Args:
            sent: the setpoint of the tick before, ``dt_s`` earlier.
        """
        age_s = (at_ns - self._read_ns) / SECOND_NS - self._delay_s
        if age_s > min((1 + _MISSED) * self._interval_s, _LONGEST_S):
            self._led = None
            return None
        if self._led is None:
            self._led, self._led_ns = Setpoint(*(part.copy() for part in sent)), at_ns - round(dt_s * SECOND_NS)
        passed_s = (at_ns - self._led_ns) / SECOND_NS
        now = self._positions + age_s * self._velocities
        self._led, self._led_ns = smoothed(self._led, now, self._velocities, passed_s), at_ns
        behind = np.abs(self._led.positions - sent.positions - dt_s * sent.velocities)
        share = np.clip(2 - behind / _BEHIND_RAD, 0, 1)
        return Setpoint(self._led.positions, share * self._led.velocities, share * self._led.accelerations)


def smoothed(led: Setpoint, positions: np.ndarray, velocities: np.ndarray, passed_s: float) -> Setpoint:
    """``led`` after ``passed_s`` on its way to what is at ``positions`` then and moves with constant ``velocities``:
    the difference e of the two follows (d/dt + w)^3 e = 0, in closed form."""
    w, t = _SMOOTH_HZ, passed_s
    c0 = led.positions - (positions - t * velocities)
    c1 = led.velocities - velocities + w * c0
    c2 = (led.accelerations + 2 * w * c1 - w**2 * c0) / 2
    e, e1, e2 = c0 + t * (c1 + t * c2), c1 + 2 * t * c2, 2 * c2
    left = exp(-w * t)
    return Setpoint(
        positions + left * e,
        velocities + left * (e1 - w * e),
        left * (e2 - 2 * w * e1 + w**2 * e),
    )
