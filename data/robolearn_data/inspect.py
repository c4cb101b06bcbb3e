"""Content that is whole and yet looks wrong: what `robolearn data validate` warns of beside structural faults."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from robolearn_data import shards, storage
from robolearn_data.copying import Progress
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Stream
from robolearn_data.selection import episode_infos
from robolearn_data.statistics import component_name

FROZEN_S = 0.5
"""A picture that stays the same this long while the state moves is reported."""
_MOVED = 0.03  # of a component's 1 % to 99 % range, within the time of one picture
_JUMP = 20.0  # times the 99.9 % quantile of step sizes
_JUMP_OF_RANGE = 0.05  # of the widest range of a component in the same unit: less is sensor noise
_SATURATED = 0.02  # share of rows at exactly the same extreme value
_GAP_PERIODS = 3.0
_HOLE_S = 1.0
_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Finding:
    """One thing to look at."""

    kind: str
    stream: str
    """Empty where it concerns all."""
    episode: int | None
    """None where it concerns the dataset."""
    steps: tuple[int, int] | None
    """First and last step within the episode."""
    what: str
    advice: str

    def __str__(self) -> str:
        where = [self.stream] if self.stream else []
        where += [] if self.episode is None else [f"episode {self.episode}"]
        if self.steps:
            first, last = self.steps
            where.append(f"step {first}" if first == last else f"steps {first} to {last}")
        return f"{', '.join(where)}: {self.what}; {self.advice}"


def inspect(dataset: Dataset, *, progress: Progress | None = None) -> list[Finding]:
    """Read the whole dataset and return what a person should look at, in the order of streams and episodes.

    Args:
        progress: called with (rows read, rows to read) over all streams.

    Raises:
        DatasetError: it is damaged; ``validate`` says where.
    """
    found = [*_short_episodes(dataset), *_gaps(dataset)]
    digests = [hashlib.sha256() for _ in range(dataset.episodes)]
    motion: list[np.ndarray] = []
    total = dataset.steps * len(dataset.schema.streams)
    done = 0
    order = sorted(dataset.schema.streams.items(), key=lambda item: item[1].kind == "image")  # the states are needed
    for name, stream in order:
        found += _holes(dataset, name)
        if stream.kind == "image":
            for share, same in _repeated(dataset, name):
                if progress:
                    progress(done + round(share * dataset.steps), total)
                if same is not None:
                    found += _frozen(dataset, name, same, motion)
        elif dataset.steps and not storage.is_framed(stream):
            values = dataset.read(name).reshape(dataset.steps, -1)
            for episode, digest in enumerate(digests):
                digest.update(np.ascontiguousarray(values[dataset.rows(episode)]).tobytes())
            found += _constant_or_saturated(dataset, name, stream, values)
            if stream.kind == "state" and values.dtype.kind == "f":
                found += _jumps(dataset, name, stream, values)
                low, high = np.quantile(values, [0.01, 0.99], axis=0)
                motion.append((values / np.where(high > low, high - low, np.inf)).astype(np.float32))
        done += dataset.steps
        if progress:
            progress(done, total)
    return [*found, *_duplicates(dataset, digests)]


def _short_episodes(dataset: Dataset) -> Iterator[Finding]:
    lengths = np.diff(dataset.episode_ends, prepend=0)
    usual = float(np.median(lengths)) if len(lengths) else 0.0
    for episode in np.flatnonzero((lengths < 0.1 * usual) | (lengths < 3)).tolist():
        what = f"has only {lengths[episode]} steps, usually {usual:.0f}"
        yield Finding("short", "", episode, None, what, "delete it if it was started by mistake")


def _gaps(dataset: Dataset) -> Iterator[Finding]:
    ticks = dataset.times()
    if ticks is None:
        return
    period = 1e9 / dataset.schema.rate_hz
    for episode in range(dataset.episodes):
        times = ticks[dataset.rows(episode)]
        known = (times[1:] != 0) & (times[:-1] != 0)
        gaps = np.flatnonzero(known & (np.diff(times) > _GAP_PERIODS * period))
        if gaps.size:
            longest = float(np.diff(times)[gaps].max()) / 1e9
            what = f"{gaps.size} gaps in time, the longest {longest:.3g} s at a period of {period / 1e9:.3g} s"
            span = (int(gaps[0]), int(gaps[-1]) + 1)
            yield Finding("gap", "tick", episode, span, what, "the recorder stalled: look at the machine's load")


def _holes(dataset: Dataset, name: str) -> Iterator[Finding]:
    valid = dataset.valid(name)
    if valid.all():
        return
    longest = max(round(_HOLE_S * dataset.schema.rate_hz), 2)
    for episode in range(dataset.episodes):
        for first, last in _runs(~valid[dataset.rows(episode)]):
            if last - first + 1 >= longest:
                what = f"no sample for {(last - first + 1) / dataset.schema.rate_hz:.3g} s"
                yield Finding("hole", name, episode, (first, last), what, "check the device's cable and load")


def _repeated(dataset: Dataset, name: str) -> Iterator[tuple[float, np.ndarray | None]]:
    """Share of the pictures that were compared, and at last which rows (N,) show the same picture as the row before.

    Pictures that are encoded one by one are compared as they are stored: the same bytes are the same picture.
    """
    array, stream = dataset.array(name), dataset.schema.streams[name]
    count = dataset.samples_before(name, dataset.episodes) if stream.is_native else dataset.steps
    pictures = np.zeros(count, np.int64)  # a number for each that is unlike the one before
    last = None
    is_stored = shards.is_one_by_one(array)
    decoded = max(_PIECE_BYTES // (stream.size * array.dtype.itemsize), 1)
    piece = array.shards[0] if is_stored and array.shards else decoded
    for start in range(0, count, piece):
        rows = slice(start, min(start + piece, count))
        stored = shards.stored_rows(array, rows) if is_stored else None
        if stored is None:
            stored = [picture.tobytes() for picture in dataset.take(name, np.arange(rows.start, rows.stop))]
        for row, picture in enumerate(stored, start):
            pictures[row] = picture != last
            last = picture
        yield rows.stop / count, None
    pictures = np.cumsum(pictures)
    if stream.is_native:
        shown = np.asarray(storage.open_array(dataset.location.store(), f"index/{name}")[: dataset.steps], np.int64)
        pictures = np.where(shown < 0, -1, pictures[np.maximum(shown, 0)]) if count else shown
    yield 1.0, np.diff(pictures, prepend=-2) == 0


def _frozen(dataset: Dataset, name: str, same: np.ndarray, motion: list[np.ndarray]) -> Iterator[Finding]:
    """Stretches in which valid pictures do not change at all although some state component moves."""
    same = same & dataset.valid(name)
    least = max(round(FROZEN_S * dataset.schema.rate_hz), 3)
    for episode in range(dataset.episodes):
        rows = dataset.rows(episode)
        inside = same[rows].copy()
        inside[0] = False
        for first, last_step in _runs(inside):
            stretch = slice(rows.start + first - 1, rows.start + last_step + 1)
            moved = max((float(np.ptp(part[stretch], axis=0).max()) for part in motion), default=0.0)
            if last_step - first + 2 > least and moved > _MOVED:
                what = f"the same picture {last_step - first + 2} times while the state moves"
                advice = "the camera hung: delete the episode, or train without this camera"
                yield Finding("frozen", name, episode, (first - 1, last_step), what, advice)


def _constant_or_saturated(dataset: Dataset, name: str, stream: Stream, values: np.ndarray) -> Iterator[Finding]:
    if stream.kind == "info":
        return
    constant = []
    for i, index in enumerate(np.ndindex(stream.shape)):
        column = values[:, i]
        label = component_name(name, stream, index)
        low, high = column.min(), column.max()
        if low == high:
            constant.append(label)
            continue
        if column.dtype.kind != "f" or i in stream.wraps or len(np.unique(column[:10_000])) <= 16:
            continue  # a switch or a gripper is meant to be at its ends
        for extreme, word in ((low, "lowest"), (high, "highest")):
            runs = [run for run in _runs(column == extreme) if run[1] > run[0]]
            share = sum(last - first + 1 for first, last in runs) / len(column)
            if len(runs) >= 3 and share > _SATURATED:
                first = runs[0][0]
                episode = int(np.searchsorted(dataset.episode_ends, first, side="right"))
                at = first - dataset.rows(episode).start
                what = f"{label} is at its {word} value {extreme:g} in {share:.0%} of all rows, first in episode "
                what += f"{episode} at step {at}"
                advice = "a sensor or command at its limit: a policy learns the limit there"
                yield Finding("saturated", name, None, None, what, advice)
    if constant:
        shown = ", ".join(constant[:6]) + (f" and {len(constant) - 6} more" if len(constant) > 6 else "")
        what = f"{shown} never changed"
        yield Finding("constant", name, None, None, what, "is the sensor connected? A policy learns nothing from it")


def _jumps(dataset: Dataset, name: str, stream: Stream, values: np.ndarray) -> Iterator[Finding]:
    """Steps that are far above a component's usual ones, and not small beside what its like (of the same unit) move."""
    if len(values) < 21:
        return
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    last = stream.shape[-1] if stream.shape else 1
    units = stream.unit.split(",")
    unit = np.array([units[c % last] if len(units) == last else "" for c in range(values.shape[1])])
    for component, index in enumerate(np.ndindex(stream.shape)):
        step = np.abs(np.diff(values[:, component].astype(np.float64)))
        if component in stream.wraps:
            step = np.minimum(step % (2 * np.pi), 2 * np.pi - step % (2 * np.pi))
        step[dataset.episode_ends[:-1] - 1] = 0.0
        # Of a short recording the 99.9 % quantile would be the jump itself.
        usual = float(np.quantile(step, 0.999 if len(step) >= 10_000 else 0.99, method="lower"))
        least = _JUMP_OF_RANGE * float((high - low)[unit == unit[component]].max())
        rows = np.flatnonzero((step > max(_JUMP * usual, least)) & (usual > 0)) + 1
        episodes = np.searchsorted(dataset.episode_ends, rows, side="right")
        for episode in np.unique(episodes).tolist():
            here = rows[episodes == episode]
            start = dataset.rows(episode).start
            what = f"{component_name(name, stream, index)} jumps by {step[here - 1].max():.3g} in one step, "
            what += f"nearly all of its steps are below {usual:.3g}"
            span = (int(here[0]) - start, int(here[-1]) - start)
            advice = "look at it with `robolearn data plot`; delete it if not real"
            yield Finding("jump", name, episode, span, what, advice)


def _duplicates(dataset: Dataset, digests: list[hashlib._Hash]) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    infos = episode_infos(dataset)
    for episode, digest in enumerate(digests):
        first = seen.setdefault(digest.hexdigest(), episode)
        if first != episode and infos[first].get("uuid") != infos[episode].get("uuid"):
            what = f"has the same content as episode {first} under another uuid"
            yield Finding("duplicate", "", episode, None, what, "delete one of them: it counts twice in training")


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
