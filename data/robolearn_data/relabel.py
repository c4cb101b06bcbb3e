"""Changing what is noted about episodes (task, success, operator, ...). Recorded values are not touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from robolearn_data import storage
from robolearn_data.copying import CLOCK_KEYS, no_writer
from robolearn_data.dataset import Dataset
from robolearn_data.edit import EditError, exchange
from robolearn_data.folder import put, sync_tree
from robolearn_data.schema import SchemaError
from robolearn_data.selection import episode_infos

UNDO = "undo"
"""Folder in a dataset where infos before each change are kept."""
_NEW = "meta/episode_info_new"


def relabel(path: Path, episodes: Collection[int], changes: Mapping[str, Any], remove: Collection[str] = ()) -> Path:
    """Set ``changes`` (JSON values) in the info of ``episodes`` and take the keys ``remove`` out.

    All change in one instant: killed at any moment, every info is as it was or every one as it shall be.

    Returns:
        The file with the infos before, which ``undo_relabel`` reads.

    Raises:
        EditError: nothing to change, or a key that says which episode it is (uuid, wall times).
        SchemaError: a value that is not JSON.
        DatasetError: not a dataset, someone is writing to it, or it has an unfinished episode.
    """
    for key in (*changes, *remove):
        if key in CLOCK_KEYS or not key:
            raise EditError(f"{key!r} says which episode it is and cannot be changed; valid: any other key")
    if not changes and not remove:
        raise EditError("nothing to change; give at least one key=value")
    with no_writer(path):
        before = episode_infos(Dataset.open(path))
        after = list(before)
        for episode in episodes:
            kept = {k: v for k, v in before[episode].items() if k not in remove}
            after[episode] = {**kept, **changes}
        texts = [_json(info) for info in after]
        number = 1 + max((int(file.stem[8:]) for file in _undo_files(path)), default=0)
        undo = path / UNDO / f"relabel-{number:06d}.json"
        old = {str(before[episode]["uuid"]): before[episode] for episode in episodes}
        put(undo, json.dumps(old, indent=1).encode(), durable=True)
        _replace(path, texts)
    return undo


def undo_relabel(path: Path) -> int:
    """Take the newest change of ``relabel`` back. Returns how many episodes it concerned.

    Raises:
        EditError: there is none.
        DatasetError: as ``relabel``.
    """
    with no_writer(path):
        files = _undo_files(path)
        if not files:
            raise EditError(f"nothing was relabelled in {path}, or all was taken back")
        try:
            old = json.loads(files[-1].read_bytes())
            restored = [old.get(str(info.get("uuid")), info) for info in episode_infos(Dataset.open(path))]
            texts = [_json(dict(info)) for info in restored]
        except (ValueError, TypeError, AttributeError) as error:
            raise EditError(f"{files[-1]} cannot be read ({error}); remove it to go back further") from None
        _replace(path, texts)
        files[-1].unlink()
    return len(old)


def _replace(path: Path, texts: list[str]) -> None:
    new = path / _NEW
    if new.exists():  # of a process that was killed
        shutil.rmtree(new)
    array = zarr.create_array(LocalStore(path), name=_NEW, shape=(len(texts),), dtype="str", chunks=(64,))
    array[:] = np.array(texts, dtype=object)
    sync_tree(new)
    exchange(new, path / storage.INFO)
    shutil.rmtree(new)


def _undo_files(path: Path) -> list[Path]:
    return sorted(file for file in (path / UNDO).glob("relabel-*.json") if file.stem[8:].isdigit())


def _json(info: Mapping[str, Any]) -> str:
    try:
        return json.dumps(info, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"episode info must be JSON values: {error}") from None
