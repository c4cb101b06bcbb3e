"""What a world of an arm and things offers beyond the contract of all worlds, for replay and generated demonstrations.

A pose is (7,) float64: position in m, then the rotation as a unit quaternion w, x, y, z, in the world frame.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from robolearn_data.schema import Observation
from robolearn_data.world import World


class ManipulationWorld(World, Protocol):
    def objects(self) -> dict[str, np.ndarray]:
        """The pose of everything that the task is about, fixed places included: name -> (7,)."""
        ...

    def tool_pose(self) -> np.ndarray:
        """Of the point between the fingertips, (7,)."""
        ...

    def action_towards(self, pose: np.ndarray, gripper: float) -> np.ndarray:
        """The action (A,) that moves the tool from where it is towards ``pose`` (7,), as far as one action may.

        Args:
            gripper: the action's last component.
        """
        ...

    def target_of(self, action: np.ndarray) -> np.ndarray:
        """The tool pose (7,) that ``action`` (A,), carried out now, would draw the tool to: where it goes if the
        action is small enough, ``action_towards(target_of(action), action[-1])`` is ``action`` again."""
        ...

    def state(self) -> np.ndarray:
        """Everything that the episode's future depends on, (S,) float64; for ``restore`` of a world of this name."""
        ...

    def restore(self, state: np.ndarray) -> Observation:
        """Go back to ``state`` (S,), to the bit: the same actions lead through the same states again.

        Raises:
            WorldError: it is not a state of this world.
        """
        ...


def pose_of(position: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``position`` (3,) and a rotation ``matrix`` (3, 3) or (9,) as a pose (7,), w not negative."""
    vector = rotation_vector(np.asarray(matrix).reshape(3, 3))
    angle = math.sqrt(float(vector @ vector))
    axis = vector / angle if angle > 0 else vector
    return np.concatenate([position, [math.cos(angle / 2)], math.sin(angle / 2) * axis])


def rotation_of(pose: np.ndarray) -> np.ndarray:
    """The rotation matrix (3, 3) in a ``pose`` (7,), whose quaternion may have any length but 0."""
    w, x, y, z = pose[3:] / np.linalg.norm(pose[3:])
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def rotation(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) of a rotation vector (3,) in rad (Rodrigues)."""
    angle = math.sqrt(float(vector @ vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross)


def rotation_vector(matrix: np.ndarray) -> np.ndarray:
    """Rotation vector (3,) in rad, of length at most pi, of a rotation ``matrix`` (3, 3)."""
    double_sine = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine = float(np.linalg.norm(double_sine)) / 2
    cosine = (float(np.trace(matrix)) - 1) / 2
    angle = math.atan2(sine, cosine)
    if angle < 1e-7:
        return double_sine / 2
    if sine > 1e-4:
        return angle / (2 * sine) * double_sine
    # Near half a turn the sine says nothing: the symmetric part is (1 - cos) axis axis^T + cos I.
    outer = (matrix + matrix.T) / 2 - cosine * np.eye(3)
    column = outer[:, int(np.argmax(np.diag(outer)))]
    axis = column / np.linalg.norm(column)
    return angle * (axis if double_sine @ axis >= 0 else -axis)
