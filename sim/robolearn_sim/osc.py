"""Operational-space control of an arm in MuJoCo (Khatib, IEEE J. Robotics and Automation 3(1), 1987).

The same law, gains and timing as robosuite's controller OSC_POSE with its default settings for a Panda; written with
few and small matrix operations, because in Python the controller costs more than the physics.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco as _mujoco
import numpy as np

mujoco: Any = _mujoco  # compiled: type checkers do not see its names

STIFFNESS = 150.0  # 1/s^2, of the end effector's position and orientation
POSTURE_STIFFNESS = 10.0  # 1/s^2, of what freedom the end effector leaves to the joints
MAX_MOVE_M, MAX_TURN_RAD = 0.05, 0.5  # of one action of full size


class PoseController:
    """Draws the end effector to a goal pose with critical damping, decoupled in position and orientation.

    Shapes: J joints of the arm; vectors in the world frame.
    """

    def __init__(self, model: Any, data: Any, *, site: int, joints: np.ndarray, actuators: np.ndarray) -> None:
        """
        Args:
            model, data: mujoco.MjModel and MjData.
            site: number of the end effector's site.
            joints: (J,) position in qvel of each joint of the arm; each has one degree of freedom.
            actuators: (J,) the torque motor of each.
        """
        self._model, self._data, self._site, self._joints, self._actuators = model, data, site, joints, actuators
        self._first_qpos = model.jnt_qposadr[model.dof_jntid[joints]]
        self._limits = model.actuator_ctrlrange[actuators].T
        self._jacobian = np.zeros((6, model.nv))
        self._inertia = np.zeros((model.nv, model.nv))
        self._square = np.ix_(joints, joints)

    def reset(self, posture: np.ndarray) -> None:
        """``posture``: (J,) rad, joint positions to stay near to where the goal leaves a choice."""
        self._posture = posture
        self.set_goal(np.zeros(6))

    def set_goal(self, action: np.ndarray) -> None:
        """``action``: (6,) in [-1, 1], displacement and rotation vector from where the end effector is now, as shares
        of ``MAX_MOVE_M`` and ``MAX_TURN_RAD``."""
        self._goal_position = self._data.site_xpos[self._site] + MAX_MOVE_M * action[:3]
        turn = _rotation(MAX_TURN_RAD * action[3:6])
        self._goal_axes = turn @ self._data.site_xmat[self._site].reshape(3, 3)

    def apply(self) -> None:
        """Set the motors' torques for the present state, after mj_step1."""
        model, data = self._model, self._data
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        mujoco.mj_fullM(model, self._inertia, data.qM)
        jacobian = self._jacobian[:, self._joints]  # (6, J)
        inertia = self._inertia[self._square]  # (J, J)
        speed = data.qvel[self._joints]  # (J,)
        axes = data.site_xmat[self._site].reshape(3, 3)

        error = np.empty(6)
        error[:3] = self._goal_position - data.site_xpos[self._site]
        error[3:] = _turn_between(axes, self._goal_axes)
        wanted = STIFFNESS * error - 2 * math.sqrt(STIFFNESS) * (jacobian @ speed)  # acceleration of the end effector
        # Mobility (6, 6) of the end effector; its inverse is the mass that a force there has to move.
        mobility = jacobian @ np.linalg.solve(inertia, jacobian.T)
        force = np.concatenate(
            [np.linalg.solve(mobility[:3, :3], wanted[:3]), np.linalg.solve(mobility[3:, 3:], wanted[3:])]
        )
        # The posture's torque, without the part that would accelerate the end effector.
        bend = POSTURE_STIFFNESS * (self._posture - data.qpos[self._first_qpos])
        bend -= 2 * math.sqrt(POSTURE_STIFFNESS) * speed
        force -= np.linalg.solve(mobility, jacobian @ bend)
        torque = jacobian.T @ force + inertia @ bend + data.qfrc_bias[self._joints]
        data.ctrl[self._actuators] = np.clip(torque, self._limits[0], self._limits[1])


def _turn_between(now: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """From one rotation matrix to another (3,): the axis times the sine of the angle, as robosuite has it."""
    relative = goal @ now.T
    return 0.5 * np.array(
        [relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]]
    )


def _rotation(vector: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) of a rotation vector (Rodrigues)."""
    angle = math.sqrt(float(vector @ vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * (cross @ cross)
