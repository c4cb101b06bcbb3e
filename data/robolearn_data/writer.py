"""Writing a dataset so that an episode is there whole or not at all, whenever the writer or the machine stops."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from robolearn_data import journal, storage
from robolearn_data.columns import FrameColumn
from robolearn_data.creation import TIME, VALID, json_text, lay_out
from robolearn_data.dataset import Dataset
from robolearn_data.episode_buffer import EpisodeBuffer
from robolearn_data.folder import DatasetError, Folder
from robolearn_data.journal import Block
from robolearn_data.location import Location, locate
from robolearn_data.schema import Schema, SchemaError
from robolearn_data.shards import Encoded


class DatasetWriter:
    """Collects one episode at a time and publishes it with ``save_episode``.

    Until then its rows are in memory, and beyond ``buffer_bytes`` in files past the published end, where no reader
    looks and the next episode overwrites them. A durable writer also keeps a journal of the episode in flight, from
    which `robolearn data recover` saves it after a crash. After an OSError (a full disk) the episode is still held:
    make room and save again, or discard it. One writer at a time; use it as a context manager, which discards an
    unsaved episode at the end, but leaves it to `recover` after an exception.
    """

    def __init__(self, location: Location, *, durable: bool = True, buffer_bytes: int = 512 * 2**20) -> None:
        """Use ``create`` or ``append``."""
        storage.read_attributes(location)
        self._lock = location.lock()
        self._is_open = True
        try:
            self._open(location, durable, buffer_bytes)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, location: Location, durable: bool, buffer_bytes: int) -> None:
        published = Dataset.open(location)
        self.location = location
        self.schema = published.schema
        self.episodes = published.episodes
        self.steps = published.steps
        self.durable = durable
        self.left_behind: Path | None = None
        """Journal of an episode that a killed writer left, which `recover` can save; None usually."""
        self._journal = None
        if isinstance(location, Folder):
            self.left_behind = journal.set_aside(location.path)
            self._journal = journal.Journal(location.path / journal.NAME) if durable else None
        self._store = location.store(read_only=False, durable=durable)
        self._ends = storage.open_array(self._store, storage.ENDS, "r+")
        self._infos = storage.open_array(self._store, storage.INFO, "r+")
        self._aligned = {name: s for name, s in self.schema.streams.items() if not s.is_native}
        self._samples = {
            name: published.samples_before(name, self.episodes)
            for name, stream in self.schema.streams.items()
            if stream.is_native
        }
        """Native stream -> samples of it that are published."""
        self._buffer = EpisodeBuffer(
            location, self.schema, durable=durable, buffer_bytes=buffer_bytes, journal=self._journal
        )
        self._buffer.open_columns(self.steps, self._samples)
        self._begin()

    @classmethod
    def create(
        cls,
        path: str | Path | Location,
        schema: Schema,
        *,
        metadata: Mapping[str, Any] | None = None,
        compression: Mapping[str, str] | None = None,
        durable: bool = True,
        buffer_bytes: int = 512 * 2**20,
    ) -> DatasetWriter:
        """Make an empty dataset at ``path``, a folder or URL, which appears there complete.

        Args:
            metadata: JSON values about the whole dataset (rig, calibration, source).
            compression: stream -> "zstd-1", "zstd-5", "jpeg-95", "lossless", "depth" or "h264-23", see
                ``storage.encoding``. Unless it is named here, an 8-bit image of 1 or 3 channels is stored as JPEG,
                "jpeg-95"; every other stream exactly, "zstd-1".
            durable: wait for the medium at each write, and keep a journal. Without it a power cut may cost more than
                the last episode.

        Raises:
            DatasetError: ``path`` exists.
            SchemaError: no streams, a reserved name, a compression that does not fit, or metadata that is not JSON.
        """
        location = locate(path)
        with location.draft() as draft:
            lay_out(draft, schema, metadata, compression)
        return cls(location, durable=durable, buffer_bytes=buffer_bytes)

    @classmethod
    def append(
        cls, path: str | Path | Location, *, durable: bool = True, buffer_bytes: int = 512 * 2**20
    ) -> DatasetWriter:
        """Go on after the last published episode; what a killed writer left behind it is overwritten, except for its
        journal, which is set aside for `recover`.

        Raises:
            DatasetError: not a dataset, damaged, or another process is writing to it.
        """
        return cls(locate(path), durable=durable, buffer_bytes=buffer_bytes)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(keep_unfinished=kind is not None)

    def close(self, *, keep_unfinished: bool = False) -> None:
        """Discard what was not saved and let other writers in. ``keep_unfinished`` leaves its journal to `recover`."""
        if self._is_open:
            if not keep_unfinished:
                self.discard_episode()
            if self._journal:
                self._journal.close()
            self._lock.release()
            self._is_open = False

    def array(self, name: str) -> zarr.Array:
        """The array that holds a stream's values; its rows beyond those of saved episodes mean nothing."""
        return storage.open_array(self._store, storage.values_of(name, self.schema.stream(name)))

    def check_location(self) -> None:
        """Before writing goes on: is the dataset still where it was, and this its only writer?

        Raises:
            OSError: its disk was unmounted, or the folder moved.
            DatasetError: another process has taken over.
        """
        self._lock.check()

    @property
    def pending(self) -> int:
        """Control steps of the episode in flight."""
        return self._buffer.rows

    def add(
        self,
        row: Mapping[str, Any],
        *,
        capture_ns: Mapping[str, int] | None = None,
        received_ns: Mapping[str, int] | None = None,
        time_ns: int | None = None,
        holes: Collection[str] = (),
    ) -> None:
        """Take one control step: a sample of every stream that has no rate of its own.

        Args:
            capture_ns: stream -> CLOCK_MONOTONIC ns at which its sample was captured.
            received_ns: stream -> CLOCK_MONOTONIC ns at which it reached this machine or process.
            time_ns: CLOCK_MONOTONIC ns of this control step; each later than the one before. Needed where a stream has
                a rate of its own.
            holes: streams without a sample at this step (a dropped frame). They are left out of ``row``; the dataset
                repeats the sample before (zeros at the start) and marks the row invalid for that stream.

        Raises:
            SchemaError: a stream unknown, missing, of wrong shape or dtype, or with NaN; a time that does not increase.
                The row is not taken.
            OSError: the journal or rows beyond ``buffer_bytes`` cannot be written. The row is taken and held.
        """
        self._check_names(row, holes)
        blocks: dict[str, np.ndarray | Encoded] = {
            name: np.array(self._aligned[name].check(name, value))[None] for name, value in row.items()
        }
        times = {} if time_ns is None else {f"time/{storage.TICK}": [time_ns]}
        times |= {f"time/{self._aligned_name(name)}": [t] for name, t in (capture_ns or {}).items()}
        times |= {f"received/{self._aligned_name(name)}": [t] for name, t in (received_ns or {}).items()}
        self._take(blocks, times, 1, holes)

    def extend(
        self,
        rows: Mapping[str, Any],
        *,
        capture_ns: Mapping[str, Any] | None = None,
        received_ns: Mapping[str, Any] | None = None,
        time_ns: Any | None = None,
        valid: Mapping[str, Any] | None = None,
    ) -> None:
        """Take T control steps at once: every stream as (T, ...), times as (T,). Otherwise as ``add``.

        ``valid``: stream -> (T,) bool, False for holes; the rows given there are kept as stand-ins. Values that are
        ``shards.Encoded`` are stored as they are: the caller knows that they were encoded as this dataset does it.
        """
        self._check_names(rows, ())
        steps = len(next(iter(rows.values())))
        blocks = {name: self._checked(f"data/{name}", name, v, steps) for name, v in rows.items()}
        times = {} if time_ns is None else {f"time/{storage.TICK}": time_ns}
        times |= {f"time/{self._aligned_name(name)}": t for name, t in (capture_ns or {}).items()}
        times |= {f"received/{self._aligned_name(name)}": t for name, t in (received_ns or {}).items()}
        masks = {
            f"valid/{self._aligned_name(name)}": VALID.check(f"valid/{name}", mask, batch=(steps,))
            for name, mask in (valid or {}).items()
        }
        self._take(blocks, times, steps, (), masks)

    def add_samples(self, name: str, values: Any, capture_ns: Any, received_ns: Any | None = None) -> None:
        """Take n samples (n, ...) of a stream that has a rate of its own, captured at ``capture_ns`` (n,).

        Raises:
            SchemaError: the stream is unknown or has no rate; wrong shape or dtype, NaN; a capture time that does not
                increase. No sample is taken.
            OSError: as ``add``.
        """
        self._check_open()
        stream = self.schema.stream(name)
        if not stream.is_native:
            raise SchemaError(
                f"stream {name!r} has no rate of its own; its samples come with the control steps of `add`"
            )
        place = f"streams/{name}"
        count = len(values) if isinstance(values, Encoded) or np.ndim(values) else 0
        values = self._checked(f"{place}/value", name, values, count)
        times = TIME.check(f"capture_ns of {name}", capture_ns, batch=(count,))
        if count and np.any(np.diff(times, prepend=self._buffer.newest_sample[name]) <= 0):
            raise SchemaError(f"capture times of {name!r} must be above 0 and increase from one sample to the next")
        received = np.zeros(count, np.int64)
        if received_ns is not None:
            received = TIME.check(f"received_ns of {name}", received_ns, batch=(count,))
        if count:
            self._buffer.put(
                {
                    f"{place}/value": self._encoded(f"{place}/value", values),
                    f"{place}/time": times,
                    f"{place}/received": received,
                }
            )

    def note(self, **info: Any) -> None:
        """Say something about the episode in flight ahead of its end (task, operator): JSON values for its info."""
        self._check_open()
        json_text(info, "episode info")
        self._buffer.info |= info
        self._buffer.put({}, {"info": info})

    def save_episode(self, info: Mapping[str, Any] | None = None) -> int:
        """Write the rows taken since the last call, then publish them as one episode with ``info`` (JSON values).

        Returns the episode's number. A "uuid" is added and, where control steps had times, "wall_time_ns" of the first
        and "wall_offset_ns" (wall time - CLOCK_MONOTONIC).

        Raises:
            SchemaError: there are no rows, or ``info`` is not JSON.
            OSError: the disk is full or gone. Nothing is published, earlier episodes are whole, the rows are kept.
        """
        self._check_open()
        if not self.pending:
            raise SchemaError("an episode without rows cannot be saved; add rows first, or discard it")
        text = json_text({**self._buffer.info, **(info or {})}, "episode info")
        self._lock.check()
        self._buffer.write()
        columns = self._buffer.columns
        new = slice(self.episodes, self.episodes + 1)
        storage.with_length(self._infos, new.stop)[new] = np.array([text], dtype=object)
        samples = {name: columns[f"streams/{name}/value"].stop for name in self._samples}
        for name, stop in samples.items():
            ends = storage.open_array(self._store, f"streams/{name}/ends", "r+")
            storage.with_length(ends, new.stop)[new] = np.array([stop])
            self._set_length(f"streams/{name}/ends", new.stop)
        stop = self.steps + self.pending
        storage.with_length(self._ends, new.stop)[new] = np.array([stop])
        for name, column in columns.items():
            self._set_length(name, column.stop)
        self._set_length(storage.INFO, new.stop)
        self._lock.check()
        self._set_length(storage.ENDS, new.stop)  # from here on it exists
        self.steps = stop
        self.episodes += 1
        self._samples = samples
        self._begin()
        return self.episodes - 1

    def discard_episode(self) -> None:
        """Forget the rows taken since the last ``save_episode``."""
        self._begin()

    def replay(self, columns: Mapping[str, Block], facts: Mapping[str, Any]) -> None:
        """Take a record of a journal again, as `recover` does."""
        self._buffer.info |= facts.get("info", {})
        self._buffer.put(columns, facts)

    def _begin(self) -> None:
        self._last: dict[str, np.ndarray | Encoded] = {}
        self._buffer.restart(self.steps, self._samples)

    def _check_open(self) -> None:
        if not self._is_open:
            raise DatasetError(f"the writer of {self.location} is closed; open it again with DatasetWriter.append")

    def _aligned_name(self, name: str) -> str:
        if self.schema.stream(name).is_native:
            raise SchemaError(f"stream {name!r} has a rate of its own; give its samples to `add_samples`")
        return name

    def _check_names(self, row: Mapping[str, Any], holes: Collection[str]) -> None:
        self._check_open()
        for name in (*row, *holes):
            self._aligned_name(name)
        missing = [name for name in self._aligned if (name in row) == (name in holes)]
        if missing:
            raise SchemaError(f"row needs each stream once, as a sample or a hole: {', '.join(missing)}")

    def _take(
        self,
        blocks: dict[str, np.ndarray | Encoded],
        times: Mapping[str, Any],
        steps: int,
        holes: Collection[str],
        masks: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        for name in holes:
            stream = self._aligned[name]
            blocks[name] = self._last.get(name, np.zeros((1, *stream.shape), stream.dtype))
        checked = {name: TIME.check(name, value, batch=(steps,)) for name, value in times.items()}
        ticks = checked.get(f"time/{storage.TICK}")
        if steps and ticks is not None and np.any(np.diff(ticks, prepend=self._buffer.newest_tick) <= 0):
            raise SchemaError("time_ns must increase from one control step to the next; use time.monotonic_ns()")
        if ticks is None and self._samples:
            raise SchemaError("streams with rates of their own are found by time; give time_ns with each control step")
        if not steps:
            return
        columns: dict[str, Block] = {
            f"data/{name}": self._encoded(f"data/{name}", block) for name, block in blocks.items()
        }
        columns |= checked | {f"valid/{name}": np.zeros(steps, bool) for name in holes} | dict(masks or {})
        self._last = {
            name: Encoded(block[-1:]) if isinstance(block, Encoded) else block[-1:] for name, block in blocks.items()
        }
        facts = {}
        if ticks is not None and "wall_offset_ns" not in self._buffer.info:
            offset = time.time_ns() - time.monotonic_ns()
            clock = {"wall_time_ns": int(ticks[0]) + offset, "wall_offset_ns": offset}
            self._buffer.info |= clock
            facts = {"info": clock}
        self._buffer.put(columns, facts)

    def _checked(self, column: str, name: str, values: Any, count: int) -> np.ndarray | Encoded:
        if not isinstance(values, Encoded):
            return np.array(self.schema.streams[name].check(name, values, batch=(count,)))
        if not isinstance(self._buffer.columns[column], FrameColumn) or len(values) != count:
            raise SchemaError(f"stream {name!r} does not take {len(values)} encoded rows here")
        return values

    def _encoded(self, column: str, block: np.ndarray | Encoded) -> Block:
        return list(block) if isinstance(block, Encoded) else self._buffer.columns[column].encode(block)

    def _set_length(self, name: str, rows: int) -> None:
        storage.set_length(self.location, name, rows, durable=self.durable)
