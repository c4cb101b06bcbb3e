"""Ranges and moments of each component of each stream, from which a policy's normalisation is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.schema import SchemaError, Stream

_QUANTILE_ROWS = 1_000_000
_VALUES = ("min", "max", "mean", "std", "q01", "q99")


@dataclass(frozen=True, eq=False)
class StreamStatistics:
    """Of one stream, each of its components for itself: arrays of the stream's shape, float64, in its unit.

    Of a point cloud (P, C) they are of shape (C,): every point counts as a row.
    """

    count: int
    """Rows that were counted."""
    min: np.ndarray
    max: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    """Of the population: divided by count."""
    q01: np.ndarray
    """1 % quantile; with more than a million rows, of every k-th one."""
    q99: np.ndarray

    def degenerate(self, tolerance: float = 1e-4) -> np.ndarray:
        """Components (bool, the stream's shape) whose whole range is at most ``tolerance`` in their unit.

        They carry no signal, and dividing by their range would blow noise up: centre them, do not scale them. Values
        far from zero whose range is within float32's resolution count too.
        """
        size = np.maximum(np.abs(self.min), np.abs(self.max))
        return self.max - self.min <= np.maximum(tolerance, 1e-6 * size)

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, **{k: getattr(self, k).tolist() for k in _VALUES}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StreamStatistics:
        """Read what ``to_json`` wrote.

        Raises:
            SchemaError: a value missing, unknown, of another shape, or not finite.
        """
        try:
            if set(value) != {"count", *_VALUES}:
                raise SchemaError(f"statistics have keys {sorted(value)}; valid: {', '.join(('count', *_VALUES))}")
            arrays = {k: np.asarray(value[k], np.float64) for k in _VALUES}
            count = int(value["count"])
        except SchemaError:
            raise
        except (TypeError, ValueError) as error:
            raise SchemaError(f"statistics cannot be read: {error}") from None
        if len({a.shape for a in arrays.values()}) != 1 or not all(np.isfinite(a).all() for a in arrays.values()):
            raise SchemaError("statistics are not finite or of unequal shapes; compute them again from the dataset")
        return cls(count=count, **arrays)


def statistics(
    dataset: Dataset,
    streams: Sequence[str] | None = None,
    *,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, StreamStatistics]:
    """Statistics of ``streams`` over ``episodes`` (all by default), read piece by piece, without invalid rows.

    Images are left out: their scale is fixed (0 to 255), not learnt from data; so are texts. ``progress`` is called
    with (rows read, rows to read) over all streams.

    Raises:
        SchemaError: an unknown stream, one of images or texts, or no valid row to count.
    """
    return joint_statistics([(dataset, episodes)], streams, progress=progress)


def joint_statistics(
    parts: Sequence[tuple[Dataset, Sequence[int] | None]],
    streams: Sequence[str] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, StreamStatistics]:
    """Statistics over the chosen episodes (None: all) of several datasets together, every row counted once.

    Raises:
        SchemaError: see ``statistics``; or a stream that has not the same shape in all of them.
    """
    schema = parts[0][0].schema
    if streams is None:
        streams = [name for name, stream in schema.streams.items() if stream.kind not in ("image", "text")]
    rows = sum(dataset.steps for dataset, _ in parts)
    found = {}
    for number, name in enumerate(streams):

        def report(done: int, before: int = number * rows) -> None:
            if progress:
                progress(before + done, rows * len(streams))

        found[name] = _of_stream(parts, name, report)
    return found


def degenerate_components(
    schema_streams: Mapping[str, Stream], values: Mapping[str, StreamStatistics], tolerance: float = 1e-4
) -> list[str]:
    """Names of the components that do not vary, "stream.component" or "stream[i]" where they have no names."""
    found = []
    for name, value in values.items():
        indices = np.argwhere(value.degenerate(tolerance)).tolist()
        found += [component_name(name, schema_streams[name], index) for index in indices]
    return found


def component_name(name: str, stream: Stream, index: Sequence[int]) -> str:
    """How a person is told of one component: "state.x", "keypoint[3, y]", "joints[2]"."""
    at = [str(i) for i in index]
    if stream.names and at:
        at[-1] = stream.names[index[-1]]
    return f"{name}.{at[-1]}" if stream.names and len(at) == 1 else f"{name}[{', '.join(at)}]" if at else name


def statistics_to_json(values: Mapping[str, StreamStatistics]) -> dict[str, Any]:
    """The content of a checkpoint's statistics.json."""
    return {name: value.to_json() for name, value in values.items()}


def statistics_from_json(value: Mapping[str, Any]) -> dict[str, StreamStatistics]:
    """Read what ``statistics_to_json`` wrote. Raises SchemaError as ``StreamStatistics.from_json`` does."""
    return {name: StreamStatistics.from_json(v) for name, v in value.items()}


def _of_stream(
    parts: Sequence[tuple[Dataset, Sequence[int] | None]], name: str, report: Callable[[int], None]
) -> StreamStatistics:
    stream = parts[0][0].schema.stream(name)
    if stream.kind == "image":
        raise SchemaError(f"stream {name!r} holds images, whose scale is fixed (0 to 255); take another stream")
    if stream.kind == "text":
        raise SchemaError(f"stream {name!r} holds texts; take another stream")
    for dataset, _ in parts:
        if dataset.schema.stream(name).shape != stream.shape:
            raise SchemaError(f"stream {name!r} has not the same shape in all datasets: not in {dataset.location}")
    chosen = [_chosen(dataset, name, episodes) for dataset, episodes in parts]
    total = sum(int(use.sum()) for use in chosen)
    if not total:
        raise SchemaError(f"stream {name!r} has no valid row to compute statistics from")

    shape = stream.shape[1:] if stream.kind == "points" else stream.shape
    every = -(-total * (stream.shape[0] if stream.kind == "points" else 1) // _QUANTILE_ROWS)
    count = done = 0
    low = np.full(shape, np.inf)
    high = np.full(shape, -np.inf)
    mean = np.zeros(shape)
    squares = np.zeros(shape)  # sum of squared distances from the mean (Chan, Golub and LeVeque, 1983)
    sample = []
    for (dataset, _), use in zip(parts, chosen, strict=True):
        for row, block in dataset.blocks(name):
            values = block[use[row : row + len(block)]].astype(np.float64).reshape(-1, *shape)
            done += len(block)
            report(done)
            if not len(values):
                continue
            if not np.isfinite(values).all():
                raise SchemaError(
                    f"stream {name!r} of {dataset.location} holds NaN or infinity; `robolearn data validate` says where"
                )
            block_mean = values.mean(0)
            step = block_mean - mean
            squares += ((values - block_mean) ** 2).sum(0) + step**2 * (count * len(values) / (count + len(values)))
            mean = mean + step * (len(values) / (count + len(values)))
            low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
            sample.append(values[(-count) % every :: every])
            count += len(values)
    q01, q99 = np.quantile(np.concatenate(sample), [0.01, 0.99], axis=0)
    std = np.sqrt(squares / count)
    return StreamStatistics(count, low, high, np.asarray(mean), np.asarray(std), np.asarray(q01), np.asarray(q99))


def _chosen(dataset: Dataset, name: str, episodes: Sequence[int] | None) -> np.ndarray:
    """(N,) bool: valid rows of the chosen episodes."""
    use = dataset.valid(name)
    if episodes is None:
        return use
    chosen = np.zeros(dataset.steps, bool)
    for episode in episodes:
        chosen[dataset.rows(episode)] = True
    return use & chosen
