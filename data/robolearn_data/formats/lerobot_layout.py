"""How LeRobot datasets lie on disk: file names, ``meta/info.json``, and our stream names for their feature keys.

Version 2.1 (LeRobot 0.3) has one parquet file and one mp4 per episode, version 3.0 (LeRobot 0.4 to 0.6) many episodes
in a file. Source: huggingface/lerobot v0.3.3 and v0.6.1, src/lerobot/datasets. What we know and LeRobot does not is
kept in files under ``meta`` that LeRobot does not look at: ``robolearn.json`` and ``robolearn.parquet``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.formats.transfer import ExportFormatError, ImportFormatError, one_line, stream_name
from robolearn_data.schema import Schema, Stream

INFO = "meta/info.json"
STATS = "meta/stats.json"
OURS = "meta/robolearn.json"
"""{"format": 1, "schema", "metadata", "keys": stream -> feature key, "episodes": what was noted about each}"""
OUR_ROWS = "meta/robolearn.parquet"
"""A row for each control step; columns "time/tick", "time/<stream>", "received/<stream>",
"valid/<stream>" as in our own datasets."""
OUR_FORMAT = 1

CHUNKS_SIZE = 1000
"""Files in one folder."""
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
"""Size from which version 3.0 begins another file."""

DATA_PATH = {
    "v2.1": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATH = {
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
EPISODES = {"v2.1": "meta/episodes.jsonl", "v3.0": "meta/episodes/chunk-000/file-000.parquet"}
TASKS = {"v2.1": "meta/tasks.jsonl", "v3.0": "meta/tasks.parquet"}
EPISODES_STATS = "meta/episodes_stats.jsonl"
"""Version 2.1 alone; version 3.0 has these columns in ``EPISODES``."""

INDICES: dict[str, str] = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Columns that every dataset has, one number each."""

_DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
_ROW_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Feature:
    """One entry of ``features`` in info.json."""

    key: str
    dtype: str
    """A numpy dtype, "video", "image" (files within the parquet files), "string" or "language"."""
    shape: tuple[int, ...]
    """Of one sample; (height, width, channels) for video and image."""
    names: tuple[str, ...] = ()

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("video", "image")

    @property
    def is_numeric(self) -> bool:
        return not self.is_camera and self.dtype not in ("string", "language")


@dataclass(frozen=True)
class Info:
    """What ``meta/info.json`` says."""

    root: Path
    version: str
    """"v2.1" or "v3.0"."""
    fps: float
    features: Mapping[str, Feature]
    data_path: str
    video_path: str
    chunks_size: int
    total_episodes: int
    total_frames: int
    robot_type: str | None


def read_info(root: Path) -> Info:
    """Read and check ``meta/info.json``.

    Raises:
        ImportFormatError: not there, not JSON, another version, or values that no dataset can have.
    """
    value = read_json(root, INFO)
    stated = str(value.get("codebase_version"))
    version = {"v2": "v2.1", "v3": "v3.0"}.get(stated[:2])
    if version is None:
        raise _wrong(root, f"codebase_version {stated!r} is not supported; valid: v2.0, v2.1, v3.0")
    fps = value.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise _wrong(root, f"fps is {fps!r}; it must be a positive number")
    features = value.get("features")
    if not isinstance(features, dict) or not features:
        raise _wrong(root, "has no features")
    counts: dict[str, Any] = {name: value.get(name) for name in ("total_episodes", "total_frames")}
    counts["chunks_size"] = value.get("chunks_size", CHUNKS_SIZE)
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 2**40:
            raise _wrong(root, f"{name} is {count!r}; it must be a whole number above 0")
    return Info(
        root,
        version,
        float(fps),
        {str(key): _feature(root, str(key), feature) for key, feature in features.items()},
        str(value.get("data_path") or DATA_PATH[version]),
        str(value.get("video_path") or VIDEO_PATH[version]),
        counts["chunks_size"],
        counts["total_episodes"],
        counts["total_frames"],
        value.get("robot_type") if isinstance(value.get("robot_type"), str) else None,
    )


def _feature(root: Path, key: str, value: Any) -> Feature:
    if not _is_key(key):
        raise _wrong(root, f"feature key {key!r} is not valid; it may not hold '/', '\\' or control characters")
    if not isinstance(value, dict) or not isinstance(value.get("shape"), list | None):
        raise _wrong(root, f"feature {key!r} is not {{dtype, shape, names}}")
    dtype, shape = str(value.get("dtype")), tuple(value.get("shape") or (1,))
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in shape):
        raise _wrong(root, f"feature {key!r} has shape {list(shape)}; it must hold whole numbers above 0")
    names = _names(value.get("names"))
    if dtype in ("video", "image"):
        if len(shape) == 3 and _channels_first(shape, names):
            shape = (shape[1], shape[2], shape[0])
        if len(shape) != 3 or shape[2] not in (1, 3):
            raise _wrong(root, f"camera {key!r} has shape {list(shape)}; valid: height, width and 1 or 3 channels")
        about = value.get("info") or value.get("video_info") or {}
        if isinstance(about, dict) and (about.get("is_depth_map") or about.get("video.is_depth_map")):
            raise _wrong(root, f"camera {key!r} is a depth map, which cannot be imported; remove the feature")
        names, width = (), 1
    elif dtype in ("string", "language"):
        names, width = (), 1
    else:
        if dtype not in _DTYPES:
            raise _wrong(
                root, f"feature {key!r} has dtype {dtype!r}; valid: {', '.join(_DTYPES)}, image, video, string"
            )
        names, width = names if len(names) == shape[-1] else (), np.dtype(dtype).itemsize
    if math.prod(shape) * width > _ROW_BYTES:
        raise _wrong(root, f"feature {key!r} has shape {list(shape)}, too large for one sample; info.json is damaged")
    return Feature(key, dtype, shape, names)


