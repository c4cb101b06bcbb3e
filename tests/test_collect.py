"""`robolearn collect` records whole episodes, the same ones however it is run, and survives being stopped."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.writer import DatasetWriter
from robolearn_sim.demonstrations import Demonstration, demonstration_schema

pytestmark = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")


def content(path: Path) -> dict[str, np.ndarray]:
    dataset = Dataset.open(path)
    return {"ends": dataset.episode_ends, **{name: dataset.read(name) for name in dataset.schema.streams}}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six demonstrations, by one worker."""
    path = tmp_path_factory.mktemp("collect") / "one.zarr"
    assert main(["collect", str(path), "--episodes", "6", "--seed", "20", "--workers", "1"]) == 0
    return path


def test_the_dataset_holds_successful_episodes_of_the_world_with_both_actions(recorded: Path) -> None:
    dataset = Dataset.open(recorded)
    assert dataset.episodes == 6
    assert set(dataset.schema.streams) == {"state", "action", "action_sent"}
    assert dataset.schema.streams["action_sent"].kind == "info"
    for i in range(6):
        info = dataset.episode_info(i)
        assert (info["task"], info["success"], info["teleop"], info["noise"]) == ("lift", True, "scripted", 0.2)
        episode = dataset.episode(i)
        disturbance = episode["action_sent"] - episode["action"]
        assert 0.1 < disturbance[:, :3].std() < 0.3
        assert np.all(disturbance[:, 6] == 0)
        assert np.abs(episode["action"]).max() <= 1
    ticks = dataset.times()
    assert ticks is not None
    assert np.all(np.diff(ticks[dataset.rows(0)]) == 50_000_000)  # the control period at 20 Hz


def test_the_recorded_actions_lead_through_the_recorded_states(recorded: Path) -> None:
    from robolearn_sim.worlds import make_world

    dataset = Dataset.open(recorded)
    world = make_world("lift")
    episode = dataset.episode(0)
    states = [world.reset(dataset.episode_info(0)["seed"])["state"]]
    steps = [world.step(sent) for sent in episode["action_sent"]]
    states += [step.observation["state"] for step in steps[:-1]]
    np.testing.assert_allclose(states, episode["state"], atol=1e-4)
    assert steps[-1].success


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_workers_and_resume_continues_it(
    recorded: Path, tmp_path: Path
) -> None:
    path = tmp_path / "two.zarr"
    options = ["collect", str(path), "--seed", "20", "--workers", "2"]
    assert main([*options, "--episodes", "2"]) == 0
    assert main([*options, "--episodes", "6", "--resume"]) == 0
    assert_equal(content(path), content(recorded))


