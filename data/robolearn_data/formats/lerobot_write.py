"""Export to LeRobot datasets, versions 2.1 and 3.0, as LeRobot 0.3 and 0.6 write them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robolearn_data.dataset import Dataset
from robolearn_data.formats import OnLoss, Progress
from robolearn_data.formats import lerobot_layout as layout
from robolearn_data.formats.lerobot_layout import Feature
from robolearn_data.formats.lerobot_stats import PictureStats, Stats, aggregate, sampled, vector_stats
from robolearn_data.formats.lerobot_video import CODECS, VideoWriter, encode_png, encoding_info
from robolearn_data.formats.transfer import ExportFormatError, appearing, left_out
from robolearn_data.schema import SchemaError

_INDEX_FEATURES = {key: Feature(key, dtype, (1,)) for key, dtype in layout.INDICES.items()}
_BATCH = 64


def export_lerobot(
    source: str | Path,
    target: Path,
    *,
    version: str = "v3.0",
    images: str = "h264",
    on_loss: OnLoss | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write the dataset ``source`` as a LeRobot dataset, which appears at ``target`` when all is done.

    Feature keys are as ``lerobot_layout.keys_of`` says. Arrays of several dimensions become vectors, and timestamps are
    frame_index / fps, as LeRobot demands. What has no place there goes to meta/robolearn.json and .parquet, from which
    an import makes the same dataset again; a stream with a rate of its own comes back at the control rate.

    Args:
        version: "v2.1" or "v3.0".
        images: "h264" or "av1" videos, which lose detail, or "png", which does not. For streams of kind image that have
            3 channels and whole values from 0 to 255; others are written as numbers.
        on_loss: called with one line where streams have rates of their own.
        progress: called with (steps done, steps in all).

    Returns:
        Episodes and steps.

    Raises:
        DatasetError: ``source`` is not a dataset or damaged, or ``target`` exists.
        ExportFormatError: no episodes, an unknown choice, or pictures that the codec cannot hold.
    """
    if images not in (*CODECS, "png"):
        raise ExportFormatError(f"images {images!r} is unknown; valid: {', '.join(CODECS)}, png")
    if version not in layout.DATA_PATH:
        raise ExportFormatError(f"version {version!r} is unknown; valid: {', '.join(layout.DATA_PATH)}")
    dataset = Dataset.open(source)
    if not dataset.episodes:
        raise ExportFormatError(f"{source} has no episodes; there is nothing to export")
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder otherwise prints its settings for every file
    with appearing(target) as root:
        export = _Export(dataset, root, version, images)
        try:
            for episode in range(dataset.episodes):
                export.add(episode)
                if progress:
                    progress(int(dataset.episode_ends[episode]), dataset.steps)
        finally:
            export.close()
        export.write_meta()
    lost = left_out(dataset, ("times", "holes", "names"), info=export.info_keys())
    if lost and on_loss:
        on_loss(lost)
    return dataset.episodes, dataset.steps


