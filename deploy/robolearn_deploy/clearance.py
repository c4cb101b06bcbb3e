"""Whether an arm's motion stays within its workspace and its links apart, looked at where it matters.

A joint that turns moves no point of the arm further than its lever: the length of the arm from there on. It changes the
distance between two links only if it lies between them. So what is clear at two instants of a motion is clear in
between, if what the joints turn in between cannot use up the room of both; where it can, the instant in the middle is
looked at too, down to ``APART_RAD``: at those links only that are not known to be clear in between.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from math import inf, isfinite
from typing import NamedTuple

import numpy as np

from robolearn_deploy.selfdistance import SelfDistance, levers
from robolearn_hardware.kinematics import Kinematics, Workspace

APART_RAD = 0.05
"""Motion of all joints together that is not looked into: a chord of it leaves an arc of radius 1 m by 0.3 mm."""
_EPSILON_M = 1e-6

Path = Callable[[float], list[float]]
"""Joint positions, rad, some seconds on."""


class _Look(NamedTuple):
    """At one instant of a motion."""

    after_s: float
    positions: list[float]
    room: float
    """To the nearest side of the workspace, m, beyond what is allowed; < 0: outside. Infinity: not looked at."""
    apart: np.ndarray
    """(pairs,) m, of the links looked at, beyond what is allowed; of those far enough apart, a lower bound"""

    @property
    def blocked(self) -> str:
        if self.room < 0:
            return "workspace"
        return "links" if self.apart.size and self.apart.min() < 0 else ""


class Clearance:
    """Of one arm. An arm that is outside its workspace, or whose links are too near, may come back, and get no further
    out or nearer than it is."""

    def __init__(self, model: str, workspace: Workspace | None, links: SelfDistance | None) -> None:
        """Raises DeviceError: no kinematic model of the arm; MuJoCo is not installed."""
        self._kinematics = kinematics = Kinematics(model)
        self._links = links
        self._mujoco = importlib.import_module("mujoco")  # which Kinematics has found
        made = kinematics.mj_model
        self._site = made.site("tool").id
        box = workspace or Workspace()
        self._floor = box.floor
        self._low, self._high = (*box.low[:2], max(box.low[2], box.floor)), box.high
        self._bodies = kinematics.bodies if isfinite(box.floor) else []
        self._bounded = any(isfinite(side) for side in (*self._low, *self._high))
        tool = made.site("tool")
        self._levers = levers(made, int(made.site_bodyid[self._site]), float(np.linalg.norm(tool.pos)))
        self._pair_levers = np.zeros((0, made.njnt)) if links is None else links.levers
        self._all_pairs = np.arange(len(self._pair_levers))
        # The furthest out on each side, and the nearest that links may be: what they were at best since the
        # beginning, so that what rounding allows does not add up; or what they are now, if that is worse.
        self._best_out: list[float] = []
        self._best_near = 0.0
        self._out: list[float] = []
        self._near = 0.0

    def begin(self, positions: list[float]) -> None:
        """The arm is at ``positions`` (J,) rad."""
        self._best_out = [max(-room, 0.0) for room in self._rooms(positions)]
        self._best_near = self._nearest(positions)
        self._out, self._near = self._best_out, self._best_near

    def moved(self, positions: list[float]) -> None:
        """It is sent to ``positions``."""
        self._out = [max(-room, 0.0) for room in self._rooms(positions)]
        self._near = self._nearest(positions)
        self._best_out = [min(best, out) for best, out in zip(self._best_out, self._out, strict=True)]
        self._best_near = max(self._best_near, self._near)

    def blocked(self, path: Path, duration_s: float) -> str:
        """What is in the way of a motion: "workspace", "links" or nothing."""
        limits = [max(best + _EPSILON_M, out) for best, out in zip(self._best_out, self._out, strict=True)]
        nearest = min(self._best_near - _EPSILON_M, self._near)
        first, last = path(0.0), path(duration_s)
        turned = _turned(first, last)

        def room(positions: list[float]) -> float:
            rooms = self._rooms(positions)
            return min([room + limit for room, limit in zip(rooms, limits, strict=True)], default=inf)

        # Of a motion, half of what the joints turn is room enough at either end.
        pairs, need = self._all_pairs, self._pair_levers @ turned
        start = _Look(0.0, first, room(first), self._apart(first, nearest, need / 2, pairs))
        end = _Look(duration_s, last, room(last), self._apart(last, nearest, need / 2, pairs))
        if start.blocked or end.blocked:
            return start.blocked or end.blocked
        pieces = [(start, end, pairs)]
        while pieces:
            one, other, pairs = pieces.pop()
            turned = _turned(one.positions, other.positions)
            if turned.sum() <= APART_RAD:
                continue
            roomy = one.room + other.room >= self._levers @ turned
            need = self._pair_levers[pairs] @ turned
            doubtful = (one.apart + other.apart < need).nonzero()[0]
            if roomy and not doubtful.size:
                continue
            after_s = (one.after_s + other.after_s) / 2
            positions, pairs = path(after_s), pairs[doubtful]
            apart = self._apart(positions, nearest, need[doubtful] / 2, pairs)
            middle = _Look(after_s, positions, inf if roomy else room(positions), apart)
            if middle.blocked:
                return middle.blocked
            one, other = (look._replace(apart=look.apart[doubtful]) for look in (one, other))
            pieces += [(one, middle, pairs), (middle, other, pairs)]
        return ""

    def _rooms(self, positions: list[float]) -> list[float]:
        """From the tool centre to each side, and from the joints from the third on to the floor, m; < 0: outside."""
        if not self._bounded:
            return []
        data = self._kinematics.mj_data
        data.qpos[:] = positions
        self._mujoco.mj_kinematics(self._kinematics.mj_model, data)
        x, y, z = data.site_xpos[self._site].tolist()
        heights = data.xpos[self._bodies, 2].tolist() if self._bodies else ()
        (lx, ly, lz), (hx, hy, hz) = self._low, self._high
        return [x - lx, y - ly, z - lz, hx - x, hy - y, hz - z, *(h - self._floor for h in heights)]

    def _nearest(self, positions: list[float]) -> float:
        """How much nearer than their minimum links are, m, as a number < 0; else 0."""
        links = self._links
        return 0.0 if links is None else links.nearest(positions) - links.minimum_m

    def _apart(self, positions: list[float], nearest: float, enough: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """(pairs,) how much further apart than ``nearest`` beyond their minimum those links are, m, looked at up to
        ``enough`` (pairs,)."""
        links = self._links
        if links is None or not len(pairs):
            return enough  # (0,)
        least = links.minimum_m + nearest
        return links.apart(positions, enough + least, pairs) - least


def _turned(one: list[float], other: list[float]) -> np.ndarray:
    """(J,) rad, each joint."""
    return np.abs(np.subtract(other, one))
