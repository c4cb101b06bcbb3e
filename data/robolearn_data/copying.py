"""Copying episodes from one dataset to another: values, times, holes and infos stay what they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data import journal, shards, storage
from robolearn_data.creation import lay_out
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError, Folder
from robolearn_data.location import locate
from robolearn_data.schema import Schema, SchemaError
from robolearn_data.writer import DatasetWriter

Progress = Callable[[int, int], None]
"""Called with what is done and what is to do."""

_PIECE_BYTES = 32 * 2**20
CLOCK_KEYS = ("uuid", "wall_time_ns", "wall_offset_ns")
"""Entries of an episode's info that say which one it is and when it was; copies keep them."""


class EpisodeCopier:
    """Reads episodes of ``source`` in pieces of bounded size. Times and masks, 8 bytes a step, are read once."""

    def __init__(self, source: Dataset) -> None:
        self.source = source
        streams = source.schema.streams
        self._aligned = {name: stream for name, stream in streams.items() if not stream.is_native}
        self._ticks = source.times()
        self._captured = {n: t for n in self._aligned if (t := source.times(n)) is not None}
        self._received = {n: t for n in self._aligned if (t := source.received(n)) is not None}
        self._valid = {n: v for n in self._aligned if not (v := source.valid(n)).all()}

    def copy(self, episode: int, writer: DatasetWriter, info: Mapping[str, Any] | None = None) -> None:
        """Append one episode to ``writer``, whose schema has the same streams and may have other dtypes.

        Args:
            info: in place of the episode's own.

        Raises:
            SchemaError: a value that the new dtype cannot hold exactly.
        """
        for name in self.source.schema.streams.keys() - self._aligned.keys():
            self._copy_samples(name, episode, writer)
        for rows in self._pieces(self.source.rows(episode)):
            writer.extend(
                {name: self._values(name, rows, episode, writer) for name in self._aligned},
                capture_ns={name: times[rows] for name, times in self._captured.items()},
                received_ns={name: times[rows] for name, times in self._received.items()},
                time_ns=self._ticks[rows] if self._ticks is not None and self._ticks[rows.start] else None,
                valid={name: mask[rows] for name, mask in self._valid.items() if not mask[rows].all()},
            )
        writer.save_episode(self.source.episode_info(episode) if info is None else info)

    def _pieces(self, rows: slice) -> Iterator[slice]:
        """Cuts where a piece would be large, and where the time of the control steps begins or ends to be known."""
        row = sum(stream.size * np.dtype(stream.dtype).itemsize for stream in self._aligned.values())
        cuts = {*range(rows.start, rows.stop, max(_PIECE_BYTES // row, 1)), rows.stop}
        if self._ticks is not None:
            known = self._ticks[rows] != 0
            cuts.update((rows.start + 1 + np.flatnonzero(known[1:] != known[:-1])).tolist())
        edges = sorted(cuts)
        yield from map(slice, edges[:-1], edges[1:])

    def _values(self, name: str, rows: slice, episode: int, writer: DatasetWriter) -> np.ndarray | shards.Encoded:
        """As they are stored, where the copy stores them in the same way: JPEG is not decoded and encoded again."""
        if shards.same_encoding(self.source.array(name), writer.array(name)):
            stored = shards.stored_rows(self.source.array(name), rows)
            if stored is not None:
                return stored
        return self._convert(name, rows, episode, writer.schema)

    def _convert(self, name: str, rows: slice, episode: int, schema: Schema) -> np.ndarray:
        values = self.source.read(name, rows)
        dtype = np.dtype(schema.stream(name).dtype)
        if values.dtype == dtype:
            return values
        with np.errstate(invalid="ignore", over="ignore"):
            converted = values.astype(dtype)
            back = converted.astype(values.dtype)
        wrong = (back != values).reshape(len(values), -1).any(1)
        if wrong.any():
            at = rows.start + int(np.argmax(wrong)) - self.source.rows(episode).start
            raise SchemaError(
                f"stream {name!r} of {values.dtype} cannot become {dtype}: values would change, first in episode "
                f"{episode} at step {at}; choose a dtype that holds them"
            )
        return converted

    def _copy_samples(self, name: str, episode: int, writer: DatasetWriter) -> None:
        samples = self.source.samples(name, episode)
        stream = self.source.schema.stream(name)
        if writer.schema.stream(name).dtype != stream.dtype:
            raise SchemaError(f"stream {name!r} has a rate of its own; its dtype cannot be converted")
        array = self.source.array(name)
        piece = max(_PIECE_BYTES // (stream.size * np.dtype(stream.dtype).itemsize), 1)
        for start in range(0, len(samples.time), piece):
            part = slice(start, min(start + piece, len(samples.time)))
            rows = slice(samples.rows.start + part.start, samples.rows.start + part.stop)
            values = None
            if shards.same_encoding(array, writer.array(name)):
                values = shards.stored_rows(array, rows)
            if values is None:
                values = np.asarray(array[rows])
            writer.add_samples(name, values, samples.time[part], samples.received[part])


@contextmanager
def new_dataset(
    target: str | Path, schema: Schema, metadata: Mapping[str, Any], compression: Mapping[str, str]
) -> Iterator[DatasetWriter]:
    """A writer whose dataset appears at ``target`` when the body is through, and leaves nothing behind otherwise.

    Raises:
        DatasetError: ``target`` exists.
    """
    with locate(target).draft() as draft:
        lay_out(draft, schema, metadata, compression)
        with DatasetWriter(draft, durable=False, buffer_bytes=2 * _PIECE_BYTES) as writer:
            yield writer


def compression_of(dataset: Dataset) -> dict[str, str]:
    """Stream -> name of its compression; "zstd-5", which loses nothing, for codecs that have none."""
    names = {name: storage.compression_of(dataset.array(name)) for name in dataset.schema.streams}
    return {name: how or "zstd-5" for name, how in names.items()}


@contextmanager
def no_writer(path: Path) -> Iterator[None]:
    """Keeps writers away from the dataset at ``path``, as they keep each other away.

    Raises:
        DatasetError: not a dataset, a process is writing to it, or it holds an unfinished episode.
    """
    folder = Folder(path)
    storage.read_attributes(folder)
    lock = folder.lock()
    try:
        left = path / journal.NAME
        if journal.unfinished(path) or (left.exists() and any(True for _ in journal.read(left))):
            raise DatasetError(f"{path} holds an unfinished episode; first `robolearn data recover {path}`")
        yield
    finally:
        lock.release()
