"""Rows of one episode after the other out of LeRobot's parquet files, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robolearn_data.formats import lerobot_layout as layout
from robolearn_data.formats.lerobot_episodes import Episode
from robolearn_data.formats.transfer import ImportFormatError, one_line

Piece = dict[str, Any]
"""Column -> values (n, ...) of n rows; pictures are lists of the bytes of their files, texts lists of str."""


class RowReader:
    """Reads the rows that a file holds of an episode, which are those with its number in the column episode_index."""

    def __init__(self, info: layout.Info) -> None:
        self._info = info
        self._path: Path | None = None
        self._places: dict[int, tuple[int, int]] = {}
        """Episode -> its first row in the file at ``_path``, and the row after its last."""

    def episode(self, episode: Episode, columns: list[str], piece_rows: int = 2**16) -> Iterator[Piece]:
        """The pieces of an episode, of at most ``piece_rows`` rows.

        Raises:
            ImportFormatError: damaged, a column or rows are missing, or values are not as info.json says.
        """
        path = layout.find(self._info.root, episode.data_path)
        try:
            with pq.ParquetFile(path) as file:
                yield from self._pieces(path, file, episode, columns, piece_rows)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            if isinstance(error, ImportFormatError):
                raise
            raise ImportFormatError(f"{path} cannot be read: {one_line(error)}") from None

    def _pieces(
        self, path: Path, file: pq.ParquetFile, episode: Episode, columns: list[str], piece_rows: int
    ) -> Iterator[Piece]:
        missing = {*columns, "episode_index"} - set(file.schema_arrow.names)
        if missing:
            raise ImportFormatError(f"{path} has no column {', '.join(sorted(missing))}, which info.json declares")
        if path != self._path:
            self._places = _places(path, file)
            self._path = path
        start, stop = self._places.get(episode.number, (0, 0))
        if stop - start != episode.length:
            raise ImportFormatError(f"{path} holds {stop - start} rows of the episode, meta says {episode.length}")
        at = found = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if at < stop and at + rows > start:
                before = at
                for batch in file.iter_batches(piece_rows, row_groups=[group], columns=columns):
                    first, last = max(start - before, 0), min(stop - before, batch.num_rows)
                    before += batch.num_rows
                    if last > first:
                        found += last - first
                        part = batch.slice(first, last - first)
                        yield {key: self._values(path, key, part.column(key)) for key in columns}
            at += rows
        if found != episode.length:
            raise ImportFormatError(f"{path} gives {found} rows of the episode, its own header says {episode.length}")

    def _values(self, path: Path, key: str, column: pa.Array) -> Any:
        feature = self._info.features.get(key) or layout.Feature(key, layout.INDICES[key], (1,))
        if feature.dtype == "image":
            files = column.field("bytes") if pa.types.is_struct(column.type) else column
            return files.to_pylist()
        if feature.dtype == "string":
            return [str(text) for text in column.to_pylist()]
        count = len(column)
        while pa.types.is_nested(column.type):
            if column.null_count or len(set(column.value_lengths().to_pylist())) > 1:
                raise ImportFormatError(f"{path}: rows of {key} have unequal lengths or are missing")
            column = column.flatten()
        if column.null_count:
            raise ImportFormatError(f"{path}: values of {key} are missing")
        values = column.to_numpy(zero_copy_only=False)
        if values.size != count * np.prod(feature.shape):
            raise ImportFormatError(
                f"{path}: a row of {key} has {values.size // max(count, 1)} values, info.json says {feature.shape}"
            )
        if not np.can_cast(values.dtype, feature.dtype, "same_kind"):
            raise ImportFormatError(f"{path}: {key} holds {values.dtype}, info.json says {feature.dtype}")
        return values.astype(feature.dtype, copy=False).reshape(
            (count, *feature.shape) if key not in layout.INDICES else count
        )


def _places(path: Path, file: pq.ParquetFile) -> dict[int, tuple[int, int]]:
    numbers = file.read(columns=["episode_index"]).column(0).to_numpy()
    if numbers.dtype.kind not in "iu":
        raise ImportFormatError(f"{path}: episode_index holds no whole numbers")
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    places: dict[int, tuple[int, int]] = {}
    for start, stop in pairwise(edges):
        if stop > start and int(numbers[start]) in places:
            raise ImportFormatError(f"{path}: the rows of episode {numbers[start]} are not together")
        if stop > start:
            places[int(numbers[start])] = (start, stop)
    return places
