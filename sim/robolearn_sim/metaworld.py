"""Meta-World's fifty tasks of a Sawyer arm (Yu et al., CoRL 2019), version 3 of its environments: the package
``metaworld`` does the simulation and says what success is, we draw starts, words and pictures.

World frame: theirs; x to the arm's right, y away from it, z up, metres. A start is the first that Meta-World's own
distribution of the task gives for the seed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import warnings
from typing import Any

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Step, WorldSpec
from robolearn_sim.camera import Camera, RenderError, choose_backend
from robolearn_sim.metaworld_tasks import TASKS
from robolearn_sim.worlds import WorldError

CONTROL_HZ = 80  # five physics steps of 2.5 ms
MAX_STEPS = 500
"""That Meta-World gives an episode."""
IMAGE_SIZE, VIEW_SIZE = 84, 256
INSTRUCTION = Stream((256,), "uint8", kind="text")
IMAGE = Stream((IMAGE_SIZE, IMAGE_SIZE, 3), "uint8", kind="image")
_POSE = ("x", "y", "z", "quat_1", "quat_2", "quat_3", "quat_4")
STATE = Stream(
    (21,),
    names=(
        *("hand_x", "hand_y", "hand_z", "opening"),
        *(f"first_{part}" for part in _POSE),
        *(f"second_{part}" for part in _POSE),
        *("goal_x", "goal_y", "goal_z"),
    ),
    unit=",".join(["m", "m", "m", "1", *["m", "m", "m", "1", "1", "1", "1"] * 2, "m", "m", "m"]),
    frame="world",
)
"""Meta-World's observation without its copy of the frame before: hand, opening of the gripper from 0 to 1, the first
and the second thing (zeros where there is none; their quaternions as the task has them), and the goal."""
ACTION = Stream(
    (4,),
    kind="action",
    names=("dx", "dy", "dz", "close"),
    unit="0.01 m,0.01 m,0.01 m,1",
    frame="world",
    relative=(0, 1, 2),
)
"""Each in [-1, 1]: displacement of the hand's target, and the effort with which the gripper closes."""

VARIANTS: dict[str, dict[str, Any]] = {task: {"task": task} for task in TASKS}
"""Name after the slash -> options."""
_MOVED = ("body_pos", "body_quat", "site_pos", "geom_pos", "geom_rgba", "site_rgba")
"""Of the model, what some tasks change at a start, and read at the next."""
_INSTALL = "pip install 'robolearn[metaworld]'"
_CAMERA, _CAMERA_AT, _CAMERA_LOOKS_AT = "corner2", np.array([0.85, 0.2, 0.75]), np.array([0.0, 0.68, 0.12])


def spec(
    *, images: bool = False, max_steps: int = MAX_STEPS, task: str = "reach-v3", language: str = "seen"
) -> WorldSpec:
    """What the world offers.

    Args:
        images: add the stream "corner".
        max_steps: at most ``MAX_STEPS``.
        task: Meta-World's name, one of ``TASKS``.
        language: "seen" or "reworded".

    Raises:
        WorldError: there is no such task or set, or Meta-World has no episodes so long.
    """
    if task not in TASKS:
        raise WorldError(f"option 'task' of 'metaworld' must be one of: {', '.join(TASKS)}; not {task!r}")
    if language not in ("seen", "reworded"):
        raise WorldError(f"option 'language' of 'metaworld' must be seen or reworded; not {language!r}")
    if max_steps > MAX_STEPS:
        raise WorldError(f"option 'max_steps' of 'metaworld' must be at most {MAX_STEPS}, not {max_steps}")
    camera = {"corner": IMAGE} if images else {}
    streams = {"state": STATE, **camera, "instruction": INSTRUCTION, "action": ACTION}
    return WorldSpec("metaworld", Schema(CONTROL_HZ, streams), max_steps)


