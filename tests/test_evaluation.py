"""The evaluation counts right, and the same whatever the batch, the order or the number of processes."""

from __future__ import annotations

import functools
import math
import os
import signal
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robolearn.evaluation import EpisodeResult, Evaluation, evaluate
from robolearn.evaluation.intervals import mean_interval, wilson_interval
from robolearn.evaluation.lockstep import rollout
from robolearn.evaluation.workers import EvaluationError, split
from robolearn.policies.noise import chunk_generator
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Step, World, WorldSpec

STATE = Stream((2,))
ACTION = Stream((1,), kind="action")
SPEC = PolicySpec({"state": STATE}, ACTION, rate_hz=10, obs_horizon=2, horizon=8, action_horizon=3)


class Line:
    """A point on a line that is to come within 0.05 of a goal. Observes (position, goal)."""

    def __init__(self, max_steps: int = 40, log: list[float] | None = None) -> None:
        self.spec = WorldSpec("line", Schema(10, {"state": STATE, "action": ACTION}), max_steps)
        self.actions = log if log is not None else []
        self.closed = False

    def reset(self, seed: int) -> Observation:
        self._goal, self._at, self._steps = np.random.default_rng(seed).uniform(-1, 1), 0.0, 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        action = ACTION.check("action", action)
        self.actions.append(float(action[0]))
        self._at += float(np.clip(action[0], -0.1, 0.1))
        self._steps += 1
        gap = abs(self._goal - self._at)
        return Step(self._observe(), max(0.0, 1 - gap), gap < 0.05, gap < 0.05 or self._steps >= self.spec.max_steps)

    def render(self) -> np.ndarray:
        return np.zeros((32, 32, 3), np.uint8)

    def close(self) -> None:
        self.closed = True

    def _observe(self) -> Observation:
        return {"state": np.array([self._at, self._goal], np.float32)}


class Towards(nn.Module):
    """A stand-in for a trained policy: steps towards the goal, with noise."""

    def __init__(self, spec: PolicySpec = SPEC) -> None:
        super().__init__()
        self.spec, self.device = spec, torch.device("cpu")
        self.seen: list[Tensor] = []
        self.noises: dict[bytes, int] = {}

    def encode(self, obs: dict[str, Tensor]) -> Tensor:
        self.seen.append(obs["state"])
        return obs["state"]

    def noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(batch, self.spec.horizon, 1, generator=generator)

    def sample(self, context: Tensor, *, noise: Tensor, steps: int | None = None) -> Tensor:
        for one in noise:
            self.noises[one.numpy().tobytes()] = self.noises.get(one.numpy().tobytes(), 0) + 1
        gap = context[:, -1, 1] - context[:, -1, 0]
        return 0.1 * gap.sign()[:, None, None] + 0.15 * noise


class Counts(Towards):
    """Actions are their own index in the chunk, in hundredths."""

    def sample(self, context: Tensor, *, noise: Tensor, steps: int | None = None) -> Tensor:
        return (torch.arange(self.spec.horizon) / 100).reshape(1, -1, 1).expand(len(noise), -1, -1)


class Diverges(Towards):
    """NaN for goals on the right from the second chunk on."""

    def sample(self, context: Tensor, *, noise: Tensor, steps: int | None = None) -> Tensor:
        chunk = super().sample(context, noise=noise, steps=steps)
        moved = context[:, -1, 0] != 0
        chunk[moved & (context[:, -1, 1] > 0)] = math.nan
        return chunk


class Dies(Towards):
    """Its process is killed at the third chunk, as by the kernel when memory runs out."""

    def sample(self, context: Tensor, *, noise: Tensor, steps: int | None = None) -> Tensor:
        if len(self.seen) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(context, noise=noise, steps=steps)


class Fails(Towards):
    def sample(self, context: Tensor, *, noise: Tensor, steps: int | None = None) -> Tensor:
        raise IndexError("a fault in the network")


