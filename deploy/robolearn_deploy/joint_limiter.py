"""One joint's next setpoint within its limits: see limiter.py, which has one of these for each joint.

A state is (p, v, a): position rad, velocity rad/s, acceleration rad/s^2. V, A, J: limits on the last two and on jerk.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, inf, sqrt
from typing import Any

from robolearn_hardware.devices import DeviceError

State = tuple[float, float, float]
Pieces = tuple[tuple[float, float], ...]
"""Jerk and duration of each piece of a motion."""

_EPSILON = 1e-9
"""By which rounding may miss a limit, in rad, rad/s and (x 1000) rad/s^2."""
_MOST = 0.99
"""Share of V and A that a target is taken to have at most: the rest is left to catch up with it."""
_CLOSE_S = 0.03
"""A target's acceleration is not counted on for longer: what is noise in it would be magnified."""
_END_SAMPLES = 12
"""Instants of a stop at which the velocity limit near the ends of the range is looked at."""
_END_SHARE = 0.8
"""Of A, which is used to slow down towards the ends."""


@dataclass(frozen=True)
class EndBraking:
    """Velocity limit near the ends of the range: sqrt(deceleration (high - p)) - offset, alike towards ``low``; see
    ``limits.Braking``."""

    offset: float
    deceleration: float
    low: float
    high: float

    def fastest(self, p: float, towards: float, deceleration: float = inf) -> float:
        """Highest speed (>= 0) at ``p`` in the direction of the sign of ``towards``; ``deceleration``: at most."""
        room = self.high - p if towards > 0 else p - self.low
        return max(0.0, sqrt(min(self.deceleration, deceleration) * max(room, 0.0)) - self.offset)


