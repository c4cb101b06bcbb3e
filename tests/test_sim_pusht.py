"""PushT is the published task: physics, reward, starts and pictures; and its mirror symmetry holds."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from robolearn_data.schema import SchemaError, UserError
from robolearn_sim.pusht import GOAL, PushT, coverage, keypoints, mirror
from robolearn_sim.worlds import make_world, world_spec


@pytest.fixture(scope="module")
def human(human_pusht: Path) -> dict[str, list[np.ndarray]]:
    """Stream -> one array for each human demonstration."""
    ends = np.asarray(zarr.open_array(human_pusht / "meta/episode_ends", mode="r")[:])
    return {
        name: np.split(np.asarray(zarr.open_array(human_pusht / "data" / name, mode="r")[:]), ends[:-1])
        for name in ("state", "action", "keypoint")
    }


def test_replaying_every_human_demonstration_from_its_seed_gives_the_recorded_states_bit_for_bit(human) -> None:
    world = PushT()
    for seed, (states, actions) in enumerate(zip(human["state"], human["action"], strict=True)):
        replayed = [world.reset(seed)["state"], *(world.step(a).observation["state"] for a in actions[:-1])]
        assert np.array_equal(replayed, states), f"episode {seed}"


def test_replaying_from_the_recorded_start_follows_the_recorded_states(human) -> None:
    world = PushT()
    error = []
    for states, actions in zip(human["state"][:40], human["action"][:40], strict=True):
        replayed = [world.restore(states[0])["state"], *(world.step(a).observation["state"] for a in actions[:-1])]
        error.append(np.abs(np.array(replayed) - states).max())
    assert np.quantile(error, 0.95) < 2e-3  # pixels and radians; single precision of the start is all that differs


def test_keypoints_are_those_of_the_human_demonstrations(human) -> None:
    states, recorded = np.concatenate(human["state"]), np.concatenate(human["keypoint"])
    error = np.abs(keypoints(states.astype(float)) - recorded).max(axis=(1, 2))
    assert np.quantile(error, 0.5) < 1e-3
    assert np.quantile(error, 0.99) < 0.05  # recorded points and poses differ a little during contact


def test_pictures_are_those_of_the_human_demonstrations_but_for_edges(human, human_pusht: Path) -> None:
    recorded = zarr.open_array(human_pusht / "data/img", mode="r")
    world = PushT(images=True)
    observation = world.reset(0)
    for i, action in enumerate(human["action"][0][:100]):
        if i % 10 == 0:
            error = np.abs(observation["img"].astype(float) - np.asarray(recorded[i]))
            assert error.mean() < 0.3
            assert (error.max(axis=-1) > 8).mean() < 0.006
        observation = world.step(action).observation


def test_states_rewards_and_pictures_agree_with_gym_pusht() -> None:
    reference_module = pytest.importorskip("gym_pusht.envs.pusht")
    reference = reference_module.PushTEnv(obs_type="state")
    world, rng = PushT(images=True), np.random.default_rng(0)
    for seed in range(6):
        starts = np.random.RandomState(seed)
        drawn = [starts.randint(50, 450), starts.randint(50, 450), starts.randint(100, 400), starts.randint(100, 400)]
        theirs, _ = reference.reset(options={"reset_to_state": [*drawn, starts.randn() * 2 * np.pi - np.pi]})
        ours = world.reset(seed)
        action = np.zeros(2, np.float32)
        for i in range(40):
            np.testing.assert_allclose(ours["state"], theirs, atol=1e-4)
            if i % 5 == 0:
                action = (ours["state"][2:4] + rng.normal(0, 60, 2)).astype(np.float32)
                assert np.abs(ours["img"].astype(int) - reference._render()).max() <= 1
            step = world.step(action)
            theirs, reward, *_ = reference.step(action)
            ours = step.observation
            assert step.score == pytest.approx(reward, abs=1e-9)


def test_coverage_is_one_on_the_target_zero_apart_and_that_of_a_shifted_bar_between() -> None:
    assert coverage(*GOAL) == pytest.approx(1)
    assert coverage(100, 100, 0) == 0
    # Shifted by 30 along the stem: the bar lies on the stem's first 30 pixels, 90 of the stem's 120 - 30 remain.
    along = (-math.sin(GOAL[2]) * 30, math.cos(GOAL[2]) * 30)
    expected = (30 * 30 + 60 * 30) / (120 * 30 + 90 * 30)
    assert coverage(GOAL[0] + along[0], GOAL[1] + along[1], GOAL[2]) == pytest.approx(expected)


def test_mirror_twice_is_nothing_and_it_keeps_coverage() -> None:
    rng = np.random.default_rng(0)
    state = np.column_stack([rng.uniform(150, 350, (50, 4)), rng.uniform(0, 2 * np.pi, 50)])
    action = rng.uniform(0, 512, (50, 2))
    again_state, again_action = mirror(*mirror(state, action))
    np.testing.assert_allclose(again_state, state, atol=1e-9)
    np.testing.assert_allclose(again_action, action, atol=1e-9)
    for one, other in zip(state, mirror(state, action)[0], strict=True):
        assert coverage(*one[2:]) == pytest.approx(coverage(*other[2:]), abs=1e-9)


def test_mirrored_human_actions_from_the_mirrored_start_give_the_mirrored_states(human) -> None:
    world = PushT()
    errors = []
    for states, actions in zip(human["state"], human["action"], strict=True):
        states, actions = mirror(states, actions)
        replayed = [world.restore(states[0])["state"], *(world.step(a).observation["state"] for a in actions[:-1])]
        errors.append(np.abs(np.array(replayed) - states)[:, :4].max())
    exact = np.array(errors) < 0.01
    assert exact.mean() > 0.95  # the others touch the rim, which is not symmetric


def test_the_same_seed_gives_the_same_episode_whatever_came_before() -> None:
    world, actions = PushT(), np.random.default_rng(1).uniform(100, 400, (30, 2)).astype(np.float32)

    def episode() -> list[np.ndarray]:
        return [world.reset(5)["state"], *(world.step(a).observation["state"] for a in actions)]

    first = episode()
    world.reset(6)
    for action in actions[::-1]:
        world.step(action)
    assert np.array_equal(episode(), first)


def test_observations_fit_the_schema_and_the_episode_ends_at_max_steps() -> None:
    world = make_world("pusht", images=True, max_steps=3)
    streams = world.spec.schema.streams
    observation = world.reset(0)
    assert set(observation) == set(streams) - {"action"}
    for name, value in observation.items():
        assert streams[name].check(name, value).dtype == value.dtype
    assert world.render().shape == (512, 512, 3)
    assert [world.step(np.array([256, 256], np.float32)).done for _ in range(3)] == [False, False, True]
    assert world_spec("pusht", images=True, max_steps=3) == world.spec


def test_success_is_a_coverage_above_95_percent_and_ends_the_episode() -> None:
    world = PushT()
    for offset, success in ((0.0, True), (8.0, False)):
        world.restore([50, 50, GOAL[0] + offset, GOAL[1], GOAL[2]])
        step = world.step(np.array([50, 50], np.float32))
        assert (step.success, step.done, step.score == 1) == (success, success, success)


@pytest.mark.parametrize("action", [np.array([np.nan, 1]), np.array([1.0, 2.0, 3.0]), np.array(1.0)])
def test_a_bad_action_is_refused(action: np.ndarray) -> None:
    with pytest.raises(SchemaError):
        PushT().step(action)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("push", {}, ("'push'", "pusht, lift")),
        ("pusht", {"image": True}, ("'image'", "images, max_steps")),
        ("pusht", {"images": 1}, ("'images'", "bool")),
        ("pusht", {"max_steps": 0}, ("max_steps", "at least 1")),
    ],
)
def test_a_mistake_in_naming_a_world_is_one_line_that_says_what_is_valid(name, options, words) -> None:
    for function in (make_world, world_spec):
        with pytest.raises(UserError) as caught:
            function(name, **options)
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words)


def test_pusht_loads_neither_mujoco_nor_robosuite() -> None:
    code = (
        "import sys; from robolearn_sim.worlds import make_world; make_world('pusht'); "
        "print([m for m in ('mujoco', 'robosuite', 'torch', 'gymnasium') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]", out.stdout
