"""What an evaluation found: one line per episode, and the figures made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from robolearn.evaluation.intervals import mean_interval, wilson_interval


@dataclass(frozen=True)
class EpisodeResult:
    seed: int
    """Names the start of the episode."""
    score: float
    """Maximum over the steps, in [0, 1]."""
    success: bool
    """Solved at any step."""
    length: int
    """Control steps taken."""
    success_step: int | None = None
    """Steps taken when it was first solved."""
    non_finite: bool = False
    """The policy gave NaN or infinity, which ended the episode as a failure."""
    jerk: float | None = None
    """Mean magnitude of the third derivative of the commanded position, units per s^3; None where not measured."""
    jump: float | None = None
    """Mean change of the action from one step to the next where a chunk followed another."""
    step: float | None = None
    """Mean change of the action from one step to the next inside the chunks."""
    held: int = 0
    """Steps without a valid action, in which the robot held."""


@dataclass(frozen=True)
class Latency:
    """Observation to chunk of actions, for one world (batch 1) on one thread, after a warm-up."""

    ms_p50: float
    ms_p99: float
    calls: int


@dataclass(frozen=True)
class Evaluation:
    world: str
    results: tuple[EpisodeResult, ...]
    """In the order of the seeds that were asked for."""
    wall_s: float
    """Duration of the rollouts, without starting processes and loading."""
    latency: Latency | None = None
    """None when it was not measured."""

    @property
    def episodes(self) -> int:
        return len(self.results)

    @property
    def successes(self) -> int:
        return sum(r.success for r in self.results)

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes

    @property
    def success_interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson_interval(self.successes, self.episodes)

    @cached_property
    def score(self) -> float:
        """Mean over the episodes."""
        return float(np.mean([r.score for r in self.results]))

    @cached_property
    def score_interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean."""
        return mean_interval([r.score for r in self.results])

    @property
    def jerk(self) -> float | None:
        """Mean over the episodes of the third derivative of the commanded position, units per s^3."""
        return _mean([r.jerk for r in self.results])

    @property
    def join(self) -> float | None:
        """Mean change of the action where a chunk follows another, over its mean change inside the chunks: 1 is a join
        that cannot be told from the inside of a chunk."""
        jump, step = _mean([r.jump for r in self.results]), _mean([r.step for r in self.results])
        return jump / step if jump is not None and step else None

    @property
    def non_finite(self) -> int:
        """Episodes that ended because the policy gave NaN or infinity."""
        return sum(r.non_finite for r in self.results)

    @property
    def steps(self) -> int:
        return sum(r.length for r in self.results)

    @property
    def steps_per_s(self) -> float:
        """Control steps per second of wall time over all worlds, inference included."""
        return self.steps / self.wall_s if self.wall_s > 0 else 0.0

    def by_score(self) -> list[EpisodeResult]:
        """Worst first; among equal scores the longer episode is the worse one."""
        return sorted(self.results, key=lambda r: (r.success, r.score, -r.length))

    def summary(self) -> str:
        """One line for a progress report."""
        low, high = (100 * v for v in self.success_interval)
        rate = f"{100 * self.success_rate:.0f} % [{low:.0f}, {high:.0f}]"
        return f"score {self.score:.3f}, success {rate} in {self.episodes} episodes"

    def to_json(self) -> dict[str, Any]:
        return {
            "world": self.world,
            "episodes": self.episodes,
            "seed": self.results[0].seed,
            "score": self.score,
            "score_interval": list(self.score_interval),
            "success_rate": self.success_rate,
            "success_interval": list(self.success_interval),
            "latency_ms_p50": self.latency.ms_p50 if self.latency else None,
            "latency_ms_p99": self.latency.ms_p99 if self.latency else None,
            "latency_calls": self.latency.calls if self.latency else 0,
            "steps": self.steps,
            "steps_per_s": self.steps_per_s,
            "wall_s": self.wall_s,
            "non_finite_episodes": self.non_finite,
            "jerk": self.jerk,
            "join": self.join,
            "held_steps": sum(r.held for r in self.results),
            "results": [asdict(r) for r in self.results],
        }


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [v for v in values if v is not None]
    return float(np.mean(measured)) if measured else None
