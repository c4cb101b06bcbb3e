"""metrics.jsonl: one line for each report of a run, and the plot drawn from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to a run's metrics; on resume, lines later than the state resumed from are dropped."""

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / FILE
        kept = [row for row in read_metrics(run) if row["step"] <= step] if step else []
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write(self, row: Mapping[str, float | int]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Rows of a run's metrics; a last line cut short by a crash is left out."""
    rows = []
    path = run / FILE
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def training_figure(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Loss against the optimiser step, with success and score where they were evaluated. The caller saves it."""
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    axes.plot([step for step, _ in losses], [loss for _, loss in losses], color="#3566a8", linewidth=1.8)
    axes.set(xlabel="optimiser step", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.25)
    evaluated = [row for row in rows if "success_rate" in row]
    if evaluated:
        other = axes.twinx()
        for key, style, label in (("success_rate", "o-", "success rate"), ("score", "s--", "score")):
            other.plot([row["step"] for row in evaluated], [row[key] for row in evaluated], style, label=label)
        other.set(ylabel="evaluation", ylim=(-0.02, 1.02))
        other.legend(loc="center right")
    return figure
