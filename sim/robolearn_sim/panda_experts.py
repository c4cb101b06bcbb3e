"""Scripted experts for the worlds of robosuite with a Panda arm. Vectors are in the world frame, m and rad."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robolearn_data.schema import Observation
from robolearn_sim.manipulation import rotation_vector
from robolearn_sim.panda import MAX_MOVE_M, MAX_TURN_RAD

NOISE_SHAPE = np.array([1, 1, 1, 0.3, 0.3, 0.3, 0])
"""Of a disturbance: as large along all axes, turns less, the gripper not at all."""
START_YAW = math.pi / 2  # of the gripper, and the middle of what the wrist can turn
LEVER_M = 0.125  # from the axis of the door's handle to where it is held


class LiftExpert:
    """Hovers over the cube, aligns, descends, grasps and lifts; begins again when the cube slips away."""

    noise_shape = NOISE_SHAPE

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


@dataclass(frozen=True)
class Sight:
    """What a thing to be picked and placed looks like now."""

    to_grasp: np.ndarray
    """(3,) from the fingertips to where they shall close."""
    grasp_turn: float
    """About the vertical, for the fingers to fit."""
    to_place: np.ndarray
    """(3,) from where the thing is to where it shall be let go."""
    place_turn: float
    clearance: float
    """How far above that place it is carried."""


class PickAndPlace:
    """Reaches over a thing, descends, grasps, carries it over its place, lowers it and lets go; begins again when it
    slips away or lies elsewhere."""

    noise_shape = NOISE_SHAPE

    def __init__(self, look: Callable[[np.ndarray], Sight]) -> None:
        """``look``: what the world's state (D,) shows."""
        self._look = look

    def reset(self, rng: np.random.Generator) -> None:
        sideways, up = rng.normal(0, 0.01, 2), abs(rng.normal(0, 0.01))
        self._hover = np.array([*sideways, 0.10 + up])
        self._higher = abs(rng.normal(0, 0.02))
        self._begin(self._reach)

    def act(self, observation: Observation) -> np.ndarray:
        state = observation["state"].astype(np.float64)
        self._steps += 1
        return self._phase(state, self._look(state))

    def _begin(self, phase: Callable[[np.ndarray, Sight], np.ndarray]) -> None:
        self._phase, self._steps = phase, 0

    def _reach(self, state: np.ndarray, sight: Sight) -> np.ndarray:
        move = sight.to_grasp + self._hover
        if np.linalg.norm(move) < 0.02 and abs(sight.grasp_turn) < 0.1:
            self._begin(self._descend)
        if np.hypot(*move[:2]) > 0.05 and move[2] > 0.03:
            move[:2] *= 0.1  # up first
        return _action(move, _level(state, sight.grasp_turn), close=False)

    def _descend(self, state: np.ndarray, sight: Sight) -> np.ndarray:
        move = sight.to_grasp.copy()
        if np.linalg.norm(move) < 0.01:
            self._begin(self._grasp)
        if self._steps > 40:
            self._begin(self._reach)
        if np.hypot(*move[:2]) > 0.012 or abs(sight.grasp_turn) > 0.15:
            move[2] = max(move[2], 0.0)  # down only where the fingers pass on both sides
        return _action(move, _level(state, sight.grasp_turn), close=False)

    def _grasp(self, state: np.ndarray, sight: Sight) -> np.ndarray:
        if self._steps >= 8:
            self._begin(self._carry)
        return _action(sight.to_grasp, _level(state, 0.0), close=True)

    def _carry(self, state: np.ndarray, sight: Sight) -> np.ndarray:
        if self._lost(sight):
            return self._reach(state, sight)
        move = sight.to_place + np.array([0, 0, sight.clearance + self._higher])
        if np.hypot(*move[:2]) < 0.008 and abs(move[2]) < 0.03 and abs(sight.place_turn) < 0.06:
            self._begin(self._place)
        if move[2] > 0.03:
            move[:2] *= 0.1  # up first
        return _action(move, _level(state, sight.place_turn), close=True)

    def _place(self, state: np.ndarray, sight: Sight) -> np.ndarray:
        if self._lost(sight):
            return self._reach(state, sight)
        move = sight.to_place.copy()
        if move[2] > -0.006 or self._steps > 40:
            self._begin(self._release)
        if np.hypot(*move[:2]) > 0.012:
            move[2] = max(move[2], 0.0)
        return _action(move, _level(state, sight.place_turn), close=True)

    def _release(self, state: np.ndarray, sight: Sight) -> np.ndarray:
        if self._steps >= 8:
            self._begin(self._retreat)
        return _action(np.zeros(3), _level(state, 0.0), close=False)

    def _retreat(self, state: np.ndarray, sight: Sight) -> np.ndarray:
        if self._steps > 20:
            self._begin(self._reach)
        return _action(np.array([0, 0, 0.05]), _level(state, 0.0), close=False)

    def _lost(self, sight: Sight) -> bool:
        if np.linalg.norm(sight.to_grasp) < 0.035:
            return False
        self._begin(self._reach)
        return True


def see_can(state: np.ndarray) -> Sight:
    """``state``: of the world "can"; grasped at its middle, let go just above the floor of its compartment."""
    turn = _wrapped(START_YAW - _yaw(state))
    # Near the robot's side of the compartment: its middle is at the end of the arm's reach.
    return Sight(state[10:13], turn, [-0.05, -0.06, 0.068] - state[13:16], turn, 0.14)


