"""Which windows a dataset has: each has a *present*, a control step of its episode, around which streams are read.

What of each stream belongs to a window is said in ``reading.py``. B = batch, W = windows, E = episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robolearn_data.schema import SchemaError


@dataclass(frozen=True)
class Windows:
    """Numbered windows, episode after episode, each one control step later than the one before. See ``windows``."""

    episodes: np.ndarray
    """(E,) numbers of the episodes that are used."""
    first: np.ndarray
    """(E + 1,) number of each episode's first window, whose present is the episode's first step; the last is W."""

    def __len__(self) -> int:
        return int(self.first[-1])

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows (B,) -> number of the episode (B,) and its step (B,) that is the window's present.

        Raises:
            IndexError: a number outside [0, W).
        """
        numbers = np.asarray(numbers)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"window numbers must be in [0, {len(self)})")
        place = np.searchsorted(self.first, numbers, side="right") - 1
        return self.episodes[place], numbers - self.first[place]


def windows(
    episode_ends: np.ndarray, horizon: int, pad_before: int, pad_after: int, *, episodes: Sequence[int] | None = None
) -> Windows:
    """All windows of ``horizon`` steps, with up to ``pad_before`` steps before and ``pad_after`` after an episode.

    The present is ``pad_before`` steps after a window's first one. An episode of L steps has
    L + pad_before + pad_after - horizon + 1 windows, as in Diffusion Policy (Chi et al., 2023), except that one too
    short for any has one, so that every row is used.

    Args:
        episode_ends: (E,) cumulative ends as in a dataset.
        episodes: numbers of the episodes to use, for a held-out split; all by default.

    Raises:
        SchemaError: a horizon or padding that would put the present outside its episode, or an unknown episode.
    """
    ends = np.asarray(episode_ends, np.int64)
    if pad_before < 0 or pad_after < 0 or pad_before + pad_after >= horizon:
        raise SchemaError(
            f"horizon {horizon} with padding {pad_before} before and {pad_after} after is not possible; "
            "neither padding may be negative, and both together must be below horizon"
        )
    chosen = np.arange(len(ends)) if episodes is None else np.asarray(episodes, np.int64)
    wrong = chosen[(chosen < 0) | (chosen >= len(ends))]
    if wrong.size:
        raise SchemaError(f"no episode {wrong[0]}; valid: 0 to {len(ends) - 1}")
    lengths = np.diff(ends, prepend=0)[chosen]
    counts = np.maximum(lengths + pad_before + pad_after - horizon + 1, 1)
    return Windows(chosen, np.concatenate(([0], np.cumsum(counts))))
