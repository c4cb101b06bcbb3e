"""`robolearn data`: look at, check and import datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from robolearn.cli import data_edit, data_look, data_replay


@dataclass(frozen=True)
class Info:
    """Show what a dataset holds."""

    path: tyro.conf.Positional[Path]
    """The dataset's folder."""
    json: bool = False
    """Print JSON for programs: episodes, steps, rate_hz, seconds, bytes, streams, metadata."""


@dataclass(frozen=True)
class Validate:
    """Read a whole dataset and list every fault. Exit code 0 when it is whole, 1 when it is not."""

    path: tyro.conf.Positional[Path]
    """The dataset's folder."""


@dataclass(frozen=True)
class Recover:
    """Save the episodes that a killed recording left unfinished, marked "recovered".

    Exit code 0: nothing is missing; 3: something was saved and something lost; 1: all that was unfinished is lost.
    """

    path: tyro.conf.Positional[Path]
    """The dataset's folder."""
    dry_run: bool = False
    """Only say what would be saved."""


@dataclass(frozen=True)
class Import:
    """Copy a dataset of another program into a new one, bit for bit."""

    source: tyro.conf.Positional[Path]
    """What to read."""
    target: tyro.conf.Positional[Path]
    """The folder to make; it appears when all is copied."""
    format: Literal["diffusion_policy"]
    """diffusion_policy: a zarr v2 ReplayBuffer (data/<key>, meta/episode_ends)."""
    rate_hz: float = 10.0
    """Control rate of the recording, which this format does not store."""


def info(options: Info) -> int:
    """show episodes, streams and size of a dataset"""
    from robolearn_data.dataset import Dataset

    dataset = Dataset.open(options.path)
    size = sum(file.stat().st_size for file in options.path.rglob("*") if file.is_file())
    facts: dict[str, Any] = {
        "episodes": dataset.episodes,
        "steps": dataset.steps,
        **dataset.schema.to_json(),
        "seconds": dataset.steps / dataset.schema.rate_hz,
        "bytes": size,
        "metadata": dataset.metadata,
    }
    if options.json:
        print(json.dumps(facts))
        return 0

    import numpy as np
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{options.path}[/bold]", highlight=False)
    duration = f"{facts['seconds'] / 60:.1f} min at {dataset.schema.rate_hz:g} Hz"
    console.print(f"{dataset.episodes:,} episodes, {dataset.steps:,} steps, {duration}, {_size(size)} on disk")
    if dataset.episodes:
        lengths = np.diff(dataset.episode_ends, prepend=0)
        console.print(f"episode length: {lengths.min()} to {lengths.max()} steps, median {np.median(lengths):.0f}")
    if dataset.metadata:
        console.print(f"metadata: {json.dumps(dataset.metadata)}", markup=False)
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("stream", "kind", "shape", "dtype", "unit", "components"):
        table.add_column(title, no_wrap=title != "components")
    for name, stream in dataset.schema.streams.items():
        shape = " x ".join(map(str, stream.shape)) or "scalar"
        table.add_row(name, stream.kind, shape, stream.dtype, stream.unit, ", ".join(stream.names))
    console.print(table)
    return 0


def validate(options: Validate) -> int:
    """check a dataset for faults; exit code 1 when there are any"""
    from robolearn_data.validate import validate as find_faults

    with _progress("checking", "rows") as report:
        faults = find_faults(options.path, progress=report)
    for fault in faults:
        print(fault)
    print(f"{options.path}: {f'{len(faults)} faults' if faults else 'whole'}")
    return 1 if faults else 0


def recover(options: Recover) -> int:
    """save the episodes that a killed recording left unfinished"""
    from robolearn_data.recover import recover as save_unfinished

    found = save_unfinished(options.path, dry_run=options.dry_run)
    for episode, steps in found.saved:
        print(f"episode {episode}: {steps} steps {'can be saved' if options.dry_run else 'saved'}")
    for loss in found.losses:
        print(f"lost: {loss}")
    if not (found.saved or found.losses):
        print(f"{options.path}: nothing is unfinished")
    return found.exit_code


def import_(options: Import) -> int:
    """copy a dataset of another program into a new one"""
    from robolearn_data.formats.diffusion_policy import import_diffusion_policy

    with _progress("importing", "steps") as report:
        episodes, steps = import_diffusion_policy(
            options.source, options.target, rate_hz=options.rate_hz, progress=report
        )
    print(f"{options.target}: {episodes:,} episodes, {steps:,} steps")
    return 0


@contextmanager
def _progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error where that is a terminal, driven by calls with (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "info": (Info, info),
    "validate": (Validate, validate),
    "recover": (Recover, recover),
    "import": (Import, import_),
    **data_edit.COMMANDS,
    **data_look.COMMANDS,
    **data_replay.COMMANDS,
}
