"""One chunk as a curve: what its components are, and where each is at an instant. See trajectory.py, which joins them.

Shapes: D components of an action; Q orientations among them; n actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robolearn_data.schema import SchemaError, Stream
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.rotations import between, exp, log, product, rotated, unit
from robolearn_hardware.clock import SECOND_NS


@dataclass(frozen=True)
class Spaces:
    """What the components of an action are. Those that are not named are positions."""

    size: int
    """D"""
    velocities: tuple[int, ...] = ()
    """Changes per control period."""
    angles: tuple[int, ...] = ()
    """Positions that wrap at a full turn, rad: they take the short way, and the trajectory counts the turns."""
    quaternions: tuple[int, ...] = ()
    """Index of w of each; x, y, z follow."""
    grippers: tuple[int, ...] = ()
    """0 closed, 1 open."""

    def __post_init__(self) -> None:
        parts = [i + k for i in self.quaternions for k in range(4)]
        named = [*self.velocities, *self.angles, *parts, *self.grippers]
        if len(set(named)) != len(named) or any(not 0 <= i < self.size for i in named):
            raise SchemaError(f"components of an action of {self.size} are named twice or are not there: {self}")

    @classmethod
    def of(cls, action: Stream, *, quaternions: Sequence[int] = (), grippers: Sequence[int] | None = None) -> Spaces:
        """As the stream says: ``relative`` are velocities, ``wraps`` angles, interpolation "quaternion" is one. What it
        cannot say is an argument; grippers are, by default, the components called "gripper" that are not relative.

        Raises:
            SchemaError: the action is no vector, or a component would be two things.
        """
        if len(action.shape) != 1:
            raise SchemaError(f"a trajectory needs actions that are vectors, got shape {action.shape}")
        if action.interpolation == "quaternion":
            quaternions = (0,)
        if grippers is None:
            called = [
                i for i, name in enumerate(action.names) if name.rsplit("/")[-1].removesuffix(".pos") == "gripper"
            ]
            grippers = [i for i in called if i not in action.relative]
        return cls(action.shape[0], action.relative, action.wraps, tuple(quaternions), tuple(grippers))


class State:
    """Where a trajectory is at an instant."""

    def __init__(self, spaces: Spaces) -> None:
        self.position, self.velocity, self.acceleration = (np.zeros(spaces.size) for _ in range(3))
        self.angular = np.zeros((len(spaces.quaternions), 3))


class Curve:
    """One chunk as a curve, in arrays for the longest."""

    def __init__(self, spaces: Spaces, horizon: int, period_s: float) -> None:
        self._spaces, self._period_s = spaces, period_s
        self._horizon = horizon
        self._time = np.zeros(horizon)  # s since begin_ns
        self._value = np.zeros((horizon, spaces.size))
        self._bend = np.zeros((horizon, spaces.size))  # second derivatives at the actions
        self._turn = np.zeros((horizon, len(spaces.quaternions), 3))  # rotation vector to the next action
        straight = np.zeros(spaces.size, bool)
        straight[[*spaces.velocities, *spaces.grippers, *(i + k for i in spaces.quaternions for k in range(4))]] = True
        self._curved = np.flatnonzero(~straight)
        self._velocities, self._grippers, self._angles = map(list, (spaces.velocities, spaces.grippers, spaces.angles))
        self._solver = _SplineSolver()
        self._times: list[float] = [0.0]
        self.sequence, self.begin_ns, self.expiry_ns = -1, 0, 0

    def stand(self, at: np.ndarray) -> None:
        """At one place for ever; changes are zero."""
        self.sequence, self.begin_ns, self.expiry_ns = -1, 0, 0
        self._value[0] = at
        self._value[0, self._velocities] = 0.0
        self._finish(1)

    def fits(self, chunk: Chunk) -> bool:
        n = len(chunk.times_ns)
        if not 0 < n <= self._horizon or chunk.actions.shape != (n, self._spaces.size):
            return False
        return bool((np.diff(chunk.times_ns) > 0).all())

    def take(self, chunk: Chunk) -> bool:
        """Whether it could: a quaternion may be none."""
        n = int(np.searchsorted(chunk.times_ns, chunk.expiry_ns))
        value = self._value[:n]
        value[:] = chunk.actions[:n]
        for i in self._spaces.quaternions:
            length = np.linalg.norm(value[:, i : i + 4], axis=1)
            if (np.abs(length - 1) > 0.1).any():
                return False
            value[:, i : i + 4] /= length[:, None]
        self.sequence, self.begin_ns, self.expiry_ns = chunk.sequence, int(chunk.times_ns[0]), chunk.expiry_ns
        np.divide(chunk.times_ns[:n] - chunk.times_ns[0], SECOND_NS, out=self._time[:n])
        if self._angles:
            value[:, self._angles] = np.unwrap(value[:, self._angles], axis=0)
        value[:, self._grippers] = value[:, self._grippers].clip(0.0, 1.0)
        self._finish(n)
        return True

    def _finish(self, n: int) -> None:
        self._times = self._time[:n].tolist()
        self._last = n - 1
        self._bend[:n] = 0.0
        if n > 1 and self._curved.size:
            self._bend[:n, self._curved] = self._solver.bends(self._time[:n], self._value[:n, self._curved])
        for k, i in enumerate(self._spaces.quaternions):
            for j in range(n - 1):
                self._turn[j, k] = log(between(self._value[j, i : i + 4], self._value[j + 1, i : i + 4]))

    def shift(self, components: list[int], by: np.ndarray) -> None:
        self._value[: self._last + 1, components] += by

    def evaluate(self, now_ns: int, out: State) -> None:
        t = (now_ns - self.begin_ns) / SECOND_NS
        last, times = self._last, self._times
        if t >= times[last] or t < 0.0:
            i = last if t >= times[last] else 0
            out.position[:] = self._value[i]
            out.velocity[:] = out.acceleration[:] = 0.0
            out.angular[:] = 0.0
        else:
            i = _segment(times, t)
            self._inside(i, t, out)
        v = self._velocities
        if v:
            left = (self.expiry_ns - now_ns) / SECOND_NS / self._period_s
            out.position[v] = self._value[i, v] * min(max(left, 0.0), 1.0)
            out.velocity[v] = out.position[v] / self._period_s
            out.acceleration[v] = 0.0

    def _inside(self, i: int, t: float, out: State) -> None:
        h = self._times[i + 1] - self._times[i]
        b = (t - self._times[i]) / h
        a = 1.0 - b
        p0, p1, m0, m1 = self._value[i], self._value[i + 1], self._bend[i], self._bend[i + 1]
        sixth = h * h / 6
        out.position[:] = a * p0 + b * p1 + (sixth * (a**3 - a)) * m0 + (sixth * (b**3 - b)) * m1
        out.velocity[:] = (p1 - p0) / h + (h / 6 * (1 - 3 * a * a)) * m0 + (h / 6 * (3 * b * b - 1)) * m1
        out.acceleration[:] = a * m0 + b * m1
        for k, c in enumerate(self._spaces.quaternions):
            turn = self._turn[i, k]
            out.position[c : c + 4] = unit(product(p0[c : c + 4], exp(b * turn)))
            out.angular[k] = rotated(p0[c : c + 4], turn) / h
            out.acceleration[c : c + 4] = 0.0


class _SplineSolver:
    """Second derivatives of cubic splines. The inverse is kept: the next chunk's times are mostly spaced alike."""

    def __init__(self) -> None:
        self._steps = np.zeros(0)
        self._inverse = np.zeros((0, 0))

    def bends(self, times: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(n, d) second derivatives at ``times`` (n,) of the spline through ``values`` (n, d): zero at the first, and
        velocity zero at the last (e.g. Press et al., Numerical Recipes, 3.3)."""
        n, h = len(times), np.diff(times)
        if len(h) != len(self._steps) or np.abs(h - self._steps).max() > 1e-9:
            matrix = np.diag(np.r_[1.0, (h[:-1] + h[1:]) / 3, h[-1] / 3])
            matrix[np.arange(1, n), np.arange(n - 1)] = h / 6
            matrix[np.arange(1, n - 1), np.arange(2, n)] = h[1:] / 6
            self._inverse, self._steps = np.linalg.inv(matrix), h
        slope = np.diff(values, axis=0) / h[:, None]
        right = np.zeros_like(values)
        right[1:-1], right[-1] = slope[1:] - slope[:-1], -slope[-1]
        return self._inverse @ right


def _segment(times: list[float], t: float) -> int:
    """Largest i with times[i] <= t."""
    low, high = 0, len(times) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if times[middle] <= t else (low, middle)
    return low
