"""Training windows: every stretch of ``horizon`` control steps within one episode.

B = batch, H = horizon, W = windows, E = episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robolearn_data.schema import SchemaError


@dataclass(frozen=True)
class Windows:
    """Numbered windows, episode after episode, each shifted by one step from the one before. Made by ``windows``."""

    horizon: int
    pad_before: int
    episodes: np.ndarray
    """(E,) numbers of the episodes that are used."""
    begin: np.ndarray
    """(E,) first row of each."""
    end: np.ndarray
    """(E,) row after the last of each."""
    first: np.ndarray
    """(E + 1,) number of each episode's first window; the last entry is W."""

    def __len__(self) -> int:
        return int(self.first[-1])

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows (B,) -> number of the episode (B,) and step of that episode (B,) at which the window starts.

        The step is negative for windows that begin with padding.

        Raises:
            IndexError: a number outside [0, W).
        """
        place, start = self._place(numbers)
        return self.episodes[place], start

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows (B,) -> rows (B, H) of the dataset, and mask (B, H) that is True where a step is padding.

        Steps outside the episode repeat its first or last row.

        Raises:
            IndexError: a number outside [0, W).
        """
        place, start = self._place(numbers)
        begin = self.begin[place][:, None]
        last = self.end[place][:, None] - 1
        wanted = begin + start[:, None] + np.arange(self.horizon)
        return np.clip(wanted, begin, last), (wanted < begin) | (wanted > last)

    def _place(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = np.asarray(numbers)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"window numbers must be in [0, {len(self)})")
        place = np.searchsorted(self.first, numbers, side="right") - 1
        return place, numbers - self.first[place] - self.pad_before


def windows(
    episode_ends: np.ndarray, horizon: int, pad_before: int, pad_after: int, *, episodes: Sequence[int] | None = None
) -> Windows:
    """All windows of ``horizon`` steps, with up to ``pad_before`` steps before and ``pad_after`` after an episode.

    An episode of L steps has L + pad_before + pad_after - horizon + 1 windows, as in Diffusion Policy (Chi et al.,
    2023), except that one too short for any has one, padded further at its end, so that every row is used.

    Args:
        episode_ends: (E,) cumulative ends as in a dataset.
        episodes: numbers of the episodes to use, for a held-out split; all by default.

    Raises:
        SchemaError: a horizon or padding that would make windows of padding alone, or an episode that does not exist.
    """
    ends = np.asarray(episode_ends, np.int64)
    if horizon < 1 or not 0 <= pad_before < horizon or not 0 <= pad_after < horizon:
        raise SchemaError(
            f"horizon {horizon} with padding {pad_before} before and {pad_after} after is not possible; "
            "horizon must be positive and each padding from 0 to horizon - 1"
        )
    chosen = np.arange(len(ends)) if episodes is None else np.asarray(episodes, np.int64)
    wrong = chosen[(chosen < 0) | (chosen >= len(ends))]
    if wrong.size:
        raise SchemaError(f"no episode {wrong[0]}; valid: 0 to {len(ends) - 1}")
    begin = np.concatenate(([0], ends))[chosen]
    counts = np.maximum(ends[chosen] - begin + pad_before + pad_after - horizon + 1, 1)
    return Windows(horizon, pad_before, chosen, begin, ends[chosen], np.concatenate(([0], np.cumsum(counts))))
