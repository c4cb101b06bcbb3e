"""A world in which somebody says the same instruction all the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Step, World


class InstructedWorld:
    """``world`` with ``text`` in each of the text streams ``texts``, whatever the world itself says there."""

    def __init__(self, world: World, texts: Mapping[str, Stream], text: str) -> None:
        """Raises SchemaError: a text that is too long."""
        self._world = world
        self._said = {name: stream.check(name, text) for name, stream in texts.items()}
        schema = world.spec.schema
        self.spec = replace(world.spec, schema=Schema(schema.rate_hz, {**schema.streams, **texts}))

    def reset(self, seed: int) -> Observation:
        return {**self._world.reset(seed), **self._said}

    def step(self, action: np.ndarray) -> Step:
        step = self._world.step(action)
        return replace(step, observation={**step.observation, **self._said})

    def render(self) -> np.ndarray:
        return self._world.render()

    def close(self) -> None:
        self._world.close()


def instructed(make_world: Callable[[], World], texts: Mapping[str, Stream], text: str) -> World:
    """For a picklable world factory: ``functools.partial(instructed, make_world, texts, text)``."""
    return InstructedWorld(make_world(), texts, text)
