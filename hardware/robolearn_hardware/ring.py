"""A ring of fixed-size records in shared memory: one writer, any number of readers, nobody ever waits.

Each slot carries a sequence number that is odd while the writer is inside it (a sequence lock, Lameter 2005). A reader
copies the record and looks at the number again: if it moved, the copy is thrown away. On x86-64 loads and stores keep
their order, so that this finds every torn copy; elsewhere the record's CRC-32 is compared as well, because Python has
no memory barrier.
"""

from __future__ import annotations

import os
import platform
import secrets
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

Field = tuple[str, tuple[int, ...]]
"""dtype and shape of one field of a record."""

PREFIX = "robolearn-"
"""Rings are /dev/shm/robolearn-<pid of the creator>-..."""

_HEADER = 64  # bytes; the first eight are the number of records published so far
_ALIGN = 64  # a cache line
_ORDERED_MACHINES = ("x86_64", "AMD64")


@dataclass(frozen=True)
class RingHandle:
    """What another process needs to attach to a ring. It can be pickled."""

    name: str
    fields: Mapping[str, Field]
    slots: int
    checked: bool


class Ring:
    """Made by ``create`` in the process that removes it at the end, and by ``attach`` in the others."""

    def __init__(self, memory: SharedMemory, handle: RingHandle, *, owner: bool) -> None:
        self.handle = handle
        self._memory = memory
        self._owner = owner
        self.dtype = _record_dtype(handle.fields)
        """numpy's name for a record."""
        size, stride = self.dtype.itemsize, _slot_bytes(self.dtype)
        self._count = np.ndarray((1,), np.uint64, memory.buf)
        self._sequence = np.ndarray((handle.slots,), np.uint64, memory.buf, _HEADER, (stride,))
        self._crc = np.ndarray((handle.slots,), np.uint32, memory.buf, _HEADER + 8, (stride,))
        self._bytes = np.ndarray((handle.slots, size), np.uint8, memory.buf, _HEADER + 16, (stride, 1))
        self._records = np.ndarray((handle.slots,), self.dtype, memory.buf, _HEADER + 16, (stride,))

    @classmethod
    def create(cls, fields: Mapping[str, Field], slots: int, *, checked: bool | None = None) -> Ring:
        """A new, empty ring that keeps the last ``slots`` records of ``fields`` (name -> dtype and shape).

        Args:
            checked: compare a CRC-32 of each record too; by default where the machine may reorder memory accesses.
        """
        if slots < 2:
            raise ValueError(f"a ring needs at least 2 slots, got {slots}")
        checked = platform.machine() not in _ORDERED_MACHINES if checked is None else checked
        size = _HEADER + slots * _slot_bytes(_record_dtype(fields))
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        memory = SharedMemory(name, create=True, size=size)  # the kernel fills it with zeros
        return cls(memory, RingHandle(memory.name, dict(fields), slots, checked), owner=True)

    @classmethod
    def attach(cls, handle: RingHandle) -> Ring:
        """Another process's end of a ring. That process must be a child (or parent) of the ring's creator by
        multiprocessing, so that they share the tracker that removes the memory if all of them are killed."""
        return cls(SharedMemory(handle.name), handle, owner=False)

    @property
    def count(self) -> int:
        """Records published so far; the newest one has the index ``count - 1``."""
        return int(self._count[0])

    def publish(self, values: Mapping[str, Any]) -> int:
        """Write one record, over the oldest one, and return its index. For the ring's one writer.

        Raises:
            ValueError: ``values`` are not exactly the ring's fields, or one has another shape.
        """
        if values.keys() != self.handle.fields.keys():
            raise ValueError(f"record has fields {sorted(values)}, the ring {sorted(self.handle.fields)}")
        for name, (_, shape) in self.handle.fields.items():
            if _shape_of(values[name]) != shape:
                raise ValueError(f"field {name!r} has shape {_shape_of(values[name])}, expected {shape}")
        index = self.count
        slot = index % self.handle.slots
        self._sequence[slot] = 2 * index + 1
        for name, value in values.items():
            self._records[name][slot] = value
        if self.handle.checked:
            self._crc[slot] = zlib.crc32(self._bytes[slot])
        self._sequence[slot] = 2 * index + 2
        self._count[0] = index + 1
        return index

    def read(self, index: int) -> np.void | None:
        """A private copy of record ``index``, or None where it is not yet written, overwritten or being written."""
        slot = index % self.handle.slots
        whole = 2 * index + 2
        if int(self._sequence[slot]) != whole:
            return None
        copy, crc = self._bytes[slot].copy(), int(self._crc[slot])
        if int(self._sequence[slot]) != whole or (self.handle.checked and zlib.crc32(copy) != crc):
            return None
        return copy.view(self.dtype)[0]

    def newest(self) -> tuple[int, np.void] | None:
        """Index and copy of the newest record; None while there is none, or while a writer laps every attempt."""
        for _ in range(100):
            index = self.count - 1
            if index < 0:
                return None
            record = self.read(index)
            if record is not None:
                return index, record
        return None

    def since(self, index: int) -> Iterator[tuple[int, np.void]]:
        """Records from ``index`` on, in order, as far as published now. Overwritten ones are left out."""
        end = self.count
        for i in range(max(index, end - self.handle.slots), end):
            record = self.read(i)
            if record is not None:
                yield i, record

    def drain(self, index: int) -> tuple[np.ndarray, int]:
        """All that ``since`` would give, as one private array of records (n,), and the index after the last of them.

        For the many records of a fast device: the cost of a call does not grow with their number.
        """
        end = self.count
        indices = np.arange(max(index, end - self.handle.slots), end)
        slots, whole = indices % self.handle.slots, (2 * indices + 2).astype(np.uint64)
        found = self._sequence[slots] == whole
        copies, crcs = self._bytes[slots], self._crc[slots]
        found &= self._sequence[slots] == whole
        if self.handle.checked:
            found &= np.array([zlib.crc32(copy) == crc for copy, crc in zip(copies, crcs, strict=True)], bool)
        records = copies.view(self.dtype)[:, 0]
        return records if found.all() else records[found], end

    def close(self) -> None:
        """Let go of the memory, and remove it if this is the creator's end. May be called twice."""
        if not hasattr(self, "_records"):
            return
        # The views must go first: memory that is still looked at cannot be unmapped.
        del self._count, self._sequence, self._crc, self._bytes, self._records
        self._memory.close()
        if self._owner:
            self._memory.unlink()

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shape_of(value: Any) -> tuple[int, ...]:
    """``np.shape``, which takes microseconds for a number."""
    if isinstance(value, np.ndarray | np.generic):
        return value.shape
    return () if isinstance(value, int | float | bytes) else np.shape(value)


def _record_dtype(fields: Mapping[str, Field]) -> np.dtype:
    return np.dtype([(name, dtype, shape) for name, (dtype, shape) in fields.items()], align=True)


def _slot_bytes(record: np.dtype) -> int:
    """Sequence number (8 bytes), CRC-32 (4, padded to 8), record; rounded up to whole cache lines."""
    return -(-(16 + record.itemsize) // _ALIGN) * _ALIGN
