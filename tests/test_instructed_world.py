"""Whose words a policy hears in a world: the world's own until a person says something, and then that person's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robolearn_data.instructed import Always, InstructedWorld, with_texts
from robolearn_data.schema import Observation, Schema, SchemaError, Stream, UserError, read_text
from robolearn_data.world import Step, WorldSpec

TEXT = Stream((32,), "uint8", "text")
SILENT = WorldSpec("dumb", Schema(10.0, {"state": Stream((1,)), "action": Stream((1,), kind="action")}), max_steps=5)
SPEAKING = replace(SILENT, schema=Schema(10.0, {"task": TEXT, **SILENT.schema.streams}))


class Silent:
    spec = SILENT

    def reset(self, seed: int) -> Observation:
        return {"state": np.zeros(1, np.float32)}

    def step(self, action: np.ndarray) -> Step:
        return Step(self.reset(0), 0.0, False, False)

    def render(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None: ...


class Speaking(Silent):
    """Says another thing in every episode."""

    spec = SPEAKING
    said = ""

    def reset(self, seed: int) -> Observation:
        self.said = f"task {seed}"
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        return Step(self._observe(), 0.0, False, False)

    def _observe(self) -> Observation:
        return {"state": np.zeros(1, np.float32), "task": TEXT.check("task", self.said)}


class Obedient(Speaking):
    """What it is told is its task, unless it is nonsense."""

    def instruct(self, text: str) -> Observation:
        if text == "nonsense":
            raise UserError("'nonsense' is not understood")
        self.said = text
        return self._observe()


def heard(observation: Observation) -> str:
    return read_text(observation["task"])


def test_the_worlds_own_words_stand_until_a_person_speaks_and_again_when_that_is_taken_back() -> None:
    words = [""]
    world = InstructedWorld(Speaking(), {"task": TEXT}, lambda: words[0])
    assert world.spec == SPEAKING
    assert heard(world.reset(3)) == "task 3"
    words[0] = "stop"
    assert heard(world.step(np.zeros(1)).observation) == "stop"
    assert heard(world.reset(4)) == "stop"
    words[0] = ""
    assert heard(world.step(np.zeros(1)).observation) == "task 4"


def test_a_world_without_words_has_the_stream_of_the_policy_silent_until_a_person_speaks() -> None:
    words = [""]
    world = InstructedWorld(Silent(), {"task": TEXT}, lambda: words[0])
    assert world.spec == with_texts(SILENT, {"task": TEXT})
    assert world.spec.schema.streams["task"] == TEXT
    observation = world.reset(0)
    assert heard(observation) == ""
    words[0] = "go"
    assert heard(world.told(observation)) == "go"


def test_what_a_person_says_is_the_task_of_a_world_that_obeys_in_every_episode() -> None:
    inner, words = Obedient(), ["lift"]
    world = InstructedWorld(inner, {"task": TEXT}, lambda: words[0])
    for seed in (1, 2):
        assert heard(world.reset(seed)) == inner.said == "lift"
    words[0] = "drop"
    assert heard(world.step(np.zeros(1)).observation) == inner.said == "drop"


def test_what_a_world_does_not_understand_is_an_error_or_for_the_policy_alone() -> None:
    with pytest.raises(UserError, match="'nonsense' is not understood"):
        InstructedWorld(Obedient(), {}, Always("nonsense")).reset(1)
    inner = Obedient()
    world = InstructedWorld(inner, {}, Always("nonsense"), understood=False)
    assert heard(world.reset(1)) == "nonsense"
    assert inner.said == "task 1"


def test_a_text_longer_than_the_stream_is_refused() -> None:
    with pytest.raises(SchemaError, match="takes texts of 32 bytes, got one of 40"):
        InstructedWorld(Silent(), {"task": TEXT}, Always("x" * 40)).reset(0)
