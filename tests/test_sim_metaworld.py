"""Meta-World: the tasks that it has, its own transitions and rewards, starts that a seed fixes."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.schema import SchemaError, read_text
from robolearn_sim import worlds
from robolearn_sim.demonstrations import demonstrate
from robolearn_sim.experts import make_expert
from robolearn_sim.metaworld_tasks import TASKS
from robolearn_sim.worlds import WorldError, make_world, variants_of, world_spec

environments: Any = pytest.importorskip("metaworld.env_dict")

SOME = ("reach-v3", "box-close-v3", "door-open-v3", "push-v3", "button-press-wall-v3")
"""Box-close's starts depend on what the start before left in the model; the others are of different kinds."""


@functools.cache
def the(task: str) -> Any:
    """One world of a task for all tests of a process; every test begins with a reset."""
    return make_world(f"metaworld/{task}")


def test_every_task_of_metaworld_has_a_name_and_two_wordings_of_its_own() -> None:
    assert set(TASKS) == set(environments.ALL_V3_ENVIRONMENTS)
    texts = [text for wordings in TASKS.values() for text in wordings]
    assert len(texts) == len(set(texts)) == 100
    assert variants_of("metaworld") == [f"metaworld/{task}" for task in TASKS]


@pytest.mark.parametrize("task", SOME)
def test_the_same_seed_gives_the_same_episode_whatever_came_before(task: str) -> None:
    def episode(world: Any) -> np.ndarray:
        rng = np.random.default_rng(0)
        states = [world.reset(3)["state"]]
        return np.stack(states + [world.step(rng.uniform(-1, 1, 4)).observation["state"] for _ in range(20)])

    first = episode(the(task))
    the(task).reset(4)
    for _ in range(15):
        the(task).step(np.array([0.5, 1, -1, 1]))
    assert np.array_equal(episode(the(task)), first)
    assert np.array_equal(episode(make_world(f"metaworld/{task}")), first)
    assert not np.array_equal(the(task).reset(4)["state"], first[0])


def test_starts_transitions_and_rewards_are_those_of_metaworld() -> None:
    for task in ("push-v3", "door-open-v3"):
        world, theirs = the(task), environments.ALL_V3_ENVIRONMENTS[task]()
        state = world.reset(11)["state"]
        theirs._set_task_called, theirs._partially_observable = True, False
        vars(theirs).pop("sawyer_observation_space", None)
        theirs._last_rand_vec = world._env._last_rand_vec  # frozen: the same start
        space = world._env._random_reset_space
        assert np.all((theirs._last_rand_vec >= space.low) & (theirs._last_rand_vec <= space.high))
        seen, _ = theirs.reset()
        np.testing.assert_allclose(state, np.concatenate([seen[:18], seen[36:]]), atol=1e-6)
        rng = np.random.default_rng(1)
        for _ in range(30):
            action = rng.uniform(-1, 1, 4).astype(np.float32)
            seen, reward, _, _, info = theirs.step(action)
            step = world.step(action)
            np.testing.assert_allclose(step.observation["state"], np.concatenate([seen[:18], seen[36:]]), atol=1e-5)
            assert step.success == bool(info["success"])
            assert step.score == pytest.approx(np.clip(reward / 10, 0, 0.99), abs=1e-4)


def test_the_instruction_is_the_tasks_and_reworded_is_another() -> None:
    assert read_text(the("push-v3").reset(0)["instruction"]) == "push the puck to the goal"
    other = make_world("metaworld/push-v3", language="reworded")
    assert read_text(other.reset(0)["instruction"]) == "slide the disc to the mark"


def test_bad_names_options_and_actions_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(WorldError, match="no world 'metaworld/reach'; valid: metaworld, metaworld/assembly-v3"):
        world_spec("metaworld/reach")
    with pytest.raises(WorldError, match="must be one of: assembly-v3"):
        world_spec("metaworld", task="tidy")
    with pytest.raises(WorldError, match="seen or reworded"):
        world_spec("metaworld", language="latin")
    with pytest.raises(WorldError, match="at most 500"):
        world_spec("metaworld", max_steps=501)
    the("push-v3").reset(0)
    with pytest.raises(SchemaError):
        the("push-v3").step(np.full(4, np.nan))


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "metaworld" else find(name))
    assert worlds.world_spec("metaworld/push-v3").max_steps == 500
    with pytest.raises(WorldError, match=r"pip install 'robolearn\[metaworld\]'"):
        make_world("metaworld/push-v3")
    with pytest.raises(WorldError, match=r"pip install 'robolearn\[metaworld\]'"):
        make_expert("metaworld/push-v3")


@pytest.mark.parametrize("task", ["reach-v3", "drawer-open-v3", "push-v3"])
def test_the_expert_of_the_task_solves_it_although_it_is_disturbed(task: str) -> None:
    expert = make_expert(f"metaworld/{task}")
    assert all(demonstrate(the(task), expert, seed, 0.2).success for seed in range(2))


def test_collect_records_the_instruction(tmp_path: Path) -> None:
    out = tmp_path / "d.zarr"
    command = ["collect", str(out), "--world", "metaworld/reach-v3", "--teleop", "scripted", "--episodes", "2"]
    assert main([*command, "--workers", "1"]) == 0
    assert Dataset.open(out).episode_info(1)["task"] == "reach for the goal"


def test_pictures_show_the_table_and_change_with_the_arm() -> None:
    world = make_world("metaworld/reach-v3", images=True)
    first = world.reset(0)["corner"]
    last = [world.step(np.array([1.0, 1.0, -1.0, 0.0])) for _ in range(25)][-1].observation["corner"]
    assert first.shape == last.shape == (84, 84, 3)
    assert first.std() > 20
    assert np.abs(first.astype(int) - last).max() > 60
    world.close()
