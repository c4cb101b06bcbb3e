"""Runs one policy in many worlds of one process, so that inference is batched.

Shapes: B worlds, To observations, Tp actions of a chunk, Ta executed ones, A components of an action, W numbers of a
slow-fast policy's latent.

One round infers a chunk for every world in a single batch, and then every world carries out its Ta actions. A world
whose episode ends begins the next one and waits for the next round, so that the batch stays full to the end.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robolearn.evaluation.results import EpisodeResult
from robolearn.policies.noise import chunk_generator
from robolearn.policies.policy import Policy
from robolearn.policies.reactive.driver import FastDriver
from robolearn_data.schema import Observation
from robolearn_data.world import Step, World

WorldFactory = Callable[[], World]
"""Makes a fresh world. Must be picklable where worlds run in other processes."""


class Rollout(Protocol):
    """A way to run episodes: ``rollout`` below, or one that is faithful to delay (`robolearn eval --delay`). Must be
    picklable where worlds run in other processes."""

    def __call__(
        self, policy: Policy, make_world: WorldFactory, seeds: Sequence[int], *, worlds: int, steps: int | None
    ) -> Iterator[EpisodeResult]:
        """See ``rollout`` below."""
        ...


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Batch 1 is as fast on one thread, and does not wait for a second one on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Episode:
    """One world in the middle of one episode, under receding-horizon control."""

    def __init__(self, world: World, policy: Policy, seed: int) -> None:
        """Raises FastWorldError: a slow-fast policy cannot act in this world."""
        spec = policy.spec
        self._world, self._spec = world, spec
        self._fast = FastDriver(policy, world) if spec.fast else None
        self.seed, self.replan = seed, 0
        self._score, self._length, self._success_step = 0.0, 0, None
        first = world.reset(seed)
        if self._fast:
            self._fast.begin(first)
        self.history: deque[Observation] = deque([first] * spec.obs_horizon, maxlen=spec.obs_horizon)

    def carry_out(self, chunk: np.ndarray) -> EpisodeResult | None:
        """Take the next Ta steps of ``chunk`` (Tp, A); the episode's result when it is over."""
        self.replan += 1
        if not np.isfinite(chunk).all():
            return self._result(non_finite=True)
        for index in range(self._spec.start, self._spec.start + self._spec.action_horizon):
            step = self._step(chunk, index)
            self.history.append(step.observation)
            self._length += 1
            self._score = max(self._score, float(step.score))
            if step.success and self._success_step is None:
                self._success_step = self._length
            if step.done or self._length >= self._world.spec.max_steps:
                return self._result()
        return None

    def _step(self, chunk: np.ndarray, index: int) -> Step:
        return self._fast.step(self.replan, chunk, index)[0] if self._fast else self._world.step(chunk[index])

    def _result(self, *, non_finite: bool = False) -> EpisodeResult:
        solved = None if non_finite else self._success_step
        return EpisodeResult(self.seed, self._score, solved is not None, self._length, solved, non_finite)


def infer(policy: Policy, episodes: Sequence[Episode], *, steps: int | None) -> np.ndarray:
    """A chunk for every episode, (B, Tp, A) in physical units (of a slow-fast policy its latent, (B, Tp, W))."""
    spec = policy.spec
    observation: dict[str, Tensor] = {}
    for name in spec.observation:
        array = np.stack([np.stack([o[name] for o in episode.history]) for episode in episodes])  # (B, To, ...)
        tensor = torch.from_numpy(array)
        observation[name] = (tensor.float() if tensor.is_floating_point() else tensor).to(policy.device)
    noise = torch.cat([policy.noise(1, chunk_generator(e.seed, e.replan)) for e in episodes])  # (B, Tp, A)
    with torch.no_grad():
        chunk = policy.sample(policy.encode(observation), noise=noise, steps=steps)  # (B, Tp, A)
    return chunk.float().cpu().numpy()


def rollout(
    policy: Policy, make_world: WorldFactory, seeds: Sequence[int], *, worlds: int, steps: int | None = None
) -> Iterator[EpisodeResult]:
    """Run the episode of each seed and yield results as they come, not in the order of the seeds.

    The noise of a chunk depends on the seed and its number in the episode alone. What batches of another size still
    change is the rounding of matrix products (1e-6 relative), which contact can amplify in the course of an episode.

    Args:
        worlds: at most so many are open at the same time, which is the batch of inference.
        steps: of the sampler; None for the policy's own number.
    """
    waiting = deque(seeds)
    with contextlib.ExitStack() as stack:

        def open_world() -> World:
            world = make_world()
            stack.callback(world.close)
            return world

        lanes = [open_world() for _ in range(min(worlds, len(waiting)))]
        running = [(world, Episode(world, policy, waiting.popleft())) for world in lanes]
        while running:
            chunks = infer(policy, [episode for _, episode in running], steps=steps)
            still = []
            for (world, episode), chunk in zip(running, chunks, strict=True):
                result = episode.carry_out(chunk)
                if result is None:
                    still.append((world, episode))
                    continue
                yield result
                if waiting:
                    still.append((world, Episode(world, policy, waiting.popleft())))
            running = still
