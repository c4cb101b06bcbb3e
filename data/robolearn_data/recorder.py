"""Recording from devices that never stop: episodes begin and end, are kept or thrown away, while samples go on coming.

The recorder runs beside the control path (``robolearn_deploy.recorder`` gives it a process of its own) and takes what
other processes have put into shared memory. It is told of everything that it came too late for.
"""

from __future__ import annotations

import time
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

CLOCK_TOLERANCE_NS = 1_000_000_000
"""How far ahead of this machine's clock a device's may be. One sample from years ahead would make all others late."""


class Source(Protocol):
    """Where the samples of a stream, or the control steps, come from."""

    def drain(self) -> tuple[np.ndarray, int]:
        """What came since the last call, and how many more were overwritten before anybody took them.

        A structured array (n,): of a stream with the fields "capture_ns", "received_ns" (CLOCK_MONOTONIC) and "value";
        of control steps with "time_ns" and every stream without a rate of its own, where NaN is a hole.
        """
        ...


@dataclass
class Count:
    """Of one source, since the recorder began or, in an episode's info, since the episode did."""

    taken: int = 0
    lost: int = 0
    """Overwritten in shared memory before the recorder came: the disk or the encoder is too slow."""
    refused: int = 0
    """Of wrong time order, from the future, or not finite."""


@dataclass
class Recorder:
    """Moves samples from ``sources`` and control steps from ``steps`` into ``writer``. ``poll`` it often."""

    writer: DatasetWriter
    steps: Source
    sources: Mapping[str, Source]
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
        self.recording = self.held = False
        self._aligned = self.writer.schema.streams.keys() - native
        self._period_ns = 1e9 / self.writer.schema.rate_hz
        self.counts = {name: Count() for name in ("steps", *self.sources)}
        self._newest: dict[str, np.ndarray] = {}
        """Stream with a rate of its own -> its last sample (1,), from which an episode begins."""
        self._forget()

    def _forget(self) -> None:
        """What is known of the last episode."""
        self._episode = {name: Count() for name in self.counts}
        self._last_ns = dict.fromkeys(self.counts, 0)
        self._held: dict[str, np.ndarray] = {}
        """Stream without a rate -> its last valid value (1, ...), which stands in for holes."""

    def start(self, **info: Any) -> None:
        """Begin an episode with what comes from now on, and the newest sample of each stream before it.

        Raises:
            SchemaError: an episode is being recorded; save or discard it first.
        """
        if self.recording:
            raise SchemaError("an episode is being recorded; save or discard it first")
        self.poll()
        self._forget()
        self.recording, self.held = True, False
        if info:
            self.writer.note(**info)
        for name, newest in self._newest.items():
            self._take(name, newest)

    def hold(self) -> None:
        """End the episode here: what comes later is thrown away. ``save`` or ``discard`` follows when it is judged."""
        self._check_recording()
        self.poll()
        self.held = True

    def poll(self) -> None:
        """Take all that came since the last call; between episodes and after ``hold`` it is thrown away.

        Raises:
            OSError: the disk is full or gone. What was saved is whole; the episode in flight is held.
        """
        self.writer.check_location()
        for name, source in self.sources.items():
            samples = self._drain(name, source)
            if len(samples):
                self._newest[name] = samples[-1:].copy()
                if self._takes:
                    self._take(name, samples)
        steps = self._drain("steps", self.steps)
        if self._takes and len(steps):
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

    @property
    def _takes(self) -> bool:
        return self.recording and not self.held

    def _check_recording(self) -> None:
        if not self.recording:
            raise SchemaError("no episode is being recorded; start one first")

    def _drain(self, name: str, source: Source) -> np.ndarray:
        records, lost = source.drain()
        if self._takes and lost:
            if not self._episode[name].lost:
                self.warn(f"{name}: {lost} samples were lost before they could be recorded; they are marked as holes")
            self._add("lost", name, lost)
        return records

    def _take(self, name: str, samples: np.ndarray) -> None:
        good = self._good(name, samples["capture_ns"], _is_finite(samples["value"]))
        if not good.all():
            samples = samples[good]
        if len(samples):
            self.writer.add_samples(name, samples["value"], samples["capture_ns"], samples["received_ns"])

    def _take_steps(self, steps: np.ndarray) -> None:
        last = self._last_ns["steps"]
        steps = steps[self._good("steps", steps["time_ns"], True)]
        if not len(steps):
            return
        last = last or int(steps["time_ns"][0]) - round(self._period_ns)
        # Steps that were lost are rows of holes: what follows must not move up.
        since = steps["time_ns"] - last
        rows = np.maximum(np.rint(np.diff(since, prepend=0) / self._period_ns), 1).astype(np.int64)
        count, row = rows.sum(), np.cumsum(rows) - 1
        time_ns = last + np.rint(np.interp(np.arange(count), [-1, *row], [0, *since])).astype(np.int64)
        values, valid = {}, {}
        for name in self._aligned:
            stream = self.writer.schema.streams[name]
            held = self._held.get(name, np.zeros((1, *stream.shape), stream.dtype))
            there = np.zeros(count, bool)
            if name in (steps.dtype.names or ()):
                there[row] = _is_finite(steps[name])
                held = np.concatenate([held, steps[name][there[row]]])
            values[name] = held[np.cumsum(there)]
            self._held[name] = held[-1:].copy()
            if not there.all():
                valid[name] = there
        self.writer.extend(values, time_ns=time_ns, valid=valid)

    def _good(self, name: str, time_ns: np.ndarray, finite: np.ndarray | bool) -> np.ndarray:
        """Which records (n,) can be taken: each later than all before it, and not from the future."""
        possible = finite & (time_ns < time.monotonic_ns() + CLOCK_TOLERANCE_NS)
        newest = np.maximum.accumulate(np.concatenate(([self._last_ns[name]], np.where(possible, time_ns, 0))))
        good = possible & (time_ns > newest[:-1])
        self._last_ns[name] = int(newest[-1])
        self._add("taken", name, int(good.sum()))
        self._add("refused", name, int((~good).sum()))
        return good

    def _add(self, what: str, name: str, number: int) -> None:
        for count in (self.counts[name], self._episode[name]):
            setattr(count, what, getattr(count, what) + number)


def _is_finite(values: np.ndarray) -> np.ndarray:
    """Which of the values (n, ...) have no NaN or infinity, (n,)."""
    if values.dtype.kind != "f":
        return np.ones(len(values), bool)
    return np.isfinite(values).reshape(len(values), -1).all(1)
