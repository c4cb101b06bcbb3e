"""How a dataset lies on disk: its arrays, their chunks and compression, and writes that survive a power cut.

One zarr v3 group, readable with plain ``zarr.open``::

    zarr.json               attributes {"robolearn": {"format", "schema", "metadata"}}
    data/<stream>           (N, ...) one row per control step
    meta/episode_ends       (E,) int64, cumulative: episode i is rows [ends[i - 1], ends[i])
    meta/episode_info       (E,) JSON text about each episode
    time/tick               (N,) int64 ns, CLOCK_MONOTONIC of the control step; 0 = not known
    time/<stream>           (N,) int64 ns, when that stream's sample was captured; 0 = not known
    received/<stream>       (N,) int64 ns, when it reached the recorder; 0 = not known
    valid/<stream>          (N,) bool, False where the stream dropped a frame and the row holds a stand-in

A stream with a rate of its own (``Stream.rate_hz``) has M samples instead, and a row of ``index`` for each step::

    streams/<stream>/value     (M, ...) one row per sample
    streams/<stream>/time      (M,) int64 ns, when it was captured, increasing within an episode
    streams/<stream>/received  (M,) int64 ns; 0 = not known
    streams/<stream>/ends      (E,) int64, cumulative: its samples of episode i are [ends[i - 1], ends[i])
    index/<stream>             (N,) int64, the newest sample captured by that step; -1 where there is none

Arrays under ``time``, ``received`` and ``valid`` exist only once something was known or dropped; absent means all 0,
all True. Rows past ``episode_ends[-1]`` and samples past ``ends[E - 1]`` are not part of the dataset: an episode exists
from the moment ``episode_ends`` names it. ``journal`` and ``unfinished`` are not arrays: see ``journal.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec, ShardingCodec

from robolearn_data import codecs
from robolearn_data.bucket import ROOT
from robolearn_data.codecs.chunk import ChunkCodec, CodecError
from robolearn_data.codecs.h264 import H264Codec
from robolearn_data.codecs.jpeg import JpegCodec
from robolearn_data.codecs.jpegxl import JpegXlCodec
from robolearn_data.folder import DatasetError
from robolearn_data.location import Location
from robolearn_data.schema import SchemaError, Stream

FORMAT = 1
ATTRIBUTE = "robolearn"
ENDS = "meta/episode_ends"
INFO = "meta/episode_info"
TICK = "tick"

BULK = {"codec_pipeline.batch_size": 256}
"""zarr configuration for long runs of rows. By default each frame of a shard is a task: 2.5 times the CPU time."""

_FRAME_BYTES = 4096
"""A row at least this large is a random-access unit of its own, as every image is."""
BLOCK_BYTES = 32 * 2**20
_CHUNK_BYTES = 128 * 2**10
_PICTURES = 8
"""Frames of a group of H.264 pictures: reading a random one decodes half of them; 16 would save 6 % of the bytes."""

codecs.register()  # entry points do it where the package is installed


class Encoding(NamedTuple):
    """How a stream's rows become bytes."""

    codecs: dict[str, Any]
    """Arguments of ``zarr.create_array``."""
    group: int = 1
    """Consecutive rows that are encoded together where rows are otherwise encoded one by one."""
    shrinks: int = 1
    """What a file may hold beyond the usual, since its bytes are that many times fewer."""


def values_of(name: str, stream: Stream) -> str:
    """The array that holds a stream's values."""
    return f"streams/{name}/value" if stream.is_native else f"data/{name}"


def fill_value(name: str) -> int | bool:
    """What rows of the array ``name`` hold for which nothing was said."""
    return name.startswith("valid/")


def encoding(compression: str, stream: Stream) -> Encoding:
    """What a name of a compression means for a stream.

    "zstd-1" (fast) and "zstd-5" (small) take every stream; "lossless" (JPEG XL), "jpeg-QUALITY" (1 to 100) and
    "h264-CRF" (0 to 51, 0 is best) take uint8 images, and "depth" takes uint16 pictures (H, W) or (H, W, 1). All but
    JPEG and H.264 give back what was written, bit for bit.

    Raises:
        SchemaError: an unknown name, a number out of range, or a stream that it does not fit.
    """
    kind, _, number = compression.partition("-")
    dtype = np.dtype(stream.dtype)
    try:
        match kind, number:
            case "zstd", ("1" | "5"):
                return _blosc(dtype, int(number), "shuffle" if dtype.itemsize > 1 else "noshuffle")
            case "depth", "":
                if dtype != np.uint16 or len(stream.shape) not in (2, 3) or stream.shape[2:] not in ((), (1,)):
                    shape = f"{dtype} {stream.shape}"
                    raise SchemaError(f"depth takes uint16 pictures (height, width) or (height, width, 1), not {shape}")
                return _blosc(dtype, 1, "bitshuffle")
            case "lossless", "":
                return _frames(JpegXlCodec(), stream)
            case "jpeg", _ if number.isdecimal():
                return _frames(JpegCodec(int(number)), stream, shrinks=8)
            case "h264", _ if number.isdecimal():
                return _frames(H264Codec(int(number)), stream, group=_PICTURES, shrinks=8)
    except CodecError as error:
        raise SchemaError(f"compression {compression!r} does not fit: {error}") from None
    valid = "zstd-1, zstd-5, lossless, depth, jpeg-1 to jpeg-100, h264-0 to h264-51"
    raise SchemaError(f"compression {compression!r} is unknown; valid: {valid}")


