"""Recording from devices that never stop: episodes begin and end, are kept or thrown away, while samples go on coming.

The recorder runs beside the control path (``robolearn_deploy.recorder`` gives it a process of its own) and takes what
other processes have put into shared memory. It is told of everything that it came too late for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from robolearn_data.schema import SchemaError
from robolearn_data.writer import DatasetWriter

ACTION_STAGES = {
    "action": "what the person or policy asked for; this is learned",
    "action_limited": "after the safety limits",
    "action_sent": "what went to the device",
    "action_measured": "what the device reports to have done",
}
"""The streams in which an action is kept, as far as each is known."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What a device gave since it was last asked."""

    capture_ns: np.ndarray
    """(n,) int64, CLOCK_MONOTONIC."""
    received_ns: np.ndarray
    """(n,) int64."""
    values: np.ndarray
    """(n, ...)"""
    lost: int = 0
    """Samples that were overwritten before anybody took them."""


@dataclass(frozen=True, eq=False)
class Steps:
    """What the control loop did since it was last asked."""

    time_ns: np.ndarray
    """(n,) int64, the instant of each control step."""
    values: Mapping[str, np.ndarray]
    """Stream -> (n, ...). A row with NaN is a hole: the loop had nothing."""
    lost: int = 0


class SampleSource(Protocol):
    def drain(self) -> Samples: ...


class StepSource(Protocol):
    def drain(self) -> Steps: ...


@dataclass
class Count:
    """Of one source, since the recorder began or, in an episode's info, since the episode did."""

    taken: int = 0
    lost: int = 0
    """Overwritten in shared memory before the recorder came: the disk or the encoder is too slow."""
    refused: int = 0
    """Of wrong time order, or not finite."""


@dataclass
class _Source:
    source: SampleSource
    newest: Samples | None = None
    last_ns: int = 0


@dataclass
class Recorder:
    """Moves samples from ``sources`` and control steps from ``steps`` into ``writer``. ``poll`` it often."""

    writer: DatasetWriter
    steps: StepSource
    sources: Mapping[str, SampleSource]
    """Stream with a rate of its own -> where its samples come from."""
    warn: Callable[[str], None] = lambda _: None
    """Told once per episode and stream when samples are lost."""
    counts: dict[str, Count] = field(default_factory=dict)

    def __post_init__(self) -> None:
        native = {name for name, stream in self.writer.schema.streams.items() if stream.is_native}
        if native != set(self.sources):
            raise SchemaError(
                f"sources are for {', '.join(sorted(self.sources)) or 'nothing'}; "
                f"the dataset's streams with a rate of their own are {', '.join(sorted(native)) or 'none'}"
            )
        self.recording = False
        self._sources = {name: _Source(source) for name, source in self.sources.items()}
        self._period_ns = 1e9 / self.writer.schema.rate_hz
        self.counts = {name: Count() for name in ("steps", *self.sources)}
        self._episode = {name: Count() for name in self.counts}
        self._last_step_ns = 0

    def start(self, **info: Any) -> None:
        """Begin an episode with what comes from now on, and the newest sample of each stream before it.

        Raises:
            SchemaError: an episode is being recorded; save or discard it first.
        """
        if self.recording:
            raise SchemaError("an episode is being recorded; save or discard it first")
        self.poll()
        self._episode = {name: Count() for name in self.counts}
        self._last_step_ns = 0
        self.recording = True
        if info:
            self.writer.note(**info)
        for name, source in self._sources.items():
            source.last_ns = 0
            if source.newest is not None:
                self._take(name, source, source.newest)

    def poll(self) -> None:
        """Take all that came since the last call; between episodes it is thrown away.

        Raises:
            OSError: the disk is full or gone. What was saved is whole; the episode in flight is held.
        """
        for name, source in self._sources.items():
            samples = source.source.drain()
            if samples.lost:
                self._count_lost(name, samples.lost)
            if len(samples.capture_ns):
                source.newest = _last(samples)
                if self.recording:
                    self._take(name, source, samples)
        steps = self.steps.drain()
        if steps.lost:
            self._count_lost("steps", steps.lost)
        if self.recording and len(steps.time_ns):
            self._take_steps(steps)

    def save(self, *, success: bool | None = None, **info: Any) -> int:
        """End the episode and publish it, with ``success`` if that is known. Returns its number. Raises as the writer.

        Its info says under "recorded" what was taken, lost and refused of each stream.
        """
        self._check_recording()
        self.poll()
        known = {} if success is None else {"success": success}
        recorded = {name: asdict(count) for name, count in self._episode.items()}
        episode = self.writer.save_episode({**info, **known, "recorded": recorded})
        self.recording = False
        return episode

    def discard(self) -> None:
        """End the episode and forget it, so that it can be recorded again."""
        self._check_recording()
        self.writer.discard_episode()
        self.recording = False

    def _check_recording(self) -> None:
        if not self.recording:
            raise SchemaError("no episode is being recorded; start one first")

    def _take(self, name: str, source: _Source, samples: Samples) -> None:
        before = np.maximum.accumulate(np.concatenate(([source.last_ns], samples.capture_ns[:-1])))
        good = samples.capture_ns > before
        if samples.values.dtype.kind == "f":
            good &= np.isfinite(samples.values).reshape(len(good), -1).all(1)
        self._add("refused", name, int((~good).sum()))
        if good.any():
            times = samples.capture_ns[good]
            source.last_ns = int(times[-1])
            self._add("taken", name, len(times))
            self.writer.add_samples(name, samples.values[good], times, samples.received_ns[good])

    def _take_steps(self, steps: Steps) -> None:
        aligned = {name for name, stream in self.writer.schema.streams.items() if not stream.is_native}
        for i, time_ns in enumerate(steps.time_ns.tolist()):
            if time_ns <= self._last_step_ns:
                self._add("refused", "steps", 1)
                continue
            # Steps that were lost are rows of holes: what follows must not move up.
            missing = round((time_ns - self._last_step_ns) / self._period_ns) - 1 if self._last_step_ns else 0
            for k in range(1, missing + 1):
                at = self._last_step_ns + round(k * (time_ns - self._last_step_ns) / (missing + 1))
                self.writer.add({}, time_ns=at, holes=aligned)
            row = {name: values[i] for name, values in steps.values.items()}
            holes = {name for name in aligned if name not in row or not np.isfinite(row[name]).all()}
            self.writer.add({k: v for k, v in row.items() if k not in holes}, time_ns=time_ns, holes=holes)
            self._last_step_ns = time_ns
            self._add("taken", "steps", 1)

    def _count_lost(self, name: str, lost: int) -> None:
        if self.recording and not self._episode[name].lost:
            self.warn(f"{name}: {lost} samples were lost before they could be recorded; they are marked as holes")
        self._add("lost", name, lost)

    def _add(self, what: str, name: str, number: int) -> None:
        for count in (self.counts[name], self._episode[name]):
            setattr(count, what, getattr(count, what) + number)


def _last(samples: Samples) -> Samples:
    return Samples(samples.capture_ns[-1:].copy(), samples.received_ns[-1:].copy(), samples.values[-1:].copy())
