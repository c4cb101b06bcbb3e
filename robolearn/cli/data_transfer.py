"""`robolearn data import | export`: datasets of other programs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from robolearn.cli.parse import DatasetPath, UsageError
from robolearn.cli.progress import progress_bar


@dataclass(frozen=True)
class Import:
    """Copy a dataset of another program into a new one, bit for bit."""

    source: tyro.conf.Positional[Path]
    """What to read."""
    target: tyro.conf.Positional[DatasetPath]
    """The dataset to make, a folder or URL; it appears when all is copied."""
    format: str
    """diffusion_policy: a zarr v2 ReplayBuffer of diffusion_policy or UMI, a folder or .zarr.zip; lerobot: the folder
    of a LeRobot dataset, version 2.1 or 3.0 (lerobot_v21, lerobot_v30: one alone); robomimic: an HDF5 file of robomimic
    or robosuite; aloha: a folder of episode_<i>.hdf5."""
    rate_hz: float | None = None
    """Control rate of the recording. By default what the source says, or what is usual for its format."""
    bgr: bool = False
    """aloha: the images have blue first, as from the first ALOHA recorder; store them with red first."""
    skip_broken: bool = False
    """Leave broken episodes out and say which, where otherwise they are an error. Exit code 3 if there were any."""


@dataclass(frozen=True)
class Export:
    """Write a dataset in the format of another program."""

    source: tyro.conf.Positional[DatasetPath]
    """The dataset."""
    target: tyro.conf.Positional[Path]
    """What to make; it appears when all is written."""
    format: str
    """lerobot_v30: for LeRobot 0.4 to 0.6; lerobot_v21: for LeRobot 0.3 and others that read version 2.1;
    diffusion_policy: a zarr v2 ReplayBuffer, zipped where the target ends in .zip; robomimic: an HDF5 file.
    To look at: mcap, for Foxglove and ROS tools; rerun, an .rrd file."""
    images: str | None = None
    """How pictures are stored. lerobot: h264 (the default) or av1 video, or png, which loses nothing; diffusion_policy:
    blosc (lossless, the default), jpeg2k or jpegxl."""
    episodes: str | None = None
    """mcap, rerun: which episodes, such as 3 or 0,5-9,-1 or success=false; all by default."""


def import_(options: Import) -> int:
    """copy a dataset of another program into a new one"""
    from robolearn_data.dataset import Dataset
    from robolearn_data.formats import IMPORTERS

    left_out: list[str] = []
    given = {
        "rate_hz": options.rate_hz,
        "bgr": options.bgr or None,
        "on_broken": left_out.append if options.skip_broken else None,
    }
    run, extra = _of_format(IMPORTERS, options.format, given)
    with progress_bar("importing", "steps") as report:
        episodes, steps = run(options.source, options.target, progress=report, **extra)
    for line in left_out:
        print(f"left out: {line}")
    print(f"{options.target}: {episodes:,} episodes, {steps:,} steps")
    for note in Dataset.open(options.target).metadata.get("source", {}).get("notes", []):
        print(f"note: {note}")
    return 3 if left_out else 0


def export(options: Export) -> int:
    """write a dataset in the format of another program"""
    from robolearn_data.formats import EXPORTERS

    run, extra = _of_format(EXPORTERS, options.format, {"images": options.images, "episodes": options.episodes})
    lost: list[str] = []
    with progress_bar("exporting", "steps") as report:
        episodes, steps = run(options.source, options.target, progress=report, on_loss=lost.append, **extra)
    print(f"{options.target}: {episodes:,} episodes, {steps:,} steps")
    for line in lost:
        print(f"note: {line}")
    return 0


def _of_format(
    formats: Mapping[str, Callable[..., tuple[int, int]]], name: str, options: Mapping[str, Any]
) -> tuple[Callable[..., tuple[int, int]], dict[str, Any]]:
    """The function of a format, and the options that were given (are not None)."""
    if name not in formats:
        raise UsageError(f"unknown format {name!r}; valid: {', '.join(formats)}")
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - inspect.signature(formats[name]).parameters.keys():
        raise UsageError(f"--{key.replace('_', '-')} has no meaning for --format {name}; leave it out")
    return formats[name], given


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "import": (Import, import_),
    "export": (Export, export),
}
