"""`robolearn deploy CHECKPOINT --dry-run DATASET`: compares a policy with recorded actions before anything moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from robolearn.cli.parse import stderr_line

if TYPE_CHECKING:
    from robolearn.policies.engines.compiled import EngineName


def run_dry(
    checkpoint: Path,
    dataset: str | Path,
    *,
    inferences: int = 400,
    steps: int | None = None,
    sampler: Literal["ddim", "ddpm"] | None = None,
    seed: int = 0,
    device: str = "cpu",
    engine: EngineName = "torch",
    json_path: Path | None = None,
) -> int:
    """Print how well the policy's chunks agree with the dataset's actions.

    Returns 0, or 1 where the policy gives NaN or is no better than repeating the last action or than the mean action.
    Raises UserError as ``robolearn_deploy.dry_run.dry_run``.
    """
    from rich.console import Console
    from rich.progress import Progress

    from robolearn_deploy.dry_run import DryRunOptions, dry_run

    options = DryRunOptions(inferences, steps, sampler, seed, device, engine)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("ask the policy", total=None)
        report = dry_run(checkpoint, dataset, options, lambda done, of: bar.update(task, completed=done, total=of))
    print(report)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if report.fault:
        stderr_line(f"error: {report.fault}")
        return 1
    return 0