@pytest.fixture
def every_third_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a simulator: demonstrations of two steps at once, of which those of seeds 2, 5, 8, ... fail."""

    def invented(world: str, options, *, first_seed: int, noise: float, workers: int) -> Iterator[Demonstration]:
        schema = demonstration_schema(world, options)
        for seed in count(first_seed):
            streams = {name: np.full((2, *s.shape), seed, s.dtype) for name, s in schema.streams.items()}
            yield Demonstration(seed, streams, seed % 3 != 2)

    monkeypatch.setattr("robolearn_sim.demonstrations.demonstrations", invented)


@pytest.mark.usefixtures("every_third_fails")
def test_an_episode_that_failed_is_counted_and_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.zarr"
    assert main(["collect", str(path), "--episodes", "4"]) == 0
    dataset = Dataset.open(path)
    assert [dataset.episode_info(i)["seed"] for i in range(dataset.episodes)] == [0, 1, 3, 4]
    assert "saved 4 and discarded 1 failed attempts" in " ".join(capsys.readouterr().out.split())


def test_an_expert_that_hardly_ever_succeeds_is_given_up_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> Iterator[Demonstration]:
        yield from (Demonstration(seed, {}, False) for seed in count())

    monkeypatch.setattr("robolearn_sim.demonstrations.demonstrations", failing)
    assert main(["collect", str(tmp_path / "none.zarr")]) == 2
    assert "attempts failed; lower --noise" in capsys.readouterr().err


def wait_for_an_episode(path: Path, process: subprocess.Popen[Any]) -> None:
    """Until the command that ``process`` runs has saved one."""
    deadline = time.monotonic() + 120
    while not (path.exists() and Dataset.open(path).episodes):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_kill_keeps_what_was_saved_leaves_no_process_and_resume_completes_it(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed.zarr"
    command = [sys.executable, "-m", "robolearn.cli.main", "collect", str(path), "--seed", "20", "--workers", "2"]
    process = subprocess.Popen([*command, "--episodes", "100"], stdout=subprocess.DEVNULL)
    try:
        wait_for_an_episode(path, process)
        workers = children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    saved = Dataset.open(path).episodes
    assert 1 <= saved < 100
    assert workers
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "worker processes outlive the command"
        time.sleep(0.1)
    total = max(saved + 1, 6)
    assert subprocess.run([*command, "--episodes", str(total), "--resume"], check=False).returncode == 0
    whole, first = content(path), content(recorded)
    steps = int(first["ends"][-1])
    for name in ("state", "action", "action_sent"):
        assert np.array_equal(whole[name][:steps], first[name])


@pytest.mark.slow
def test_ctrl_c_stops_with_one_line_and_keeps_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "stopped.zarr"
    command = [sys.executable, "-m", "robolearn.cli.main", "collect", str(path), "--workers", "2", "--episodes", "100"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, process_group=0)
    try:
        wait_for_an_episode(path, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == "robolearn: stopped"
    assert Dataset.open(path).episodes >= 1


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.usefixtures("every_third_fails")
def test_a_full_disk_is_one_line_and_the_dataset_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "full.zarr"
    save = DatasetWriter.save_episode

    def full_after_two(self: DatasetWriter, info) -> int:
        if self.episodes == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(self, info)

    monkeypatch.setattr(DatasetWriter, "save_episode", full_after_two)
    assert main(["collect", str(path), "--episodes", "5"]) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert Dataset.open(path).episodes == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "lifft"], "'lifft'; valid: lift"),
        (["--world", "pusht"], "no scripted expert for the world 'pusht'"),
        (["--episodes", "0"], "--episodes must be at least 1"),
        (["--noise", "nan"], "--noise must be at least 0"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--teleop", "magic"], "scripted"),
        (["--episode", "3"], "--episode"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_nothing_is_made(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "never.zarr"
    assert main(["collect", str(path), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not path.exists()


def test_an_existing_dataset_is_never_overwritten_and_resume_wants_the_same_options(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(recorded)
    assert main(["collect", str(recorded), "--episodes", "6"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["collect", str(recorded), "--episodes", "7", "--resume", "--noise", "0.5"]) == 2
    assert "begun with other options" in capsys.readouterr().err
    assert main(["collect", str(tmp_path / "none.zarr"), "--resume"]) == 2
    assert_equal(content(recorded), before)


@pytest.mark.usefixtures("every_third_fails")
def test_an_episode_that_a_killed_writer_left_is_pointed_out_and_recover_saves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "left.zarr"
    assert main(["collect", str(path), "--episodes", "1"]) == 0
    assert "recover" not in capsys.readouterr().err
    writer = DatasetWriter.append(path)
    writer.add(
        {name: np.zeros(stream.shape, stream.dtype) for name, stream in writer.schema.streams.items()}, time_ns=1
    )
    writer.close(keep_unfinished=True)
    for episodes in (2, 3):
        assert main(["collect", str(path), "--episodes", str(episodes), "--resume"]) == 0
        assert f"`robolearn data recover {path}` saves it" in capsys.readouterr().err
    assert main(["data", "recover", str(path)]) == 0
    assert main(["collect", str(path), "--episodes", "5", "--resume"]) == 0
    assert capsys.readouterr().err == ""
    dataset = Dataset.open(path)
    assert [dataset.episode_info(i).get("seed") for i in range(dataset.episodes)] == [0, 1, 3, None, 4]
