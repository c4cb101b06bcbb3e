"""The fast half of a slow-fast policy: between the slow policy's chunks and the servo loop, at 24 to 200 Hz.

At each of its ticks a fast policy sees the newest chunk of the slow one and the newest state and force, and says where
to go in the next few periods. What it says are chunks again, short ones, so that the servo loop knows no difference. It
runs in a process of its own; when it stalls, its last short chunk expires, as with a slow policy that stalls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from robolearn_data.schema import Stream
from robolearn_deploy.channels import chunk_fields, chunk_of, chunk_record
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.ticker import Ticker
from robolearn_hardware.clock import now_ns, period_ns
from robolearn_hardware.ring import Field, Ring

STEPS = 4
"""Periods that a short chunk reaches ahead: so many ticks may be missed before it expires."""


@dataclass(frozen=True, eq=False)
class Readings:
    """Samples of a sensor, oldest first."""

    times_ns: np.ndarray
    """(n,) int64: when each was captured."""
    values: np.ndarray
    """(n, F)"""


@dataclass(frozen=True, eq=False)
class Felt:
    """What a fast policy sees at a tick. N components of the rig's vector."""

    capture_ns: int
    state: np.ndarray
    """(N,), see ``rig_streams``; empty against a world."""
    wrench: np.ndarray
    """(6 * arms,) N and N m, the newest; zeros where the arms do not measure it"""
    readings: Mapping[str, Readings] = field(default_factory=dict)
    """What each sensor of force has measured since the last tick: "wrench", "wrench_tip"."""


class FastPolicy(Protocol):
    rate_hz: float

    def start(self) -> None:
        """In its own process, before the run: load what it needs."""
        ...

    def begin(self) -> None:
        """A new episode."""
        ...

    def act(self, chunk: Chunk, felt: Felt, times_ns: np.ndarray) -> np.ndarray | None:
        """Where to be at each of ``times_ns`` (STEPS,): (STEPS, N). At most a fraction of a period. None: it cannot be
        told, because a sensor is silent; when what was said before has expired, the robot holds.

        ``chunk`` is the slow policy's newest that has not expired.
        """
        ...


class FollowChunk:
    """Says what the slow policy says. What a rig without a fast policy does, through the slot: to measure the slot."""

    def __init__(self, rate_hz: float = 100.0) -> None:
        self.rate_hz = rate_hz

    def start(self) -> None: ...

    def begin(self) -> None: ...

    def act(self, chunk: Chunk, felt: Felt, times_ns: np.ndarray) -> np.ndarray:
        return interpolate(chunk, times_ns)


class GuardedMotion:
    """Follows the slow policy until a force is felt, then stays where that was until it is less than 70 % of it.

    The guarded move of Will and Grossman (1975): the arm may touch what the slow policy has not seen yet.
    """

    def __init__(self, force_n: float, rate_hz: float = 100.0) -> None:
        """``force_n``: of the greatest of all arms, N."""
        self.rate_hz, self._force_n = rate_hz, force_n
        self._touched: np.ndarray | None = None

    def start(self) -> None: ...

    def begin(self) -> None:
        self._touched = None

    def act(self, chunk: Chunk, felt: Felt, times_ns: np.ndarray) -> np.ndarray:
        force = float(np.linalg.norm(felt.wrench.reshape(-1, 6)[:, :3], axis=1).max())
        if self._touched is None and force > self._force_n:
            self._touched = felt.state.copy()
        elif self._touched is not None and force < 0.7 * self._force_n:
            self._touched = None
        if self._touched is not None:
            return np.tile(self._touched, (len(times_ns), 1))
        return interpolate(chunk, times_ns)


def interpolate(chunk: Chunk, times_ns: np.ndarray) -> np.ndarray:
    """(T, N): the actions of ``chunk`` at ``times_ns`` (T,), linear between them, the ends beyond them."""
    base = int(chunk.times_ns[0])
    knots, at = (chunk.times_ns - base).astype(np.float64), (times_ns - base).astype(np.float64)
    return np.stack([np.interp(at, knots, column) for column in chunk.actions.T.astype(np.float64)], axis=1)


@dataclass(frozen=True)
class FastRings:
    """What the fast process reads and writes."""

    chunks: Ring
    """The slow policy's"""
    short: Ring
    """Its own, of ``short_fields``"""
    streams: Mapping[str, Ring]
    """Records of "capture_ns" and "value" (``recorder.sample_fields``): forces, and on a rig "state\""""


def short_fields(action: Stream) -> dict[str, Field]:
    """The record of a short chunk, which also names the slow one that it was made of."""
    return {**chunk_fields(action, STEPS), "slow": ("i8", ()), "slow_capture_ns": ("i8", ())}


def run_fast(policy: FastPolicy, rings: FastRings, stopped: Callable[[], bool]) -> None:
    """The body of the process: at each tick the newest of everything, one short chunk."""
    period = period_ns(policy.rate_hz)
    ticker = Ticker(now_ns() + period, period)
    sequence, episode = 0, -1
    state_ring = rings.streams.get("state")
    forces = _Forces({name: ring for name, ring in rings.streams.items() if name != "state"})
    while not stopped():
        tick = ticker.wait()
        newest, state = rings.chunks.newest(), state_ring.newest() if state_ring else None
        if newest is None or (state_ring and state is None):
            continue
        chunk = chunk_of(newest[1])
        if tick.due_ns >= chunk.expiry_ns:  # the last chunk of an unanswered request is empty, and says nothing
            continue
        if chunk.episode != episode:
            episode = chunk.episode
            policy.begin()
        capture_ns = tick.due_ns if state is None else int(state[1]["capture_ns"])
        position = np.empty(0) if state is None else state[1]["value"].astype(np.float64)
        felt = Felt(capture_ns, position, forces.wrench(), forces.since_last())
        times_ns = tick.due_ns + np.arange(STEPS, dtype=np.int64) * period
        began_ns = now_ns()
        actions = policy.act(chunk, felt, times_ns)
        if actions is None:
            continue
        expiry_ns = min(chunk.expiry_ns, int(times_ns[-1]) + period)
        short = Chunk(sequence, chunk.episode, felt.capture_ns, times_ns, actions, expiry_ns)
        times = {"started_ns": began_ns, "ended_ns": now_ns(), "expected_delay": 0, "execute": 1}
        slow = {"slow": chunk.sequence, "slow_capture_ns": chunk.capture_ns}
        rings.short.publish({**chunk_record(short, STEPS), **times, **slow})
        sequence += 1


class _Forces:
    """What the sensors of force measure."""

    def __init__(self, rings: Mapping[str, Ring]) -> None:
        self._rings = rings
        self._next = {name: max(0, ring.count - ring.handle.slots) for name, ring in rings.items()}

    def wrench(self) -> np.ndarray:
        """The newest of the arms' own."""
        newest = self._rings["wrench"].newest() if "wrench" in self._rings else None
        return np.zeros(6) if newest is None else newest[1]["value"].astype(np.float64).ravel()

    def since_last(self) -> dict[str, Readings]:
        found = {}
        for name, ring in self._rings.items():
            records, self._next[name] = ring.drain(self._next[name])
            values = records["value"].reshape(len(records), math.prod(records["value"].shape[1:]))
            found[name] = Readings(records["capture_ns"].astype(np.int64), values)
        return found
