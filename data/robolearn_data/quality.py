"""Figures that tell good demonstrations from bad ones, per episode, and a ranking of the episodes to look at first.

Nearest-neighbour figures follow Belkhale et al., "Data Quality in Imitation Learning" (2023): a policy learns easily
where nearby states have like actions (low action variance) and like actions have like outcomes.

N = rows, D = state features, A = action components. All states and actions are compared in standard deviations of the
dataset ("sd"); angles that wrap count as cosine and sine, and each stream counts the same however many components it
has. Invalid rows count like the sample that they repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robolearn_data import storage
from robolearn_data.copying import Progress
from robolearn_data.dataset import Dataset
from robolearn_data.schema import UserError
from robolearn_data.selection import episode_infos

NEIGHBOURS = 16
_REFERENCE_ROWS = 4_000
_QUERY_ROWS = 30_000
_IDLE = 0.05
OUTLIER = 4.0
"""Robust z-score from which a figure is named as a reason."""


class QualityError(UserError):
    """The dataset does not hold what the figures need."""


FIGURES = {
    "duration_s": ("seconds", "takes long"),
    "path_sd": ("sd travelled by the state", "travels far"),
    "idle": ("share of steps whose motion is below 5 % of the dataset's median step", "stands still much"),
    "jerk": ("sd/s^3, root mean square third derivative of the state", "moves jerkily"),
    "action_change": ("sd/s, root mean square rate of change of the action", "has shaky actions"),
    "action_variance": (
        "sd^2, squared distance of its actions from those of other episodes in nearby states",
        "acts unlike the other episodes in like states",
    ),
    "transition_variance": (
        "squared distance, in sd of a step, of what happened from what did in others after like states and actions",
        "has states that do not follow from its actions as in other episodes",
    ),
}
"""Figure -> (unit or definition, what an outlier upwards means)."""


@dataclass(frozen=True)
class EpisodeQuality:
    episode: int
    steps: int
    duration_s: float
    success: bool | None
    time_to_success_s: float | None
    """Duration of an episode noted as a success; None where that is not known."""
    path_sd: float
    path_ratio: float
    """``path_sd`` over that of the shortest path among the successful episodes (among all if success is not noted)."""
    idle: float
    jerk: float
    action_change: float
    action_variance: float
    transition_variance: float
    z: dict[str, float]
    """Figure -> robust z-score of its logarithm: distance from the median over 1.4826 times the median deviation."""
    reasons: tuple[str, ...]

    @property
    def score(self) -> float:
        """How far it stands out: what its z-scores exceed 3 by, summed; 0 for an ordinary episode."""
        return sum(max(z - 3.0, 0.0) for z in self.z.values())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "score": self.score}


@dataclass(frozen=True)
class Quality:
    """Of a whole dataset."""

    episodes: list[EpisodeQuality]
    """The most conspicuous first."""
    action_variance: float
    """Mean over rows, sd^2: low is good for imitation."""
    transition_diversity: float
    """Mean variance of the steps that follow like states and actions, relative to that of all steps: 0 where the world
    is determined by them, 1 where they say nothing about what comes next."""

    def to_json(self) -> dict[str, Any]:
        return {
            "action_variance": self.action_variance,
            "transition_diversity": self.transition_diversity,
            "definitions": {name: definition for name, (definition, _) in FIGURES.items()},
            "episodes": [episode.to_json() for episode in self.episodes],
        }


def quality(dataset: Dataset, streams: Sequence[str] | None = None, *, progress: Progress | None = None) -> Quality:
    """Compute every figure from the states and the stream named "action".

    Args:
        streams: what counts as state; by default every stream of kind state.
        progress: called with (rows compared, rows to compare).

    Raises:
        QualityError: fewer than three episodes, no state or no stream "action".
        SchemaError: an unknown stream.
    """
    schema = dataset.schema
    names = list(streams or [n for n, s in schema.of_kind("state").items() if not storage.is_framed(s)])
    if dataset.episodes < 3 or not names or "action" not in schema.streams:
        raise QualityError(
            f"{dataset.location} has {dataset.episodes} episodes, {len(names)} state streams and streams "
            f"{', '.join(schema.streams)}; needed: three episodes, a stream of kind state and one named 'action'"
        )
    state = _scaled([_features(dataset, name) for name in names])  # (N, D)
    action = _scaled([_features(dataset, "action")])  # (N, A)
    episode_of = np.repeat(np.arange(dataset.episodes), np.diff(dataset.episode_ends, prepend=0))
    step = np.diff(state, axis=0, append=state[-1:])
    inside = np.append(episode_of[1:] == episode_of[:-1], False)
    step[~inside] = 0.0
    motion = np.linalg.norm(step, axis=1)
    moving = motion[inside & (motion > 0)]
    idle_below = _IDLE * float(np.median(moving)) if moving.size else 0.0

    # What a linear law explains is taken away first, so that neighbours differ by what they do, not by where they are.
    unusual_action = _residual(action, state)
    step_sd = step / max(float(np.sqrt((step[inside] ** 2).sum(1).mean())), 1e-12)
    both = np.hstack([state, unusual_action])
    unusual_step = _residual(step_sd, np.hstack([both, action]), inside)
    total = 2 * min(len(state), _QUERY_ROWS)
    rows_a, off_a, spread_a = _against_neighbours(state, unusual_action, episode_of, np.ones_like(inside))
    if progress:
        progress(total // 2, total)
    rows_t, off_t, spread_t = _against_neighbours(both, unusual_step, episode_of, inside)
    if progress:
        progress(total, total)

    rate = schema.rate_hz
    infos = episode_infos(dataset)
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    for episode in range(dataset.episodes):
        rows = dataset.rows(episode)
        count = rows.stop - rows.start
        moves = slice(rows.start, rows.stop - 1)
        figures["duration_s"].append(count / rate)
        figures["path_sd"].append(float(motion[moves].sum()))
        figures["idle"].append(float((motion[moves] <= idle_below).mean()) if count > 1 else 1.0)
        figures["jerk"].append(_rms(np.diff(state[rows], n=3, axis=0)) * rate**3)
        figures["action_change"].append(_rms(np.diff(action[rows], axis=0)) * rate)
        figures["action_variance"].append(_mean(off_a[episode_of[rows_a] == episode]))
        figures["transition_variance"].append(_mean(off_t[episode_of[rows_t] == episode]))

    z = {name: _robust_z(np.array(values), floor=0.1 if name == "idle" else 0.0) for name, values in figures.items()}
    success = [info["success"] if isinstance(info.get("success"), bool) else None for info in infos]
    paths = [path for path, good in zip(figures["path_sd"], success, strict=True) if good] or figures["path_sd"]
    shortest = max(min(paths), 1e-12)
    found = []
    for i in range(dataset.episodes):
        own = {name: float(values[i]) for name, values in z.items()}
        far = sorted((name for name in own if own[name] > OUTLIER), key=lambda name: -own[name])
        reasons = [_reason(name, figures[name][i], float(np.median(figures[name]))) for name in far]
        if success[i] is False:
            reasons.append("is noted as a failure")
        values = {name: values[i] for name, values in figures.items()}
        found.append(
            EpisodeQuality(
                episode=i,
                steps=round(values["duration_s"] * rate),
                success=success[i],
                time_to_success_s=values["duration_s"] if success[i] else None,
                path_ratio=values["path_sd"] / shortest,
                z=own,
                reasons=tuple(reasons),
                **values,
            )
        )
    found.sort(key=lambda e: (-e.score, e.episode))
    diversity = spread_t.mean() / max(float((step_sd[inside] ** 2).sum(1).mean()), 1e-12)
    return Quality(found, float(spread_a.mean()), float(diversity))


def _features(dataset: Dataset, name: str) -> np.ndarray:
    """A stream as (N, F) float64, wrapped angles as cosine and sine."""
    stream = dataset.schema.stream(name)
    values = dataset.read(name).reshape(dataset.steps, -1).astype(np.float64)
    wraps = list(stream.wraps)
    others = np.delete(values, wraps, axis=1)
    return np.hstack([others, np.cos(values[:, wraps]), np.sin(values[:, wraps])])


def _scaled(parts: list[np.ndarray]) -> np.ndarray:
    """Each part in standard deviations of its components and together of unit mean square, side by side."""
    scaled = []
    for part in parts:
        std = part.std(0)
        vary = std > 1e-6 * np.maximum(np.abs(part).max(0), 1e-6)
        good = (part[:, vary] - part[:, vary].mean(0)) / std[vary]
        scaled.append(good / np.sqrt(max(good.shape[1], 1)))
    return np.hstack(scaled)


def _residual(values: np.ndarray, given: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """``values`` less their best linear prediction from ``given``, fitted to ``rows``."""
    inputs = np.hstack([given, np.ones((len(given), 1))])
    use = slice(None) if rows is None else rows
    weights = np.linalg.lstsq(inputs[use], values[use], rcond=1e-8)[0]
    return values - inputs @ weights


def _against_neighbours(
    points: np.ndarray, values: np.ndarray, episode_of: np.ndarray, usable: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (Q,) compared; squared distance (Q,) of each row's value from the mean of its neighbours' in other episodes;
    variance (Q,) among those neighbours. References and queries are evenly spread rows where there are many."""
    rows = np.flatnonzero(usable)
    reference = rows[:: -(-len(rows) // _REFERENCE_ROWS)]
    query = rows[:: -(-len(rows) // _QUERY_ROWS)]
    anchors, anchor_values = points[reference].astype(np.float32), values[reference]
    norms = (anchors**2).sum(1)
    off, spread = np.empty(len(query)), np.empty(len(query))
    for start in range(0, len(query), 1024):
        part = query[start : start + 1024]
        distance = norms - 2 * points[part].astype(np.float32) @ anchors.T
        distance[episode_of[part][:, None] == episode_of[reference]] = np.inf
        k = min(NEIGHBOURS, distance.shape[1] - 1)
        near = np.argpartition(distance, k, axis=1)[:, :k]
        around = anchor_values[near]  # (q, k, A)
        mean = around.mean(1)
        off[start : start + 1024] = ((values[part] - mean) ** 2).sum(1)
        spread[start : start + 1024] = ((around - mean[:, None]) ** 2).sum(2).mean(1)
    return query, off, spread


def _robust_z(values: np.ndarray, floor: float) -> np.ndarray:
    """Of the logarithm, since these figures are products of many causes; ``floor`` is added to what may be 0."""
    logs = np.log(np.maximum(values + floor, 1e-9))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    return (logs - middle) / max(float(spread), 0.1)


def _reason(name: str, value: float, usual: float) -> str:
    if name == "idle":
        return f"{FIGURES[name][1]} ({value:.0%} of its steps, usually {usual:.0%})"
    return f"{FIGURES[name][1]} ({name} {value:.3g}, usually {usual:.3g})"


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).sum(1).mean())) if len(values) else 0.0


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0
