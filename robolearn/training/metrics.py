"""metrics.jsonl: one line for each report of a run, and the plot drawn from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

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


def plot_metrics(run: Path) -> Path | None:
    """Draw loss (and success, where it was evaluated) against the step into loss.png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_metrics(run)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    if not losses:
        return None
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(*zip(*losses, strict=True), color="tab:blue", linewidth=1.2)
    axis.set(xlabel="optimiser step", ylabel="training loss", yscale="log", title=run.name)
    axis.grid(alpha=0.3)
    evaluations = [(row["step"], row["success_rate"], row["score"]) for row in rows if "success_rate" in row]
    if evaluations:
        steps, success, score = zip(*evaluations, strict=True)
        other = axis.twinx()
        other.plot(steps, success, "o-", color="tab:green", label="success rate")
        other.plot(steps, score, "s--", color="tab:olive", label="score")
        other.set(ylabel="evaluation", ylim=(-0.02, 1.02))
        other.legend(loc="center right")
    path = run / "loss.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
