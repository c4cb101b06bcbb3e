"""What viewers decide about recorded episodes: another task or verdict, or that one shall go.

While a recorder writes, nothing of a dataset is rewritten. So decisions are kept in a file beside it, can be taken
back, and are carried out by ``apply_marks`` when the session is over.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robolearn_data.dataset import Dataset
from robolearn_data.edit import delete
from robolearn_data.folder import put
from robolearn_data.relabel import relabel
from robolearn_data.schema import UserError
from robolearn_data.selection import episode_infos

TEXT_BYTES = 256


class MarkError(UserError):
    """A decision that cannot be taken."""


@dataclass(frozen=True)
class Mark:
    """About one episode; None: as it is."""

    task: str | None = None
    success: bool | None = None
    delete: bool = False


def marks_file(dataset: Path) -> Path:
    """Where the marks of a dataset are."""
    return dataset.with_name(dataset.name + ".marks.json")


def read_marks(dataset: Path) -> dict[str, Mark]:
    """uuid -> mark.

    Raises:
        MarkError: the file is damaged.
    """
    file = marks_file(dataset)
    try:
        found = json.loads(file.read_bytes())
        return {str(uuid): _mark(mark) for uuid, mark in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise MarkError(f"{file} cannot be read ({error}); remove it to forget what was marked") from None


def change_mark(dataset: Path, uuid: str, changes: Mapping[str, Any]) -> Mark:
    """Mark the episode ``uuid``; without ``changes`` it is as it was recorded. Returns its mark.

    Raises:
        MarkError: a change that is none, or the file is damaged or cannot be written.
    """
    marks = read_marks(dataset)
    try:
        mark = dataclasses.replace(marks.get(uuid, Mark()), **_checked(changes)) if changes else Mark()
    except (TypeError, ValueError) as error:
        raise MarkError(f"an episode cannot be marked like that: {error}") from None
    marks.pop(uuid, None)
    if mark != Mark():
        marks[uuid] = mark
    try:
        text = json.dumps({key: dataclasses.asdict(one) for key, one in marks.items()}, indent=1)
        put(marks_file(dataset), text.encode(), durable=True)
    except OSError as error:
        raise MarkError(f"{marks_file(dataset)} cannot be written: {error.strerror}; is the disk full?") from None
    return mark


def apply_marks(dataset: Path) -> tuple[int, int]:
    """Carry out what was marked, once nobody writes any more, and forget it: (episodes relabelled, deleted).

    Killed in between, it does the rest the next time. `robolearn data undo` and the folder that a deletion leaves
    beside the dataset take it back.

    Raises:
        MarkError: the file is damaged.
        EditError: no episode would remain.
        DatasetError: somebody is writing.
    """
    marks = read_marks(dataset)
    if not marks:
        return 0, 0
    uuids = [str(info.get("uuid")) for info in episode_infos(Dataset.open(dataset))]
    groups: dict[tuple[str | None, bool | None], list[int]] = {}
    for number, uuid in enumerate(uuids):
        mark = marks.get(uuid, Mark())
        if not mark.delete and (mark.task, mark.success) != (None, None):
            groups.setdefault((mark.task, mark.success), []).append(number)
    for (task, success), episodes in groups.items():
        changes = {key: value for key, value in (("task", task), ("success", success)) if value is not None}
        relabel(dataset, episodes, changes)
    gone = [number for number, uuid in enumerate(uuids) if marks.get(uuid, Mark()).delete]
    if gone:
        delete(dataset, gone)
    marks_file(dataset).unlink()
    return sum(map(len, groups.values())), len(gone)


def _mark(found: Mapping[str, Any]) -> Mark:
    return Mark(**_checked(found))


def _checked(changes: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        if name == "task":
            fits = value is None or (isinstance(value, str) and value.strip() and len(value.encode()) <= TEXT_BYTES)
        elif name == "success":
            fits = value is None or isinstance(value, bool)
        else:
            fits = name == "delete" and isinstance(value, bool)
        if not fits:
            raise ValueError(f"{name} is not one of task (up to {TEXT_BYTES} bytes), success, delete, or has no sense")
    return dict(changes)
