"""Which training windows make up a batch: shuffled, of one or several datasets, and a function of (seed, step) alone.

So a run that is stopped goes on with exactly what it would have seen, on any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from robolearn_data.schema import SchemaError


@dataclass(frozen=True)
class Mixture:
    """An endless, shuffled sequence of windows of D datasets.

    Within each dataset every window comes once before any comes again. Draws are numbered; a batch of step s is draws
    ``[s * batch_size, (s + 1) * batch_size)``.
    """

    sizes: tuple[int, ...]
    """Windows of each dataset."""
    seed: int = 0
    weights: tuple[float, ...] = ()
    """How often each dataset is drawn, relative to the others, whatever its size. Empty: as often as it has windows."""
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise SchemaError(f"every dataset needs a window at least; they have {self.sizes}")
        weights = np.asarray(self.weights, float)
        if len(weights) not in (0, len(self.sizes)):
            raise SchemaError(f"{len(weights)} weights for {len(self.sizes)} datasets; give one for each, or none")
        if len(weights) and not (np.isfinite(weights).all() and (weights > 0).all()):
            raise SchemaError(f"weights {self.weights} must be positive; leave a dataset out to ignore it")

    @property
    def shares(self) -> np.ndarray:
        """(D,) part of the draws that each dataset has; they sum to 1."""
        weights = np.asarray(self.weights or self.sizes, float)
        return weights / weights.sum()

    def batch(self, step: int, batch_size: int, rank: int = 0, processes: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Dataset (B,) and window number in it (B,) for the batch of ``step``, or this process's part of it.

        Raises:
            SchemaError: the batch cannot be shared equally.
        """
        if batch_size % processes:
            raise SchemaError(f"a batch of {batch_size} cannot be shared by {processes} processes")
        mine = batch_size // processes
        first = step * batch_size + rank * mine
        return self.draws(first, first + mine)

    def draws(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Dataset (n,) and window number (n,) of draws ``[start, stop)``."""
        size = self._block
        datasets = np.empty(stop - start, np.int64)
        windows = np.empty(stop - start, np.int64)
        for block in range(start // size, -(-stop // size)):
            first = block * size
            here = slice(max(start, first) - first, min(stop, first + size) - first)
            there = slice(first + here.start - start, first + here.stop - start)
            chosen = self._chosen(block)
            datasets[there] = chosen[here]
            for dataset in np.unique(chosen[here]):
                turns = np.cumsum(chosen == dataset) - 1 + self._before(block)[dataset]
                mask = chosen[here] == dataset
                windows[there][mask] = self._windows(int(dataset), turns[here][mask])
        return datasets, windows

    @property
    def _block(self) -> int:
        """Draws among which every dataset has its share, as far as whole numbers allow."""
        return max(4096, len(self.sizes) ** 2)

    def _before(self, block: int) -> np.ndarray:
        """(D,) draws of each dataset before a block; it never falls from one block to the next.

        Each share is rounded for itself, and the largest takes up the difference, which is below D.
        """
        counts = np.floor(block * self._block * self.shares + 0.5).astype(np.int64)
        counts[np.argmax(self.shares)] += block * self._block - counts.sum()
        return counts

    def _chosen(self, block: int) -> np.ndarray:
        """The dataset of each draw of a block."""
        chosen = np.repeat(np.arange(len(self.sizes)), self._before(block + 1) - self._before(block))
        return chosen if len(self.sizes) == 1 else np.random.default_rng([self.seed, 1, block]).permutation(chosen)

    def _windows(self, dataset: int, turns: np.ndarray) -> np.ndarray:
        """The windows that come at the given turns (n,) of a dataset."""
        size = self.sizes[dataset]
        out = np.empty(len(turns), np.int64)
        epochs = turns // size
        for epoch in np.unique(epochs):
            key = (dataset, int(epoch))
            if key not in self._orders:
                for old in [k for k in self._orders if k[0] == dataset and k[1] < epoch - 1]:
                    del self._orders[old]
                self._orders[key] = np.random.default_rng([self.seed, 2, dataset, int(epoch)]).permutation(size)
            mask = epochs == epoch
            out[mask] = self._orders[key][turns[mask] % size]
        return out


def held_out(episodes: int, part: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Numbers of the episodes to train on, and of those held out: a random ``part`` of them, one of each kind at least.

    An episode that is appended later changes nothing about the earlier ones: each is drawn for itself.

    Raises:
        SchemaError: ``part`` is not in [0, 1), or there is but one episode to hold out of.
    """
    if not 0 <= part < 1:
        raise SchemaError(f"the part of episodes held out must be from 0 to below 1, got {part:g}")
    if part == 0:
        return list(range(episodes)), []
    if episodes < 2:
        raise SchemaError(f"holding out {part:g} of {episodes} episodes leaves none to train on; record more")
    draws = np.array([np.random.default_rng([seed, 3, i]).random() for i in range(episodes)])
    out = draws < part
    out[np.argmin(draws)] = True
    out[np.argmax(draws)] = False
    return np.flatnonzero(~out).tolist(), np.flatnonzero(out).tolist()
