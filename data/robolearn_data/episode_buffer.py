"""The episode that a writer is collecting: in memory, in files past the published end, and in the journal."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from robolearn_data import shards, storage
from robolearn_data.columns import Column, FrameColumn, RowColumn
from robolearn_data.creation import TIME, VALID
from robolearn_data.journal import Block, Journal
from robolearn_data.location import Location
from robolearn_data.schema import Schema, Stream


class EpisodeBuffer:
    """Columns of the dataset ("data/state", "streams/camera/value", ...) from the end of what is published on.

    Blocks that come here are known to be right.
    """

    def __init__(
        self, location: Location, schema: Schema, *, durable: bool, buffer_bytes: int, journal: Journal | None
    ) -> None:
        self.info: dict[str, Any] = {}
        self.rows = 0
        """Control steps taken."""
        self.newest_tick = 0
        """Time of the last control step, ns; 0 where none has a time."""
        self.newest_sample: dict[str, int] = {}
        """Native stream -> capture time of its last sample, ns."""
        self._location = location
        self._schema = schema
        self._native = {name: s for name, s in schema.streams.items() if s.is_native}
        self._durable = durable
        self._buffer_bytes = buffer_bytes
        self._journal = journal
        self._store = location.store(read_only=False, durable=durable)
        self._steps = 0
        self._samples: dict[str, int] = {}
        self.columns: dict[str, Column] = {}

    def open_columns(self, steps: int, samples: Mapping[str, int]) -> None:
        """Find the arrays that are there; the episode begins after ``steps`` rows and ``samples`` of native streams."""
        self._steps, self._samples = steps, dict(samples)
        for name, stream in self._possible_columns().items():
            if self._location.exists(f"{name}/zarr.json"):
                array = storage.open_array(self._store, name, "r+")
                one_by_one = shards.is_one_by_one(array)
                self.columns[name] = (
                    FrameColumn(self._location, name, stream, array, self._published(name), durable=self._durable)
                    if one_by_one
                    else RowColumn(self._store, name, stream, array, self._published(name))
                )

    def restart(self, steps: int, samples: Mapping[str, int]) -> None:
        """Begin an episode after ``steps`` published rows and ``samples`` of native streams, and forget this one."""
        self._steps, self._samples = steps, dict(samples)
        self.rows = 0
        self.info = {"uuid": str(uuid.uuid4())}
        self.newest_tick = 0
        self.newest_sample = dict.fromkeys(self._native, 0)
        self._ticks: list[np.ndarray] = []
        self._sample_times: dict[str, list[np.ndarray]] = {name: [] for name in self._native}
        self._unjournaled: list[tuple[Mapping[str, Block], Mapping[str, Any]]] = [({}, {"info": dict(self.info)})]
        for name, column in self.columns.items():
            column.restart(self._published(name))
        if self._journal:
            self._journal.restart()

    def put(self, columns: Mapping[str, Block], facts: Mapping[str, Any] | None = None) -> None:
        """Take rows, and ``facts`` for the journal; then write what need not stay in memory.

        Raises:
            OSError: the journal or a file cannot be written. The rows are taken.
        """
        for name, block in columns.items():
            if len(block) and name.startswith("streams/") and name.endswith("/time"):
                stream = name.split("/")[1]
                self._sample_times[stream].append(np.asarray(block))
                self.newest_sample[stream] = int(np.asarray(block)[-1])
        ticks = columns.get(f"time/{storage.TICK}")
        if ticks is not None:
            self._ticks.append(np.asarray(ticks))
            self.newest_tick = int(self._ticks[-1][-1])
        steps = next((len(block) for name, block in columns.items() if name.startswith("data/")), 0)
        possible = self._possible_columns() if columns.keys() - self.columns.keys() else {}
        for name in columns.keys() - self.columns.keys():
            column = self._new_column(name, possible[name])
            column.add(_filled(column, self.rows))
        for name, column in self.columns.items():
            if name in columns:
                column.add(columns[name])
            elif steps and not name.startswith(("streams/", "index/", "data/")) and not self._is_native_mask(name):
                column.add(_filled(column, steps))
        self.rows += steps
        if self._journal:
            self._unjournaled.append((columns, facts or {}))
            while self._unjournaled:
                self._journal.append(*self._unjournaled[0])
                del self._unjournaled[0]
        if sum(column.held_bytes for column in self.columns.values()) > self._buffer_bytes:
            for column in self.columns.values():
                column.write_full_files()

    def write(self) -> None:
        """Bring every row into its file. Raises OSError; the rows are still held then."""
        self._align_native()
        for column in self.columns.values():
            column.write(column.stop)

    def _align_native(self) -> None:
        """For each control step, the newest sample captured by then, and whether none is missing between the two."""
        for name, stream in self._native.items():
            index = self.columns[f"index/{name}"]
            if index.stop > self._steps:  # an earlier try to save
                continue
            ticks = np.concatenate(self._ticks)
            times = np.concatenate([np.empty(0, np.int64), *self._sample_times[name]])
            newest = np.searchsorted(times, ticks, side="right") - 1
            index.add(np.where(newest >= 0, newest + self._samples[name], -1))
            age = ticks - times[newest] if len(times) else np.zeros(len(ticks))
            valid = (newest >= 0) & (age < stream.stale_ns)
            mask = self.columns.get(f"valid/{name}")
            if mask is None and not valid.all():
                mask = self._new_column(f"valid/{name}", VALID)
            if mask is not None:
                mask.add(valid)

    def _possible_columns(self) -> dict[str, Stream]:
        """Every array of rows or samples that the dataset may have."""
        aligned = self._schema.streams.keys() - self._native.keys()
        names = {storage.values_of(name, stream): stream for name, stream in self._schema.streams.items()}
        names |= {f"{kind}/{name}": TIME for kind in ("time", "received") for name in aligned}
        names |= {f"time/{storage.TICK}": TIME}
        names |= {f"valid/{name}": VALID for name in self._schema.streams}
        for name in self._native:
            names |= {f"streams/{name}/time": TIME, f"streams/{name}/received": TIME, f"index/{name}": TIME}
        return names

    def _published(self, column: str) -> int:
        """Rows or samples of a column that are published."""
        return self._samples[column.split("/")[1]] if column.startswith("streams/") else self._steps

    def _new_column(self, name: str, stream: Stream) -> Column:
        """One of times or holes, whose array is made when it is first written."""
        column = self.columns[name] = RowColumn(self._store, name, stream, None, self._published(name))
        return column

    def _is_native_mask(self, name: str) -> bool:
        return name.startswith("valid/") and name.removeprefix("valid/") in self._native


def _filled(column: Column, rows: int) -> np.ndarray:
    return np.full((rows, *column.stream.shape), storage.fill_value(column.name), column.stream.dtype)
