"""Lets a scripted expert act in a world, in several processes, and hands on what happened in a fixed order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from robolearn_data.schema import Schema
from robolearn_data.world import World
from robolearn_sim.experts import Expert, make_expert
from robolearn_sim.worlds import make_world, world_spec


@dataclass(frozen=True)
class Demonstration:
    seed: int
    streams: dict[str, np.ndarray]
    """Stream -> (T, *shape): what was observed before each action, "action" and "action_sent"."""
    success: bool


def demonstration_schema(world: str, options: Mapping[str, Any]) -> Schema:
    """The world's streams and "action_sent", the disturbed action that was carried out. It is of kind info: a policy
    learns "action", what the expert meant to do, and thereby to come back from disturbances (DART, Laskey et al. 2017).
    """
    schema = world_spec(world, **options).schema
    sent = replace(schema.streams["action"], kind="info")
    return Schema(schema.rate_hz, {**schema.streams, "action_sent": sent})


def demonstrate(world: World, expert: Expert, seed: int, noise: float) -> Demonstration:
    """One episode, determined by ``seed``. ``noise``: standard deviation of what is added to the expert's action."""
    rng = np.random.default_rng([seed, 1])  # apart from the generator of the world's start
    observation = world.reset(seed)
    expert.reset(rng)
    rows: list[dict[str, np.ndarray]] = []
    while True:
        action = expert.act(observation)
        sent = action + noise * expert.noise_shape * rng.standard_normal(action.shape)
        rows.append({**observation, "action": action, "action_sent": sent})
        step = world.step(sent)
        observation = step.observation
        if step.done:
            streams = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            return Demonstration(seed, streams, step.success)


def demonstrations(
    world: str, options: Mapping[str, Any], *, first_seed: int, noise: float, workers: int
) -> Generator[Demonstration, None, None]:
    """Episodes of the seeds ``first_seed``, ``first_seed + 1``, ... in this order, without end. Close the iterator to
    stop the processes.
    """
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=begin_worker)
    pending: deque[Future[Demonstration]] = deque()
    try:
        for seed in count(first_seed):
            pending.append(pool.submit(_work, world, dict(options), seed, noise))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_held: dict[str, tuple[World, Expert]] = {}
"""In a worker process: the world it started, and who acts in it."""


def begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(world: str, options: dict[str, Any], seed: int, noise: float) -> Demonstration:
    if world not in _held:
        _held[world] = make_world(world, **options), make_expert(world, task=options.get("task"))
    return demonstrate(*_held[world], seed, noise)
