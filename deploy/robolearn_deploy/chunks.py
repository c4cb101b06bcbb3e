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


@dataclass(frozen=True)
class Chunk:
    """Actions a policy wants carried out. Times are CLOCK_MONOTONIC ns."""

    sequence: int
    """Rises by one with every chunk of a policy process."""
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


@dataclass(frozen=True)
class Planned:
    """The action for an instant, and where it comes from."""

    chunk: Chunk
    index: int

    @property
    def action(self) -> np.ndarray:
        return self.chunk.actions[self.index]


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


class NaivePlan:
    """Naive asynchronous scheduling: at each instant the newest chunk that has begun decides, so that a chunk replaces
    the rest of those before it at its own times. Joins are as abrupt as the policy makes them."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._episode = -1
        self._newest = -1
        self._chunks: list[Chunk] = []  # newest first

    def begin(self, episode: int) -> None:
        """Forget every chunk; from here on only those of ``episode`` count."""
        self._episode = episode
        self._chunks.clear()

    def offer(self, chunk: Chunk, now_ns: int) -> bool:
        """Take ``chunk`` into the plan. A refused one (see ``Refusals``) leaves the plan as it was."""
        if chunk.sequence <= self._newest:
            self._refusals.reordered += 1
        elif chunk.episode != self._episode:
            self._refusals.foreign += 1
        elif not np.isfinite(chunk.actions).all():
            self._refusals.non_finite += 1
        elif now_ns >= chunk.expiry_ns:
            self._refusals.late += 1
        else:
            self._newest = chunk.sequence
            self._chunks.insert(0, chunk)
            return True
        return False

    def at(self, now_ns: int) -> Planned | None:
        """The action in effect at ``now_ns``, which must not fall from call to call; None where no chunk covers it."""
        for position, chunk in enumerate(self._chunks):
            if chunk.times_ns[0] <= now_ns:
                del self._chunks[position + 1 :]
                index = chunk.index_at(now_ns)
                return None if index is None else Planned(chunk, index)
        return None


def hold_action(last: np.ndarray, relative: tuple[int, ...]) -> np.ndarray:
    """The action that keeps a robot where ``last``, the action sent before, has brought it.

    Args:
        relative: components of the action that are changes per control period: they become zero. The others are
            targets: they are kept.
    """
    hold = last.copy()
    hold[list(relative)] = 0
    return hold
