"""`robolearn data validate | plot | quality`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from robolearn.cli.parse import DatasetPath, UsageError
from robolearn.cli.progress import progress_bar

_SHOWN = 5


@dataclass(frozen=True)
class Validate:
    """Read a whole dataset and list every fault, and warn of content that looks wrong.

    Exit code 0 when it is whole, 1 when not. Warnings (frozen cameras, saturated or constant channels, jumps, gaps
    in time, long holes, duplicated or near-empty episodes) do not change the exit code without --strict.
    """

    path: tyro.conf.Positional[DatasetPath]
    """The dataset's folder or URL."""
    pictures: bool = False
    """Decode every picture too. Without it those with a checksum are compared with that, several times as fast, and
    that finds all that happened to them after they were written."""
    strict: bool = False
    """Exit with 1 for warnings too."""
    all: bool = False
    """Print every warning, not the first few of each kind and stream."""


@dataclass(frozen=True)
class Plot:
    """Draw an episode as one HTML page for any browser: pictures, curves with units, age of samples, holes, notes."""

    path: tyro.conf.Positional[DatasetPath]
    """The dataset's folder or URL."""
    episode: int = 0
    """Its number; negative counts from the last."""
    out: Path = Path("episode.html")
    """The page to write."""


@dataclass(frozen=True)
class Quality:
    """Rank the episodes of a dataset, the most conspicuous first, with the reason.

    Each figure is compared with those of the other episodes (robust z-score of its logarithm; above 4 is a reason).
    Distances are in standard deviations of the dataset (sd). --json has every figure and its definition.
    """

    path: tyro.conf.Positional[DatasetPath]
    """The dataset's folder or URL."""
    streams: tuple[str, ...] = ()
    """Streams that count as state; all of kind state by default."""
    top: int = 15
    """Episodes to show."""
    json: bool = False
    """Print JSON for programs, with all episodes."""


def validate(options: Validate) -> int:
    """check a dataset for faults (exit code 1) and odd content (warnings)"""
    from robolearn_data.dataset import Dataset
    from robolearn_data.inspect import inspect
    from robolearn_data.validate import validate as find_faults

    with progress_bar("checking", "rows") as report:
        faults = find_faults(options.path, pictures=options.pictures, progress=report)
    for fault in faults:
        print(f"fault: {fault}")
    warnings = []
    if not faults:
        with progress_bar("looking", "rows") as report:
            warnings = inspect(Dataset.open(options.path), progress=report)
    seen: dict[tuple[str, str], int] = {}
    for warning in warnings:
        group = (warning.kind, warning.stream)
        seen[group] = seen.get(group, 0) + 1
        if options.all or seen[group] <= _SHOWN:
            print(f"warning: {warning}")
    for (kind, stream), number in seen.items():
        if number > _SHOWN and not options.all:
            print(f"warning: {number - _SHOWN} more of {kind}{f' in {stream}' if stream else ''}; --all lists them")
    print(f"{options.path}: {_count(len(faults), 'fault') if faults else 'whole'}", end="")
    print(f", {_count(len(warnings), 'warning')}" if warnings else "")
    return 1 if faults or (warnings and options.strict) else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def plot(options: Plot) -> int:
    """draw an episode as an HTML page"""
    from robolearn_data.dataset import Dataset
    from robolearn_data.folder import put
    from robolearn_data.plot import episode_page

    if options.out.is_dir():
        raise UsageError(f"--out {options.out} is a folder; name a file such as episode.html")
    page = episode_page(Dataset.open(options.path), options.episode)
    put(options.out, page.encode(), durable=False)
    print(f"{options.out}: {len(page) / 1000:.0f} KB")
    return 0


def quality(options: Quality) -> int:
    """rank episodes, the most conspicuous first, with the reason"""
    from robolearn_data import quality as figures
    from robolearn_data.dataset import Dataset

    with progress_bar("comparing", "rows") as report:
        found = figures.quality(Dataset.open(options.path), options.streams or None, progress=report)
    if options.json:
        print(json.dumps(found.to_json()))
        return 0

    from robolearn.cli.tables import new_table, show_table

    titles = ("episode", "score", "steps", "success after", "path", "x shortest", "idle")
    table = new_table(*titles, "why", numbers=titles, wrap=("why",))
    for e in found.episodes[: options.top]:
        after = "failure" if e.success is False else f"{e.time_to_success_s:.1f} s" if e.time_to_success_s else "-"
        numbers = (f"{e.score:.1f}", str(e.steps), after, f"{e.path_sd:.1f} sd", f"{e.path_ratio:.2f}", f"{e.idle:.0%}")
        table.add_row(str(e.episode), *numbers, "; ".join(e.reasons) or "-")
    show_table(table)
    odd = [str(e.episode) for e in found.episodes if e.reasons]
    print(f"action variance {found.action_variance:.4g} sd^2, transition diversity {found.transition_diversity:.3f}")
    if odd:
        print(f"{len(odd)} of {len(found.episodes)} episodes stand out. Look at them before you delete any:")
        print(f"  robolearn data plot {options.path} --episode {odd[0]}")
        print(f"  robolearn data delete {options.path} --episodes {','.join(odd)}")
    else:
        print("no episode stands out")
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "validate": (Validate, validate),
    "plot": (Plot, plot),
    "quality": (Quality, quality),
}
