"""Evaluation in virtual time that is faithful to delay: the world never waits for the policy.

A chunk that is inferred from the observation of step k takes over at step k + d, where d is fixed or comes from
delays that were measured. Only at an episode's start the first chunk is waited for. Plans and draws are those of the
runtime, its clock is the count of steps.

Many worlds run in turn, each until it needs a chunk, so that inference is one batch for all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robolearn.policies.noise import chunk_generator
from robolearn.policies.policy import Policy
from robolearn.policies.reactive.driver import FastDriver
from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Observation, UserError
from robolearn_data.world import World
from robolearn_deploy.chunks import Chunk, Refusals, action_times_ns, hold_action
from robolearn_deploy.draws import Question
from robolearn_deploy.inference import Committed
from robolearn_deploy.plan import Commitment, PlanTiming
from robolearn_deploy.schedulers import DelayWindow, Scheduler, check_delay, check_policy, steps_of
from robolearn_deploy.smoothness import Smoothness
from robolearn_hardware.clock import period_ns


class DelayError(UserError):
    """Delays cannot be read, or make no sense."""


@dataclass(frozen=True)
class Delays:
    """Control steps from the capture of an observation to the first action of its chunk, inference by inference."""

    steps: tuple[int, ...]

    @classmethod
    def fixed(cls, steps: int) -> Delays:
        if steps < 0:
            raise DelayError(f"a delay of {steps} steps is not possible; give 0 or more")
        return cls((steps,))

    @classmethod
    def from_trace(cls, path: Path, rate_hz: float) -> Delays:
        """From a JSON file {"delays_ms": [...]}: times from a capture to the moment when the chunk was there.

        A chunk takes over at the next control step, so that times are rounded up to whole periods.

        Raises:
            DelayError: the file cannot be read or holds no delays.
        """
        try:
            delays_ms = np.asarray(json.loads(path.read_text())["delays_ms"], np.float64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DelayError(
                f"{path} holds no delays ({' '.join(str(error).split())[:100]}); "
                "record them with: robolearn deploy ... --json FILE"
            ) from error
        if delays_ms.ndim != 1 or not len(delays_ms) or not (np.isfinite(delays_ms) & (delays_ms >= 0)).all():
            raise DelayError(f"{path}: delays_ms must be a list of milliseconds, none negative")
        return cls(tuple(int(n) for n in np.ceil(delays_ms * rate_hz / 1e3)))

    @property
    def typical(self) -> int:
        """The median."""
        return int(np.median(self.steps))

    def of(self, seed: int) -> Iterator[int]:
        """Those of one episode: the recorded ones in their order, from a place that the seed names."""
        first = int(np.random.default_rng(seed).integers(len(self.steps)))
        return itertools.islice(itertools.cycle(self.steps), first, None)


@dataclass(frozen=True)
class DelayedEpisode:
    """How one episode went. The first fields are those of ``robolearn.evaluation.EpisodeResult``."""

    seed: int
    score: float
    success: bool
    length: int
    success_step: int | None
    non_finite: bool
    jerk: float | None
    """See ``Smoothness``, like ``jump`` and ``step``."""
    jump: float | None
    step: float | None
    held: int
    """Steps at which no chunk covered the present, so that the robot held."""


@dataclass(frozen=True, eq=False)
class _Ask:
    """An episode needs a chunk."""

    history: list[Observation]
    question: Question


def _episode(
    world: World, policy: Policy, scheduler: Scheduler, delays: Delays, seed: int, least: int
) -> Generator[_Ask, np.ndarray, DelayedEpisode]:
    """One episode: asks for chunks (Tp, A) when they take over, and returns how it went. Those of a slow-fast policy
    are latents (Tp, W), of which its fast half makes actions without delay.

    Args:
        least: control steps between the observations of two chunks (s_min).
    """
    spec = policy.spec
    fast = FastDriver(policy, world) if spec.fast else None
    period = period_ns(spec.rate_hz)
    plan = scheduler.plan(Refusals(), PlanTiming(period, spec.start, least))
    plan.begin(0)
    commitment = Commitment(period)
    coming = delays.of(seed)
    window = DelayWindow(0)
    for before in itertools.islice(delays.of(seed + 1), DelayWindow.SIZE):
        window.add(before)  # as if the robot had been running for a while
    smoothness = Smoothness(spec.action, spec.rate_hz)
    observation = world.reset(seed)
    if fast:
        fast.begin(observation)
    history: deque[Observation] = deque([observation] * spec.obs_horizon, maxlen=spec.obs_horizon)
    memory: dict[str, object] = {}
    pending: _Ask | None = None
    number = captured = arrives = begins = held = 0
    score, success_step = 0.0, None
    sent: np.ndarray | None = None

    def result(length: int, *, non_finite: bool = False) -> DelayedEpisode:
        solved = None if non_finite else success_step
        s = smoothness
        return DelayedEpisode(seed, score, solved is not None, length, solved, non_finite, s.jerk, s.jump, s.step, held)

    for step in itertools.count():
        now = step * period
        while True:
            if pending is None and step >= begins:
                times = action_times_ns(now, spec.start, spec.horizon, period)
                delay, execute = steps_of(window.expected, least, spec)
                known = commitment.on(times) if scheduler.committed else None
                committed = None if known is None else Committed(known, delay, execute)
                pending = _Ask(list(history), Question(chunk_generator(seed, number), step, committed, memory))
                captured, arrives = step, step + (next(coming) if number else 0)
                begins = arrives + least if scheduler.waits else max(step + execute, arrives)
            elif pending is not None and step >= arrives:
                actions = yield pending
                pending = None
                if not np.isfinite(actions).all():
                    return result(step, non_finite=True)
                times = action_times_ns(captured * period, spec.start, spec.horizon, period)
                chunk = Chunk(number, 0, captured * period, times, actions, int(times[-1]) + period)
                plan.offer(chunk, now)
                commitment.follow(chunk, now)
                if fast is None:
                    smoothness.chunk(actions[spec.start :])
                if number:
                    window.add(arrives - captured)
                number += 1
            else:
                break
        planned = plan.at(now)
        if planned is None:
            assert sent is not None  # the first chunk has been waited for
            action = hold_action(sent, spec.action.relative)
            held += 1
            outcome = world.step(action)
        elif fast:
            outcome, action = fast.step(planned.chunk.sequence, planned.chunk.actions, planned.index)
        else:
            action = planned.action
            outcome = world.step(action)
        commitment.did(now, action)
        smoothness.sent(action, planned.chunk.sequence if planned else None)
        sent = action
        history.append(outcome.observation)
        score = max(score, float(outcome.score))
        if outcome.success and success_step is None:
            success_step = step + 1
        if outcome.done or step + 1 >= world.spec.max_steps:
            return result(step + 1)
    raise AssertionError("unreachable")


def check(scheduler: Scheduler, spec: PolicySpec, delays: Delays, least: int | None) -> int:
    """Check that a policy of ``spec`` can work so, and return the least steps between two observations.

    Raises:
        SchedulerError: the policy's horizon cannot bridge the typical delay, or has fewer than ``least`` actions.
    """
    steps = scheduler.execute_steps(spec, least)
    if not scheduler.waits:
        check_delay(delays.typical, steps, spec)
    return steps


def _infer(policy: Policy, scheduler: Scheduler, asks: Sequence[_Ask], steps: int | None) -> np.ndarray:
    """Chunks (B, Tp, A) in physical units."""
    observation: dict[str, Tensor] = {}
    for name in policy.spec.observation:
        array = np.stack([np.stack([o[name] for o in ask.history]) for ask in asks])  # (B, To, ...)
        tensor = torch.from_numpy(array)
        observation[name] = (tensor.float() if tensor.is_floating_point() else tensor).to(policy.device)
    with torch.no_grad():
        chunks = scheduler.draw(policy, policy.encode(observation), [ask.question for ask in asks], steps)
    return chunks.float().cpu().numpy()


def rollout_delayed(
    policy: Policy,
    make_world: Callable[[], World],
    seeds: Sequence[int],
    *,
    worlds: int,
    scheduler: Scheduler,
    delays: Delays,
    least: int | None = None,
    steps: int | None = None,
) -> Iterator[DelayedEpisode]:
    """Run the episode of each seed and yield how they went as they end, not in the order of the seeds.

    The noise of a chunk depends on the seed and its number in the episode alone, as in
    ``robolearn.evaluation.lockstep``, and with ``naive`` and no delay the episodes are the same.

    Args:
        worlds: at most so many are open at the same time, which is the batch of inference.
        least: control steps between the observations of two chunks; None for the scheduler's choice.
        steps: of the sampler; None for the policy's own number.

    Raises:
        SchedulerError: the policy's horizon cannot bridge the typical delay, or its chunks cannot be drawn so.
    """
    spec = policy.spec
    least = check(scheduler, spec, delays, least)
    check_policy(scheduler, policy.config)
    waiting = deque(seeds)
    with contextlib.ExitStack() as stack:

        def open_world() -> World:
            world = make_world()
            stack.callback(world.close)
            return world

        def begin(world: World) -> tuple[World, Generator[_Ask, np.ndarray, DelayedEpisode], _Ask]:
            episode = _episode(world, policy, scheduler, delays, waiting.popleft(), least)
            return world, episode, next(episode)

        running = [begin(world) for world in [open_world() for _ in range(min(worlds, len(waiting)))]]
        while running:
            chunks = _infer(policy, scheduler, [ask for _, _, ask in running], steps)
            still = []
            for (world, episode, _), chunk in zip(running, chunks, strict=True):
                try:
                    still.append((world, episode, episode.send(chunk)))
                except StopIteration as end:
                    yield end.value
                    if waiting:
                        still.append(begin(world))
            running = still
