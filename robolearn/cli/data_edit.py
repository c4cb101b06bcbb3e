"""`robolearn data merge | split | delete | relabel | convert | stats`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from robolearn.cli.parse import DatasetPath, UsageError
from robolearn.cli.progress import progress_bar
from robolearn.cli.tables import size_text


@dataclass(frozen=True)
class Merge:
    """Copy the episodes of several datasets with equal schema into a new one, in the order given."""

    sources: tyro.conf.Positional[tuple[DatasetPath, ...]]
    """Datasets to join: folders, or URLs such as s3://bucket/name."""
    out: DatasetPath
    """The dataset to make."""
    skip_duplicates: bool = False
    """Leave out episodes that came before (same uuid); without it they are an error."""


@dataclass(frozen=True)
class Split:
    """Copy a dataset into two new ones, to train on and to hold out. The source stays."""

    path: tyro.conf.Positional[DatasetPath]
    """Dataset to split."""
    train: tyro.conf.Positional[DatasetPath]
    """Dataset to make from the episodes that remain."""
    held_out: tyro.conf.Positional[DatasetPath]
    """Dataset to make from the episodes that are held out."""
    fraction: float = 0.1
    """Chance of each episode to be held out; one at least is."""
    seed: int = 0
    """Of the draw: the same seed holds out the same episodes, also after others were appended."""
    episodes: str | None = None
    """Hold these out instead: 0,3,5-9,-1 or success=false."""


@dataclass(frozen=True)
class Delete:
    """Remove episodes. Without --yes it only says which.

    The dataset as it was is kept beside as NAME.before-delete: to undo, put that folder in its place.
    """

    path: tyro.conf.Positional[DatasetPath]
    """Dataset to change, on a disk."""
    episodes: str
    """Which: 0,3,5-9,-1 (negative from the end), or success=false, or task=lift,operator!=ann (all must hold)."""
    yes: bool = False
    """Do it."""
    undo: bool = True
    """Keep the dataset as it was. --no-undo frees its space at once."""


@dataclass(frozen=True)
class Relabel:
    """Change what is noted about episodes: task, success, operator or any other key. Recorded values stay.

    For example: robolearn data relabel d.zarr --episodes 3,7 --set success=false note="hit the table"
    """

    path: tyro.conf.Positional[DatasetPath]
    """Dataset to change, on a disk."""
    episodes: str = "all"
    """Which: 0,3,5-9,-1, or a condition such as success=false, or all."""
    set: tuple[str, ...] = ()
    """key=value pairs; a value is read as JSON (true, 3, null) and otherwise as text."""
    remove: tuple[str, ...] = ()
    """Keys to take out."""
    undo: bool = False
    """Take the last change back instead; again for the one before."""


@dataclass(frozen=True)
class Convert:
    """Write a dataset anew with other compressions or number types, and read it back to compare.

    For example: robolearn data convert d.zarr small.zarr --dtype camera=uint8 --compression camera=zstd-5
    """

    path: tyro.conf.Positional[DatasetPath]
    """Dataset to read."""
    out: tyro.conf.Positional[DatasetPath]
    """Dataset to make."""
    compression: tuple[str, ...] = ()
    """stream=name pairs; others keep theirs."""
    dtype: tuple[str, ...] = ()
    """stream=dtype pairs (camera=uint8). Refused where a value would change."""


@dataclass(frozen=True)
class Stats:
    """Show the range, mean and spread of every component, and those that never vary (invalid rows not counted)."""

    path: tyro.conf.Positional[DatasetPath]
    """Dataset to read."""
    episodes: str = "all"
    """Which: 0,3,5-9,-1, or a condition such as success=true."""
    json: bool = False
    """Print JSON: stream -> count, min, max, mean, std, q01, q99."""


def merge(options: Merge) -> int:
    """join datasets of equal schema into a new one"""
    from robolearn_data import edit

    with progress_bar("merging", "steps") as report:
        copied, skipped = edit.merge(
            options.sources, options.out, skip_duplicates=options.skip_duplicates, progress=report
        )
    print(f"{options.out}: {copied:,} episodes{f', {skipped:,} duplicates left out' if skipped else ''}")
    return 0


def split(options: Split) -> int:
    """copy a dataset into one to train on and one to hold out"""
    from robolearn_data import edit
    from robolearn_data.dataset import Dataset
    from robolearn_data.mixture import held_out as draw
    from robolearn_data.selection import select_episodes

    dataset = Dataset.open(options.path)
    if options.episodes is None:
        held_out = draw(dataset.episodes, options.fraction, options.seed)[1]
    else:
        held_out = select_episodes(dataset, options.episodes)
    with progress_bar("copying", "steps") as report:
        edit.split(options.path, options.train, options.held_out, held_out, progress=report)
    print(f"{options.train}: {dataset.episodes - len(held_out):,} episodes")
    print(f"{options.held_out}: {len(held_out):,} episodes ({_numbers(held_out)} of {options.path})")
    return 0


