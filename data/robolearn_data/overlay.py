"""A dataset with one stream more, or another one in place of its own, that is held in memory and stored nowhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.schema import SchemaError, Stream


class WithStream(Dataset):
    """``dataset`` with the stream ``name``, one value for each of its N rows."""

    def __init__(
        self,
        dataset: Dataset,
        name: str,
        stream: Stream,
        values: np.ndarray,
        valid: np.ndarray | None = None,
        *,
        mark: str = "",
    ) -> None:
        """
        Args:
            values: (N, *stream.shape).
            valid: (N,) bool, False where there is no value; all by default.
            mark: names what the values were made with. The dataset's fingerprint depends on it, not on the values.

        Raises:
            SchemaError: another number of rows, or values that do not fit the stream.
        """
        schema = replace(dataset.schema, streams={**dataset.schema.streams, name: stream})
        super().__init__(dataset.location, schema, dataset.metadata, dataset.episode_ends)
        self._base = dataset
        self._name = name
        self._values = stream.check(name, values, batch=(dataset.steps,))
        self._valid = np.ones(dataset.steps, bool) if valid is None else np.asarray(valid, bool)
        self._mark = mark
        if self._valid.shape != (dataset.steps,):
            raise SchemaError(f"valid has shape {self._valid.shape}, expected {(dataset.steps,)}")

    def blocks(self, name: str, rows: slice | None = None) -> Iterator[tuple[int, np.ndarray]]:
        if name != self._name:
            yield from self._base.blocks(name, rows)
            return
        start, stop, _ = (rows or slice(None)).indices(self.steps)
        if start < stop:
            yield start, self._values[start:stop].copy()

    def take(self, name: str, rows: Any) -> np.ndarray:
        if name != self._name:
            return self._base.take(name, rows)
        chosen = np.asarray(rows, np.int64)
        found = self._values[chosen]
        found[chosen < 0] = 0
        return found

    def valid(self, name: str) -> np.ndarray:
        return self._valid.copy() if name == self._name else self._base.valid(name)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._base.fingerprint()} {self._name} {self._mark}".encode()).hexdigest()[:16]
