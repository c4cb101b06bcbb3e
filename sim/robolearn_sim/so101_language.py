"""The SO-101 tabletop with instructions: reach for, lift, push or put one of three coloured cubes, said in many ways.

Each episode's scene and instruction are drawn from its seed (``instructions.py`` has the goals and the words). The
instruction is the text stream "instruction"; everything else is as in ``so101_tabletop``. Every scene admits many
instructions, so that a policy which does not listen solves few: what counts for one verb does not for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import Step, WorldSpec
from robolearn_sim import so101_tabletop
from robolearn_sim.instructions import LANGUAGES, VERBS, Goal, goal_of, goals_of, sentences
from robolearn_sim.so101_tabletop import CUBES, HALF_CUBE_M, INSIDE_M, RESTING_M, So101Tabletop
from robolearn_sim.worlds import WorldError

Thing = TypeVar("Thing")

INSTRUCTION = Stream((256,), "uint8", kind="text")
"""As of a rig's stream of that name."""

OVER_M, REACHED_M = 0.05, 0.02
"""Reached: the tool is so far above the cube's centre, within so much."""
LIFTED_M, STILL_M = 0.05, 0.015
"""Lifted: the cube's centre is so high, and moves less than that while it counts."""
PUSHED_M = {"cube": 0.04, "plate": 0.07}
"""Pushed: the cube's centre is so near to that of the target."""
STACKED_M = 0.018
"""Put on another cube: so far from its middle at most."""
RAISED_M = 0.015
"""A cube that has been so far above its rest has not been pushed; put is only what has been twice as far."""
TOUCHED_M = 0.01
"""A cube that has moved so far has not only been reached for."""
PUT_DOWN_STEPS = 25
"""After an instruction: what was in the hand may be put down. Whether a cube is moved or raised counts from then on."""
HOLD_STEPS: dict[str, int] = {"reach": 15, "lift": 15, "push": 5, "put": 5}
"""For which the goal must be met. Long where other verbs pass through the same states."""
MIN_PUSH_M, FREE_M, BEHIND_M = 0.085, 0.042, 0.035
"""A push leads at least so far, passes other cubes at that distance or more, and begins so far behind the cube."""
SCENES = 100
"""Tried until one has room for every verb."""
REACH_M = (0.12, 0.25)
"""Where the tool gets to at the table's height, from the arm's axis."""
PLACES_AT = {"plate": np.array([0.126, -0.182, 0.0]), "bin": np.array([0.126, 0.182, 0.0])}
"""Where they stand, in the base frame."""

VARIANTS: dict[str, dict[str, object]] = {
    "new-pairs": {"language": "new-pairs"},
    "reworded": {"language": "reworded"},
    "synonyms": {"language": "synonyms"},
    "shuffled": {"shuffled": True},
    "switched": {"switch_step": 40},
}
"""Name after the slash -> options. Without one: the set that is learned from."""


def spec(
    *,
    images: bool = False,
    max_steps: int = 250,
    language: str = "seen",
    shuffled: bool = False,
    switch_step: int = 0,
) -> WorldSpec:
    """What the world offers.

    Args:
        images: add the streams "front" and "wrist".
        language: the set that instructions are drawn from, one of ``instructions.LANGUAGES``.
        shuffled: a control. What is said is another instruction than the one that counts.
        switch_step: control step at which another instruction replaces the first, which no longer counts; 0 for never.

    Raises:
        WorldError: there is no such set or step.
    """
    if language not in LANGUAGES:
        raise WorldError(
            f"option 'language' of 'so101_language' must be one of {', '.join(LANGUAGES)}; not {language!r}"
        )
    if not 0 <= switch_step < max_steps:
        raise WorldError(f"option 'switch_step' must be before 'max_steps' ({max_steps}), or 0; not {switch_step}")
    schema = so101_tabletop.spec(images=images).schema
    streams = dict(schema.streams)
    action = streams.pop("action")
    return WorldSpec(
        "so101_language",
        Schema(schema.rate_hz, {**streams, "instruction": INSTRUCTION, "action": action}),
        max_steps,
    )