class JointLimiter:
    """``state`` is that of the last setpoint; the methods answer states one tick later, and ``state`` is set by the
    caller to the one that is sent."""

    def __init__(
        self,
        dt_s: float,
        position: tuple[float, float],
        limits: tuple[float, float, float],
        slow: tuple[float, float, float],
        ends: Sequence[EndBraking] = (),
    ) -> None:
        """
        Args:
            position: lowest and highest.
            limits: V, A, J.
            slow: those of an approach.
        """
        self._dt, (self._low, self._high), self._ends = dt_s, position, ends
        self._v, self._a, self._j = limits
        self._slow = slow
        self._limits = limits
        self.state: State = (0.0, 0.0, 0.0)
        ruckig = _ruckig()
        self._working = (ruckig.Result.Working, ruckig.Result.Finished)
        self._error = ruckig.RuckigError
        self._ruckig, self._path = ruckig.Ruckig(1), ruckig.Trajectory(1)
        self._input = ruckig.InputParameter(1)
        self._input.target_position = self._input.target_velocity = self._input.target_acceleration = [0.0]

    @property
    def rest_time_s(self) -> float:
        """The most that ``brake`` takes to rest: from V, with an acceleration that must first be taken away."""
        v, a, j = self._limits
        a = min(a, sqrt(2 * v * j))  # more is never reached on the way to v
        return a / j + (v / self._a + self._a / j if v * j >= self._a**2 else 2 * sqrt(v / j))

    @property
    def at_rest(self) -> bool:
        _, v, a = self.state
        return abs(v) < _EPSILON and abs(a) < 1000 * _EPSILON

    def clip(self, p: float) -> float:
        """``p``, or the end of the range that it lies beyond."""
        return min(max(p, self._low), self._high)

    def follow(self, p: float, v: float, a: float) -> State:
        """On the way to be at ``p`` (within the range) with velocity ``v`` and acceleration ``a``."""
        if self._in_one_tick((p, v, a)) and self.good((p, v, a)):
            return p, v, a
        target = self._feasible(p, v, a)
        return self._first_good((target, _CLOSE_S), ((p, target[1], 0.0), inf), ((p, 0.0, 0.0), inf))

    def approach(self, p: float) -> State:
        """On the way to rest at ``p`` (within the range), slowly."""
        return self._first_good(((p, 0.0, 0.0), inf), limits=self._slow)

    def brake(self) -> State:
        """On the quickest way to rest; at rest, where it is."""
        p, v, a = self.state
        if self.at_rest:  # but for rounding
            return p, 0.0, 0.0
        return along(self.state, self.braking(v, a), self._dt)

    def good(self, state: State) -> bool:
        """Whether ``state`` may come next: it can be stopped, and the way to it is not too fast."""
        p, before = state[0], self.state[0]
        mean = (p - before) / self._dt  # what is differentiated from the setpoints
        if abs(mean) > self._v + _EPSILON or not self.can_stop(state):
            return False
        return all(abs(mean) <= e.fastest((p + before) / 2, mean) + _EPSILON for e in self._ends)

    def can_stop(self, state: State) -> bool:
        """Whether ``state`` is within the limits, and the quickest stop from it too."""
        p, v, a = state
        if abs(a) > self._a + 1000 * _EPSILON or abs(v) > self._v + _EPSILON:
            return False
        peak = v + a * abs(a) / (2 * self._j)  # once the acceleration is gone
        if abs(peak) > self._v + _EPSILON:
            return False
        (end, _, _), turn = along(state, self.braking(v, a)), self._turning_point(p, v, a, peak)
        now = self.state[0]  # outside its range a joint may be led back
        low, high = min(self._low, now) - _EPSILON, max(self._high, now) + _EPSILON
        if not (low <= end <= high and low <= turn <= high):
            return False
        return not self._ends or all(self._slow_at_ends(e, state, end, max(abs(v), abs(peak))) for e in self._ends)

    def _feasible(self, p: float, v: float, a: float) -> State:
        """The target with a velocity and an acceleration that the limits allow there."""
        v = _within(v, self._v)
        most = min(self._a, sqrt(2 * self._j * (self._v - abs(v))))  # before or after it, the velocity is greater
        target = (p, v, _within(a, most))
        return target if self.can_stop(target) else (p, 0.0, 0.0)

    def _in_one_tick(self, target: State) -> bool:
        """Whether three equal pieces of constant jerk lead there within the limits."""
        p, v, a = self.state
        dt, h = self._dt, self._dt / 3
        da = (target[2] - a) / h
        dv = (target[1] - v - a * dt) / h**2 - 0.5 * da
        dp = (target[0] - p - v * dt - 0.5 * a * dt**2) / h**3 - da / 6
        j1 = dp - dv
        j2 = dv - 2 * j1
        for jerk in (j1, j2, da - j1 - j2):
            if not abs(jerk) <= self._j:  # NaN, from huge numbers, is not
                return False
            before = v, a
            p, v, a = _moved(p, v, a, jerk, h)
            if before[1] * a < 0 and abs(before[0] - before[1] ** 2 / (2 * jerk)) > self._v + _EPSILON:
                return False
            if abs(v) > self._v + _EPSILON or abs(a) > self._a + 1000 * _EPSILON:
                return False
        return True

    def _first_good(self, *targets: tuple[State, float], limits: tuple[float, float, float] | None = None) -> State:
        """One tick on the way to the first of ``targets`` that is met within the time beside it and can be stopped."""
        for target, within_s in targets:
            state = self._pursue(target, within_s, limits or self._limits)
            if state is not None and self.good(state):
                return state
        return self.brake()

    def _pursue(self, target: State, within_s: float, limits: tuple[float, float, float]) -> State | None:
        """One tick along the quickest motion that meets a target which is in the state ``target`` one tick from now and
        keeps its acceleration. None: there is none, or it takes longer than ``within_s``.

        Ruckig plans it in the frame of the target, where the target rests. (To aim at where the target is now would
        not do: an arm that is behind would slow down to the target's velocity again and again before it is there.)
        """
        (p, v, a), (tp, tv, ta), dt, i = self.state, target, self._dt, self._input
        v_max, a_max, i.max_jerk = limits[0], limits[1], [limits[2]]
        tv, ta = _within(tv, _MOST * v_max), _within(ta, _MOST * a_max)
        up, down = self._fastest(v_max, 1), self._fastest(v_max, -1)
        i.current_position = [p - (tp - tv * dt + ta * dt * dt / 2)]
        i.current_velocity, i.current_acceleration = [v - (tv - ta * dt)], [a - ta]
        least = (1 - _MOST) * v_max
        i.max_velocity, i.min_velocity = [max(up - tv, least)], [-max(down + tv, least)]
        i.max_acceleration, i.min_acceleration = [a_max - ta], [-a_max - ta]
        try:
            result = self._ruckig.calculate(i, self._path)
        except self._error:  # it finds none for a few extreme states
            return None
        if result not in self._working or self._path.duration > within_s:
            return None
        (q,), (w,), (b,) = self._path.at_time(dt)
        return q + tp, w + tv, b + ta

    def _fastest(self, v_max: float, towards: int) -> float:
        """Highest speed a little further on, which can be kept below what the ends of the range allow."""
        if not self._ends:
            return v_max
        p, v, _ = self.state
        p += v * (2 * self._dt + 2 * self._a / self._j)
        return min([v_max, *(e.fastest(p, towards, 2 * _END_SHARE * self._a) for e in self._ends)])

    def braking(self, v: float, a: float) -> Pieces:
        """The quickest motion to rest."""
        big_a, big_j = self._a, self._j
        sign = copysign(1.0, v + a * abs(a) / (2 * big_j))
        v, a = sign * v, sign * a  # from here on as if it had to slow down
        squared = max(big_j * v + 0.5 * a * a, 0.0)
        deepest = sqrt(squared)
        constant = 0.0
        if deepest > big_a:
            constant = (squared - big_a**2) / (big_j * big_a)
            deepest = big_a
        return (
            (-sign * big_j, max(a + deepest, 0.0) / big_j),
            (0.0, constant),
            (sign * big_j, deepest / big_j),
        )

    def _turning_point(self, p: float, v: float, a: float, peak: float) -> float:
        """Where the quickest stop turns round before it comes to its end; ``p`` where it does not."""
        if v * peak >= 0:
            return p
        sign = copysign(1.0, peak)
        v, a = sign * v, sign * a  # v < 0 < a, which falls at -J
        t = (a - sqrt(max(a * a + 2 * self._j * v, 0.0))) / self._j
        return p + sign * (v * t + a * t * t / 2 - self._j * t**3 / 6)

    def _slow_at_ends(self, ends: EndBraking, state: State, end: float, fastest: float) -> bool:
        p, v, a = state
        # The limit falls towards the end, so that if it allows the greatest speed there, it does everywhere before.
        if fastest <= ends.fastest(max(p, end), 1) and fastest <= ends.fastest(min(p, end), -1):
            return True
        pieces = self.braking(v, a)
        total = sum(duration for _, duration in pieces)
        for jerk, duration in pieces:
            count = 1 + int(_END_SAMPLES * duration / total) if total else 1
            for k in range(count + 1):
                q, w, _ = _moved(p, v, a, jerk, k * duration / count)
                if abs(w) > ends.fastest(q, w) + _EPSILON:
                    return False
            p, v, a = _moved(p, v, a, jerk, duration)
        return True


def along(state: State, pieces: Pieces, after_s: float = inf) -> State:
    """The state ``after_s`` later on a motion to rest; by default at its end."""
    p, v, a = state
    for jerk, duration in pieces:
        step = min(after_s, duration)
        p, v, a = _moved(p, v, a, jerk, step)
        after_s -= step
    return (p, v, a) if after_s <= 0.0 else (p, 0.0, 0.0)


def _within(value: float, most: float) -> float:
    return min(max(value, -most), most)


def _moved(p: float, v: float, a: float, jerk: float, t: float) -> State:
    return p + t * (v + t * (a / 2 + t * jerk / 6)), v + t * (a + t * jerk / 2), a + t * jerk


def _ruckig() -> Any:
    try:
        return importlib.import_module("ruckig")
    except ImportError as error:
        raise DeviceError(f"the limiter needs ruckig ({error}): pip install 'robolearn[kinematics]'") from None