class _Files:
    """Numbered files, each open until it is full: one for each episode in version 2.1, by size in version 3.0."""

    def __init__(self, root: Path, template: str, limit_bytes: int, create: Callable[[Path], Any]) -> None:
        self._root, self._template, self._limit_bytes, self._create = root, template, limit_bytes, create
        self.number = -1
        self.file: Any = None

    def begin_episode(self, key: str = "") -> None:
        """Go on to the next file when the present one is full."""
        if self.file is None or self._size() >= self._limit_bytes:
            self.close()
            self.number += 1
            chunk, index = divmod(self.number, layout.CHUNKS_SIZE)
            place = {"chunk_index": chunk, "file_index": index, "episode_chunk": chunk, "episode_index": self.number}
            self._path = self._root / layout.fill(self._template, video_key=key, **place)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._create(self._path)

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0  # encoders write late

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class _Export:
    """A LeRobot dataset in the making."""

    def __init__(self, dataset: Dataset, root: Path, version: str, images: str) -> None:
        self.dataset, self.root, self.version, self.images = dataset, root, version, images
        self.fps = dataset.schema.rate_hz
        self.keys = layout.keys_of(dataset.schema, dataset.metadata)
        self.features = {name: _feature(dataset, name, key, images) for name, key in self.keys.items()}
        self.tasks: dict[str, int] = {}
        self.records: list[dict[str, Any]] = []
        self.stats: list[dict[str, Stats]] = []
        self.infos: list[dict[str, Any]] = []
        columns = [f for f in self.features.values() if f.dtype != "video"] + [*_INDEX_FEATURES.values()]
        self.table_schema = _table_schema(columns, version)
        by_size = version == "v3.0"

        def new_table(path: Path) -> pq.ParquetWriter:
            return pq.ParquetWriter(path, self.table_schema, compression="snappy", use_dictionary=True)

        limit = layout.DATA_FILE_MB * 2**20 * by_size
        self.data = _Files(root, layout.DATA_PATH[version], limit, new_table)
        limit = layout.VIDEO_FILE_MB * 2**20 * by_size
        self.videos = {
            name: _Files(root, layout.VIDEO_PATH[version], limit, self._new_video(feature))
            for name, feature in self.features.items()
            if feature.dtype == "video"
        }

    def _new_video(self, feature: Feature) -> Callable[[Path], VideoWriter]:
        return lambda path: VideoWriter(path, feature.shape, self.fps, self.images)

    def add(self, episode: int) -> None:
        """Write one episode."""
        rows = self.dataset.rows(episode)
        count = rows.stop - rows.start
        info = self.dataset.episode_info(episode)
        task_index = self._task_rows(info, count)
        columns: dict[str, Any] = {}
        stats: dict[str, Stats] = {}
        for name, feature in self.features.items():
            if feature.is_camera:
                columns[feature.key], stats[feature.key] = self._pictures(name, feature, rows)
            else:
                columns[feature.key] = self.dataset.read(name, rows, feature.dtype).reshape(count, -1)
        frames = np.arange(count)
        columns["timestamp"] = (frames / self.fps).astype(np.float32)[:, None]
        columns["frame_index"] = frames[:, None]
        columns["episode_index"] = np.full((count, 1), episode)
        columns["index"] = np.arange(rows.start, rows.stop)[:, None]
        columns["task_index"] = task_index[:, None]
        stats |= {key: vector_stats(values) for key, values in columns.items() if isinstance(values, np.ndarray)}
        self.data.begin_episode()
        arrays = [_arrow(columns[field.name], field.type) for field in self.table_schema]
        self.data.file.write_table(pa.Table.from_arrays(arrays, schema=self.table_schema))
        tasks = [task for task, index in self.tasks.items() if index in task_index]
        self.records.append({"episode_index": episode, "tasks": tasks, "length": count, **self._places(rows)})
        self.stats.append({key: stats[key] for key in (*self._ordered_keys(), *_INDEX_FEATURES)})
        self.infos.append(info)

    def _task_rows(self, info: Mapping[str, Any], count: int) -> np.ndarray:
        """(T,) int64, the number of each row's task; "" stands for none."""
        segments = info.get("task_segments") or [[0, info.get("task") or ""]]
        index = np.zeros(count, np.int64)
        for start, task in segments:
            index[int(start) :] = self.tasks.setdefault(str(task), len(self.tasks))
        return index

    def _pictures(self, name: str, feature: Feature, rows: slice) -> tuple[list[bytes] | None, Stats]:
        """Encode the pictures of an episode: into a video, or into a list of files."""
        video = self.videos.get(name)
        if video is not None:
            video.begin_episode(feature.key)
        files: list[bytes] | None = None if video is not None else []
        counted = PictureStats(feature.shape[2])
        looked_at = set((sampled(rows.stop - rows.start) + rows.start).tolist())
        for start, block in _blocks(self.dataset, name, rows):
            for number, picture in enumerate(block, start):
                if number in looked_at:
                    counted.add(picture)
            if video is not None:
                video.file.write(block, begins=start == rows.start)
            elif files is not None:
                files += [encode_png(picture) for picture in block]
        return files, counted.stats()

    def _places(self, rows: slice) -> dict[str, Any]:
        """Columns of version 3.0's table of episodes that say where this one is."""
        if self.version == "v2.1":
            return {}
        chunk, index = divmod(self.data.number, layout.CHUNKS_SIZE)
        found: dict[str, Any] = {"data/chunk_index": chunk, "data/file_index": index}
        found |= {"dataset_from_index": rows.start, "dataset_to_index": rows.stop}
        for name, video in self.videos.items():
            key, end = self.keys[name], video.file.frames
            chunk, index = divmod(video.number, layout.CHUNKS_SIZE)
            found |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": index}
            found[f"videos/{key}/from_timestamp"] = (end - (rows.stop - rows.start)) / self.fps
            found[f"videos/{key}/to_timestamp"] = end / self.fps
        return found

    def info_keys(self) -> set[str]:
        """Keys of the episodes' info, all of which are kept."""
        return {key for info in self.infos for key in info}

    def _ordered_keys(self) -> list[str]:
        return list(self.keys.values())

    def close(self) -> None:
        for files in (self.data, *self.videos.values()):
            files.close()

    def write_meta(self) -> None:
        """Write everything under ``meta``."""
        meta = self.root / "meta"
        meta.mkdir(exist_ok=True)
        _write_json(self.root / layout.INFO, self._info())
        if self.version == "v2.1":
            tasks = [{"task_index": index, "task": task} for task, index in self.tasks.items()]
            kept = ("min", "max", "mean", "std", "count")
            stats = [
                {"episode_index": n, "stats": {k: {s: part[s].tolist() for s in kept} for k, part in features.items()}}
                for n, features in enumerate(self.stats)
            ]
            for name, lines in (
                (layout.EPISODES["v2.1"], self.records),
                (layout.TASKS["v2.1"], tasks),
                (layout.EPISODES_STATS, stats),
            ):
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                (self.root / name).write_text(text, encoding="utf-8")
        else:
            self._write_tables()
        self._write_ours()

    def _info(self) -> dict[str, Any]:
        fps = int(self.fps) if self.fps == int(self.fps) else self.fps
        source = self.dataset.metadata.get("source")
        robot = source.get("robot_type") if isinstance(source, dict) else None
        features = {f.key: _feature_json(f, self.fps, self.images) for f in self.features.values()}
        features |= {key: _feature_json(f, self.fps, self.images) for key, f in _INDEX_FEATURES.items()}
        episodes, frames = self.dataset.episodes, self.dataset.steps
        if self.version == "v2.1":
            counts: dict[str, Any] = {
                "total_episodes": episodes,
                "total_frames": frames,
                "total_tasks": len(self.tasks),
                "total_videos": episodes * len(self.videos),
                "total_chunks": -(-episodes // layout.CHUNKS_SIZE),
                "chunks_size": layout.CHUNKS_SIZE,
            }
        else:
            counts = {
                "total_episodes": episodes,
                "total_frames": frames,
                "total_tasks": len(self.tasks),
                "chunks_size": layout.CHUNKS_SIZE,
                "data_files_size_in_mb": layout.DATA_FILE_MB,
                "video_files_size_in_mb": layout.VIDEO_FILE_MB,
            }
        return {
            "codebase_version": self.version,
            "fps": fps,
            "features": features,
            **counts,
            "data_path": layout.DATA_PATH[self.version],
            "video_path": layout.VIDEO_PATH[self.version] if self.videos else None,
            "robot_type": robot,
            "splits": {"train": f"0:{episodes}"},
        }

    def _write_tables(self) -> None:
        """Version 3.0's tables of tasks and episodes, and the statistics of the whole."""
        texts = pa.table(
            {"task_index": pa.array(self.tasks.values(), pa.int64()), "task": pa.array(self.tasks, pa.string())}
        )
        pq.write_table(texts.replace_schema_metadata({"pandas": json.dumps(_PANDAS)}), self.root / layout.TASKS["v3.0"])
        columns: dict[str, list[Any]] = {key: [record[key] for record in self.records] for key in self.records[0]}
        for key in self.stats[0]:
            for name in self.stats[0][key]:
                columns[f"stats/{key}/{name}"] = [stats[key][name].tolist() for stats in self.stats]
        for index in ("chunk_index", "file_index"):
            columns[f"meta/episodes/{index}"] = [0] * len(self.records)
        path = self.root / layout.EPISODES["v3.0"]
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), path)
        whole = {key: aggregate([stats[key] for stats in self.stats]) for key in self.stats[0]}
        _write_json(
            self.root / layout.STATS, {k: {name: v.tolist() for name, v in part.items()} for k, part in whole.items()}
        )

    def _write_ours(self) -> None:
        """What LeRobot has no place for."""
        schema = self.dataset.schema.to_json()
        for stream in schema["streams"].values():
            stream.pop("rate_hz", None)  # a stream with a rate of its own was written at the control steps
        ours = {
            "format": layout.OUR_FORMAT,
            "schema": schema,
            "metadata": self.dataset.metadata,
            "keys": self.keys,
            "episodes": self.infos,
        }
        _write_json(self.root / layout.OURS, ours)
        columns: dict[str, np.ndarray] = {}
        for name in ("tick", *self.keys):
            times = self.dataset.times(name)
            if times is not None:
                columns[f"time/{name}"] = times
            received = self.dataset.received(name) if name in self.keys else None
            if received is not None:
                columns[f"received/{name}"] = received
        for name in self.keys:
            valid = self.dataset.valid(name)
            if not valid.all():
                columns[f"valid/{name}"] = valid
        if columns:
            pq.write_table(pa.table(columns), self.root / layout.OUR_ROWS)


