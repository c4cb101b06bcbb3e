"""The figure of an evaluation. The caller saves it: ``figure.savefig(path)``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robolearn.evaluation.intervals import wilson_interval
from robolearn.evaluation.results import EpisodeResult

BLUE, GREEN, GREY, ORANGE = "#3566a8", "#3a8a5c", "#a9b0ba", "#c9782d"


def evaluation_figure(results: Sequence[EpisodeResult]) -> Figure:
    """Scores, success over time and lengths of episodes."""
    figure = Figure(figsize=(12, 3.2), dpi=110, layout="constrained")
    scores, solved, lengths = figure.subplots(1, 3)
    end = max(r.length for r in results)

    values = [r.score for r in results]
    scores.hist(values, bins=np.linspace(0, 1, 21).tolist(), color=BLUE)
    scores.axvline(
        float(np.mean(values)), color="black", linewidth=1, linestyle="--", label=f"mean {np.mean(values):.3f}"
    )
    scores.set(title="Score", xlabel="best score in an episode", ylabel="episodes", xlim=(0, 1))
    scores.legend(frameon=False, loc="upper left")

    when = np.sort([r.success_step for r in results if r.success_step is not None])
    fraction = np.array([*range(len(when) + 1), len(when)]) / len(results)
    solved.step([0, *when, end], fraction, where="post", color=GREEN)
    low, high = wilson_interval(sum(r.success for r in results), len(results))
    solved.fill_between([0, end], low, high, color=GREEN, alpha=0.12, linewidth=0, label="95 % interval at the end")
    solved.set(title="Solved so far", xlabel="control steps", ylabel="part of the episodes")
    solved.set(xlim=(0, end), ylim=(0, 1.02))
    solved.legend(frameon=False, loc="best")

    parts = [[r.length for r in results if r.success], [r.length for r in results if not r.success]]
    labels = [f"{name} ({len(part)})" for name, part in zip(("solved", "not solved"), parts, strict=True)]
    lengths.hist(parts, bins=np.linspace(0, end, 21).tolist(), stacked=True, color=[GREEN, GREY], label=labels)
    lengths.set(title="Episode length", xlabel="control steps", ylabel="episodes", xlim=(0, end))
    lengths.legend(frameon=False, loc="best")
    for axes in (scores, solved, lengths):
        _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
