"""A dataset's place on a disk of this machine: files that are replaced whole, and reach the medium in order."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from robolearn_data.schema import UserError


class DatasetError(UserError):
    """A dataset is missing, damaged, of another kind, or used in a way that would harm it."""


class ReplacedError(Exception):
    """The file is another one than when its version was read."""


class Lock(Protocol):
    """That this process writes, and no other."""

    def check(self) -> None:
        """
        Raises:
            DatasetError: another has taken over.
            OSError: the dataset is no longer where it was.
        """
        ...

    def release(self) -> None: ...


class Folder:
    """A dataset on a disk of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def exists(self, key: str = "") -> bool:
        return (self.path / key).exists() or (not key and self.path.is_symlink())

    def size(self, key: str = "") -> int:
        """Bytes of the files below ``key``."""
        return sum(file.stat().st_size for file in (self.path / key).rglob("*") if file.is_file())

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return (self.path / key).read_bytes()

    def read_range(self, key: str, start: int, length: int, version: Any = None) -> tuple[bytes, Any]:
        """``length`` bytes from ``start`` on (from the end if negative), or what there is of them, and a version.

        Raises:
            FileNotFoundError: no such file.
            ReplacedError: a ``version`` was given, and the file is another one by now.
        """
        descriptor = os.open(self.path / key, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            found = (status.st_ino, status.st_size, status.st_mtime_ns)
            if version not in (None, found):
                raise ReplacedError
            return os.pread(descriptor, length, start if start >= 0 else max(status.st_size + start, 0)), found
        finally:
            os.close(descriptor)

    def put(self, key: str, value: Any, *, durable: bool) -> None:
        """Replace a file whole. Raises OSError."""
        put(self.path / key, value, durable=durable)

    def store(self, *, read_only: bool = True, durable: bool = False) -> Store:
        """For zarr."""
        return DurableStore(self.path) if durable else LocalStore(self.path, read_only=read_only)

    def lock(self) -> Lock:
        """Keep other writers away; the kernel lets go when the process ends, however it ends.

        Raises:
            DatasetError: another process is writing.
        """
        return _FolderLock(self.path)

    @contextmanager
    def draft(self) -> Iterator[Folder]:
        """A place to build what appears here when the body is through; it leaves nothing behind when that fails.

        What killed predecessors left is removed.

        Raises:
            DatasetError: there is something here.
        """
        self._check_free()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in self.abandoned():
            shutil.rmtree(folder, ignore_errors=True)
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            yield Folder(unfinished)
            sync_tree(unfinished)
            self._check_free()
            os.rename(unfinished, self.path)
            sync_folder(self.path.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def abandoned(self) -> list[Path]:
        """Drafts of what should have appeared here, whose process is no more."""
        name = re.compile(rf"\.{re.escape(self.path.name)}\.(\d+)\.partial")
        found = [(p, m) for p in sorted(self.path.parent.glob(".*.partial")) if (m := name.fullmatch(p.name))]
        return [path for path, match in found if not _is_at_work(int(match[1]), path)]

    def _check_free(self) -> None:
        if self.exists():
            raise DatasetError(f"{self} exists; choose another path, or append to it if it is a dataset")


def _is_at_work(process: int, folder: Path) -> bool:
    """Whether a process is alive, or one of another machine is writing to ``folder``."""
    try:
        os.kill(process, 0)
        return True
    except ProcessLookupError:
        pass
    except (PermissionError, OverflowError):
        return True
    try:
        _FolderLock(folder).release()
    except FileNotFoundError:
        return False
    except DatasetError:
        return True
    return False


def put(path: Path, value: Any, *, durable: bool) -> None:
    """Replace a file whole. ``durable`` waits until it is on the medium, so that no later write precedes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same name every time, so that killed writers leave no heap of them.
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(value)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the medium."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Wait until every file under ``path`` is on the medium."""
    for folder, _, files in os.walk(path):
        for name in files:
            with open(Path(folder) / name, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(folder))


class DurableStore(LocalStore):
    """A local store whose every write has reached the medium when it returns; zarr's own leaves that to the kernel."""

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(put, self.root / key, value.as_buffer_like(), durable=True)


class _FolderLock:
    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise DatasetError(f"another process is writing to {path}; wait for it, or write another dataset") from None

    def check(self) -> None:
        """An unmounted disk leaves an empty folder of its name on another, in which nothing must be written."""
        here = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            raise OSError(
                errno.ENODEV,
                f"{self._path} is no longer there: its disk was unmounted or the folder moved; bring it back",
            )

    def release(self) -> None:
        os.close(self._descriptor)
