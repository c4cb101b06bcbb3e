"""Reading windows for training: for each, what its views say, of streams at the control rate and at rates of their own.

What can be seen: a view that ends at the present (``ahead`` 0) is an observation. It is made of samples captured by the
present alone, as a controller would have had them; between two of these it interpolates as the schema says, and where
the second has not come yet the first one holds. A view that reaches ahead is a target, and may use every sample.

B = batch, H = horizon of a view, N = rows (control steps), E = episodes, M = samples of a native stream.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError
from robolearn_data.resample import blend, places
from robolearn_data.schema import Interpolation, SchemaError, Stream
from robolearn_data.storage import BLOCK_BYTES

ImagePlace = Literal["memory", "disk"]


@dataclass(frozen=True)
class View:
    """What of a stream belongs to a window: ``horizon`` values, evenly spaced, around the window's present."""

    stream: str
    horizon: int
    ahead: int = 0
    """How many of them lie after the present; 0: the last one is at the present."""
    rate_hz: float = 0.0
    """How many to the second. 0: one at each control step. A stream of one sample for each control step has no more
    than these: its views take a whole part of the control rate."""

    @property
    def offsets(self) -> np.ndarray:
        """(H,) place of each value, counted from the present: 0 is the present, -1 one period before it."""
        return np.arange(self.ahead - self.horizon + 1, self.ahead + 1)


