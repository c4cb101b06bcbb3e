"""Chunks of timed actions, and which action holds at an instant.

Every action carries the time at which it takes effect, so that a chunk that arrives late loses its past actions and
never shifts the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class ControlState(IntEnum):
    """What the control loop is doing."""

    WAITING = 0
    """No chunk has come since the episode began: nothing is commanded, and a robot told nothing stands still."""
    RUNNING = 1
    """A chunk covers the present."""
    HOLDING = 2
    """The last chunk has expired: the robot is told to stay where it is."""
    TELEOP = 3
    """A person has taken over."""
    PAUSED = 4
    """A person has stopped it: a simulated world's time stands still."""


DRIVEN = (ControlState.RUNNING, ControlState.HOLDING, ControlState.TELEOP)
"""Something is carried out."""


@dataclass(frozen=True)
class Chunk:
    """Actions a policy wants carried out. Times are CLOCK_MONOTONIC ns."""

    sequence: int
    """Rises by one with every request of a policy process. A reply in parts gives chunks of one sequence, each longer
    than the one before."""
    episode: int
    """Episode of the observation it was made from. Chunks of another episode are of no use."""
    capture_ns: int
    """Capture time of the newest observation it was made from."""
    times_ns: np.ndarray
    """(Tp,) int64, rising: action i is in effect from ``times_ns[i]`` until the next one's time."""
    actions: np.ndarray
    """(Tp, *action shape) in physical units."""
    expiry_ns: int
    """From here on the chunk says nothing."""

    def index_at(self, now_ns: int) -> int | None:
        """Index of the action in effect at ``now_ns``; None before the first and from the expiry on."""
        if now_ns >= self.expiry_ns:
            return None
        index = int(np.searchsorted(self.times_ns, now_ns, side="right")) - 1
        return index if index >= 0 else None


def action_times_ns(capture_ns: int, start: int, horizon: int, period_ns: int) -> np.ndarray:
    """(horizon,) int64: action ``start`` takes effect at the observation's capture, the others a period apart."""
    return capture_ns + (np.arange(horizon, dtype=np.int64) - start) * period_ns


@dataclass
class Refusals:
    """Chunks that were not taken into the plan, by reason."""

    non_finite: int = 0
    """NaN or infinity among the actions."""
    reordered: int = 0
    """Older than a chunk that came before."""
    late: int = 0
    """Expired on arrival."""
    foreign: int = 0
    """Made from another episode's observation."""


def hold_action(last: np.ndarray, relative: tuple[int, ...]) -> np.ndarray:
    """The action that keeps a robot where ``last``, the action sent before, has brought it.

    Args:
        relative: components of the action that are changes per control period: they become zero. The others are
            targets: they are kept.
    """
    hold = last.copy()
    hold[list(relative)] = 0
    return hold
