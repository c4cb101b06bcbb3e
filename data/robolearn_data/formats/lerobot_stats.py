"""The statistics that LeRobot keeps of every episode and of the whole dataset, in its own form.

The same pictures and pixels are looked at. Sums are exact, where LeRobot adds the pixels of an episode up in float32, a
million values of 255 beyond 2**24 or so: PushT's std comes out up to 0.017 too small there. Quantiles are exact within
an episode, where LeRobot estimates them from histograms; those of the dataset are means over episodes weighted by their
counts, as LeRobot aggregates them. Source: lerobot v0.6.1, datasets/compute_stats.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Stats = dict[str, np.ndarray]
"""min, max, mean, std, count and quantiles of one feature."""

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def vector_stats(values: np.ndarray) -> Stats:
    """Statistics (k,) of the values (n, k) of one episode."""
    wide = values.astype(np.float64)
    quantiles = np.quantile(wide, list(QUANTILES.values()), axis=0)
    return {
        "min": wide.min(axis=0),
        "max": wide.max(axis=0),
        "mean": wide.mean(axis=0),
        "std": wide.std(axis=0),
        "count": np.array([len(values)]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def sampled(rows: int) -> np.ndarray:
    """The rows of an episode whose pictures LeRobot looks at: all up to 100, then fewer and fewer of them."""
    count = min(max(min(rows, 100), int(rows**0.75)), 10_000)
    return np.unique(np.round(np.linspace(0, rows - 1, count)).astype(int))


class PictureStats:
    """Counts the values of each channel over pictures (H, W, C) uint8; large ones are thinned out as LeRobot does."""

    def __init__(self, channels: int) -> None:
        self._pictures = 0
        self._counts = np.zeros((channels, 256), np.int64)

    def add(self, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        step = max(width, height) // 150 if max(width, height) >= 300 else 1
        for channel, counts in enumerate(self._counts):
            counts += np.bincount(picture[::step, ::step, channel].ravel(), minlength=256)
        self._pictures += 1

    def stats(self) -> Stats:
        """Statistics (C, 1, 1) of values from 0 to 1."""
        levels = np.arange(256) / 255
        total = self._counts[0].sum()
        mean = self._counts @ levels / total
        variance = self._counts @ levels**2 / total - mean**2
        cumulative = np.cumsum(self._counts, axis=1)

        def quantile(q: float) -> np.ndarray:
            return np.array([levels[np.searchsorted(counts, q * total)] for counts in cumulative])

        found = {
            "min": np.array([levels[np.flatnonzero(counts)[0]] for counts in self._counts]),
            "max": np.array([levels[np.flatnonzero(counts)[-1]] for counts in self._counts]),
            "mean": mean,
            "std": np.sqrt(np.maximum(variance, 0)),
            **{name: quantile(q) for name, q in QUANTILES.items()},
        }
        return {**{name: value.reshape(-1, 1, 1) for name, value in found.items()}, "count": np.array([self._pictures])}


def aggregate(parts: Sequence[Stats]) -> Stats:
    """Statistics of the whole from those of its episodes."""
    count = np.array([part["count"][0] for part in parts], np.float64)
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0] if name != "count"}
    weights = (count / count.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    mean = (stacked["mean"] * weights).sum(axis=0)
    variance = ((stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2) * weights).sum(axis=0)
    return {
        "min": stacked["min"].min(axis=0),
        "max": stacked["max"].max(axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([int(count.sum())]),
        **{name: (stacked[name] * weights).sum(axis=0) for name in QUANTILES},
    }