def _feature(dataset: Dataset, name: str, key: str, images: str) -> Feature:
    stream = dataset.schema.streams[name]
    if stream.kind == "image" and stream.shape[2] == 3 and _is_8_bit(dataset, name):
        if images != "png" and (stream.shape[0] % 2 or stream.shape[1] % 2):
            raise ExportFormatError(
                f"stream {name!r} has {stream.shape[0]}x{stream.shape[1]} pixels, and {images} needs even numbers; "
                "export it with images as png"
            )
        return Feature(key, "image" if images == "png" else "video", stream.shape)
    names = stream.names if len(stream.shape) == 1 else ()
    return Feature(key, np.dtype(stream.dtype).newbyteorder("=").name, (stream.size,), names)


def _is_8_bit(dataset: Dataset, name: str) -> bool:
    """Whether every value is a whole number from 0 to 255."""
    if dataset.schema.streams[name].dtype == "uint8":
        return True
    try:
        for start, block in dataset.blocks(name):
            dataset.read(name, slice(start, start + len(block)), "uint8")
    except SchemaError:
        return False
    return True


def _blocks(dataset: Dataset, name: str, rows: slice) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(rows.start, rows.stop, _BATCH):
        yield start, dataset.read(name, slice(start, min(start + _BATCH, rows.stop)), "uint8")


