"""What may be asked for at the SO-101's table, and in which words.

A *goal* is a verb, a cube and, for two of the verbs, a target. Many goals are possible in every scene, so that only
the words tell which is meant. What a policy learns from and what it is tested with are apart in two ways:

- *pairs* of a verb and a colour: the pairs in ``HELD_OUT_PAIRS`` are never asked for in the set "seen", though each
  verb and each colour is;
- *wordings*: "reworded" has sentences that "seen" has not, made of words that it has; "synonyms" has verbs that "seen"
  never mentions.
"""

from __future__ import annotations

import functools
import itertools
from typing import Literal, NamedTuple, get_args

from robolearn_sim.so101_tabletop import CUBES
from robolearn_sim.worlds import WorldError

Verb = Literal["reach", "lift", "push", "put"]
VERBS: tuple[Verb, ...] = get_args(Verb)
LANGUAGES = ("seen", "new-pairs", "reworded", "synonyms")
"""The sets."""


class Goal(NamedTuple):
    verb: Verb
    cube: str
    """Colour of the cube that is to be moved."""
    target: str = ""
    """Of push and put: another cube's colour, "plate" or (put) "bin"."""


HELD_OUT_PAIRS: frozenset[tuple[Verb, str]] = frozenset({("lift", "green"), ("push", "red"), ("put", "blue")})
NOUNS = ("cube", "block")

WORDINGS: dict[str, dict[Verb, tuple[str, ...]]] = {
    "seen": {
        "reach": ("reach for {cube}", "move over {cube}", "go to {cube}", "move the hand to {cube}"),
        "lift": ("lift {cube}", "pick {cube} up", "raise {cube}", "hold {cube} up"),
        "push": ("push {cube} to {target}", "slide {cube} to {target}", "push {cube} over to {target}"),
        "put": ("put {cube} {on} {target}", "place {cube} {on} {target}", "pick {cube} up and put it {on} {target}"),
    },
    "reworded": {
        "reach": ("go over to {cube}", "move to {cube}"),
        "lift": ("pick up {cube}", "raise {cube} up"),
        "push": ("slide {cube} over to {target}", "to {target} push {cube}"),
        "put": ("pick up {cube} and place it {on} {target}", "{on} {target} put {cube}"),
    },
    "synonyms": {
        "reach": ("approach {cube}", "hover above {cube}"),
        "lift": ("take {cube} off the table", "elevate {cube}"),
        "push": ("shove {cube} against {target}", "nudge {cube} towards {target}"),
        "put": ("set {cube} down {on} {target}", "deposit {cube} {on} {target}"),
    },
}
"""Set -> verb -> sentences. "new-pairs" has those of "seen"."""


def _all_goals() -> tuple[Goal, ...]:
    goals = [Goal(verb, cube) for verb in ("reach", "lift") for cube in CUBES]
    for cube in CUBES:
        others = [other for other in CUBES if other != cube]
        goals += [Goal("push", cube, target) for target in (*others, "plate")]
        goals += [Goal("put", cube, target) for target in (*others, "plate", "bin")]
    return tuple(goals)


GOALS = _all_goals()
"""All 27."""


def goals_of(language: str) -> tuple[Goal, ...]:
    """What is asked for in that set: the held-out pairs in "new-pairs", the others in all other sets."""
    return tuple(g for g in GOALS if ((g.verb, g.cube) in HELD_OUT_PAIRS) == (language == "new-pairs"))


def sentences(goal: Goal, language: str) -> tuple[str, ...]:
    """Every way in which ``goal`` is put into words in that set."""
    wordings = WORDINGS["seen" if language == "new-pairs" else language][goal.verb]
    found = []
    for noun, wording in itertools.product(NOUNS, wordings):
        target = f"the {goal.target} {noun}" if goal.target in CUBES else f"the {goal.target}"
        on = "in" if goal.target == "bin" else "on"
        found.append(wording.format(cube=f"the {goal.cube} {noun}", target=target, on=on))
    return tuple(found)


@functools.cache
def _meanings() -> dict[str, Goal]:
    return {text: goal for goal in GOALS for language in WORDINGS for text in sentences(goal, language)}


def goal_of(text: str) -> Goal:
    """What ``text`` asks for; upper and lower case and a full stop do not matter.

    Raises:
        WorldError: it is none of the sentences of any set.
    """
    goal = _meanings().get(" ".join(text.lower().rstrip(". ").split()))
    if goal is None:
        raise WorldError(
            f"the instruction {text!r} is not understood; say for example: "
            + "; ".join(f"{sentences(goal, 'seen')[0]!r}" for goal in (GOALS[0], GOALS[3], GOALS[6], GOALS[9]))
        )
    return goal
