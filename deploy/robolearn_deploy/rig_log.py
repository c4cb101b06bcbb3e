"""What happened on a rig, counted beside the control path, and said at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from robolearn_deploy.limiter import Reason, Verdict
from robolearn_deploy.realtime import Realtime
from robolearn_deploy.report import TOO_LATE, Spread
from robolearn_deploy.stall import State
from robolearn_hardware.ring import Ring


@dataclass
class RigMeasured:
    """Since the run began. Times in ns."""

    lateness: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    """From a tick's beginning until everything was sent and published."""
    missed: int = 0
    lost: int = 0
    """Ticks that came and went while the log was busy."""
    ticks_in: Counter[State] = field(default_factory=Counter)
    reasons: Counter[Reason] = field(default_factory=Counter)
    """Ticks at which the limiter did not send what was asked for."""
    inference: list[int] = field(default_factory=list)
    delay: list[int] = field(default_factory=list)
    """From an observation's capture to the first tick that followed the chunk made from it."""
    chunks: int = 0
    failed: int = 0
    """Requests that the policy did not answer in time."""
    used: int = 0
    refused: int = 0
    state: State | None = None
    cause: str = ""
    person: bool = False


class RigLog:
    """Follows the rings of a run. ``drain`` it more often than every few seconds."""

    def __init__(self, ticks: Ring, chunks: Ring) -> None:
        self.measured = RigMeasured()
        self._ticks, self._chunks = ticks, chunks
        self._next_tick, self._next_chunk = ticks.count, chunks.count
        self._used = -1
        self._captures: dict[int, int] = {}

    def drain(self) -> None:
        m = self.measured
        for index, chunk in self._chunks.since(self._next_chunk):
            self._next_chunk = index + 1
            m.chunks += 1
            m.failed += int(chunk["final"]) == 0
            m.inference.append(int(chunk["ended_ns"] - chunk["started_ns"]))
            self._captures[int(chunk["sequence"])] = int(chunk["capture_ns"])
        while len(self._captures) > 256:
            del self._captures[min(self._captures)]
        records, after = self._ticks.drain(self._next_tick)
        m.lost += after - self._next_tick - len(records)
        self._next_tick = after
        for tick in records:
            self._tick(tick)

    def _tick(self, tick: np.void) -> None:
        m = self.measured
        m.lateness.append(int(tick["woke_ns"] - tick["due_ns"]))
        m.busy.append(int(tick["done_ns"] - tick["woke_ns"]))
        m.missed += int(tick["missed"])
        m.refused = int(tick["refused"])
        m.state, m.cause, m.person = (
            State(tick["state"]),
            bytes(tick["cause"]).decode(errors="replace"),
            bool(tick["person"]),
        )
        m.ticks_in[m.state] += 1
        if tick["verdict"] != Verdict.OK:
            m.reasons[Reason(tick["reason"])] += 1
        chunk = int(tick["chunk"])
        if m.state is State.RUNNING and chunk > self._used:
            self._used = chunk
            m.used += 1
            m.delay.append(int(tick["woke_ns"]) - int(tick["chunk_capture_ns"]))


@dataclass(frozen=True)
class RigReport:
    """All figures of one run on a rig."""

    rig: str
    scheduler: str
    failure: str
    """Why the run ended early, in one line; empty when it did not."""
    granted: str
    """What the servo process got of what it asked of the kernel."""
    rate_hz: float
    ticks: int
    missed: int
    lateness: Spread
    busy: Spread
    inference: Spread
    delay: Spread
    chunks: int
    chunks_used: int
    chunks_refused: int
    requests_failed: int
    seconds_in: dict[str, float]
    limited: dict[str, int]
    """Ticks at which the limiter changed what was asked for, by reason."""
    lost_ticks: int
    episodes: int
    successes: int

    @classmethod
    def of(
        cls,
        measured: RigMeasured,
        *,
        rig: str,
        scheduler: str,
        failure: str,
        granted: Realtime,
        rate_hz: float,
        episodes: int,
        successes: int,
    ) -> RigReport:
        m = measured
        return cls(
            rig,
            scheduler,
            failure,
            str(granted),
            rate_hz,
            len(m.lateness),
            m.missed,
            Spread.of(m.lateness),
            Spread.of(m.busy),
            Spread.of(m.inference),
            Spread.of(m.delay),
            m.chunks,
            m.used,
            m.refused,
            m.failed,
            {state.name: round(n / rate_hz, 2) for state, n in m.ticks_in.items()},
            {reason.name.lower(): n for reason, n in m.reasons.items()},
            m.lost,
            episodes,
            successes,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        states = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds_in.items() if seconds)
        limited = ", ".join(f"{n} for {reason.replace('_', ' ')}" for reason, n in self.limited.items())
        share = 100 * self.missed / max(1, self.ticks + self.missed)
        lines = [
            f"servo     {self.rate_hz:g} Hz, {self.ticks} ticks, {self.missed} deadlines missed ({share:.1f} %)",
            f"          {self.granted}",
            f"lateness  {self.lateness}",
            f"busy      {self.busy}   (reading, deciding, sending)",
            f"inference {self.inference}   scheduler {self.scheduler}",
            f"delay     {self.delay}   (capture of the observation to first tick)",
            f"chunks    {self.chunks} made, {self.chunks_used} used, {self.chunks_refused} refused, "
            f"{self.requests_failed} not answered in time",
            f"limits    {limited or 'nothing had to be changed'}",
            f"states    {states or 'none'}",
            f"episodes  {self.episodes}, {self.successes} marked as successes",
        ]
        if self.lost_ticks:
            lines.append(f"warning   {self.lost_ticks} ticks were lost to these figures")
        if self.missed * 10 > self.ticks:
            lines.append("warning   this machine did not keep up: close what else uses the processor")
        if self.chunks_refused > self.chunks_used:
            lines.append(TOO_LATE)
        return "\n".join(lines)
