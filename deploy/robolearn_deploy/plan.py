"""Which action holds at an instant, given the chunks that have come: what the control loop asks at every tick.

A plan is one way of combining chunks. Schedulers (schedulers.py) name theirs; evaluation in virtual time
(delayed.py) asks the same plans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from robolearn.policies.ensembling import ensemble_weights
from robolearn_deploy.chunks import Chunk, Refusals


@dataclass(frozen=True, eq=False)
class Planned:
    """The action for an instant, and where it comes from."""

    chunk: Chunk
    """The newest of the chunks that the action is made of."""
    index: int
    """The instant's index in that chunk."""
    action: np.ndarray


@dataclass(frozen=True)
class PlanTiming:
    """What plans know of the policy whose chunks they combine."""

    period_ns: int
    """Of control."""
    start: int
    """Index in a chunk of the action that belongs to the capture of its observation."""
    execute: int
    """Actions of a chunk that are carried out where the robot waits for the next one."""


class Plan(Protocol):
    def begin(self, episode: int) -> None:
        """Forget every chunk; from here on only those of ``episode`` count."""
        ...

    def offer(self, chunk: Chunk, now_ns: int) -> bool:
        """Take ``chunk`` into the plan. A refused one (see ``Refusals``) leaves the plan as it was."""
        ...

    def at(self, now_ns: int) -> Planned | None:
        """The action in effect at ``now_ns``, which must not fall from call to call; None where no chunk covers it."""
        ...


