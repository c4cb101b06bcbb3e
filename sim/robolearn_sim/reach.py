"""From the tool's pose to the joints of an SO-101. Five joints cannot have every pose: the position counts most.

(The teleoperators' inverse kinematics, ``robolearn_hardware.kinematics``, goes step by step within all limits.)
"""

from __future__ import annotations

import numpy as np

from robolearn_hardware.kinematics import Kinematics
from robolearn_hardware.limits import limits_of
from robolearn_sim.manipulation import pose_of, rotation, rotation_of, rotation_vector

_RADIAN_M = 0.03
"""What a radian of orientation counts against a metre of position."""
_ITERATIONS = 12


class Reach:
    """Forward and inverse kinematics of the SO-101's tool, the point between its fingertips, in its base frame."""

    def __init__(self) -> None:
        """Raises DeviceError: MuJoCo is not installed."""
        self._arm = Kinematics("so101")
        limits = limits_of("so101")
        self._low, self._high = limits.low, limits.high

    def pose(self, joints: np.ndarray) -> np.ndarray:
        """Of the tool at ``joints`` (5,) rad: (7,)."""
        pose = self._arm.forward(joints)
        return np.concatenate([pose.position, pose.quaternion])

    def joints(self, start: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Joints (5,) near ``start`` (5,) that bring the tool nearest to ``pose`` (7,): damped least squares (Nakamura
        and Hanafusa, J. Dynamic Systems, Measurement and Control 108, 1986)."""
        joints, goal = np.clip(start, self._low, self._high), rotation_of(pose)
        weight = np.array([1, 1, 1, _RADIAN_M, _RADIAN_M, _RADIAN_M])
        for _ in range(_ITERATIONS):
            now = self.pose(joints)
            turn = rotation_vector(goal @ rotation_of(now).T)
            error = weight * np.concatenate([pose[:3] - now[:3], turn])
            if np.abs(error).max() < 1e-6:
                break
            jacobian = weight[:, None] * self._arm.jacobian(joints)
            step = _damped(jacobian, error)
            at_stop = (joints + step < self._low) | (joints + step > self._high)
            if at_stop.any():  # what a joint at its stop cannot do is left to the others
                jacobian[:, at_stop] = 0.0
                step = np.where(at_stop, step, _damped(jacobian, error))
            joints = np.clip(joints + np.clip(step, -0.3, 0.3), self._low, self._high)
        return joints


def _damped(jacobian: np.ndarray, error: np.ndarray) -> np.ndarray:
    return jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + 1e-6 * np.eye(6), error)


def between(start: np.ndarray, end: np.ndarray, *, move_m: float, turn_rad: float) -> np.ndarray:
    """The pose (7,) on the way from ``start`` to ``end`` after ``move_m`` and ``turn_rad`` at most."""
    move, turn = end[:3] - start[:3], rotation_vector(rotation_of(end) @ rotation_of(start).T)
    move = move * min(1.0, move_m / max(float(np.linalg.norm(move)), 1e-9))
    turn = turn * min(1.0, turn_rad / max(float(np.linalg.norm(turn)), 1e-9))
    return pose_of(start[:3] + move, rotation(turn) @ rotation_of(start))
