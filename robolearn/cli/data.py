"""`robolearn data`: look at, check, import and export datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import tyro

from robolearn.cli.parse import UsageError


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
class Import:
    """Copy a dataset of another program into a new one, bit for bit."""

    source: tyro.conf.Positional[Path]
    """What to read."""
    target: tyro.conf.Positional[Path]
    """The folder to make; it appears when all is copied."""
    format: Literal["diffusion_policy", "lerobot", "lerobot_v21", "lerobot_v30"]
    """diffusion_policy: a zarr v2 ReplayBuffer (data/<key>, meta/episode_ends).
    lerobot: the folder of a LeRobot dataset (meta/info.json), version 2.1 or 3.0; lerobot_v21 or _v30: one alone."""
    rate_hz: float | None = None
    """Control rate of the recording, for formats that do not store it (diffusion_policy: 10 where not given)."""
    keep_good: bool = False
    """Leave broken episodes out, and say which, where otherwise the first one is an error (lerobot)."""


@dataclass(frozen=True)
class Export:
    """Write a dataset in the format of another program."""

    source: tyro.conf.Positional[Path]
    """The dataset's folder."""
    target: tyro.conf.Positional[Path]
    """What to make; it appears when all is written."""
    format: Literal["lerobot_v21", "lerobot_v30"]
    """lerobot_v30: for LeRobot 0.4 to 0.6. lerobot_v21: for LeRobot 0.3 and others that read version 2.1."""
    images: str | None = None
    """How pictures are stored. lerobot: h264 (the default) or av1 video, or png, which loses nothing."""


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


def import_(options: Import) -> int:
    """copy a dataset of another program into a new one"""
    from robolearn_data.formats import IMPORTERS

    left_out: list[str] = []
    copy = IMPORTERS[options.format]
    on_broken = left_out.append if options.keep_good else None
    extra = _given(copy, options.format, rate_hz=options.rate_hz, on_broken=on_broken)
    with _progress("importing", "steps") as report:
        episodes, steps = copy(options.source, options.target, progress=report, **extra)
    for line in left_out:
        print(line)
    print(f"{options.target}: {episodes:,} episodes, {steps:,} steps")
    return 0


def export(options: Export) -> int:
    """write a dataset in the format of another program"""
    from robolearn_data.formats import EXPORTERS

    copy = EXPORTERS[options.format]
    extra = _given(copy, options.format, images=options.images)
    with _progress("exporting", "steps") as report:
        episodes, steps = copy(options.source, options.target, progress=report, **extra)
    print(f"{options.target}: {episodes:,} episodes, {steps:,} steps")
    return 0


def _given(copy: Callable[..., Any], format: str, **options: Any) -> dict[str, Any]:
    """The options that were given; UsageError for one that this format does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - signature(copy).parameters.keys():
        word = {"on_broken": "keep-good"}.get(name, name.replace("_", "-"))
        raise UsageError(f"--{word} is not an option of --format {format}; leave it out")
    return given


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
    "import": (Import, import_),
    "export": (Export, export),
}