class MetaWorld:
    """Solved at the first instant at which Meta-World counts success. The score is its reward, divided by 10."""

    def __init__(
        self, *, images: bool = False, max_steps: int = MAX_STEPS, task: str = "reach-v3", language: str = "seen"
    ) -> None:
        """Options as of ``spec``.

        Raises:
            WorldError: Meta-World is not installed, or as of ``spec``.
        """
        self.spec = spec(images=images, max_steps=max_steps, task=task, language=language)
        self.task = task
        """Which of ``TASKS`` it is."""
        self._images = images
        self._text = INSTRUCTION.check("instruction", TASKS[task][language == "reworded"])
        self._env = env = import_metaworld("env_dict").ALL_V3_ENVIRONMENTS[task]()
        self._mujoco: Any = importlib.import_module("mujoco")
        # As its benchmarks set it, with starts from the generator instead of a list.
        env._set_task_called, env._partially_observable = True, False
        vars(env).pop("sawyer_observation_space", None)  # cached, with a goal that is hidden
        env._freeze_rand_vec, env.seeded_rand_vec = False, True
        model = env.model
        model.geom_group[model.geom_group == 0] = 2  # shown: Camera hides the group that is robosuite's for collisions
        _place_camera(self._mujoco, model)
        self._pristine = {name: getattr(model, name).copy() for name in _MOVED}
        self._camera = Camera(model, max_size=VIEW_SIZE)
        self.reset(0)

    def reset(self, seed: int) -> Observation:
        env = self._env
        env.np_random = np.random.default_rng(seed)
        env.curr_path_length, env._did_see_sim_exception = 0, False
        for name, values in self._pristine.items():
            getattr(env.model, name)[:] = values
        self._mujoco.mj_resetData(env.model, env.data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of theirs, to those who develop tasks
            env.reset_model()
        self._mujoco.mj_forward(env.model, env.data)
        self._steps = 0
        return self._observe(env._get_obs())

    def step(self, action: np.ndarray) -> Step:
        action = np.clip(ACTION.check("action", action), -1.0, 1.0)
        seen, reward, _, _, info = self._env.step(action)
        self._steps += 1
        success = bool(info["success"])
        score = 1.0 if success else float(np.clip(reward / 10, 0.0, 0.99))
        return Step(self._observe(seen), score, success, success or self._steps >= self.spec.max_steps)

    def render(self) -> np.ndarray:
        """The table from the side, (256, 256, 3) uint8."""
        return self._camera.draw(self._env.data, _CAMERA, VIEW_SIZE)

    def close(self) -> None:
        self._camera.close()
        self._env.close()

    def _observe(self, seen: np.ndarray) -> Observation:
        state = np.concatenate([seen[:18], seen[36:]]).astype(np.float32)
        observation: Observation = {"state": state, "instruction": self._text}
        if self._images:
            observation["corner"] = self._camera.draw(self._env.data, _CAMERA, IMAGE_SIZE)
        return observation


class MetaWorldExpert:
    """Meta-World's own scripted policy for the task."""

    noise_shape = np.array([0.5, 0.5, 0.5, 0.0])

    def __init__(self, task: str = "reach-v3") -> None:
        """``task``: one of ``TASKS``.

        Raises:
            WorldError: Meta-World is not installed.
        """
        self._policy = import_metaworld("policies").ENV_POLICY_MAP[task]()

    def reset(self, rng: np.random.Generator) -> None:
        self._before: np.ndarray | None = None

    def act(self, observation: Observation) -> np.ndarray:
        state = observation["state"].astype(np.float64)
        now, goal = state[:18], state[18:]
        before = now if self._before is None else self._before
        self._before = now
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that what it asks for will be clipped
            action = self._policy.get_action(np.concatenate([now, before, goal]))
        return np.clip(np.asarray(action, np.float64), -1.0, 1.0)


def import_metaworld(part: str) -> Any:
    """The module ``metaworld.<part>``.

    Raises:
        WorldError: it is not installed.
    """
    if importlib.util.find_spec("metaworld") is None:
        raise WorldError(f"the worlds 'metaworld/...' need Meta-World, which is not installed; run: {_INSTALL}")
    with contextlib.suppress(RenderError):  # told when a picture is wanted
        choose_backend()
    return importlib.import_module(f"metaworld.{part}")


def _place_camera(mujoco: Any, model: Any) -> None:
    """Where it sees the whole table, the right way up (theirs stands on its head)."""
    ahead = _CAMERA_LOOKS_AT - _CAMERA_AT
    right = np.cross(ahead, [0.0, 0.0, 1.0])
    axes = np.column_stack([right, np.cross(right, ahead), -ahead])
    axes /= np.linalg.norm(axes, axis=0)
    camera = model.camera(_CAMERA)
    camera.pos[:], camera.fovy[:] = _CAMERA_AT, 44
    mujoco.mju_mat2Quat(camera.quat, axes.ravel())
