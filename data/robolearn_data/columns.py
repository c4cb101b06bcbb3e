"""One array of a dataset while an episode is written: rows that are in its files, and rows still in memory.

Rows ``[start, at)`` of the episode are in files, those from ``at`` on are held. ``start`` is where the published rows
end.
"""

from __future__ import annotations

import numpy as np
import zarr
from zarr.abc.store import Store

from robolearn_data import shards, storage
from robolearn_data.folder import DatasetError
from robolearn_data.journal import Block
from robolearn_data.location import Location
from robolearn_data.schema import Stream


class RowColumn:
    """An array of rows that are encoded together, many small ones or a group of pictures. zarr writes them."""

    def __init__(self, store: Store, name: str, stream: Stream, array: zarr.Array | None, start: int) -> None:
        self.name = name
        self.stream = stream
        self._store = store
        self._array = array
        """None until the first write: an array of times or holes is made when there is something to put in it."""
        self.restart(start)

    def restart(self, start: int) -> None:
        """Forget the episode. The next begins at row ``start``."""
        self.start = start
        self.at = start
        self._hold([])

    def _hold(self, blocks: list[np.ndarray]) -> None:
        self._held = blocks
        self.stop = self.at + sum(map(len, blocks))
        """The row after the last of the episode."""
        self.held_bytes = sum(block.nbytes for block in blocks)

    def encode(self, rows: np.ndarray) -> Block:
        return rows

    def add(self, block: Block) -> None:
        assert isinstance(block, np.ndarray)
        self._held.append(block)
        self.stop += len(block)
        self.held_bytes += block.nbytes

    def write_full_files(self) -> None:
        """Write what fills whole files, so that none is written twice."""
        made = self._array
        unit = storage.rows_per_file(self.stream) if made is None else (made.shards or made.chunks)[0]
        self.write(self.stop // unit * unit)

    def write(self, stop: int) -> None:
        """Write the held rows before row ``stop``. They stay held when that fails."""
        if stop <= self.at:
            return
        if self._array is None:
            fill = storage.fill_value(self.name)
            self._array = storage.create_array(self._store, self.name, self.stream, rows=self.start, fill=fill)
        rows = np.concatenate(self._held)
        with zarr.config.set(storage.BULK):
            storage.with_length(self._array, stop)[self.at : stop] = rows[: stop - self.at]
        rest = rows[stop - self.at :]
        self.at = stop
        self._hold([rest] if len(rest) else [])


class FrameColumn:
    """An array of images and their like, each encoded for itself once, in shards that are put together here."""

    def __init__(
        self, location: Location, name: str, stream: Stream, array: zarr.Array, start: int, *, durable: bool
    ) -> None:
        self.name = name
        self.stream = stream
        self._location = location
        self._array = array
        self._unit: int = array.shards[0]  # pyright: ignore[reportOptionalSubscript]
        self._encode = shards.encoder(array)
        self._sealed = shards.is_sealed(shards.inner_codecs(array))
        self._durable = durable
        self.restart(start)

    def restart(self, start: int) -> None:
        self.start = start
        self.at = start
        self._held: list[bytes] = []
        self.held_bytes = 0

    @property
    def stop(self) -> int:
        return self.at + len(self._held)

    def encode(self, rows: np.ndarray) -> Block:
        return [self._encode(row) for row in rows]

    def add(self, block: Block) -> None:
        assert isinstance(block, list)
        self._held += block
        self.held_bytes += sum(map(len, block))

    def write_full_files(self) -> None:
        self.write(self.stop // self._unit * self._unit)

    def write(self, stop: int) -> None:
        """As ``RowColumn.write``.

        Raises:
            OSError: a file cannot be written.
            DatasetError: the last, partly filled file is damaged.
        """
        while self.at < stop:
            number, used = divmod(self.at, self._unit)
            file = f"{self.name}/{self._array.metadata.encode_chunk_key((number, *[0] * len(self.stream.shape)))}"
            before = shards.unpack(self._location, file, self._unit)[:used] if used else []
            if None in before:
                raise DatasetError(
                    f"{self._location}/{file} has lost frames; `robolearn data validate` lists every fault"
                )
            count = min(stop - self.at, self._unit - used)
            kept = [frame for frame in before if frame is not None]
            new = map(shards.seal, self._held[:count]) if self._sealed else self._held[:count]
            shard = shards.pack([*kept, *new], self._unit)
            self._location.put(file, shard, durable=self._durable)
            self.held_bytes -= sum(map(len, self._held[:count]))
            del self._held[:count]
            self.at += count


Column = RowColumn | FrameColumn
