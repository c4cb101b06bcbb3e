"""Import of the ReplayBuffer of Diffusion Policy (Chi et al., 2023): zarr v2, ``data/<key>`` (N, ...) arrays and
``meta/episode_ends`` (E,), cumulative."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from robolearn_data.formats.transfer import ImportFormatError
from robolearn_data.schema import Schema, SchemaError, Stream, UserError
from robolearn_data.storage import DatasetError
from robolearn_data.writer import DatasetWriter, sync_tree

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


def import_diffusion_policy(
    source: Path, target: Path, *, rate_hz: float = 10.0, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Copy every episode of ``source`` to a new dataset ``target``, bit for bit and under the same names.

    ``target`` appears when everything is copied. At most one episode is in memory.

    Args:
        rate_hz: control rate, which the source does not record.
        progress: called with (steps done, steps in all) after each episode.

    Returns:
        Episodes and steps.

    Raises:
        ImportFormatError: arrays missing or of unequal length, ends that do not increase, an unknown compressor.
        SchemaError: NaN or infinity, or an array that is not numeric.
        DatasetError: ``target`` exists.
    """
    if target.exists():
        raise DatasetError(f"{target} exists; choose another path")
    arrays, ends = _open(source)
    schema = Schema(rate_hz, _streams(arrays))
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.import")
    metadata = {"source": {"format": "diffusion_policy", "name": source.name}}
    small = dict.fromkeys(schema.of_kind("image"), "zstd-5")
    try:
        with DatasetWriter.create(unfinished, schema, metadata=metadata, compression=small, durable=False) as writer:
            start = 0
            for number, end in enumerate(ends.tolist()):
                writer.extend({name: _read(source, name, array, start, end) for name, array in arrays.items()})
                writer.save_episode({"source_episode": number})
                start = end
                if progress:
                    progress(end, int(ends[-1]))
        sync_tree(unfinished)
        if target.exists():
            raise DatasetError(f"{target} appeared meanwhile; choose another path")
        os.rename(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(ends), int(ends[-1])


def _open(source: Path) -> tuple[dict[str, zarr.Array], np.ndarray]:
    if not source.exists():
        raise ImportFormatError(f"no such file or folder: {source}; check the path")
    try:
        group = zarr.open_group(str(source), mode="r", zarr_format=2)
    except (FileNotFoundError, NotADirectoryError, KeyError, ValueError) as error:
        raise ImportFormatError(
            f"{source} is not a zarr v2 folder; --format diffusion_policy takes a ReplayBuffer folder (replay.zarr)"
        ) from error
    try:
        arrays = {name: _array(group, f"data/{name}") for name in sorted(_group(group, "data").array_keys())}
        ends_array = _array(group, "meta/episode_ends")
        ends = np.asarray(ends_array[:])
    except (ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, UserError | PermissionError):
            raise
        raise ImportFormatError(f"{source} cannot be read: {_line(error)}") from error
    if not arrays:
        raise ImportFormatError(f"{source} has no arrays under data/")
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends) or np.any(np.diff(ends, prepend=0) <= 0):
        raise ImportFormatError(f"meta/episode_ends of {source} must be whole numbers that increase from above 0")
    for name, array in arrays.items():
        if array.shape[:1] != (ends[-1],):
            raise ImportFormatError(
                f"data/{name} of {source} has shape {array.shape}, but episode_ends needs {ends[-1]} rows; repair it"
            )
    return arrays, ends.astype(np.int64)


def _group(root: zarr.Group, name: str) -> zarr.Group:
    found = root.get(name)
    if not isinstance(found, zarr.Group):
        raise ImportFormatError(f"{root.store_path} has no group {name}; it is not a ReplayBuffer")
    return found


def _array(root: zarr.Group, name: str) -> zarr.Array:
    found = root.get(name)
    if not isinstance(found, zarr.Array):
        raise ImportFormatError(f"{root.store_path} has no array {name}; it is not a ReplayBuffer")
    return found


def _streams(arrays: dict[str, zarr.Array]) -> dict[str, Stream]:
    found = {name: (array.shape[1:], str(array.dtype.newbyteorder("="))) for name, array in arrays.items()}
    if found == {name: (stream.shape, stream.dtype) for name, stream in _PUSHT.items()}:
        return dict(_PUSHT)
    return {name: _stream(name, shape, dtype) for name, (shape, dtype) in found.items()}


def _stream(name: str, shape: tuple[int, ...], dtype: str) -> Stream:
    kind = "action" if name == "action" else "image" if len(shape) == 3 and shape[-1] in (1, 3, 4) else "state"
    try:
        return Stream(shape, dtype, kind)
    except SchemaError as error:
        raise ImportFormatError(f"data/{name}: {error}") from None


def _read(source: Path, name: str, array: zarr.Array, start: int, end: int) -> Any:
    try:
        return array[start:end]
    except (ValueError, RuntimeError) as error:
        raise ImportFormatError(f"{source}: data/{name} cannot be decoded near row {start}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
