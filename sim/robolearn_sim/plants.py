"""MuJoCo behind the twins of arms: position servos with torque limits, gravity, contacts, things on a table."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import DeviceError
from robolearn_hardware.ring import Ring
from robolearn_hardware.twins.plant import PlantSpec
from robolearn_sim.scene import ARMS, build_scene
from robolearn_sim.scene_handle import SceneHandle, announce, withdraw
from robolearn_sim.servos import Servos

_LONGEST_NS = 100_000_000
_RECORDS = 64


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
        self._servos = Servos(self._mujoco, self._model, spec)
        self.joints = len(ARMS[spec.model].torque)
        self._compensated = ARMS[spec.model].compensated
        self._step_ns = round(self._model.opt.timestep * SECOND_NS)
        self._data = self._mujoco.MjData(self._model)
        self._servos.place(self._data)
        self._target, self._off = self._servos.goal.copy(), np.zeros(len(self._servos.goal), bool)
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
        self._target = np.clip(wanted, self._servos.low, self._servos.high)

    def limp(self, off: np.ndarray) -> None:
        off = np.array(off, bool)
        if (off == self._off).all():
            return
        gone = off & ~self._off
        back = ~off & self._off
        self._off = off
        # It is held where it is: by brakes, or by a motor that comes back on and has no new goal yet.
        here = self.positions
        self._servos.goal[gone | back], self._target[gone | back] = here[gone | back], here[gone | back]
        self._servos.goal_speed[gone | back] = 0.0
        if not self._compensated:
            self._servos.switch(off)

    def advance(self, now_ns: int) -> None:
        self._now_ns = max(self._now_ns, now_ns - _LONGEST_NS)
        steps = (now_ns - self._now_ns) // self._step_ns
        if steps <= 0:
            return
        self._servos.step(self._data, np.where(self._off, self._servos.goal, self._target), steps)
        self._now_ns += steps * self._step_ns
        self._read()
        self._publish(self._now_ns)

    def close(self) -> None:
        withdraw(self._announced)
        self.ring.close()

    def _read(self) -> None:
        data = self._data
        if not np.isfinite(data.qpos).all():
            raise DeviceError("the simulation has become unstable")
        self.positions: np.ndarray = self._servos.positions(data)
        self.velocities: np.ndarray = self._servos.velocities(data)
        self.efforts: np.ndarray = self._servos.efforts(data)
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
