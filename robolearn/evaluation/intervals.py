"""How sure a measured rate or mean is: 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a binomial rate (Wilson, JASA 22, 1927).

    Honest at rates of 0 and 1, where the textbook interval has no width.

    Returns:
        (low, high) in [0, 1]; (0, 1) when nothing was tried.

    Raises:
        ValueError: counts that cannot be.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials cannot be")
    if trials == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    rate = successes / trials
    centre = rate + z2 / (2 * trials)
    half = math.sqrt(z2 * (rate * (1 - rate) / trials + z2 / (4 * trials**2)))
    low, high = (centre - half) / (1 + z2 / trials), (centre + half) / (1 + z2 / trials)
    # Exact at the ends, where rounding would leave 1e-17.
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def mean_interval(values: Sequence[float], confidence: float = 0.95, resamples: int = 4000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent values (Efron and Tibshirani, 1993, chapter 13).

    Scores are bounded and piled up at 1, so that an interval from Student's t would reach past 1. The resampling is
    seeded: the same values give the same interval. Equal values give an interval without width, which says only that
    no spread was seen.

    Returns:
        (low, high); (nan, nan) for no values.
    """
    if not len(values):
        return math.nan, math.nan
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(0)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