def _channels_first(shape: tuple[int, ...], names: tuple[str, ...]) -> bool:
    return names[:1] in (("channel",), ("channels",)) or (shape[0] == 3 and shape[2] not in (1, 3))


def _names(value: Any) -> tuple[str, ...]:
    """Component names: a list, or a dict of one list as in {"motors": [...]}; empty where there are none."""
    if isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    return tuple(map(str, value)) if isinstance(value, list) and all(isinstance(n, str) for n in value) else ()


def _is_key(key: str) -> bool:
    """Whether a feature key stays within its folder when it becomes part of a path."""
    return key not in ("", ".", "..") and not any(c in "/\\" or not c.isprintable() for c in key)


def fill(template: str, **values: int | str) -> str:
    """Fill in ``{name}`` and ``{name:06d}``. Unlike str.format: nothing else, however the file was made.

    Raises:
        ImportFormatError: another field, or braces left over.
    """

    def put(match: re.Match[str]) -> str:
        name, digits = match.groups()
        if name not in values:
            raise ImportFormatError(f"path {template!r} in {INFO} has the field {name!r}; valid: {', '.join(values)}")
        value = values[name]
        return value if isinstance(value, str) else f"{value:0{int(digits or 0)}d}"

    path = re.sub(r"\{(\w+)(?::0?(\d{1,2})d)?\}", put, template)
    if "{" in path or "}" in path:
        raise ImportFormatError(f"path {template!r} in {INFO} is not valid; it takes fields such as {{file_index:03d}}")
    return path


def find(root: Path, name: str) -> Path:
    """The regular file ``name`` within ``root``.

    Raises:
        ImportFormatError: missing, no regular file, or outside (also through a link; the blobs of a Hub cache are in).
    """
    path = root / name
    real = path.resolve()
    home = root.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if Path(name).is_absolute() or ".." in Path(name).parts or not any(real.is_relative_to(h) for h in homes):
        raise ImportFormatError(f"{name} leads out of {root}; only files within the dataset are read")
    if not path.is_file():
        raise ImportFormatError(f"{path} is missing" if not path.exists() else f"{path} is not a regular file")
    return path


def read_json(root: Path, name: str) -> dict[str, Any]:
    """A JSON object. Raises ImportFormatError when it is missing or something else."""
    path = find(root, name)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ImportFormatError(f"{path} is not valid JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise ImportFormatError(f"{path} must be a JSON object")
    return value


def read_jsonl(root: Path, name: str) -> list[dict[str, Any]]:
    """A JSON object from each line. Raises ImportFormatError when the file is missing or something else."""
    path = find(root, name)
    values = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ImportFormatError(f"{path}, line {number}, is not valid JSON: {one_line(error)}") from None
            if not isinstance(values[-1], dict):
                raise ImportFormatError(f"{path}, line {number}, must be a JSON object")
    return values


def streams_of(info: Info, *, with_timestamp: bool) -> dict[str, tuple[str, Stream]]:
    """Stream name -> (feature key, stream) of every camera and numeric feature.

    Args:
        with_timestamp: keep the timestamps too, because they are not frame_index / fps.
    """
    found: dict[str, tuple[str, Stream]] = {}
    for key, feature in info.features.items():
        if key in INDICES and not (key == "timestamp" and with_timestamp):
            continue
        if feature.is_camera:
            stream = Stream(feature.shape, "uint8", "image")
        elif key == "timestamp":
            stream = Stream((), feature.dtype, "info", unit="s")
        elif feature.is_numeric:
            kind = "action" if key == "action" else "state" if key.startswith("observation.") else "info"
            stream = Stream(feature.shape, feature.dtype, kind, names=feature.names)
        else:
            continue
        name = base = stream_name(re.sub(r"^observation\.(images\.)?", "", key)) or "observation"
        number = 2
        while name in found or name == "tick":
            name, number = f"{base}_{number}", number + 1
        found[name] = (key, stream)
    return found


def keys_of(schema: Schema, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Stream name -> feature key for an export: the key it was imported from, else LeRobot's custom.

    "observation.state" is the stream "state", or the only one of its kind; cameras are "observation.images.<name>".
    Images without three channels are written as numbers, and therefore "observation.<name>": LeRobot takes every key
    with "image" in it for a camera.
    Policies of LeRobot learn "action" and read what begins with "observation.", so the rest becomes "info.<name>".

    Raises:
        ExportFormatError: two streams would have the same key.
    """
    source = metadata.get("source")
    known = source.get("keys") if isinstance(source, dict) and source.get("format") == "lerobot" else None
    keys: dict[str, str] = {}
    states = schema.of_kind("state")
    for name, stream in schema.streams.items():
        key = known.get(name) if isinstance(known, dict) else None
        if not isinstance(key, str) or not _is_key(key) or key in INDICES or key in keys.values():
            if name == "action" and stream.kind == "action":
                key = "action"
            elif stream.kind == "state":
                key = "observation.state" if len(states) == 1 else f"observation.{name}"
            elif stream.kind == "image":
                key = f"observation.images.{name}" if stream.shape[2] == 3 else f"observation.{name}"
            else:
                key = f"info.{name}"
        keys[name] = key
    if len(set(keys.values())) < len(keys):
        raise ExportFormatError(f"two streams would have the same feature key: {keys}")
    return keys


def _wrong(root: Path, fault: str) -> ImportFormatError:
    return ImportFormatError(f"{root / INFO}: {fault}")
