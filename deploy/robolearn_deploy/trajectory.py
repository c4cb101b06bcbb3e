"""The continuous motion through the timed actions of chunks, at any instant.

A position is a cubic spline through the actions (continuous in acceleration), natural at its beginning and at rest at
its end, where it stays. A new chunk takes over at an instant with the position p, velocity v and acceleration a that
are current: what they differ by from its own spline fades out over ``blend_s`` along the quintic that ends with all
three zero, so that a join is continuous in all three, and after ``blend_s`` the motion is the chunk's own.

Orientations: spherical linear interpolation (Shoemake 1985), joined in the tangent space, continuous in angular
velocity. Grippers: linear, joined without leaving the range between both. Velocities (changes per control period): held
from action to action, falling to zero at the expiry; the caller integrates.

Shapes: D components of an action; Q orientations among them; n actions of a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robolearn_deploy.chunks import Chunk, Refusals
from robolearn_deploy.curve import Curve, Spaces, State
from robolearn_deploy.rotations import between, conjugate, exp, log, product, right_jacobian, rotated, unit
from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.motion import Setpoint

__all__ = ["Spaces", "Trajectory", "TrajectoryRefusals"]


@dataclass
class TrajectoryRefusals(Refusals):
    """Chunks that were not taken, by reason."""

    malformed: int = 0
    """A wrong shape, times that do not rise, a quaternion that is none."""


class Trajectory:
    """The plan of one arm. Made once; nothing in it grows. ``begin`` first."""

    def __init__(self, spaces: Spaces, horizon: int, period_ns: int, *, blend_s: float = 0.1) -> None:
        """
        Args:
            horizon: the most actions of a chunk.
            period_ns: the control period that changes refer to.
            blend_s: time after a join in which the new chunk is reached. Longer: smoother, and later.
        """
        if not (blend_s > 0 and horizon > 0 and period_ns > 0):
            raise ValueError("blend_s, horizon and period_ns must be above 0")
        self.spaces, self.blend_s = spaces, blend_s
        self.refusals = TrajectoryRefusals()
        self._size, self._count = spaces.size, len(spaces.quaternions)
        self._period_s = period_ns / SECOND_NS
        self._plan, self._next = (Curve(spaces, horizon, self._period_s) for _ in range(2))
        self._waiting = False
        self._episode = -1
        self._newest = (-1, 0)  # sequence, and actions of it: a chunk that comes in parts grows
        self._velocities, self._grippers, self._angles = map(list, (spaces.velocities, spaces.grippers, spaces.angles))
        shaped = np.ones(spaces.size, bool)
        shaped[[i + k for i in spaces.quaternions for k in range(4)]] = False
        shaped[[*spaces.velocities, *spaces.grippers]] = False
        self._shaped = shaped
        self._joint = np.flatnonzero(shaped)
        # What is blended out: rows of coefficients of the quintic's three basis functions.
        self._offset, self._turn = np.zeros((3, spaces.size)), np.zeros((3, self._count, 3))
        self._held = np.zeros(spaces.size)  # grippers at the join
        self._joined_ns = 0
        self._now = State(spaces)
        self._raw = State(spaces)

    @property
    def expiry_ns(self) -> int:
        """Of the newest chunk taken; 0 without one."""
        return self._next.expiry_ns if self._waiting else self._plan.expiry_ns

    @property
    def sequence(self) -> int:
        """Of the chunk in force; -1 without one."""
        return self._plan.sequence

    @property
    def angular_velocities(self) -> np.ndarray:
        """(Q, 3) rad/s of the orientations at the last ``at``, in the axes of the frame that they are given in."""
        return self._now.angular

    def begin(self, episode: int, at: np.ndarray) -> None:
        """Forget every chunk: from here on only those of ``episode`` count, and until one comes, ``at`` (D,) stands."""
        self._episode, self._waiting = episode, False
        self._plan.stand(np.asarray(at, np.float64))
        self._forget_blend()

    def offer(self, chunk: Chunk, now_ns: int) -> bool:
        """Take ``chunk``; it is in force from its first action on, and takes the place of one that still waits for its
        own. Actions from its expiry on are left out. A refused one (see ``refusals``) changes nothing."""
        place = (chunk.sequence, len(chunk.actions))
        if place <= self._newest:
            self.refusals.reordered += 1
        elif chunk.episode != self._episode:
            self.refusals.foreign += 1
        elif not self._next.fits(chunk):
            self.refusals.malformed += 1
        elif not np.isfinite(chunk.actions).all():
            self.refusals.non_finite += 1
        elif now_ns >= chunk.expiry_ns or chunk.times_ns[0] >= chunk.expiry_ns:
            self.refusals.late += 1
        elif not self._next.take(chunk):
            self.refusals.malformed += 1
        else:
            self._newest, self._waiting = place, True
            return True
        return False

    def at(self, now_ns: int) -> Setpoint:
        """Position, velocity, acceleration (D,) each, at an instant that must not fall from call to call.

        The arrays are this object's own: the next call changes them. A change per control period stands in the first,
        and as change per second in the second; a quaternion's acceleration is not given (zero).
        """
        if self._waiting and now_ns >= self._next.begin_ns:
            self._evaluate(now_ns)
            self._waiting = False
            self._plan, self._next = self._next, self._plan
            self._join(now_ns)
        return self._evaluate(now_ns)

    def restart(self, now_ns: int, now: Setpoint) -> None:
        """Join the chunk in force anew from ``now``: from where the arm is, after it has not followed for a while."""
        self._now.position[:], self._now.velocity[:], self._now.acceleration[:] = now
        self._now.angular[:] = _angular_of(self._now, self.spaces)
        self._join(now_ns)

    def distance(self, now_ns: int, positions: np.ndarray) -> float:
        """How far the newest chunk's own pose at an instant is from ``positions`` (D,), in the component that is
        farthest: positions in their unit, angles and orientations in rad. Grippers and velocities do not count."""
        plan = self._next if self._waiting else self._plan
        plan.evaluate(now_ns, self._raw)
        way = np.abs(self._raw.position - positions)
        way[self._angles] = np.abs(_wrapped(way[self._angles]))
        farthest = float(way[self._joint].max(initial=0.0))
        for i in self.spaces.quaternions:
            turn = log(between(unit(positions[i : i + 4]), self._raw.position[i : i + 4]))
            farthest = max(farthest, math.hypot(*turn))
        return farthest

    def pose(self, now_ns: int) -> np.ndarray:
        """(D,) of the newest chunk's own pose at an instant, without what is blended out. This object's own array."""
        (self._next if self._waiting else self._plan).evaluate(now_ns, self._raw)
        return self._raw.position

    def _evaluate(self, now_ns: int) -> Setpoint:
        now = self._now
        self._plan.evaluate(now_ns, now)
        u = (now_ns - self._joined_ns) / SECOND_NS / self.blend_s
        if u < 1:
            w, dw, ddw = _basis(max(u, 0.0))
            dw, ddw = dw / self.blend_s, ddw / self.blend_s**2
            now.position += w @ self._offset
            now.velocity += dw @ self._offset
            now.acceleration += ddw @ self._offset
            g = self._grippers
            if g:
                gap = self._held[g] - now.position[g]
                now.position[g] += w[0] * gap
                now.velocity[g] = (1 - w[0]) * now.velocity[g] + dw[0] * gap
            for k, i in enumerate(self.spaces.quaternions):
                self._turned(now, k, i, w @ self._turn[:, k], dw @ self._turn[:, k])
        for k, i in enumerate(self.spaces.quaternions):
            q = now.position[i : i + 4]
            now.velocity[i : i + 4] = 0.5 * product((0.0, *now.angular[k]), q)
        return Setpoint(now.position, now.velocity, now.acceleration)

    def _turned(self, now: State, k: int, i: int, turn: np.ndarray, rate: np.ndarray) -> None:
        """Add the blended turn: q exp(turn), and its angular velocity."""
        q = product(now.position[i : i + 4], exp(turn))
        body = rotated(conjugate(q), now.angular[k]) + right_jacobian(turn) @ rate
        now.position[i : i + 4] = unit(q)
        now.angular[k] = rotated(q, body)

    def _join(self, now_ns: int) -> None:
        """Blend from the state in ``_now`` to the chunk in force."""
        old, new = self._now, self._raw
        self._plan.evaluate(now_ns, new)
        a = self._angles
        if a:
            turns = 2 * np.pi * np.round((old.position[a] - new.position[a]) / (2 * np.pi))
            self._plan.shift(a, turns)
            new.position[a] += turns
        mask, blend = self._shaped, self.blend_s
        self._offset[0] = mask * (old.position - new.position)
        self._offset[1] = mask * (old.velocity - new.velocity) * blend
        self._offset[2] = mask * (old.acceleration - new.acceleration) * blend**2
        self._held[:] = np.clip(old.position, 0.0, 1.0)
        for k, i in enumerate(self.spaces.quaternions):
            q_old, q_new = old.position[i : i + 4], new.position[i : i + 4]
            turn = log(between(q_new, q_old))
            gap = rotated(conjugate(q_old), old.angular[k] - new.angular[k])
            self._turn[:, k] = turn, np.linalg.solve(right_jacobian(turn), gap) * blend, (0.0, 0.0, 0.0)
        self._joined_ns = now_ns

    def _forget_blend(self) -> None:
        self._offset[:], self._turn[:] = 0.0, 0.0
        self._joined_ns = -(1 << 62)


def _basis(u: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(3,) each: the quintics on 0..1 that begin with position, velocity, acceleration 1 (the others 0) and end with
    all three 0, and their first and second derivatives."""
    u2, u3, u4, u5 = u * u, u**3, u**4, u**5
    return (
        np.array((1 - 10 * u3 + 15 * u4 - 6 * u5, u - 6 * u3 + 8 * u4 - 3 * u5, (u2 - 3 * u3 + 3 * u4 - u5) / 2)),
        np.array(
            (
                -30 * u2 + 60 * u3 - 30 * u4,
                1 - 18 * u2 + 32 * u3 - 15 * u4,
                u - 4.5 * u2 + 6 * u3 - 2.5 * u4,
            )
        ),
        np.array(
            (
                -60 * u + 180 * u2 - 120 * u3,
                -36 * u + 96 * u2 - 60 * u3,
                1 - 9 * u + 18 * u2 - 10 * u3,
            )
        ),
    )


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _angular_of(state: State, spaces: Spaces) -> np.ndarray:
    """(Q, 3) from the quaternions and their derivatives: 2 q' conj(q)."""
    rows = [
        2 * product(state.velocity[i : i + 4], conjugate(state.position[i : i + 4]))[1:] for i in spaces.quaternions
    ]
    return np.array(rows).reshape(-1, 3)
