"""Lets a scripted expert act in a world, in several processes, and hands on what happened in a fixed order."""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from robolearn_data.schema import Schema, read_text
from robolearn_data.world import World
from robolearn_sim.experts import Expert, make_expert
from robolearn_sim.workers import in_order
from robolearn_sim.worlds import make_world, world_spec


@dataclass(frozen=True)
class Demonstration:
    seed: int
    streams: dict[str, np.ndarray]
    """Stream -> (T, *shape): what was observed before each action, "action" and "action_sent"."""
    success: bool

    @property
    def task(self) -> str:
        """What was asked for last, in a world that says so; otherwise empty."""
        said = self.streams.get("instruction")
        return "" if said is None else read_text(said[-1])


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
    work = functools.partial(_work, world, dict(options), noise)
    return in_order(work, first_seed=first_seed, workers=workers)


_held: dict[str, tuple[World, Expert]] = {}
"""In a worker process: the world it started, and who acts in it."""


def _work(world: str, options: dict[str, Any], noise: float, seed: int) -> Demonstration:
    if world not in _held:
        _held[world] = make_world(world, **options), make_expert(world, task=options.get("task"))
    return demonstrate(*_held[world], seed, noise)
