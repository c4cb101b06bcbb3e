"""The recorder in a process of its own, fed through rings in shared memory and told when an episode begins and ends."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data import journal
from robolearn_data.recorder import Count, Recorder
from robolearn_data.schema import Schema, Stream, UserError
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.operator import beat
from robolearn_deploy.starting import POLL_S as _IDLE_S
from robolearn_deploy.starting import START_S
from robolearn_hardware.ring import Field, Ring, RingHandle

_LOG = logging.getLogger(__name__)

POLL_S = 0.1
"""A ring must have room for three times that, at the rate of its device."""

ANSWER_S, SAVE_S = 10.0, 120.0
"""In which the process must answer; must have published an episode, which a slow disk makes long."""

BACKLOG_BYTES = 256 * 2**20
"""Samples of each device that wait in memory while the disk stands still; three cameras have 9 s."""


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

    def __init__(self, ring: Ring, *, limit_bytes: int = BACKLOG_BYTES) -> None:
        """``limit_bytes``: of what ``fetch`` keeps; beyond that samples stay in the ring until they are overwritten."""
        self._ring = ring
        self._limit_bytes = limit_bytes
        self._next = ring.count
        self._lost = 0
        self._fetched: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._drained = time.monotonic()

    def drain(self) -> tuple[np.ndarray, int]:
        with self._lock:
            self._fetch()
            blocks, lost = self._fetched, self._lost
            self._fetched, self._lost = [], 0
            self._drained = time.monotonic()
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks), lost

    def fetch(self) -> None:
        """Take the samples out of the ring before they are overwritten, if ``drain`` does not come. In any thread."""
        with self._lock:
            full = sum(block.nbytes for block in self._fetched) > self._limit_bytes
            if not full and time.monotonic() - self._drained > 2 * POLL_S:
                self._fetch()

    def _fetch(self) -> None:
        start = self._next
        records, self._next = self._ring.drain(start)
        self._lost += self._next - start - len(records)
        if len(records) or not self._fetched:
            self._fetched.append(records)


def _fetch_for_ever(sources: Iterable[RingSource], end: threading.Event) -> None:
    while not end.wait(POLL_S):
        for source in sources:
            source.fetch()


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
    """Records into the dataset at ``path``, which must exist, until ``close``. Devices never wait for it.

    Samples that it came too late for, and whatever stops it, are logged (to stderr, unless the process that starts it
    says otherwise) as well as told by ``status``.
    """

    def __init__(
        self,
        path: Path,
        steps: RingHandle,
        sources: Mapping[str, RingHandle],
        beats: RingHandle | None = None,
        starting: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            beats: a ring of ``operator.BEAT_FIELDS`` in which it says about ten times a second that it records.
            starting: ``idle`` until it has started.
        """
        self.idle = starting
        """Called about fifty times a second while an answer is waited for."""
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (path, steps, dict(sources), beats, theirs)
        self._process = context.Process(target=_run, args=arguments, name="recorder")
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise
        self.idle = lambda: None

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def start(self, **info: Any) -> None:
        """Begin an episode."""
        self._ask("start", info)

    def hold(self) -> None:
        """End the episode here; ``save`` or ``discard`` follows when it is judged."""
        self._ask("hold", {})

    def save(self, *, success: bool | None = None, **info: Any) -> int:
        """End and publish it; returns its number."""
        return self._ask("save", {"success": success, **info}, SAVE_S)

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

    def _ask(self, what: str, arguments: dict[str, Any], timeout_s: float = ANSWER_S) -> Any:
        try:
            self._pipe.send((what, arguments))
        except OSError:
            raise self._ended() from None
        return self._answer(timeout_s)

    def _answer(self, timeout_s: float = START_S) -> Any:
        end = time.monotonic() + timeout_s
        try:
            while not self._pipe.poll(_IDLE_S):
                self.idle()
                if time.monotonic() > end:
                    self._process.kill()  # an answer that came later would be taken for another's
                    raise self._ended(f"has not answered for {timeout_s:g} s and was killed")
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if kind == "error":
            raise RecordingError(value)
        return value

    def _ended(self, how: str = "") -> RecordingError:
        self._process.join(5)
        how = how or f"has ended (exit code {self._process.exitcode})"
        return RecordingError(
            f"the recorder process {how}; what was saved is whole, `robolearn data recover` saves the rest"
        )


def _run(
    path: Path, steps: RingHandle, sources: dict[str, RingHandle], beats: RingHandle | None, pipe: Connection
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every process of a terminal; the parent decides
    warnings: list[str] = []
    heart = Ring.attach(beats) if beats else None

    def warn(text: str) -> None:
        warnings.append(text)
        _LOG.warning(text)

    with contextlib.ExitStack() as stack:
        try:
            recorder = _open(stack, path, steps, sources, warn)
        except (UserError, OSError) as error:
            pipe.send(("error", f"nothing can be recorded in {path}: {_explain(error)}"))
            return
        pipe.send(("ok", None))
        failure = ""
        while True:
            if not failure:
                try:
                    recorder.poll()
                except (UserError, OSError) as error:
                    failure = _stopped(path, error)
                    _LOG.error(failure)
            if heart and not failure:
                beat(heart)
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


def _open(
    stack: contextlib.ExitStack,
    path: Path,
    steps: RingHandle,
    sources: Mapping[str, RingHandle],
    warn: Callable[[str], None],
) -> Recorder:
    writer = DatasetWriter.append(path)
    stack.callback(writer.close, keep_unfinished=True)
    rings = {name: stack.enter_context(Ring.attach(handle)) for name, handle in {"steps": steps, **sources}.items()}
    every = {name: RingSource(ring) for name, ring in rings.items()}
    recorder = Recorder(writer, every["steps"], {name: every[name] for name in sources}, warn=warn)
    end = threading.Event()
    fetching = threading.Thread(target=_fetch_for_ever, args=(list(every.values()), end))
    fetching.start()
    stack.callback(fetching.join)
    stack.callback(end.set)
    if journal.unfinished(path):
        warn(f"an episode before was not saved; when recording is over, `robolearn data recover {path}` saves it")
    return recorder


def _stopped(path: Path, error: Exception) -> str:
    return (
        f"recording has stopped: {_explain(error)}. What was saved is whole. End this recorder; then "
        f"`robolearn data recover {path}` saves the episode in flight, and a new recorder goes on"
    )


def _explain(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room"
    if error.errno == errno.EROFS:
        return "the disk is mounted read-only; mount it again, writable"
    return error.strerror or str(error)


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
    except UserError as error:
        return "error", str(error)
    except OSError as error:
        return "error", f"cannot {what}: {_explain(error)}. The episode is still held: try again, or discard it"