class Intake:
    """Decides whether a chunk may enter a plan, and counts those that may not."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals
        self._episode = -1
        self._newest = (-1, 0)

    def begin(self, episode: int) -> None:
        self._episode = episode

    def accepts(self, chunk: Chunk, now_ns: int, *, expires: bool = True) -> bool:
        """``expires``: whether a chunk can come too late."""
        place = (chunk.sequence, len(chunk.actions))
        if place <= self._newest:
            self._refusals.reordered += 1
        elif chunk.episode != self._episode:
            self._refusals.foreign += 1
        elif not np.isfinite(chunk.actions).all():
            self._refusals.non_finite += 1
        elif expires and now_ns >= chunk.expiry_ns:
            self._refusals.late += 1
        else:
            self._newest = place
            return True
        return False


class ReplacePlan:
    """At each instant the newest chunk that has begun decides, so that a chunk replaces the rest of those before it at
    its own times. Joins are as abrupt as the policy makes them."""

    def __init__(self, refusals: Refusals, timing: PlanTiming | None = None) -> None:
        self._intake = Intake(refusals)
        self._chunks: list[Chunk] = []  # newest first

    def begin(self, episode: int) -> None:
        self._intake.begin(episode)
        self._chunks.clear()

    def offer(self, chunk: Chunk, now_ns: int) -> bool:
        accepted = self._intake.accepts(chunk, now_ns)
        if accepted:
            self._chunks.insert(0, chunk)
        return accepted

    def at(self, now_ns: int) -> Planned | None:
        for position, chunk in enumerate(self._chunks):
            if chunk.times_ns[0] <= now_ns:
                del self._chunks[position + 1 :]
                index = chunk.index_at(now_ns)
                return None if index is None else Planned(chunk, index, chunk.actions[index])
        return None


class EnsemblePlan:
    """Temporal ensembling (Zhao et al. 2023, ACT, section IV): the mean of what all chunks that cover the instant say;
    the oldest weighs most, see ``ensemble_weights``."""

    def __init__(self, refusals: Refusals, timing: PlanTiming | None = None) -> None:
        self._intake = Intake(refusals)
        self._chunks: list[Chunk] = []  # oldest first

    def begin(self, episode: int) -> None:
        self._intake.begin(episode)
        self._chunks.clear()

    def offer(self, chunk: Chunk, now_ns: int) -> bool:
        accepted = self._intake.accepts(chunk, now_ns)
        if accepted:
            self._chunks = [c for c in self._chunks if c.sequence != chunk.sequence]
            self._chunks.append(chunk)
        return accepted

    def at(self, now_ns: int) -> Planned | None:
        self._chunks = [c for c in self._chunks if now_ns < c.expiry_ns]
        covering = [(c, index) for c in self._chunks if (index := c.index_at(now_ns)) is not None]
        if not covering:
            return None
        actions = np.stack([c.actions[index] for c, index in covering])
        weights = ensemble_weights([index for _, index in covering])  # an index is an age in control steps
        action = np.tensordot(weights, actions, axes=1).astype(actions.dtype)
        return Planned(*covering[-1], action)


class WaitPlan:
    """Synchronous control: the robot waits for a chunk, and the action that belonged to the observation is carried out
    when the chunk is there, then the others up to ``execute`` of them. Between two chunks no action holds."""

    def __init__(self, refusals: Refusals, timing: PlanTiming) -> None:
        self._intake = Intake(refusals)
        self._timing = timing
        self._arrived: Chunk | None = None
        self._chunk: Chunk | None = None

    def begin(self, episode: int) -> None:
        self._intake.begin(episode)
        self._arrived = self._chunk = None

    def offer(self, chunk: Chunk, now_ns: int) -> bool:
        accepted = self._intake.accepts(chunk, now_ns, expires=False)
        if accepted:
            self._arrived = chunk
        return accepted

    def at(self, now_ns: int) -> Planned | None:
        if self._arrived is not None:
            self._chunk, self._arrived = self._from(self._arrived, now_ns), None
        index = self._chunk.index_at(now_ns) if self._chunk else None
        if self._chunk is None or index is None:
            return None
        return Planned(self._chunk, index, self._chunk.actions[index])

    def _from(self, chunk: Chunk, now_ns: int) -> Chunk:
        """``chunk`` moved in time so that it begins now; a longer part of the one in force goes on with its times."""
        timing, old = self._timing, self._chunk
        same = old is not None and old.sequence == chunk.sequence
        begins_ns = int(old.times_ns[timing.start]) if same and old else now_ns
        times_ns = chunk.times_ns - chunk.times_ns[timing.start] + begins_ns
        expiry_ns = min(begins_ns + timing.execute * timing.period_ns, int(times_ns[-1]) + timing.period_ns)
        return replace(chunk, times_ns=times_ns, expiry_ns=expiry_ns)


class Commitment:
    """What the robot has done, and will do if no other chunk comes: the view of whoever asks for the next chunk.

    It follows the newest chunk that was there at each instant, as ``ReplacePlan`` does.
    """

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self.begin()

    def begin(self) -> None:
        """Forget all: an episode begins."""
        self._done: list[tuple[int, np.ndarray]] = []  # (instant, what was sent), oldest first
        self._chunks: list[tuple[int, Chunk]] = []  # (known from, chunk), newest first

    def did(self, due_ns: int, sent: np.ndarray) -> None:
        """``sent`` was carried out at ``due_ns``."""
        self._done = [*self._done[-63:], (due_ns, sent)]

    def follow(self, chunk: Chunk, from_ns: int) -> None:
        """``chunk`` is there from ``from_ns`` on."""
        self._chunks = [(from_ns, chunk), *self._chunks[:3]]

    def on(self, times_ns: np.ndarray) -> np.ndarray | None:
        """(Tp,) rising instants -> (Tp, *action shape), NaN where the plan says nothing; None where it never did.

        Before the episode's first action that one stands, as at the edges of training windows.
        """
        actions = [self._at(int(t)) for t in times_ns]
        known = [a for a in actions if a is not None]
        if not known:
            return None
        first = next(i for i, a in enumerate(actions) if a is not None)
        blank = np.full_like(known[0], np.nan)
        return np.stack([known[0] if i < first else blank if a is None else a for i, a in enumerate(actions)])

    def _at(self, instant_ns: int) -> np.ndarray | None:
        for due_ns, sent in reversed(self._done):
            if due_ns <= instant_ns < due_ns + self._period_ns:
                return sent
        for from_ns, chunk in self._chunks:
            if from_ns <= instant_ns and chunk.times_ns[0] <= instant_ns:
                index = chunk.index_at(instant_ns)
                return None if index is None else chunk.actions[index]
        return None
