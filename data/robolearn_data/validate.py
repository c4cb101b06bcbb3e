"""Finding everything that is wrong with a dataset, so that it can be repaired or thrown away knowingly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.store import Store

from robolearn_data import shards, storage
from robolearn_data.codecs.chunk import CodecError
from robolearn_data.folder import DatasetError
from robolearn_data.frames import Frames
from robolearn_data.location import Location, locate
from robolearn_data.schema import Schema, SchemaError, Stream

_PIECE_BYTES = 16 * 2**20


def validate(path: str | Path | Location, *, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read the whole dataset and return its faults, one line each; empty when it is whole.

    Pictures with a checksum each are compared with it and not decoded.

    Args:
        progress: called with (rows checked, rows to check) over all streams.

    Raises:
        DatasetError: there is no robolearn dataset of this format version at ``path``.
    """
    location = locate(path)
    attributes = storage.read_attributes(location)
    try:
        schema = Schema.from_json(attributes.get("schema"))
    except SchemaError as error:
        return [f"zarr.json: {error}"]
    store = location.store()
    try:
        ends = np.asarray(storage.open_array(store, storage.ENDS)[:])
    except Exception as error:
        return [f"{storage.ENDS}: cannot be read: {_line(error)}"]
    if ends.ndim != 1 or ends.dtype != np.int64:
        return [f"{storage.ENDS}: is {ends.dtype}{ends.shape}, must be int64 (episodes,)"]
    faults = [
        f"{storage.ENDS}: episode {i} ends at row {ends[i]}, not after row {ends[i - 1] if i else 0}"
        for i in np.flatnonzero(np.diff(ends, prepend=0) <= 0)
    ]
    if faults:  # rows cannot be given to episodes then
        return faults

    steps = int(ends[-1]) if len(ends) else 0
    faults += _info_faults(store, len(ends))
    done = 0
    for name, stream in schema.streams.items():
        stream_ends = ends
        if stream.is_native:
            stream_ends, found = _sample_ends(location, store, name, ends)
            faults += found
        for rows, found in _stream_faults(location, store, name, stream, stream_ends):
            faults += found
            done += rows
            if progress:
                progress(done, steps * len(schema.streams))
    for name in (storage.TICK, *schema.streams):
        faults += _time_faults(location, store, f"time/{name}", ends, strict=name == storage.TICK)
    return faults