def policy(kind: type[Towards] = Towards, **options: Any) -> Policy:
    return cast(Policy, kind(**options))


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_interval_mirrors_and_has_exact_ends() -> None:
    low, high = wilson_interval(7, 50)
    assert wilson_interval(43, 50) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(50, 50)[1] == 1.0
    assert wilson_interval(0, 50)[0] == 0.0
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="cannot be"):
        wilson_interval(3, 2)


def test_bootstrap_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = mean_interval(rng.beta(4, 1, size=60).tolist(), resamples=400)
        hits += low <= 0.8 <= high
    assert 180 <= hits <= 199
    assert mean_interval([0.2, 0.9, 1.0]) == mean_interval([0.2, 0.9, 1.0])


def test_results_come_in_the_order_of_seeds_with_their_intervals() -> None:
    seeds = [5, 3, 9, 1, 7]
    found = evaluate(policy(), Line, seeds, envs_per_worker=2)
    assert [r.seed for r in found.results] == seeds
    assert found.success_interval == wilson_interval(found.successes, 5)
    assert found.score == pytest.approx(np.mean([r.score for r in found.results]))
    assert found.steps == sum(r.length for r in found.results)
    assert all(r.success_step == r.length for r in found.results if r.success)


@pytest.mark.parametrize(("workers", "envs"), [(0, 1), (0, 7), (0, 100), (2, 4)])
def test_batch_and_processes_do_not_change_the_episodes(workers: int, envs: int) -> None:
    seeds = range(1000, 1030)
    reference = evaluate(policy(), Line, seeds, envs_per_worker=3)
    assert reference.steps > 0
    assert len({r.length for r in reference.results}) > 3  # They differ, so that equality says something.
    again = evaluate(Towards, Line, seeds, workers=workers, envs_per_worker=envs)  # type: ignore[arg-type]
    assert again.results == reference.results


def test_every_chunk_has_its_own_noise_which_depends_on_seed_and_number_alone() -> None:
    stand_in = Towards()
    chunks = sum(math.ceil(r.length / 3) for r in rollout(cast(Policy, stand_in), Line, range(20), worlds=6))
    assert len(stand_in.noises) == chunks
    assert set(stand_in.noises.values()) == {1}
    one, same, other = (torch.rand(4, generator=chunk_generator(*key)) for key in ((7, 2), (7, 2), (2, 7)))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_receding_horizon_carries_out_the_chunk_from_the_newest_observation_on() -> None:
    log: list[float] = []
    list(rollout(policy(Counts), lambda: Line(max_steps=7, log=log), [0], worlds=1))
    assert log == pytest.approx([0.01, 0.02, 0.03, 0.01, 0.02, 0.03, 0.01])


def test_the_first_observation_is_repeated_and_later_ones_are_the_last_in_order() -> None:
    stand_in = Counts()
    list(rollout(cast(Policy, stand_in), lambda: Line(max_steps=6), [0], worlds=1))
    first, second = (seen[0, :, 0].tolist() for seen in stand_in.seen)
    assert first == [0.0, 0.0]
    assert second == pytest.approx([0.03, 0.06])  # After two and after three steps.


def test_score_is_the_best_of_an_episode_and_worlds_are_closed() -> None:
    worlds: list[Line] = []

    def make() -> World:
        worlds.append(Line(max_steps=30))
        return worlds[-1]

    found = evaluate(policy(Counts), make, [2], envs_per_worker=4)  # Walks past a goal on the left, away from it.
    goal = np.random.default_rng(2).uniform(-1, 1)
    assert goal < 0
    assert found.results == (EpisodeResult(2, 1 - abs(goal - float(np.float32(0.01))), False, 30),)
    assert worlds
    assert all(w.closed for w in worlds)


