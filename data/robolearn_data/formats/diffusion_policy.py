"""The ReplayBuffer of Diffusion Policy (Chi et al., 2023) and UMI (Chi et al., 2024): zarr v2, ``data/<key>`` (N, ...)
arrays and ``meta/episode_ends`` (E,), cumulative. A folder, or a zip file of it."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from robolearn_data.dataset import Dataset
from robolearn_data.formats import OnBroken, OnLoss, Progress, image_codecs
from robolearn_data.formats.names import known_stream
from robolearn_data.formats.transfer import (
    ExportFormatError,
    Faults,
    ImportFormatError,
    SourceEpisode,
    appearing,
    check_size,
    import_episodes,
    left_out,
    one_line,
)
from robolearn_data.schema import Schema, SchemaError, Stream, UserError

_PUSHT = {
    "action": Stream((2,), "float32", "action", names=("x", "y"), unit="px", frame="world"),
    "img": Stream((96, 96, 3), "float32", "image"),
    "keypoint": Stream((9, 2), "float32", "state", names=("x", "y"), unit="px", frame="world"),
    "n_contacts": Stream((1,), "float32", "info"),
    "state": Stream(
        (5,),
        "float32",
        "state",
        names=("agent_x", "agent_y", "block_x", "block_y", "block_angle"),
        unit="px,px,px,px,rad",
        frame="world",
        wraps=(4,),
    ),
}
"""The streams of the PushT demonstrations, whose store itself says nothing about names and units."""

_UMI_KEY = "robot0_eef_rot_axis_angle"
_UMI_RATE_HZ = 59.94
_NO_ACTION = (
    "the source has no action array (UMI takes the poses that follow as actions); a policy needs a stream 'action'"
)

_CODECS = {
    *("blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma"),
    *("shuffle", "delta", "bitround", "fixedscaleoffset", "packbits"),
    *(image_codecs.Jpeg2k.codec_id, image_codecs.JpegXl.codec_id),
}
"""Codecs that arrays may name. numcodecs knows more, among them one that unpickles, so runs code from the file."""

_CHUNK_BYTES = 2e6
_BATCH = 64
_IMAGE_CODECS = {"jpeg2k": (image_codecs.Jpeg2k, 50), "jpegxl": (image_codecs.JpegXl, 99)}
"""Choice -> codec and level, as diffusion_policy and UMI use them."""


def import_diffusion_policy(
    source: Path,
    target: str | Path,
    *,
    rate_hz: float | None = None,
    on_broken: OnBroken | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Copy every episode of ``source`` to a new dataset ``target``, value for value and under the same names.

    A zip file is read in place. ``target`` appears when everything is copied. What the source lacks (a UMI buffer has
    no action) is said in the dataset's metadata, ``source.notes``.

    Args:
        rate_hz: control rate, which the source does not record; by default 10, and 59.94 where the arrays are UMI's.
        on_broken: called with one line for each broken episode, which is left out. Without it they are an error.
        progress: called with (steps done, steps in all) after each episode.

    Returns:
        Episodes and steps.

    Raises:
        ImportFormatError: arrays missing or of unequal length, ends that do not increase, a codec that is not
            supported, NaN or infinity, an array that is not numeric, a damaged or hostile file.
        DatasetError: ``target`` exists.
    """
    with _opened(source) as (group, prefix):
        arrays, ends = _arrays(source, group, prefix)
        if rate_hz is None:
            rate_hz = _UMI_RATE_HZ if _UMI_KEY in arrays else 10.0
        schema = Schema(rate_hz, _streams(source, arrays))
        origin: dict[str, Any] = {"format": "diffusion_policy", "name": source.name}
        if "action" not in arrays:
            origin["notes"] = [_NO_ACTION]
        episodes = (
            SourceEpisode(
                f"{source}: episode {number}",
                int(ends[number]) - start,
                {"source_episode": number},
                lambda a, b, start=start: {
                    name: _read(source, name, array, start + a, start + b) for name, array in arrays.items()
                },
            )
            for number, start in enumerate([0, *ends[:-1].tolist()])
        )
        return import_episodes(
            target, schema, {"source": origin}, episodes, Faults(on_broken), total=int(ends[-1]), progress=progress
        )


