"""Saving what a writer that was killed had taken of its last episode."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robolearn_data import journal
from robolearn_data.bucket import Bucket
from robolearn_data.dataset import Dataset
from robolearn_data.folder import sync_folder
from robolearn_data.location import Location, locate
from robolearn_data.schema import UserError
from robolearn_data.selection import episode_infos
from robolearn_data.writer import DatasetWriter


@dataclass
class Recovery:
    """What `recover` found."""

    saved: list[tuple[int, int]] = field(default_factory=list)
    """Number and control steps of each episode that was saved."""
    losses: list[str] = field(default_factory=list)
    """What could not be saved, a line for each journal that was not whole."""
    dry: bool = False

    @property
    def exit_code(self) -> int:
        """0: nothing is missing; 3: something was saved and something lost; 1: all that was unfinished is lost."""
        return 0 if not self.losses else 3 if self.saved else 1


def recover(path: str | Path | Location, *, dry_run: bool = False) -> Recovery:
    """Publish each unfinished episode of the dataset at ``path``, as far as its journal goes, with "recovered": true.

    A journal is removed once its episode is published; one with losses is kept beside it as ``.lossy``, so that nothing
    is thrown away. ``dry_run`` only reads.

    In an object store there is no journal: there it lets go of the lock of a writer that was killed.

    Raises:
        DatasetError: no dataset there, damaged, or a writer is at work on it.
        OSError: the disk is full. Journals of episodes that are not saved yet stay.
    """
    location = locate(path)
    result = Recovery(dry=dry_run)
    if isinstance(location, Bucket):
        if not dry_run:
            location.break_lock()
        return result
    path = location.path
    with DatasetWriter.append(path) as writer:  # holds the lock, and sets the last writer's journal aside
        known = {str(info.get("uuid")) for info in episode_infos(Dataset.open(path))}
        for file in journal.unfinished(path):
            _recover(writer, file, known, result)
    return result


def _recover(writer: DatasetWriter, file: Path, known: set[str], result: Recovery) -> None:
    records = _Records(journal.read(file))
    loss = ""
    try:
        for columns, facts in records:
            if str(facts.get("info", {}).get("uuid")) in known:  # published; only its journal was not removed
                writer.discard_episode()
                file.unlink()
                return
            writer.replay(columns, facts)
    except (UserError, KeyError, ValueError, TypeError, AttributeError) as error:
        loss = f"{file.name}: a record does not fit the dataset ({' '.join(str(error).split())})"
    if records.rest:
        loss = f"{file.name}: {records.rest} bytes at its end were being written when the machine stopped"
    steps = writer.pending
    if loss:
        result.losses.append(loss)
    if result.dry:
        result.saved += [(writer.episodes + len(result.saved), steps)] if steps else []
        writer.discard_episode()
        return
    if steps:
        result.saved.append((writer.save_episode({"recovered": True}), steps))
    else:
        writer.discard_episode()
        if not loss:
            file.unlink()
            return
    if loss:
        file.rename(file.with_suffix(".lossy"))
    else:
        file.unlink()
    sync_folder(file.parent)


class _Records:
    """Iterates over ``journal.read`` and keeps how many bytes were left."""

    def __init__(self, records: Generator[Any, None, int]) -> None:
        self._records = records
        self.rest = 0

    def __iter__(self) -> Generator[Any, None, None]:
        self.rest = yield from self._records
