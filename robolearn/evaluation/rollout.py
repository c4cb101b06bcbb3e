"""`evaluate`: a policy, a world and a list of starts give counts with intervals."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from robolearn.evaluation.lockstep import Episode, Rollout, WorldFactory, infer, one_thread
from robolearn.evaluation.lockstep import rollout as lockstep_rollout
from robolearn.evaluation.results import EpisodeResult, Evaluation, Latency
from robolearn.evaluation.workers import EvaluationError, Job, run_in_processes, split
from robolearn.policies.checkpoint import load_policy
from robolearn.policies.policy import Policy
from robolearn_data.world import World

PolicySource = Policy | str | Path | Callable[[], Policy]
"""A policy in memory, a checkpoint folder, or a picklable function that loads one."""


def evaluate(
    source: PolicySource,
    make_world: WorldFactory,
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    workers: int = 0,
    envs_per_worker: int = 16,
    latency_calls: int = 0,
    rollout: Rollout = lockstep_rollout,
    on_result: Callable[[EpisodeResult], None] | None = None,
) -> Evaluation:
    """Run one episode for each seed, under receding-horizon control, many worlds at a time.

    Neither the number of workers nor the batch changes an episode, beyond rounding: see ``lockstep.rollout``.

    Args:
        source: with ``workers`` > 0 not a policy in memory, since each process loads its own.
        make_world: called without arguments, once for each world; picklable with ``workers`` > 0.
        steps: of the sampler (denoising or integration steps); None for the policy's own number.
        workers: processes; 0 runs in this one, which suits a few episodes during training.
        envs_per_worker: worlds stepped together in a process, which is the batch of inference.
        latency_calls: inferences at batch 1 to be timed before the episodes; 0 for none.
        rollout: how episodes are run; by default in lockstep, where the world waits for the policy.
        on_result: called with each episode as it finishes, in no fixed order.

    Raises:
        SpecError: the policy does not fit the world.
        EvaluationError: no seeds, or a worker died.
    """
    if not len(seeds) or min(seeds) < 0:
        raise EvaluationError(f"episodes need at least one seed, none negative; got {list(seeds)[:5]}")
    if workers and isinstance(source, nn.Module):
        raise EvaluationError("a policy in memory runs with workers=0; save it and give the folder to use more")
    load = _loader(source)
    policy = load()
    with _inference_mode(policy):
        latency = None
        with contextlib.closing(make_world()) as world:
            spec = world.spec
            policy.spec.check_fits(spec.schema, f"world {spec.name}")
            if latency_calls:
                latency = measure_latency(policy, world, seeds[0], steps=steps, calls=latency_calls)

        results: list[EpisodeResult] = []

        def collect(result: EpisodeResult) -> None:
            results.append(result)
            if on_result:
                on_result(result)

        if workers:
            parts = split(seeds, workers)
            wall_s = run_in_processes(
                [Job(load, make_world, p, envs_per_worker, steps, rollout) for p in parts], collect
            )
        else:
            began = time.monotonic()
            for result in rollout(policy, make_world, seeds, worlds=envs_per_worker, steps=steps):
                collect(result)
            wall_s = time.monotonic() - began
    order = {seed: i for i, seed in enumerate(seeds)}
    return Evaluation(spec.name, tuple(sorted(results, key=lambda r: order[r.seed])), wall_s, latency)


def measure_latency(
    policy: Policy, world: World, seed: int, *, steps: int | None, calls: int, budget_s: float = 20.0
) -> Latency:
    """Time from observation to chunk at batch 1 on one thread, as a robot would wait for it.

    Three calls warm up and do not count. A slow sampler stops after ``budget_s``, but not before 10 calls.
    """
    episode = Episode(world, policy, seed)
    with one_thread():
        for _ in range(3):
            infer(policy, [episode], steps=steps)
        times: list[float] = []
        while len(times) < calls and (len(times) < 10 or sum(times) < budget_s):
            began = time.perf_counter()
            infer(policy, [episode], steps=steps)
            times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return Latency(float(p50), float(p99), len(times))


def _loader(source: PolicySource) -> Callable[[], Policy]:
    if isinstance(source, str | Path):
        return functools.partial(load_policy, Path(source))
    if isinstance(source, nn.Module):
        return lambda: cast(Policy, source)
    return source


@contextlib.contextmanager
def _inference_mode(policy: Policy) -> Iterator[None]:
    """Dropout off while it lasts."""
    was_training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(was_training)