def export_diffusion_policy(
    source: str | Path,
    target: Path,
    *,
    images: str = "blosc",
    on_loss: OnLoss | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write the dataset ``source`` as a ReplayBuffer: a zarr v2 folder, or a zip file where ``target`` ends in ".zip".

    Every stream becomes ``data/<stream>`` with chunks in time of about 2 MB and Blosc lz4, as diffusion_policy writes.
    Rows of dropped frames hold their stand-ins; times and episode information have no place in this format.

    Args:
        images: "blosc" (lossless), "jpeg2k" or "jpegxl" (lossy, smaller, a chunk per frame; streams of kind image
            with 1, 3 or 4 channels that hold whole numbers from 0 to 255; they become uint8).
        on_loss: called with one line where the dataset has what this format cannot hold.
        progress: called with (steps done, steps in all).

    Returns:
        Episodes and steps.

    Raises:
        DatasetError: ``source`` is not a dataset or damaged, or ``target`` exists.
        ExportFormatError: no episodes, or an unknown choice for ``images``.
        SchemaError: images that are not whole numbers from 0 to 255.
    """
    if images != "blosc" and images not in _IMAGE_CODECS:
        raise ExportFormatError(f"images {images!r} is unknown; valid: blosc, {', '.join(_IMAGE_CODECS)}")
    dataset = Dataset.open(source)
    if not dataset.episodes:
        raise ExportFormatError(f"{source} has no episodes; there is nothing to export")
    streams = dataset.schema.streams
    with appearing(target) as unfinished:
        store = ZipStore(unfinished, mode="w") if target.suffix == ".zip" else LocalStore(unfinished)
        try:
            root = zarr.create_group(store, zarr_format=2)
            ends = root.create_group("meta").create_array(
                "episode_ends", shape=(dataset.episodes,), dtype="int64", chunks=(dataset.episodes,), compressors=None
            )
            ends[:] = dataset.episode_ends
            data = root.create_group("data")
            sizes = {name: stream.size * np.dtype(stream.dtype).itemsize for name, stream in streams.items()}
            written = 0
            for name in streams:
                for rows in _write(dataset, name, data, images):
                    written += rows * sizes[name]
                    if progress:
                        progress(written // sum(sizes.values()), dataset.steps)
        finally:
            store.close()
    lost = left_out(dataset)
    if lost and on_loss:
        on_loss(lost)
    return dataset.episodes, dataset.steps


def _write(dataset: Dataset, name: str, data: zarr.Group, images: str) -> Iterator[int]:
    """Write one stream, and yield the number of rows of each piece."""
    import numcodecs

    stream = dataset.schema.streams[name]
    if stream.kind == "image" and stream.shape[-1] in (1, 3, 4) and images != "blosc":
        codec, level = _IMAGE_CODECS[images]
        compressor, dtype, rows = codec(level), "uint8", 1
    else:
        row_bytes = stream.size * np.dtype(stream.dtype).itemsize
        compressor, dtype = numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.NOSHUFFLE), stream.dtype
        rows = min(math.ceil(_CHUNK_BYTES / row_bytes), dataset.steps)
    array = data.create_array(
        name,
        shape=(dataset.steps, *stream.shape),
        dtype=dtype,
        chunks=(rows, *stream.shape),
        compressors=compressor,  # pyright: ignore[reportArgumentType]
        config={"write_empty_chunks": True},
    )
    # Whole chunks, so that each is compressed once, and none is written to a zip file twice. Of the large ones each by
    # itself: after an error zarr would go on writing the others in its own thread while the folder is removed.
    piece = max(rows, _BATCH) if rows == 1 else rows
    for start in range(0, dataset.steps, piece):
        block = slice(start, min(start + piece, dataset.steps))
        array[block] = dataset.read(name, block, dtype)
        yield block.stop - block.start


_DAMAGE = (ValueError, KeyError, TypeError, RuntimeError, MemoryError, EOFError)
_DAMAGE += (zipfile.BadZipFile, zlib.error, struct.error)
"""What zarr, zipfile and the codecs raise on bytes that are not what they should be."""


@contextmanager
def _opened(source: Path) -> Iterator[tuple[zarr.Group, str]]:
    """The ReplayBuffer's group, and its place within a zip file."""
    if not source.exists():
        raise ImportFormatError(f"no such file or folder: {source}; check the path")
    image_codecs.register()
    if zipfile.is_zipfile(source):
        prefix = _place_in_zip(source)
        store = ZipStore(source, mode="r")
    else:
        prefix = ""
        store = LocalStore(source, read_only=True)
    try:
        group = zarr.open_group(store, path=prefix, mode="r", zarr_format=2, use_consolidated=False)
    except (OSError, *_DAMAGE) as error:
        raise ImportFormatError(
            f"{source} is not a zarr v2 folder or zip file; --format diffusion_policy takes a ReplayBuffer"
        ) from error
    try:
        yield group, prefix
    finally:
        store.close()


def _place_in_zip(source: Path) -> str:
    """The folder of the ReplayBuffer inside a zip file: "" where it is the file's root."""
    marker = "meta/episode_ends/.zarray"
    try:
        with zipfile.ZipFile(source) as file:
            members = file.infolist()
    except zipfile.BadZipFile as error:
        raise ImportFormatError(f"{source} is a damaged zip file: {one_line(error)}") from None
    for member in members:
        parts = Path(member.filename).parts
        if member.filename.startswith(("/", "\\")) or ".." in parts or ":" in member.filename:
            raise ImportFormatError(f"{source} names {member.filename!r}, outside of itself; it is hostile or damaged")
        if member.flag_bits & 1:
            raise ImportFormatError(f"{source} is encrypted; decrypt it first")
        if member.file_size > 2**30:
            raise ImportFormatError(
                f"{source}: {member.filename} unpacks to {member.file_size:,} bytes; no chunk of a ReplayBuffer does"
            )
    found = [name.removesuffix(marker) for name in (m.filename for m in members) if name.endswith(marker)]
    if len(set(found)) != 1:
        raise ImportFormatError(f"{source} must hold one ReplayBuffer (meta/episode_ends), it holds {len(set(found))}")
    return found[0].rstrip("/")


def _arrays(source: Path, group: zarr.Group, prefix: str) -> tuple[dict[str, zarr.Array], np.ndarray]:
    try:
        names = sorted(_group(source, group, "data").array_keys())
        arrays = {name: _array(source, group, f"data/{name}") for name in names}
        ends_array = _array(source, group, "meta/episode_ends")
        if math.prod(ends_array.shape) > 2**26:
            raise ImportFormatError(f"{source}: meta/episode_ends has shape {ends_array.shape}; it is damaged")
        ends = np.asarray(ends_array[:])
    except (OSError, *_DAMAGE) as error:
        if isinstance(error, UserError | PermissionError):
            raise
        raise ImportFormatError(f"{source} cannot be read: {one_line(error)}") from error
    if not arrays:
        raise ImportFormatError(f"{source} has no arrays under data/")
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends) or np.any(np.diff(ends, prepend=0) <= 0):
        raise ImportFormatError(f"meta/episode_ends of {source} must be whole numbers that increase from above 0")
    stored = _stored_bytes(source, prefix)
    for name, array in arrays.items():
        if array.shape[:1] != (ends[-1],):
            raise ImportFormatError(
                f"data/{name} of {source} has shape {array.shape}, but episode_ends needs {ends[-1]} rows; repair it"
            )
        place = f"{source}: data/{name}"
        check_size(place, array.shape, array.dtype, stored.get(name, 0))
        check_size(f"{place}, a chunk of which", (1, *array.chunks), array.dtype, 0)
    return arrays, ends.astype(np.int64)


