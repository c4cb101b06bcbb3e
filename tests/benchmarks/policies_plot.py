"""Draws results/policies.json and results/families.json for the pages of robolearn/policies.

python tests/benchmarks/policies_plot.py        # writes robolearn/policies/assets/*.png; leaves out what has no rows
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from results import CONDITIONS, ROOT, read_rows

ASSETS = ROOT / "robolearn/policies/assets"
Row = dict[str, Any]


def main() -> None:
    ASSETS.mkdir(exist_ok=True)
    if rows := read_rows("policies"):
        save(policies(rows), "policies")
    for family in dict.fromkeys(row["family"] for row in read_rows("families")):
        save(one_family([row for row in read_rows("families") if row["family"] == family]), family)


def policies(rows: Sequence[Row]) -> Figure:
    """Score against the denoiser's time: what a chunk costs and what it is worth."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(5.5 * len(tasks), 4.2), layout="constrained")
    for axes, task in zip(np.atleast_1d(figure.subplots(1, len(tasks))), tasks, strict=True):
        names = list(dict.fromkeys(row["policy"] for row in rows if row["task"] == task))
        for number, name in enumerate(names):
            mine = [row for row in rows if (row["task"], row["policy"]) == (task, name)]
            x, y = np.median([row["denoiser_ms"] for row in mine]), np.mean([row["success"] for row in mine])
            axes.plot([x] * len(mine), [100 * row["success"] for row in mine], ".", color=f"C{number}", alpha=0.5)
            axes.plot(x, 100 * y, "o", color=f"C{number}", label=name)
        axes.set(
            xscale="log", title=task, xlabel="denoiser, ms a chunk (one thread)", ylabel="success, %", ylim=(-3, 103)
        )
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def one_family(rows: Sequence[Row]) -> Figure:
    """Each variant in each condition: the mean of the seeds, and every seed. Success; of latent actions the score,
    since people's PushT from pictures hardly ever succeeds after so few steps."""
    key, scale, label_y = (
        ("score", 1, "score") if rows[0]["family"] == "latent-action" else ("success", 100, "success, %")
    )
    conditions = [name for name in CONDITIONS if any(row["condition"] == name for row in rows)]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure = Figure(figsize=(1.5 * len(conditions) + 1.5, 3.8), layout="constrained")
    axes: Axes = figure.subplots()
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        label: str | None = variant
        for place, condition in enumerate(conditions):
            mine = [row for row in rows if (row["variant"], row["condition"]) == (variant, condition)]
            if not mine:
                continue
            x = place + (number - (len(variants) - 1) / 2) * width
            found = [scale * row[key] for row in mine]
            axes.bar(x, np.mean(found), 0.9 * width, color=f"C{number}", alpha=0.6, label=label)
            label = None
            for offset, row in zip(np.linspace(-0.25, 0.25, len(mine)) * width, mine, strict=True):
                low, high = (scale * value for value in row[f"{key}_interval"])
                middle = scale * row[key]
                spread = [[max(middle - low, 0)], [max(high - middle, 0)]]
                axes.errorbar(x + offset, middle, yerr=spread, fmt=".k", elinewidth=0.8, ms=3)
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set(ylabel=label_y, ylim=(0, 1.03 * scale))
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    return figure


def save(figure: Figure, name: str) -> None:
    path = ASSETS / f"{name}.png"
    figure.savefig(path, dpi=110)
    print(Path(path).relative_to(ROOT))


if __name__ == "__main__":
    main()