def _sample_ends(location: Location, store: Store, name: str, ends: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Where a native stream's samples end, episode by episode, and what is wrong with its ends, times and index."""
    where = f"streams/{name}"
    array, fault = _open(store, f"{where}/ends", len(ends))
    if array is None:
        return np.empty(0, np.int64), [fault]
    found = np.asarray(array[: len(ends)])
    if found.dtype != np.int64 or found.ndim != 1 or np.any(np.diff(found, prepend=0) < 0):
        return np.empty(0, np.int64), [f"{where}/ends: must be int64 that do not decrease"]
    faults = _time_faults(location, store, f"{where}/time", found, strict=True)
    steps = int(ends[-1]) if len(ends) else 0
    index, fault = _open(store, f"index/{name}", steps)
    if index is None:
        return found, [*faults, fault]
    try:
        rows = np.asarray(index[:steps])
    except Exception as error:
        return found, [*faults, f"index/{name}: cannot be decoded: {_line(error)}"]
    lengths = np.diff(ends, prepend=0)
    first, last = np.repeat(np.concatenate(([0], found))[:-1], lengths), np.repeat(found, lengths)
    wrong = np.flatnonzero((rows != -1) & ((rows < first) | (rows >= last)))
    if len(wrong):
        where = f"from row {wrong[0]}, {_episode(ends, int(wrong[0]))}"
        faults.append(f"index/{name}: points to another episode's samples in {len(wrong)} rows {where}")
    return found, faults


def _stream_faults(
    location: Location, store: Store, name: str, stream: Stream, ends: np.ndarray
) -> Iterator[tuple[int, list[str]]]:
    """Checks a stream file by file: yields rows checked and the faults among them."""
    steps = int(ends[-1]) if len(ends) else 0
    where = storage.values_of(name, stream)
    array, fault = _open(store, where, steps)
    if array is None:
        yield steps, [fault]
        return
    if array.shape[1:] != stream.shape or array.dtype != np.dtype(stream.dtype):
        yield steps, [f"{where}: is {array.dtype}{array.shape[1:]}, the schema says {stream.dtype}{stream.shape}"]
        return
    valid = np.ones(steps, bool)
    if not stream.is_native and location.exists(f"valid/{name}/zarr.json"):
        mask, fault = _open(store, f"valid/{name}", steps)
        if mask is None:
            yield 0, [fault]
        else:
            valid = np.asarray(mask[:steps])
    unit = (array.shards or array.chunks)[0]
    has_checksums = shards.is_one_by_one(array) and shards.is_sealed(shards.inner_codecs(array))
    for start in range(0, steps, unit):
        stop = min(start + unit, steps)
        key = array.metadata.encode_chunk_key((start // unit, *[0] * len(stream.shape)))
        if not location.exists(f"{where}/{key}"):
            yield stop - start, [f"{where}: rows {start} to {stop - 1} are gone (file {key}), {_episode(ends, start)}"]
            continue
        if has_checksums and array.dtype.kind != "f":
            faults = _checksum_faults(location, array, f"{where}/{key}", start, stop)
        else:
            faults = _decoding_faults(array, start, stop, valid)
        yield stop - start, [f"{where}: {what} (file {key}), {_episode(ends, row)}" for row, what in faults]


def _checksum_faults(
    location: Location, array: zarr.Array, key: str, start: int, stop: int
) -> Iterator[tuple[int, str]]:
    """First row and fault of the rows of a shard that are not what was written."""
    try:
        frames = shards.unpack(location, key, array.shards[0])[: stop - start]  # pyright: ignore[reportOptionalSubscript]
    except (DatasetError, OSError) as error:
        yield start, f"rows {start} to {stop - 1} cannot be decoded: {_line(error)}"
        return
    wrong = [start + i for i, frame in enumerate(frames) if frame is None or not _has_its_checksum(frame)]
    if wrong:
        rows = f"row {wrong[0]} does" if len(wrong) == 1 else f"{len(wrong)} rows from row {wrong[0]} do"
        yield wrong[0], f"{rows} not have the checksum written with it"


def _has_its_checksum(frame: bytes) -> bool:
    try:
        shards.unseal(frame)
    except CodecError:
        return False
    return True


def _decoding_faults(array: zarr.Array, start: int, stop: int, valid: np.ndarray) -> Iterator[tuple[int, str]]:
    """First row and fault of the rows of a file that cannot be decoded, or are not finite numbers."""
    row_bytes = max(array.nbytes // max(array.shape[0], 1), 1)
    piece = max(_PIECE_BYTES // row_bytes // array.chunks[0], 1) * array.chunks[0]
    frames = Frames(array) if Frames.readable(array) else None  # zarr decodes many groups at once
    for first in range(start, stop, piece):
        last = min(first + piece, stop)
        try:
            block = np.asarray(array[first:last]) if frames is None else frames.read(np.arange(first, last))
        except Exception as error:
            yield first, f"rows {first} to {last - 1} cannot be decoded: {_line(error)}"
            continue
        if block.dtype.kind == "f":
            wrong = ~np.isfinite(block).reshape(len(block), -1).all(1) & valid[first:last]
            if wrong.any():
                row = first + int(np.argmax(wrong))
                yield row, f"NaN or infinity in {int(wrong.sum())} rows from row {row}"


def _time_faults(location: Location, store: Store, where: str, ends: np.ndarray, *, strict: bool) -> list[str]:
    if not location.exists(f"{where}/zarr.json"):
        return []
    steps = int(ends[-1]) if len(ends) else 0
    array, fault = _open(store, where, steps)
    if array is None:
        return [fault]
    try:
        times = np.asarray(array[:steps])
    except Exception as error:
        return [f"{where}: cannot be decoded: {_line(error)}"]
    if times.shape != (steps,) or times.dtype != np.int64:
        return [f"{where}: is {times.dtype}{times.shape}, must be int64 ({steps},)"]
    step = np.diff(times)
    backwards = (step <= 0 if strict else step < 0) & (times[1:] != 0) & (times[:-1] != 0)
    borders = ends[:-1] - 1  # the next episode may come from another day and another boot
    backwards[borders[(borders >= 0) & (borders < len(backwards))]] = False
    rows = np.flatnonzero(backwards) + 1
    if not rows.size:
        return []
    return [f"{where}: time goes backwards in {rows.size} rows from row {rows[0]}, {_episode(ends, int(rows[0]))}"]


def _info_faults(store: Store, episodes: int) -> list[str]:
    array, fault = _open(store, storage.INFO, episodes)
    if array is None:
        return [fault]
    try:
        texts = array[:episodes]
    except Exception as error:
        return [f"{storage.INFO}: cannot be decoded: {_line(error)}"]
    faults = []
    seen: dict[str, int] = {}
    for episode, text in enumerate(np.atleast_1d(texts)):
        try:
            value = json.loads(str(text))
            uuid = str(value["uuid"])
        except (ValueError, TypeError, KeyError):
            faults.append(f"{storage.INFO}: episode {episode} is not JSON with a uuid")
            continue
        if uuid in seen:
            faults.append(f"{storage.INFO}: episodes {seen[uuid]} and {episode} have the same uuid {uuid}")
        seen.setdefault(uuid, episode)
    return faults


def _open(store: Store, name: str, rows: int) -> tuple[zarr.Array | None, str]:
    try:
        array = storage.open_array(store, name)
    except Exception as error:
        return None, f"{name}: cannot be opened: {_line(error)}"
    if not array.shape or array.shape[0] < rows:
        return None, f"{name}: has {array.shape[0] if array.shape else 'no'} rows, {rows} are published"
    return array, ""


def _episode(ends: np.ndarray, row: int) -> str:
    return f"episode {int(np.searchsorted(ends, row, side='right'))}"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
