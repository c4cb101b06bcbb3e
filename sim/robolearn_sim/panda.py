"""Worlds of robosuite 1.5.2 with a Panda arm: what they have in common.

robosuite describes the task (its MJCF) and draws its starts; we simulate a copy of its model, without the things that
have no part in the task, under our own controller (``osc.py``). World frame: robosuite's; x away from the robot's base,
y to its left, z up, metres. 20 actions a second: a step of the tool, a turn of it, and the gripper (``ACTION``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
from typing import Any, Protocol

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Step, WorldSpec
from robolearn_sim.camera import Camera, RenderError, choose_backend
from robolearn_sim.manipulation import pose_of, rotation, rotation_of, rotation_vector
from robolearn_sim.meshes import simplify_looks
from robolearn_sim.worlds import Kind, WorldError

CONTROL_HZ = 20
PHYSICS_HZ = 500
HOLD_STEPS = 5
MAX_MOVE_M, MAX_TURN_RAD = 0.05, 0.5  # of one action of full size
IMAGE_SIZE, VIEW_SIZE = 84, 256
DETAIL_M = 0.024
"""Of the robot, in pictures."""

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

ARM_NAMES = (
    *("eef_x", "eef_y", "eef_z"),
    *("approach_x", "approach_y", "approach_z"),
    *("closing_x", "closing_y", "closing_z"),
    "opening",
)
ARM_UNITS = "m,m,m,1,1,1,1,1,1,m"
"""With these the states of all but Lift begin: where the point between the fingertips is; unit vectors along which the
gripper points and its fingers close; the way between the fingertips. ``Scene.arm`` gives their values."""
ARENA_BYTES = 16 << 20
"""For contacts and constraints of one instant; demonstrations need a hundredth. robosuite reserves 1.3 GB."""


class Task(Protocol):
    """What distinguishes one of these worlds."""

    name: str
    environment: str
    """robosuite's name."""
    state: Stream
    max_steps: int
    view: str
    """The camera that a person looks through."""
    wide_m: float
    """Of the variant "wide": how far from the middle, along x and along y, its object lies at most. 0: it has none."""
    unused: tuple[str, ...]
    """Bodies of robosuite's model that have no part in the task."""
    placed: tuple[str, ...]
    """Bodies that stand fast in an episode, and elsewhere in the next."""

    def __init__(self, scene: Scene) -> None: ...

    def observe(self) -> list[float]:
        """The values of ``state``."""
        ...

    def progress(self) -> tuple[float, bool]:
        """Score in [0, 1], and whether robosuite counts success at this instant."""
        ...

    def objects(self) -> dict[str, np.ndarray]:
        """See ``ManipulationWorld``."""
        ...


def kind(task: type[Task]) -> Kind:
    """How to start the world of ``task``, for the table of worlds."""
    options = functools.partial(spec, task, max_steps=task.max_steps)
    return Kind(functools.partial(PandaWorld, task), options, {"wide": {"wide": True}} if task.wide_m else {})


def spec(
    task: type[Task], *, images: bool = False, max_steps: int = 0, controller_hz: int = 100, wide: bool = False
) -> WorldSpec:
    """What the world of ``task`` offers.

    Args:
        images: add the stream "agentview".
        max_steps: that end an episode; 0 for the task's own number.
        controller_hz: how often the controller's gains follow the arm's posture: 500 as robosuite has it, or 100 or
            20, which is faster. Torques are computed 500 times a second.
        wide: the object lies anywhere within the task's ``wide_m``, not where robosuite puts it.

    Raises:
        WorldError: such a rate is not possible, or the task has no wider starts.
    """
    if controller_hz not in (20, 100, 500):
        raise WorldError(f"option 'controller_hz' of {task.name!r} must be 20, 100 or 500, not {controller_hz}")
    if wide and not task.wide_m:
        raise WorldError(f"the world {task.name!r} has no wider starts")
    streams = {"state": task.state, **({"agentview": IMAGE} if images else {}), "action": ACTION}
    return WorldSpec(task.name, Schema(CONTROL_HZ, streams), max_steps or task.max_steps)