def see_square(state: np.ndarray) -> Sight:
    """``state``: of the world "square"; grasped by the handle, let go when the peg is through it."""
    handle = state[16:19]
    # Across the handle, either way round: the one that needs less turning, unless the wrist cannot.
    turned = _wrapped(_yaw(state) - START_YAW)
    handle_yaw = math.atan2(handle[1], handle[0])
    across = _wrapped(handle_yaw + math.pi / 2 - _yaw(state), math.pi)
    if abs(turned + across) > 1.8:
        across -= math.copysign(math.pi, turned)
    # A square nut fits four ways: not with the handle away from the robot, where the arm ends; without turning the
    # wrist to its stop; and else the nearest.
    ways = [_wrapped(-handle_yaw, math.pi / 2) + k * math.pi / 2 for k in (-2, -1, 0, 1, 2)]
    fit = min(ways, key=lambda turn: abs(turned + turn) + abs(turn) + 3 * (math.cos(handle_yaw + turn) > 0.7))
    return Sight(state[10:13] + 0.06 * handle, across, [0, 0, 0.03] - state[13:16], fit, 0.12)


def see_stack(state: np.ndarray) -> Sight:
    """``state``: of the world "stack"; square to the red cube's sides, and to the green one's when it is let go."""
    grasp = math.atan2(state[14], state[13]) / 4
    place = math.atan2(state[20], state[19]) / 4
    return Sight(state[10:13], grasp, [0, 0, 0.046] - state[16:19], place, 0.06)


class DoorExpert:
    """Grasps the handle near its free end from in front of the door, turns it down about its axis, and pulls."""

    noise_shape = NOISE_SHAPE

    def reset(self, rng: np.random.Generator) -> None:
        self._before = 0.10 + abs(rng.normal(0, 0.01))
        self._sideways = rng.normal(0, 0.01, 2)
        self._begin(self._reach)

    def act(self, observation: Observation) -> np.ndarray:
        state = observation["state"].astype(np.float64)
        self._steps += 1
        lever, out = state[13:16], state[16:19]
        down = np.cross(lever, out)
        down *= -np.sign(down[2])
        return self._phase(state, lever, out, down)

    def _begin(self, phase: Callable[..., np.ndarray]) -> None:
        self._phase, self._steps = phase, 0

    def _reach(self, state: np.ndarray, lever: np.ndarray, out: np.ndarray, down: np.ndarray) -> np.ndarray:
        sideways, up = self._sideways
        move = state[10:13] + self._before * out + sideways * lever + up * down
        turn = _turn_to(state, -out, down)
        if np.linalg.norm(move) < 0.02 and np.linalg.norm(turn) < 0.15:
            self._begin(self._advance)
        return _action(move, turn, close=False)

    def _advance(self, state: np.ndarray, lever: np.ndarray, out: np.ndarray, down: np.ndarray) -> np.ndarray:
        move = state[10:13].copy()
        ahead = (move @ out) * out
        if np.linalg.norm(move) < 0.012:
            self._begin(self._grasp)
        if self._steps > 40:
            self._begin(self._reach)
        if np.linalg.norm(move - ahead) > 0.015:
            move -= ahead  # forward only where the fingers pass above and below
        return _action(move, _turn_to(state, -out, down), close=False)

    def _grasp(self, state: np.ndarray, lever: np.ndarray, out: np.ndarray, down: np.ndarray) -> np.ndarray:
        if self._steps >= 8:
            self._begin(self._open)
        return _action(state[10:13], _turn_to(state, -out, down), close=True)

    def _open(self, state: np.ndarray, lever: np.ndarray, out: np.ndarray, down: np.ndarray) -> np.ndarray:
        move, hinge, latch = state[10:13].copy(), state[19], state[20]
        if np.linalg.norm(move) > 0.05:
            self._begin(self._reach)
            return self._phase(state, lever, out, down)
        if abs(latch) < 1.0 and hinge < 0.05:
            move += LEVER_M * (math.cos(0.4) * lever + math.sin(0.4) * down - lever)
        else:
            move += (0.05 - move @ out) * out
        return _action(move, _turn_to(state, -out, state[6:9]), close=True)


def _yaw(state: np.ndarray) -> float:
    """Of the closing direction."""
    return math.atan2(state[7], state[6])


def _turn_to(state: np.ndarray, approach: np.ndarray, closing: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) that points the gripper along ``approach`` and its fingers along ``closing``."""
    closing = closing - (closing @ approach) * approach
    closing /= np.linalg.norm(closing)
    now = np.column_stack([state[6:9], np.cross(state[3:6], state[6:9]), state[3:6]])
    goal = np.column_stack([closing, np.cross(approach, closing), approach])
    return rotation_vector(goal @ now.T)


def _level(state: np.ndarray, turn: float) -> np.ndarray:
    """Rotation vector (3,) that points the gripper down and turns it by ``turn`` about the vertical."""
    tilt_x, tilt_y = state[3:5]
    return np.array([-tilt_y, tilt_x, turn])


def _wrapped(angle: float, period: float = 2 * math.pi) -> float:
    """``angle`` plus a multiple of ``period``, the one nearest to 0."""
    return angle - period * round(angle / period)


def _turn(state: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) that points the gripper down and squares it with the nearest faces of Lift's cube."""
    return _level(state, math.atan2(state[11], state[10]) / 4)


def _action(move_m: np.ndarray, turn_rad: np.ndarray, *, close: bool) -> np.ndarray:
    """As much of the displacement and rotation as fits into one action, (7,)."""
    move = np.clip(move_m / MAX_MOVE_M, -1.0, 1.0)
    turn = np.clip(turn_rad / MAX_TURN_RAD, -0.8, 0.8)
    return np.array([*move, *turn, 1.0 if close else -1.0])
