"""Reading single rows of a sharded array in little CPU time.

zarr needs 1.5 to 2 CPU-ms of its own for a random frame: it enters an event loop, reads the index of the shard again
and hands every step to a thread. Here the index is read once, and a row is one ``pread`` and one decode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.codecs.sharding import ShardingCodecIndexLocation
from zarr.core.metadata import ArrayV3Metadata

from robolearn_data import shards
from robolearn_data.codecs.chunk import ChunkCodec, CodecError
from robolearn_data.folder import DatasetError, ReplacedError
from robolearn_data.location import location_of

_ABSENT = 2**64 - 1
"""Offset and length that a shard's index gives a chunk that was never written."""

_TRIES = 20
"""A writer may replace a shard between the reading of its index and of a row, once for each episode."""

_Decode = Callable[[bytes, np.ndarray, int, int], None]
"""As ``ChunkCodec.decode_into``."""


class _Shard(NamedTuple):
    version: Any
    """Of the file that the ranges belong to; a writer replaces shards as it appends."""
    ranges: np.ndarray
    """(chunks, 2) offset and length of each chunk in the file."""


class Frames:
    """Rows of one stream by number. Instances can be pickled, and shared by threads."""

    def __init__(self, array: zarr.Array) -> None:
        """``array``: a sharded array of a dataset as ``storage.create_array`` makes it; see ``readable``.

        Raises:
            DatasetError: an array of another kind.
        """
        codecs = _inner_codecs(array)
        place = location_of(array)
        if codecs is None or place is None or array.shards is None:
            raise DatasetError(f"{array.store_path} is not an array of frames in shards; read it with zarr")
        self.location, self.name = place
        self.shape = array.shape[1:]
        self.dtype = array.dtype
        self.rows = array.shape[0]
        self._fill = array.fill_value
        self._group = array.chunks[0]
        self._chunks = array.shards[0] // array.chunks[0]
        self._sealed = shards.is_sealed(codecs)
        self._decode = _decoder(codecs)
        self._key_encoding = array.metadata.chunk_key_encoding  # pyright: ignore[reportAttributeAccessIssue]
        self._shards: dict[int, _Shard] = {}

    @staticmethod
    def readable(array: zarr.Array) -> bool:
        """Whether ``array`` can be read in this way."""
        return location_of(array) is not None and _inner_codecs(array) is not None

    def read(self, rows: Any) -> np.ndarray:
        """Rows of any shape (...,), repeated or not, as an array (..., H, W, C). Each is decoded once.

        A row that was not written yet is filled as zarr fills it.

        Raises:
            IndexError: a row that the array does not have.
            DatasetError: a file is missing, cut off or damaged.
        """
        rows = np.asarray(rows, np.int64)
        wanted = rows.reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.rows):
            raise IndexError(f"rows must be in [0, {self.rows})")
        out = np.full((wanted.size, *self.shape), self._fill, self.dtype)
        order = np.argsort(wanted, kind="stable")
        chunks = wanted[order] // self._group
        for places in np.split(order, np.flatnonzero(np.diff(chunks)) + 1):
            if len(places):
                self._read_chunk(wanted[places], places, out)
        return out.reshape(*rows.shape, *self.shape)

    def _read_chunk(self, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Put ``rows`` (ascending) of one chunk at ``places`` of ``out``."""
        chunk, first = divmod(int(rows[0]), self._group)
        data = self._bytes(chunk)
        if data is None:
            return
        same = rows[0] == rows[-1]
        block = (
            out[places[0] : places[0] + 1]
            if same
            else np.full_like(out, self._fill, shape=(rows[-1] - rows[0] + 1, *self.shape))
        )
        try:
            self._decode(shards.unseal(data) if self._sealed else data, block, first, self._group)
        except CodecError as error:
            raise self._damaged(chunk // self._chunks, f"row {rows[0]} cannot be decoded: {error}") from error
        if len(places) > 1:
            out[places] = block[rows - rows[0]]

    def _bytes(self, chunk: int) -> bytes | None:
        """What is stored for a chunk, None when it was never written."""
        number, place = divmod(chunk, self._chunks)
        for _ in range(_TRIES):
            shard = self._shards.get(number)
            try:
                if shard is None:
                    shard = self._shards[number] = self._read_index(number)
                offset, length = map(int, shard.ranges[place])
                if offset == length == _ABSENT:
                    self.location.read_range(self._file(number), 0, 1, shard.version)  # not replaced since?
                    return None
                data, _ = self.location.read_range(self._file(number), offset, length, shard.version)
            except ReplacedError:
                self._shards.pop(number, None)
                continue
            except FileNotFoundError:
                raise self._damaged(number, "the file is missing") from None
            if len(data) != length:
                raise self._damaged(number, f"row {chunk * self._group} lies beyond the end of the file")
            return data
        raise self._damaged(number, "the file is being replaced all the time")

    def _read_index(self, number: int) -> _Shard:
        import google_crc32c

        length = 16 * self._chunks
        data, version = self.location.read_range(self._file(number), -length - 4, length + 4)
        if len(data) != length + 4 or google_crc32c.value(data[:length]) != int.from_bytes(data[length:], "little"):
            raise self._damaged(number, "the file is cut off or damaged: its index does not have its checksum")
        return _Shard(version, np.frombuffer(data, "<u8", length // 8).reshape(-1, 2))

    def _file(self, number: int) -> str:
        return f"{self.name}/{self._key_encoding.encode_chunk_key((number, *[0] * len(self.shape)))}"

    def _damaged(self, number: int, fault: str) -> DatasetError:
        return DatasetError(
            f"{self.location}/{self._file(number)}: {fault}; `robolearn data validate` lists every fault"
        )


def _inner_codecs(array: zarr.Array) -> tuple[Any, ...] | None:
    """The codecs within the shards, or None where they, or the shards, are of a kind that is left to zarr."""
    if not isinstance(array.metadata, ArrayV3Metadata) or len(array.metadata.codecs) != 1 or array.shards is None:
        return None
    sharding = array.metadata.codecs[0]
    whole_rows = array.chunks[1:] == array.shards[1:] == array.shape[1:]
    if not isinstance(sharding, ShardingCodec) or not whole_rows:
        return None
    if sharding.index_location != ShardingCodecIndexLocation.end or sharding.index_codecs != (
        BytesCodec(),
        Crc32cCodec(),
    ):
        return None
    match sharding.codecs:
        case (ChunkCodec(),) | (ChunkCodec(), Crc32cCodec()):
            return sharding.codecs
        case (BytesCodec(), BloscCodec(), *rest) if array.chunks[0] == 1 and array.dtype.isnative:
            return sharding.codecs if rest in ([], [Crc32cCodec()]) else None
    return None


def _decoder(codecs: tuple[Any, ...]) -> _Decode:
    return codecs[0].decode_into if isinstance(codecs[0], ChunkCodec) else _decode_blosc


def _decode_blosc(data: bytes, out: np.ndarray, start: int, rows: int) -> None:
    from numcodecs.blosc import decompress  # pyright: ignore[reportMissingImports]

    # Header: version, codec version, flags, item size, then bytes uncompressed, of a block, compressed.
    if len(data) < 16 or int.from_bytes(data[4:8], "little") != out.nbytes:
        raise CodecError("not a Blosc frame of the right size")
    if int.from_bytes(data[12:16], "little") != len(data):
        raise CodecError("Blosc frame is cut off")
    try:
        decompress(data, out)
    except RuntimeError as error:
        raise CodecError(f"Blosc frame cannot be decoded: {error}") from None
