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
_SATURATED = 0.02  # share of rows at exactly the same extreme value
_GAP_PERIODS = 3.0
_HOLE_S = 1.0
_DROPPED = 0.05
_LEAST_JUMP = 0.05  # of the widest 1 % to 99 % range among the stream's components of the same unit
_TRANSIENT = 2  # consecutive steps: more of them are motion


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
        if stream.is_native and stream.kind != "text":
            found += _dropped(dataset, name)
        if stream.kind == "image":
            marks = _marks(dataset, name)
            found += _frozen(dataset, name, marks, motion)
            for episode, digest in enumerate(digests):
                rows = dataset.samples(name, episode).rows if stream.is_native else dataset.rows(episode)
                digest.update(marks[rows].tobytes())
        elif dataset.steps:
            values = dataset.read(name).reshape(dataset.steps, -1)
            for episode, digest in enumerate(digests):
                digest.update(np.ascontiguousarray(values[dataset.rows(episode)]).tobytes())
            found += _constant_or_saturated(dataset, name, stream, values)
            if stream.kind == "state" and values.dtype.kind == "f":
                found += _jumps(dataset, name, stream, values)
                low, high = np.quantile(values, [0.01, 0.99], axis=0)
                motion.append(values / np.where(high > low, high - low, np.inf))
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


def _dropped(dataset: Dataset, name: str) -> Iterator[Finding]:
    """Episodes in which a stream with a rate of its own has fewer samples than its rate gives."""
    rate = dataset.schema.stream(name).rate_hz
    for episode in range(dataset.episodes):
        time = dataset.samples(name, episode).time
        if len(time) < 2:
            what = f"has {len(time)} samples at a nominal {rate:g} Hz"
            yield Finding("dropped", name, episode, None, what, "was the device connected?")
            continue
        between = np.diff(time) * (rate / 1e9)
        lost = int(np.maximum(np.round(between) - 1, 0).sum())
        if lost > _DROPPED * len(time):
            at = (int(time[int(np.argmax(between))]) - int(time[0])) / 1e9
            what = f"about {lost} of {len(time) + lost} samples are missing, at most {between.max() / rate:.3g} s "
            what += f"between two, {at:.3g} s after its first"
            yield Finding("dropped", name, episode, None, what, "check its cable, its load, and the rate in the schema")


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


def _frozen(dataset: Dataset, name: str, marks: np.ndarray, motion: list[np.ndarray]) -> Iterator[Finding]:
    """Stretches in which valid pictures do not change at all although some state component moves."""
    stream = dataset.schema.stream(name)
    same = np.append(False, marks[1:] == marks[:-1]) if len(marks) else np.zeros(0, bool)
    if not stream.is_native:
        same &= dataset.valid(name)
    least = max(round(FROZEN_S * (stream.rate_hz or dataset.schema.rate_hz)), 3)
    ticks = dataset.times() if stream.is_native else None
    for episode in range(dataset.episodes):
        steps = dataset.rows(episode)
        samples = dataset.samples(name, episode) if stream.is_native else None
        rows = samples.rows if samples else steps
        inside = same[rows].copy()
        inside[:1] = False
        for first, last in _runs(inside):
            first -= 1  # the picture that was repeated
            if last - first + 1 <= least:
                continue
            stretch = slice(steps.start + first, steps.start + last + 1)
            if samples and ticks is not None:
                at = np.searchsorted(ticks[steps], samples.time[[first, last]]) + steps.start
                stretch = slice(int(at[0]), max(int(at[1]), int(at[0]) + 1))
            moved = max(
                (float(np.ptp(part[stretch], axis=0).max()) for part in motion if len(part[stretch])), default=0
            )
            if moved > _MOVED:
                what = f"the same picture {last - first + 1} times while the state moves"
                advice = "the camera hung: delete the episode, or train without this camera"
                span = (stretch.start - steps.start, stretch.stop - 1 - steps.start)
                yield Finding("frozen", name, episode, span, what, advice)


def _marks(dataset: Dataset, name: str) -> np.ndarray:
    """(M,) uint64, a digest of each stored picture: of its bytes on the disk where they are a function of the picture.

    So a picture need not be decoded to see that it is the one before.
    """
    stream, array = dataset.schema.stream(name), dataset.array(name)
    count = dataset.samples_before(name, dataset.episodes) if stream.is_native else dataset.steps
    alone = shards.is_one_by_one(array)
    row_bytes = stream.size * array.dtype.itemsize
    piece = array.shards[0] if alone and array.shards else max(storage.BLOCK_BYTES // row_bytes, 1)
    marks = np.empty(count, np.uint64)
    for start in range(0, count, piece):
        rows = slice(start, min(start + piece, count))
        stored = shards.stored_rows(array, rows) if alone else None
        for i, value in enumerate(stored or dataset.take(name, np.arange(rows.start, rows.stop)), start):
            marks[i] = int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")
    return marks


def _constant_or_saturated(dataset: Dataset, name: str, stream: Stream, values: np.ndarray) -> Iterator[Finding]:
    if stream.kind in ("info", "text", "points"):
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
    step = np.abs(np.diff(values.astype(np.float64), axis=0))
    wraps = list(stream.wraps)
    step[:, wraps] = np.minimum(step[:, wraps] % (2 * np.pi), 2 * np.pi - step[:, wraps] % (2 * np.pi))
    step[dataset.episode_ends[:-1] - 1] = 0.0
    if len(step) < 20:
        return
    # Of a short recording the 99.9 % quantile would be the jump itself.
    usual = np.quantile(step, 0.999 if len(step) >= 10_000 else 0.99, axis=0, method="lower")
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    last = stream.shape[-1] if stream.shape else 1
    units = stream.unit.split(",") if stream.unit.count(",") == last - 1 else [stream.unit] * last
    unit = np.array([units[i % last] for i in range(values.shape[1])])
    widest = np.array([(high - low)[unit == own].max() for own in unit])
    large = (step > _JUMP * usual) & (step > _LEAST_JUMP * widest) & (usual > 0)
    by_place: dict[tuple[int, int], list[int]] = {}
    for row, component in np.argwhere(large).tolist():
        around = large[max(row - _TRANSIENT, 0) : row + _TRANSIENT + 1, component]
        if max(last - first + 1 for first, last in _runs(around)) > _TRANSIENT:
            continue
        episode = int(np.searchsorted(dataset.episode_ends, row + 1, side="right"))
        by_place.setdefault((episode, component), []).append(row + 1)
    for (episode, component), rows in sorted(by_place.items()):
        start = dataset.rows(episode).start
        place = [int(i) for i in np.unravel_index(component, stream.shape)] if stream.shape else []
        label = component_name(name, stream, place)
        size = step[np.array(rows) - 1, component].max()
        what = f"{label} jumps by {size:.3g} in one step, nearly all of its steps are below {usual[component]:.3g}"
        span = (rows[0] - start, rows[-1] - start)
        yield Finding("jump", name, episode, span, what, "look at it with `robolearn data plot`; delete it if not real")


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
