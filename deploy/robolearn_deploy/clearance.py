"""Whether an arm's motion stays within its workspace and its links apart, looked at where it matters.

A joint that turns by 1 rad moves no point of the arm further than the arm is long. So what is clear at two instants of
a motion is clear in between, if the arm is long enough away from everything for what it moves in between; if not, the
instant in the middle is looked at too, down to ``APART_RAD``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from math import isfinite

import numpy as np

from robolearn_deploy.selfdistance import SelfDistance
from robolearn_hardware.kinematics import Kinematics, Workspace

APART_RAD = 0.05
"""Motion of all joints together that is not looked into: a chord of it leaves an arc of radius 1 m by 0.3 mm."""
_EPSILON_M = 1e-6
_LOOK_M = 0.1  # no pair of links is looked at that is further apart

Path = Callable[[float], list[float]]
"""Joint positions, rad, some seconds on."""


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
        self._reach = float(np.linalg.norm(made.body_pos, axis=1).sum() + np.linalg.norm(made.site("tool").pos))
        box = workspace or Workspace()
        self._floor = box.floor
        self._low, self._high = (*box.low[:2], max(box.low[2], box.floor)), box.high
        self._bodies = kinematics.bodies if isfinite(box.floor) else []
        # The furthest out on each side, and the nearest that links may be: what they were at best since the
        # beginning, so that what rounding allows does not add up; or what they are now, if that is worse.
        self._best_out: list[float] = []
        self._best_near = 0.0
        self._out: list[float] = []
        self._near = 0.0

    def begin(self, positions: list[float]) -> None:
        """The arm is at ``positions`` (J,) rad."""
        self._best_out = [max(-room, 0.0) for room in self._rooms(positions)]
        self._best_near = self._apart(positions, 0.0)
        self._out, self._near = self._best_out, self._best_near

    def moved(self, positions: list[float]) -> None:
        """It is sent to ``positions``."""
        self._out = [max(-room, 0.0) for room in self._rooms(positions)]
        self._near = self._apart(positions, 0.0)
        self._best_out = [min(best, out) for best, out in zip(self._best_out, self._out, strict=True)]
        self._best_near = max(self._best_near, self._near)

    def blocked(self, path: Path, duration_s: float) -> str:
        """What is in the way of a motion: "workspace", "links" or nothing."""
        start, end = path(0.0), path(duration_s)
        look = min(self._reach * _way(start, end), _LOOK_M)
        limits = [max(best + _EPSILON_M, out) for best, out in zip(self._best_out, self._out, strict=True)]
        nearest = min(self._best_near - _EPSILON_M, self._near)

        def margin(positions: list[float]) -> tuple[float, str]:
            """How far any point of it may move from there, m; below 0: it must not even be there."""
            room = min(room + limit for room, limit in zip(self._rooms(positions), limits, strict=True))
            if self._links is None or room < 0:
                return room, "workspace"
            apart = self._apart(positions, look) - nearest
            return (room, "workspace") if room < apart else (apart, "links")

        (at_start, what), (at_end, what_then) = margin(start), margin(end)
        if at_start < 0 or at_end < 0:
            return what if at_start < 0 else what_then
        pieces = [(0.0, start, at_start, duration_s, end, at_end)]
        while pieces:
            t0, q0, m0, t1, q1, m1 = pieces.pop()
            way = _way(q0, q1)
            if way <= APART_RAD or m0 + m1 >= self._reach * way:
                continue
            t = (t0 + t1) / 2
            q = path(t)
            m, what = margin(q)
            if m < 0:
                return what
            pieces += [(t0, q0, m0, t, q, m), (t, q, m, t1, q1, m1)]
        return ""

    def _rooms(self, positions: list[float]) -> list[float]:
        """From the tool centre to each side, and from the joints from the third on to the floor, m; < 0: outside."""
        data = self._kinematics.mj_data
        data.qpos[:] = positions
        self._mujoco.mj_kinematics(self._kinematics.mj_model, data)
        x, y, z = data.site_xpos[self._site].tolist()
        heights = data.xpos[self._bodies, 2].tolist() if self._bodies else ()
        (lx, ly, lz), (hx, hy, hz) = self._low, self._high
        return [x - lx, y - ly, z - lz, hx - x, hy - y, hz - z, *(h - self._floor for h in heights)]

    def _apart(self, positions: list[float], look_m: float) -> float:
        """How much further apart than their minimum links are, m, up to ``look_m``; < 0: nearer."""
        links = self._links
        return 0.0 if links is None else links.nearest(positions, up_to_m=links.minimum_m + look_m) - links.minimum_m


def _way(one: list[float], other: list[float]) -> float:
    """What all joints turn together."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))
