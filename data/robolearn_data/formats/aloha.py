"""The HDF5 files of ALOHA and ACT (Zhao et al., 2023): ``episode_<i>.hdf5``, each with ``observations/{qpos, qvel,
effort}``, ``observations/images/<camera>`` and ``action``."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.formats import OnBroken, Progress, hdf5
from robolearn_data.formats.transfer import (
    Faults,
    ImportFormatError,
    SourceEpisode,
    check_size,
    import_episodes,
    missing,
    one_line,
    stream_name,
)
from robolearn_data.schema import Kind, Schema, SchemaError, Stream

_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS)
"""The 14 components of ALOHA's two ViperX arms. Grippers are normalised to 0 (closed) .. 1 (open)."""


def import_aloha(
    source: Path,
    target: str | Path,
    *,
    rate_hz: float = 50.0,
    bgr: bool = False,
    on_broken: OnBroken | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Copy the episodes of a folder (or one file) to a new dataset ``target``, ordered by number.

    Streams are ``qpos``, ``qvel``, ``effort`` (where present), ``action``, ``base_action`` (where present, of kind
    info) and one image stream for each camera. JPEG-compressed images are decoded.

    Args:
        rate_hz: control rate; ALOHA records at 50.
        bgr: the images have blue first; store them with red first. The first ALOHA recorder wrote JPEGs that way.
        on_broken: called with one line for each broken file, which is left out. Without it they are an error.
        progress: called with (steps done, steps in all) after each episode.

    Returns:
        Episodes and steps.

    Raises:
        ImportFormatError: no such files, damaged, arrays missing or of unequal length, episodes that differ, NaN.
        DatasetError: ``target`` exists.
    """
    files = _files(source)
    faults = Faults(on_broken)
    streams: dict[str, Stream] = {}
    origin: dict[str, Any] = {"format": "aloha", "name": source.name}
    episodes: list[SourceEpisode] = []

    def read(path: Path, start: int, stop: int) -> dict[str, np.ndarray]:
        with hdf5.open_hdf5(path) as file:
            return {name: _read(array, streams[name], start, stop, bgr=bgr) for name, array in _arrays(file).items()}

    for path in files:
        with faults.caught(), hdf5.open_hdf5(path) as file:
            found, steps = _streams(file), _steps(file)
            if not episodes:
                streams = found
                origin["attributes"] = hdf5.attributes(file)
            if episodes and found != streams:
                differ = sorted(k for k in found.keys() | streams.keys() if found.get(k) != streams.get(k))
                raise ImportFormatError(
                    f"{path} differs from {episodes[0].info['source_episode']} in {', '.join(differ)}"
                )
            episodes.append(SourceEpisode(str(path), steps, {"source_episode": path.name}, partial(read, path)))
    if not episodes:
        faults.check(0)
    total = sum(episode.steps for episode in episodes)
    schema = Schema(rate_hz, streams)
    return import_episodes(target, schema, {"source": origin}, episodes, faults, total=total, progress=progress)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ImportFormatError(f"no such file or folder: {source}; check the path")
    numbered = {}
    for path in source.iterdir():
        match = re.fullmatch(r"episode_([0-9]{1,12})\.hdf5", path.name)
        if match:
            numbered[int(match[1]), path.name] = path
    if not numbered:
        raise ImportFormatError(f"{source} has no files episode_0.hdf5, episode_1.hdf5, ...; ALOHA datasets do")
    return [numbered[key] for key in sorted(numbered)]


def _arrays(file: Any) -> dict[str, Any]:
    """Stream -> h5py.Dataset (T, ...)."""
    observations = hdf5.subgroup(file, "observations")
    states, beside = hdf5.arrays(observations), hdf5.arrays(file)
    cameras = hdf5.arrays(hdf5.subgroup(observations, "images")) if "images" in observations else {}
    for wanted, where in (("action", beside), ("qpos", states)):
        if wanted not in where:
            raise ImportFormatError(f"{hdf5.place(file)} has no array {wanted!r}; it is not an ALOHA episode")
    found = {name: states[name] for name in ("qpos", "qvel", "effort") if name in states}
    found |= {name: beside[name] for name in ("action", "base_action") if name in beside}
    for key, array in cameras.items():
        name = stream_name(key)
        if name in found:
            raise ImportFormatError(f"{hdf5.place(array)}: two arrays would get the name {name!r}; rename one")
        found[name] = array
    return found


def _steps(file: Any) -> int:
    arrays = _arrays(file)
    steps = len(arrays["action"])
    for array in arrays.values():
        if len(array) != steps or not steps:
            raise ImportFormatError(f"{hdf5.place(array)} has {len(array)} rows, /action has {steps}")
    return steps


def _streams(file: Any) -> dict[str, Stream]:
    return {name: _stream(name, array) for name, array in _arrays(file).items()}


def _stream(name: str, array: Any) -> Stream:
    shape, dtype = array.shape[1:], str(array.dtype.newbyteorder("="))
    kinds: dict[str, Kind] = {"qpos": "state", "qvel": "state", "effort": "state", "base_action": "info"}
    try:
        if array.parent.name.endswith("/images"):
            if len(shape) == 1 and dtype == "uint8" and len(array):  # rows of JPEG bytes, padded with zeros
                shape = _jpeg_shape(array)
            return Stream(shape, dtype, "image")
        names = _NAMES if shape == (14,) else ()
        unit = {"qpos": "rad", "qvel": "rad/s", "action": "rad"}.get(name, "") if names else ""
        if name in ("qpos", "action") and names:
            unit = ",".join("" if part.endswith("gripper") else unit for part in names)
        return Stream(shape, dtype, kinds.get(name, "action"), names=names, unit=unit)
    except SchemaError as error:
        raise ImportFormatError(f"{hdf5.place(array)}: {error}") from None


def _read(array: Any, stream: Stream, start: int, stop: int, *, bgr: bool) -> np.ndarray:
    rows = hdf5.read(array, start, stop)
    if stream.kind != "image":
        return rows
    if rows.ndim == 2:
        rows = _decode(array, rows, stream.shape, start)
    return rows[..., ::-1] if bgr else rows


def _decode(array: Any, rows: np.ndarray, shape: tuple[int, ...], start: int) -> np.ndarray:
    """JPEG byte rows (T, P) -> pixels (T, H, W, 3).

    The file's ``compress_len`` is not used: its rows are in the recorder's order of cameras, which is not stored.
    """
    try:
        import imagecodecs
    except ImportError:
        raise missing("imagecodecs") from None
    out = np.empty((len(rows), *shape), np.uint8)
    for i, row in enumerate(rows):
        data = row.tobytes().rstrip(b"\0")
        try:
            if not data.endswith(b"\xff\xd9"):  # the decoder would fill the rest with grey
                raise ValueError("the JPEG is cut short")
            imagecodecs.jpeg8_decode(data, outcolorspace="RGB", out=out[i])
        except (ValueError, RuntimeError) as error:
            place = hdf5.place(array)
            raise ImportFormatError(f"{place} cannot be decoded at row {start + i}: {one_line(error)}") from None
    return out


def _jpeg_shape(array: Any) -> tuple[int, int, int]:
    """(H, W, 3) of the first JPEG, from its frame header (ITU T.81, B.2.2)."""
    data = hdf5.read(array, 0, 1)[0].tobytes()
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            check_size(hdf5.place(array), (1, height, width, 3), np.dtype("uint8"), len(data))
            return height, width, 3
        at += 2 + length
    raise ImportFormatError(f"{hdf5.place(array)} holds neither images (T, H, W, 3) nor rows of JPEG bytes")
