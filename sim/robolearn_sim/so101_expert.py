"""Scripted expert for the SO-101 tabletop, and the parts of it that other tasks at that table are made of. Vectors are
in the arm's base frame, m and rad.

A *motion* says at every step where the tool's point (3,) shall be, its closing direction (3,) and the gripper;
``Driver`` makes joints of that.
"""

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
CLEAR_M = 0.006
FARTHEST_M = 0.248  # from the arm's axis, that the tool gets to with its fingers down
RAISED_M = 0.065  # a cube's centre above the table while it is carried

NOISE_SHAPE = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.0])
"""Of a disturbance of the joints; the gripper is left alone."""

Aim = tuple[np.ndarray, np.ndarray, float]
"""Point (3,), closing direction (3,), gripper."""


class Driver:
    """Joints told, so that the tool follows a motion: no faster than ``SPEED_M``, and less what the arm sags."""

    def __init__(self) -> None:
        self._reach = Reach()
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        self._joints: np.ndarray | None = None
        self._sag = np.zeros(3)

    def towards(self, observation: Observation, aim: Aim) -> np.ndarray:
        """The action (6,) that brings the tool's point towards the aim's, its fingers down."""
        point, closing, gripper = aim
        point = point * np.array([*[min(1.0, FARTHEST_M / math.hypot(*point[:2]))] * 2, 1.0])
        tool = observation["tool"].astype(np.float64)
        if self._joints is None:
            self._joints = observation["state"][:5].astype(np.float64)
        approach = np.array([0.0, 0.0, -1.0])
        axes = np.column_stack([np.cross(closing, approach), closing, approach])
        told = self._reach.pose(self._joints)
        if np.linalg.norm(point + self._sag - told[:3]) < 0.003:  # the arm has been told to be there and hangs lower
            self._sag = np.clip(self._sag + 0.2 * (point - tool[:3]), -0.02, 0.02)
        pose = pose_of(point + self._sag, axes)
        self._joints = self._reach.joints(self._joints, between(told, pose, move_m=SPEED_M, turn_rad=0.15))
        return np.append(self._joints, gripper)


class PickAndPlace:
    """A motion: reaches over a cube, descends, grasps, carries it to its goal and lets go; begins again when the cube
    slips away."""

    def __init__(self, hover: np.ndarray, *, near_m: float = 0.012, let_go: bool = True) -> None:
        """
        Args:
            hover: (3,) from where a cube is grasped to where the tool comes from.
            near_m: sideways distance from the goal at which the cube may be lowered.
            let_go: otherwise it is held at the goal, ``RAISED_M`` above the table.
        """
        self._hover, self._near_m, self._let_go = hover, near_m, let_go
        self._begin(self._over)

    def aim(self, tool: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> Aim:
        """``tool``: (9,) as in the world's stream; ``cube``: (5,) x, y, z, cos and sin of 4 yaw; ``goal``: (3,) where
        its centre is let go."""
        self._steps += 1
        return self._phase(tool, cube, goal)

    def _begin(self, phase: Callable[[np.ndarray, np.ndarray, np.ndarray], Aim]) -> None:
        self._phase, self._steps = phase, 0

    def _over(self, tool: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> Aim:
        closing = square_to(cube)
        point = cube[:3] - BESIDE_M * closing + self._hover
        if np.linalg.norm(point - tool[:3]) < 0.015 and tool[6:9] @ closing > 0.95:
            self._begin(self._down)
        return point, closing, OPEN

    def _down(self, tool: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> Aim:
        closing = square_to(cube)
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

    def _grasp(self, tool: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> Aim:
        if self._steps >= 14:
            self._begin(self._carry)
        return self._here, self._across, CLOSED

    def _carry(self, tool: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> Aim:
        point = goal - (cube[:3] - tool[:3])
        left = point - tool[:3]
        if np.linalg.norm(cube[:3] - tool[:3]) > 0.035:
            self._begin(self._over)
            return self._phase(tool, cube, goal)
        if np.hypot(*left[:2]) < self._near_m and self._let_go:
            self._begin(self._lower)
        point[2] += RAISED_M - goal[2]
        if cube[2] < RAISED_M - 0.02:
            point[:2] = tool[:2]  # up first
        return point, outward(tool), CLOSED

    def _lower(self, tool: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> Aim:
        point = goal - (cube[:3] - tool[:3])
        left = point - tool[:3]
        if (left[2] > -0.006 and np.hypot(*left[:2]) < self._near_m) or self._steps > 30:
            self._begin(self._release)
            self._here, self._across = tool[:3], outward(tool)
        if np.hypot(*left[:2]) > 1.5 * self._near_m:
            point[2] = max(point[2], tool[2])  # down only over the goal
        return point, outward(tool), CLOSED

    def _release(self, tool: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> Aim:
        if self._steps >= 12:
            self._begin(self._away)
        # Off the cube before going up: the fixed finger, which touches it, would push it at every tremor.
        return self._here - CLEAR_M * self._across * (self._steps > 4), self._across, OPEN

    def _away(self, tool: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> Aim:
        if self._steps >= 25:
            self._begin(self._over)
        return np.array([*tool[:2], 0.1]), outward(tool), OPEN


class So101Expert:
    """Puts one cube in one place."""

    noise_shape = NOISE_SHAPE

    def __init__(self, task: str = "put the red cube on the plate") -> None:
        """``task``: one of ``TASKS``."""
        self._cube, self._place = TASKS[task]
        self._driver = Driver()

    def reset(self, rng: np.random.Generator) -> None:
        self._driver.begin()
        self._motion = PickAndPlace(hover_of(rng))

    def act(self, observation: Observation) -> np.ndarray:
        tool, cube = observation["tool"].astype(np.float64), cube_of(observation, self._cube)
        return self._driver.towards(observation, self._motion.aim(tool, cube, PLACE[self._place]))


def hover_of(rng: np.random.Generator) -> np.ndarray:
    """(3,) from a cube to where the tool comes from, another one in each demonstration."""
    return np.array([*rng.normal(0, 0.005, 2), 0.05 + abs(rng.normal(0, 0.005))])


def cube_of(observation: Observation, cube: str) -> np.ndarray:
    """(5,): x, y, z, cos and sin of 4 yaw."""
    first = 5 * CUBES.index(cube)
    return observation["things"][first : first + 5].astype(np.float64)


def outward(tool: np.ndarray) -> np.ndarray:
    """The closing direction that leaves the wrist unrolled: outward from the arm's base."""
    out = np.array([tool[0], tool[1], 0.0])
    return out / np.linalg.norm(out)


def square_to(cube: np.ndarray) -> np.ndarray:
    """The closing direction square to two faces of the ``cube``, the one nearest to outward."""
    away = math.atan2(cube[1], cube[0])
    yaw = math.atan2(cube[4], cube[3]) / 4
    quarter = math.pi / 2
    yaw += quarter * round((away - yaw) / quarter)
    return np.array([math.cos(yaw), math.sin(yaw), 0.0])
