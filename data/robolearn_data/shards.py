"""Shard files of zarr v3 (codec "sharding_indexed"), read and written whole with frames that are encoded already.

A shard is its frames one after the other, then an index: offset and length of each frame (uint64, little endian; both
2**64 - 1 where there is none) and the CRC-32C of the index. zarr itself can only write what it has encoded itself.

Where the array's last codec is "crc32c" each frame is *sealed*: its CRC-32C (4 bytes) follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec

from robolearn_data.codecs.chunk import ChunkCodec, CodecError
from robolearn_data.folder import DatasetError
from robolearn_data.location import Location, location_of

_NONE = np.uint64(2**64 - 1)


def pack(frames: Sequence[bytes], count: int) -> bytes:
    """The shard of ``count`` places whose first ones hold ``frames``."""
    index = np.full((count, 2), _NONE, "<u8")
    lengths = np.array([len(frame) for frame in frames], np.uint64)
    index[: len(frames), 1] = lengths
    index[: len(frames), 0] = np.cumsum(lengths) - lengths
    listed = index.tobytes()
    return b"".join([*frames, listed, google_crc32c.value(listed).to_bytes(4, "little")])


def unpack(location: Location, key: str, count: int) -> list[bytes | None]:
    """The ``count`` frames of the shard at ``key``, None where there is none; all None without a file.

    Raises:
        DatasetError: the file is not a whole shard.
    """
    try:
        content = location.read(key)
    except FileNotFoundError:
        return [None] * count
    split = len(content) - 16 * count - 4
    listed, crc = content[max(split, 0) : -4], content[-4:]
    if split < 0 or google_crc32c.value(listed).to_bytes(4, "little") != crc:
        raise DatasetError(f"{location}/{key} is damaged: its index does not match its checksum")
    index = np.frombuffer(listed, "<u8").reshape(count, 2)
    there = index[:, 0] != _NONE
    if np.any(index[there] > split) or np.any(index[there].sum(1) > split):
        raise DatasetError(f"{location}/{key} is damaged: its index points outside of it")
    return [content[int(at) : int(at + n)] if ok else None for (at, n), ok in zip(index, there, strict=True)]


def seal(frame: bytes) -> bytes:
    """A frame and its checksum."""
    return frame + google_crc32c.value(frame).to_bytes(4, "little")


def unseal(sealed: bytes) -> bytes:
    """The frame alone.

    Raises:
        CodecError: it does not have its checksum.
    """
    frame, crc = sealed[:-4], sealed[-4:]
    if google_crc32c.value(frame).to_bytes(4, "little") != crc:
        raise CodecError("it is damaged: it does not have its checksum")
    return frame


def is_sealed(codecs: Sequence[object]) -> bool:
    """Whether frames of these codecs have a checksum each."""
    return bool(codecs) and isinstance(codecs[-1], Crc32cCodec)


class Encoded(list[bytes]):
    """Rows as they are stored, each encoded for itself, not sealed: what a copy hands on without decoding it."""


def stored_rows(array: zarr.Array, rows: slice) -> Encoded | None:
    """Rows of an array for which ``is_one_by_one`` holds, as they are stored; None where one was never written.

    Raises:
        DatasetError: a file or frame is damaged.
    """
    sealed = is_sealed(inner_codecs(array))
    unit: int = array.shards[0]  # pyright: ignore[reportOptionalSubscript]
    place = location_of(array)
    if place is None:
        return None
    location, name = place
    found = Encoded()
    for number in range(rows.start // unit, -(-rows.stop // unit)):
        key = array.metadata.encode_chunk_key((number, *[0] * (array.ndim - 1)))
        first = number * unit
        for row in unpack(location, f"{name}/{key}", unit)[max(rows.start - first, 0) : rows.stop - first]:
            if row is None:
                return None
            try:
                found.append(unseal(row) if sealed else row)
            except CodecError as error:
                raise DatasetError(f"{location}/{name}, row {rows.start + len(found)}: {error}") from None
    return found


def same_encoding(a: zarr.Array, b: zarr.Array) -> bool:
    """Whether rows stored in ``a`` may stand in ``b`` as they are."""
    return (
        is_one_by_one(a)
        and is_one_by_one(b)
        and (a.shape[1:], a.dtype) == (b.shape[1:], b.dtype)
        and _unsealed(inner_codecs(a)) == _unsealed(inner_codecs(b))
    )


def is_one_by_one(array: zarr.Array) -> bool:
    """Whether each row of an array is encoded for itself, in shards."""
    return array.shards is not None and array.chunks[0] == 1


def encoder(array: zarr.Array) -> Callable[[np.ndarray], bytes]:
    """The function that encodes, and does not seal, one row of an array for which ``is_one_by_one`` holds.

    Raises:
        DatasetError: by a codec that this version cannot write.
    """
    match _unsealed(inner_codecs(array)):
        case (ChunkCodec() as codec,):
            return lambda row: codec.encode_chunk(np.ascontiguousarray(row[None]))
        case (BytesCodec(), BloscCodec() as blosc) if array.dtype.isnative:
            shuffle = ("noshuffle", "shuffle", "bitshuffle").index(blosc.shuffle.value)
            codec_of_zarr = numcodecs.Blosc(blosc.cname.value, blosc.clevel, shuffle, blosc.blocksize)
            return lambda row: bytes(codec_of_zarr.encode(np.ascontiguousarray(row)))
    raise DatasetError(
        f"{array.store_path} is encoded in a way that this version cannot write; `robolearn data convert`"
    )


def inner_codecs(array: zarr.Array) -> tuple[object, ...]:
    """The codecs of a frame within a shard; none where the array has no shards."""
    chain: tuple[Any, ...] = array.metadata.codecs  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(chain[0].codecs) if len(chain) == 1 and isinstance(chain[0], ShardingCodec) else ()


def _unsealed(codecs: tuple[object, ...]) -> tuple[object, ...]:
    return codecs[:-1] if is_sealed(codecs) else codecs
