"""`robolearn data`: everything one does to datasets besides recording them and learning from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from robolearn.cli import data_edit, data_look, data_replay, data_transfer
from robolearn.cli.parse import DatasetPath

if TYPE_CHECKING:
    from robolearn_data.location import Location


@dataclass(frozen=True)
class Info:
    """Show what a dataset holds."""

    path: tyro.conf.Positional[DatasetPath]
    """The dataset: a folder, or a URL such as s3://bucket/name."""
    json: bool = False
    """Print JSON for programs: episodes, steps, rate_hz, seconds, bytes, streams, metadata."""


@dataclass(frozen=True)
class Recover:
    """Save the episodes that a killed recording left unfinished, marked "recovered".

    Exit code 0: nothing is missing; 3: something was saved and something lost; 1: all that was unfinished is lost.
    """

    path: tyro.conf.Positional[DatasetPath]
    """The dataset: a folder, or a URL such as s3://bucket/name."""
    dry_run: bool = False
    """Only say what would be saved."""


def info(options: Info) -> int:
    """show episodes, streams and size of a dataset"""
    from robolearn_data.dataset import Dataset

    dataset = Dataset.open(options.path)
    size = _bytes(dataset.location)
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
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{escape(str(dataset.location))}[/bold]", highlight=False, soft_wrap=True)
    duration = f"{facts['seconds'] / 60:.1f} min at {dataset.schema.rate_hz:g} Hz"
    console.print(f"{dataset.episodes:,} episodes, {dataset.steps:,} steps, {duration}, {_size(size)}")
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


def _bytes(location: Location) -> int:
    """Of all files of a dataset."""
    from robolearn_data.bucket import Bucket

    if isinstance(location, Bucket):
        import obstore

        return sum(int(file["size"]) for page in obstore.list(location.client) for file in page)
    return sum(file.stat().st_size for file in location.path.rglob("*") if file.is_file())


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "info": (Info, info),
    "recover": (Recover, recover),
    **data_look.COMMANDS,
    **data_edit.COMMANDS,
    **data_transfer.COMMANDS,
    **data_replay.COMMANDS,
}