class Scene:
    """The model and its state, with what the tasks ask of it. Arrays are MuJoCo's own: they change with the state."""

    def __init__(
        self, mujoco: Any, model: Any, tool: str, fingers: list[str], pads: tuple[list[str], list[str]]
    ) -> None:
        """``tool``: the site between the fingertips; ``fingers``: their joints; ``pads``: geoms of the left and of the
        right fingertip."""
        self.model, self.data = model, mujoco.MjData(model)
        self.tool = model.site(tool).id
        self._fingers = [int(model.joint(name).qposadr[0]) for name in fingers]
        self._pads = [np.array([model.geom(name).id for name in names]) for names in pads]

    def body(self, name: str) -> int:
        return self.model.body(name).id

    def geoms_of(self, body: int) -> np.ndarray:
        """The numbers of its solid geoms."""
        mine = self.model.geom_bodyid == body
        return np.flatnonzero(mine & (self.model.geom_contype != 0))

    def pose(self, body: int) -> np.ndarray:
        return pose_of(self.data.xpos[body], self.data.xmat[body])

    @property
    def tool_position(self) -> np.ndarray:
        return self.data.site_xpos[self.tool]

    @property
    def tool_axes(self) -> np.ndarray:
        """(3, 3); the first column is the closing direction, the last the approach."""
        return self.data.site_xmat[self.tool].reshape(3, 3)

    @property
    def opening(self) -> float:
        left, right = self.data.qpos[self._fingers]
        return float(left - right)

    def arm(self) -> list[float]:
        """The values of ``ARM_NAMES``."""
        axes = self.tool_axes
        return [*self.tool_position, *axes[:, 2], *axes[:, 0], self.opening]

    def touch(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether one of the geoms ``one`` touches one of ``other``, as of the last step."""
        pairs = self.data.contact.geom
        first, second = np.isin(pairs, one), np.isin(pairs, other)
        return bool((first[:, 0] & second[:, 1] | first[:, 1] & second[:, 0]).any())

    def grasped(self, geoms: np.ndarray) -> bool:
        """Whether both fingertips touch the thing that ``geoms`` make up: robosuite's criterion."""
        return all(self.touch(pads, geoms) for pads in self._pads)


class PandaWorld:
    """A ``ManipulationWorld``. Solved once robosuite has counted success for five steps: what flies by is none."""

    def __init__(
        self,
        task: type[Task],
        *,
        images: bool = False,
        max_steps: int = 0,
        controller_hz: int = 100,
        wide: bool = False,
    ) -> None:
        """Options as of ``spec``.

        Raises:
            WorldError: robosuite is not installed.
        """
        self.spec = spec(task, images=images, max_steps=max_steps, controller_hz=controller_hz, wide=wide)
        self._images = images
        self._env = _start_robosuite(task)
        if wide:
            placing = self._env.placement_initializer
            placing.x_range = placing.y_range = [-task.wide_m, task.wide_m]
        from robolearn_sim import osc

        self._mujoco = mujoco = osc.mujoco
        robot = self._env.robots[0]
        gripper = robot.gripper["right"]
        theirs = self._env.sim.model._model
        self._model = _our_model(mujoco, self._env.model.get_xml(), theirs, task.unused)
        self._same = _Same(self._model, theirs)
        tips = gripper.important_geoms
        self._scene = Scene(
            mujoco,
            self._model,
            gripper.important_sites["grip_site"],
            gripper.joints,
            (tips["left_fingerpad"], tips["right_fingerpad"]),
        )
        self._data = self._scene.data
        self._task = task(self._scene)
        self._placed = [self._scene.body(name) for name in task.placed]
        motors = np.array([self._model.actuator(name).id for name in gripper.actuators])
        low, high = self._model.actuator_ctrlrange[motors].T
        self._finger_motors, self._finger_middle, self._finger_reach = motors, (low + high) / 2, (high - low) / 2
        joints = [self._model.joint(name) for name in robot.robot_model.arm_joints]
        self._arm_qpos = np.array([int(joint.qposadr[0]) for joint in joints])
        self._arm = osc.PoseController(
            self._model,
            self._data,
            site=self._scene.tool,
            joints=np.array([int(joint.dofadr[0]) for joint in joints]),
            actuators=np.array([self._model.actuator(name).id for name in robot.robot_model.actuators]),
        )
        self._update_every = PHYSICS_HZ // controller_hz
        self._physics_state = np.zeros(mujoco.mj_stateSize(self._model, mujoco.mjtState.mjSTATE_INTEGRATION))
        self._view = task.view
        self._camera = Camera(self._model, max_size=VIEW_SIZE)
        self.reset(0)

    def reset(self, seed: int) -> Observation:
        # robosuite hands this one generator on to everything that draws; reseeding it in place reaches them all.
        self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._env.reset()
        self._mujoco.mj_resetData(self._model, self._data)
        self._same.copy(self._data, self._env.sim.data._data)
        self._mujoco.mj_forward(self._model, self._data)
        self._arm.reset(self._data.qpos[self._arm_qpos].copy())
        self._fingers_action = np.zeros(2)
        self._steps = self._held = 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        action = np.clip(ACTION.check("action", action), -1.0, 1.0).astype(np.float64)
        mujoco, model, data = self._mujoco, self._model, self._data
        # robosuite's gripper goes from open to closed in ten steps.
        self._fingers_action = np.clip(self._fingers_action + np.array([-0.2, 0.2]) * np.sign(action[6]), -1.0, 1.0)
        for i in range(PHYSICS_HZ // CONTROL_HZ):
            mujoco.mj_step1(model, data)
            if i == 0:
                self._arm.set_goal(MAX_MOVE_M * action[:3], MAX_TURN_RAD * action[3:6])
                data.ctrl[self._finger_motors] = self._finger_middle + self._finger_reach * self._fingers_action
            if i % self._update_every == 0:
                self._arm.update()
            self._arm.apply()
            mujoco.mj_step2(model, data)
        mujoco.mj_kinematics(model, data)  # where things are now, not before the last 2 ms
        self._steps += 1
        score, counts = self._task.progress()
        self._held = self._held + 1 if counts else 0
        success = self._held >= HOLD_STEPS
        done = success or self._steps >= self.spec.max_steps
        return Step(self._observe(), float(np.clip(score, 0.0, 1.0)), success, done)

    def render(self) -> np.ndarray:
        """The task as a bystander sees it, (256, 256, 3) uint8."""
        return self._camera.draw(self._data, self._view, VIEW_SIZE)

    def close(self) -> None:
        self._camera.close()
        env = self._env
        if not vars(env):  # it was closed before
            return
        robots = list(env.robots)
        env.close()
        for part in (*robots, env):  # they hold each other and the simulation, some 100 MB
            vars(part).clear()

    def objects(self) -> dict[str, np.ndarray]:
        return self._task.objects()

    def tool_pose(self) -> np.ndarray:
        return pose_of(self._scene.tool_position, self._scene.tool_axes)

    def action_towards(self, pose: np.ndarray, gripper: float) -> np.ndarray:
        move = (pose[:3] - self._scene.tool_position) / MAX_MOVE_M
        turn = rotation_vector(rotation_of(pose) @ self._scene.tool_axes.T) / MAX_TURN_RAD
        return np.concatenate([_within(move), _within(turn), [gripper]])

    def target_of(self, action: np.ndarray) -> np.ndarray:
        action = np.clip(ACTION.check("action", action), -1.0, 1.0).astype(np.float64)
        position = self._scene.tool_position + MAX_MOVE_M * action[:3]
        return pose_of(position, rotation(MAX_TURN_RAD * action[3:6]) @ self._scene.tool_axes)

    def state(self) -> np.ndarray:
        """See ``ManipulationWorld``: MuJoCo's integration state, then what the episode adds to it."""
        self._mujoco.mj_getState(
            self._model, self._data, self._physics_state, self._mujoco.mjtState.mjSTATE_INTEGRATION
        )
        places = [self._model.body_pos[self._placed], self._model.body_quat[self._placed]]
        ours = [self._arm.posture, self._fingers_action, [self._steps, self._held]]
        return np.concatenate([self._physics_state, *ours, *(place.ravel() for place in places)])

    def restore(self, state: np.ndarray) -> Observation:
        expected = self.state().shape
        state = np.asarray(state, np.float64)
        if state.shape != expected or not np.isfinite(state).all():
            raise WorldError(
                f"a state of the world {self.spec.name!r} is {expected[0]} finite numbers, got {state.shape}"
            )
        sizes = [len(self._physics_state), len(self._arm.posture), 2, 2, 3 * len(self._placed)]
        physics, posture, fingers, counts, places, turns = np.split(state, np.cumsum(sizes))
        self._model.body_pos[self._placed] = places.reshape(-1, 3)
        self._model.body_quat[self._placed] = turns.reshape(-1, 4)
        self._mujoco.mj_setState(self._model, self._data, physics, self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._mujoco.mj_kinematics(self._model, self._data)
        self._arm.reset(posture)
        self._fingers_action = fingers
        self._steps, self._held = (int(count) for count in counts)
        return self._observe()

    def _observe(self) -> Observation:
        observation = {"state": np.array(self._task.observe(), np.float32)}
        if self._images:
            observation["agentview"] = self._camera.draw(self._data, "agentview", IMAGE_SIZE)
        return observation


class _Same:
    """Which parts of our model are which of robosuite's."""

    def __init__(self, ours: Any, theirs: Any) -> None:
        self._ours, self._theirs = ours, theirs
        self._bodies = np.array([theirs.body(ours.body(i).name).id for i in range(ours.nbody)])
        self._sites = np.array([theirs.site(ours.site(i).name).id for i in range(ours.nsite)])
        pairs = [(ours.joint(i), theirs.joint(ours.joint(i).name)) for i in range(ours.njnt)]
        self._qpos = np.concatenate(
            [np.arange(their.qposadr[0], their.qposadr[0] + len(our.qpos0)) for our, their in pairs]
        )

    def copy(self, ours: Any, theirs: Any) -> None:
        """Set the positions of ``ours`` (mujoco.MjData) from ``theirs``, and where the fixed bodies stand."""
        ours.qpos[:] = theirs.qpos[self._qpos]
        self._ours.body_pos[:] = self._theirs.body_pos[self._bodies]
        self._ours.body_quat[:] = self._theirs.body_quat[self._bodies]
        self._ours.site_rgba[:] = self._theirs.site_rgba[self._sites]  # robosuite hides its markers


def _our_model(mujoco: Any, xml: str, compiled: Any, unused: tuple[str, ...]) -> Any:
    """``compiled``: robosuite's model, made of ``xml``."""
    made = mujoco.MjSpec.from_string(xml)
    for name in unused:
        made.delete(made.body(name))
    simplify_looks(mujoco, made, compiled, DETAIL_M)
    made.memory, made.njmax, made.nconmax = ARENA_BYTES, -1, -1
    return made.compile()


def _within(vector: np.ndarray) -> np.ndarray:
    """``vector``, shorter if a component of it is above 1, in the same direction."""
    return vector / max(1.0, float(np.abs(vector).max()))


def _start_robosuite(task: type[Task]) -> Any:
    if importlib.util.find_spec("robosuite") is None:
        raise WorldError(
            f"the world {task.name!r} needs robosuite, which is not installed; run: pip install 'robolearn[sim]'"
        )
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

    # A soft reset is enough, because reset() above reseeds; the fixed seed makes every process build the same things.
    return robosuite.make(
        task.environment,
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        control_freq=CONTROL_HZ,
        ignore_done=True,
        hard_reset=False,
        seed=0,
    )
