"""Killing the writer or filling the disk costs at most the episode in flight."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robolearn_data import folder, journal
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    50.0,
    {
        "camera": Stream((48, 64, 3), "uint8", "image"),
        "joints": Stream((7,), "float32"),
        "action": Stream((7,), "float32", "action"),
    },
)
EXACT = {"camera": "zstd-1"}
PROCESSES = multiprocessing.get_context("forkserver")  # starts in milliseconds what has been imported once
PROCESSES.set_forkserver_preload(["robolearn_data.writer"])
STEPS = (3, 60, 17, 130, 40)


def episode(number: int) -> dict[str, np.ndarray]:
    """What episode ``number`` holds, whoever wrote it."""
    steps = STEPS[number % len(STEPS)]
    rng = np.random.default_rng(number)
    return {
        "camera": rng.integers(0, 256, (steps, 48, 64, 3), dtype=np.uint8),
        "joints": rng.normal(size=(steps, 7)).astype(np.float32),
        "action": rng.normal(size=(steps, 7)).astype(np.float32),
    }


def write_until_killed(path: Path, events: Connection) -> None:
    """The body of the process that is killed. Every second episode drops frames, and some outgrow the buffer."""
    with DatasetWriter.append(path, buffer_bytes=200_000) as writer:
        events.send("ready")
        while True:
            add_episode(writer)
            events.send("saved")


def assert_right(path: Path, start: int = 0) -> int:
    """Every episode from ``start`` on holds what it must; returns how many there are."""
    dataset = Dataset.open(path)
    for number in range(start, dataset.episodes):
        found, expected = dataset.episode(number), episode(number)
        assert dataset.episode_info(number)["number"] == number
        for name in ("joints", "action"):
            np.testing.assert_array_equal(found[name], expected[name])
        valid = dataset.valid("camera")[dataset.rows(number)]
        assert (~valid).tolist() == [bool(number % 2 and i % 7 == 6) for i in range(len(valid))]
        np.testing.assert_array_equal(found["camera"][valid], expected["camera"][valid])
    times = dataset.times()
    assert not dataset.steps or (times is not None and (times > 0).all())
    return dataset.episodes


def fill(writer: DatasetWriter) -> None:
    for number in range(100):
        writer.extend(episode(number))
        writer.save_episode({"number": number})


@pytest.mark.slow
def test_kills_at_random_instants_lose_no_published_episode(tmp_path: Path) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA, compression=EXACT).close()
    published = 0
    struck = 0
    for number, delay in enumerate(np.random.default_rng(0).uniform(0, 0.4, 24)):
        events, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=write_until_killed, args=(path, theirs))
        process.start()
        theirs.close()
        assert events.recv() == "ready"
        if number % 2:  # so that a slow machine gets on, too
            assert events.recv() == "saved"
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        events.close()
        after = assert_right(path, max(published - 1, 0))
        assert after >= published
        published = after
        struck += (path / journal.NAME).stat().st_size > 0
    assert published >= 12
    assert struck  # some of them in the middle of an episode
    assert assert_right(path) == published
    assert validate(path) == []
    assert len(list(path.rglob("*.partial"))) < 10  # they do not pile up


def save_and_die(path: Path, nth: int, torn: bool) -> None:
    """Appends one episode and is killed at the ``nth`` file it writes, before it or (``torn``) in the middle of it."""
    writes = itertools.count()
    lock = threading.Lock()
    put = folder.put

    def put_or_die(file: Path, value: Any, *, durable: bool) -> None:
        with lock:
            number = next(writes)
            if number == nth:
                if torn:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.with_name(f"{file.name}.partial").write_bytes(memoryview(value).cast("B")[:10])
                os.kill(os.getpid(), signal.SIGKILL)
        put(file, value, durable=durable)

    folder.put = put_or_die
    with DatasetWriter.append(path) as writer:
        add_episode(writer)


def add_episode(writer: DatasetWriter) -> None:
    values = episode(writer.episodes)
    now = time.monotonic_ns()
    for i in range(len(values["action"])):
        sample = {name: value[i] for name, value in values.items()}
        holes = ("camera",) if writer.episodes % 2 and i % 7 == 6 else ()
        for name in holes:
            del sample[name]
        writer.add(sample, time_ns=now + i, capture_ns={"joints": now + i - 1}, holes=holes)
    writer.save_episode({"number": writer.episodes})


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_kill_at_any_file_of_an_episode_leaves_it_whole_or_absent(tmp_path: Path, before: int) -> None:
    with DatasetWriter.create(tmp_path / "start", SCHEMA, compression=EXACT, durable=False) as writer:
        for _ in range(before):
            add_episode(writer)
    outcomes = []
    for nth in range(60):
        path = tmp_path / f"{nth}"
        shutil.copytree(tmp_path / "start", path)
        process = PROCESSES.Process(target=save_and_die, args=(path, nth, nth % 2 == 0))
        process.start()
        process.join()
        outcomes.append(assert_right(path) - before)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        with DatasetWriter.append(path, durable=False) as writer:
            add_episode(writer)
        assert assert_right(path) == writer.episodes
        assert validate(path) == []
        shutil.rmtree(path)
    assert len(outcomes) > 10
    assert outcomes == [0] * (len(outcomes) - 1) + [1]  # the last file is what makes it exist


def test_a_full_disk_is_an_oserror_that_harms_no_earlier_episode(small_disk: Callable[[int], Path]) -> None:
    path = small_disk(3) / "d"
    writer = DatasetWriter.create(path, SCHEMA, compression=EXACT)
    with pytest.raises(OSError, match="No space left"):
        fill(writer)
    assert 2 <= writer.episodes < 100
    assert Dataset.open(path).episodes == writer.episodes
    assert validate(path) == []
    filled = writer.episodes
    for number in range(filled):
        np.testing.assert_array_equal(Dataset.open(path).episode(number)["camera"], episode(number)["camera"])

    with pytest.raises(OSError, match="No space left"):  # trying again changes nothing
        writer.save_episode({"number": filled})
    small_disk(40)
    assert writer.save_episode({"number": filled}) == filled  # the rows were kept
    writer.close()
    np.testing.assert_array_equal(Dataset.open(path).episode(-1)["camera"], episode(filled)["camera"])
    assert validate(path) == []
