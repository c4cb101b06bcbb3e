"""Scripted expert for the SO-101 table with instructions: reads what is said and begins anew when that changes.

Vectors are in the arm's base frame, m and rad.
"""

from __future__ import annotations

import numpy as np

from robolearn_data.schema import Observation, read_text
from robolearn_sim.instructions import Goal, goal_of
from robolearn_sim.so101_expert import (
    CLOSED,
    NOISE_SHAPE,
    OPEN,
    PLACE,
    RAISED_M,
    Aim,
    Driver,
    PickAndPlace,
    cube_of,
    hover_of,
    outward,
)
from robolearn_sim.so101_language import BEHIND_M, OVER_M, PLACES_AT
from robolearn_sim.so101_tabletop import CUBES, HALF_CUBE_M

TRAVEL_M = 0.07
"""Of the tool above the table, where it passes over cubes."""
PUSH_HEIGHT_M = 0.016
PUSH_SPEED_M = 0.01  # in a control step


class So101LanguageExpert:
    noise_shape = NOISE_SHAPE

    def __init__(self) -> None:
        self._driver = Driver()

    def reset(self, rng: np.random.Generator) -> None:
        self._driver.begin()
        self._rng = rng
        self._said: str | None = None

    def act(self, observation: Observation) -> np.ndarray:
        tool = observation["tool"].astype(np.float64)
        said = read_text(observation["instruction"])
        if said != self._said:
            self._letting_go = 0 if self._said is None else 12
            self._said, self._goal = said, goal_of(said)
            self._begin(self._goal)
        if self._letting_go:
            self._letting_go -= 1
            here = np.array([*tool[:2], min(tool[2] + 0.02 * (self._letting_go < 6), 0.08)])
            return self._driver.towards(observation, (here, outward(tool), OPEN))
        return self._driver.towards(observation, self._aim(observation, tool))

    def _begin(self, goal: Goal) -> None:
        self._push = Push()
        self._stood = np.zeros(2)
        """Where the cube that is to be lifted stood."""
        stacks = goal.target in CUBES
        self._pick = PickAndPlace(hover_of(self._rng), near_m=0.004 if stacks else 0.012, let_go=goal.verb == "put")
        self._beside = np.array([*self._rng.normal(0, 0.004, 2), 0.0])

    def _aim(self, observation: Observation, tool: np.ndarray) -> Aim:
        verb, name, target = self._goal
        cube = cube_of(observation, name)
        if verb == "reach":
            point = cube[:3] + self._beside + np.array([0, 0, OVER_M])
            return point, outward(point), OPEN
        if verb == "lift":
            if cube[2] < HALF_CUBE_M + 0.003:
                self._stood = cube[:2]
            return self._pick.aim(tool, cube, np.array([*self._stood, RAISED_M]))
        there = cube_of(observation, target)[:3] if target in CUBES else PLACES_AT[target]
        if verb == "push":
            return self._push.aim(tool, cube, there)
        goal = there + np.array([0, 0, 2 * HALF_CUBE_M - 0.002]) if target in CUBES else PLACE[target]
        return self._pick.aim(tool, cube, goal)


class Push:
    """A motion: goes round behind the cube, descends, and pushes it towards its target with the closed fingers' flat
    side; begins again when the cube slides off sideways."""

    def __init__(self) -> None:
        self._pushes = False
        self._side = 0
        """1 or -1: the closing direction is that of the push, or the opposite one."""

    def aim(self, tool: np.ndarray, cube: np.ndarray, target: np.ndarray) -> Aim:
        """``tool`` (9,), ``cube`` (5,) as in the world's streams; ``target`` (3,)."""
        way = (target - cube[:3])[:2]
        ahead = way / np.linalg.norm(way)
        closing = np.array([*ahead, 0.0])
        self._side = self._side or (1 if closing @ outward(cube) > 0 else -1)  # what turns the wrist less
        closing *= self._side
        offset = (tool[:3] - cube[:3])[:2]
        along = float(offset @ ahead)
        aside = offset - along * ahead
        if self._pushes and (np.hypot(*aside) > 0.014 or along > 0):
            self._pushes, self._side = False, 0
        if self._pushes:  # back onto the line through cube and target, and on
            onward = tool[:2] + PUSH_SPEED_M * ahead - 0.6 * aside
            return np.array([*onward, PUSH_HEIGHT_M]), closing, CLOSED
        if tool[6:9] @ closing < 0:
            closing = outward(tool)  # first: the shortest way may be beyond the wrist's stop
        behind = cube[:2] - BEHIND_M * ahead
        away = float(np.hypot(*(tool[:2] - behind)))
        if away > 0.02 and tool[2] < TRAVEL_M - 0.02:
            return np.array([*tool[:2], TRAVEL_M]), closing, CLOSED  # up first
        turned = tool[6:9] @ closing > 0.9
        self._pushes = away < 0.012 and tool[2] < PUSH_HEIGHT_M + 0.008 and turned
        height = PUSH_HEIGHT_M if (away < 0.012 and turned) or tool[2] < 0.035 else TRAVEL_M
        return np.array([*behind, height]), closing, CLOSED
