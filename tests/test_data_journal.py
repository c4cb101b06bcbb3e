"""What a killed writer had taken can be saved; nothing is invented, nothing is lost that reached the journal."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn.cli.main import main as robolearn
from robolearn_data import journal
from robolearn_data.dataset import Dataset
from robolearn_data.journal import Journal
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    10.0,
    {
        "camera": Stream((48, 64, 3), "uint8", "image", rate_hz=30.0),
        "wrench": Stream((6,), "float32", rate_hz=1000.0, interpolation="linear"),
        "joints": Stream((7,), "float32"),
        "action": Stream((7,), "float32", "action"),
    },
)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["robolearn_data.writer"])
MS = 1_000_000


def add_step(writer: DatasetWriter, step: int, start_ns: int = 1_000_000_000) -> None:
    """One control period: three frames, a hundred wrenches, one row, all told by their number."""
    now = start_ns + step * 100 * MS
    frames = np.arange(3 * step, 3 * step + 3)
    wrenches = np.arange(100 * step, 100 * step + 100)
    picture = np.broadcast_to(frames.astype(np.uint8)[:, None, None, None], (3, 48, 64, 3))
    writer.add_samples("camera", picture, start_ns + frames * 100 * MS // 3, start_ns + frames * 100 * MS // 3 + 7 * MS)
    values = np.repeat(wrenches[:, None], 6, 1).astype(np.float32)
    writer.add_samples("wrench", values, start_ns + wrenches * MS)
    row = np.full(7, step, np.float32)
    holes = {"joints"} if step % 5 == 4 else set()
    sample = {"joints": row, "action": -row}
    writer.add({k: v for k, v in sample.items() if k not in holes}, time_ns=now, holes=holes)


def assert_steps(path: Path, episode: int, steps: int) -> None:
    dataset = Dataset.open(path)
    found = dataset.episode(episode)
    expected = np.arange(steps)
    np.testing.assert_array_equal(found["action"][:, 0], -expected)
    valid = dataset.valid("joints")[dataset.rows(episode)]
    np.testing.assert_array_equal(valid, expected % 5 != 4)
    np.testing.assert_array_equal(found["joints"][valid][:, 3], expected[valid])
    np.testing.assert_array_equal(found["camera"][:, 5, 5, 1], 3 * expected)
    np.testing.assert_array_equal(found["wrench"][:, 2], 100 * expected)
    frames = len(dataset.samples("camera", episode).time)
    begun = 3 if dataset.episode_info(episode).get("recovered") else 0  # frames of a step that was not taken any more
    assert 3 * steps <= frames <= 3 * steps + begun


def record_and_die(path: Path, steps: int, episodes: int) -> None:
    with DatasetWriter.append(path, buffer_bytes=100_000) as writer:
        for _ in range(episodes):
            for step in range(5):
                add_step(writer, step)
            writer.save_episode()
        writer.note(task="pour", operator="Ada")
        for step in range(steps):
            add_step(writer, step)
        os.kill(os.getpid(), signal.SIGKILL)


def killed(path: Path, steps: int, episodes: int = 0) -> None:
    process = PROCESSES.Process(target=record_and_die, args=(path, steps, episodes))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_recording_is_recovered_to_its_last_row(tmp_path: Path) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA).close()
    killed(path, 37, episodes=2)
    assert Dataset.open(path).episodes == 2
    found = recover(path)
    assert (found.saved, found.losses, found.exit_code) == ([(2, 37)], [], 0)
    assert_steps(path, 2, 37)
    info = Dataset.open(path).episode_info(2)
    assert (info["recovered"], info["task"], info["operator"]) == (True, "pour", "Ada")
    assert validate(path) == []
    assert not journal.unfinished(path)
    assert recover(path).exit_code == 0
    assert Dataset.open(path).episodes == 3


def test_the_command_tells_what_it_saved_and_what_was_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA).close()
    assert robolearn(["data", "recover", str(path)]) == 0
    assert "nothing is unfinished" in capsys.readouterr().out
    killed(path, 9)
    file = journal.set_aside(path)
    assert file is not None
    file.write_bytes(file.read_bytes()[:-5])
    assert robolearn(["data", "recover", str(path), "--dry-run"]) == 3
    assert "8 steps can be saved" in capsys.readouterr().out
    assert robolearn(["data", "recover", str(path)]) == 3
    out = capsys.readouterr().out
    assert "episode 0: 8 steps saved" in out
    assert "bytes at its end were being written" in out
    killed(path, 2)
    file = journal.set_aside(path)
    assert file is not None
    file.write_bytes(b"nonsense" * 10)
    assert robolearn(["data", "recover", str(path)]) == 1
    assert robolearn(["data", "recover", str(tmp_path)]) == 2


def test_a_new_recording_after_a_crash_keeps_the_unfinished_one_for_recover(tmp_path: Path) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA).close()
    killed(path, 12)
    with DatasetWriter.append(path) as writer:
        assert writer.left_behind is not None
        for step in range(3):
            add_step(writer, step)
        writer.save_episode()
    killed(path, 8)
    assert recover(path, dry_run=True).saved == [(1, 12), (2, 8)]
    assert Dataset.open(path).episodes == 1
    assert recover(path).saved == [(1, 12), (2, 8)]
    for episode, steps in enumerate((3, 12, 8)):
        assert_steps(path, episode, steps)


def test_a_journal_cut_anywhere_gives_every_row_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA).close()
    killed(path, 6)
    file = journal.set_aside(path)
    assert file is not None
    content = file.read_bytes()
    steps = []
    for cut in np.linspace(0, len(content), 11).astype(int):
        copy = tmp_path / f"cut{cut}"
        DatasetWriter.create(copy, SCHEMA).close()
        (copy / journal.LEFT).mkdir()
        (copy / journal.LEFT / "000001.journal").write_bytes(content[:cut])
        found = recover(copy)
        steps.append(found.saved[0][1] if found.saved else 0)
        assert found.exit_code == {True: 0, False: 3 if found.saved else 1}[not found.losses]
        assert validate(copy) == []
        dataset = Dataset.open(copy)
        if found.saved:
            np.testing.assert_array_equal(dataset.read("action")[:, 0], -np.arange(steps[-1]))
        if found.losses:  # what could not be read is kept
            assert [file.suffix for file in (copy / journal.LEFT).iterdir()] == [".lossy"]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 6)


@settings(deadline=None)
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_journal_with_wrong_bytes_yields_only_records_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[float, int]]
) -> None:
    file = tmp_path_factory.mktemp("journal") / "j"
    log = Journal(file)
    written = []
    for i in range(10):
        columns: dict[str, journal.Block] = {"data/x": np.full((2, 3), i), "data/c": [bytes([i]) * i, b"ab"]}
        log.append(columns, {"i": i})
        written.append(({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in columns.items()}, {"i": i}))
    log.close()
    content = bytearray(file.read_bytes())
    for place, change in flips:
        content[int(place * (len(content) - 1))] ^= change
    file.write_bytes(content)
    found = [
        ({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in columns.items()}, facts)
        for columns, facts in journal.read(file)
    ]
    assert found == written[: len(found)]


def test_a_crash_between_publishing_and_emptying_the_journal_saves_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d"
    writer = DatasetWriter.create(path, SCHEMA)
    add_step(writer, 0)
    monkeypatch.setattr(writer, "_begin", lambda: None)  # the crash
    writer.save_episode()
    writer._lock.release()
    found = recover(path)
    assert (found.saved, found.exit_code) == ([], 0)
    assert Dataset.open(path).episodes == 1
    assert not journal.unfinished(path)


def test_an_exception_in_the_program_leaves_the_episode_to_recover_and_a_normal_end_does_not(tmp_path: Path) -> None:
    path = tmp_path / "d"

    def record() -> None:
        with DatasetWriter.create(path, SCHEMA) as writer:
            add_step(writer, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        record()
    assert recover(path).saved == [(0, 1)]
    with DatasetWriter.append(path) as writer:
        add_step(writer, 0)
    assert recover(path).saved == []


def test_a_full_disk_while_journaling_is_an_oserror_and_the_rows_are_kept(small_disk: Callable[[int], Path]) -> None:
    path = small_disk(1) / "d"
    writer = DatasetWriter.create(path, SCHEMA, compression={"camera": "zstd-1"})
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)

    def fill() -> None:
        for step in itertools.count():
            now = 10**9 + 100 * MS * step
            writer.add_samples("camera", noise, now + np.arange(3) * 33 * MS)
            writer.add({"joints": np.zeros(7), "action": np.full(7, step)}, time_ns=now + 90 * MS)

    with pytest.raises(OSError, match="No space left"):
        fill()
    taken = writer.pending
    assert taken > 5
    small_disk(20)
    writer.save_episode()
    writer.close()
    dataset = Dataset.open(path)
    np.testing.assert_array_equal(dataset.read("action")[:, 0], np.arange(taken))
    np.testing.assert_array_equal(dataset.read("camera"), np.repeat(noise[2:], taken, 0))
    assert validate(path) == []


def test_wrong_samples_are_refused_and_nothing_is_taken(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "d", SCHEMA) as writer:
        add_step(writer, 0)
        last = 10**9 + 99 * MS
        for values, times in (
            (np.zeros((1, 6)), [last]),  # not after the one before
            (np.zeros((2, 6)), [last + 5, last + 5]),
            (np.zeros((2, 6)), [last + 5]),
            (np.zeros((1, 5)), [last + 5]),
            (np.full((1, 6), np.nan), [last + 5]),
            (np.zeros(6), [last + 5]),
            (0.0, 5),
        ):
            with pytest.raises(SchemaError):
                writer.add_samples("wrench", values, times)
        with pytest.raises(SchemaError, match="no rate of its own"):
            writer.add_samples("joints", np.zeros((1, 7)), [last + 5])
        with pytest.raises(SchemaError, match="give its samples to `add_samples`"):
            writer.add({"joints": np.zeros(7), "action": np.zeros(7), "wrench": np.zeros(6)}, time_ns=last)
        with pytest.raises(SchemaError, match="time_ns"):
            writer.add({"joints": np.zeros(7), "action": np.zeros(7)})
        writer.save_episode()
    assert_steps(tmp_path / "d", 0, 1)


def test_native_samples_keep_their_own_times_and_a_stalled_camera_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with DatasetWriter.create(path, SCHEMA) as writer:
        for _ in range(2):
            for step in range(20):
                if 8 <= step < 12:  # the camera stalls for 0.4 s; nothing shifts
                    row = np.full(7, step, np.float32)
                    writer.add({"joints": row, "action": -row}, time_ns=10**9 + step * 100 * MS)
                else:
                    add_step(writer, step)
            writer.save_episode()
    dataset = Dataset.open(path)
    for episode in range(2):
        samples = dataset.samples("camera", episode)
        assert len(samples.time) == 3 * 16
        np.testing.assert_array_equal((samples.received - samples.time) // MS, 7)
        shown = dataset.episode(episode)["camera"][:, 0, 0, 0]
        steps = np.arange(20)
        np.testing.assert_array_equal(shown, np.where((steps >= 8) & (steps < 12), 23, 3 * steps))
        valid = dataset.valid("camera")[dataset.rows(episode)]
        np.testing.assert_array_equal(valid, (steps <= 8) | (steps >= 12))  # at 8, it is one period old
    instants = np.array([0, 10**9, 10**9 + 500_250_000, 10**13])
    np.testing.assert_allclose(dataset.at("wrench", 1, instants)[:, 0], [0, 0, 500.25, 1999], rtol=1e-6)
    assert validate(path) == []


@pytest.mark.slow
def test_kills_at_random_instants_leave_published_episodes_whole_and_the_rest_recoverable(tmp_path: Path) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA).close()
    recovered = 0
    for delay in np.random.default_rng(1).uniform(0.05, 0.5, 8):
        events, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=record_for_ever, args=(path, theirs))
        process.start()
        theirs.close()
        assert events.recv() == "ready"
        time.sleep(delay)
        process.kill()
        process.join()
        events.close()
        before = Dataset.open(path).episodes
        found = recover(path)
        recovered += len(found.saved)
        assert Dataset.open(path).episodes == before + len(found.saved)
        assert validate(path) == []
    dataset = Dataset.open(path)
    assert recovered >= 4
    for episode in range(dataset.episodes):
        rows = dataset.rows(episode)
        assert_steps(path, episode, rows.stop - rows.start)


def record_for_ever(path: Path, events: Connection) -> None:
    with DatasetWriter.append(path, buffer_bytes=100_000) as writer:
        events.send("ready")
        for episode in itertools.count():
            for step in range(3 + episode % 20):
                add_step(writer, step)
            writer.save_episode()
