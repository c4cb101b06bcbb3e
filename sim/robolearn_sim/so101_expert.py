"""Scripted expert for the SO-101 tabletop. Vectors are in the arm's base frame, m and rad."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from robolearn_data.schema import Observation
from robolearn_sim.manipulation import pose_of
from robolearn_sim.reach import Reach, between
from robolearn_sim.so101_tabletop import CUBES, TASKS

OPEN, CLOSED = 0.6, 0.0
BESIDE_M = 0.015
"""From the tool's point to the middle of a cube that is about to be grasped: the fixed finger is nearer to that point
than half a cube."""
PLACE = {"plate": np.array([0.126, -0.182, 0.022]), "bin": np.array([0.126, 0.182, 0.03])}
"""Where a cube's centre is let go."""
SPEED_M = 0.012  # in a control step
RAISED_M = 0.065  # a cube's centre above the table while it is carried


class So101Expert:
    """Reaches over the cube, descends, grasps, carries and lets go; begins again when the cube slips away."""

    noise_shape = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.0])

    def __init__(self, task: str = "put the red cube on the plate") -> None:
        """``task``: one of ``TASKS``."""
        self._cube, self._place = TASKS[task]
        self._reach = Reach()

    def reset(self, rng: np.random.Generator) -> None:
        self._hover = np.array([*rng.normal(0, 0.005, 2), 0.05 + abs(rng.normal(0, 0.005))])
        self._joints: np.ndarray | None = None
        self._sag = np.zeros(3)
        self._begin(self._over)

    def act(self, observation: Observation) -> np.ndarray:
        tool = observation["tool"].astype(np.float64)
        first = 5 * CUBES.index(self._cube)
        cube = observation["things"][first : first + 5].astype(np.float64)
        if self._joints is None:
            self._joints = observation["state"][:5].astype(np.float64)
        self._steps += 1
        point, closing, gripper = self._phase(tool, cube)
        return self._towards(tool, point, closing, gripper)

    def _begin(self, phase: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, float]]) -> None:
        self._phase, self._steps = phase, 0

    def _towards(self, tool: np.ndarray, point: np.ndarray, closing: np.ndarray, gripper: float) -> np.ndarray:
        """Joints told, so that the tool's ``point`` (3,) comes to be there, its fingers down."""
        assert self._joints is not None
        approach = np.array([0.0, 0.0, -1.0])
        axes = np.column_stack([np.cross(closing, approach), closing, approach])
        told = self._reach.pose(self._joints)
        if np.linalg.norm(point + self._sag - told[:3]) < 0.003:  # the arm has been told to be there and hangs lower
            self._sag = np.clip(self._sag + 0.2 * (point - tool[:3]), -0.02, 0.02)
        aim = pose_of(point + self._sag, axes)
        self._joints = self._reach.joints(self._joints, between(told, aim, move_m=SPEED_M, turn_rad=0.15))
        return np.append(self._joints, gripper)

    def _over(self, tool: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        closing = _closing(cube)
        point = cube[:3] - BESIDE_M * closing + self._hover
        if np.linalg.norm(point - tool[:3]) < 0.015 and tool[6:9] @ closing > 0.95:
            self._begin(self._down)
        return point, closing, OPEN

    def _down(self, tool: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        closing = _closing(cube)
        point = cube[:3] - BESIDE_M * closing
        left = point - tool[:3]
        if np.linalg.norm(left) < 0.006:
            self._begin(self._grasp)
            self._here, self._across = point, closing
        if self._steps > 40:
            self._begin(self._over)
        if np.hypot(*left[:2]) > 0.008:
            point[2] = max(point[2], tool[2])  # down only where the fingers pass on both sides
        return point, closing, OPEN

    def _grasp(self, tool: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        if self._steps >= 14:
            self._begin(self._carry)
        return self._here, self._across, CLOSED

    def _carry(self, tool: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        goal = PLACE[self._place] - (cube[:3] - tool[:3])
        left = goal - tool[:3]
        if np.linalg.norm(cube[:3] - tool[:3]) > 0.035:
            self._begin(self._over)
            return self._phase(tool, cube)
        if np.hypot(*left[:2]) < 0.012:
            self._begin(self._lower)
        goal[2] += RAISED_M - PLACE[self._place][2]
        if cube[2] < RAISED_M - 0.02:
            goal[:2] = tool[:2]  # up first
        return goal, _radial(tool), CLOSED

    def _lower(self, tool: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        goal = PLACE[self._place] - (cube[:3] - tool[:3])
        if goal[2] - tool[2] > -0.006 or self._steps > 30:
            self._begin(self._release)
            self._here, self._across = tool[:3], _radial(tool)
        return goal, _radial(tool), CLOSED

    def _release(self, tool: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        if self._steps >= 12:
            self._begin(self._away)
        return self._here, self._across, OPEN

    def _away(self, tool: np.ndarray, cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        if self._steps >= 25:
            self._begin(self._over)
        return np.array([*tool[:2], 0.1]), _radial(tool), OPEN


def _radial(tool: np.ndarray) -> np.ndarray:
    """The closing direction that leaves the wrist unrolled: outward from the arm's base."""
    out = np.array([tool[0], tool[1], 0.0])
    return out / np.linalg.norm(out)


def _closing(cube: np.ndarray) -> np.ndarray:
    """Square to two faces of the ``cube`` (x, y, z, cos 4 yaw, sin 4 yaw), the one nearest to outward."""
    outward = math.atan2(cube[1], cube[0])
    yaw = math.atan2(cube[4], cube[3]) / 4
    quarter = math.pi / 2
    yaw += quarter * round((outward - yaw) / quarter)
    return np.array([math.cos(yaw), math.sin(yaw), 0.0])
