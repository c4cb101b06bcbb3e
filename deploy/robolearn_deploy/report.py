"""What is said about a run at its end: for a person, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from robolearn_deploy.chunks import ControlState, Refusals
from robolearn_deploy.log import Measurements
from robolearn_hardware.clock import SECOND_NS

TOO_LATE = "warning   most chunks came too late: --engine openvino, fewer --steps or a smaller policy are quicker"


@dataclass(frozen=True)
class Spread:
    """Percentiles of a duration in ms, or None where nothing was measured."""

    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, values_ns: Sequence[int]) -> Spread:
        if not values_ns:
            return cls(None, None, None)
        return cls(*(round(float(v) / 1e6, 3) for v in np.percentile(values_ns, [50, 99, 100])))

    def __str__(self) -> str:
        if self.p50_ms is None:
            return "not measured"
        return f"p50 {self.p50_ms:.2f} ms   p99 {self.p99_ms:.2f} ms   max {self.max_ms:.2f} ms"


@dataclass(frozen=True)
class Report:
    """All figures of one run."""

    world: str
    scheduler: str
    failure: str
    """Why the run ended early, in one line; empty when it did not."""
    rate_asked_hz: float
    rate_reached_hz: float
    """Ticks served for each second of the episodes, resets left out."""
    ticks: int
    missed: int
    """Deadlines that passed while the loop was still at work."""
    lateness: Spread
    """From a tick's deadline to its beginning."""
    world_step: Spread
    inference: Spread
    """Warm-up excluded, like in ``delay``."""
    delay: Spread
    """From the capture of an observation to the first action carried out of the chunk made from it."""
    delay_steps: dict[int, int]
    """The same in whole control periods -> how many chunks."""
    delays_ms: list[float]
    """From the capture of each observation to the moment when its chunk was there: what ``delayed.Delays`` reads."""
    later_than_expected: int
    """Chunks whose delay was longer than the scheduler had expected."""
    jerk: float | None
    """Of what was sent, see ``smoothness.Smoothness``."""
    join: float | None
    """Mean change of the action between steps where a chunk took over, over its mean change inside chunks."""
    requests_failed: int
    """Requests that the policy did not answer in time."""
    chunks: int
    chunks_used: int
    chunks_refused: dict[str, int]
    """By reason, see ``chunks.Refusals``."""
    seconds_in: dict[str, float]
    """Time in each state of control."""
    lost_ticks: int
    """Ticks that came and went while the log was busy; their episodes are not in the dataset."""
    episodes: list[dict[str, Any]]
    complete: int
    """Episodes that came to their own end."""
    successes: int

    @classmethod
    def of(cls, measured: Measurements, world: str, rate_hz: float, scheduler: str, failure: str) -> Report:
        m = measured
        ticks = len(m.lateness)
        intervals = ticks - m.beginnings  # between the ticks of one episode
        names = [f.name for f in fields(Refusals)]
        return cls(
            world=world,
            scheduler=scheduler,
            failure=failure,
            rate_asked_hz=rate_hz,
            rate_reached_hz=round(intervals * SECOND_NS / m.paced_ns, 3) if m.paced_ns else 0.0,
            ticks=ticks,
            missed=m.missed,
            lateness=Spread.of(m.lateness),
            world_step=Spread.of(m.step),
            inference=Spread.of(m.inference),
            delay=Spread.of(m.delay),
            delay_steps=dict(sorted(m.delay_steps.items())),
            delays_ms=[round(ns / 1e6, 3) for ns in m.arrival],
            later_than_expected=m.later_than_expected,
            jerk=_mean(s.jerk for s in m.smoothness),
            join=_ratio(_mean(s.jump for s in m.smoothness), _mean(s.step for s in m.smoothness)),
            requests_failed=m.failed,
            chunks=m.chunks,
            chunks_used=m.used,
            chunks_refused=dict(zip(names, m.refusals or (0,) * len(names), strict=True)),
            seconds_in={state.name: round(n / rate_hz, 3) for state, n in m.ticks_in.items()},
            lost_ticks=m.lost_ticks,
            episodes=[vars(e) for e in m.episodes],
            complete=sum(e.complete for e in m.episodes),
            successes=sum(e.success for e in m.episodes),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        states = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds_in.items() if seconds)
        refused = ", ".join(f"{n} {reason.replace('_', '-')}" for reason, n in self.chunks_refused.items() if n)
        share = 100 * self.missed / max(1, self.ticks + self.missed)
        steps = ", ".join(f"{n} of {k}" for k, n in self.delay_steps.items())
        join = "none" if self.join is None else f"{self.join:.2f} times the change of a step inside a chunk"
        jerk = "not measured" if self.jerk is None else f"{self.jerk:,.0f} units/s^3"
        lines = [
            f"scheduler {self.scheduler}",
            f"control   {self.rate_reached_hz:.2f} Hz of {self.rate_asked_hz:g} Hz asked   {self.ticks} ticks, "
            f"{self.missed} deadlines missed ({share:.1f} %)",
            f"lateness  {self.lateness}",
            f"world     {self.world_step}",
            f"inference {self.inference}",
            f"delay     {self.delay}   (capture of the observation to first action)",
            f"          in control steps: {steps or 'none'}; {self.later_than_expected} later than expected",
            f"motion    jerk {jerk}   joins {join}",
            f"chunks    {self.chunks} made, {self.chunks_used} used, refused: {refused or 'none'}",
            f"states    {states or ControlState.WAITING.name}",
            f"episodes  {len(self.episodes)} ({self.complete} complete), {self.successes} solved",
        ]
        if self.requests_failed:
            lines.append(f"warning   {self.requests_failed} requests were not answered in time")
        if self.lost_ticks:
            lines.append(f"warning   {self.lost_ticks} ticks were lost to the recording; their episodes were not saved")
        if self.missed * 10 > self.ticks:
            lines.append("warning   this machine did not keep up: the world fell behind the clock")
        if self.chunks_refused["late"] > self.chunks_used:
            lines.append(TOO_LATE)
        return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> float | None:
    measured = [v for v in values if v is not None]
    return float(np.mean(measured)) if measured else None


def _ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None
