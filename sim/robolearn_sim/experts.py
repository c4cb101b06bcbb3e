"""Scripted experts: programs that solve a world from its observations, for demonstrations without a person.

To add one: a class that fulfils ``Expert`` and an entry in ``EXPERTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from robolearn_data.schema import Observation
from robolearn_sim.worlds import WorldError, options_of


class Expert(Protocol):
    noise_shape: np.ndarray
    """How disturbances of the action are spread over its components, relative to each other, (A,)."""

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode; whatever varies between demonstrations is drawn from ``rng``."""
        ...

    def act(self, observation: Observation) -> np.ndarray:
        """What to do now, (A,) in the units of the world's action."""
        ...


def _lift() -> Expert:
    from robolearn_sim.panda_experts import LiftExpert

    return LiftExpert()


def _can() -> Expert:
    from robolearn_sim.panda_experts import PickAndPlace, see_can

    return PickAndPlace(see_can)


def _square() -> Expert:
    from robolearn_sim.panda_experts import PickAndPlace, see_square

    return PickAndPlace(see_square)


def _stack() -> Expert:
    from robolearn_sim.panda_experts import PickAndPlace, see_stack

    return PickAndPlace(see_stack)


def _door() -> Expert:
    from robolearn_sim.panda_experts import DoorExpert

    return DoorExpert()


def _so101_tabletop(task: str = "put the red cube on the plate") -> Expert:
    from robolearn_sim.so101_expert import So101Expert

    return So101Expert(task)


def _so101_language() -> Expert:
    from robolearn_sim.so101_language_expert import So101LanguageExpert

    return So101LanguageExpert()


def _metaworld(task: str = "reach-v3") -> Expert:
    from robolearn_sim.metaworld import MetaWorldExpert

    return MetaWorldExpert(task)


def _wipe(*, relative: bool = False) -> Expert:
    from robolearn_sim.wipe_expert import WipeExpert

    return WipeExpert(relative=relative)


EXPERTS: dict[str, Callable[..., Expert]] = {
    "lift": _lift,
    "can": _can,
    "square": _square,
    "stack": _stack,
    "door": _door,
    "so101_tabletop": _so101_tabletop,
    "so101_language": _so101_language,
    "metaworld": _metaworld,
    "wipe": _wipe,
}
"""World name -> its expert. In a world with an option ``task`` or ``relative``, it takes that too."""


def make_expert(world_name: str, *, task: str | None = None) -> Expert:
    """
    Args:
        task: the world's option of that name, where it has one.

    Raises:
        WorldError: nobody has written an expert for this world.
    """
    base = world_name.partition("/")[0]
    if base not in EXPERTS:
        raise WorldError(f"there is no scripted expert for the world {world_name!r}; valid: {', '.join(EXPERTS)}")
    options = {name: value for name, value in options_of(world_name).items() if name in ("task", "relative")}
    return EXPERTS[base](**options if task is None else {**options, "task": task})
