"""A disk that is unmounted, read-only or full while recording: an error says so, and what was saved stays whole."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.recorder import RecorderProcess, RecordingError, sample_fields, step_fields
from robolearn_hardware.clock import now_ns
from robolearn_hardware.ring import Ring

SCHEMA = Schema(
    20.0,
    {"camera": Stream((48, 64, 3), "uint8", "image", rate_hz=20.0), "action": Stream((7,), "float32", "action")},
)
needs_lift = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")


class Disk:
    """The folder ``medium`` mounted at ``place``: what was written is still in ``medium`` when the mount is gone."""

    def __init__(self, folder: Path) -> None:
        self.medium, self.place = folder / "medium", folder / "place"
        self.medium.mkdir()
        self.place.mkdir()

    def mount(self, options: str = "bind") -> bool:
        command = ["mount", "-o", options, str(self.medium), str(self.place)]
        return not subprocess.run(command, capture_output=True, check=False).returncode

    def unmount(self) -> None:
        """At once, whoever uses it: as a plug that is pulled."""
        subprocess.run(["umount", "-l", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    if os.geteuid() != 0 or not shutil.which("mount") or not made.mount():
        pytest.skip("this machine does not let this user mount the disk that this test unmounts")
    yield made
    while str(made.place) in Path("/proc/self/mounts").read_text():  # `is_mount` does not see mounts of this kind
        made.unmount()


@pytest.fixture
def rings() -> Iterator[dict[str, Ring]]:
    made = {
        "camera": Ring.create(sample_fields(SCHEMA.streams["camera"]), 64),
        "steps": Ring.create(step_fields(SCHEMA), 64),
    }
    yield made
    for ring in made.values():
        ring.close()


def recorder_at(path: Path, rings: dict[str, Ring]) -> RecorderProcess:
    return RecorderProcess(path, rings["steps"].handle, {"camera": rings["camera"].handle})


def publish(rings: dict[str, Ring], steps: int) -> None:
    start = now_ns()
    for number in range(steps):
        at = start + number * 50_000_000  # not when a busy machine comes to it: a late step would be a row of holes
        rings["camera"].publish({"capture_ns": at, "received_ns": at, "value": np.full((48, 64, 3), number, np.uint8)})
        rings["steps"].publish({"time_ns": at + 1, "action": np.full(7, number)})
        time.sleep(0.05)


def failure(recorder: RecorderProcess) -> str:
    """What the recorder says when it has noticed."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            recorder.status()
        except RecordingError as error:
            return str(error)
        time.sleep(0.05)
    raise AssertionError("the recorder does not notice")


@pytest.mark.slow
def test_an_unmounted_disk_stops_recording_and_mounted_again_it_has_every_episode(
    disk: Disk, rings: dict[str, Ring], capfd: pytest.CaptureFixture[str]
) -> None:
    path = disk.place / "d"
    DatasetWriter.create(path, SCHEMA).close()
    with recorder_at(path, rings) as recorder:
        recorder.start()
        publish(rings, 3)
        recorder.save()
        recorder.start(task="pour")
        publish(rings, 8)
        while recorder.status().steps < 8:
            time.sleep(0.05)
        disk.unmount()
        said = failure(recorder)
        assert "its disk was unmounted" in said
        assert f"robolearn data recover {path}" in said
        with pytest.raises(RecordingError, match="recording has stopped"):
            recorder.save()
    assert said in capfd.readouterr().err, "it is logged for whoever does not ask"
    assert list(disk.place.iterdir()) == [], "something was written where the disk is not"
    assert disk.mount()
    assert Dataset.open(path).episodes == 1
    assert validate(path) == []
    found = recover(path)
    assert (found.saved, found.losses) == ([(1, 8)], [])
    dataset = Dataset.open(path)
    np.testing.assert_array_equal(dataset.episode(1)["action"][:, 0], range(8))
    np.testing.assert_allclose(dataset.episode(1)["camera"][:, 0, 0, 0], range(8), atol=1)
    assert dataset.episode_info(1)["task"] == "pour"
    assert validate(path) == []