def compression_of(array: zarr.Array) -> str | None:
    """The name with which ``encoding`` makes an array of this one's codecs; None where there is none."""
    chain: tuple[Any, ...] = array.metadata.codecs  # pyright: ignore[reportAttributeAccessIssue]
    inner = chain[0].codecs if isinstance(chain[0], ShardingCodec) else chain
    codec = next(codec for codec in reversed(inner) if not isinstance(codec, Crc32cCodec))
    match codec:
        case JpegCodec(quality=quality):
            return f"jpeg-{quality}"
        case JpegXlCodec():
            return "lossless"
        case H264Codec(crf=crf):
            return f"h264-{crf}"
        case BloscCodec() if codec.cname.value == "zstd" and codec.shuffle.value == "bitshuffle":
            return "depth"
        case BloscCodec() if codec.cname.value == "zstd" and codec.clevel in (1, 5):
            return f"zstd-{codec.clevel}"
    return None


def default_compression(stream: Stream) -> str:
    """ "jpeg-95" for uint8 images of 1 or 3 channels, "zstd-1" for everything else."""
    if stream.kind != "image":
        return "zstd-1"
    try:
        encoding("jpeg-95", stream)
    except SchemaError:
        return "zstd-1"
    return "jpeg-95"


def _blosc(dtype: np.dtype[Any], level: int, shuffle: Literal["noshuffle", "shuffle", "bitshuffle"]) -> Encoding:
    codec = BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=level, shuffle=shuffle)
    return Encoding({"compressors": [codec, Crc32cCodec()]})


def _frames(codec: ChunkCodec, stream: Stream, *, group: int = 1, shrinks: int = 1) -> Encoding:
    codec.check((group, *stream.shape), np.dtype(stream.dtype))
    if not is_framed(stream):
        raise CodecError("it takes streams of kind 'image'")
    return Encoding({"serializer": codec, "compressors": [Crc32cCodec()] if group == 1 else None}, group, shrinks)


def rows_per_file(stream: Stream, how: Encoding | None = None) -> int:
    """Rows that share one file: as many as make a modest file, since appending rewrites the last, partly filled one."""
    row = stream.size * np.dtype(stream.dtype).itemsize
    if is_framed(stream):
        group, shrinks = (how.group, how.shrinks) if how else (1, 1)
        rows = int(np.clip(BLOCK_BYTES * shrinks // row, 1, 256))
        return max(rows // group, 1) * group
    return int(np.clip(_CHUNK_BYTES // row, 1, 16384))


def is_framed(stream: Stream) -> bool:
    """Whether each row is compressed alone, so that one can be read without its neighbours."""
    return stream.kind == "image" or stream.size * np.dtype(stream.dtype).itemsize >= _FRAME_BYTES


def create_array(
    store: Store, name: str, stream: Stream, *, rows: int = 0, fill: Any = 0, compression: str | None = None
) -> zarr.Array:
    """Make ``name`` with ``rows`` rows that read as ``fill``.

    Raises:
        SchemaError: see ``encoding``.
    """
    how = encoding(compression or default_compression(stream), stream)
    unit = rows_per_file(stream, how)
    framed = is_framed(stream)
    return zarr.create_array(
        store,
        name=name,
        shape=(rows, *stream.shape),
        dtype=stream.dtype,
        chunks=(how.group if framed else unit, *stream.shape),
        shards=(unit, *stream.shape) if framed else None,
        fill_value=fill,
        config={"write_empty_chunks": True},  # a file that is absent is then a fault that `validate` can see
        **how.codecs,
    )


def open_array(store: Store, name: str, mode: str = "r") -> zarr.Array:
    return zarr.open_array(store, path=name, mode=mode, zarr_format=3, config={"write_empty_chunks": True})  # pyright: ignore[reportArgumentType]


def with_length(array: zarr.Array, rows: int) -> zarr.Array:
    """The same array in memory with room for ``rows`` rows; on disk its length stays until ``set_length``."""
    metadata = replace(array.metadata, shape=(rows, *array.shape[1:]))  # pyright: ignore[reportArgumentType]
    return zarr.Array(zarr.AsyncArray(metadata, array.store_path, config={"write_empty_chunks": True}))  # pyright: ignore[reportArgumentType]


def set_length(location: Location, name: str, rows: int, *, durable: bool) -> None:
    """Publish the number of rows of an array in one atomic write. zarr's own resize first lists every chunk of it."""
    key = f"{name}/zarr.json"
    metadata = json.loads(location.read(key))
    if metadata["shape"][0] != rows:
        metadata["shape"][0] = rows
        location.put(key, json.dumps(metadata, indent=2).encode(), durable=durable)


def read_attributes(location: Location) -> Mapping[str, Any]:
    """The "robolearn" attribute of the group at ``location``.

    Raises:
        DatasetError: nothing there, something of another kind, or another version of the format.
    """
    try:
        root = location.read(ROOT)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DatasetError(_what_else(location)) from None
    try:
        value = json.loads(root)["attributes"][ATTRIBUTE]
        version = value["format"]
    except (ValueError, KeyError, TypeError):
        raise DatasetError(_NO_DATASET.format(location)) from None
    if version != FORMAT:
        raise DatasetError(f"{location} has dataset format {version!r}, this version reads {FORMAT}; update robolearn")
    return value


_NO_DATASET = "{} is not a robolearn dataset; give the folder that `robolearn collect` or `data import` made"


def _what_else(location: Location) -> str:
    """What is wrong with a place that has no root."""
    if not location.exists():
        return f"no dataset at {location}; check the path, or make one: `robolearn collect`, `robolearn data import`"
    if not location.exists(".zgroup"):
        return _NO_DATASET.format(location)
    hint = "not a robolearn dataset"
    if location.exists("meta/episode_ends/.zarray"):
        hint = f"import it: `robolearn data import --format diffusion_policy {location} NEW.zarr`"
    return f"{location} is a zarr v2 store; {hint}"
