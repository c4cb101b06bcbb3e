"""Evaluation in virtual time: which chunk's action is carried out at which step, for every scheduler and delay."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from policy_makers import make as make_policy
from torch import Tensor

from robolearn.evaluation.lockstep import rollout
from robolearn.policies.config import PolicyConfig
from robolearn.policies.contracts import Prior
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Observation, Schema, Stream, UserError
from robolearn_data.world import Step, WorldSpec
from robolearn_deploy.delayed import DelayedEpisode, DelayError, Delays, rollout_delayed
from robolearn_deploy.schedulers import SCHEDULERS, DelayWindow, SchedulerError, check_delay, find, steps_of
from robolearn_deploy.smoothness import Smoothness

STATE = Stream((2,), names=("step", "seed"))
ACTION = Stream((2,), kind="action", relative=(1,))
SPEC = PolicySpec({"state": STATE}, ACTION, rate_hz=10, obs_horizon=2, horizon=16, action_horizon=4)
START, REACH, LEAST = SPEC.start, SPEC.horizon - SPEC.start, SPEC.action_horizon
STEPS = 40


class Counter:
    """Observes how many steps it has taken, and keeps every action."""

    def __init__(self, log: list[np.ndarray] | None = None, max_steps: int = STEPS) -> None:
        self.spec = WorldSpec("counter", Schema(10, {"state": STATE, "action": ACTION}), max_steps)
        self.log = [] if log is None else log

    def reset(self, seed: int) -> Observation:
        self.seed, self.steps = seed, 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        self.log.append(ACTION.check("action", action).copy())
        self.steps += 1
        return Step(self._observe(), self.steps / self.spec.max_steps, False, self.steps == self.spec.max_steps)

    def render(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None: ...

    def _observe(self) -> Observation:
        return {"state": np.array([self.steps, self.seed], np.float32)}


class Names:
    """Action i of a chunk is [step that was observed, steps from there to the one it is for]; what a prior commits
    with weight 1 is returned as it is. Keeps the priors."""

    def __init__(self) -> None:
        self.spec, self.device = SPEC, torch.device("cpu")
        self.config = PolicyConfig(FlowConfig(prefix=START + 3))
        self.priors: list[tuple[Tensor, Prior | None]] = []

    def encode(self, observation: dict[str, Tensor]) -> Tensor:
        return observation["state"]

    def noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(batch, SPEC.horizon, 2, generator=generator)

    def sample(self, context: Tensor, *, noise: Tensor, steps: int | None = None, prior: Prior | None = None) -> Tensor:
        self.priors.append((context, prior))
        observed = context[:, -1, :1].expand(-1, SPEC.horizon)
        ahead = (torch.arange(SPEC.horizon) - SPEC.start).float().expand_as(observed)
        chunk = torch.stack([observed, ahead], dim=-1)
        if prior is None:
            return chunk
        return torch.where((prior.weight == 1).unsqueeze(-1), prior.action, chunk)


def run(scheduler: str, delays: Delays, policy: Any = None, **options: Any) -> tuple[np.ndarray, DelayedEpisode]:
    """(STEPS, 2) actions that one world was given, and how the episode went."""
    log: list[np.ndarray] = []
    policy = cast(Policy, policy or Names())
    options = {"worlds": 1, "scheduler": find(scheduler), "delays": delays, **options}
    (episode,) = rollout_delayed(policy, lambda: Counter(log), [7], **options)
    return np.stack(log), episode


@pytest.mark.parametrize("delay", range(8))
def test_naive_carries_out_the_newest_chunk_that_has_arrived(delay: int) -> None:
    between = max(delay, LEAST)
    log, episode = run("naive", Delays.fixed(delay))
    for step, (observed, ahead) in enumerate(log):
        # Observations 0, s, 2s, ... are inferred from; one of them takes over d later, the first at once.
        newest = max(k for k in range(0, STEPS, between) if k == 0 or k + delay <= step)
        assert (observed, ahead) == (newest, step - newest)
    assert episode.held == 0


@pytest.mark.parametrize("delay", range(9))
def test_sync_holds_for_the_delay_and_then_carries_out_the_chunk_from_its_start(delay: int) -> None:
    log, episode = run("sync", Delays.fixed(delay))
    expected = [(0, i) for i in range(LEAST)]
    while len(expected) < STEPS:
        observed = len(expected)
        held = [(expected[-1][0], 0)] * delay  # the first component is a target and stays, the second a change
        expected += [*held, *((observed, i) for i in range(LEAST))]
    assert [tuple(action) for action in log.tolist()] == expected[:STEPS]
    assert episode.held == sum(not any(step - a < LEAST for a in _sync_starts(delay, step)) for step in range(STEPS))


def _sync_starts(delay: int, until: int) -> list[int]:
    """Steps up to ``until`` at which a chunk begins to be carried out."""
    return list(range(0, until + 1, LEAST + delay))


@pytest.mark.parametrize("delay", range(8))
def test_ensemble_weighs_all_chunks_that_cover_a_step_by_the_exponential_of_their_age(delay: int) -> None:
    between = max(delay, 1)
    log, _ = run("ensemble", Delays.fixed(delay))
    for step, action in enumerate(log):
        arrived = [k for k in range(0, STEPS, between) if k == 0 or k + delay <= step]
        covering = [k for k in arrived if step - k < REACH]  # oldest first
        weights = [math.exp(-0.01 * (k - covering[0])) for k in covering]
        observed = sum(w * k for w, k in zip(weights, covering, strict=True)) / sum(weights)
        ahead = sum(w * (step - k) for w, k in zip(weights, covering, strict=True)) / sum(weights)
        assert action == pytest.approx([observed, ahead], rel=1e-5)


@pytest.mark.parametrize("scheduler", ["rtc", "rtc-identity"])
@pytest.mark.parametrize("delay", range(8))
def test_rtc_is_given_what_was_and_will_be_carried_out_and_keeps_it_until_the_chunk_takes_over(
    scheduler: str, delay: int
) -> None:
    policy, between = Names(), max(delay, LEAST)
    log, episode = run(scheduler, Delays.fixed(delay), policy)
    assert policy.priors[0][1] is None
    previous_end = REACH  # of the chunk before, in steps
    for context, prior in policy.priors[1:]:
        assert prior is not None
        assert prior.method == scheduler
        observed = int(context[0, -1, 0])
        weight, action = prior.weight[0].numpy(), prior.action[0].numpy()
        frozen = range(START + delay)
        assert weight[list(frozen)].tolist() == [1.0] * len(frozen)
        for i in frozen:
            if observed + i - START < STEPS:
                assert action[i].tolist() == log[observed + i - START].tolist()
        # Beyond H - s the chunk before says nothing, and nothing is known.
        assert (weight[START + REACH - between :] == 0).all()
        known = np.isfinite(action).all(axis=1)
        assert known.tolist() == [observed + i - START < previous_end for i in range(SPEC.horizon)]
        assert ((weight > 0) <= known).all()
        previous_end = observed + REACH
    # The join falls where the frozen prefix ends: the new chunk's own actions are the first that differ.
    expected = [max(k for k in range(0, STEPS, between) if k == 0 or k + delay <= step) for step in range(STEPS)]
    assert log[:, 0].tolist() == expected
    assert episode.held == 0


def test_rtc_trained_freezes_the_expected_delay_and_no_more() -> None:
    policy = Names()
    log, _ = run("rtc-trained", Delays.fixed(3), policy)
    for context, prior in policy.priors[1:]:
        assert prior is not None
        assert prior.method == "prefix"
        assert prior.weight[0].tolist() == [1.0] * (START + 3) + [0.0] * (SPEC.horizon - START - 3)
        observed = int(context[0, -1, 0])
        assert prior.action[0, : START + 3].tolist() == log[observed - START : observed + 3].tolist()


def test_delays_of_a_trace_decide_when_each_chunk_takes_over_and_the_longest_recent_one_is_expected() -> None:
    delays = Delays((1, 4, 2, 6, 1))
    policy = Names()
    log, _ = run("rtc", delays, policy)
    coming, observed, arrivals = delays.of(7), 0, {0: 0}
    while observed < STEPS:
        expected = 6  # the longest of the last ten in every window of this trace
        begins = max(observed + max(expected, LEAST), arrivals[observed])
        arrivals[begins] = begins + next(coming)
        observed = begins
    for step, action in enumerate(log):
        newest = max(k for k, at in arrivals.items() if at <= step)
        # An early chunk begins with what was frozen.
        assert action[0] == newest or step < newest + 6
    for context, prior in policy.priors[1:]:
        assert prior is not None
        assert int(context[0, -1, 0]) in arrivals
        assert (prior.weight[0] == 1).sum() == START + 6


def test_a_chunk_that_comes_after_the_plan_has_expired_finds_the_robot_holding() -> None:
    log, episode = run("naive", Delays((3, 3, 20, 3)), least=4)
    assert episode.held > 0
    held = [i for i in range(1, STEPS) if log[i, 1] == 0 and log[i, 0] == log[i - 1, 0]]
    assert len(held) == episode.held


@pytest.mark.parametrize("worlds", [1, 3, 8])
def test_without_delay_naive_and_sync_are_the_lockstep_evaluation_exactly(worlds: int) -> None:
    policy = make_policy()
    streams = {**policy.spec.observation, "action": policy.spec.action}

    def make(log: dict[int, list[np.ndarray]]):
        class Drift(Counter):
            """The state follows the action, with an end that depends on the seed."""

            def __init__(self) -> None:
                self.spec = WorldSpec("drift", Schema(policy.spec.rate_hz, streams), 25)

            def reset(self, seed: int) -> Observation:
                self.rng, self.seed, self.steps = np.random.default_rng(seed), seed, 0
                log[seed] = []
                return self._observe()

            def step(self, action: np.ndarray) -> Step:
                log[self.seed].append(action.copy())
                self.steps += 1
                score = float(abs(np.sin(action.sum())))
                done = self.steps == 25 - self.seed % 7
                return Step(self._observe(), score, score > 0.97, done)

            def _observe(self) -> Observation:
                return {n: self.rng.uniform(-1, 1, s.shape).astype(s.dtype) for n, s in policy.spec.observation.items()}

        return Drift

    plain: dict[int, list[np.ndarray]] = {}
    expected = list(rollout(policy, make(plain), range(9), worlds=worlds, steps=2))
    for name in ("naive", "sync"):
        log: dict[int, list[np.ndarray]] = {}
        options = {"worlds": worlds, "scheduler": find(name), "delays": Delays.fixed(0), "steps": 2}
        found = list(rollout_delayed(policy, make(log), range(9), **options))
        assert [vars(e) | {"jerk": None, "jump": None, "step": None} for e in found] == [vars(e) for e in expected]
        for seed, actions in plain.items():
            assert np.array_equal(actions, log[seed])


OBJECTIVES = {"rtc-trained": {"prefix": 5}, "streaming": {"prefix": 5, "streaming": 4}}
"""Scheduler -> what its policy was trained for, where that matters."""


def real_policy(scheduler: str) -> Policy:
    """A small network with random weights, which could have been trained for ``scheduler``; H = 15, Ta = 4."""
    made = make_policy()
    config = replace(made.config, objective=replace(made.config.objective, **OBJECTIVES.get(scheduler, {})))
    policy = Policy(replace(made.spec, action_horizon=4), made.statistics, config)
    policy.load_state_dict(made.state_dict())
    return policy.eval()


def run_real(scheduler: str, delay: int, seeds: range, worlds: int = 1) -> tuple[dict[int, np.ndarray], list[Any]]:
    """(seed -> (20, 2) actions carried out, [(questions, chunks) of each inference]) in worlds whose state rises."""
    policy = real_policy(scheduler)
    drawn: list[Any] = []
    draw = find(scheduler).draw

    def keep(policy: Policy, context: Any, questions: Any, steps: int | None) -> Tensor:
        chunks = draw(policy, context, questions, steps)
        drawn.append((questions, chunks.numpy()))
        return chunks

    logs: dict[int, list[np.ndarray]] = {}
    streams = {**policy.spec.observation, "action": policy.spec.action}

    class Rising(Counter):
        def __init__(self) -> None:
            self.spec = WorldSpec("rising", Schema(policy.spec.rate_hz, streams), 20)

        def reset(self, seed: int) -> Observation:
            self.log = logs[seed] = []
            return super().reset(seed)

        def step(self, action: np.ndarray) -> Step:
            self.log.append(action.copy())
            self.steps += 1
            return Step(self._observe(), 0.0, False, self.steps == 20)

        def _observe(self) -> Observation:
            value = 3.0 * self.steps + self.seed
            return {n: np.full(s.shape, value).astype(s.dtype) for n, s in policy.spec.observation.items()}

    options = {"scheduler": replace(find(scheduler), draw=keep), "delays": Delays.fixed(delay), "steps": 4}
    list(rollout_delayed(policy, Rising, seeds, worlds=worlds, **options))
    return {seed: np.stack(log) for seed, log in logs.items()}, drawn


@pytest.mark.parametrize("scheduler", ["rtc", "rtc-identity", "rtc-trained", "bid", "streaming"])
@pytest.mark.parametrize("delay", [1, 3])
def test_a_real_policy_carries_out_the_frozen_actions_unchanged(scheduler: str, delay: int) -> None:
    """What was carried out before a chunk took over, and what it says of those steps, are the same numbers."""
    logs, drawn = run_real(scheduler, delay, range(1))
    assert len(drawn) == 5
    for number, (_, chunks) in enumerate(drawn[1:], start=1):
        done = logs[0][4 * number :][:delay]
        assert np.allclose(chunks[0, START:][: len(done)], done, rtol=1e-5)
        following = logs[0][4 * number + delay :][:4]  # from there on it is the chunk that is carried out
        assert np.allclose(chunks[0, START + delay :][: len(following)], following, rtol=1e-5)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_scheduler_carries_anything_from_one_world_or_episode_to_another(scheduler: str) -> None:
    alone, _ = run_real(scheduler, 2, range(5), worlds=1)
    together, drawn = run_real(scheduler, 2, range(5), worlds=3)
    assert max(len(questions) for questions, _ in drawn) == 3
    for seed in range(5):
        assert np.allclose(alone[seed], together[seed], rtol=1e-4, atol=1e-3)


def test_streaming_goes_on_from_its_buffer_and_starts_anew_only_where_the_delay_has_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anew: list[int] = []
    sample = Policy.sample

    def counted(self: Policy, context: Any, **options: Any) -> Tensor:
        anew.append(len(context))
        return sample(self, context, **options)

    monkeypatch.setattr(Policy, "sample", counted)
    _, drawn = run_real("streaming", 3, range(2))
    assert len(drawn) == 10
    # In each of two episodes the first chunk, which is waited for, and the second, the first to bridge the delay.
    assert anew == [1, 1, 1, 1]
    buffers = [questions[0].memory["buffer"] for questions, _ in drawn]
    assert len({id(buffer) for buffer in buffers}) == 2
    assert {buffer.first for buffer in buffers} == {START + 3}


@pytest.mark.parametrize(
    ("scheduler", "message"), [("rtc-trained", "objective.prefix"), ("streaming", "objective.streaming")]
)
def test_a_policy_that_was_not_trained_for_a_scheduler_is_refused_in_one_line(scheduler: str, message: str) -> None:
    policy = make_policy()
    options = {"worlds": 1, "scheduler": find(scheduler), "delays": Delays.fixed(2), "least": 4, "steps": 2}
    episodes = rollout_delayed(policy, lambda: _Blank(policy.spec), [0], **options)
    with pytest.raises(UserError, match=message):
        next(episodes)


class _Blank(Counter):
    def __init__(self, spec: PolicySpec) -> None:
        self.streams = spec.observation
        self.spec = WorldSpec("blank", Schema(spec.rate_hz, {**spec.observation, "action": spec.action}), 20)

    def step(self, action: np.ndarray) -> Step:
        self.steps += 1
        return Step(self._observe(), 0.0, False, self.steps == 20)

    def _observe(self) -> Observation:
        return {name: np.zeros(stream.shape, stream.dtype) for name, stream in self.streams.items()}


def test_nan_from_the_policy_ends_the_episode_as_a_failure() -> None:
    class Broken(Names):
        def sample(self, context: Tensor, **options: Any) -> Tensor:
            return super().sample(context, **options).masked_fill(context[0, -1, 0] >= LEAST, math.nan)

    _, episode = run("naive", Delays.fixed(2), Broken())
    assert (episode.non_finite, episode.success, episode.length) == (True, False, LEAST + 2)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_delay_that_the_horizon_cannot_bridge_is_refused_unless_the_robot_waits(name: str) -> None:
    if find(name).waits:
        run(name, Delays.fixed(9))
        return
    with pytest.raises(SchedulerError, match=r"cannot bridge a delay of 9 control steps .* up to 7"):
        run(name, Delays.fixed(9))


def test_steps_between_chunks_follow_rtc_and_stay_within_the_horizon() -> None:
    for delay in range(12):
        for least in range(1, REACH + 1):
            d, s = steps_of(delay, least, SPEC)
            assert 0 <= d <= s <= REACH - d
            assert s >= 1
            if max(delay, least) + delay <= REACH:
                assert (d, s) == (delay, max(delay, least))
                check_delay(delay, least, SPEC)
            else:
                with pytest.raises(SchedulerError):
                    check_delay(delay, least, SPEC)
    with pytest.raises(SchedulerError, match="16 steps between chunks"):
        find("naive").execute_steps(SPEC, 16)


def test_an_outlier_leaves_the_window_of_delays() -> None:
    window = DelayWindow(initial=2)
    assert window.expected == 2
    for delay in [3, 50, *[3] * 9]:
        window.add(delay)
    assert window.expected == 50
    window.add(3)
    assert window.expected == 3


def test_milliseconds_of_a_trace_are_rounded_up_to_control_steps(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"delays_ms": [0.0, 1.0, 100.0, 100.1, 250.0]}))
    delays = Delays.from_trace(path, rate_hz=10)
    assert delays.steps == (0, 1, 1, 2, 3)
    assert delays.typical == 1
    coming = delays.of(3)
    first = [next(coming) for _ in range(5)]
    assert sorted(first) == sorted(delays.steps)
    assert [next(coming) for _ in range(5)] == first


@pytest.mark.parametrize("text", ["", "[]", '{"delays_ms": []}', '{"delays_ms": [-1]}', '{"delays_ms": ["a"]}'])
def test_a_file_without_delays_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(DelayError, match=r"trace\.json"):
        Delays.from_trace(path, 10)


def test_jerk_and_joins_are_what_their_formulas_say() -> None:
    smoothness = Smoothness(ACTION, rate_hz=10)
    t = np.arange(8) / 10
    # A position 2 t^3 has the jerk 12; the second component's changes add up to t^3, whose jerk is 6.
    actions = np.stack([2 * t**3, np.diff(t**3, prepend=0)], axis=1)
    for number, action in enumerate(actions):
        smoothness.sent(action, number // 4)
    smoothness.chunk(np.array([[0.0, 0], [3, 4], [3, 4]]))
    assert smoothness.jerk == pytest.approx(math.hypot(12, 6))
    assert smoothness.jump == pytest.approx(np.linalg.norm(actions[4] - actions[3]))
    assert smoothness.step == pytest.approx(2.5)
    still = Smoothness(ACTION, rate_hz=10)
    still.sent(actions[0], 0)
    assert (still.jerk, still.jump, still.step) == (None, None, None)