@pytest.mark.slow
def test_a_recorder_on_a_read_only_disk_says_so_before_it_records(disk: Disk, rings: dict[str, Ring]) -> None:
    path = disk.place / "d"
    DatasetWriter.create(path, SCHEMA).close()
    assert disk.mount("remount,bind,ro")
    with pytest.raises(RecordingError, match=r"nothing can be recorded.*mounted read-only; mount it again, writable"):
        recorder_at(path, rings)
    with pytest.raises(RecordingError, match=r"nothing can be recorded.*place/none"):
        recorder_at(disk.place / "none", rings)


def test_a_disk_that_turns_read_only_fails_the_save_and_a_second_try_succeeds(disk: Disk) -> None:
    path = disk.place / "d"
    schema = Schema(20.0, {"action": Stream((7,), "float32", "action")})
    # Not durable: the kernel does not make a disk read-only by hand while a file, here the journal, is being written.
    with DatasetWriter.create(path, schema, durable=False) as writer:
        for number in range(2):
            writer.extend({"action": np.full((5, 7), number, np.float32)})
            if number:
                assert disk.mount("remount,bind,ro")
                with pytest.raises(OSError, match="Read-only") as caught:
                    writer.save_episode()
                assert caught.value.errno == errno.EROFS
                assert Dataset.open(path).episodes == 1
                assert validate(path) == []
                assert disk.mount("remount,bind,rw")
            assert writer.save_episode() == number
    np.testing.assert_array_equal(Dataset.open(path).read("action")[:, 0], [0] * 5 + [1] * 5)
    assert validate(path) == []


@pytest.fixture
def after_two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Sets what happens to the machine when `collect` has two demonstrations, made up here instead of simulated."""
    from robolearn_sim.demonstrations import Demonstration, demonstration_schema

    def set_event(event: Callable[[], object]) -> None:
        def invented(world: str, options, *, first_seed: int, **_: object) -> Iterator[Demonstration]:
            schema = demonstration_schema(world, options)
            for seed in count(first_seed):
                if seed == 2:
                    event()
                streams = {name: np.full((40, *s.shape), seed, s.dtype) for name, s in schema.streams.items()}
                yield Demonstration(seed, streams, success=True)

        monkeypatch.setattr("robolearn_sim.demonstrations.demonstrations", invented)

    return set_event


@needs_lift
def test_collect_stops_with_one_line_when_its_disk_is_unmounted_and_resumes_when_it_is_back(
    disk: Disk, after_two: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    path = disk.place / "lift.zarr"
    after_two(disk.unmount)
    assert main(["collect", str(path), "--episodes", "4"]) == 2
    assert capsys.readouterr().err == (
        f"robolearn: error: {path} is no longer there: its disk was unmounted or the folder moved; bring it back\n"
    )
    assert list(disk.place.iterdir()) == []
    assert disk.mount()
    assert validate(path) == []
    after_two(lambda: None)
    assert main(["collect", str(path), "--episodes", "4", "--resume"]) == 0
    dataset = Dataset.open(path)
    assert [dataset.episode_info(i)["seed"] for i in range(dataset.episodes)] == [0, 1, 2, 3]


@needs_lift
def test_collect_on_a_disk_that_fills_says_so_and_goes_on_when_there_is_room(
    small_disk: Callable[[int], Path], after_two: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_disk(3) / "lift.zarr"
    filler = path.parent / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(2**20)) == 2**20:
                pass

    after_two(fill)
    assert main(["collect", str(path), "--episodes", "4"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the disk is full" in said
    assert Dataset.open(path).episodes == 2
    assert validate(path) == []
    filler.unlink()
    after_two(lambda: None)
    assert main(["collect", str(path), "--episodes", "4", "--resume"]) == 0
    assert Dataset.open(path).episodes == 4
    assert validate(path) == []
