"""Lift is robosuite's task, deterministic, and the scripted expert solves it."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from robolearn_data.schema import SchemaError, UserError
from robolearn_sim.demonstrations import demonstrate
from robolearn_sim.experts import make_expert
from robolearn_sim.worlds import make_world, world_spec

needs_robosuite = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")


@pytest.fixture(scope="module")
def world() -> Iterator:
    world = make_world("lift")
    yield world
    world.close()


@needs_robosuite
def test_the_same_seed_gives_the_same_episode_whatever_came_before(world) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 7)).astype(np.float32)

    def episode() -> list[np.ndarray]:
        return [world.reset(3)["state"], *(world.step(a).observation["state"] for a in actions)]

    first = episode()
    demonstrate(world, make_expert("lift"), 4, 0.2)  # ends with the gripper closed
    assert np.array_equal(episode(), first)
    assert not np.array_equal(world.reset(4)["state"], first[0])
    other = make_world("lift")
    assert np.array_equal([other.reset(3)["state"], *(other.step(a).observation["state"] for a in actions)], first)


@needs_robosuite
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_expert_lifts_the_cube(world, noise: float) -> None:
    expert = make_expert("lift")
    episodes = [demonstrate(world, expert, seed, noise) for seed in range(10)]
    assert sum(e.success for e in episodes) >= 9
    assert np.mean([len(e.streams["action"]) for e in episodes]) < 60


@needs_robosuite
def test_the_expert_begins_again_when_the_cube_slips_away(world) -> None:
    expert = make_expert("lift")
    observation = world.reset(0)
    expert.reset(np.random.default_rng(0))
    for _ in range(25):
        observation = world.step(expert.act(observation)).observation
    # Open the gripper, while it closes on the cube or lifts it, and move away.
    step = [world.step(np.array([1, 0, 1, 0, 0, 0, -1], np.float32)) for _ in range(12)][-1]
    while not step.done:
        step = world.step(expert.act(step.observation))
    assert step.success


@needs_robosuite
def test_success_needs_the_cube_to_stay_up_and_the_score_follows_its_height(world) -> None:
    demonstration_length = len(demonstrate(world, make_expert("lift"), 1, 0.0).streams["action"])
    expert = make_expert("lift")
    observation = world.reset(1)
    expert.reset(np.random.default_rng([1, 1]))
    scores = []
    for i in range(demonstration_length):
        step = world.step(expert.act(observation))
        observation = step.observation
        scores.append(step.score)
        assert step.success == (i == demonstration_length - 1)
    assert scores[5] < 0.2
    assert scores[-5:] == [1.0] * 5
    assert scores[-6] < 1


@needs_robosuite
def test_a_bad_action_is_refused_and_a_large_one_is_clipped(world) -> None:
    world.reset(0)
    for bad in (np.full(7, np.nan), np.zeros(6)):
        with pytest.raises(SchemaError):
            world.step(bad)
    reference = world.step(np.ones(7)).observation["state"]
    world.reset(0)
    assert np.array_equal(world.step(np.full(7, 50.0)).observation["state"], reference)


@needs_robosuite
@pytest.mark.slow
def test_pictures_depend_on_the_state_alone_and_the_process_ends_without_a_word() -> None:
    code = """
import numpy as np
from robolearn_sim.worlds import make_world
world = make_world("lift", images=True, max_steps=2)
streams = world.spec.schema.streams
first = world.reset(0)
for name, value in first.items():
    streams[name].check(name, value)
assert set(first) == set(streams) - {"action"}
assert world.render().shape == (256, 256, 3)
moved = [world.step(np.array([1, 0, 1, 0, 0, 0, 0], np.float32)) for _ in range(2)]
assert [s.done for s in moved] == [False, True]
assert np.abs(moved[1].observation["agentview"].astype(int) - first["agentview"]).max() > 50
assert np.array_equal(world.reset(0)["agentview"], first["agentview"])
assert first["agentview"].std() > 20
other = make_world("lift", images=True)
assert np.array_equal(other.reset(0)["agentview"], first["agentview"])
other.close()
other.close()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_robosuite
def test_a_closed_world_leaves_no_simulation_in_memory_and_may_be_closed_twice() -> None:
    other: Any = make_world("lift")
    gc.disable()  # what refers to itself would stay until it runs
    try:
        parts = [weakref.ref(part) for part in (other._env, other._env.sim, other._env.robots[0])]
        other.close()
        other.close()
        assert [part() for part in parts] == [other._env, None, None]
    finally:
        gc.enable()


@needs_robosuite
def test_without_a_graphics_library_the_state_is_there_and_a_picture_is_refused_in_one_line() -> None:
    code = """
import ctypes.util, os
ctypes.util.find_library = lambda name: None
os.environ.pop("MUJOCO_GL", None)
from robolearn_data.schema import UserError
from robolearn_sim.worlds import make_world
assert make_world("lift").reset(0)["state"].shape == (13,)
os.environ.pop("MUJOCO_GL", None)
try:
    make_world("lift").render()
except UserError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "libosmesa6" in out
    assert out.count("\n") == 1


def test_the_spec_is_known_without_a_simulator() -> None:
    code = (
        "import sys; from robolearn_sim.worlds import world_spec; world_spec('lift', images=True); "
        "print([m for m in ('mujoco', 'robosuite', 'pymunk', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert world_spec("lift").schema.streams["state"].names[:3] == ("eef_x", "eef_y", "eef_z")


def test_without_robosuite_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'robolearn\[sim\]'"):
        make_world("lift")


def test_a_world_without_an_expert_names_those_that_have_one() -> None:
    with pytest.raises(UserError, match="'pusht'; valid: lift, can"):
        make_expert("pusht")
