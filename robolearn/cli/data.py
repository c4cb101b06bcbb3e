"""`robolearn data`: look at, check, import and export datasets."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    format: str
    """diffusion_policy: a zarr v2 ReplayBuffer of diffusion_policy or UMI, a folder or .zarr.zip; robomimic: an HDF5
    file of robomimic or robosuite; aloha: a folder of episode_<i>.hdf5."""
    rate_hz: float | None = None
    """Control rate of the recording. By default what the source says, or what is usual for its format."""
    bgr: bool = False
    """aloha: the images have blue first, as from the first ALOHA recorder; store them with red first."""


@dataclass(frozen=True)
class Export:
    """Write a dataset in the format of another program."""

    source: tyro.conf.Positional[Path]
    """The dataset's folder."""
    target: tyro.conf.Positional[Path]
    """What to make; it appears when all is written."""
    format: str
    """diffusion_policy: a zarr v2 ReplayBuffer, zipped where the target ends in .zip; robomimic: an HDF5 file."""
    images: str | None = None
    """diffusion_policy: how images are compressed: blosc (lossless, the default), jpeg2k or jpegxl (lossy)."""


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
    from robolearn_data.dataset import Dataset
    from robolearn_data.formats import IMPORTERS

    given = {"rate_hz": options.rate_hz, "bgr": options.bgr or None}
    with _progress("importing", "steps") as report:
        run = _of_format(IMPORTERS, options.format, given)
        episodes, steps = run(options.source, options.target, progress=report)
    print(f"{options.target}: {episodes:,} episodes, {steps:,} steps")
    for note in Dataset.open(options.target).metadata.get("source", {}).get("notes", []):
        print(f"note: {note}")
    return 0


def export(options: Export) -> int:
    """write a dataset in the format of another program"""
    from robolearn_data.formats import EXPORTERS

    with _progress("exporting", "steps") as report:
        run = _of_format(EXPORTERS, options.format, {"images": options.images})
        episodes, steps = run(options.source, options.target, progress=report)
    print(f"{options.target}: {episodes:,} episodes, {steps:,} steps")
    return 0


def _of_format(
    formats: Mapping[str, Callable[..., tuple[int, int]]], name: str, options: Mapping[str, Any]
) -> Callable[..., tuple[int, int]]:
    """The function of a format with the options that were given (are not None)."""
    if name not in formats:
        raise UsageError(f"unknown format {name!r}; valid: {', '.join(formats)}")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - inspect.signature(formats[name]).parameters.keys():
        raise UsageError(f"--{key.replace('_', '-')} has no meaning for --format {name}; leave it out")
    return functools.partial(formats[name], **given)


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
    "export": (Export, export),
}
