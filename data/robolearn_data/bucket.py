"""A dataset's place in an object store (S3, Google Cloud, Azure, memory): objects that are replaced whole.

There is no journal here: of a writer that is killed, the episode in flight is lost.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import ObjectStore

from robolearn_data.folder import DatasetError, Lock, ReplacedError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

ROOT = "zarr.json"
"""The key that makes a group of a location; a dataset is there once it is."""
_LOCK = "writer.json"


class Bucket:
    """A dataset in an object store. Needs ``pip install robolearn[cloud]``."""

    def __init__(self, url: str, *, draft: bool = False) -> None:
        """``draft``: the root stays in memory, so that nobody sees a dataset here before ``publish``."""
        self.url = url.rstrip("/")
        self._root: bytes | None = None
        self._is_draft = draft

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_root": self._root, "_is_draft": self._is_draft}

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def path(self) -> Path:
        raise DatasetError(f"{self} is in an object store; this works on datasets on a disk only")

    @cached_property
    def client(self) -> Client:
        return _client(self.url)

    def exists(self, key: str = "") -> bool:
        if self._is_draft and key == ROOT:
            return self._root is not None
        import obstore

        with _os_errors(self, key):
            if not key:
                return any(True for page in obstore.list(self.client, chunk_size=1) if page)
            try:
                obstore.head(self.client, key)
            except FileNotFoundError:
                return False
        return True

    def size(self, key: str = "") -> int:
        """Bytes of the objects below ``key``."""
        import obstore

        with _os_errors(self, key):
            pages = obstore.list(self.client, f"{key}/" if key else None)
            return sum(int(file["size"]) for page in pages for file in page)

    def read(self, key: str) -> bytes:
        if self._is_draft and key == ROOT:
            return self._root or b""
        import obstore

        with _os_errors(self, key):
            return bytes(obstore.get(self.client, key).bytes())

    def read_range(self, key: str, start: int, length: int, version: Any = None) -> tuple[bytes, Any]:
        """As ``Folder.read_range``."""
        import obstore

        with _os_errors(self, key):
            found = obstore.get(
                self.client, key, options={"range": (start, start + length) if start >= 0 else {"suffix": -start}}
            )
            tag = (found.meta["e_tag"], found.meta["size"], found.meta["last_modified"])
            if version not in (None, tag):
                raise ReplacedError
            return bytes(found.bytes())[:length], tag

    def put(self, key: str, value: Any, *, durable: bool) -> None:
        if self._is_draft and key == ROOT:
            self._root = bytes(value)
            return
        import obstore

        with _os_errors(self, key):
            obstore.put(self.client, key, bytes(value))

    def store(self, *, read_only: bool = True, durable: bool = False) -> Store:
        return BucketStore(self, read_only=read_only)

    def lock(self) -> Lock:
        return _BucketLock(self)

    def break_lock(self) -> bool:
        """Let go of the lock of a writer that was killed. Returns whether there was one."""
        held = self.exists(_LOCK)
        if held:
            self.delete(_LOCK)
        return held

    def delete(self, key: str) -> None:
        import obstore

        with _os_errors(self, key):
            obstore.delete(self.client, key)

    @contextmanager
    def draft(self) -> Iterator[Bucket]:
        """As ``Folder.draft``. Its arrays come at once, and at the end the root, without which they are nothing."""
        import obstore

        if self.exists():
            raise DatasetError(f"{self} is not empty; choose another URL, or append to it if it is a dataset")
        unfinished = Bucket(self.url, draft=True)
        try:
            yield unfinished
            with _os_errors(self, ROOT):
                obstore.put(self.client, ROOT, unfinished.read(ROOT), mode="create")
        except BaseException:
            for page in obstore.list(self.client):
                obstore.delete(self.client, [str(file["path"]) for file in page])
            raise


class BucketStore(ObjectStore["Client"]):
    """zarr's store, whose errors are OSErrors, and which leaves the root of a draft alone."""

    def __init__(self, bucket: Bucket, *, read_only: bool) -> None:
        super().__init__(bucket.client, read_only=read_only)
        self.bucket = bucket

    def with_read_only(self, read_only: bool = False) -> BucketStore:
        return BucketStore(self.bucket, read_only=read_only)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Buffer | None:
        with _os_errors(self.bucket, key):
            return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        with _os_errors(self.bucket, key):
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if key != ROOT:
            with _os_errors(self.bucket, key):
                await super().set_if_not_exists(key, value)


class _BucketLock:
    """An object that only one can create."""

    def __init__(self, bucket: Bucket) -> None:
        import obstore

        self._bucket = bucket
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "id": str(uuid.uuid4())}
        self._value = json.dumps(holder).encode()
        try:
            with _os_errors(bucket, _LOCK):
                obstore.put(bucket.client, _LOCK, self._value, mode="create")
        except FileExistsError:
            raise DatasetError(f"{self._held()}; write another dataset, and merge the two later") from None

    def check(self) -> None:
        if not self._bucket.exists(_LOCK) or self._bucket.read(_LOCK) != self._value:
            raise DatasetError(f"{self._held()}: it has taken over, and this episode cannot be saved")

    def release(self) -> None:
        try:
            self.check()
            self._bucket.delete(_LOCK)
        except (DatasetError, OSError):  # another's by now, or out of reach: `recover` lets go of it
            pass

    def _held(self) -> str:
        try:
            other = json.loads(self._bucket.read(_LOCK))
            who = f"process {other['pid']} on {other['host']}, since {other['since']},"
        except (OSError, ValueError, KeyError, TypeError):
            who = "another process"
        return f"{who} is writing to {self._bucket} (if it was killed: `robolearn data recover {self._bucket}`)"


@contextmanager
def _os_errors(bucket: Bucket, key: str) -> Iterator[None]:
    """Turns the errors of obstore, which are no OSErrors, into such with one line."""
    import obstore.exceptions as errors

    try:
        yield
    except errors.AlreadyExistsError as error:
        raise FileExistsError(f"{bucket}/{key} exists") from error
    except errors.BaseError as error:
        where = f"{bucket}/{key}" if key else str(bucket)
        reason = str(error).split("\n", 1)[0].removesuffix(': <?xml version="1.0" encoding="utf-8"?>')
        raise OSError(f"{where}: {reason}; check the URL, the network and the credentials") from error


_MEMORY: dict[str, Any] = {}
"""What is at memory:// URLs in this process."""


def _client(url: str) -> Client:
    try:
        import obstore.exceptions as errors
        from obstore.store import MemoryStore, from_url
    except ModuleNotFoundError:
        raise DatasetError(f"{url} needs the package obstore; `pip install 'robolearn[cloud]'`") from None
    if url.startswith("memory://"):
        return _MEMORY.setdefault(url, MemoryStore())
    try:
        return from_url(url, retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=30)})
    except (errors.BaseError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise DatasetError(
            f"{url} is not a URL of an object store ({reason}); valid: s3://, gs://, az://, https://, memory://"
        ) from None
