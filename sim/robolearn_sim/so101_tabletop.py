"""SO-101 tabletop: a small arm at a table with three cubes, a plate and a bin. All of it is ours: the arm's model from
public dimensions, everything else boxes and cylinders. It is the scene of ``scene.py`` and the motors of ``servos.py``:
what the twin in hardware/rigs/so101_scene_twin.yaml moves in.

World frame: the arm's base frame; x forward, y left, z up, metres; the table's surface is z = 0. The cubes lie anywhere
in front of the arm, apart from each other, at any yaw.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Step, WorldSpec
from robolearn_sim.camera import Camera
from robolearn_sim.manipulation import pose_of
from robolearn_sim.worlds import WorldError

CONTROL_HZ = 25
PHYSICS_STEPS = 20  # of 2 ms in a control period
HOLD_STEPS = 5
IMAGE_SIZE, VIEW_SIZE = 84, 256
CUBES = ("red", "green", "blue")
PLACES = {"plate": "on the plate", "bin": "into the bin"}
TASKS = {f"put the {cube} cube {words}": (cube, place) for cube in CUBES for place, words in PLACES.items()}
"""What may be asked for -> the cube and the place."""
HALF_CUBE_M = 0.01225
INSIDE_M = {"plate": 0.04, "bin": 0.04}
"""How far a cube's centre may be from the place's."""
RESTING_M = 0.005  # a cube that lies flat may be so much higher
MAX_MOVE_M, MAX_TURN_RAD = 0.02, 0.2  # of one action towards a pose

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
START = np.array([0.0, -1.0, 0.8, 1.2, 0.0, 0.6])

STATE = Stream((6,), names=JOINTS, unit="rad,rad,rad,rad,rad,")
"""As measured: joints, and the gripper from 0 (closed) to 1 (open). The same as a rig's with this arm."""
ACTION = Stream((6,), kind="action", names=JOINTS, unit=STATE.unit)
"""Where the joints shall go, and the gripper."""
TOOL = Stream(
    (9,),
    names=(*(f"tool_{a}" for a in "xyz"), *(f"approach_{a}" for a in "xyz"), *(f"closing_{a}" for a in "xyz")),
    unit="m,m,m,1,1,1,1,1,1",
    frame="base",
)
"""The point between the fingertips; unit vectors along which they point, and from the fixed finger to the jaw."""
THINGS = Stream(
    (15,),
    names=tuple(f"{cube}_{part}" for cube in CUBES for part in ("x", "y", "z", "cos_4_yaw", "sin_4_yaw")),
    unit=",".join(["m,m,m,1,1"] * 3),
    frame="base",
)
"""The cubes' centres, and four times their yaw, because a cube looks the same after a quarter turn."""
IMAGE = Stream((IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", kind="image")


def spec(*, images: bool = False, max_steps: int = 300, task: str = "put the red cube on the plate") -> WorldSpec:
    """What the world offers.

    Args:
        images: add the streams "front" and "wrist".
        task: one of ``TASKS``.

    Raises:
        WorldError: there is no such task.
    """
    if task not in TASKS:
        raise WorldError(f"option 'task' of 'so101_tabletop' must be one of: {'; '.join(TASKS)}; not {task!r}")
    cameras = {"front": IMAGE, "wrist": IMAGE} if images else {}
    streams = {"state": STATE, "tool": TOOL, "things": THINGS, **cameras, "action": ACTION}
    return WorldSpec("so101_tabletop", Schema(CONTROL_HZ, streams), max_steps)


class So101Tabletop:
    """A ``ManipulationWorld``. The score is how near the cube is to its place, 1 where it lies there and is let go;
    solved once it has done so for five steps."""

    def __init__(
        self, *, images: bool = False, max_steps: int = 300, task: str = "put the red cube on the plate"
    ) -> None:
        """Options as of ``spec``.

        Raises:
            WorldError: MuJoCo is not installed, or there is no such task.
        """
        self.spec = spec(images=images, max_steps=max_steps, task=task)
        if importlib.util.find_spec("mujoco") is None:
            raise WorldError(
                "the world 'so101_tabletop' needs MuJoCo, which is not installed; run: pip install 'robolearn[sim]'"
            )
        from robolearn_hardware.limits import limits_of
        from robolearn_hardware.twins.plant import Motor, PlantSpec
        from robolearn_sim.reach import Reach
        from robolearn_sim.scene import build_scene
        from robolearn_sim.servos import Servos

        self._mujoco: Any = importlib.import_module("mujoco")
        self._images, self._task = images, TASKS[task]
        self._model = model = build_scene("so101", has_gripper=True)
        limits = limits_of("so101")
        low, high = np.append(limits.low, 0.0), np.append(limits.high, 1.0)
        self._servos = Servos(self._mujoco, model, PlantSpec("so101", START, low, high, True, Motor()))
        self._reach = Reach()
        self._data = self._mujoco.MjData(model)
        self._tool = model.site("flange").id
        self._bodies = {name: model.body(name).id for name in (*CUBES, *PLACES)}
        self._cube_qpos = {name: int(model.joint(name).qposadr[0]) for name in CUBES}
        hand = [model.body(name).id for name in ("gripper", "jaw")]
        self._hand_geoms = np.flatnonzero(np.isin(model.geom_bodyid, hand))
        self._cube_geoms = {name: np.flatnonzero(model.geom_bodyid == self._bodies[name]) for name in CUBES}
        self._physics_state = np.zeros(self._mujoco.mj_stateSize(model, self._mujoco.mjtState.mjSTATE_INTEGRATION))
        self._camera = Camera(model, max_size=VIEW_SIZE)
        self.reset(0)

    def reset(self, seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        self._mujoco.mj_resetData(self._model, self._data)
        start = START + np.append(rng.normal(0, 0.03, 5), 0.0)
        self._servos.place(self._data, start)
        self._command = start
        placed: list[np.ndarray] = []
        for cube in CUBES:
            spot = _spot(rng)
            while any(np.linalg.norm(spot - other) < 0.06 for other in placed):
                spot = _spot(rng)
            placed.append(spot)
            yaw = rng.uniform(0, 2 * math.pi)
            first = self._cube_qpos[cube]
            self._data.qpos[first : first + 7] = [*spot, HALF_CUBE_M, math.cos(yaw / 2), 0, 0, math.sin(yaw / 2)]
        self._mujoco.mj_forward(self._model, self._data)
        self._steps = self._held = 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        action = ACTION.check("action", action).astype(np.float64)
        self._command = np.clip(action, self._servos.low, self._servos.high)
        self._servos.step(self._data, self._command, PHYSICS_STEPS)
        self._mujoco.mj_kinematics(self._model, self._data)  # where things are now, not before the last 2 ms
        self._steps += 1
        score, solved = self._progress()
        self._held = self._held + 1 if solved else 0
        success = self._held >= HOLD_STEPS
        return Step(self._observe(), score, success, success or self._steps >= self.spec.max_steps)

    def render(self) -> np.ndarray:
        """The table seen from the front, (256, 256, 3) uint8."""
        return self._camera.draw(self._data, "front", VIEW_SIZE)

    def close(self) -> None:
        self._camera.close()

    def holds(self, cube: str) -> bool:
        """Whether the hand touches it."""
        pairs = self._data.contact.geom
        hand, thing = np.isin(pairs, self._hand_geoms), np.isin(pairs, self._cube_geoms[cube])
        return bool((hand.any(axis=1) & thing.any(axis=1)).any())

    def objects(self) -> dict[str, np.ndarray]:
        return {name: pose_of(self._data.xpos[i], self._data.xmat[i]) for name, i in self._bodies.items()}

    def tool_pose(self) -> np.ndarray:
        return pose_of(self._data.site_xpos[self._tool], self._data.site_xmat[self._tool])

    def action_towards(self, pose: np.ndarray, gripper: float) -> np.ndarray:
        """See ``ManipulationWorld``. Counted from where the joints were told to be: they sag under their load."""
        from robolearn_sim.reach import between

        joints = self._command[:5]
        aim = between(self._reach.pose(joints), pose, move_m=MAX_MOVE_M, turn_rad=MAX_TURN_RAD)
        return np.append(self._reach.joints(joints, aim), gripper)

    def target_of(self, action: np.ndarray) -> np.ndarray:
        action = np.clip(ACTION.check("action", action), self._servos.low, self._servos.high)
        return self._reach.pose(action[:5].astype(np.float64))

    def state(self) -> np.ndarray:
        physics = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_getState(self._model, self._data, self._physics_state, physics)
        servos = [self._servos.goal, self._servos.goal_speed, self._command]
        return np.concatenate([self._physics_state, *servos, [self._steps, self._held]])

    def restore(self, state: np.ndarray) -> Observation:
        expected = self.state().shape
        state = np.asarray(state, np.float64)
        if state.shape != expected or not np.isfinite(state).all():
            raise WorldError(
                f"a state of the world 'so101_tabletop' is {expected[0]} finite numbers, got {state.shape}"
            )
        size = len(self._physics_state)
        physics, goal, speed, command, counts = np.split(state, [size, size + 6, size + 12, size + 18])
        self._mujoco.mj_setState(self._model, self._data, physics, self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._mujoco.mj_kinematics(self._model, self._data)
        self._servos.goal, self._servos.goal_speed, self._command = goal.copy(), speed.copy(), command.copy()
        self._steps, self._held = (int(count) for count in counts)
        return self._observe()

    def _progress(self) -> tuple[float, bool]:
        cube, place = self._task
        away = self._data.xpos[self._bodies[cube]] - self._data.xpos[self._bodies[place]]
        across, height = float(np.hypot(*away[:2])), float(away[2])
        rests = across < INSIDE_M[place] and height < HALF_CUBE_M + RESTING_M
        if rests and not self.holds(cube):
            return 1.0, True
        return float(np.clip(1 - across / 0.3, 0.0, 0.9)), False

    def _observe(self) -> Observation:
        data = self._data
        axes = data.site_xmat[self._tool].reshape(3, 3)
        things: list[float] = []
        for cube in CUBES:
            body = self._bodies[cube]
            side = data.xmat[body].reshape(3, 3)[:, 0]
            yaw = 4 * math.atan2(side[1], side[0])
            things += [*data.xpos[body], math.cos(yaw), math.sin(yaw)]
        observation = {
            "state": self._servos.positions(data).astype(np.float32),
            "tool": np.array([*data.site_xpos[self._tool], *axes[:, 2], *axes[:, 1]], np.float32),
            "things": np.array(things, np.float32),
        }
        if self._images:
            for camera in ("front", "wrist"):
                observation[camera] = self._camera.draw(data, camera, IMAGE_SIZE)
        return observation


def _spot(rng: np.random.Generator) -> np.ndarray:
    """A place on the table (2,) m that the arm reaches well."""
    radius, angle = rng.uniform(0.16, 0.23), rng.uniform(-0.55, 0.55)
    return np.array([radius * math.cos(angle), radius * math.sin(angle)])
