"""How a scheduler's chunks become the one that a trajectory follows: for continuous motion what
``plan.py`` is for worlds, where one action is chosen at each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from robolearn_deploy.chunks import Chunk
from robolearn_deploy.plan import EnsemblePlan, WaitPlan
from robolearn_deploy.schedulers import find

DECAY = 0.01
"""m of ACT's published code, as in ``ensembling.ensemble_weights``."""

Combination = Callable[[Chunk, int], Chunk]
"""(chunk, instant of its arrival) -> the chunk to follow from here on."""


def combination(scheduler: str, execute: int, start: int, period_ns: int) -> Combination:
    """Of ``scheduler``, for one episode. ``execute``, ``start``, ``period_ns``: as in ``plan.PlanTiming``."""
    plan = find(scheduler).plan
    if plan is WaitPlan:
        return lambda chunk, now_ns: delayed(chunk, now_ns, execute, start, period_ns)
    if plan is EnsemblePlan:
        return Ensemble(period_ns)
    return lambda chunk, now_ns: chunk


def delayed(chunk: Chunk, now_ns: int, execute: int, start: int, period_ns: int) -> Chunk:
    """``chunk`` as if its observation had been captured now, for ``execute`` actions: the robot has waited for it."""
    times_ns = chunk.times_ns - chunk.times_ns[start] + now_ns
    return replace(chunk, times_ns=times_ns, expiry_ns=min(now_ns + execute * period_ns, int(times_ns[-1]) + period_ns))


class Ensemble:
    """Temporal ensembling (``robolearn.policies.ensembling``): at each of a chunk's instants the mean of what all
    chunks say that cover it; a chunk weighs exp(-m i) if it was made i control steps after the oldest. Linear between
    the actions of older chunks."""

    def __init__(self, period_ns: int) -> None:
        self._period_ns = period_ns
        self._chunks: list[Chunk] = []  # oldest first

    def __call__(self, chunk: Chunk, now_ns: int) -> Chunk:
        self._chunks = [c for c in self._chunks if now_ns < c.expiry_ns and c.sequence != chunk.sequence]
        if not np.isfinite(chunk.actions).all():  # it will be refused
            return chunk
        self._chunks.append(chunk)
        times = chunk.times_ns
        total, weights = np.zeros(chunk.actions.shape), np.zeros(len(times))
        for other in self._chunks:
            covered = (times >= other.times_ns[0]) & (times <= other.times_ns[-1])
            later = (other.capture_ns - self._chunks[0].capture_ns) / self._period_ns
            weight = np.where(covered, np.exp(-DECAY * later), 0.0)
            base = int(other.times_ns[0])
            at, knots = (times - base).astype(float), (other.times_ns - base).astype(float)
            values = np.stack([np.interp(at, knots, column) for column in other.actions.T.astype(float)], axis=1)
            total, weights = total + weight[:, None] * values, weights + weight
        return replace(chunk, actions=total / weights[:, None])