def test_not_a_number_from_the_policy_ends_that_episode_as_a_failure_and_is_counted() -> None:
    seeds = range(40)
    right = [s for s in seeds if np.random.default_rng(s).uniform(-1, 1) > 0.35]
    sound, broken = (evaluate(policy(kind), Line, seeds, envs_per_worker=8) for kind in (Towards, Diverges))
    by_seed = {r.seed: r for r in broken.results}
    assert all(by_seed[s].non_finite and not by_seed[s].success and by_seed[s].length == 3 for s in right)
    left = [r for r in sound.results if np.random.default_rng(r.seed).uniform(-1, 1) < 0]
    assert [by_seed[r.seed] for r in left] == left
    assert broken.non_finite == broken.to_json()["non_finite_episodes"] >= len(right) > 0


def test_a_policy_that_does_not_fit_the_world_is_refused_before_a_step() -> None:
    log: list[float] = []
    wrong = PolicySpec({"state": Stream((3,))}, ACTION, rate_hz=10, obs_horizon=2, horizon=8, action_horizon=3)
    with pytest.raises(SpecError, match="world line"):
        evaluate(policy(spec=wrong), lambda: Line(log=log), [0])
    assert not log


@pytest.mark.parametrize(
    ("seeds", "workers", "message"), [([], 0, "at least one seed"), ([-1], 0, "negative"), ([1], 2, "workers=0")]
)
def test_impossible_requests_are_named(seeds: list[int], workers: int, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate(policy(), Line, seeds, workers=workers)


def test_a_worker_that_is_killed_gives_an_error_that_says_so_and_no_hang() -> None:
    with pytest.raises(EvaluationError, match=r"killed by SIGKILL.*memory"):
        evaluate(Dies, Line, range(50), workers=2, envs_per_worker=5)  # type: ignore[arg-type]


def test_a_fault_in_a_worker_comes_back_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="a fault in the network"):
        evaluate(Fails, Line, range(4), workers=1)  # type: ignore[arg-type]


def test_seeds_are_dealt_out_completely_and_no_worker_is_idle() -> None:
    parts = split(range(7), 3)
    assert sorted(s for part in parts for s in part) == list(range(7))
    assert split([4, 5], 8) == [(4,), (5,)]


def test_latency_is_measured_at_batch_one_and_leaves_threads_and_mode_alone() -> None:
    stand_in = Towards().train()
    threads = torch.get_num_threads()
    found = evaluate(cast(Policy, stand_in), Line, range(5), latency_calls=20)
    assert found.latency is not None
    assert found.latency.calls == 20
    assert 0 < found.latency.ms_p50 <= found.latency.ms_p99 < 1000
    assert [len(seen) for seen in stand_in.seen[:23]] == [1] * 23
    assert torch.get_num_threads() == threads
    assert stand_in.training


def test_episodes_rank_by_success_then_score_then_speed() -> None:
    results = (
        EpisodeResult(1, 0.5, False, 9),
        EpisodeResult(2, 1.0, True, 8, success_step=8),
        EpisodeResult(3, 1.0, True, 4, success_step=4),
        EpisodeResult(4, 0.9, False, 9),
    )
    assert [r.seed for r in Evaluation("line", results, 1.0).by_score()] == [1, 4, 2, 3]


def test_pusht_gives_the_same_episodes_in_batches_and_alone() -> None:
    pusht = pytest.importorskip("robolearn_sim.pusht")
    state, action = pusht.STATE, pusht.ACTION
    spec = PolicySpec({"state": state}, action, rate_hz=10, obs_horizon=2, horizon=16, action_horizon=8)

    class Pushes(Towards):
        def sample(self, context: Tensor, *, noise: Tensor, steps: int | None = None) -> Tensor:
            block = context[:, -1:, 2:4]
            return block + 60 * noise

        def noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
            return torch.randn(batch, 16, 2, generator=generator)

    make = functools.partial(pusht.PushT, max_steps=80)
    together = evaluate(policy(Pushes, spec=spec), make, range(100000, 100008), envs_per_worker=8)
    alone = evaluate(policy(Pushes, spec=spec), make, range(100000, 100008), envs_per_worker=1)
    assert together.results == alone.results
    assert len({r.score for r in together.results}) > 2
