"""The HDF5 file of robomimic (Mandlekar et al., 2021) and robosuite: ``data/demo_<i>/{obs/<key>, actions, dones,
rewards, states}``, ``data.attrs["env_args"]`` (JSON), ``mask/<split>`` (names of demos)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.formats import OnBroken, OnLoss, Progress, hdf5
from robolearn_data.formats.names import known_stream
from robolearn_data.formats.transfer import (
    ExportFormatError,
    Faults,
    ImportFormatError,
    SourceEpisode,
    appearing,
    import_episodes,
    left_out,
    missing,
    stream_name,
)
from robolearn_data.schema import Kind, Schema, SchemaError, Stream
from robolearn_data.storage import TICK

_RATE_HZ = 20.0
_LONG_TEXT = 1000
"""Longer attributes of a demo (``model_file``, the scene's XML of 100 kB) are not kept in an episode's information."""
_UNKNOWN_ENVIRONMENT = {"env_name": "", "type": 2, "env_kwargs": {}}
"""robomimic trains with this; its rollouts need the ``env_args`` of a real environment. 2 is its EnvType.GYM_TYPE."""


@dataclass(frozen=True)
class _Column:
    """One array of a demo."""

    array: Any
    """h5py.Dataset (T, ...)."""
    kind: Kind | None
    """None where the name and shape decide."""

    @property
    def form(self) -> tuple[tuple[int, ...], str]:
        return self.array.shape[1:], str(self.array.dtype.newbyteorder("="))


def import_robomimic(
    source: Path,
    target: str | Path,
    *,
    rate_hz: float | None = None,
    on_broken: OnBroken | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Copy every demo of the file ``source`` to a new dataset ``target``, value for value, in the order of numbers.

    ``obs/<key>`` become streams, ``actions`` the stream ``action``, and the arrays beside them (``rewards``, ``dones``,
    ``states``, ...) streams of kind info. ``next_obs`` is dropped: it repeats ``obs`` one step later. The metadata
    under ``source`` keep ``env_args``, the masks, and notes about what was left out.

    Args:
        rate_hz: control rate; by default ``control_freq`` of ``env_args``, or 20, robosuite's.
        on_broken: called with one line for each broken demo, which is left out. Without it they are an error.
        progress: called with (steps done, steps in all) after each demo.

    Returns:
        Episodes and steps.

    Raises:
        ImportFormatError: not such a file, damaged, demos that differ in their arrays, links, NaN.
        DatasetError: ``target`` exists.
    """
    with hdf5.open_hdf5(source) as file:
        data = hdf5.subgroup(file, "data")
        notes: list[str] = []
        attributes = hdf5.attributes(data)
        origin: dict[str, Any] = {"format": "robomimic", "name": source.name}
        if "env_args" in attributes:
            origin["env_args"] = _json(attributes.pop("env_args"))
        attributes.pop("total", None)
        origin["attributes"] = attributes
        origin["masks"] = _masks(file)
        if rate_hz is None:
            rate_hz = _control_rate(origin.get("env_args"))

        schema: Schema | None = None
        episodes = []
        faults = Faults(on_broken)
        for name, demo in _demos(data):
            with faults.caught(), hdf5.damage(hdf5.place(demo)):
                columns = _columns(demo)
                steps = _steps(demo, columns)
                streams = {key: _stream(key, column) for key, column in columns.items()}
                schema = schema or Schema(rate_hz, streams)
                if streams != schema.streams:
                    differ = ", ".join(_differences(schema.streams, streams))
                    raise ImportFormatError(f"{hdf5.place(demo)} differs from the first demo in {differ}")
                info = {"source_episode": name, **_info(demo, notes)}
                episodes.append(SourceEpisode(hdf5.place(demo), steps, info, _reader(columns)))
                if "next_obs" in demo:
                    notes.append("next_obs is not kept: it repeats obs one step later")
                notes += [f"group {key} of the demos is not kept" for key in _other_groups(demo)]
        if schema is None:
            faults.check(0)
            raise ImportFormatError(f"{source} has no demos under /data; it is not a robomimic file")
        if notes:
            origin["notes"] = list(dict.fromkeys(notes))
        total = sum(episode.steps for episode in episodes)
        return import_episodes(target, schema, {"source": origin}, episodes, faults, total=total, progress=progress)


def export_robomimic(
    source: str | Path, target: Path, *, on_loss: OnLoss | None = None, progress: Progress | None = None
) -> tuple[int, int]:
    """Write the dataset ``source`` as one HDF5 file that robomimic's SequenceDataset reads.

    States and images become ``obs/<stream>`` (images uint8, gzip), ``action`` becomes ``actions``, streams of kind info
    lie beside it. Without such streams ``rewards`` are 0 and ``dones`` 1 at the last step. ``next_obs`` is not written
    (set robomimic's ``train.hdf5_load_next_obs`` to false). ``env_args`` and masks are those of an imported file; rows
    of dropped frames hold their stand-ins; texts, numbers and bools of an episode's info become attributes of its demo;
    times have no place in this format.

    Args:
        on_loss: called with one line where the dataset has what this format cannot hold.
        progress: called with (steps done, steps in all) after each episode.

    Returns:
        Episodes and steps.

    Raises:
        DatasetError: ``source`` is not a dataset or damaged, or ``target`` exists.
        ExportFormatError: no episodes, or no stream ``action``.
        SchemaError: images that are not whole numbers from 0 to 255.
    """
    try:
        import h5py
    except ImportError:
        raise missing("h5py") from None
    dataset = Dataset.open(source)
    if not dataset.episodes:
        raise ExportFormatError(f"{source} has no episodes; there is nothing to export")
    if "action" not in dataset.schema.streams:
        streams = ", ".join(dataset.schema.streams)
        raise ExportFormatError(f"{source} has no stream 'action', which robomimic needs; it has {streams}")
    origin = dataset.metadata.get("source")
    origin = origin if isinstance(origin, dict) else {}
    names: list[str] = []
    kept: set[str] = set()
    with appearing(target) as unfinished, h5py.File(unfinished, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = dataset.steps
        data.attrs["env_args"] = json.dumps(origin.get("env_args") or _UNKNOWN_ENVIRONMENT)
        for number in range(dataset.episodes):
            rows = dataset.rows(number)
            demo = data.create_group(f"demo_{number}")
            info = dataset.episode_info(number)
            for key, value in info.items():
                if _fits(key, value):
                    demo.attrs[key] = value
                    kept.add(key)
            demo.attrs["num_samples"] = rows.stop - rows.start
            demo.create_group("obs")
            for name, stream in dataset.schema.streams.items():
                _write(dataset, name, stream, rows, demo)
            if "rewards" not in demo:
                demo["rewards"] = np.zeros(rows.stop - rows.start)
            if "dones" not in demo:
                demo["dones"] = (np.arange(rows.start, rows.stop) == rows.stop - 1).astype("int64")
            names.append(str(info.get("source_episode", "")))
            if progress:
                progress(rows.stop, dataset.steps)
        masks = origin.get("masks") or {}
        for split, demos in masks.items() if len(set(names)) == len(names) else ():
            there = [f"demo_{names.index(demo)}" for demo in demos if demo in names]
            file[f"mask/{split}"] = np.array(there, dtype="S")
    lost = left_out(dataset, info=kept)
    if lost and on_loss:
        on_loss(lost)
    return dataset.episodes, dataset.steps


def _fits(key: str, value: Any) -> bool:
    """Whether an entry of an episode's info can be an attribute. HDF5 holds 64 kB of them."""
    if isinstance(value, str):
        return 0 < len(value) <= _LONG_TEXT and "\0" not in key + value and key not in ("", ".", "uuid")
    return isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63 and key not in ("", "."))


def _write(dataset: Dataset, name: str, stream: Stream, rows: slice, demo: Any) -> None:
    image = stream.kind == "image"
    beside = stream.kind in ("info", "action") and name not in ("actions", "obs", "next_obs")
    where = "actions" if name == "action" else name if beside else f"obs/{name}"
    how: dict[str, Any] = {"chunks": (1, *stream.shape), "compression": "gzip"} if image else {}
    shape = (rows.stop - rows.start, *stream.shape)
    array = demo.create_dataset(where, shape, "uint8" if image else stream.dtype, **how)
    for start, block in dataset.blocks(name, rows):
        pixels = block.astype("uint8") if image else block
        if image and not np.array_equal(pixels, block):
            raise SchemaError(f"stream {name!r} cannot be exported as uint8 images: values would change")
        array[start - rows.start : start - rows.start + len(block)] = pixels


def _demos(data: Any) -> list[tuple[str, Any]]:
    """Names and groups of the demos by number: demo_2 comes before demo_10."""
    found = hdf5.members(data)
    for name, demo in found.items():
        if not re.fullmatch(r"demo_[0-9]{1,12}", name) or not hasattr(demo, "keys"):
            raise ImportFormatError(f"{hdf5.place(data, name)} is not a demo; valid are groups demo_0, demo_1, ...")
    return sorted(found.items(), key=lambda item: int(item[0].removeprefix("demo_")))


def _columns(demo: Any) -> dict[str, _Column]:
    beside = hdf5.arrays(demo)
    if "actions" not in beside:
        raise ImportFormatError(f"{hdf5.place(demo)} has no array 'actions'; it is not a robomimic file")
    columns = {"action": _Column(beside.pop("actions"), "action")}
    observed = hdf5.arrays(hdf5.subgroup(demo, "obs")) if "obs" in demo else {}  # robosuite's own files have none
    groups: tuple[tuple[dict[str, Any], Kind | None], ...] = ((beside, "info"), (observed, None))
    for arrays, kind in groups:
        for key, array in arrays.items():
            name = stream_name(key)
            if name in columns or name == TICK:
                name = f"obs_{name}"
            if name in columns:
                raise ImportFormatError(f"{hdf5.place(array)}: two arrays would get the name {name!r}; rename one")
            columns[name] = _Column(array, kind)
    return columns


def _steps(demo: Any, columns: Mapping[str, _Column]) -> int:
    steps = len(columns["action"].array)
    for column in columns.values():
        if len(column.array) != steps:
            raise ImportFormatError(f"{hdf5.place(column.array)} has {len(column.array)} rows, actions have {steps}")
    said = hdf5.attributes(demo).get("num_samples", steps)
    if said != steps or not steps:
        raise ImportFormatError(f"{hdf5.place(demo)} has {steps} actions but num_samples {said}; repair or remove it")
    return steps


def _stream(name: str, column: _Column) -> Stream:
    try:
        return known_stream(name, *column.form, kind=column.kind)
    except SchemaError as error:
        raise ImportFormatError(f"{hdf5.place(column.array)}: {error}") from None


def _reader(columns: Mapping[str, _Column]) -> Any:
    return lambda start, stop: {name: hdf5.read(column.array, start, stop) for name, column in columns.items()}


def _differences(one: Mapping[str, Stream], other: Mapping[str, Stream]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _info(demo: Any, notes: list[str]) -> dict[str, Any]:
    info = hdf5.attributes(demo)
    info.pop("num_samples", None)
    for name in [name for name, value in info.items() if isinstance(value, str) and len(value) > _LONG_TEXT]:
        del info[name]
        notes.append(f"attribute {name} of the demos is not kept: it is longer than {_LONG_TEXT} characters")
    return info


def _other_groups(demo: Any) -> list[str]:
    members = hdf5.members(demo)
    return [name for name, item in members.items() if hasattr(item, "keys") and name not in ("obs", "next_obs")]


def _masks(file: Any) -> dict[str, list[str]]:
    if "mask" not in file:
        return {}
    masks = {}
    for name, array in hdf5.members(hdf5.subgroup(file, "mask")).items():
        if hasattr(array, "keys") or array.ndim != 1 or array.dtype.kind not in "SO" or array.external:
            raise ImportFormatError(f"{hdf5.place(array)} is not a list of demo names")
        values = hdf5.read(array, 0, len(array)).tolist()
        masks[name] = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]
    return masks


def _json(text: Any) -> Any:
    """The value of JSON text; the text itself where it is not strict JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, TypeError, RecursionError):
        return text


def _control_rate(environment: Any) -> float:
    try:
        rate = float(environment["env_kwargs"]["control_freq"])
    except (KeyError, TypeError, ValueError):
        return _RATE_HZ
    return rate if np.isfinite(rate) and rate > 0 else _RATE_HZ