class WindowReader:
    """Reads the same views around any control steps. Threads may share one.

    Numbers are held in memory, once for each stream. Pictures are too, or they are read from disk as they are wanted.
    Pictures that are stored as floats are given as uint8.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: Mapping[str, View],
        *,
        images: ImagePlace = "memory",
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """``views``: name of the result -> view. ``progress`` is told of rows loaded and rows in all.

        Raises:
            SchemaError: an unknown stream, a view that its stream cannot give, pictures that are not whole numbers.
            DatasetError: the dataset is damaged.
        """
        self.dataset = dataset
        self.views = dict(views)
        self._steps_apart = {name: _steps_apart(dataset, view) for name, view in self.views.items()}
        self._begin = np.concatenate(([0], dataset.episode_ends))
        streams = {view.stream: dataset.schema.stream(view.stream) for view in self.views.values()}
        native = [name for name, stream in streams.items() if stream.is_native]
        self._ticks = dataset.times() if native else None
        if native and self._ticks is None:
            raise DatasetError(f"{dataset.location} has no times of its control steps, by which {native[0]!r} is found")
        self._samples = {name: _Samples(dataset, name) for name in native}
        self._valid = {name: dataset.valid(name) for name in streams if name not in native}
        self._held: dict[str, np.ndarray] = {}
        wanted = [name for name, stream in streams.items() if stream.kind != "image" or images == "memory"]
        self._hold(wanted, progress)

    def read(
        self, episode: np.ndarray, step: np.ndarray, views: Collection[str] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Windows whose presents are steps (B,) of episodes (B,), as ``Windows.locate`` gives them.

        Args:
            views: those that are wanted; all by default.

        Returns:
            For each view its values (B, H, *shape), and a mask (B, H) of those that were not recorded there: beyond the
            episode, where the nearest value in it stands; or a hole, where the newest one before it stands. Where
            nothing had been captured by the present, the values of an observation are zero.

        Raises:
            IndexError: no such episode or step.
            DatasetError: a picture cannot be read.
        """
        episode, step = np.asarray(episode, np.int64), np.asarray(step, np.int64)
        lengths = np.diff(self._begin)
        if episode.size and (episode.min() < 0 or episode.max() >= len(lengths)):
            raise IndexError(f"episode numbers must be in [0, {len(lengths)})")
        if np.any((step < 0) | (step >= lengths[episode])):
            raise IndexError("the present of a window must be a step of its episode")
        values, missing = {}, {}
        for name in self.views if views is None else views:
            view = self.views[name]
            values[name], missing[name] = self._read(view, self._steps_apart[name], episode, step)
        return values, missing

    def _read(
        self, view: View, steps_apart: int, episode: np.ndarray, step: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        stream = self.dataset.schema.stream(view.stream)
        begin, end = self._begin[episode], self._begin[episode + 1]
        wanted = (begin + step)[:, None] + view.offsets * steps_apart
        rows = np.clip(wanted, begin[:, None], end[:, None] - 1)
        outside = rows != wanted
        if not stream.is_native:
            return self._fetch(view.stream, rows), outside | ~self._valid[view.stream][rows]

        assert self._ticks is not None
        present = self._ticks[begin + step][:, None]
        if view.rate_hz:
            instants, outside = present + np.rint(view.offsets * (1e9 / view.rate_hz)).astype(np.int64), False
        else:
            instants = self._ticks[rows]
        seen_by = present if view.ahead <= 0 else None
        found, share, stale = self._samples[view.stream].find(episode[:, None], instants, seen_by, stream.interpolation)
        values = self._fetch(view.stream, found)
        between = share > 0
        if between.any():
            after = self._fetch(view.stream, found[between] + 1)
            values[between] = blend(values[between], after, share[between], stream.interpolation)
        return values, outside | stale

    def _fetch(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows (...,), of which -1 is none, -> values (..., *shape)."""
        if name not in self._held:
            return _as_read(name, self.dataset.schema.stream(name), self.dataset.take(name, rows))
        values = self._held[name][rows]
        values[rows < 0] = 0
        return values

    def _hold(self, names: list[str], progress: Callable[[int, int], None] | None) -> None:
        rows = {name: _rows(self.dataset, name) for name in names}
        done = 0
        for name in names:
            stream = self.dataset.schema.stream(name)
            self._held[name] = np.empty((max(rows[name], 1), *stream.shape), dtype_as_read(stream))
            piece = max(BLOCK_BYTES // _row_bytes(stream), 1)
            for first in range(0, rows[name], piece):
                part = np.arange(first, min(first + piece, rows[name]))
                self._held[name][part] = _as_read(name, stream, self.dataset.take(name, part))
                done += len(part)
                if progress:
                    progress(done, sum(rows.values()))


class _Samples:
    """Capture times of a native stream, searched for many episodes at once.

    Clocks start anew when a machine does, so that times may overlap between episodes. The search is in keys that do
    not: each episode's times, moved to where those of the episode before have ended.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        stream = dataset.schema.stream(name)
        self._stale_ns = stream.stale_ns
        self._first = np.array([dataset.samples_before(name, e) for e in range(dataset.episodes + 1)])
        times = dataset.sample_times(name)
        counts = np.diff(self._first)
        filled = np.flatnonzero(counts)
        self._start, last = np.zeros((2, len(counts)), np.int64)
        self._start[filled] = times[self._first[filled]]
        last[filled] = times[self._first[filled + 1] - 1]
        self._reach = last - self._start + int(2e9 / stream.rate_hz)
        self._base = np.cumsum(self._reach + 2) - self._reach
        self._keys = times + np.repeat(self._base - self._start, counts)
        if np.any(np.diff(self._keys) <= 0):
            raise DatasetError(f"dataset {dataset.location} is damaged: streams/{name}/time does not increase")

    def find(
        self, episode: np.ndarray, instants: np.ndarray, seen_by: np.ndarray | None, how: Interpolation
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For ``instants`` (B, H) ns in episodes (B, 1): sample (B, H), share of the way to the next one, and holes.

        Samples captured after ``seen_by`` (B, 1) ns are left alone. The sample is -1 where that leaves none.
        """
        episode = np.broadcast_to(episode, instants.shape)
        if not len(self._keys):
            return np.full(episode.shape, -1), np.zeros(episode.shape), np.ones(episode.shape, bool)
        keys = self._key(episode, instants)
        newest = np.searchsorted(self._keys, keys, side="right") - 1
        first, last = self._first[episode], self._first[episode + 1] - 1
        if seen_by is not None:
            last = np.searchsorted(self._keys, self._key(episode, seen_by), side="right") - 1
        before, share = places(self._keys, keys.reshape(-1), how, first.reshape(-1), last.reshape(-1))
        before = np.where(last < first, -1, before.reshape(keys.shape))
        stale = (newest < first) | (keys - self._keys[newest] >= self._stale_ns)
        return before, share.reshape(keys.shape), stale

    def _key(self, episode: np.ndarray, instants: np.ndarray) -> np.ndarray:
        return np.clip(instants - self._start[episode], -1, self._reach[episode]) + self._base[episode]


def dtype_as_read(stream: Stream) -> np.dtype:
    """In which a reader gives the values of a stream: pictures of whole numbers are stored as floats by some."""
    dtype = np.dtype(stream.dtype)
    is_mixed = stream.interpolation not in ("previous", "nearest")
    return np.dtype("uint8") if stream.kind == "image" and dtype.kind == "f" and not is_mixed else dtype


def image_bytes(dataset: Dataset, views: Mapping[str, View]) -> int:
    """What the pictures of ``views`` take in memory."""
    names = {view.stream for view in views.values() if dataset.schema.stream(view.stream).kind == "image"}
    return sum(_rows(dataset, name) * _row_bytes(dataset.schema.stream(name)) for name in names)


def _rows(dataset: Dataset, name: str) -> int:
    """Rows, or samples, of all episodes."""
    is_native = dataset.schema.stream(name).is_native
    return dataset.samples_before(name, dataset.episodes) if is_native else dataset.steps


def _row_bytes(stream: Stream) -> int:
    return max(stream.size * dtype_as_read(stream).itemsize, 1)


def _as_read(name: str, stream: Stream, values: np.ndarray) -> np.ndarray:
    dtype = dtype_as_read(stream)
    if values.dtype == dtype:
        return values
    with np.errstate(invalid="ignore"):
        out = values.astype(dtype)
    if not np.array_equal(out, values):
        raise SchemaError(f"stream {name!r} of {stream.dtype} cannot be read as {dtype}: values would change")
    return out


def _steps_apart(dataset: Dataset, view: View) -> int:
    """Control steps between the values of a view of a stream that has one sample for each."""
    stream, control = dataset.schema.stream(view.stream), dataset.schema.rate_hz
    if view.horizon < 1 or not (np.isfinite(view.rate_hz) and view.rate_hz >= 0):
        raise SchemaError(f"a view of {view.stream!r} needs a horizon above 0 and a rate_hz, 0 or more; got {view}")
    if stream.is_native or not view.rate_hz:
        return 1
    apart = round(control / view.rate_hz)
    if apart < 1 or abs(apart * view.rate_hz - control) > 1e-6 * control:
        raise SchemaError(
            f"stream {view.stream!r} has one sample for each control step, at {control:g} Hz, and cannot be read at "
            f"{view.rate_hz:g} Hz; take {control:g} divided by a whole number"
        )
    return apart