def delete(options: Delete) -> int:
    """remove episodes, keeping the former dataset beside"""
    from robolearn_data import edit
    from robolearn_data.dataset import Dataset
    from robolearn_data.selection import select_episodes

    dataset = Dataset.open(options.path)
    episodes = select_episodes(dataset, options.episodes)
    steps = sum((rows := dataset.rows(e)).stop - rows.start for e in episodes)
    what = f"{len(episodes):,} of {dataset.episodes:,} episodes ({_numbers(episodes)}), {steps:,} steps"
    if not options.yes:
        print(f"{options.path}: would delete {what}; do it with --yes")
        return 0
    with progress_bar("copying the others", "steps") as report:
        kept = edit.delete(dataset.path, episodes, undo=options.undo, progress=report)
    print(f"{options.path}: deleted {what}{f'; as it was: {kept}' if kept else ''}")
    return 0


def relabel(options: Relabel) -> int:
    """change task, success or other notes of episodes"""
    from robolearn_data import relabel as notes
    from robolearn_data.dataset import Dataset
    from robolearn_data.location import locate
    from robolearn_data.selection import json_or_text, select_episodes

    if options.undo:
        if options.set or options.remove:
            raise UsageError("--undo takes the last change back and cannot be combined with --set or --remove")
        count = notes.undo_relabel(locate(options.path).path)
        print(f"{options.path}: {count:,} episodes are as they were before the last change")
        return 0
    dataset = Dataset.open(options.path)
    episodes = select_episodes(dataset, options.episodes)
    changes = {key: json_or_text(value) for key, value in _pairs(options.set, "--set").items()}
    notes.relabel(dataset.path, episodes, changes, options.remove)
    print(f"{options.path}: changed {len(episodes):,} episodes ({_numbers(episodes)}); --undo takes it back")
    return 0


def convert(options: Convert) -> int:
    """write a dataset anew with other compressions or dtypes"""
    from robolearn_data import edit
    from robolearn_data.location import locate

    with progress_bar("converting", "steps") as report:
        lost = edit.convert(
            options.path,
            options.out,
            compression=_pairs(options.compression, "--compression"),
            dtypes=_pairs(options.dtype, "--dtype"),
            progress=report,
        )
    for name, difference in lost.items():
        if difference:
            print(f"{name}: differs by up to {difference:g}, as its lossy compression allows")
    exact = sum(not difference for difference in lost.values())
    before, after = (locate(path).size() for path in (options.path, options.out))
    print(f"{options.out}: {exact} of {len(lost)} streams read back exactly as they were")
    print(f"{size_text(before)} became {size_text(after)} ({after / before - 1:+.0%})")
    return 0


def stats(options: Stats) -> int:
    """show ranges, means and components that never vary"""
    from robolearn_data import statistics
    from robolearn_data.dataset import Dataset
    from robolearn_data.selection import select_episodes

    dataset = Dataset.open(options.path)
    episodes = select_episodes(dataset, options.episodes)
    with progress_bar("reading", "rows") as report:
        values = statistics.statistics(dataset, episodes=episodes, progress=report)
    if options.json:
        print(json.dumps(statistics.statistics_to_json(values)))
        return 0

    import numpy as np
    from rich.markup import escape

    from robolearn.cli.tables import new_table, show_table

    titles = ("min", "1 %", "mean", "99 %", "max", "std")
    table = new_table("component", "unit", *titles, numbers=titles)
    for name, value in values.items():
        stream = dataset.schema.streams[name]
        units = stream.unit.split(",")
        for index in np.ndindex(stream.shape):
            last = index[-1] if index else 0
            unit = units[last] if len(units) > 1 and last < len(units) else stream.unit
            numbers = (value.min, value.q01, value.mean, value.q99, value.max, value.std)
            component = statistics.component_name(name, stream, index)
            table.add_row(escape(component), escape(unit), *(f"{n[index]:.4g}" for n in numbers))
    show_table(table)
    constant = statistics.degenerate_components(dataset.schema.streams, values)
    if constant:
        print(f"never vary, and tell a policy nothing: {', '.join(constant)}")
    return 0


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    found = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UsageError(f"{option} {word!r} is not a pair; write key=value")
        found[key] = value
    return found


def _numbers(episodes: Sequence[int]) -> str:
    return ", ".join(map(str, episodes[:12])) + (", ..." if len(episodes) > 12 else "")


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "merge": (Merge, merge),
    "split": (Split, split),
    "delete": (Delete, delete),
    "relabel": (Relabel, relabel),
    "convert": (Convert, convert),
    "stats": (Stats, stats),
}
