"""Operational-space control of an arm in MuJoCo (Khatib, IEEE J. Robotics and Automation 3(1), 1987).

The same law, gains and timing as robosuite's controller OSC_POSE with its default settings for a Panda; written with
few and small matrix operations, because in Python the controller costs more than the physics.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco as _mujoco
import numpy as np

from robolearn_sim.manipulation import rotation

mujoco: Any = _mujoco  # compiled: type checkers do not see its names

STIFFNESS = 150.0  # 1/s^2, of the end effector's position and orientation
POSTURE_STIFFNESS = 10.0  # 1/s^2, of what freedom the end effector leaves to the joints


class PoseController:
    """Draws the end effector to a goal pose with critical damping, decoupled in position and orientation.

    The law's gains depend on the arm's posture, and the torques on the gains and the state. ``update`` computes gains,
    linear in the joints about the present posture; ``apply`` computes torques, at a tenth of the cost.

    Shapes: J joints of the arm; vectors in the world frame.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        site: int,
        joints: np.ndarray,
        actuators: np.ndarray,
        stiffness: float = STIFFNESS,
    ) -> None:
        """
        Args:
            model, data: mujoco.MjModel and MjData.
            site: number of the end effector's site.
            joints: (J,) position in qvel of each joint of the arm; each has one degree of freedom. In a row.
            actuators: (J,) the torque motor of each. In a row.
            stiffness: 1/s^2, of the end effector's position and orientation.
        """
        self._end_stiffness = stiffness
        self._model, self._data, self._site, self._joints = model, data, site, joints
        self._limits = model.actuator_ctrlrange[actuators].T
        first, count = int(model.jnt_qposadr[model.dof_jntid[joints[0]]]), len(joints)
        # Views of MuJoCo's own arrays.
        self._positions = data.qpos[first : first + count]
        self._speeds, self._bias = (a[joints[0] : joints[0] + count] for a in (data.qvel, data.qfrc_bias))
        self._torques = data.ctrl[actuators[0] : actuators[0] + count]
        self._jacobian = np.zeros((6, model.nv))
        self._inertia = np.zeros((model.nv, model.nv))
        self._square = np.ix_(joints, joints)

    def reset(self, posture: np.ndarray) -> None:
        """``posture``: (J,) rad, joint positions to stay near to where the goal leaves a choice."""
        self.posture = posture
        self.set_goal(np.zeros(3), np.zeros(3))

    def set_goal(self, move: np.ndarray, turn: np.ndarray) -> None:
        """``move`` (3,) m and ``turn`` (3,), a rotation vector in rad: from where the end effector is now."""
        self._goal_position = self._data.site_xpos[self._site] + move
        self._goal_axes = rotation(turn) @ self._data.site_xmat[self._site].reshape(3, 3)

    def update(self) -> None:
        """Compute the gains for the present posture and goal, after mj_step1."""
        model, data = self._model, self._data
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        mujoco.mj_fullM(model, self._inertia, data.qM)
        jacobian = self._jacobian[:, self._joints]  # (6, J)
        inertia = self._inertia[self._square]  # (J, J)
        axes = data.site_xmat[self._site].reshape(3, 3)
        to_goal = self._goal_position - data.site_xpos[self._site], _turn_between(axes, self._goal_axes)

        # Mobility (6, 6) of the end effector; its inverse is the mass that a force there has to move.
        mobility = jacobian @ np.linalg.solve(inertia, jacobian.T)
        # Torques (J, 6) that accelerate the end effector, without regard to the coupling of position and orientation.
        accelerate = np.empty((6, len(inertia)))
        accelerate[:3] = np.linalg.solve(mobility[:3, :3], jacobian[:3])
        accelerate[3:] = np.linalg.solve(mobility[3:, 3:], jacobian[3:])
        task = accelerate.T @ jacobian  # (J, J)
        # The posture's torque, without the part that would accelerate the end effector.
        free = inertia - jacobian.T @ np.linalg.solve(mobility, jacobian)

        self._centre = self._positions.copy()
        self._constant = self._end_stiffness * (accelerate.T @ np.concatenate(to_goal))
        self._constant += POSTURE_STIFFNESS * (free @ (self.posture - self._centre))
        self._stiffness = self._end_stiffness * task + POSTURE_STIFFNESS * free
        self._damping = 2 * math.sqrt(self._end_stiffness) * task + 2 * math.sqrt(POSTURE_STIFFNESS) * free

    def apply(self) -> None:
        """Set the motors' torques for the present state, after mj_step1."""
        torque = self._constant - self._stiffness @ (self._positions - self._centre)
        torque += self._bias - self._damping @ self._speeds
        np.clip(torque, self._limits[0], self._limits[1], out=self._torques)


def _turn_between(now: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """From one rotation matrix to another (3,): the axis times the sine of the angle, as robosuite has it."""
    relative = goal @ now.T
    return 0.5 * np.array(
        [relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]]
    )
