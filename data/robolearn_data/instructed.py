"""A world in which a person says what to do. Until then the world's own words stand, where it has any."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream, UserError
from robolearn_data.world import Step, World, WorldSpec


@runtime_checkable
class Instructible(Protocol):
    """A world whose task is what it is told."""

    def instruct(self, text: str) -> Observation:
        """From now on ``text`` is what counts and what is said, until the next ``reset``. What was observed last, with
        the new text.

        Raises:
            UserError: it asks for nothing that is known.
        """
        ...


def with_texts(spec: WorldSpec, texts: Mapping[str, Stream]) -> WorldSpec:
    """``spec`` with those of the text streams ``texts`` (of a policy) that the world itself does not offer."""
    schema = spec.schema
    return replace(spec, schema=Schema(schema.rate_hz, {**texts, **schema.streams}))


class InstructedWorld:
    """``world`` with what ``said()`` gives in each of its text streams, and in those of ``texts``.

    While that is empty the world speaks for itself, and is silent in a stream that it has not. What is said is the task
    of an ``Instructible`` world.
    """

    def __init__(
        self, world: World, texts: Mapping[str, Stream], said: Callable[[], str], *, understood: bool = True
    ) -> None:
        """
        Args:
            understood: what an ``Instructible`` world does not understand is an error; otherwise the policy alone hears
                it, and the world's task stays as it is.
        """
        self._world, self._said, self._understood = world, said, understood
        self.spec = with_texts(world.spec, texts)
        self._streams = self.spec.schema.of_kind("text")
        self._silence = {
            name: np.zeros(stream.shape, stream.dtype)
            for name, stream in self._streams.items()
            if name not in world.spec.schema.streams
        }
        self._text, self._values = "", self._silence
        self._followed = ""

    def reset(self, seed: int) -> Observation:
        self._followed = ""
        return self.told(self._world.reset(seed))

    def step(self, action: np.ndarray) -> Step:
        step = self._world.step(action)
        return replace(step, observation=self.told(step.observation))

    def told(self, observation: Observation) -> Observation:
        """``observation`` with what is said now.

        Raises:
            SchemaError: a text that is too long.
            UserError: the world does not understand it, and should.
        """
        text = self._said()
        if text != self._text:
            said = {name: stream.check(name, text) for name, stream in self._streams.items()}
            self._text, self._values = text, said if text else self._silence
        if text and text != self._followed:
            self._followed = text
            if isinstance(self._world, Instructible):
                with contextlib.suppress(*(() if self._understood else (UserError,))):
                    observation = self._world.instruct(text)
        return {**observation, **self._values}

    def render(self) -> np.ndarray:
        return self._world.render()

    def close(self) -> None:
        self._world.close()


class Always:
    """Says ``text`` whenever it is asked. It can be pickled."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self) -> str:
        return self._text


def instructed(make_world: Callable[[], World], texts: Mapping[str, Stream], text: str) -> World:
    """For a picklable world factory: ``functools.partial(instructed, make_world, texts, text)``."""
    return InstructedWorld(make_world(), texts, Always(text))
