"""Reading a dataset.

N = rows (control steps) of all episodes together, E = episodes, M = samples of a native stream: one with its own rate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from robolearn_data import storage
from robolearn_data.folder import DatasetError
from robolearn_data.frames import Frames
from robolearn_data.location import Location, locate
from robolearn_data.resample import blend, places
from robolearn_data.schema import Schema, SchemaError

_PIECE = 256


@dataclass(frozen=True, eq=False)
class Samples:
    """What one stream with a rate of its own recorded in one episode."""

    time: np.ndarray
    """(n,) int64 ns of CLOCK_MONOTONIC, when each was captured; increasing."""
    received: np.ndarray
    """(n,) int64 ns, when each reached the recorder; 0 = not known."""
    rows: slice
    """Where their values are in ``Dataset.array``."""


class Dataset:
    """The episodes that were published when it was opened; a writer may go on appending meanwhile.

    Opening reads the schema and the episode ends; everything else is read when it is asked for. Instances can be
    pickled, so that loader processes can share one.
    """

    def __init__(self, location: Location, schema: Schema, metadata: dict[str, Any], episode_ends: np.ndarray) -> None:
        self.location = location
        self.schema = schema
        self.metadata = metadata
        self.episode_ends = episode_ends
        """(E,) int64, cumulative: episode i is rows [episode_ends[i - 1], episode_ends[i])."""
        self._arrays: dict[str, zarr.Array] = {}
        self._others: dict[str, zarr.Array] = {}
        self._frames: dict[str, Frames] = {}
        self._sample_ends: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path | Location) -> Dataset:
        """Open the dataset at ``path``, a folder or URL, for reading.

        Raises:
            DatasetError: missing, of another kind or format version, or damaged.
        """
        location = locate(path)
        attributes = storage.read_attributes(location)
        try:
            schema = Schema.from_json(attributes["schema"])
            metadata = dict(attributes.get("metadata") or {})
            ends = np.asarray(storage.open_array(location.store(), storage.ENDS)[:])
        except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
            raise _damaged(location, str(error)) from error
        if ends.dtype != np.int64 or ends.ndim != 1 or np.any(np.diff(ends, prepend=0) <= 0):
            raise _damaged(location, "meta/episode_ends does not increase")
        dataset = cls(location, schema, metadata, ends)
        for name in schema.streams:
            dataset.array(name)
        return dataset

    @property
    def path(self) -> Path:
        """Its folder. Raises DatasetError for a dataset in an object store."""
        return self.location.path

    @property
    def steps(self) -> int:
        """N, the rows of all episodes together."""
        return int(self.episode_ends[-1]) if len(self.episode_ends) else 0

    @property
    def episodes(self) -> int:
        return len(self.episode_ends)

    def array(self, name: str) -> zarr.Array:
        """The zarr array (>= N, ...) of a stream; (>= M, ...) where it has a rate of its own.

        Rows from ``steps`` on (samples from the last of ``samples`` on) belong to an episode not yet published.

        Raises:
            SchemaError: no such stream.
            DatasetError: the array does not fit the schema.
        """
        if name not in self._arrays:
            stream = self.schema.stream(name)
            where = storage.values_of(name, stream)
            rows = self.samples_before(name, self.episodes) if stream.is_native else self.steps
            array = self._open(where)
            if array is None:
                raise _damaged(self.location, f"{where} is missing")
            if array.shape[1:] != stream.shape or array.dtype != np.dtype(stream.dtype):
                raise _damaged(self.location, f"{where} is {array.dtype}{array.shape[1:]}, not as its schema says")
            if array.shape[0] < rows:
                raise _damaged(self.location, f"{where} has {array.shape[0]} rows of {rows}")
            self._arrays[name] = array
        return self._arrays[name]

    def samples_before(self, name: str, episode: int) -> int:
        """Samples of a native stream in the episodes before number ``episode``, which may be one past the last."""
        if name not in self._sample_ends:
            ends = self._open(f"streams/{name}/ends")
            values = np.empty(0, np.int64) if ends is None else np.asarray(ends[: self.episodes])
            if len(values) < self.episodes or np.any(np.diff(values, prepend=0) < 0):
                raise _damaged(self.location, f"streams/{name}/ends does not name the end of every episode")
            self._sample_ends[name] = values
        return int(self._sample_ends[name][episode - 1]) if episode else 0

    def samples(self, name: str, episode: int) -> Samples:
        """The samples of a stream with a rate of its own in one episode, as they came.

        Raises:
            SchemaError: no such stream or episode, or a stream that is sampled with the control steps.
        """
        if not self.schema.stream(name).is_native:
            raise SchemaError(f"stream {name!r} has no rate of its own; `read` gives its rows")
        self.rows(episode)
        episode %= self.episodes
        rows = slice(self.samples_before(name, episode), self.samples_before(name, episode + 1))
        time, received = (self._sample_column(name, kind) for kind in ("time", "received"))
        return Samples(np.asarray(time[rows]), np.asarray(received[rows]), rows)

    def sample_times(self, name: str) -> np.ndarray:
        """(M,) int64 ns of CLOCK_MONOTONIC, when each sample of a native stream was captured, in all episodes.

        Raises:
            DatasetError: they are missing.
        """
        return np.asarray(self._sample_column(name, "time")[: self.samples_before(name, self.episodes)])

    def _sample_column(self, name: str, kind: str) -> zarr.Array:
        column = self._open(f"streams/{name}/{kind}")
        if column is None or column.shape[0] < self.samples_before(name, self.episodes):
            raise _damaged(self.location, f"streams/{name}/{kind} is missing or too short")
        return column

    def at(self, name: str, episode: int, instants: np.ndarray) -> np.ndarray:
        """Values (m, ...) of a native stream at ``instants`` (m,) ns in one episode, interpolated as its schema says.

        Instants before the first or after the last sample have that sample's value.
        """
        stream, samples = self.schema.stream(name), self.samples(name, episode)
        before, share = places(samples.time, np.asarray(instants, np.int64), stream.interpolation)
        between = share > 0
        first = self.take(name, samples.rows.start + before)
        if between.any():
            second = self.take(name, samples.rows.start + before[between] + 1)
            first[between] = blend(first[between], second, share[between], stream.interpolation)
        return first

    def blocks(self, name: str, rows: slice | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Row number and values (n, ...) of consecutive pieces of a stream, at most 32 MB or a chunk each.

        A stream with a rate of its own is given at the control steps, interpolated as its schema says.
        """
        array = self.array(name)
        start, stop, _ = (rows or slice(None)).indices(self.steps)
        if self.schema.stream(name).is_native:
            for first in range(start, stop, _PIECE):
                yield first, self._aligned(name, first, min(first + _PIECE, stop))
            return
        file = (array.shards or array.chunks)[0] * (1 if array.shards else 64)
        chunk = array.chunks[0]
        piece = max(storage.BLOCK_BYTES * array.shape[0] // max(array.nbytes, 1) // chunk, 1) * chunk
        while start < stop:
            end = min((start // file + 1) * file, (start // piece + 1) * piece, stop)
            yield start, self._read_rows(name, array, np.arange(start, end))
            start = end

    def read(self, name: str, rows: slice | None = None, dtype: str | None = None) -> np.ndarray:
        """A stream's rows (N, ...) in memory, or those of ``rows``.

        ``dtype`` converts piece by piece (images stored as float32 0..255 read as "uint8" never exist twice).

        Raises:
            SchemaError: no such stream, or ``dtype`` cannot hold the values exactly.
        """
        start, stop, _ = (rows or slice(None)).indices(self.steps)
        stream = self.schema.stream(name)
        out = np.empty((max(stop - start, 0), *stream.shape), dtype or stream.dtype)
        for row, block in self.blocks(name, slice(start, stop)):
            piece = out[row - start : row - start + len(block)]
            np.copyto(piece, block, casting="unsafe")
            if dtype is not None and not np.array_equal(piece, block):
                raise SchemaError(f"stream {name!r} of {stream.dtype} cannot be read as {dtype}: values would change")
        return out

    def rows(self, episode: int) -> slice:
        """The rows of an episode; negative numbers count from the last one."""
        if not -self.episodes <= episode < self.episodes:
            raise SchemaError(f"no episode {episode}; the dataset has {self.episodes}")
        episode %= self.episodes
        start = int(self.episode_ends[episode - 1]) if episode else 0
        return slice(start, int(self.episode_ends[episode]))

    def episode(self, episode: int) -> dict[str, np.ndarray]:
        """Every stream (T, ...) of one episode."""
        rows = self.rows(episode)
        return {name: self.read(name, rows) for name in self.schema.streams}

    def episode_info(self, episode: int) -> dict[str, Any]:
        """What was noted about one episode: "uuid", and task, success, operator, seed, ... where given.

        Recorded live it has "wall_time_ns" (of the first row) and "wall_offset_ns" (wall time - CLOCK_MONOTONIC).
        """
        self.rows(episode)
        array = self._open(storage.INFO)
        try:
            return dict(json.loads(str(array[episode % self.episodes])))  # pyright: ignore[reportOptionalSubscript]
        except (TypeError, ValueError, LookupError) as error:
            raise _damaged(self.location, f"meta/episode_info of episode {episode} cannot be read") from error

    def times(self, name: str = storage.TICK) -> np.ndarray | None:
        """(N,) int64 ns of CLOCK_MONOTONIC: of the control steps, or when stream ``name`` was captured; 0 = not known.

        None where the dataset has no such times. Those of a stream with a rate of its own are in ``samples``.
        """
        return self._column(f"time/{name}")

    def received(self, name: str) -> np.ndarray | None:
        """(N,) int64 ns, when the samples of stream ``name`` reached the recorder; otherwise as ``times``."""
        return self._column(f"received/{name}")

    def valid(self, name: str) -> np.ndarray:
        """(N,) bool: False where stream ``name`` dropped a frame and the row repeats the one before.

        For a stream with a rate of its own: False where its newest sample was 1.5 of its periods old or more.
        """
        self.schema.stream(name)
        column = self._column(f"valid/{name}")
        return np.ones(self.steps, bool) if column is None else column

    def fingerprint(self) -> str:
        """Names the training data (hex): schema, episode ends, values of all streams but images and their like."""
        digest = hashlib.sha256(json.dumps(self.schema.to_json(), sort_keys=True).encode())
        digest.update(self.episode_ends.tobytes())
        for name, stream in sorted(self.schema.streams.items()):
            if not storage.is_framed(stream):
                for _, block in self.blocks(name):
                    digest.update(np.ascontiguousarray(block).tobytes())
        return digest.hexdigest()[:16]

    def _aligned(self, name: str, start: int, stop: int) -> np.ndarray:
        stream = self.schema.stream(name)
        if stream.interpolation == "previous":
            index = self._open(f"index/{name}")
            if index is None or index.shape[0] < stop:
                raise _damaged(self.location, f"index/{name} is missing or too short")
            return self.take(name, np.asarray(index[start:stop]))
        ticks = self._open(f"time/{storage.TICK}")
        if ticks is None:
            raise _damaged(self.location, "time/tick is missing")
        instants = np.asarray(ticks[start:stop])
        episodes = np.searchsorted(self.episode_ends, np.arange(start, stop), side="right")
        out = np.zeros((stop - start, *stream.shape), stream.dtype)
        for episode in np.unique(episodes):
            if self.samples_before(name, episode + 1) > self.samples_before(name, episode):
                out[episodes == episode] = self.at(name, int(episode), instants[episodes == episode])
        return out

    def take(self, name: str, rows: Any) -> np.ndarray:
        """Rows of the array of a stream by number, of any shape (...,) and in any order: values (..., *shape).

        Rows of a stream with a rate of its own are its samples. Row -1 stands for no sample and is all zeros. Pictures
        are read one by one, each once, whatever the size of the file around them. Threads may call it side by side.

        Raises:
            SchemaError: no such stream.
            IndexError: a row that the array does not have.
            DatasetError: a file is missing or damaged.
        """
        array = self.array(name)
        wanted, inverse = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        inverse = inverse.reshape(np.shape(rows))
        absent = int(np.searchsorted(wanted, 0))
        if (absent and wanted[0] < -1) or (len(wanted) and wanted[-1] >= array.shape[0]):
            raise IndexError(f"rows of {name!r} must be from -1 to {array.shape[0] - 1}")
        found = self._read_rows(name, array, wanted[absent:])
        if absent:
            found = np.concatenate([np.zeros((1, *array.shape[1:]), array.dtype), found])
        in_order = len(wanted) == inverse.size and np.array_equal(inverse.reshape(-1), np.arange(len(wanted)))
        return found.reshape(*inverse.shape, *array.shape[1:]) if in_order else found[inverse]

    def _read_rows(self, name: str, array: zarr.Array, rows: np.ndarray) -> np.ndarray:
        """Values (m, ...) of rows (m,), which are ascending and unlike."""
        if not len(rows):
            return np.empty((0, *array.shape[1:]), array.dtype)
        if Frames.readable(array):
            if name not in self._frames:
                self._frames[name] = Frames(array)
            return self._frames[name].read(rows)
        with zarr.config.set(storage.BULK):
            if rows[-1] - rows[0] < 2 * len(rows):
                return np.asarray(array[int(rows[0]) : int(rows[-1]) + 1])[rows - rows[0]]
            return np.asarray(array.get_orthogonal_selection((rows,)))

    def _column(self, name: str) -> np.ndarray | None:
        array = self._open(name)
        if array is None:
            return None
        if array.shape[0] < self.steps:
            raise _damaged(self.location, f"{name} has {array.shape[0]} rows of {self.steps}")
        return np.asarray(array[: self.steps])

    def _open(self, name: str) -> zarr.Array | None:
        if name in self._others:
            return self._others[name]
        if not self.location.exists(f"{name}/zarr.json"):
            return None
        try:
            found = self._others[name] = storage.open_array(self.location.store(), name)
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.location, f"{name}: {error}") from error


def _damaged(location: Location, fault: str) -> DatasetError:
    line = " ".join(fault.split())
    return DatasetError(
        f"dataset {location} is damaged: {line}; `robolearn data validate {location}` lists every fault"
    )