def _table_schema(features: list[Feature], version: str) -> pa.Schema:
    """Columns with the note from which Hugging Face's datasets library knows their types."""
    fields, notes = [], {}
    for feature in features:
        if feature.dtype == "image":
            kind: pa.DataType = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            note: dict[str, Any] = {"_type": "Image"}
        else:
            kind = pa.from_numpy_dtype(np.dtype(feature.dtype))
            note = {"dtype": feature.dtype, "_type": "Value"}
            if feature.shape != (1,):
                kind = pa.list_(kind, feature.shape[0])
                note = {
                    "feature": note,
                    "length": feature.shape[0],
                    "_type": "List" if version == "v3.0" else "Sequence",
                }
        fields.append(pa.field(feature.key, kind))
        notes[feature.key] = note
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": notes}})})


def _arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_struct(kind):
        return pa.array([{"bytes": file, "path": None} for file in values], kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), kind.value_type), kind.list_size)
    return pa.array(values.ravel(), kind)


def _feature_json(feature: Feature, fps: float, images: str) -> dict[str, Any]:
    value: dict[str, Any] = {"dtype": feature.dtype, "shape": list(feature.shape)}
    value["names"] = ["height", "width", "channels"] if feature.is_camera else list(feature.names) or None
    if feature.dtype == "video":
        value["info"] = encoding_info(feature.shape, fps, images)
    return value


_TEXT = {"pandas_type": "unicode", "numpy_type": "object"}
_PANDAS = {
    "index_columns": ["task"],
    "column_indexes": [{"name": None, "field_name": None, **_TEXT, "metadata": {"encoding": "UTF-8"}}],
    "columns": [
        {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        },
        {"name": "task", "field_name": "task", **_TEXT, "metadata": None},
    ],
    "attributes": {},
    "creator": {"library": "pyarrow", "version": pa.__version__},
    "pandas_version": "2.3.3",
}
"""Tells pandas that the column "task" is the table's index, which LeRobot looks tasks up in."""


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")
