"""The motors of an arm in a scene: goals that move no faster than motors do, and torques towards them."""

from __future__ import annotations

from typing import Any

import numpy as np

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.models import FILES
from robolearn_hardware.twins.plant import PlantSpec
from robolearn_sim.scene import ARMS

_GRIPPER_S = 0.4
"""That a gripper takes to open or close."""


class Servos:
    """Of one model that ``scene.build_scene`` has made; changes its stops and gains.

    n: the joints, then the gripper (0 closed, 1 open) where there is one.
    """

    def __init__(self, mujoco: Any, model: Any, spec: PlantSpec) -> None:
        """Raises DeviceError: joints or values that do not fit the arm."""
        self._mujoco, self._model = mujoco, model
        count = len(ARMS[spec.model].torque)
        self._start, low, high = (np.array(values, np.float64) for values in (spec.start, spec.low, spec.high))
        size = (count + spec.has_gripper,)
        if not self._start.shape == low.shape == high.shape == size or not np.isfinite([self._start, low, high]).all():
            raise DeviceError(
                f"the plant of an arm {spec.model!r} needs {size[0]} finite starts and stops, got {self._start}"
            )
        self.low, self.high = low, high
        """(n,)"""
        self._step_s = model.opt.timestep
        self._speed, self._acceleration = np.full(size, spec.motor.speed), np.full(size, spec.motor.acceleration)
        """Of a servo's goal, at most."""
        joints = [int(model.actuator_trnid[i, 0]) for i in range(size[0])]
        model.jnt_range[joints[:count]] = np.stack([low, high], 1)[:count]
        self._qpos, self._dof = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        """Where the entries stand in qpos and qvel."""
        self._force = model.jnt_actfrcrange[joints, 1]
        self._zero, self._range = np.zeros(size), np.ones(size)
        if spec.has_gripper:
            ends = model.jnt_range[joints[-1]]
            self._zero[-1], self._range[-1] = ends[0], ends[1] - ends[0]
            self._speed[-1], self._acceleration[-1] = 1 / _GRIPPER_S, 20 / _GRIPPER_S
        self._two_fingers = spec.has_gripper and spec.model not in FILES
        # A servo whose damping is its stiffness times a time follows a moving goal by that time late.
        model.actuator_biasprm[:count, 2] = -model.actuator_gainprm[:count, 0] * spec.motor.time_constant_s
        self._gain, self._bias = model.actuator_gainprm.copy(), model.actuator_biasprm.copy()
        self.goal, self.goal_speed = self._start.copy(), np.zeros(size)
        """(n,) where the motors are drawn to now."""

    def place(self, data: Any, positions: np.ndarray | None = None) -> None:
        """Put the arm at ``positions`` (n,), its start if None, at rest."""
        positions = self._start if positions is None else positions
        data.qpos[self._qpos] = self._zero + positions * self._range
        if self._two_fingers:
            data.joint("right_finger").qpos = data.joint("left_finger").qpos
        self.goal, self.goal_speed = positions.copy(), np.zeros(len(positions))

    def switch(self, off: np.ndarray) -> None:
        """Let the motors ``off`` (n,) bool go, and none else."""
        on = ~off[:, None]
        self._model.actuator_gainprm[:], self._model.actuator_biasprm[:] = self._gain * on, self._bias * on

    def step(self, data: Any, target: np.ndarray, steps: int) -> None:
        """Let ``steps`` of the physics pass while the goals go to ``target`` (n,), within the stops."""
        for _ in range(steps):
            self._move_goal(target)
            data.ctrl[:] = self.goal
            self._mujoco.mj_step(self._model, data)

    def positions(self, data: Any) -> np.ndarray:
        """(n,)"""
        return (data.qpos[self._qpos] - self._zero) / self._range

    def velocities(self, data: Any) -> np.ndarray:
        """(n,) per second"""
        return data.qvel[self._dof] / self._range

    def efforts(self, data: Any) -> np.ndarray:
        """(n,) in shares of the greatest."""
        return np.clip(data.qfrc_actuator[self._dof] / self._force, -1, 1)

    def _move_goal(self, target: np.ndarray) -> None:
        """One step towards the target, as fast as it may and no faster than it can still brake."""
        left = target - self.goal
        away = np.abs(left)
        fastest = np.minimum(np.minimum(self._speed, np.sqrt(2 * self._acceleration * away)), away / self._step_s)
        change = self._acceleration * self._step_s
        self.goal_speed += np.clip(np.copysign(fastest, left) - self.goal_speed, -change, change)
        self.goal += self.goal_speed * self._step_s
