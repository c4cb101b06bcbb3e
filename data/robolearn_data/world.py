"""The contract of anything a policy can act in one step at a time: a simulated world, later a rig of real devices.

It stands at the bottom of the import arrows so that training, evaluation and the runtime share it without
importing each other or a simulator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from robolearn_data.schema import Observation, Schema, UserError


@dataclass(frozen=True)
class WorldSpec:
    """What a world is, known before it is started."""

    name: str
    schema: Schema
    """Streams of kind state and image are observed; the stream named "action" is what ``step`` takes."""
    max_steps: int
    """Control steps after which an episode is over."""


@dataclass(frozen=True)
class Step:
    observation: Observation
    """Taken after the action was carried out."""
    score: float
    """Progress of the task at this instant in [0, 1]; an episode's score is the maximum over its steps."""
    success: bool
    """The task is solved at this instant."""
    done: bool
    """The episode is over: solved for good, or at ``max_steps``."""


class World(Protocol):
    """One episode at a time, deterministic given the seed and the actions."""

    spec: WorldSpec

    def reset(self, seed: int) -> Observation:
        """Begin the episode that ``seed`` names; the same seed gives the same start on every machine."""
        ...

    def step(self, action: np.ndarray) -> Step:
        """Apply ``action`` (physical units, shape of the action stream) for one control period ``1 / rate_hz``.

        Raises:
            SchemaError: wrong shape, NaN or infinity.
        """
        ...

    def render(self) -> np.ndarray:
        """The scene for a person to look at, (H, W, 3) uint8."""
        ...

    def close(self) -> None: ...


class FastWorldError(UserError):
    """A slow-fast policy acts inside the control steps of a world, and this one cannot be asked for that."""


@dataclass(frozen=True, eq=False)
class Instant:
    """What is known at the end of a fast period, inside a control step."""

    time_ns: int
    """Since the episode's begin."""
    readings: Mapping[str, np.ndarray]
    """The samples of fast sensors in this period, oldest first: stream -> (samples, components)."""


@runtime_checkable
class FastWorld(World, Protocol):
    """A world whose control steps can be taken in fast periods, for whoever reacts inside them.

    ``step(action)`` is ``fast_steps`` calls of ``advance``, whose targets lead from ``commanded`` to the action in
    equal parts, and ``finish``. A stream of fast readings is observed as (n, components): the n samples of the control
    period that ends now, oldest first, of which each fast period has ``n / fast_steps``.
    """

    fast_steps: int
    """Fast periods in a control step."""
    commanded: np.ndarray
    """(A,): where the last fast period was told to lead, in the units of the action."""

    def advance(self, target: np.ndarray) -> Instant:
        """One fast period, told to lead to ``target`` (A,).

        Raises:
            SchemaError: wrong shape, NaN or infinity.
            UserError: the control step is over, and ``finish`` must come first.
        """
        ...

    def finish(self) -> Step:
        """What the control step led to. Raises UserError: it is not over."""
        ...


def fast_world(world: World, fast_steps: int) -> FastWorld:
    """``world``, known to take its control steps in ``fast_steps`` fast periods.

    Raises:
        FastWorldError: it does not.
    """
    if not isinstance(world, FastWorld):
        raise FastWorldError(
            f"the policy acts {fast_steps} times in a control step, which the world {world.spec.name!r} does not "
            "allow; take a world with force and fast periods, such as wipe"
        )
    if world.fast_steps != fast_steps:
        raise FastWorldError(
            f"the policy acts {fast_steps} times in a control step, the world {world.spec.name!r} has "
            f"{world.fast_steps} fast periods; train with --policy.tokenizer.fast-hz "
            f"{world.fast_steps * world.spec.schema.rate_hz:g}"
        )
    return world


def way_of(world: FastWorld, action: np.ndarray) -> np.ndarray:
    """How far ``action`` leads in a control period that begins now, (A,) float64."""
    way = np.asarray(action, np.float64) - world.commanded
    relative = list(world.spec.schema.stream("action").relative)
    way[relative] = action[relative]
    return way


def action_since(world: FastWorld, before: np.ndarray) -> np.ndarray:
    """The action that leads from ``before``, which was ``commanded`` a control step ago, to where it is now, (A,)."""
    action = world.commanded.copy()
    relative = list(world.spec.schema.stream("action").relative)
    action[relative] -= before[relative]
    return action
