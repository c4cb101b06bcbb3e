"""The recorded episodes, for the page: a list, strips of pictures, curves, and films to be played.

The dataset is read while a recorder writes: what is published is whole. Reading is slow, so that it is done in a thread
of its own; quality figures take seconds of a processor, and are computed in another process, at low priority.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data import storage
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Stream, UserError
from robolearn_data.statistics import component_name
from robolearn_deploy.dashboard.marks import Mark, MarkError, change_mark, read_marks

STRIP, STRIP_PX = 8, 96
"""Pictures of a strip, and how high they are at the most."""
FILM, FILM_PX = 200, 320
"""Pictures of a film at the most (of a longer episode every second, third ...), and their width."""
POINTS = 300
"""Of a curve, at the most; a longer one keeps the lowest and the highest value of each part."""
QUALITY_S = 120.0
_FRESH_S = 1.0


class EpisodeLibrary:
    """The episodes of the dataset at ``path``, for the server's event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dataset: Dataset | None = None
        self._opened_s = 0.0
        self._infos: list[dict[str, Any]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="episodes")
        self._reasons: tuple[int, dict[str, Any]] = -1, {}
        self._lock = asyncio.Lock()
        self.changes = 0
        """Marks that were changed so far."""

    async def ask(self, path: str) -> tuple[bytes, str] | None:
        """Body and content type of what is at ``/episodes...``; None where nothing is.

        "/episodes": the list. "/episodes/3/curves", "/episodes/3/strip/front", "/episodes/3/film/front": of number 3.
        """
        parts = path.strip("/").split("/")[1:]
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._find, parts)

    async def mark(self, uuid: str, changes: dict[str, Any]) -> Mark:
        """As ``marks.change_mark``. Raises MarkError, also where no episode is the one with that ``uuid``."""
        mark = await asyncio.get_running_loop().run_in_executor(self._thread, self._mark, uuid, changes)
        self.changes += 1
        return mark

    async def hints(self) -> dict[str, Any]:
        """{"reasons": {number: why to look at it}}, or {"error": why they cannot be told}. See ``hints.py``."""
        async with self._lock:
            dataset = await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
            if self._reasons[0] != dataset.episodes:
                self._reasons = dataset.episodes, await self._compute_hints()
            return self._reasons[1]

    async def _compute_hints(self) -> dict[str, Any]:
        command = (sys.executable, "-m", "robolearn_deploy.dashboard.hints", str(self.path))
        child = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(QUALITY_S):
                out, _ = await child.communicate()
            return json.loads(out)
        except TimeoutError:
            return {"error": f"that takes longer than {QUALITY_S:g} s; `robolearn data quality` has time"}
        except ValueError:
            return {"error": f"`robolearn data quality {self.path}` says why"}
        finally:
            if child.returncode is None:
                child.kill()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _find(self, parts: list[str]) -> tuple[bytes, str] | None:
        try:
            dataset = self._open()
            match parts:
                case []:
                    return _json(self._listed(dataset))
                case [number, "curves"]:
                    return _json(curves(dataset, _episode(dataset, number)))
                case [number, "strip", camera] if camera in dataset.schema.of_kind("image"):
                    return strip(dataset, _episode(dataset, number), camera), "image/jpeg"
                case [number, "film", camera] if camera in dataset.schema.of_kind("image"):
                    return film(dataset, _episode(dataset, number), camera), "application/octet-stream"
        except (UserError, OSError, ValueError) as error:
            return _json({"error": str(error)})
        return None

    def _open(self) -> Dataset:
        now = time.monotonic()
        if self._dataset is None or now - self._opened_s > _FRESH_S:
            self._dataset, self._opened_s = Dataset.open(self.path), now
        return self._dataset

    def _mark(self, uuid: str, changes: dict[str, Any]) -> Mark:
        if not any(info.get("uuid") == uuid for info in self._infos):
            raise MarkError("there is no such episode; the list shows those that there are")
        return change_mark(self.path, uuid, changes)

    def _listed(self, dataset: Dataset) -> dict[str, Any]:
        self._infos += [dataset.episode_info(i) for i in range(len(self._infos), dataset.episodes)]
        marks = read_marks(self.path)
        listed = []
        for number, info in enumerate(self._infos[: dataset.episodes]):
            uuid, rows = str(info.get("uuid")), dataset.rows(number)
            mark = marks.get(uuid, Mark())
            listed.append(
                {
                    "number": number,
                    "uuid": uuid,
                    "seconds": round((rows.stop - rows.start) / dataset.schema.rate_hz, 2),
                    "task": info.get("task", "") if mark.task is None else mark.task,
                    "success": info.get("success") if mark.success is None else mark.success,
                    "operator": info.get("operator", ""),
                    "changed": mark.task is not None or mark.success is not None,
                    "delete": mark.delete,
                }
            )
        return {"episodes": listed, "cameras": list(dataset.schema.of_kind("image"))}


_JSON = "application/json"


