"""What importers and exporters share: their errors, and a target that appears whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robolearn_data.schema import UserError
from robolearn_data.storage import DatasetError, sync_folder
from robolearn_data.writer import sync_tree


class ImportFormatError(UserError):
    """The source is not what its format says, or is broken."""


class ExportFormatError(UserError):
    """The dataset holds what the wanted format cannot."""


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


def stream_name(key: str) -> str:
    """The name of a foreign array with what a stream name may not hold replaced by "_"."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", key)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
