"""Scripted experts: programs that solve a world from its observations, for demonstrations without a person.

To add one: a class that fulfils ``Expert`` and an entry in ``EXPERTS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from robolearn_data.schema import Observation
from robolearn_sim.worlds import WorldError


class Expert(Protocol):
    noise_shape: np.ndarray
    """How disturbances of the action are spread over its components, relative to each other, (A,)."""

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; whatever varies between demonstrations is drawn from ``rng``."""
        ...

    def act(self, observation: Observation) -> np.ndarray:
        """What to do now, (A,) in the units of the world's action."""
        ...


class LiftExpert:
    """Hovers over the cube, aligns, descends, grasps and lifts; begins again when the cube slips away."""

    noise_shape = np.array([1, 1, 1, 0.3, 0.3, 0.3, 0])

    def reset(self, rng: np.random.Generator) -> None:
        sideways, up = rng.normal(0, 0.01, 2), abs(rng.normal(0, 0.01))
        self._hover = np.array([*sideways, 0.10 + up])
        self._act = self._reach
        self._closed_steps = 0

    def act(self, observation: Observation) -> np.ndarray:
        state = observation["state"].astype(np.float64)
        return self._act(state)

    def _reach(self, state: np.ndarray) -> np.ndarray:
        move = state[7:10] + self._hover
        if np.linalg.norm(move) < 0.02 and abs(_turn(state)[2]) < 0.15:
            self._act = self._descend
        return _action(move, _turn(state), close=False)

    def _descend(self, state: np.ndarray) -> np.ndarray:
        move = state[7:10].copy()
        if np.linalg.norm(move) < 0.012:
            self._act, self._closed_steps = self._grasp, 0
        if np.hypot(*move[:2]) > 0.015:
            move[2] = max(move[2], 0.0)  # down only where the fingers pass on both sides
        return _action(move, _turn(state), close=False)

    def _grasp(self, state: np.ndarray) -> np.ndarray:
        self._closed_steps += 1
        if self._closed_steps >= 7:
            self._act = self._lift
        return _action(state[7:10], np.zeros(3), close=True)

    def _lift(self, state: np.ndarray) -> np.ndarray:
        if np.linalg.norm(state[7:10]) > 0.03:
            self._act = self._reach
        return _action(np.array([0.0, 0.0, 0.12 - state[12]]), np.zeros(3), close=True)


def _turn(state: np.ndarray) -> np.ndarray:
    """Rotation vector (3,), rad, that points the gripper down and squares it with the nearest faces of the cube."""
    tilt_x, tilt_y = state[3:5]
    return np.array([-tilt_y, tilt_x, math.atan2(state[11], state[10]) / 4])


def _action(move_m: np.ndarray, turn_rad: np.ndarray, *, close: bool) -> np.ndarray:
    """As much of the displacement and rotation as fits into one action of Lift, (7,)."""
    move = np.clip(move_m / 0.05, -1.0, 1.0)
    turn = np.clip(turn_rad / 0.5, -0.8, 0.8)
    return np.array([*move, *turn, 1.0 if close else -1.0])


EXPERTS: dict[str, Callable[[], Expert]] = {"lift": LiftExpert}
"""World name -> its expert."""


def make_expert(world_name: str) -> Expert:
    """
    Raises:
        WorldError: nobody has written an expert for this world.
    """
    if world_name not in EXPERTS:
        raise WorldError(f"there is no scripted expert for the world {world_name!r}; valid: {', '.join(EXPERTS)}")
    return EXPERTS[world_name]()
