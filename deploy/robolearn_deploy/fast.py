"""The fast half of a slow-fast policy: between the slow policy's chunks and the servo loop, at 24 to 200 Hz.

At each of its ticks a fast policy sees the newest chunk of the slow one and the newest state and force, and says where
to go in the next few periods. What it says are chunks again, short ones, so that the servo loop knows no difference. It
runs in a process of its own; when it stalls, its last short chunk expires, as with a slow policy that stalls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from robolearn_deploy.channels import chunk_of, chunk_record
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.ticker import Ticker
from robolearn_hardware.clock import now_ns, period_ns
from robolearn_hardware.ring import Ring

STEPS = 4
"""Periods that a short chunk reaches ahead: so many ticks may be missed before it expires."""


@dataclass(frozen=True, eq=False)
class Felt:
    """What a fast policy sees at a tick. N components of the rig's vector."""

    capture_ns: int
    state: np.ndarray
    """(N,), see ``rig_streams``"""
    wrench: np.ndarray
    """(6 * arms,) N and N m; zeros where the arms do not measure it"""


class FastPolicy(Protocol):
    rate_hz: float

    def begin(self) -> None:
        """A new episode."""
        ...

    def act(self, chunk: Chunk, felt: Felt, times_ns: np.ndarray) -> np.ndarray:
        """Where to be at each of ``times_ns`` (STEPS,): (STEPS, N). At most a fraction of a period.

        ``chunk`` is the slow policy's newest that has not expired.
        """
        ...


class FollowChunk:
    """Says what the slow policy says. What a rig without a fast policy does, through the slot: to measure the slot."""

    def __init__(self, rate_hz: float = 100.0) -> None:
        self.rate_hz = rate_hz

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
    """Its own, of ``channels.chunk_fields`` with STEPS actions"""
    streams: Mapping[str, Ring]
    """"state" and, where it is measured, "wrench\""""


def run_fast(policy: FastPolicy, rings: FastRings, stopped: Callable[[], bool]) -> None:
    """The body of the process: at each tick the newest of everything, one short chunk."""
    period = period_ns(policy.rate_hz)
    ticker = Ticker(now_ns() + period, period)
    sequence, episode = 0, -1
    while not stopped():
        tick = ticker.wait()
        newest, state = rings.chunks.newest(), rings.streams["state"].newest()
        if newest is None or state is None:
            continue
        chunk = chunk_of(newest[1])
        if tick.due_ns >= chunk.expiry_ns:
            continue
        if chunk.episode != episode:
            episode = chunk.episode
            policy.begin()
        force = rings.streams["wrench"].newest() if "wrench" in rings.streams else None
        wrench = np.zeros(6) if force is None else force[1]["value"].astype(np.float64)
        felt = Felt(int(state[1]["capture_ns"]), state[1]["value"].astype(np.float64), wrench)
        times_ns = tick.due_ns + np.arange(STEPS, dtype=np.int64) * period
        began_ns = now_ns()
        actions = policy.act(chunk, felt, times_ns)
        expiry_ns = min(chunk.expiry_ns, int(times_ns[-1]) + period)
        short = Chunk(sequence, chunk.episode, felt.capture_ns, times_ns, actions, expiry_ns)
        times = {"started_ns": began_ns, "ended_ns": now_ns(), "expected_delay": 0, "execute": 1}
        rings.short.publish({**chunk_record(short, STEPS), **times})
        sequence += 1
