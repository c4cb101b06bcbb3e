"""Merge, split, delete, relabel and convert lose nothing, and a kill leaves the old dataset or the new one."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.edit import EditError, convert, delete, merge, split
from robolearn_data.relabel import relabel, undo_relabel
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.selection import SelectionError, select_episodes
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    20.0,
    {
        "camera": Stream((6, 8, 3), "float32", "image"),
        "state": Stream((2,), names=("x", "y"), unit="m"),
        "force": Stream((3,), rate_hz=100.0),
        "action": Stream((2,), kind="action"),
    },
)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["robolearn_data.relabel"])


def make(path: Path, lengths: tuple[int, ...] = (5, 9, 3, 7), *, seed: int = 0, schema: Schema = SCHEMA) -> Path:
    """A dataset with everything a copy can lose: holes, capture and receive times, samples at a rate of their own."""
    rng = np.random.default_rng(seed)
    with DatasetWriter.create(path, schema, metadata={"rig": "bench"}, durable=False) as writer:
        for number, steps in enumerate(lengths):
            ticks = 10**9 * (number + 1) + np.arange(steps) * 50_000_000
            fine = np.arange(ticks[0] - 10_000_000, ticks[-1], 10_000_000)
            writer.add_samples("force", rng.normal(size=(len(fine), 3)).astype("f4"), fine, fine + 7)
            writer.extend(
                {
                    "camera": rng.integers(0, 256, (steps, 6, 8, 3)).astype("f4"),
                    "state": rng.normal(size=(steps, 2)).astype("f4"),
                    "action": rng.normal(size=(steps, 2)).astype("f4"),
                },
                time_ns=ticks,
                capture_ns={"camera": ticks - 3, "state": ticks * (number % 2)},
                received_ns={"camera": ticks - 1},
                valid={"camera": np.arange(steps) % 4 != 3} if number % 2 else {},
            )
            writer.save_episode({"number": number, "success": number != 2, "operator": "ann"})
    return path


def content(path: Path) -> list[Any]:
    """Everything there is to know of each episode, as comparable values."""
    dataset = Dataset.open(path)
    found = []
    for episode in range(dataset.episodes):
        rows = dataset.rows(episode)
        parts: list[Any] = [dataset.episode_info(episode)]
        for name, stream in dataset.schema.streams.items():
            parts += [name, dataset.read(name, rows).astype("f8").tobytes(), dataset.valid(name)[rows].tobytes()]
            if stream.is_native:
                samples = dataset.samples(name, episode)
                values = np.asarray(dataset.array(name)[samples.rows])
                parts += [samples.time.tobytes(), samples.received.tobytes(), values.tobytes()]
            else:
                for times in (dataset.times(name), dataset.received(name)):
                    parts.append(np.zeros(0) if times is None or not times[rows].any() else times[rows])
                    parts[-1] = parts[-1].tobytes()
        ticks = dataset.times()
        parts.append(None if ticks is None else ticks[rows].tobytes())
        found.append(parts)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "d")


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_split_then_merge_is_the_original_up_to_order(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    folder = tmp_path_factory.mktemp("split")
    lengths = tuple(data.draw(st.lists(st.integers(1, 12), min_size=2, max_size=5)))
    source = make(folder / "d", lengths)
    held_out = data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1, max_size=len(lengths) - 1))
    split(source, folder / "train", folder / "test", held_out)
    before = content(source)
    assert content(folder / "test") == [before[i] for i in sorted(held_out)]
    assert merge([folder / "train", folder / "test"], folder / "all") == (len(lengths), 0)
    order = [i for i in range(len(lengths)) if i not in held_out] + sorted(held_out)
    assert content(folder / "all") == [before[i] for i in order]
    assert validate(folder / "all") == []
    assert Dataset.open(folder / "all").metadata == {"rig": "bench"}


def test_merge_names_every_difference_of_two_schemas(tmp_path: Path, path: Path) -> None:
    streams = {**SCHEMA.streams, "state": replace(SCHEMA.streams["state"], unit="mm", names=("x", "z"))}
    streams["extra"] = Stream((1,))
    other = make_other(tmp_path / "other", Schema(30.0, streams))
    with pytest.raises(EditError) as error:
        merge([path, other], tmp_path / "all")
    for words in ("rate_hz is 20 and 30", "'extra' is only in the second", "unit 'm' and 'mm'", "('x', 'z')"):
        assert words in str(error.value)
    assert not (tmp_path / "all").exists()


def make_other(path: Path, schema: Schema) -> Path:
    DatasetWriter.create(path, schema).close()
    return path


def test_merge_refuses_an_episode_twice_unless_told_to_skip_it(tmp_path: Path, path: Path) -> None:
    with pytest.raises(EditError, match="skip-duplicates"):
        merge([path, path], tmp_path / "all")
    assert merge([path, path], tmp_path / "all", skip_duplicates=True) == (4, 4)
    assert content(tmp_path / "all") == content(path)


def test_delete_keeps_the_others_exactly_and_the_former_dataset_as_undo(path: Path) -> None:
    before = content(path)
    kept = delete(path, [1, 3])
    assert kept is not None
    assert kept == path.with_name("d.before-delete")
    assert content(path) == [before[0], before[2]]
    assert content(kept) == before
    assert delete(path, [0]) == path.with_name("d.before-delete-2")
    with pytest.raises(EditError, match="no episode"):
        delete(path, [0])
    assert validate(path) == []
    assert sorted(p.name for p in path.parent.iterdir()) == ["d", "d.before-delete", "d.before-delete-2"]


def test_delete_and_relabel_wait_for_no_writer(path: Path) -> None:
    with DatasetWriter.append(path):
        for change in (lambda: delete(path, [0]), lambda: relabel(path, [0], {"success": False})):
            with pytest.raises(ValueError, match="writing to"):
                change()


def test_relabel_changes_infos_alone_and_can_be_taken_back(path: Path) -> None:
    before = content(path)
    relabel(path, [0, 2], {"success": True, "task": "stack"}, remove=["operator"])
    relabel(path, [3], {"note": [1, None]})
    after = content(path)
    assert [parts[1:] for parts in after] == [parts[1:] for parts in before]
    assert after[2][0] == {k: v for k, v in before[2][0].items() if k != "operator"} | {
        "success": True,
        "task": "stack",
    }
    assert validate(path) == []
    assert undo_relabel(path) == 1
    assert undo_relabel(path) == 2
    assert content(path) == before
    with pytest.raises(EditError, match="taken back"):
        undo_relabel(path)
    with pytest.raises(EditError, match="uuid"):
        relabel(path, [0], {"uuid": "x"})
    with DatasetWriter.append(path) as writer:  # the array it made can be appended to
        ticks = 10**12 + np.arange(2) * 50_000_000
        rows = {n: np.zeros((2, *s.shape), s.dtype) for n, s in SCHEMA.streams.items() if not s.is_native}
        writer.extend(rows, time_ns=ticks)
        writer.save_episode()
    assert validate(path) == []


def test_convert_makes_images_bytes_and_refuses_what_would_not_be_exact(tmp_path: Path, path: Path) -> None:
    lost = convert(path, tmp_path / "new", compression={"camera": "zstd-5"}, dtypes={"camera": "uint8"})
    assert set(lost.values()) == {0.0}
    assert Dataset.open(tmp_path / "new").schema.streams["camera"].dtype == "uint8"
    assert content(tmp_path / "new") == content(path)
    with pytest.raises(SchemaError, match=r"'state'.*episode 0 at step 0"):
        convert(path, tmp_path / "bad", dtypes={"state": "int16"})
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,2-3", [0, 2, 3]),
        ("-1", [3]),
        ("-3--2", [1, 2]),
        ("all", [0, 1, 2, 3]),
        ("success=false", [2]),
        ("success!=false,number!=0", [1, 3]),
        ("operator=ann", [0, 1, 2, 3]),
        ("0,0", [0]),
    ],
)
def test_selections_mean_what_a_person_expects(path: Path, text: str, expected: list[int]) -> None:
    assert select_episodes(Dataset.open(path), text) == expected


@pytest.mark.parametrize("text", ["", "4", "-5", "2-1", "1;2", "x", "succes=true", "success=1", "a=", "9" * 5000, "1-"])
def test_wrong_selections_are_one_clear_line(path: Path, text: str) -> None:
    with pytest.raises(SelectionError) as error:
        select_episodes(Dataset.open(path), text)
    assert "\n" not in str(error.value)


def die_at(nth: int, change: Callable[..., Any], *arguments: Any) -> None:
    """Make ``change`` and be killed at its ``nth`` file opened, renamed or removed."""
    events = itertools.count()
    lock = threading.Lock()

    def watch(event: str, _: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "ctypes.dlsym"):
            with lock:
                if next(events) == nth:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    change(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["delete", "relabel"])
def test_a_kill_at_any_file_leaves_the_old_dataset_or_the_new_one(tmp_path: Path, path: Path, change: str) -> None:
    changes: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "delete": (delete, ([1],)),
        "relabel": (relabel, ([0, 1], {"success": None})),
    }
    function, arguments = changes[change]
    done = shutil.copytree(path, tmp_path / "done")
    function(done, *arguments)
    old, new = content(path), content(done)
    outcomes = []
    nth = 0
    while True:
        target = shutil.copytree(path, tmp_path / "run" / "d")
        process = PROCESSES.Process(target=die_at, args=(nth, function, target, *arguments))
        process.start()
        process.join()
        found = content(target)
        assert found in (old, new)
        assert validate(target) == []
        outcomes.append(found == new)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        function(target, *arguments)  # what the killed one left is in nobody's way, and is cleared
        assert not list(target.parent.glob(".*"))
        for former in target.parent.glob("d.before-delete*"):
            assert validate(former) == []
            assert Dataset.open(former).episodes > Dataset.open(target).episodes
        shutil.rmtree(tmp_path / "run")
        nth += 1 + nth // 2
    assert len(outcomes) > 8
    assert outcomes == sorted(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["merge", "convert"])
def test_a_killed_copy_leaves_no_target_and_the_next_one_clears_its_rest(
    tmp_path: Path, path: Path, change: str
) -> None:
    target = tmp_path / "run" / "new"
    target.parent.mkdir()
    function, source = (merge, [path]) if change == "merge" else (convert, path)
    before = content(path)
    for nth in (0, 30, 90, 200, 400):
        process = PROCESSES.Process(target=die_at, args=(nth, function, source, target))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not target.exists()
        assert content(path) == before
    assert len(list(target.parent.iterdir())) <= 1
    function(source, target)
    assert [p.name for p in target.parent.iterdir()] == ["new"]
    assert validate(target) == []


def test_a_draft_of_a_living_process_is_not_cleared(tmp_path: Path, path: Path) -> None:
    living = tmp_path / f".new.{os.getppid()}.partial"
    dead = tmp_path / ".new.999999999.partial"
    living.mkdir()
    dead.mkdir()
    merge([path], tmp_path / "new")
    assert living.exists()
    assert not dead.exists()


def test_the_command_line_shows_before_it_destroys(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(path)
    assert main(["data", "delete", str(path), "--episodes", "success=false"]) == 0
    assert "--yes" in capsys.readouterr().out
    assert content(path) == before
    assert main(["data", "delete", str(path), "--episodes", "success=false", "--yes"]) == 0
    assert Dataset.open(path).episodes == 3
    assert main(["data", "relabel", str(path), "--episodes", "0", "--set", "task=pick", "success=false"]) == 0
    assert Dataset.open(path).episode_info(0)["success"] is False
    assert main(["data", "relabel", str(path), "--undo"]) == 0
    assert "task" not in Dataset.open(path).episode_info(0)
    parts = [str(path.with_name(name)) for name in ("train", "test", "all", "small")]
    assert main(["data", "split", str(path), *parts[:2], "--fraction", "0.3"]) == 0
    assert main(["data", "merge", "--out", parts[2], *parts[:2]]) == 0
    assert (
        main(["data", "convert", str(path), parts[3], "--dtype", "camera=uint8", "--compression", "camera=zstd-5"]) == 0
    )
    capsys.readouterr()
    assert main(["data", "stats", parts[2], "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"state", "force", "action"}
    assert main(["data", "stats", parts[2]]) == 0
    assert "state.x" in capsys.readouterr().out
    for words in (["relabel", str(path), "--set", "uuid=1"], ["delete", str(path), "--episodes", "7"]):
        assert main(["data", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_copies_hand_on_lossy_pictures_as_they_are_stored(tmp_path: Path) -> None:
    streams = {
        "front": Stream((40, 60, 3), "uint8", "image"),
        "wrist": Stream((40, 60, 3), "uint8", "image", rate_hz=30.0),
        "action": Stream((2,), "float32", "action"),
    }
    rng = np.random.default_rng(0)
    how = {"front": "jpeg-70", "wrist": "jpeg-40"}
    for name in ("a", "b"):
        with DatasetWriter.create(tmp_path / name, Schema(10.0, streams), compression=how, durable=False) as writer:
            for _ in range(2):
                noise = rng.integers(0, 256, (9, 40, 60, 3), dtype=np.uint8)
                times = 10**9 + np.arange(9) * 10**8
                writer.add_samples("wrist", noise, times)
                writer.extend({"front": noise, "action": np.zeros((9, 2))}, time_ns=times)
                writer.save_episode()
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    delete(tmp_path / "m", [1])
    merged = Dataset.open(tmp_path / "m")
    for name in how:
        before = [Dataset.open(tmp_path / d).read(name) for d in ("a", "b")]
        np.testing.assert_array_equal(merged.read(name), np.concatenate([before[0][:9], before[1]]))
    assert validate(tmp_path / "m") == []
