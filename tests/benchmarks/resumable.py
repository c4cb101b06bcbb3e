"""What the benchmarks that train share: commands that can be stopped at any time and go on where they were.

What has been measured is in results/*.json, which the repository keeps: `all` leaves out what has its rows there, on
whatever machine they were measured. To measure something anew, take its rows out of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robolearn.cli.main import main as robolearn
from robolearn.evaluation.results import Evaluation
from robolearn_data.schema import UserError


def checked(words: Sequence[str]) -> None:
    """Run a command of robolearn.

    Raises:
        UserError: it failed; it has said why.
    """
    if robolearn(list(words)):
        raise UserError(f"robolearn {' '.join(words)} failed")


def train(folder: Path, words: Sequence[str], chosen: Sequence[str], steps: int) -> None:
    """Train into ``folder``, or go on there with what has not come to ``steps`` yet.

    ``words`` are the command; ``chosen`` what it takes from its own checkpoint when it goes on.
    """
    from robolearn.training.metrics import read_metrics

    if folder.exists() and (rows := read_metrics(folder)) and rows[-1]["step"] >= steps:
        return
    if (folder / "training.safetensors").exists():
        checked([*words, "--resume"])
        return
    for name in ("config.yaml", "metrics.jsonl", "loss.png"):  # it was stopped before its first state was saved
        (folder / name).unlink(missing_ok=True)
    checked([*words, *chosen])


def train_cpu_s(folder: Path) -> float:
    """CPU time of a run's training steps."""
    from robolearn.training.metrics import read_metrics

    return max(row["cpu_s"] for row in read_metrics(folder) if "cpu_s" in row)


def by_turns(folder: Path, starts: range, one: Callable[[Path, range], Evaluation], last: int = 5) -> Evaluation:
    """Evaluate the last checkpoints of a run by turns: start i by checkpoint i modulo ``last``.

    The mean over the checkpoints from as many episodes as there are starts, each independent of the others.
    """
    from robolearn.policies.checkpoint import list_checkpoints

    checkpoints = list_checkpoints(folder)[-last:]
    parts = [one(checkpoint, starts[i :: len(checkpoints)]) for i, checkpoint in enumerate(checkpoints)]
    results = sorted((result for part in parts for result in part.results), key=lambda result: result.seed)
    return Evaluation(parts[0].world, tuple(results), sum(part.wall_s for part in parts))


def save(path: Path, content: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.rename(path)


def saved(paths: Sequence[Path]) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in paths]
