"""What each stream of an episode has to show and when, for formats that are looked at rather than learned from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from robolearn_data import shards, storage
from robolearn_data.dataset import Dataset
from robolearn_data.formats.transfer import ExportFormatError
from robolearn_data.schema import SchemaError, Stream
from robolearn_data.selection import select_episodes

JPEG_QUALITY = 90
"""Of pictures that are not stored as JPEG; those that are go out as they are."""

_BATCH = 64
_PAUSE_NS = 10**9


@dataclass(frozen=True, eq=False)
class Track:
    """The samples of one stream in one episode, each once, at the stream's own rate. Dropped frames are left out."""

    name: str
    stream: Stream
    time_ns: np.ndarray
    """(n,) int64, captured: since 1970 where the episode knows that, of CLOCK_MONOTONIC where it has times at all, and
    otherwise (row of the dataset) / rate plus a second for each episode before."""
    received_ns: np.ndarray
    """(n,) int64 on the same clock; the capture time where it is not known."""
    rows: np.ndarray
    """(n,) int64, for ``Dataset.take``."""

    def values(self, dataset: Dataset) -> Iterator[tuple[slice, np.ndarray]]:
        """Pieces of the samples, and their values (m, ...)."""
        for start in range(0, len(self.rows), _BATCH):
            part = slice(start, min(start + _BATCH, len(self.rows)))
            yield part, dataset.take(self.name, self.rows[part])

    def pictures(self, dataset: Dataset) -> Iterator[tuple[slice, list[bytes]]]:
        """Pieces of the samples, and the JPEG file of each, as it is stored where the dataset stores JPEG."""
        import simplejpeg

        array = dataset.array(self.name)
        as_stored = (storage.compression_of(array) or "").startswith("jpeg") and shards.is_one_by_one(array)
        space = "GRAY" if self.stream.shape[2] == 1 else "RGB"
        for part, values in self.values(dataset) if not as_stored else ():
            pixels = values.astype("uint8")
            yield part, [simplejpeg.encode_jpeg(picture, JPEG_QUALITY, space, "444") for picture in pixels]
        for start in range(0, len(self.rows), _BATCH) if as_stored else ():
            part = slice(start, min(start + _BATCH, len(self.rows)))
            first, last = int(self.rows[part][0]), int(self.rows[part][-1])
            files = shards.stored_rows(array, slice(first, last + 1))
            if files is None:
                raise ExportFormatError(f"stream {self.name!r} lacks pictures between rows {first} and {last}")
            yield part, [files[row - first] for row in self.rows[part].tolist()]


def track(dataset: Dataset, name: str, episode: int) -> Track:
    """The samples of stream ``name`` in one episode."""
    stream, rows = dataset.schema.stream(name), dataset.rows(episode)
    if stream.is_native:
        samples = dataset.samples(name, episode)
        kept = np.arange(samples.rows.start, samples.rows.stop)
        time, received = samples.time, samples.received
    else:
        there = dataset.valid(name)[rows]
        kept = np.arange(rows.start, rows.stop)[there]
        unknown = np.zeros(dataset.steps, np.int64)
        captured, ticks, came = (dataset.times(name), dataset.times(), dataset.received(name))
        time = (unknown if captured is None else captured)[kept]
        if not len(time) or time.min() <= 0:
            time = (unknown if ticks is None else ticks)[kept]
        received = (unknown if came is None else came)[kept]
        if not len(time) or time.min() <= 0:
            nominal = (kept / dataset.schema.rate_hz * 1e9).round().astype(np.int64) + (episode + 1) * _PAUSE_NS
            return Track(name, stream, nominal, nominal, kept)
    offset = dataset.episode_info(episode).get("wall_offset_ns")
    offset = offset if isinstance(offset, int) else 0
    received = np.where(received > 0, received, time)
    return Track(name, stream, time + offset, received + offset, kept)


def chosen(dataset: Dataset, episodes: str) -> list[int]:
    """The episodes to export, see ``selection.select_episodes``.

    Raises:
        ExportFormatError: the dataset has none.
        SelectionError: they are not there.
    """
    if not dataset.episodes:
        raise ExportFormatError(f"{dataset.location} has no episodes; there is nothing to export")
    return select_episodes(dataset, episodes)


def is_picture(dataset: Dataset, name: str) -> bool:
    """Whether every sample of an image stream is a picture of 1 or 3 channels and whole values from 0 to 255."""
    stream = dataset.schema.stream(name)
    if stream.kind != "image" or stream.shape[2] not in (1, 3):
        return False
    if stream.dtype == "uint8":
        return True
    try:
        for start, block in dataset.blocks(name):
            dataset.read(name, slice(start, start + len(block)), "uint8")
    except SchemaError:
        return False
    return True


def is_depth(stream: Stream) -> bool:
    """Whether its samples are maps of one value a pixel that viewers show in false colours."""
    return stream.kind == "image" and stream.shape[2] == 1 and stream.dtype in ("uint16", "float32")