def strip(dataset: Dataset, episode: int, camera: str) -> bytes:
    """``STRIP`` pictures side by side, evenly over the episode, as JPEG."""
    _, rows = _pictures(dataset, episode, camera)
    chosen = rows[np.linspace(0, len(rows) - 1, min(STRIP, len(rows))).round().astype(int)]
    taken = dataset.take(camera, chosen)
    every = -(-max(taken.shape[1], 1) // STRIP_PX)
    return _jpeg(np.concatenate(list(taken[:, ::every, ::every]), axis=1))


def film(dataset: Dataset, episode: int, camera: str) -> bytes:
    """Pictures one after the other: seconds since the episode began (little-endian f4), bytes (u4), JPEG."""
    times, rows = _pictures(dataset, episode, camera)
    every = -(-len(rows) // FILM)
    parts = []
    for time_s, row in zip(times[::every].tolist(), rows[::every].tolist(), strict=True):
        picture = dataset.take(camera, [row])[0]
        stride = -(-picture.shape[1] // FILM_PX)
        packed = _jpeg(picture[::stride, ::stride])
        parts.append(struct.pack("<fI", time_s, len(packed)) + packed)
    return b"".join(parts)


def curves(dataset: Dataset, episode: int) -> dict[str, Any]:
    """Streams of numbers: {"end": s, "streams": [{"name", "unit", "labels", "curves": [[[s, value], ...], ...]}]}."""
    start, times = _clock(dataset, episode)
    streams = []
    for name, stream in dataset.schema.streams.items():
        if stream.kind in ("image", "text") or storage.is_framed(stream):
            continue
        if stream.is_native:
            samples = dataset.samples(name, episode)
            at, rows = (samples.time - start) / 1e9, samples.rows
        else:
            at, rows = times, dataset.rows(episode)
        if not len(at):
            continue
        values = dataset.take(name, np.arange(rows.start, rows.stop)).reshape(len(at), -1).astype(np.float64)
        streams.append(_drawn(name, stream, at, values))
    return {"end": round(float(times[-1]) + 1 / dataset.schema.rate_hz, 3), "streams": streams}


def _drawn(name: str, stream: Stream, at: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """``values`` (n, c) with few enough points."""
    labels = [component_name(name, stream, i).removeprefix(name).lstrip(".") for i in np.ndindex(stream.shape)]
    columns = []
    for column in values.T:
        chosen = _extremes(column) if len(column) > POINTS else np.arange(len(column))
        points = zip(at[chosen].tolist(), column[chosen].tolist(), strict=True)
        columns.append([[round(t, 3), round(v, 4) if np.isfinite(v) else None] for t, v in points])
    return {"name": name, "unit": stream.unit, "labels": labels, "curves": columns}


def _extremes(column: np.ndarray) -> np.ndarray:
    """Indices of the lowest and the highest value of each of POINTS / 2 parts, ascending."""
    parts = np.array_split(np.nan_to_num(column), POINTS // 2)
    starts = np.cumsum([0, *map(len, parts[:-1])])
    found = [
        (start + int(part.argmin()), start + int(part.argmax())) for start, part in zip(starts, parts, strict=True)
    ]
    return np.unique(np.array(found))


def _pictures(dataset: Dataset, episode: int, camera: str) -> tuple[np.ndarray, np.ndarray]:
    """Seconds since the episode began and rows of its pictures, at their own rate where they have one."""
    start, times = _clock(dataset, episode)
    if dataset.schema.streams[camera].is_native:
        samples = dataset.samples(camera, episode)
        times, rows = (samples.time - start) / 1e9, np.arange(samples.rows.start, samples.rows.stop)
    else:
        found = dataset.rows(episode)
        rows = np.arange(found.start, found.stop)
    if not len(rows):
        raise ValueError(f"no picture of {camera} in episode {episode}")
    return times, rows


def _clock(dataset: Dataset, episode: int) -> tuple[int, np.ndarray]:
    """When it began (ns), and seconds since then of its control steps."""
    rows, ticks = dataset.rows(episode), dataset.times()
    if ticks is not None and (ticks[rows] != 0).all():
        return int(ticks[rows][0]), (ticks[rows] - ticks[rows][0]) / 1e9
    return 0, np.arange(rows.stop - rows.start) / dataset.schema.rate_hz


def _episode(dataset: Dataset, number: str) -> int:
    if not number.isdecimal() or int(number) >= dataset.episodes:
        raise ValueError(f"no episode {number[:20]}; the dataset has {dataset.episodes}")
    return int(number)


def _jpeg(picture: np.ndarray) -> bytes:
    import simplejpeg

    if picture.dtype != np.uint8:
        low, high = float(picture.min()), float(picture.max())
        picture = ((picture - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    colours = picture[..., :3] if picture.shape[-1] >= 3 else np.repeat(picture[..., :1], 3, axis=-1)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(colours), 75, "RGB", "420")


def _json(found: Any) -> tuple[bytes, str]:
    return json.dumps(found, allow_nan=False).encode(), _JSON
