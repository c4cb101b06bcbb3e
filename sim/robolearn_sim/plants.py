"""MuJoCo behind the twins of arms: position servos with torque limits, gravity, contacts, things on a table."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import DeviceError
from robolearn_hardware.models import FILES
from robolearn_hardware.ring import Ring
from robolearn_hardware.twins.plant import PlantSpec
from robolearn_sim.scene import ARMS, build_scene
from robolearn_sim.scene_handle import SceneHandle, announce, withdraw

_LONGEST_NS = 100_000_000
_RECORDS = 64
_GRIPPER_S = 0.4
"""That a gripper takes to open or close."""


def mujoco_plant(spec: PlantSpec) -> MujocoPlant:
    """What ``make_plant("mujoco", spec)`` makes."""
    return MujocoPlant(spec)


class MujocoPlant:
    """A ``Plant``. Its scene is published at every step that it makes, for ``scene_renderer`` in other processes.

    Motors that are off: an SO-101 falls as its gears let it; the brakes of the others hold.
    """

    def __init__(self, spec: PlantSpec) -> None:
        """Raises DeviceError: no such arm (see ``scene.ARMS``), or joints or values that do not fit it."""
        self._mujoco: Any = importlib.import_module("mujoco")
        self._model = build_scene(spec.model, has_gripper=spec.has_gripper, pictures=False)
        self.has_gripper = spec.has_gripper
        count = len(ARMS[spec.model].torque)
        self.joints = count
        start, low, high = (np.array(values, np.float64) for values in (spec.start, spec.low, spec.high))
        size = (count + spec.has_gripper,)
        if not start.shape == low.shape == high.shape == size or not np.isfinite([start, low, high]).all():
            raise DeviceError(
                f"the plant of an arm {spec.model!r} needs {size[0]} finite starts and stops, got {start}"
            )
        self._compensated = ARMS[spec.model].compensated
        self._step_ns = round(self._model.opt.timestep * SECOND_NS)
        self._step_s = self._model.opt.timestep
        self._speed, self._acceleration = np.full(size, spec.motor.speed), np.full(size, spec.motor.acceleration)
        """Of a servo's goal, at most."""
        joints = [int(self._model.actuator_trnid[i, 0]) for i in range(size[0])]
        self._model.jnt_range[joints[:count]] = np.stack([low, high], 1)[:count]
        self._qpos, self._dof = self._model.jnt_qposadr[joints], self._model.jnt_dofadr[joints]
        """Where the entries stand in qpos and qvel."""
        self._force = self._model.jnt_actfrcrange[joints, 1]
        self._zero, self._range = np.zeros(size), np.ones(size)
        if spec.has_gripper:
            ends = self._model.jnt_range[joints[-1]]
            self._zero[-1], self._range[-1] = ends[0], ends[1] - ends[0]
            self._speed[-1], self._acceleration[-1] = 1 / _GRIPPER_S, 20 / _GRIPPER_S
        # A servo whose damping is its stiffness times a time follows a moving goal by that time late.
        self._model.actuator_biasprm[:count, 2] = -self._model.actuator_gainprm[:count, 0] * spec.motor.time_constant_s
        self._gain, self._bias = self._model.actuator_gainprm.copy(), self._model.actuator_biasprm.copy()
        self._low, self._high = low, high
        self._data = self._mujoco.MjData(self._model)
        self._data.qpos[self._qpos] = self._zero + start * self._range
        if spec.has_gripper and spec.model not in FILES:
            self._data.joint("right_finger").qpos = self._data.joint("left_finger").qpos
        self._target, self._off = start.copy(), np.zeros(size, bool)
        self._goal, self._goal_speed = start.copy(), np.zeros(size)
        self._flange = self._model.site("flange").id
        hand = int(self._model.site_bodyid[self._flange])
        self._of_hand = np.array([self._is_below(int(body), hand) for body in self._model.geom_bodyid])
        """Which geoms are carried by the flange."""
        self._now_ns = 0
        fields = {"time_ns": ("int64", ()), "qpos": ("float64", (self._model.nq,))}
        self.ring = Ring.create(fields, _RECORDS)
        self.scene = SceneHandle(spec.model, spec.has_gripper, self.ring.handle)
        """What another process needs to draw it."""
        self._announced = announce(self.scene)
        self._mujoco.mj_forward(self._model, self._data)
        self._read()
        self._publish(0)

    def target(self, positions: np.ndarray) -> None:
        wanted = np.where(np.isnan(positions), self._target, positions)
        self._target = np.clip(wanted, self._low, self._high)

    def limp(self, off: np.ndarray) -> None:
        off = np.array(off, bool)
        if (off == self._off).all():
            return
        gone = off & ~self._off
        back = ~off & self._off
        self._off = off
        # It is held where it is: by brakes, or by a motor that comes back on and has no new goal yet.
        here = self.positions
        self._goal[gone | back], self._target[gone | back] = here[gone | back], here[gone | back]
        self._goal_speed[gone | back] = 0.0
        if not self._compensated:
            on = ~off[:, None]
            self._model.actuator_gainprm[:], self._model.actuator_biasprm[:] = self._gain * on, self._bias * on

    def advance(self, now_ns: int) -> None:
        self._now_ns = max(self._now_ns, now_ns - _LONGEST_NS)
        steps = (now_ns - self._now_ns) // self._step_ns
        if steps <= 0:
            return
        target = np.where(self._off, self._goal, self._target)
        for _ in range(steps):
            self._move_goal(target)
            self._data.ctrl[:] = self._goal
            self._mujoco.mj_step(self._model, self._data)
        self._now_ns += steps * self._step_ns
        self._read()
        self._publish(self._now_ns)

    def close(self) -> None:
        withdraw(self._announced)
        self.ring.close()

    def _move_goal(self, target: np.ndarray) -> None:
        """One step towards the target, as fast as it may and no faster than it can still brake."""
        left = target - self._goal
        away = np.abs(left)
        fastest = np.minimum(np.minimum(self._speed, np.sqrt(2 * self._acceleration * away)), away / self._step_s)
        change = self._acceleration * self._step_s
        self._goal_speed += np.clip(np.copysign(fastest, left) - self._goal_speed, -change, change)
        self._goal += self._goal_speed * self._step_s

    def _read(self) -> None:
        data = self._data
        if not np.isfinite(data.qpos).all():
            raise DeviceError("the simulation has become unstable")
        self.positions: np.ndarray = (data.qpos[self._qpos] - self._zero) / self._range
        self.velocities: np.ndarray = data.qvel[self._dof] / self._range
        self.efforts: np.ndarray = np.clip(data.qfrc_actuator[self._dof] / self._force, -1, 1)
        self.wrench: np.ndarray = self._contact_wrench()

    def _contact_wrench(self) -> np.ndarray:
        """What touches the hand does to it: force and torque about the site "flange", in the base frame, the world's.
        (Weight and inertia are left out, as controllers do that know their payload.)"""
        data, wrench, one = self._data, np.zeros(6), np.zeros(6)
        point = data.site_xpos[self._flange]
        theirs = self._of_hand[data.contact.geom]  # (contacts, 2)
        for i in np.flatnonzero(theirs[:, 0] != theirs[:, 1]):
            contact = data.contact[int(i)]
            self._mujoco.mj_contactForce(self._model, data, int(i), one)  # by geom1 on geom2, in the contact's frame
            frame = contact.frame.reshape(3, 3)
            sign = 1.0 if theirs[i, 1] else -1.0
            force, torque = sign * frame.T @ one[:3], sign * frame.T @ one[3:]
            wrench[:3] += force
            wrench[3:] += torque + np.cross(contact.pos - point, force)
        return wrench

    def _is_below(self, body: int, ancestor: int) -> bool:
        while body and body != ancestor:
            body = int(self._model.body_parentid[body])
        return body == ancestor

    def _publish(self, time_ns: int) -> None:
        self.ring.publish({"time_ns": time_ns, "qpos": self._data.qpos})
