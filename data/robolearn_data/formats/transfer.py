"""What importers and exporters share: a target that appears whole, and the loop that copies episodes into it."""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.copying import new_dataset
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError, sync_folder, sync_tree
from robolearn_data.formats import OnBroken, Progress
from robolearn_data.schema import Schema, SchemaError, UserError

_PIECE_BYTES = 64 * 2**20
_ROW_BYTES = 256 * 2**20
_SMALL_BYTES = 2**30
_EXPANSION = 2000
_LISTED = 5


class ImportFormatError(UserError):
    """The source is not what its format says, or is broken."""


class ExportFormatError(UserError):
    """The dataset holds what the wanted format cannot."""


@dataclass
class Faults:
    """The broken episodes of a source: all are found before the import is refused, or they are left out."""

    on_broken: OnBroken | None
    """None: broken episodes are an error."""
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take note of an ImportFormatError in the body."""
        try:
            yield
        except ImportFormatError as error:
            self.lines.append(str(error))
            if self.on_broken:
                self.on_broken(str(error))

    def check(self, whole: int) -> None:
        """Raise ImportFormatError where broken episodes are an error, or nothing is whole."""
        if not self.lines or (self.on_broken and whole):
            return
        more = f"; and {len(self.lines) - _LISTED} more" if len(self.lines) > _LISTED else ""
        listed = "; ".join(self.lines[:_LISTED]) + more
        if not whole:
            raise ImportFormatError(listed)
        raise ImportFormatError(f"{listed}; with --skip-broken the {whole} whole episodes are imported")


@dataclass(frozen=True)
class SourceEpisode:
    """One episode of a foreign dataset, read piece by piece."""

    place: str
    """File and episode, for messages."""
    steps: int
    info: Mapping[str, Any]
    read: Callable[[int, int], dict[str, np.ndarray]]
    """Rows [start, stop) of the episode, every stream as (stop - start, ...)."""


def import_episodes(
    target: str | Path,
    schema: Schema,
    metadata: Mapping[str, Any],
    episodes: Iterable[SourceEpisode],
    faults: Faults,
    *,
    total: int,
    progress: Progress | None,
) -> tuple[int, int]:
    """Make the dataset ``target`` of ``episodes``; it appears when everything is copied. Returns episodes and steps.

    Raises:
        ImportFormatError: episodes that cannot be read or hold NaN, infinity or a wrong shape, unless ``faults`` lets
            them be left out; the message names the places.
        DatasetError: ``target`` exists.
    """
    row_bytes = sum(stream.size * np.dtype(stream.dtype).itemsize for stream in schema.streams.values())
    piece = max(_PIECE_BYTES // row_bytes, 1)
    small = dict.fromkeys(schema.of_kind("image"), "zstd-5")
    with new_dataset(target, schema, metadata, small) as writer:
        done = 0
        for episode in episodes:
            whole = writer.episodes
            with faults.caught():
                for start in range(0, episode.steps, piece):
                    rows = episode.read(start, min(start + piece, episode.steps))
                    try:
                        writer.extend(rows)
                    except SchemaError as error:
                        raise ImportFormatError(f"{episode.place}: {error}") from None
                writer.save_episode(episode.info)
            if writer.episodes == whole:
                writer.discard_episode()
            done += episode.steps
            if progress:
                progress(done, total)
        faults.check(writer.episodes)
    return writer.episodes, writer.steps


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A path beside ``target`` for a file or folder that becomes ``target`` at the end, and is removed on any error.

    Raises:
        DatasetError: ``target`` exists.
    """
    if os.path.lexists(target):
        raise DatasetError(f"{target} exists; choose another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield unfinished
        if unfinished.is_dir():
            sync_tree(unfinished)
        else:
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        if os.path.lexists(target):
            raise DatasetError(f"{target} appeared meanwhile; choose another path")
        os.rename(unfinished, target)
        sync_folder(target.parent)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def check_size(place: str, shape: tuple[int, ...], dtype: np.dtype, stored_bytes: int) -> None:
    """Refuse an array that declares absurdly more than its file holds (a decompression bomb, a corrupt header).

    Raises:
        ImportFormatError: a row above 256 MiB, or 2,000 times the stored size when that is above 1 GiB.
    """
    row = math.prod(shape[1:]) * dtype.itemsize
    whole = math.prod(shape) * dtype.itemsize
    if row > _ROW_BYTES:
        raise ImportFormatError(f"{place} has shape {shape}: {row / 1e6:,.0f} MB in one step; its header is damaged")
    if whole > _SMALL_BYTES and whole > _EXPANSION * stored_bytes:
        raise ImportFormatError(
            f"{place} has shape {shape}, {whole / 1e9:,.0f} GB, of {stored_bytes:,} bytes in the file; it is damaged"
        )


def left_out(dataset: Dataset, holds: Collection[str] = (), info: Collection[str] = ()) -> str | None:
    """One line on what a dataset has and a format of one sample a control step cannot hold; None: nothing.

    Args:
        holds: of "times" (captured and received), "holes" and "names" (of components, units and frames) what it can.
        info: keys of the episodes' info that it can.
    """
    streams = dataset.schema.streams
    native = [f"{name} ({stream.rate_hz:g} Hz)" for name, stream in streams.items() if stream.is_native]
    parts = [f"samples between the control steps of {', '.join(native)}"] if native else []
    if "times" not in holds and any(dataset.times(name) is not None for name in ("tick", *streams)):
        parts.append("times")
    holed = [name for name in streams if "holes" not in holds and not dataset.valid(name).all()]
    if holed:
        parts.append(f"holes of {', '.join(holed)} (their rows hold stand-ins)")
    if "names" not in holds and any(s.names or s.unit or s.frame for s in streams.values()):
        parts.append("names, units and frames of components")
    keys = {key for number in range(dataset.episodes) for key in dataset.episode_info(number)}
    lost = sorted(keys - {*info, "uuid", "source_episode"})
    if lost:
        parts.append(f"episode info ({', '.join(lost)})")
    return f"left out, as this format has no place for it: {'; '.join(parts)}" if parts else None


def stream_name(key: str) -> str:
    """The name of a foreign array with what a stream name may not hold replaced by "_"."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", key)


def missing(module: str, extra: str = "formats") -> UserError:
    """The error for an optional module that is not installed."""
    return UserError(f"{module} is not installed; this format needs `pip install 'robolearn[{extra}]'`")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
