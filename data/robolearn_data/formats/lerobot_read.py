"""Import of LeRobot datasets, versions 2.0, 2.1 and 3.0.

A picture belongs to a row by time, as in LeRobot: the frame nearest to the row's timestamp. Where a recording's
timestamps are not frame_index / fps (they are capture times then), picture i belongs to row i; the timestamps are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robolearn_data.copying import new_dataset
from robolearn_data.formats import OnBroken, Progress
from robolearn_data.formats import lerobot_layout as layout
from robolearn_data.formats.lerobot_episodes import Episode, read_episodes, read_tasks
from robolearn_data.formats.lerobot_rows import RowReader
from robolearn_data.formats.lerobot_video import VideoReader, decode_picture, frame_count
from robolearn_data.formats.transfer import Faults, ImportFormatError, one_line
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.writer import DatasetWriter

TOLERANCE_S = 1e-4
"""LeRobot's own: how far timestamps may be from frame_index / fps."""

_PIECE_BYTES = 16 * 2**20


@dataclass
class _Source:
    """An opened LeRobot dataset."""

    info: layout.Info
    tasks: Mapping[int, str]
    episodes: list[Episode]
    rows: RowReader
    streams: dict[str, tuple[str, Stream]] = field(default_factory=dict)
    """Stream name -> (feature key, stream)."""
    videos: dict[str, VideoReader] = field(default_factory=dict)
    """Feature key -> the video read last."""
    ours: _Ours | None = None


@dataclass
class _Ours:
    """What an export of ours kept beside the dataset for this import."""

    schema: Schema
    metadata: dict[str, Any]
    infos: list[dict[str, Any]]
    columns: dict[str, np.ndarray]
    """"time/<stream>", "received/<stream>" and "valid/<stream>" -> (N,)."""


