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

from robolearn_data import storage
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.storage import DatasetError

_TIME = Stream(shape=(), dtype="int64", kind="info")
_VALID = Stream(shape=(), dtype="bool", kind="info")


class DatasetWriter:
    """Collects one episode at a time and publishes it with ``save_episode``.

    Until then its rows are in memory, and beyond ``buffer_bytes`` in files past the published end, where no reader
    looks and the next episode overwrites them: ``add`` touches no disk while an episode is smaller than that. After
    an OSError (a full disk) the episode is still held: make room and save again, or discard it. One writer at a time;
    use it as a context manager, which discards an unsaved episode at the end.
    """

    def __init__(self, path: Path, *, durable: bool = True, buffer_bytes: int = 512 * 2**20) -> None:
        """Use ``create`` or ``append``."""
        self._lock = _lock(path)
        try:
            published = Dataset.open(path)
        except BaseException:
            os.close(self._lock)
            raise
        self.path = path
        self.schema = published.schema
        self.episodes = published.episodes
        self.steps = published.steps
        self.durable = durable
        self.buffer_bytes = buffer_bytes
        self._store = storage.DurableStore(path) if durable else LocalStore(path)
        self._ends = storage.open_array(self._store, storage.ENDS, "r+")
        self._infos = storage.open_array(self._store, storage.INFO, "r+")
        names = {f"data/{name}": stream for name, stream in self.schema.streams.items()}
        names |= {f"time/{name}": _TIME for name in (storage.TICK, *self.schema.streams)}
        names |= {f"valid/{name}": _VALID for name in self.schema.streams}
        self._columns = {
            name: _Column(name, stream, storage.open_array(self._store, name, "r+"), self.steps)
            for name, stream in names.items()
            if (path / name / "zarr.json").exists()
        }
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
            durable: wait for the medium at each write. Without it a power cut may cost more than the last episode.

        Raises:
            DatasetError: ``path`` exists.
            SchemaError: no streams, a reserved name, a compression that does not fit, or metadata that is not JSON.
        """
        path = Path(path)
        if path.exists():
            raise DatasetError(f"{path} exists; choose another path, or append to it if it is a dataset")
        if not schema.streams or storage.TICK in schema.streams:
            raise SchemaError(f"a dataset needs at least one stream, and none named {storage.TICK!r}")
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
                storage.create_array(store, f"data/{name}", stream, compression=(compression or {}).get(name))
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
        """Go on after the last published episode; what a killed writer left behind it is overwritten.

        Raises:
            DatasetError: not a dataset, damaged, or another process is writing to it.
        """
        return cls(Path(path), durable=durable, buffer_bytes=buffer_bytes)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Discard what was not saved and let other writers in."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
            self.discard_episode()

    @property
    def pending(self) -> int:
        """Rows of the episode in flight."""
        return self._rows

    def add(
        self,
        row: Mapping[str, Any],
        *,
        capture_ns: Mapping[str, int] | None = None,
        time_ns: int | None = None,
        holes: Collection[str] = (),
    ) -> None:
        """Take one control step: a sample of every stream.

        Args:
            capture_ns: stream -> CLOCK_MONOTONIC ns at which its sample was captured.
            time_ns: CLOCK_MONOTONIC ns of this control step; each later than the one before.
            holes: streams without a sample at this step (a dropped frame). They are left out of ``row``; the dataset
                repeats the sample before (zeros at the start) and marks the row invalid for that stream.

        Raises:
            SchemaError: a stream unknown, missing, of wrong shape or dtype, or with NaN; a time that does not increase.
                The row is not taken.
            OSError: rows beyond ``buffer_bytes`` cannot be written. The row is taken and held.
        """
        self._check_names(row, holes)
        blocks = {name: np.array(self.schema.streams[name].check(name, value))[None] for name, value in row.items()}
        for name in holes:
            stream = self.schema.streams[name]
            blocks[name] = self._last.get(name, np.zeros((1, *stream.shape), stream.dtype))
        times = {} if time_ns is None else {storage.TICK: [time_ns]}
        times |= {name: [t] for name, t in (capture_ns or {}).items()}
        self._take(blocks, times, 1, holes)

    def extend(
        self,
        rows: Mapping[str, Any],
        *,
        capture_ns: Mapping[str, Any] | None = None,
        time_ns: Any | None = None,
    ) -> None:
        """Take T control steps at once: every stream as (T, ...), times as (T,). Otherwise as ``add``."""
        self._check_names(rows, ())
        steps = len(next(iter(rows.values())))
        blocks = {name: np.array(self.schema.streams[name].check(name, v, batch=(steps,))) for name, v in rows.items()}
        times = {} if time_ns is None else {storage.TICK: time_ns}
        self._take(blocks, {**times, **(capture_ns or {})}, steps, ())

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
        text = _json({"uuid": str(uuid.uuid4()), **self._clock, **(info or {})}, "episode info")
        stop = self.steps + self._rows
        for column in self._columns.values():
            column.write(self._store, stop)
        new = slice(self.episodes, self.episodes + 1)
        storage.with_length(self._infos, new.stop)[new] = np.array([text], dtype=object)
        storage.with_length(self._ends, new.stop)[new] = np.array([stop])
        for name in self._columns:
            storage.set_length(self.path, name, stop, durable=self.durable)
        storage.set_length(self.path, storage.INFO, new.stop, durable=self.durable)
        storage.set_length(self.path, storage.ENDS, new.stop, durable=self.durable)  # from here on it exists
        self.steps = stop
        self.episodes += 1
        self._begin()
        return self.episodes - 1

    def discard_episode(self) -> None:
        """Forget the rows taken since the last ``save_episode``."""
        self._begin()

    def _begin(self) -> None:
        self._rows = 0
        self._held_bytes = 0
        self._clock: dict[str, int] = {}
        self._last: dict[str, np.ndarray] = {}
        self._last_tick = 0
        for column in self._columns.values():
            column.restart(self.steps)

    def _check_open(self) -> None:
        if self._lock < 0:
            raise DatasetError(f"the writer of {self.path} is closed; open it again with DatasetWriter.append")

    def _check_names(self, row: Mapping[str, Any], holes: Collection[str]) -> None:
        self._check_open()
        for name in (*row, *holes):
            self.schema.stream(name)
        missing = [name for name in self.schema.streams if (name in row) == (name in holes)]
        if missing:
            raise SchemaError(f"row needs each stream once, as a sample or a hole: {', '.join(missing)}")

    def _take(
        self, blocks: Mapping[str, np.ndarray], times: Mapping[str, Any], steps: int, holes: Collection[str]
    ) -> None:
        columns = {f"data/{name}": block for name, block in blocks.items()}
        for name, value in times.items():
            if name != storage.TICK:
                self.schema.stream(name)
            columns[f"time/{name}"] = _TIME.check(f"time/{name}", value, batch=(steps,))
        columns |= {f"valid/{name}": np.zeros(steps, bool) for name in holes}
        ticks = columns.get(f"time/{storage.TICK}")
        if ticks is not None and np.any(np.diff(ticks, prepend=self._last_tick) <= 0):
            raise SchemaError("time_ns must increase from one control step to the next; use time.monotonic_ns()")

        for name in columns.keys() - self._columns.keys():
            stream = _TIME if name.startswith("time/") else _VALID
            self._columns[name] = _Column(name, stream, None, self.steps)
            self._columns[name].add(self._columns[name].filled(self._rows))
        for name, column in self._columns.items():
            column.add(columns[name] if name in columns else column.filled(steps))
        if ticks is not None and steps:
            if not self._clock:
                offset = time.time_ns() - time.monotonic_ns()
                self._clock = {"wall_time_ns": int(ticks[0]) + offset, "wall_offset_ns": offset}
            self._last_tick = int(ticks[-1])
        self._last = {name: block[-1:] for name, block in blocks.items()} if steps else self._last
        self._rows += steps
        self._held_bytes += sum(block.nbytes for block in blocks.values())
        if self._held_bytes > self.buffer_bytes:
            for column in self._columns.values():
                column.write_full_files(self._store)
            self._held_bytes = sum(column.held_bytes for column in self._columns.values())


class _Column:
    """Rows of one array: ``[start, at)`` of this episode are in its files, those after it are held in memory."""

    def __init__(self, name: str, stream: Stream, array: zarr.Array | None, start: int) -> None:
        self.name = name
        self.stream = stream
        self.array = array
        """None until the first write: an array of times or holes is made when there is something to put in it."""
        self.restart(start)

    def restart(self, start: int) -> None:
        self.start = start
        self.at = start
        self.held: list[np.ndarray] = []

    @property
    def held_bytes(self) -> int:
        return sum(block.nbytes for block in self.held)

    @property
    def fill(self) -> int | bool:
        return self.name.startswith("valid/")

    def filled(self, rows: int) -> np.ndarray:
        return np.full((rows, *self.stream.shape), self.fill, self.stream.dtype)

    def add(self, block: np.ndarray) -> None:
        self.held.append(block)

    def write_full_files(self, store: LocalStore) -> None:
        """Write what fills whole files, so that none is written twice."""
        made = self.array
        unit = storage.rows_per_file(self.stream) if made is None else (made.shards or made.chunks)[0]
        self.write(store, (self.at + sum(map(len, self.held))) // unit * unit)

    def write(self, store: LocalStore, stop: int) -> None:
        """Write the held rows before row ``stop``. They stay held when that fails."""
        if stop <= self.at:
            return
        if self.array is None:
            self.array = storage.create_array(store, self.name, self.stream, rows=self.start, fill=self.fill)
        rows = np.concatenate(self.held)
        with zarr.config.set(storage.BULK):
            storage.with_length(self.array, stop)[self.at : stop] = rows[: stop - self.at]
        self.held = [rows[stop - self.at :]] if stop - self.at < len(rows) else []
        self.at = stop


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
