"""Cameras in processes of their own: readers cannot hold them up, nothing is torn, and every end is noticed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from camera_fakes import FakeConfig, wait_frames, wait_until

from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.recorder import RecorderProcess, sample_fields, step_fields
from robolearn_hardware.cameras.health import CameraCondition, read_health
from robolearn_hardware.cameras.mjpeg import MjpegConfig
from robolearn_hardware.cameras.process import CameraProcess, open_cameras
from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.devices import DeviceError, DeviceGoneError, DeviceTimeoutError
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.ring import Ring, RingHandle
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.pictures import read_time

MS = 1_000_000


@pytest.fixture(scope="module")
def twins() -> Iterator[Twins]:
    with Twins() as found:
        yield found


@pytest.fixture(scope="module")
def config(twins: Twins) -> MjpegConfig:
    return MjpegConfig("twin", width=160, height=120).with_twin("front", twins)


@pytest.fixture
def camera(config: MjpegConfig, twins: Twins) -> Iterator[CameraProcess]:
    with CameraProcess("front", config) as process:
        wait_frames(process, 1)
        yield process
    twins["front"].fault()


def hammer(handles: dict[str, RingHandle], end: Event, counts: Any) -> None:
    """Read both rings as fast as possible; count how many pictures were read, and how many were of two frames."""
    rings = [Ring.attach(handle) for handle in handles.values()]
    while not end.is_set():
        for ring in rings:
            record = ring.read(ring.count - 1)
            if record is not None:
                counts[0] += 1
                counts[1] += bool((record["value"] != record["value"].flat[0]).any())


@contextmanager
def hammering(camera: CameraProcess, readers: int) -> Iterator[list[tuple[SpawnProcess, Any]]]:
    """So many processes with their counts."""
    context = multiprocessing.get_context("spawn")
    end = context.Event()
    started = []
    for _ in range(readers):
        counts = context.Array("q", 2)
        process = context.Process(target=hammer, args=(camera.handles(), end, counts))
        process.start()
        started.append((process, counts))
    yield started
    end.set()
    for process, _ in started:
        process.join()


def test_no_reader_ever_gets_a_torn_picture_however_fast_the_camera_laps_it() -> None:
    with CameraProcess("fast", FakeConfig(), slots=2) as camera, hammering(camera, 2) as readers:
        wait_until(lambda: min(counts[0] for _, counts in readers) > 3000)
        assert [counts[1] for _, counts in readers] == [0, 0]


def test_a_reader_that_stands_still_does_not_hold_up_the_camera() -> None:
    with CameraProcess("fast", FakeConfig()) as camera, hammering(camera, 1) as [(reader, counts)]:
        wait_until(lambda: counts[0] > 10)
        assert reader.pid is not None
        os.kill(reader.pid, signal.SIGSTOP)
        wait_frames(camera, 500)
        os.kill(reader.pid, signal.SIGCONT)


def test_frames_have_the_fields_a_recorder_expects_and_the_times_written_in_their_pictures(
    camera: CameraProcess,
) -> None:
    assert camera.handles()["colour"].fields == sample_fields(Stream((120, 160, 3), "uint8", "image", rate_hz=30.0))
    wait_frames(camera, 10)
    records = [record for _, record in camera.ring.since(0)]
    written = [read_time(record["value"]) for record in records]
    assert written == sorted(set(written))
    for record, time_ns in zip(records, written, strict=True):
        assert time_ns <= record["capture_ns"] <= record["received_ns"] <= time_ns + SECOND_NS


def test_the_latency_of_the_rig_is_subtracted_from_the_capture_time(config: MjpegConfig) -> None:
    with CameraProcess("front", config, latency_ms=25.0) as camera:
        wait_frames(camera, 2)
        for _, record in camera.ring.since(0):
            assert record["received_ns"] - record["capture_ns"] == 25 * MS


def test_depth_has_a_ring_of_its_own_with_the_same_times() -> None:
    with CameraProcess("fake", FakeConfig(), slots=64) as camera:
        assert camera.depth_ring is not None
        colour = depth = None
        while colour is None or depth is None:
            index = max(0, camera.ring.count - 32)
            colour, depth = camera.ring.read(index), camera.depth_ring.read(index)
        assert colour["capture_ns"] == depth["capture_ns"]
        assert depth["value"].shape == (240, 320, 1)
        assert depth["value"].dtype == np.uint16
        assert depth["value"].flat[0] == colour["value"].flat[0]


def test_unplugged_is_gone_and_it_comes_back_in_the_same_process_and_ring(camera: CameraProcess, twins: Twins) -> None:
    assert camera.health().condition == CameraCondition.READY
    twins["front"].fault(unplugged=True)
    wait_until(lambda: camera.health().condition == CameraCondition.GONE)
    health = camera.health()
    assert "is not reached" in health.message
    assert health.age_s < 20
    pid, frames = camera.pid, camera.ring.count
    twins["front"].fault()
    wait_until(lambda: camera.health().condition == CameraCondition.READY and camera.ring.count > frames)
    assert camera.health().reconnects >= 1
    assert camera.health().message == ""
    assert camera.pid == pid


def test_a_stream_that_stalls_is_stale_is_opened_again_and_goes_on(camera: CameraProcess, twins: Twins) -> None:
    twins["front"].fault(lose=1.0)
    wait_until(lambda: "sends no picture that is whole within" in camera.health().message)
    assert camera.health().condition == CameraCondition.STALE
    twins["front"].fault()
    wait_until(lambda: camera.health().condition == CameraCondition.READY)


def test_a_picture_that_does_not_change_is_seen_and_lost_ones_are_counted(camera: CameraProcess, twins: Twins) -> None:
    assert camera.health().unchanged_s < 1
    twins["front"].fault(frozen=True)
    wait_until(lambda: camera.health().unchanged_s > 1)
    assert camera.health().condition == CameraCondition.READY
    lost = camera.health().lost
    twins["front"].fault(truncate=0.5)
    wait_until(lambda: camera.health().lost > lost + 5)
    assert camera.health().unchanged_s < 1


def test_health_is_read_by_other_processes_from_shared_memory(camera: CameraProcess) -> None:
    ring = Ring.attach(camera.health_ring.handle)
    assert read_health(ring).condition == CameraCondition.READY
    assert read_health(ring).frames > 0
    ring.close()


def test_a_killed_process_is_noticed_here_at_once_and_elsewhere_by_its_silence(config: MjpegConfig) -> None:
    with CameraProcess("front", config) as camera:
        wait_frames(camera, 1)
        os.kill(camera.pid, signal.SIGKILL)
        wait_until(lambda: camera.health().condition == CameraCondition.GONE, 2.0)
        assert "has ended (exit code -9)" in camera.health().message
        wait_until(lambda: read_health(camera.health_ring).condition == CameraCondition.GONE)
        assert "says nothing any more" in read_health(camera.health_ring).message


def test_a_camera_that_cannot_be_opened_says_so_and_leaves_nothing_behind() -> None:
    before = set(os.listdir("/dev/shm"))
    with (
        pytest.raises(DeviceError, match="covered by a tea towel"),
        CameraProcess("x", FakeConfig(refuse="covered by a tea towel")),
    ):
        pass
    assert {name for name in os.listdir("/dev/shm") if f"-{os.getpid()}-" in name} <= before


def test_rings_that_shared_memory_has_no_room_for_are_refused_before_anything_is_killed() -> None:
    message = r"'fake' needs \d+ MiB of shared memory, /dev/shm has \d+; .*--shm-size"
    with pytest.raises(DeviceError, match=message), CameraProcess("fake", FakeConfig(), slots=10_000_000):
        pass


def test_several_start_at_the_same_time_and_all_end_when_one_cannot_start(config: MjpegConfig) -> None:
    with open_cameras({"left": config, "right": config}, {"left": 5.0}) as cameras:
        assert {name: camera.info.name for name, camera in cameras.items()} == {"left": "left", "right": "right"}
    gone = MjpegConfig("http://127.0.0.1:1/", width=160, height=120)
    with (
        pytest.raises(DeviceGoneError, match=r"'right' at 127\.0\.0\.1:1 is not reached"),
        open_cameras({"left": config, "right": gone}),
    ):
        pass
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("camera")]


@pytest.mark.parametrize("where", ["connect", "read"])
def test_a_driver_that_hangs_does_not_outlive_close(where: str) -> None:
    camera = CameraProcess("stuck", FakeConfig(hang=where))
    if where == "connect":
        with pytest.raises(DeviceTimeoutError, match="is not open after 1 s"):
            camera.wait_ready(1)
    else:
        camera.wait_ready()
    pid = camera.pid
    start = time.monotonic()
    camera.close()
    camera.close()
    assert time.monotonic() - start < 20
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_pictures_that_change_their_size_are_refused_with_both_sizes() -> None:
    with CameraProcess("fake", FakeConfig(grows_at=50)) as camera:
        wait_until(lambda: camera.health().condition == CameraCondition.GONE)
        assert "sends 320x241 now and sent 320x240 before" in camera.health().message
        assert camera.ring.count == 49


PARENT = """
import sys, time
from camera_fakes import FakeConfig
from robolearn_hardware.cameras.process import CameraProcess
if __name__ == "__main__":
    camera = CameraProcess("orphan", FakeConfig(hang=sys.argv[1]))
    camera.wait_ready()
    print(camera.pid, flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("hang", ["", "read"])
def test_the_process_ends_when_its_parent_is_killed_even_while_the_driver_hangs(tmp_path: Path, hang: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, str(script), hang], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_camera_unplugged_in_mid_episode_leaves_holes_and_the_recorder_goes_on(
    camera: CameraProcess, twins: Twins, tmp_path: Path
) -> None:
    schema = Schema(
        20.0,
        {
            "front": Stream((120, 160, 3), "uint8", "image", rate_hz=30.0),
            "action": Stream((1,), "float32", "action"),
        },
    )
    DatasetWriter.create(tmp_path / "d", schema, compression={"front": "lossless"}).close()
    with (
        Ring.create(step_fields(schema), 64) as steps,
        RecorderProcess(tmp_path / "d", steps.handle, {"front": camera.ring.handle}) as recorder,
    ):
        recorder.start(task="look")
        start, back = now_ns(), 0
        for number in range(400):
            at = start + number * 50 * MS
            wait_until_ns(at)
            steps.publish({"time_ns": at, "action": [number]})
            if number == 20:
                twins["front"].fault(unplugged=True)
            if number == 50:
                twins["front"].fault()
            if number > 50 and not back and camera.health().condition == CameraCondition.READY:
                back = number
            if back and number > back + 20:
                break
        recorder.save()
    dataset = Dataset.open(tmp_path / "d")
    valid, times, pictures = dataset.valid("front"), dataset.times(), dataset.read("front")
    assert times is not None
    assert not valid[25:50].any()
    assert valid[5:20].mean() > 0.5
    assert valid[back + 3 :].mean() > 0.5
    np.testing.assert_array_equal(dataset.read("action")[:, 0], np.arange(len(valid)))
    for row in np.flatnonzero(valid):  # each row has the picture of its own time, before and after the gap
        assert 0 <= times[row] - read_time(pictures[row]) < 500 * MS


def test_the_twin_rig_of_cameras_opens_every_kind_and_the_real_one_is_like_it() -> None:
    folder = Path(__file__).resolve().parent.parent / "hardware" / "rigs"
    real, twin = load_rig(folder / "cameras.yaml"), load_rig(folder / "cameras_twin.yaml")
    assert real.cameras.keys() == twin.cameras.keys()
    assert real.placement == twin.placement
    with with_twins(twin) as (rig, _), open_cameras(rig.cameras, {"door": rig.where("door").latency_ms}) as cameras:
        for camera in cameras.values():
            wait_frames(camera, 3)
            found = camera.ring.newest()
            assert found is not None
            late_ns = found[1]["capture_ns"] - read_time(found[1]["value"])
            assert -180 * MS <= late_ns < SECOND_NS
        sizes = {name: (camera.info.width, camera.info.height) for name, camera in cameras.items()}
        assert sizes == {"wrist": (640, 480), "front": (640, 480), "table": (640, 480), "door": (1280, 720)}
        assert [name for name, camera in cameras.items() if camera.depth_ring is not None] == ["wrist"]
