"""Lift: a Panda arm picks a cube up from a table, robosuite 1.5.2's task "Lift" with its OSC_POSE controller at 20 Hz.

World frame: x away from the robot's base, y to its left, z up, metres; the table's surface is the plane z = 0.8.
The arm's start is jittered and the cube lies within 3 cm of the table's centre at any yaw; its size is always the same.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
from typing import Any

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Step, WorldSpec
from robolearn_sim.camera import Camera, RenderError, choose_backend
from robolearn_sim.worlds import WorldError

CONTROL_HZ = 20
PHYSICS_STEPS = 25  # of 2 ms in a control period
LIFTED_M = 0.04  # centre of the cube above the table
HOLD_STEPS = 5
IMAGE_SIZE, VIEW_SIZE = 84, 256

STATE = Stream(
    (13,),
    names=(
        *("eef_x", "eef_y", "eef_z"),
        *("tilt_x", "tilt_y", "yaw"),
        "opening",
        *("cube_x_from_eef", "cube_y_from_eef", "cube_z_from_eef"),
        *("cube_cos_4_yaw", "cube_sin_4_yaw"),
        "cube_height",
    ),
    unit="m,m,m,1,1,rad,m,m,m,m,1,1,m",
    frame="world",
)
"""Gripper and cube. tilt: horizontal part of the gripper's unit approach vector, 0 when it points down. yaw: of the
gripper's closing direction about the vertical. opening: between the fingertips. cube_cos_4_yaw and cube_sin_4_yaw: four
times the yaw from gripper to cube, because a cube looks the same after a quarter turn. cube_height: centre above table.
"""
IMAGE = Stream((IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", kind="image")
ACTION = Stream(
    (7,),
    kind="action",
    names=("dx", "dy", "dz", "turn_x", "turn_y", "turn_z", "close"),
    unit="0.05 m,0.05 m,0.05 m,0.5 rad,0.5 rad,0.5 rad,1",
    frame="world",
    relative=(0, 1, 2, 3, 4, 5),
)
"""Each in [-1, 1]: displacement and rotation vector from the present pose, in the units given; above 0 closes."""


def spec(*, images: bool = False, max_steps: int = 150) -> WorldSpec:
    """What Lift offers. ``images`` adds the stream "agentview"."""
    streams = {"state": STATE, **({"agentview": IMAGE} if images else {}), "action": ACTION}
    return WorldSpec("lift", Schema(CONTROL_HZ, streams), max_steps)


class Lift:
    """The world of the module's first lines. The score is how far the cube is raised, 1 at 4 cm above the table, where
    robosuite counts success; solved once it has stayed there for five steps: a cube thrown up does not count."""

    def __init__(self, *, images: bool = False, max_steps: int = 150) -> None:
        """
        Raises:
            WorldError: robosuite is not installed.
        """
        self.spec = spec(images=images, max_steps=max_steps)
        self._images = images
        self._env = _start_robosuite()
        from robolearn_sim.osc import PoseController, mujoco

        self._step1, self._step2 = mujoco.mj_step1, mujoco.mj_step2
        sim = self._env.sim
        self._model, self._data = sim.model._model, sim.data._data
        self._robot = self._env.robots[0]
        self._gripper = self._robot.gripper["right"]
        self._grip = sim.model.site_name2id(self._gripper.important_sites["grip_site"])
        self._cube = self._env.cube_body_id
        self._fingers = [sim.model.get_joint_qpos_addr(name) for name in self._gripper.joints]
        actuators = self._robot._ref_actuators_indexes_dict
        self._finger_motors = actuators["right_gripper"]
        low, high = self._model.actuator_ctrlrange[self._finger_motors].T
        self._finger_middle, self._finger_reach = (low + high) / 2, (high - low) / 2
        self._arm = PoseController(
            self._model,
            self._data,
            site=self._grip,
            joints=np.array(self._robot._ref_joint_vel_indexes),
            actuators=np.array(actuators["right"]),
        )
        self._rest_m = float(self._env.cube.size[2])  # height of the centre of a cube that lies on the table
        self._table_z = float(self._env.model.mujoco_arena.table_offset[2])
        self._camera = Camera(self._model, max_size=VIEW_SIZE)
        self.reset(0)

    def reset(self, seed: int) -> Observation:
        # robosuite hands this one generator on to everything that draws; reseeding it in place reaches them all.
        self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._env.reset()
        self._arm.reset(np.array(self._robot.part_controllers["right"].initial_joint))
        self._steps = self._held = 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        action = np.clip(ACTION.check("action", action), -1.0, 1.0).astype(np.float64)
        fingers = self._gripper.format_action(action[6:])  # robosuite's: from open to closed in ten steps
        for i in range(PHYSICS_STEPS):
            self._step1(self._model, self._data)
            if i == 0:
                self._arm.set_goal(action[:6])
                self._data.ctrl[self._finger_motors] = self._finger_middle + self._finger_reach * fingers
            self._arm.apply()
            self._step2(self._model, self._data)
        self._steps += 1
        rise = (self._height() - self._rest_m) / (LIFTED_M - self._rest_m)
        self._held = self._held + 1 if rise > 1 else 0
        success = self._held >= HOLD_STEPS
        done = success or self._steps >= self.spec.max_steps
        return Step(self._observe(), float(np.clip(rise, 0.0, 1.0)), success, done)

    def render(self) -> np.ndarray:
        """The arm seen from its left, (256, 256, 3) uint8."""
        return self._camera.draw(self._data, "sideview", VIEW_SIZE)

    def close(self) -> None:
        self._camera.close()

    def _height(self) -> float:
        return float(self._data.xpos[self._cube][2]) - self._table_z

    def _observe(self) -> Observation:
        data = self._data
        eef = data.site_xpos[self._grip]
        grip = data.site_xmat[self._grip].reshape(3, 3)
        cube = data.xmat[self._cube].reshape(3, 3)
        yaw = math.atan2(grip[1, 0], grip[0, 0])
        cube_yaw = 4 * (math.atan2(cube[1, 0], cube[0, 0]) - yaw)
        left, right = data.qpos[self._fingers]
        state = [
            *eef,
            *grip[:2, 2],
            yaw,
            left - right,
            *(data.xpos[self._cube] - eef),
            math.cos(cube_yaw),
            math.sin(cube_yaw),
            self._height(),
        ]
        observation = {"state": np.array(state, np.float32)}
        if self._images:
            observation["agentview"] = self._camera.draw(data, "agentview", IMAGE_SIZE)
        return observation


def _start_robosuite() -> Any:
    if importlib.util.find_spec("robosuite") is None:
        raise WorldError("the world 'lift' needs robosuite, which is not installed; run: pip install 'robolearn[sim]'")
    with contextlib.suppress(RenderError):  # told when a picture is wanted
        choose_backend()
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    # robosuite would compile five small functions, half a minute the first time; PoseController does their work.
    numba_config: Any = importlib.import_module("numba").config
    before, numba_config.DISABLE_JIT = numba_config.DISABLE_JIT, True
    try:
        import robosuite
    finally:
        numba_config.DISABLE_JIT = before

    # A soft reset is enough, because reset() above reseeds; the fixed seed makes every process build the same cube.
    return robosuite.make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        control_freq=CONTROL_HZ,
        ignore_done=True,
        hard_reset=False,
        seed=0,
    )