def import_lerobot(
    source: Path,
    target: str | Path,
    *,
    version: str | None = None,
    image_compression: str = "zstd-5",
    on_broken: OnBroken | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Copy every episode of the LeRobot dataset ``source`` to a new dataset ``target``, which appears when all is done.

    Numbers arrive bit for bit, pictures as they are decoded. "observation.state" becomes the stream "state",
    "observation.images.top" the stream "top"; the metadata keeps the original keys. Texts that features hold, and the
    task, are in the episode's info ("task_segments" where the task changes: [[first row, task], ...]). Where ``source``
    was exported from a dataset of ours, that dataset comes back, with its capture times, holes and notes.

    Args:
        version: "v2.1" or "v3.0" to refuse the other one; by default either.
        image_compression: see ``DatasetWriter.create``.
        on_broken: called with one line for every fault that was met; broken episodes are left out. Without it they
            are an error.
        progress: called with (steps done, steps in all).

    Returns:
        Episodes and steps.

    Raises:
        ImportFormatError: the source is broken; the message names the file and the episode.
        DatasetError: ``target`` exists.
    """
    faults = Faults(on_broken)
    opened = _open(source, version, on_broken)
    ours, info = opened.ours, opened.info
    origin: dict[str, Any] = {"format": "lerobot", "version": info.version, "name": source.name}
    origin |= {"robot_type": info.robot_type} if info.robot_type else {}
    origin |= {"keys": {name: key for name, (key, _) in opened.streams.items()}}
    metadata = ours.metadata if ours else {"source": origin}
    schema = ours.schema if ours else Schema(info.fps, {name: stream for name, (_, stream) in opened.streams.items()})
    total = sum(episode.length for episode in opened.episodes)
    compression = dict.fromkeys(schema.of_kind("image"), image_compression)
    with new_dataset(target, schema, metadata, compression) as writer:
        start = 0
        for episode in opened.episodes:
            done, whole = start, writer.episodes
            with faults.caught(), _place(f"episode {episode.number}"):
                for count in _copy(opened, episode, slice(start, start + episode.length), writer):
                    done += count
                    if progress:
                        progress(done, total)
            if writer.episodes == whole:
                writer.discard_episode()
            start += episode.length
        faults.check(writer.episodes)
    return writer.episodes, writer.steps


@contextmanager
def _place(place: str) -> Iterator[None]:
    """Put the place before the message of an ImportFormatError."""
    try:
        yield
    except ImportFormatError as error:
        raise ImportFormatError(f"{place}: {error}") from None


def _open(source: Path, version: str | None, on_broken: OnBroken | None) -> _Source:
    if not source.is_dir():
        raise ImportFormatError(
            f"no such folder: {source}; --format lerobot takes the folder that holds meta/info.json"
        )
    info = layout.read_info(source)
    if version not in (None, info.version):
        raise ImportFormatError(f"{source} has version {info.version}, not {version}; --format lerobot takes both")
    episodes = read_episodes(info)
    found = {"total_episodes": len(episodes), "total_frames": sum(episode.length for episode in episodes)}
    for name, count in found.items():
        stated = getattr(info, name)
        if stated != count:
            _complain(
                f"{source / layout.INFO}: {name} is {stated}, but {layout.EPISODES[info.version]} has {count}",
                on_broken,
            )
    opened = _Source(info, read_tasks(info), episodes, RowReader(info))
    opened.streams = layout.streams_of(info, with_timestamp=not _on_grid(opened))
    if not opened.streams:
        raise ImportFormatError(f"{source / layout.INFO}: no feature holds numbers or pictures")
    if (source / layout.OURS).exists():
        opened.ours = _read_ours(opened)
    return opened


def _complain(line: str, on_broken: OnBroken | None) -> None:
    if on_broken is None:
        raise ImportFormatError(line)
    on_broken(line)


def _on_grid(opened: _Source) -> bool:
    """Whether all timestamps are frame_index / fps; episodes that cannot be read do not count."""
    for episode in opened.episodes:
        try:
            stamps = np.concatenate([piece["timestamp"] for piece in opened.rows.episode(episode, ["timestamp"])])
        except ImportFormatError:
            continue
        if not _near_grid(stamps, np.arange(len(stamps)), opened.info.fps):
            return False
    return True


def _near_grid(stamps: np.ndarray, frames: np.ndarray, fps: float) -> bool:
    exact = frames / fps
    return bool(np.all((np.abs(stamps - exact) <= TOLERANCE_S) | (stamps == exact.astype(stamps.dtype))))


def _copy(opened: _Source, episode: Episode, place: slice, writer: DatasetWriter) -> Iterator[int]:
    """Write one episode, and yield the number of rows of each piece. ``place``: its rows in the whole dataset."""
    info = opened.info
    wanted = {key: info.features[key] for key, _ in opened.streams.values()}
    texts = [key for key, feature in info.features.items() if feature.dtype == "string"]
    columns = [key for key, feature in wanted.items() if feature.dtype != "video"] + texts
    starts = {key: _video_start(opened, episode, key) for key, feature in wanted.items() if feature.dtype == "video"}
    segments: dict[str, list[tuple[int, str]]] = {key: [] for key in ("task", *texts)}
    piece_rows = max(_PIECE_BYTES // max(sum(stream.size for _, stream in opened.streams.values()), 1), 1)
    row = 0
    for piece in opened.rows.episode(episode, list(dict.fromkeys([*columns, *layout.INDICES])), piece_rows):
        count = len(piece["frame_index"])
        _check_indices(piece, episode, row)
        unknown = set(np.unique(piece["task_index"]).tolist()) - set(opened.tasks)
        if unknown:
            raise ImportFormatError(f"{episode.data_path} has task_index {min(unknown)}, which meta/tasks lacks")
        _note(segments["task"], row, [opened.tasks[int(i)] for i in piece["task_index"]])
        for key in texts:
            _note(segments[key], row, piece[key])
        frames = row + np.arange(count)
        by_time = _near_grid(piece["timestamp"], frames, info.fps)
        instants = piece["timestamp"].astype(np.float64) if by_time else frames / info.fps
        block: dict[str, np.ndarray] = {}
        for name, (key, stream) in opened.streams.items():
            feature = wanted[key]
            if feature.dtype == "video":
                video = opened.videos[key]
                values = np.stack([video.at(starts[key] + t) for t in instants.tolist()])
            elif feature.dtype == "image":
                where = f"{episode.data_path}, {key}"
                values = np.stack([decode_picture(data, feature.shape, where) for data in piece[key]])
            else:
                values = piece[key]
            block[name] = values.reshape(count, *stream.shape)
        _write(opened, block, slice(place.start + row, place.start + row + count), episode, writer)
        row += count
        yield count
    writer.save_episode(_episode_info(opened, episode, segments))


def _check_indices(piece: Mapping[str, Any], episode: Episode, row: int) -> None:
    expected = row + np.arange(len(piece["frame_index"]))
    wrong = np.flatnonzero(piece["frame_index"] != expected)
    if len(wrong):
        found = piece["frame_index"][wrong[0]]
        raise ImportFormatError(
            f"{episode.data_path} has frame_index {found} in row {expected[wrong[0]]} of the episode; rows are lost"
        )


def _video_start(opened: _Source, episode: Episode, key: str) -> float:
    """Open the video of an episode unless it is open, and check that it lasts as long as the episode.

    Returns:
        The instant of the episode's first frame.
    """
    info = opened.info
    path = layout.find(info.root, episode.videos[key].name)
    start, stop = episode.videos[key].start_s, episode.videos[key].stop_s
    frames = frame_count(path) if stop is None else round((stop - start) * info.fps)
    by_number = any(name == "timestamp" for name, _ in opened.streams.values())
    if 0 < frames < episode.length or (by_number and frames != episode.length):
        raise ImportFormatError(f"{path} holds {frames} frames for the {episode.length} rows of the episode")
    if key not in opened.videos or opened.videos[key].path != path:
        # A quarter of a period: never another frame, yet room for containers that round times to milliseconds.
        opened.videos[key] = VideoReader(path, info.features[key].shape, tolerance_s=0.25 / info.fps)
    return start


def _note(segments: list[tuple[int, str]], row: int, texts: list[str]) -> None:
    """Extend the list of (first row, text) by the texts of consecutive rows."""
    for number, text in enumerate(texts, row):
        if not segments or segments[-1][1] != text:
            segments.append((number, text))


def _episode_info(opened: _Source, episode: Episode, segments: Mapping[str, list[tuple[int, str]]]) -> dict[str, Any]:
    if opened.ours:
        return opened.ours.infos[episode.number]
    found: dict[str, Any] = {"source_episode": episode.number, **episode.notes}
    for key, changes in segments.items():
        found[key] = changes[0][1]
        if len(changes) > 1:
            found[f"{key}_segments"] = [list(change) for change in changes]
    return found


def _write(opened: _Source, block: dict[str, np.ndarray], rows: slice, episode: Episode, writer: DatasetWriter) -> None:
    """Hand a piece of an episode to the writer, with its times and holes where an export of ours kept them."""
    columns = {name: values[rows] for name, values in opened.ours.columns.items()} if opened.ours else {}
    ticks = columns.pop("time/tick", None)
    captures = {name.removeprefix("time/"): v for name, v in columns.items() if name.startswith("time/")}
    received = {name.removeprefix("received/"): v for name, v in columns.items() if name.startswith("received/")}
    valid = {name.removeprefix("valid/"): v for name, v in columns.items() if name.startswith("valid/")}
    try:
        for start, stop, holes in _runs(len(next(iter(block.values()))), ticks, valid):
            part = slice(start, stop)
            known = ticks is not None and ticks[start] != 0
            if not holes:
                writer.extend(
                    {name: values[part] for name, values in block.items()},
                    capture_ns={name: v[part] for name, v in captures.items()},
                    received_ns={name: v[part] for name, v in received.items()},
                    time_ns=ticks[part] if ticks is not None and known else None,
                )
                continue
            for row in range(start, stop):
                writer.add(
                    {name: values[row] for name, values in block.items() if name not in holes},
                    capture_ns={name: int(v[row]) for name, v in captures.items()},
                    received_ns={name: int(v[row]) for name, v in received.items()},
                    time_ns=int(ticks[row]) if ticks is not None and known else None,
                    holes=holes,
                )
    except SchemaError as error:
        raise ImportFormatError(f"{episode.data_path}: {error}") from None


def _runs(rows: int, ticks: np.ndarray | None, valid: Mapping[str, np.ndarray]) -> Iterator[tuple[int, int, list[str]]]:
    """(start, stop, streams with a hole) of stretches in which holes, and whether the tick is known, stay the same."""
    flags = [*valid.values()] + ([ticks != 0] if ticks is not None else [])
    changes = [np.flatnonzero(np.diff(flag)) + 1 for flag in flags]
    edges = sorted({0, rows, *(int(row) for change in changes for row in change)})
    for start, stop in pairwise(edges):
        yield start, stop, [name for name, mask in valid.items() if not mask[start]]


def _read_ours(opened: _Source) -> _Ours:
    """What an export of ours kept, checked against the dataset, which others may have changed since."""
    root, steps = opened.info.root, sum(episode.length for episode in opened.episodes)
    value = layout.read_json(root, layout.OURS)
    try:
        if value["format"] != layout.OUR_FORMAT:
            raise ValueError(f"format {value['format']!r} is not known")
        schema = Schema.from_json(value["schema"])
        keys = {str(name): str(key) for name, key in value["keys"].items()}
        infos = [dict(info) for info in value["episodes"]]
        if len(infos) != len(opened.episodes) or set(keys) != set(schema.streams) or schema.rate_hz != opened.info.fps:
            raise ValueError("it is about another number of episodes, other streams or another rate")
        if set(keys.values()) != {key for key, _ in opened.streams.values()} or len(set(keys.values())) < len(keys):
            raise ValueError("its keys are not those of info.json")
        for name, stream in schema.streams.items():
            feature = opened.info.features[keys[name]]
            if math.prod(feature.shape) != stream.size:
                raise ValueError(f"stream {name!r} has shape {stream.shape}, feature {feature.key!r} {feature.shape}")
        columns = _our_columns(root, steps, schema)
        metadata = dict(value.get("metadata") or {})
    except (KeyError, TypeError, ValueError, AttributeError, OSError, pa.ArrowException) as error:
        raise ImportFormatError(
            f"{root / layout.OURS} does not fit the dataset: {one_line(error)}; remove it to import without it"
        ) from None
    opened.streams = {name: (keys[name], stream) for name, stream in schema.streams.items()}
    return _Ours(schema, metadata, infos, columns)


def _our_columns(root: Path, steps: int, schema: Schema) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    if not (root / layout.OUR_ROWS).exists():
        return {}
    table = pq.ParquetFile(layout.find(root, layout.OUR_ROWS)).read()
    known = {"time/tick", *(f"{kind}/{name}" for kind in ("time", "received", "valid") for name in schema.streams)}
    if table.num_rows != steps or not set(table.column_names) <= known:
        raise ValueError(f"{layout.OUR_ROWS} has {table.num_rows} rows for {steps}, or other columns")
    dtypes = {"time": np.int64, "received": np.int64, "valid": np.bool_}
    return {name: table[name].to_numpy().astype(dtypes[name.split("/")[0]]) for name in table.column_names}