def _stored_bytes(source: Path, prefix: str) -> dict[str, int]:
    """Array -> bytes of its chunks in the file or folder."""
    if source.is_dir():
        folders = [folder for folder in (source / "data").iterdir() if folder.is_dir()]
        return {f.name: sum(file.stat().st_size for file in f.rglob("*") if file.is_file()) for f in folders}
    stored: dict[str, int] = {}
    place = f"{prefix}/data/".lstrip("/")
    with zipfile.ZipFile(source) as file:
        for member in file.infolist():
            if member.filename.startswith(place):
                name = member.filename.removeprefix(place).partition("/")[0]
                stored[name] = stored.get(name, 0) + member.compress_size
    return stored


def _group(source: Path, root: zarr.Group, name: str) -> zarr.Group:
    found = root.get(name)
    if not isinstance(found, zarr.Group):
        raise ImportFormatError(f"{source} has no group {name}; it is not a ReplayBuffer")
    return found


def _array(source: Path, root: zarr.Group, name: str) -> zarr.Array:
    found = root.get(name)
    if not isinstance(found, zarr.Array):
        raise ImportFormatError(f"{source} has no array {name}; it is not a ReplayBuffer")
    compressor, filters = found.metadata.compressor, found.metadata.filters or ()  # pyright: ignore[reportAttributeAccessIssue]
    for codec in (*filters, *([compressor] if compressor else [])):
        if codec.codec_id not in _CODECS:
            raise ImportFormatError(
                f"{source}: {name} uses codec {codec.codec_id!r}; supported: {', '.join(sorted(_CODECS))}"
            )
        if isinstance(codec, image_codecs.ImageCodec):
            if found.chunks[0] != 1 or found.ndim != 4 or found.dtype != np.uint8:
                raise ImportFormatError(f"{source}: {name} has codec {codec.codec_id!r} but not one image a chunk")
            codec.shape = image_codecs.image_shape(found.chunks)
    return found


def _streams(source: Path, arrays: dict[str, zarr.Array]) -> dict[str, Stream]:
    found = {name: (array.shape[1:], str(array.dtype.newbyteorder("="))) for name, array in arrays.items()}
    if found == {name: (stream.shape, stream.dtype) for name, stream in _PUSHT.items()}:
        return dict(_PUSHT)
    streams = {}
    for name, (shape, dtype) in found.items():
        try:
            streams[name] = known_stream(name, shape, dtype)
        except SchemaError as error:
            raise ImportFormatError(f"{source}: data/{name}: {error}") from None
    return streams


def _read(source: Path, name: str, array: zarr.Array, start: int, end: int) -> np.ndarray:
    try:
        return np.asarray(array[start:end])
    except _DAMAGE as error:
        raise ImportFormatError(
            f"{source}: data/{name} cannot be decoded near row {start}: {one_line(error)}"
        ) from error
