"""Whatever order a person, a crash and `recover` do things in, the dataset holds exactly the episodes it must."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from robolearn_data import journal
from robolearn_data.dataset import Dataset
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    10.0,
    {
        "camera": Stream((40, 40, 3), "uint8", "image"),
        "arm": Stream((2,), "float32", rate_hz=500.0, interpolation="linear"),
        "action": Stream((2,), "float32", "action"),
    },
)
MS = 1_000_000


@dataclass
class Episode:
    """What was added: the value of each step, with a hole where the camera gave none."""

    values: list[int]
    holes: list[bool]
    samples: list[int]


class Recording(RuleBasedStateMachine):
    """A model of what is published and what is in flight, beside the real thing on a real disk."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "d"
        self.published: list[Episode] = []
        self.unfinished: list[Episode] = []
        self.now = Episode([], [], [])
        self.count = 0

    @initialize(buffer=st.sampled_from([20_000, 10**9]))
    def create(self, buffer: int) -> None:
        self.buffer = buffer
        self.writer: DatasetWriter | None = DatasetWriter.create(self.path, SCHEMA, buffer_bytes=buffer)

    @precondition(lambda self: self.writer)
    @rule(steps=st.integers(1, 30), hole=st.booleans(), samples=st.integers(0, 20))
    def add(self, steps: int, hole: bool, samples: int) -> None:
        assert self.writer
        for _ in range(steps):
            self.count += 1
            now = self.count * 100 * MS
            if samples:
                numbers = 100 * self.count + np.arange(samples)
                values = np.repeat(numbers[:, None], 2, 1).astype(np.float32)
                self.writer.add_samples("arm", values, now + 2 * MS * np.arange(samples))
                self.now.samples += numbers.tolist()
            row = {"camera": np.full((40, 40, 3), self.count % 251, np.uint8), "action": np.full(2, self.count)}
            if hole:
                del row["camera"]
            self.writer.add(row, time_ns=now, holes=["camera"] if hole else [])
            self.now.values.append(self.count)
            self.now.holes.append(hole)

    @precondition(lambda self: self.writer and self.now.values)
    @rule()
    def save(self) -> None:
        assert self.writer
        assert self.writer.save_episode() == len(self.published)
        self._finish(self.published)

    @precondition(lambda self: self.writer)
    @rule()
    def discard(self) -> None:
        assert self.writer
        self.writer.discard_episode()
        self._finish(None)

    @precondition(lambda self: self.writer)
    @rule(cut=st.sampled_from([0, 0, 1, 100]))
    def crash(self, cut: int) -> None:
        """Lose the process; ``cut`` bytes of the journal's end had not reached the disk."""
        assert self.writer
        self.writer._lock.release()
        file = self.path / journal.NAME
        if cut and file.stat().st_size:
            os.truncate(file, max(file.stat().st_size - cut, 0))
            if self.now.values:  # each call of `add` is two records, the steps last
                self.now.values.pop()
                self.now.holes.pop()
        self.writer = None
        self._finish(self.unfinished if self.now.values else None)

    @precondition(lambda self: not self.writer)
    @rule()
    def reopen(self) -> None:
        self.writer = DatasetWriter.append(self.path, buffer_bytes=self.buffer)

    @precondition(lambda self: not self.writer)
    @rule()
    def recover(self) -> None:
        found = recover(self.path)
        assert [steps for _, steps in found.saved] == [len(episode.values) for episode in self.unfinished]
        self.published += self.unfinished
        self.unfinished = []
        assert not journal.unfinished(self.path)

    @invariant()
    def everything_published_is_whole_and_nothing_else_is_there(self) -> None:
        if not self.path.exists():
            return
        assert validate(self.path) == []
        dataset = Dataset.open(self.path)
        assert dataset.episodes == len(self.published)
        for number, episode in enumerate(self.published):
            found = dataset.episode(number)
            np.testing.assert_array_equal(found["action"][:, 0], episode.values)
            valid = dataset.valid("camera")[dataset.rows(number)]
            np.testing.assert_array_equal(~valid, episode.holes)
            np.testing.assert_array_equal(found["camera"][valid][:, 7, 7, 2], np.array(episode.values)[valid] % 251)
            samples = dataset.samples("arm", number)
            values = np.asarray(dataset.array("arm")[samples.rows])[:, 1]
            np.testing.assert_array_equal(values[: len(episode.samples)], episode.samples[: len(values)])
            assert abs(len(values) - len(episode.samples)) <= 20  # those of a step that was cut off

    def _finish(self, kept: list[Episode] | None) -> None:
        if kept is not None:
            kept.append(self.now)
        self.now = Episode([], [], [])

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestRecording = Recording.TestCase
TestRecording.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
