"""The contract of anything a policy can act in one step at a time: a simulated world, later a rig of real devices.

It stands at the bottom of the import arrows so that training, evaluation and the runtime share it without
importing each other or a simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from robolearn_data.schema import Observation, Schema


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
