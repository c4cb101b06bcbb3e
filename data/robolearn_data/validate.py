"""Finding everything that is wrong with a dataset, so that it can be repaired or thrown away knowingly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr

from robolearn_data import shards, storage
from robolearn_data.codecs.chunk import CodecError
from robolearn_data.folder import DatasetError
from robolearn_data.frames import Frames
from robolearn_data.location import Location, locate
from robolearn_data.schema import Schema, SchemaError, Stream


def validate(
    path: str | Path | Location, *, pictures: bool = False, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Read the whole dataset and return its faults, one line each; empty when it is whole.

    Args:
        pictures: decode every picture. Otherwise those that have a checksum are compared with that alone, which finds
            whatever happened to them since they were written.
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
    try:
        ends = np.asarray(storage.open_array(location.store(), storage.ENDS)[:])
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
    faults += _info_faults(location, len(ends))
    done = 0
    for name, stream in schema.streams.items():
        stream_ends = ends
        if stream.is_native:
            stream_ends, found = _sample_ends(location, name, ends)
            faults += found
        for rows, found in _stream_faults(location, name, stream, stream_ends, pictures):
            faults += found
            done += rows
            if progress:
                progress(done, steps * len(schema.streams))
    for name in (storage.TICK, *schema.streams):
        faults += _time_faults(location, f"time/{name}", ends, strict=name == storage.TICK)
    return faults


def _sample_ends(location: Location, name: str, ends: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Where a native stream's samples end, episode by episode, and what is wrong with its ends, times and index."""
    where = f"streams/{name}"
    array, fault = _open(location, f"{where}/ends", len(ends))
    if array is None:
        return np.empty(0, np.int64), [fault]
    found = np.asarray(array[: len(ends)])
    if found.dtype != np.int64 or found.ndim != 1 or np.any(np.diff(found, prepend=0) < 0):
        return np.empty(0, np.int64), [f"{where}/ends: must be int64 that do not decrease"]
    faults = _time_faults(location, f"{where}/time", found, strict=True)
    steps = int(ends[-1]) if len(ends) else 0
    index, fault = _open(location, f"index/{name}", steps)
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
    location: Location, name: str, stream: Stream, ends: np.ndarray, pictures: bool
) -> Iterator[tuple[int, list[str]]]:
    """Checks a stream file by file: yields rows checked and the faults among them."""
    steps = int(ends[-1]) if len(ends) else 0
    where = storage.values_of(name, stream)
    array, fault = _open(location, where, steps)
    if array is None:
        yield steps, [fault]
        return
    if array.shape[1:] != stream.shape or array.dtype != np.dtype(stream.dtype):
        yield steps, [f"{where}: is {array.dtype}{array.shape[1:]}, the schema says {stream.dtype}{stream.shape}"]
        return
    valid = np.ones(steps, bool)
    if not stream.is_native and location.exists(f"valid/{name}/zarr.json"):
        mask, fault = _open(location, f"valid/{name}", steps)
        if mask is None:
            yield 0, [fault]
        else:
            valid = np.asarray(mask[:steps])
    unit = (array.shards or array.chunks)[0]
    framed = Frames.readable(array)
    for start in range(0, steps, unit):
        stop = min(start + unit, steps)
        key = array.metadata.encode_chunk_key((start // unit, *[0] * len(stream.shape)))
        if not location.exists(f"{where}/{key}"):
            yield stop - start, [f"{where}: rows {start} to {stop - 1} are gone (file {key}), {_episode(ends, start)}"]
            continue
        if framed:
            bad = _bad_frames(array, location, f"{where}/{key}", range(start, stop), pictures, valid[start:stop])
            found = [f"{where}: {fault} (file {where}/{key}), {_episode(ends, row)}" for row, fault in bad]
            yield stop - start, found
            continue
        try:
            block = np.asarray(array[start:stop])
        except Exception as error:
            yield stop - start, [f"{where}: rows {start} to {stop - 1} cannot be decoded (file {key}): {_line(error)}"]
            continue
        wrong = _not_finite(block) & valid[start:stop]
        row = start + int(np.argmax(wrong))
        fault = f"{where}: NaN or infinity in {int(wrong.sum())} rows from row {row}, {_episode(ends, row)}"
        yield stop - start, [fault] if wrong.any() else []


def _bad_frames(
    array: zarr.Array, location: Location, file: str, rows: range, pictures: bool, valid: np.ndarray
) -> list[tuple[int, str]]:
    """The first row and what is wrong, for each kind of fault among ``rows``, which share ``file``."""
    group, sealed = array.chunks[0], shards.is_sealed(shards.inner_codecs(array))
    try:
        stored = shards.unpack(location, file, array.shards[0] // group)  # pyright: ignore[reportOptionalSubscript]
    except DatasetError as error:
        return [(rows.start, f"rows {rows.start} to {rows[-1]} cannot be decoded: {_line(error)}")]
    frames = Frames(array)
    absent, damaged, infinite = [], [], []
    why = ""
    for frame, row in zip(stored, range(rows.start, rows.stop, group), strict=False):
        if frame is None:
            absent.append(row)
            continue
        try:
            if sealed:
                shards.unseal(frame)
            if pictures or not sealed or array.dtype.kind == "f":
                values = frames.read(np.arange(row, min(row + group, rows.stop)))
                if (_not_finite(values) & valid[row - rows.start :][: len(values)]).any():
                    infinite.append(row)
        except (CodecError, DatasetError) as error:
            damaged.append(row)
            why = why or _line(error).split("; `robolearn")[0]
    found = []
    if absent:
        found.append((absent[0], f"{_rows(absent)} never written"))
    if damaged:
        found.append((damaged[0], f"{_rows(damaged)} damaged: {why}"))
    if infinite:
        found.append((infinite[0], f"NaN or infinity in {len(infinite)} rows from row {infinite[0]}"))
    return found


def _rows(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return f"row {shown} is" if len(rows) == 1 else f"rows {shown} are"


def _not_finite(values: np.ndarray) -> np.ndarray:
    """(n,) bool: rows with NaN or infinity."""
    if values.dtype.kind != "f":
        return np.zeros(len(values), bool)
    return ~np.isfinite(values).reshape(len(values), -1).all(1)


def _time_faults(location: Location, where: str, ends: np.ndarray, *, strict: bool) -> list[str]:
    if not location.exists(f"{where}/zarr.json"):
        return []
    steps = int(ends[-1]) if len(ends) else 0
    array, fault = _open(location, where, steps)
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


def _info_faults(location: Location, episodes: int) -> list[str]:
    array, fault = _open(location, storage.INFO, episodes)
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


def _open(location: Location, name: str, rows: int) -> tuple[zarr.Array | None, str]:
    try:
        array = storage.open_array(location.store(), name)
    except Exception as error:
        return None, f"{name}: cannot be opened: {_line(error)}"
    if not array.shape or array.shape[0] < rows:
        return None, f"{name}: has {array.shape[0] if array.shape else 'no'} rows, {rows} are published"
    return array, ""


def _episode(ends: np.ndarray, row: int) -> str:
    return f"episode {int(np.searchsorted(ends, row, side='right'))}"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
