"""Temporal ensembling: the action of an instant is averaged over all chunks that predicted it.

Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware" (ACT), section IV. numpy only, so
that a control process needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ensemble_weights(ages: np.ndarray | Sequence[float], m: float = 0.01) -> np.ndarray:
    """Weights exp(-m i) of K predictions of one instant, where i = 0 is the oldest, which weighs most; they sum to 1.

    Args:
        ages: (K,) control steps since each prediction's observation. ACT infers at every step, so that its i-th
            prediction is i steps younger than the oldest; here the steps count, however often is inferred.
        m: how fast a younger prediction's weight falls behind, per control step; 0 is a plain average.

    Returns:
        (K,).
    """
    ages = np.asarray(ages, np.float64)
    weights = np.exp(-m * (ages.max() - ages))
    return weights / weights.sum()


def temporal_ensemble(
    chunks: Sequence[np.ndarray], ages: Sequence[int], start: int, m: float = 0.01
) -> np.ndarray | None:
    """The action of the present instant, averaged over the chunks that have one for it.

    Args:
        chunks: K of (Tp, *action shape).
        ages: (K,) control steps since each chunk's observation: its action for now has the index ``start + age``.
        start: index of the action that belongs to a chunk's observation.
        m: as in ``ensemble_weights``.

    Returns:
        (*action shape); None if no chunk reaches the present.
    """
    reaching = [k for k, age in enumerate(ages) if 0 <= start + age < len(chunks[k])]
    if not reaching:
        return None
    weights = ensemble_weights([ages[k] for k in reaching], m)
    return np.tensordot(weights, np.stack([chunks[k][start + ages[k]] for k in reaching]), axes=1)
