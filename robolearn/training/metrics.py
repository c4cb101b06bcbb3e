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
    """Loss against the optimiser step, on held-out episodes too; success and score where evaluated. Not yet saved."""
    figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for key, style, color, label in (
        ("loss", "-", "#3566a8", "training"),
        ("held_out_loss", "D-", "#c0562b", "held-out episodes, averaged weights"),
    ):
        shown = [(row["step"], row[key]) for row in rows if key in row]
        if shown:
            axes.plot(*zip(*shown, strict=True), style, color=color, linewidth=1.8, markersize=4, label=label)
    if any("held_out_loss" in row for row in rows):
        axes.legend(loc="upper right")
    axes.set(xlabel="optimiser step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.25)
    evaluated = [row for row in rows if "success_rate" in row]
    if evaluated:
        other = axes.twinx()
        for key, style, label in (("success_rate", "o-", "success rate"), ("score", "s--", "score")):
            other.plot([row["step"] for row in evaluated], [row[key] for row in evaluated], style, label=label)
        other.set(ylabel="evaluation", ylim=(-0.02, 1.02))
        other.legend(loc="center right")
    return figure
