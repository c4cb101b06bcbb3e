"""The tables of episodes and tasks of a LeRobot dataset, which versions 2.1 and 3.0 keep in different files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robolearn_data.formats import lerobot_layout as layout
from robolearn_data.formats.transfer import ImportFormatError, one_line


@dataclass(frozen=True)
class VideoPart:
    """Where the frames of an episode are."""

    name: str
    """Path of the video within the dataset."""
    start_s: float = 0.0
    stop_s: float | None = None
    """None: the whole video."""


@dataclass(frozen=True)
class Episode:
    number: int
    length: int
    data_path: str
    """Path of the parquet file within the dataset."""
    videos: Mapping[str, VideoPart]
    """Feature key -> frames."""
    notes: Mapping[str, Any]
    """What else its table says: JSON values."""


def read_episodes(info: layout.Info) -> list[Episode]:
    """All episodes in order.

    Raises:
        ImportFormatError: a table is missing or damaged, a number in it is impossible, or a path is not valid.
    """
    if info.version == "v2.1":
        rows = layout.read_jsonl(info.root, layout.EPISODES["v2.1"])
        where = layout.EPISODES["v2.1"]
    else:
        names = sorted(str(p.relative_to(info.root)) for p in info.root.glob("meta/episodes/*/*.parquet"))
        if not names:
            raise ImportFormatError(f"{info.root / 'meta/episodes'} holds no parquet files")
        rows = [row for name in names for row in _table(info, name, but="stats/")]
        where = "meta/episodes"
    rows.sort(key=lambda row: _whole(row, "episode_index", where))
    for number, row in enumerate(rows):
        if row["episode_index"] != number:
            fault = "twice" if number and row["episode_index"] == number - 1 else f"where {number} belongs"
            raise ImportFormatError(f"{info.root / where} has episode_index {row['episode_index']} {fault}")
    if not rows:
        raise ImportFormatError(f"{info.root / where} names no episodes")
    return [_episode(info, row, where) for row in rows]


def _episode(info: layout.Info, row: Mapping[str, Any], where: str) -> Episode:
    number, length = _whole(row, "episode_index", where), _whole(row, "length", where)
    if not length:
        raise ImportFormatError(f"{where}: episode {number} has length 0")
    cameras = [key for key, feature in info.features.items() if feature.dtype == "video"]
    if info.version == "v2.1":
        place = {"episode_chunk": number // info.chunks_size, "episode_index": number}
        data = layout.fill(info.data_path, **place)
        videos = {key: VideoPart(layout.fill(info.video_path, video_key=key, **place)) for key in cameras}
    else:
        data = layout.fill(info.data_path, **_file(row, "data", where))
        videos = {}
        for key in cameras:
            start, stop = (_seconds(row, f"videos/{key}/{end}_timestamp", where) for end in ("from", "to"))
            name = layout.fill(info.video_path, video_key=key, **_file(row, f"videos/{key}", where))
            videos[key] = VideoPart(name, start, stop)
    known = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")
    notes = {
        key: value
        for key, value in row.items()
        if key not in known and not key.startswith(("data/", "videos/", "meta/", "stats")) and _is_json(value)
    }
    return Episode(number, length, data, videos, notes)


def read_tasks(info: layout.Info) -> dict[int, str]:
    """Task index -> text.

    Raises:
        ImportFormatError: the table is missing or damaged.
    """
    name = layout.TASKS[info.version]
    if info.version == "v2.1":
        rows = layout.read_jsonl(info.root, name)
    else:
        # The text is the table's index in pandas, under the name "task", or none in files of LeRobot 0.4.
        rows = [
            {"task": row.get("task", row.get("__index_level_0__")), "task_index": row.get("task_index")}
            for row in _table(info, name)
        ]
    tasks: dict[int, str] = {}
    for row in rows:
        text = row.get("task")
        if not isinstance(text, str):
            raise ImportFormatError(f"{info.root / name} has a task without text")
        tasks[_whole(row, "task_index", name)] = text
    return tasks


def _table(info: layout.Info, name: str, *, but: str | None = None) -> list[dict[str, Any]]:
    """The rows of a parquet file, without the columns that begin with ``but``."""
    path = layout.find(info.root, name)
    try:
        with pq.ParquetFile(path) as file:
            columns = [key for key in file.schema_arrow.names if not (but and key.startswith(but))]
            return file.read(columns=columns).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ImportFormatError(f"{path} cannot be read: {one_line(error)}") from None


def _file(row: Mapping[str, Any], kind: str, where: str) -> dict[str, int]:
    return {name: _whole(row, f"{kind}/{name}", where) for name in ("chunk_index", "file_index")}


def _whole(row: Mapping[str, Any], key: str, where: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise ImportFormatError(f"{where}: {key} is {value!r}; it must be a whole number from 0")
    return value


def _seconds(row: Mapping[str, Any], key: str, where: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ImportFormatError(
            f"{where}: episode {row['episode_index']} has {key} {value!r}; it must be seconds from 0"
        )
    return float(value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
