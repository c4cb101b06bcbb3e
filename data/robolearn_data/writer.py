"""Writing a dataset so that an episode is there whole or not at all, whenever the writer or the machine stops."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from robolearn_data import journal, shards, storage
from robolearn_data.columns import Column, FrameColumn, RowColumn
from robolearn_data.dataset import Dataset
from robolearn_data.journal import Block
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.shards import Encoded
from robolearn_data.storage import DatasetError

_TIME = Stream(shape=(), dtype="int64", kind="info")
_VALID = Stream(shape=(), dtype="bool", kind="info")


class DatasetWriter:
    """Collects one episode at a time and publishes it with ``save_episode``.

    Until then its rows are in memory, and beyond ``buffer_bytes`` in files past the published end, where no reader
    looks and the next episode overwrites them. A durable writer also keeps a journal of the episode in flight, from
    which `robolearn data recover` saves it after a crash. After an OSError (a full disk) the episode is still held:
    make room and save again, or discard it. One writer at a time; use it as a context manager, which discards an
    unsaved episode at the end, but leaves it to `recover` after an exception.
    """

    def __init__(self, path: Path, *, durable: bool = True, buffer_bytes: int = 512 * 2**20) -> None:
        """Use ``create`` or ``append``."""
        self._lock = _lock(path)
        try:
            self._open(path, durable, buffer_bytes)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, path: Path, durable: bool, buffer_bytes: int) -> None:
        published = Dataset.open(path)
        self.path = path
        self.schema = published.schema
        self.episodes = published.episodes
        self.steps = published.steps
        self.durable = durable
        self.buffer_bytes = buffer_bytes
        self._store = storage.DurableStore(path) if durable else LocalStore(path)
        self._ends = storage.open_array(self._store, storage.ENDS, "r+")
        self._infos = storage.open_array(self._store, storage.INFO, "r+")
        self._aligned = {name: s for name, s in self.schema.streams.items() if not s.is_native}
        self._native = {name: s for name, s in self.schema.streams.items() if s.is_native}
        self._samples = {name: published.samples_before(name, self.episodes) for name in self._native}
        """Native stream -> samples of it that are published."""
        self._columns: dict[str, Column] = {}
        for name, stream in self._possible_columns().items():
            if (path / name / "zarr.json").exists():
                self._columns[name] = self._column(name, stream, storage.open_array(self._store, name, "r+"))
        self.left_behind = journal.set_aside(path)
        """Journal of an episode that a killed writer left, which `recover` can save; None usually."""
        self._journal = journal.Journal(path / journal.NAME) if durable else None
        self._begin()

    @classmethod
    def create(
        cls,
        path: str | Path,
        schema: Schema,
        *,
        metadata: Mapping[str, Any] | None = None,
        compression: Mapping[str, str] | None = None,
        durable: bool = True,
        buffer_bytes: int = 512 * 2**20,
    ) -> DatasetWriter:
        """Make an empty dataset at ``path``, which appears there complete.

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
        path = Path(path)
        if path.exists():
            raise DatasetError(f"{path} exists; choose another path, or append to it if it is a dataset")
        if all(s.is_native for s in schema.streams.values()) or storage.TICK in schema.streams:
            raise SchemaError(
                f"a dataset needs at least one stream sampled once per control step, and none named {storage.TICK!r}"
            )
        unknown = set(compression or {}) - set(schema.streams)
        if unknown:
            raise SchemaError(f"compression names streams that do not exist: {', '.join(sorted(unknown))}")
        attributes = {"format": storage.FORMAT, "schema": schema.to_json(), "metadata": dict(metadata or {})}
        _json(attributes, "metadata")
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            store = LocalStore(unfinished)
            zarr.create_group(store, attributes={storage.ATTRIBUTE: attributes}, zarr_format=3)
            for name, stream in schema.streams.items():
                how = (compression or {}).get(name)
                storage.create_array(store, storage.values_of(name, stream), stream, compression=how)
                if stream.is_native:
                    for times in (f"streams/{name}/time", f"streams/{name}/received", f"index/{name}"):
                        storage.create_array(store, times, _TIME)
                    zarr.create_array(store, name=f"streams/{name}/ends", shape=(0,), dtype="int64", chunks=(4096,))
            zarr.create_array(store, name=storage.ENDS, shape=(0,), dtype="int64", chunks=(4096,))
            zarr.create_array(store, name=storage.INFO, shape=(0,), dtype="str", chunks=(64,))
            if durable:
                sync_tree(unfinished)
            os.rename(unfinished, path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls(path, durable=durable, buffer_bytes=buffer_bytes)

    @classmethod
    def append(cls, path: str | Path, *, durable: bool = True, buffer_bytes: int = 512 * 2**20) -> DatasetWriter:
        """Go on after the last published episode; what a killed writer left behind it is overwritten, except for its
        journal, which is set aside for `recover`.

        Raises:
            DatasetError: not a dataset, damaged, or another process is writing to it.
        """
        return cls(Path(path), durable=durable, buffer_bytes=buffer_bytes)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(keep_unfinished=kind is not None)

    def close(self, *, keep_unfinished: bool = False) -> None:
        """Discard what was not saved and let other writers in. ``keep_unfinished`` leaves its journal to `recover`."""
        if self._lock >= 0:
            if not keep_unfinished:
                self.discard_episode()
            if self._journal:
                self._journal.close()
            os.close(self._lock)
            self._lock = -1

    def array(self, name: str) -> zarr.Array:
        """The array that holds a stream's values; its rows beyond those of saved episodes mean nothing."""
        return storage.open_array(self._store, storage.values_of(name, self.schema.stream(name)))

    @property
    def pending(self) -> int:
        """Control steps of the episode in flight."""
        return self._rows

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
            f"valid/{self._aligned_name(name)}": _VALID.check(f"valid/{name}", mask, batch=(steps,))
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
        times = _TIME.check(f"capture_ns of {name}", capture_ns, batch=(count,))
        known = self._sample_times[name]
        if count and np.any(np.diff(times, prepend=known[-1][-1] if known else 0) <= 0):
            raise SchemaError(f"capture times of {name!r} must be above 0 and increase from one sample to the next")
        received = np.zeros(count, np.int64)
        if received_ns is not None:
            received = _TIME.check(f"received_ns of {name}", received_ns, batch=(count,))
        if count:
            self._put(
                {
                    f"{place}/value": self._encoded(f"{place}/value", values),
                    f"{place}/time": times,
                    f"{place}/received": received,
                }
            )

    def note(self, **info: Any) -> None:
        """Say something about the episode in flight ahead of its end (task, operator): JSON values for its info."""
        self._check_open()
        _json(info, "episode info")
        self._info |= info
        self._put({}, {"info": info})

    def save_episode(self, info: Mapping[str, Any] | None = None) -> int:
        """Write the rows taken since the last call, then publish them as one episode with ``info`` (JSON values).

        Returns the episode's number. A "uuid" is added and, where control steps had times, "wall_time_ns" of the first
        and "wall_offset_ns" (wall time - CLOCK_MONOTONIC).

        Raises:
            SchemaError: there are no rows, or ``info`` is not JSON.
            OSError: the disk is full or gone. Nothing is published, earlier episodes are whole, the rows are kept.
        """
        self._check_open()
        if not self._rows:
            raise SchemaError("an episode without rows cannot be saved; add rows first, or discard it")
        text = _json({**self._info, **(info or {})}, "episode info")
        self._align_native()
        for column in self._columns.values():
            column.write(column.stop)
        new = slice(self.episodes, self.episodes + 1)
        storage.with_length(self._infos, new.stop)[new] = np.array([text], dtype=object)
        samples = {name: self._columns[f"streams/{name}/value"].stop for name in self._native}
        for name, stop in samples.items():
            self._set_end(f"streams/{name}/ends", new, stop)
        stop = self.steps + self._rows
        storage.with_length(self._ends, new.stop)[new] = np.array([stop])
        for name, column in self._columns.items():
            storage.set_length(self.path, name, column.stop, durable=self.durable)
        storage.set_length(self.path, storage.INFO, new.stop, durable=self.durable)
        storage.set_length(self.path, storage.ENDS, new.stop, durable=self.durable)  # from here on it exists
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
        self._info |= facts.get("info", {})
        self._put(columns, facts)

    def _begin(self) -> None:
        self._rows = 0
        self._info: dict[str, Any] = {"uuid": str(uuid.uuid4())}
        self._last: dict[str, np.ndarray | Encoded] = {}
        self._ticks: list[np.ndarray] = []
        self._sample_times: dict[str, list[np.ndarray]] = {name: [] for name in self._native}
        self._unjournaled: list[tuple[Mapping[str, Block], Mapping[str, Any]]] = [({}, {"info": dict(self._info)})]
        for name, column in self._columns.items():
            column.restart(self._published(name))
        if self._journal:
            self._journal.restart()

    def _possible_columns(self) -> dict[str, Stream]:
        """Every array of rows or samples that the dataset may have."""
        names = {storage.values_of(name, stream): stream for name, stream in self.schema.streams.items()}
        names |= {f"{kind}/{name}": _TIME for kind in ("time", "received") for name in self._aligned}
        names |= {f"time/{storage.TICK}": _TIME}
        names |= {f"valid/{name}": _VALID for name in self.schema.streams}
        for name in self._native:
            names |= {f"streams/{name}/time": _TIME, f"streams/{name}/received": _TIME, f"index/{name}": _TIME}
        return names

    def _published(self, column: str) -> int:
        """Rows or samples of a column that are published."""
        return self._samples[column.split("/")[1]] if column.startswith("streams/") else self.steps

    def _column(self, name: str, stream: Stream, array: zarr.Array | None) -> Column:
        start = self._published(name)
        if array is not None and shards.is_one_by_one(array):
            return FrameColumn(self.path, name, stream, array, start, durable=self.durable)
        return RowColumn(self._store, name, stream, array, start)

    def _check_open(self) -> None:
        if self._lock < 0:
            raise DatasetError(f"the writer of {self.path} is closed; open it again with DatasetWriter.append")

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
        checked = {name: _TIME.check(name, value, batch=(steps,)) for name, value in times.items()}
        ticks = checked.get(f"time/{storage.TICK}")
        if ticks is not None and np.any(np.diff(ticks, prepend=self._ticks[-1][-1] if self._ticks else 0) <= 0):
            raise SchemaError("time_ns must increase from one control step to the next; use time.monotonic_ns()")
        if ticks is None and self._native:
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
        if ticks is not None and "wall_offset_ns" not in self._info:
            offset = time.time_ns() - time.monotonic_ns()
            clock = {"wall_time_ns": int(ticks[0]) + offset, "wall_offset_ns": offset}
            self._info |= clock
            facts = {"info": clock}
        self._put(columns, facts)

    def _put(self, columns: Mapping[str, Block], facts: Mapping[str, Any] | None = None) -> None:
        """Hold rows, which are known to be right; then write what need not stay in memory."""
        for name, block in columns.items():
            if name.startswith("streams/") and name.endswith("/time"):
                self._sample_times[name.split("/")[1]].append(np.asarray(block))
        if f"time/{storage.TICK}" in columns:
            self._ticks.append(np.asarray(columns[f"time/{storage.TICK}"]))
        steps = next((len(block) for name, block in columns.items() if name.startswith("data/")), 0)
        possible = self._possible_columns() if columns.keys() - self._columns.keys() else {}
        for name in columns.keys() - self._columns.keys():
            column = self._columns[name] = self._column(name, possible[name], None)
            column.add(_filled(column, self._rows))
        for name, column in self._columns.items():
            if name in columns:
                column.add(columns[name])
            elif steps and not name.startswith(("streams/", "index/", "data/")) and not self._is_native_mask(name):
                column.add(_filled(column, steps))
        self._rows += steps
        if self._journal:
            self._unjournaled.append((columns, facts or {}))
            while self._unjournaled:
                self._journal.append(*self._unjournaled[0])
                del self._unjournaled[0]
        if sum(column.held_bytes for column in self._columns.values()) > self.buffer_bytes:
            for column in self._columns.values():
                column.write_full_files()

    def _checked(self, column: str, name: str, values: Any, count: int) -> np.ndarray | Encoded:
        if not isinstance(values, Encoded):
            return np.array(self.schema.streams[name].check(name, values, batch=(count,)))
        if not isinstance(self._columns[column], FrameColumn) or len(values) != count:
            raise SchemaError(f"stream {name!r} does not take {len(values)} encoded rows here")
        return values

    def _encoded(self, column: str, block: np.ndarray | Encoded) -> Block:
        return list(block) if isinstance(block, Encoded) else self._columns[column].encode(block)

    def _is_native_mask(self, name: str) -> bool:
        return name.startswith("valid/") and name.removeprefix("valid/") in self._native

    def _align_native(self) -> None:
        """For each control step, the newest sample captured by then, and whether none is missing between the two."""
        for name, stream in self._native.items():
            index = self._columns[f"index/{name}"]
            if index.stop > self.steps:  # an earlier try to save
                continue
            ticks = np.concatenate(self._ticks)
            times = np.concatenate([np.empty(0, np.int64), *self._sample_times[name]])
            newest = np.searchsorted(times, ticks, side="right") - 1
            index.add(np.where(newest >= 0, newest + self._samples[name], -1))
            period_ns = 1e9 / stream.rate_hz
            age = ticks - times[newest] if len(times) else np.zeros(len(ticks))
            valid = (newest >= 0) & (age < 1.5 * period_ns)
            mask = self._columns.get(f"valid/{name}")
            if mask is None and not valid.all():
                mask = self._columns[f"valid/{name}"] = self._column(f"valid/{name}", _VALID, None)
            if mask is not None:
                mask.add(valid)

    def _set_end(self, name: str, place: slice, stop: int) -> None:
        array = storage.open_array(self._store, name, "r+")
        storage.with_length(array, place.stop)[place] = np.array([stop])
        storage.set_length(self.path, name, place.stop, durable=self.durable)


def _filled(column: Column, rows: int) -> np.ndarray:
    return np.full((rows, *column.stream.shape), storage.fill_value(column.name), column.stream.dtype)


def sync_tree(path: Path) -> None:
    """Wait until every file under ``path`` is on the medium."""
    for folder, _, files in os.walk(path):
        for name in files:
            with open(Path(folder) / name, "rb") as file:
                os.fsync(file.fileno())
        storage.sync_folder(Path(folder))


def _lock(path: Path) -> int:
    """Hold the folder for this process; the kernel lets go of it when the process ends, however it ends."""
    storage.read_attributes(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DatasetError(f"another process is writing to {path}; wait for it, or write another dataset") from None
    return descriptor


def _json(value: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{what} must be JSON values: {error}") from None
