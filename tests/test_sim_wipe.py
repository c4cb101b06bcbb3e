"""Wipe: forces against the spring's and the solver's, control steps made of fast periods, boards that move, dirt that
comes off in the band alone, and an expert that fails when it cannot feel."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from robolearn_data.schema import SchemaError
from robolearn_sim.demonstrations import demonstrate
from robolearn_sim.experts import make_expert
from robolearn_sim.worlds import WorldError, make_world, world_spec

mujoco: Any = pytest.importorskip("mujoco")
pytest.importorskip("robosuite")

from robolearn_sim.wipe import (  # noqa: E402
    BAND_N,
    FAST_STEPS,
    FORCE_STEPS,
    LIMIT_N,
    MOVE_S,
    NOISE,
    SPOTS,
    TOOL_STIFFNESS,
)


@functools.cache
def the(name: str = "wipe") -> Any:
    """One world of a name for all tests of a process; every test begins with a reset."""
    return make_world(name)


def press(world: Any, seed: int, depth_m: float) -> tuple[np.ndarray, np.ndarray]:
    """The tip is led over the line's middle and ``depth_m`` below the board there, and waits: the force in that time
    (T, 3), and where the spring was (T,)."""
    world.reset(seed)
    data, model = world._data, world._model
    middle = world.line[SPOTS // 2]
    slope = -world._normal[:2] / world._normal[2]
    z = world._height + slope @ (middle - data.mocap_pos[0][:2])
    joint = int(model.joint("tip").qposadr[0])
    forces, springs = [], []
    for i in range(60):
        lower = max(0.03 * (1 - i / 30), -depth_m)
        step = world.step(np.array([*middle, z + lower]))
        if i >= 55:
            forces.append(step.observation["wrench"][:, :3].astype(np.float64))
            springs.append(float(data.qpos[joint]))
    return np.concatenate(forces), np.array(springs)


def test_the_same_seed_gives_the_same_episode_whatever_came_before() -> None:
    def episode(world: Any) -> np.ndarray:
        observations = [world.reset(3)]
        target = observations[0]["state"][:3].astype(np.float64)
        observations += [world.step(target + np.array([0, 0.002, -0.004]) * i).observation for i in range(15)]
        return np.stack([np.concatenate([o["state"], o["wrench"].ravel()]) for o in observations])

    first = episode(the("wipe/perturbed"))
    demonstrate(the("wipe/perturbed"), make_expert("wipe"), 4, 0.2)
    assert np.array_equal(episode(the("wipe/perturbed")), first)
    assert np.array_equal(episode(make_world("wipe", perturbed=True)), first)
    assert not np.array_equal(the().reset(4)["state"], the().reset(3)["state"])


def test_in_the_air_the_sensor_reads_noise_alone() -> None:
    world = the()
    start = world.reset(0)["state"][:3].astype(np.float64)
    felt = np.concatenate([world.step(start).observation["wrench"] for _ in range(40)])[500:]
    assert (np.abs(felt.mean(axis=0)) < 6 * NOISE / np.sqrt(len(felt)) + 0.02).all()
    np.testing.assert_allclose(felt.std(axis=0), NOISE, rtol=0.25)


@pytest.mark.parametrize("depth_m", [0.004, 0.01])
def test_the_force_is_that_of_the_spring_and_of_the_solver(depth_m: float) -> None:
    world = the()
    felt, springs = press(world, 1, depth_m)
    assert springs.std() < 1e-4
    np.testing.assert_allclose(felt[:, 2].mean(), -TOOL_STIFFNESS * springs[-1], atol=0.6)  # the tip's weight is 0.5 N
    total = np.zeros(3)
    for i in range(world._data.ncon):
        one = np.zeros(6)
        mujoco.mj_contactForce(world._model, world._data, i, one)
        contact = world._data.contact[i]
        sign = 1 if contact.geom2 != world._model.geom("board").id else -1
        total += sign * contact.frame.reshape(3, 3).T @ one[:3]
    np.testing.assert_allclose(felt.mean(axis=0), total, atol=0.15)
    assert 0.6 * depth_m < -springs[-1] < 1.3 * depth_m


def test_a_control_step_is_made_of_fast_periods_and_loses_no_sample() -> None:
    whole: Any = the()
    parts: Any = make_world("wipe")
    start = whole.reset(7)["state"][:3].astype(np.float64)
    observation = parts.reset(7)
    for i in range(12):
        target = start + np.array([0.003, 0.0, -0.005]) * (i + 1)
        begun = whole.commanded.copy()
        step = whole.step(target.astype(np.float32))
        action = target.astype(np.float32).astype(np.float64)
        instants = [parts.advance(begun + (action - begun) * (k + 1) / FAST_STEPS) for k in range(FAST_STEPS)]
        with pytest.raises(WorldError, match="5 fast periods"):
            parts.advance(action)
        observation = parts.finish().observation
        with pytest.raises(WorldError, match="0 of the 5 fast periods"):
            parts.finish()
        for name, value in step.observation.items():
            assert np.array_equal(value, observation[name])
        felt = np.concatenate([instant.readings["wrench"] for instant in instants])
        assert felt.shape == (FAST_STEPS * FORCE_STEPS, 6)
        assert np.array_equal(felt.astype(np.float32), observation["wrench"])
        assert [instant.time_ns for instant in instants] == [(i * 50 + (k + 1) * 10) * 10**6 for k in range(5)]


def test_the_board_moves_after_the_share_that_calls_for_it_and_only_in_perturbed() -> None:
    for name, expected in (("wipe", 0), ("wipe/calm", 0), ("wipe/perturbed", 3)):
        world = the(name)
        assert world.reset(2) is not None
        calls = list(world._calls)
        assert len(calls) == expected
        before = float(world._data.mocap_pos[0][2])
        demonstrate(world, make_expert("wipe"), 2, 0.2)
        begun = [up for when, up in world.moves if when + MOVE_S < world._time_steps / 500]
        assert float(world._data.mocap_pos[0][2]) == pytest.approx(before + sum(begun), abs=0.019 * (expected > 0))
        assert len(world.moves) == expected
        assert all(later[0] - one[0] >= MOVE_S for one, later in zip(world.moves, world.moves[1:], strict=False))


def test_dirt_is_drawn_where_it_is() -> None:
    world = the()
    world.reset(5)
    drawn = np.stack([world._data.geom_xpos[spot] for spot in world._spots])
    np.testing.assert_allclose(drawn[:, :2], world.line, atol=1e-3)


def test_dirt_comes_off_in_the_band_alone_and_too_much_force_ends_the_episode() -> None:
    world = the()
    for force, comes_off in ((0.0, False), (BAND_N[0] - 0.1, False), (6.0, True), (BAND_N[1] + 0.1, False)):
        world.reset(0)
        world.line = world.line - world.line[0] + world._data.site_xpos[world._tool][:2]
        world._wipe(force)
        assert world._dirty[0] == (not comes_off)
        assert world._dirty[1:].all()
    start = world.reset(0)["state"][:3].astype(np.float64)
    steps = (world.step(start - np.array([0, 0, 0.004]) * i) for i in range(80))
    step = next(step for step in steps if step.done)
    assert world.damaged
    assert not step.success
    assert step.observation["wrench"][-FORCE_STEPS:, 2].mean() > LIMIT_N - 3 * NOISE[2]


def test_bad_actions_are_refused_and_far_ones_are_approached_at_a_bounded_speed() -> None:
    world = the()
    start = world.reset(0)["state"][:3].astype(np.float64)
    for bad in (np.full(3, np.nan), np.zeros(4)):
        with pytest.raises(SchemaError):
            world.step(bad)
        with pytest.raises(SchemaError):
            world.advance(bad)
    step = world.step(start + np.array([0, 10.0, 0]))
    assert np.linalg.norm(world.commanded - start) == pytest.approx(0.4 / 20, abs=1e-4)
    assert np.isfinite(step.observation["state"]).all()
    assert world_spec("wipe/perturbed") == the("wipe/perturbed").spec
    with pytest.raises(WorldError, match="no world 'wipe/windy'; valid: wipe, wipe/calm, wipe/perturbed"):
        world_spec("wipe/windy")


class Numb:
    """The expert with a sensor that says nothing."""

    def __init__(self) -> None:
        self._expert = make_expert("wipe")
        self.noise_shape = self._expert.noise_shape

    def reset(self, rng: np.random.Generator) -> None:
        self._expert.reset(rng)

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return self._expert.act({**observation, "wrench": np.zeros_like(observation["wrench"])})


@pytest.mark.slow
def test_the_expert_wipes_calm_and_perturbed_boards_and_hardly_a_perturbed_one_without_feeling() -> None:
    for name in ("wipe", "wipe/perturbed"):
        assert sum(demonstrate(the(name), make_expert(name), seed, 0.2).success for seed in range(100, 110)) >= 9
    assert sum(demonstrate(the("wipe/perturbed"), Numb(), seed, 0.2).success for seed in range(100, 110)) <= 4
