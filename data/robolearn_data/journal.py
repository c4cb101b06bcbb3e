"""What of an episode in flight has reached the disk, so that `recover` can save it after a crash.

A journal is a file of records, each followed by nothing else: length and CRC-32 of the record (4 bytes each, little
endian), then the record. A record is a JSON header, its length before it, and the bytes that the header lists. Whatever
comes after the first record that is cut short or fails its checksum was being written when the machine stopped.

A record holds rows of columns ("data/state", "streams/camera/value", ...). Images are in it as they will be in the
dataset, encoded, so that nothing is encoded twice.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.folder import sync_folder

Block = np.ndarray | list[bytes]
"""Rows of a column: an array (n, ...), or n encoded frames."""

NAME = "journal"
LEFT = "unfinished"
"""Folder where journals of writers that were killed wait for `recover`."""

_MAGIC = b"robolearn journal 1\n"
_SYNC_S = 1.0
_LARGEST = 2**31


class Journal:
    """Appends records. A power cut costs what came in the last second at most; a killed process costs nothing."""

    def __init__(self, path: Path) -> None:
        """Start an empty journal at ``path``. Raises OSError where it cannot be written."""
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._end = 0
        self.restart()

    def restart(self) -> None:
        """Forget every record."""
        self._file.seek(0)
        self._file.truncate(0)
        self._end = 0
        self._synced = time.monotonic()

    def append(self, columns: Mapping[str, Block], facts: Mapping[str, Any] | None = None) -> None:
        """Write one record of ``columns`` and ``facts`` (JSON values about the episode).

        Raises:
            OSError: it cannot be written; the journal ends with the record before.
        """
        listed, parts = [], []
        for name, block in columns.items():
            if isinstance(block, list):
                listed.append({"name": name, "frames": [len(frame) for frame in block]})
                parts += block
            else:
                listed.append({"name": name, "shape": block.shape, "dtype": block.dtype.str})
                parts.append(np.ascontiguousarray(block).data.cast("B") if block.size else b"")
        header = json.dumps({"columns": listed, "facts": dict(facts or {})}).encode()
        body = [len(header).to_bytes(4, "little"), header, *parts]
        crc = 0
        for part in body:
            crc = zlib.crc32(part, crc)
        record = b"".join([sum(map(len, body)).to_bytes(4, "little"), crc.to_bytes(4, "little"), *body])
        if not self._end:
            record = _MAGIC + record
        try:
            self._write(record)
        except OSError:
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise
        self._end += len(record)
        if time.monotonic() - self._synced > _SYNC_S:
            os.fdatasync(self._file.fileno())
            self._synced = time.monotonic()

    def close(self) -> None:
        """Remove the journal, if no record is in it; otherwise it stays for `recover`."""
        if not self._file.closed:
            self._file.close()
            if not self._end:
                self.path.unlink(missing_ok=True)

    def _write(self, record: bytes) -> None:
        rest = memoryview(record)
        while rest:
            rest = rest[self._file.write(rest) :]


def read(path: Path) -> Generator[tuple[dict[str, Block], dict[str, Any]], None, int]:
    """Columns and facts of each whole record, in order; stops at the first that is not whole.

    Returns (as the generator's value) the number of bytes after the last whole record.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return size
        whole = file.tell()
        while len(head := file.read(8)) == 8:
            length, crc = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
            if length > min(_LARGEST, size - file.tell()):
                break
            body = file.read(length)
            if zlib.crc32(body) != crc:
                break
            try:
                record = _parse(body)
            except (ValueError, KeyError, TypeError):
                break
            yield record
            whole = file.tell()
    return size - whole


def _parse(body: bytes) -> tuple[dict[str, Block], dict[str, Any]]:
    at = 4 + int.from_bytes(body[:4], "little")
    header = json.loads(body[4:at])
    columns: dict[str, Block] = {}
    for column in header["columns"]:
        if "frames" in column:
            frames = []
            for length in column["frames"]:
                frames.append(body[at : at + length])
                at += length
            columns[column["name"]] = frames
        else:
            dtype, shape = np.dtype(column["dtype"]), tuple(column["shape"])
            count = int(np.prod(shape))
            columns[column["name"]] = np.frombuffer(body, dtype, count, at).reshape(shape)
            at += count * dtype.itemsize
    if at != len(body):
        raise ValueError("record does not hold what its header lists")
    return columns, header["facts"]


def set_aside(root: Path) -> Path | None:
    """Move the journal of a writer that was killed to where the next one does not overwrite it."""
    path = root / NAME
    if not path.exists():
        return None
    if path.stat().st_size <= len(_MAGIC):
        path.unlink()
        return None
    folder = root / LEFT
    folder.mkdir(exist_ok=True)
    number = 1 + max((int(p.stem) for p in folder.glob("*.journal") if p.stem.isdigit()), default=0)
    target = folder / f"{number:06d}.journal"
    path.rename(target)
    sync_folder(root)
    return target


def unfinished(root: Path) -> list[Path]:
    """Journals that wait for `recover`, oldest first."""
    return sorted((root / LEFT).glob("*.journal"))
