"""`robolearn data`: everything one does to datasets besides recording them and learning from them."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tyro

from robolearn.cli import data_edit, data_generate, data_look, data_replay, data_transfer
from robolearn.cli.parse import DatasetPath
from robolearn.cli.tables import size_text


@dataclass(frozen=True)
class Info:
    """Show what a dataset holds."""

    path: tyro.conf.Positional[DatasetPath]
    """The dataset's folder or URL."""
    json: bool = False
    """Print JSON for programs: episodes, steps, rate_hz, seconds, bytes, streams, compression, success, tasks, ..."""


@dataclass(frozen=True)
class Recover:
    """Save the episodes that a killed recording left unfinished, marked "recovered".

    Exit code 0: nothing is missing; 3: something was saved and something lost; 1: all that was unfinished is lost.
    """

    path: tyro.conf.Positional[DatasetPath]
    """The dataset's folder or URL."""
    dry_run: bool = False
    """Only say what would be saved."""


def info(options: Info) -> int:
    """show episodes, streams, rates, compression and size of a dataset"""
    from robolearn_data import storage
    from robolearn_data.dataset import Dataset
    from robolearn_data.selection import episode_infos

    dataset = Dataset.open(options.path)
    streams = dataset.schema.streams
    sizes = {name: dataset.location.size(storage.values_of(name, stream)) for name, stream in streams.items()}
    infos = episode_infos(dataset)
    facts: dict[str, Any] = {
        "episodes": dataset.episodes,
        "steps": dataset.steps,
        **dataset.schema.to_json(),
        "seconds": dataset.steps / dataset.schema.rate_hz,
        "bytes": dataset.location.size(),
        "compression": {name: storage.compression_of(dataset.array(name)) for name in streams},
        "samples": {n: dataset.samples_before(n, dataset.episodes) for n, s in streams.items() if s.is_native},
        "success": sum(info.get("success") is True for info in infos),
        "failure": sum(info.get("success") is False for info in infos),
        "tasks": dict(Counter(str(info["task"]) for info in infos if "task" in info)),
        "metadata": dataset.metadata,
    }
    if options.json:
        print(json.dumps(facts))
        return 0

    import numpy as np
    from rich.markup import escape

    from robolearn.cli.tables import new_table, show_table

    print(options.path)
    duration = f"{facts['seconds'] / 60:.1f} min at {dataset.schema.rate_hz:g} Hz"
    print(f"{dataset.episodes:,} episodes, {dataset.steps:,} steps, {duration}{_size(facts['bytes'], ', {} on disk')}")
    if dataset.episodes:
        lengths = np.diff(dataset.episode_ends, prepend=0)
        print(f"episode length: {lengths.min()} to {lengths.max()} steps, median {np.median(lengths):.0f}")
    if facts["success"] or facts["failure"]:
        unknown = dataset.episodes - facts["success"] - facts["failure"]
        print(f"{facts['success']:,} successes, {facts['failure']:,} failures, {unknown:,} not noted")
    for task, count in list(facts["tasks"].items())[:10]:
        print(f"task: {task} ({count:,} episodes)")
    if dataset.metadata:
        print(f"metadata: {json.dumps(dataset.metadata)}")
    table = new_table(
        *("stream", "kind", "rate", "shape", "dtype", "compression", "size", "unit", "components"),
        numbers=("rate", "size"),
        wrap=("unit", "components"),
    )
    for name, stream in streams.items():
        shape = " x ".join(map(str, stream.shape)) or "scalar"
        rate = f"{stream.rate_hz:g} Hz: {facts['samples'][name]:,}" if stream.is_native else "each step"
        how = facts["compression"][name] or "other"
        row = (name, stream.kind, rate, shape, stream.dtype, how, _size(sizes[name]), _units(stream.unit))
        table.add_row(*row, escape(", ".join(stream.names)))
    show_table(table)
    for line in _left_behind(options.path):
        print(line)
    return 0


def _left_behind(path: str) -> list[str]:
    """What processes that were killed left in a dataset's folder and beside it, and what to do about it."""
    from robolearn_data import journal
    from robolearn_data.folder import Folder
    from robolearn_data.location import locate

    location = locate(path)
    if not isinstance(location, Folder):
        return []
    folder = Folder(location.path.resolve())
    lines = [
        f"unfinished recording: {f.name}; `robolearn data recover {path}`" for f in journal.unfinished(folder.path)
    ]
    lines += [f"left by a killed command, can be removed: {left}" for left in folder.abandoned()]
    hidden = folder.path.with_name(f".{folder.path.name}.delete")
    lines += [f"left by a killed `data delete`, the next one clears it: {hidden}"] if hidden.exists() else []
    return lines


def _units(text: str) -> str:
    """Units with what repeats counted: "m,m,m,rad" is "m x3, rad"."""
    counted = [(unit.strip(), len(list(same))) for unit, same in itertools.groupby(text.split(","))]
    return ", ".join(f"{unit} x{count}" if count > 1 else unit for unit, count in counted)


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


def _size(count: float | None, text: str = "{}") -> str:
    """``text`` with a size in it; nothing where the size is not known."""
    return "" if count is None else text.format(size_text(count))


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "info": (Info, info),
    "recover": (Recover, recover),
    **data_look.COMMANDS,
    **data_edit.COMMANDS,
    **data_transfer.COMMANDS,
    **data_replay.COMMANDS,
    **data_generate.COMMANDS,
}