class So101Language:
    """The score is 1 where the instruction has been followed, else how far it has been."""

    def __init__(
        self,
        *,
        images: bool = False,
        max_steps: int = 250,
        language: str = "seen",
        shuffled: bool = False,
        switch_step: int = 0,
    ) -> None:
        """Options as of ``spec``.

        Raises:
            WorldError: MuJoCo is not installed, or as of ``spec``.
        """
        self.spec = spec(
            images=images, max_steps=max_steps, language=language, shuffled=shuffled, switch_step=switch_step
        )
        self._goals, self._language = goals_of(language), language
        self._shuffled, self._switch_step = shuffled, switch_step
        self._table = So101Tabletop(images=images, max_steps=max_steps)
        self.goal = self._goals[0]
        """What counts now."""
        self.said = ""
        """What the stream says now."""
        self.reset(0)

    def reset(self, seed: int) -> Observation:
        self._rng = np.random.default_rng([seed, 2])  # apart from the generators of the start and of the noise
        self._steps, self._switch_at = 0, self._switch_step
        observation = self._table.reset(seed)
        for _ in range(SCENES):  # with room for every verb: the scene must not tell which was drawn
            if {goal.verb for goal in self._goals if possible(goal, observation)} == {g.verb for g in self._goals}:
                break
            observation = self._table.reset(int(self._rng.integers(2**62)))
        self._draw(observation)
        return self._with_text(observation)

    def step(self, action: np.ndarray) -> Step:
        observation = self._table.step(action).observation
        self._steps += 1
        final = self._steps >= self._switch_at
        if self._steps == self._switch_at:
            self._draw(observation)
        score, met = self._progress(observation)
        self._held = self._held + 1 if met else 0
        success = final and self._held >= HOLD_STEPS[self.goal.verb]
        score = 1.0 if success else float(np.clip(score, 0.0, 0.9)) * final
        return Step(self._with_text(observation), score, success, success or self._steps >= self.spec.max_steps)

    def instruct(self, text: str) -> Observation:
        """From now on ``text`` is what counts and what is said, until the next ``reset``. What was observed last, with
        the new text.

        Raises:
            WorldError: it asks for nothing that is known, see ``instructions.goal_of``.
        """
        self._switch_at = 0
        self._begin(goal_of(text), text, self._observation)
        return self._with_text(self._observation)

    def render(self) -> np.ndarray:
        """See ``So101Tabletop``."""
        return self._table.render()

    def close(self) -> None:
        self._table.close()

    def _draw(self, observation: Observation) -> None:
        """An instruction that can be followed from here and is not the one that counts; each verb is as likely."""
        others = [goal for goal in self._goals if self._steps == 0 or goal != self.goal]
        others = [goal for goal in others if possible(goal, observation)] or others
        verb = self._one_of([verb for verb in VERBS if any(goal.verb == verb for goal in others)])
        goal = self._one_of([goal for goal in others if goal.verb == verb])
        others = [other for other in self._goals if other != goal]
        said = self._one_of(others) if self._shuffled else goal
        self._begin(goal, self._one_of(sentences(said, self._language)), observation)

    def _one_of(self, things: Sequence[Thing]) -> Thing:
        return things[self._rng.integers(len(things))]

    def _begin(self, goal: Goal, said: str, observation: Observation) -> None:
        self.goal, self.said = goal, said
        self._text = INSTRUCTION.check("instruction", said)
        self._held = 0
        self._since = 0
        self._start = cube_position(observation, goal.cube)
        self._highest = 0.0
        """Of the cube above its rest."""

    def _with_text(self, observation: Observation) -> Observation:
        self._observation = observation
        return {**observation, "instruction": self._text}

    def _progress(self, observation: Observation) -> tuple[float, bool]:
        """Score and whether the goal is met at this instant."""
        verb, cube, target = self.goal
        here = cube_position(observation, cube)
        self._since += 1
        if self._since <= PUT_DOWN_STEPS:
            self._start = here
        else:
            self._highest = max(self._highest, float(here[2]) - HALF_CUBE_M)
        if verb == "reach":
            away = float(np.linalg.norm(here + np.array([0, 0, OVER_M]) - observation["tool"][:3]))
            untouched = float(np.linalg.norm(here - self._start)) < TOUCHED_M
            return 1 - away / 0.3, away < REACHED_M and untouched
        if verb == "lift":
            if self._held == 0 or np.linalg.norm(here - self._still) > STILL_M:
                self._held, self._still = 0, here
            return float(here[2]) / LIFTED_M - 0.3, float(here[2]) > LIFTED_M
        on_cube = target in CUBES
        there = cube_position(observation, target) if on_cube else PLACES_AT[target]
        across = float(np.hypot(*(here - there)[:2]))
        if verb == "push":
            near = across < PUSHED_M["cube" if on_cube else target]
            return 1 - across / 0.3, near and self._highest < RAISED_M
        rest = float(there[2]) + 2 * HALF_CUBE_M if on_cube else HALF_CUBE_M
        rests = across < (STACKED_M if on_cube else INSIDE_M[target]) and abs(float(here[2]) - rest) < RESTING_M
        met = rests and self._highest > 2 * RAISED_M and not self._table.holds(cube)
        return 1 - float(np.linalg.norm(here - [*there[:2], rest])) / 0.3, met


def cube_position(observation: Observation, cube: str) -> np.ndarray:
    """The centre, (3,) m."""
    first = 5 * CUBES.index(cube)
    return observation["things"][first : first + 3].astype(np.float64)


def possible(goal: Goal, observation: Observation) -> bool:
    """Whether ``goal`` can be followed from here without going round anything: a cube is put on one that lies on the
    table, and a push is not short, begins where the arm reaches, and passes the other cubes."""
    verb, cube, target = goal
    here = cube_position(observation, cube)
    if target in CUBES and cube_position(observation, target)[2] > HALF_CUBE_M + RESTING_M:
        return False
    if verb != "push":
        return True
    there = cube_position(observation, target) if target in CUBES else PLACES_AT["plate"]
    way = (there - here)[:2]
    length = float(np.hypot(*way))
    if length < MIN_PUSH_M or here[2] > HALF_CUBE_M + RESTING_M:
        return False
    begin = here[:2] - BEHIND_M * way / length
    if not REACH_M[0] < np.hypot(*begin) < REACH_M[1]:
        return False
    others = [cube_position(observation, other)[:2] for other in CUBES if other not in (cube, target)]
    return all(_distance(other, begin, there[:2]) > FREE_M for other in others)


def _distance(point: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """From ``point`` (2,) to the line between ``start`` and ``end``."""
    way = end - start
    share = np.clip((point - start) @ way / (way @ way), 0, 1)
    return float(np.linalg.norm(point - start - share * way))
