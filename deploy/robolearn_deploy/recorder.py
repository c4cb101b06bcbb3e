"""The recorder in a process of its own, fed through rings in shared memory and told when an episode begins and ends."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.recorder import Count, Recorder
from robolearn_data.schema import Schema, Stream, UserError
from robolearn_data.writer import DatasetWriter
from robolearn_hardware.ring import Field, Ring, RingHandle

POLL_S = 0.1
"""A ring must have room for what its device publishes meanwhile, and while an image of each camera is encoded."""


class RecordingError(UserError):
    """Recording has stopped, or cannot do what was asked."""


def sample_fields(stream: Stream) -> dict[str, Field]:
    """The ring record in which a device publishes a sample of ``stream``."""
    return {"capture_ns": ("int64", ()), "received_ns": ("int64", ()), "value": (stream.dtype, stream.shape)}


def step_fields(schema: Schema) -> dict[str, Field]:
    """The ring record in which the control loop publishes a step: its instant and every stream without a rate."""
    streams = {name: s for name, s in schema.streams.items() if not s.is_native}
    return {"time_ns": ("int64", ()), **{name: (s.dtype, s.shape) for name, s in streams.items()}}


class RingSource:
    """What a device or the control loop publishes from now on, out of a ring of the fields above."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._next = ring.count

    def drain(self) -> tuple[np.ndarray, int]:
        start = self._next
        records, self._next = self._ring.drain(start)
        return records, self._next - start - len(records)


@dataclass(frozen=True)
class Status:
    """What the recorder process says of itself."""

    recording: bool
    episodes: int
    steps: int
    """Control steps of the episode in flight."""
    counts: Mapping[str, Count]
    warnings: tuple[str, ...]
    """Since the last time it was asked."""


class RecorderProcess:
    """Records into the dataset at ``path``, which must exist, until ``close``. Devices never wait for it."""

    def __init__(self, path: Path, steps: RingHandle, sources: Mapping[str, RingHandle]) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(path, steps, dict(sources), theirs), name="recorder")
        self._process.start()
        theirs.close()
        self._answer()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def start(self, **info: Any) -> None:
        """Begin an episode."""
        self._ask("start", info)

    def save(self, *, success: bool | None = None, **info: Any) -> int:
        """End and publish it; returns its number."""
        return self._ask("save", {"success": success, **info})

    def discard(self) -> None:
        """End and forget it."""
        self._ask("discard", {})

    def status(self) -> Status:
        return self._ask("status", {})

    def close(self) -> None:
        """Stop recording. An episode that was neither saved nor discarded is left to `robolearn data recover`."""
        with contextlib.suppress(OSError, RecordingError):
            self._ask("close", {})
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def __enter__(self) -> RecorderProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, arguments: dict[str, Any]) -> Any:
        try:
            self._pipe.send((what, arguments))
        except OSError:
            raise RecordingError(f"the recorder process has ended (exit code {self._process.exitcode})") from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise RecordingError(
                f"the recorder process has ended (exit code {self._process.exitcode}); "
                "what was saved is whole, `robolearn data recover` saves the rest"
            ) from None
        if kind == "error":
            raise RecordingError(value)
        return value


def _run(path: Path, steps: RingHandle, sources: dict[str, RingHandle], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every process of a terminal; the parent decides
    warnings: list[str] = []
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(_unless_closed(DatasetWriter.append(path)))
        rings = {name: stack.enter_context(Ring.attach(handle)) for name, handle in sources.items()}
        recorder = Recorder(
            writer,
            RingSource(stack.enter_context(Ring.attach(steps))),
            {name: RingSource(ring) for name, ring in rings.items()},
            warn=warnings.append,
        )
        pipe.send(("ok", None))
        failure = ""
        while True:
            if not failure:
                try:
                    recorder.poll()
                except OSError as error:
                    failure = f"recording has stopped: {error}; what was saved is whole, make room and begin again"
            if not pipe.poll(POLL_S):
                continue
            try:
                what, arguments = pipe.recv()
            except EOFError:  # the parent was killed
                return
            if what == "close":
                pipe.send(("ok", None))
                return
            pipe.send(_answer(recorder, what, arguments, failure, warnings))


def _answer(
    recorder: Recorder, what: str, arguments: dict[str, Any], failure: str, warnings: list[str]
) -> tuple[str, Any]:
    if failure:
        return "error", failure
    try:
        if what == "status":
            told = tuple(warnings)
            warnings.clear()
            writer = recorder.writer
            return "ok", Status(recorder.recording, writer.episodes, writer.pending, recorder.counts, told)
        return "ok", getattr(recorder, what)(**arguments)
    except (UserError, OSError) as error:
        return "error", str(error)


@contextlib.contextmanager
def _unless_closed(writer: DatasetWriter) -> Any:
    """The writer, whose unsaved episode stays in its journal at the end."""
    try:
        yield writer
    finally:
        writer.close(keep_unfinished=True)
