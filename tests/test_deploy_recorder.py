"""Recording from devices in processes of their own: nothing shifts, nothing is lost unseen, and they never wait."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from robolearn_data.dataset import Dataset
from robolearn_data.recorder import Recorder
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.recorder import (
    POLL_S,
    RecorderProcess,
    RecordingError,
    RingSource,
    sample_fields,
    step_fields,
)
from robolearn_hardware.clock import now_ns, wait_until_ns
from robolearn_hardware.ring import Ring, RingHandle

SCHEMA = Schema(
    20.0,
    {
        "camera": Stream((48, 64, 3), "uint8", "image", rate_hz=30.0),
        "arm": Stream((7,), "float32", rate_hz=500.0, interpolation="linear"),
        "action": Stream((7,), "float32", "action"),
        "action_sent": Stream((7,), "float32", "info"),
    },
)
MS = 1_000_000
START = 10**9


class Rig:
    """The rings of a rig, written to by hand, and a recorder that reads them."""

    def __init__(self, path: Path, slots: int = 64) -> None:
        self.rings = {name: Ring.create(sample_fields(SCHEMA.streams[name]), slots) for name in ("camera", "arm")} | {
            "steps": Ring.create(step_fields(SCHEMA), slots)
        }
        self.warnings: list[str] = []
        self.writer = DatasetWriter.create(path, SCHEMA)
        sources = {name: RingSource(self.rings[name]) for name in ("camera", "arm")}
        self.recorder = Recorder(self.writer, RingSource(self.rings["steps"]), sources, warn=self.warnings.append)

    def frame(self, number: int, at_ns: int) -> None:
        picture = np.full((48, 64, 3), number, np.uint8)
        self.rings["camera"].publish({"capture_ns": at_ns, "received_ns": at_ns + MS, "value": picture})

    def arm(self, number: float, at_ns: int) -> None:
        self.rings["arm"].publish({"capture_ns": at_ns, "received_ns": at_ns, "value": np.full(7, number)})

    def step(self, number: float, at_ns: int) -> None:
        value = np.full(7, number)
        self.rings["steps"].publish({"time_ns": at_ns, "action": value, "action_sent": -value})

    def close(self) -> None:
        self.writer.close()
        for ring in self.rings.values():
            ring.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "d")
    yield made
    made.close()


def test_what_comes_between_episodes_is_not_recorded_except_the_newest_sample(rig: Rig, tmp_path: Path) -> None:
    for number in range(5):
        rig.frame(number, START + number * 33 * MS)
        rig.arm(number, START + number * 2 * MS)
        rig.step(number, START + number * 50 * MS)
    rig.recorder.start(task="pour")
    for number in range(5, 10):
        rig.frame(number, START + number * 33 * MS)
        rig.step(number, START + number * 50 * MS)
    rig.recorder.discard()
    rig.frame(10, START + 10 * 33 * MS)
    rig.recorder.start(task="pour")
    for number in range(11, 15):
        rig.step(number, START + number * 50 * MS)
        rig.frame(number, START + number * 50 * MS + 1)
    assert rig.recorder.save(success=False) == 0
    dataset = Dataset.open(tmp_path / "d")
    episode = dataset.episode(0)
    np.testing.assert_array_equal(episode["action"][:, 0], [11, 12, 13, 14])
    np.testing.assert_array_equal(episode["action_sent"][:, 0], [-11, -12, -13, -14])
    np.testing.assert_array_equal(episode["camera"][:, 0, 0, 0], [10, 11, 12, 13])
    np.testing.assert_array_equal(episode["arm"][:, 0], 4)
    info = dataset.episode_info(0)
    assert (info["task"], info["success"]) == ("pour", False)
    assert info["recorded"]["camera"] == {"taken": 5, "lost": 0, "refused": 0}


def test_steps_and_samples_that_were_lost_are_holes_and_counted_and_nothing_shifts(rig: Rig, tmp_path: Path) -> None:
    rig.recorder.start()
    for number in range(10):
        rig.step(number, START + number * 50 * MS)
        rig.arm(number, START + number * 50 * MS)
    rig.recorder.poll()
    for number in range(10, 110):  # the rings have 64 places, and nobody reads
        rig.step(number, START + number * 50 * MS)
        rig.arm(number, START + number * 50 * MS)
    rig.recorder.save()
    assert [warning.split(":")[0] for warning in rig.warnings] == ["arm", "steps"]
    dataset = Dataset.open(tmp_path / "d")
    numbers = np.arange(110)
    lost = (numbers >= 10) & (numbers < 46)
    action = dataset.read("action")[:, 0]
    np.testing.assert_array_equal(dataset.valid("action"), ~lost)
    np.testing.assert_array_equal(action[~lost], numbers[~lost])
    times = dataset.times()
    assert times is not None
    np.testing.assert_array_equal(times, START + numbers * 50 * MS)
    recorded = dataset.episode_info(0)["recorded"]
    assert recorded["steps"] == {"taken": 74, "lost": 36, "refused": 0}
    assert recorded["arm"] == {"taken": 74, "lost": 36, "refused": 0}
    assert validate(tmp_path / "d") == []


def test_samples_out_of_order_from_the_future_or_not_finite_are_refused_and_counted(rig: Rig, tmp_path: Path) -> None:
    rig.recorder.start()
    for at, value in ((10, 1.0), (20, 2.0), (15, 9.0), (20, 9.0), (30, np.nan), (40, 4.0), (35, 9.0), (50, 5.0)):
        rig.arm(value, START + at * MS)
        rig.recorder.poll()
    rig.arm(9.0, now_ns() + 3600 * 10**9)
    rig.recorder.poll()
    rig.arm(6.0, START + 60 * MS)
    for at, value in ((100, 1.0), (90, 9.0), (150, np.nan), (200, 3.0)):
        rig.step(value, START + at * MS)
    rig.recorder.save()
    dataset = Dataset.open(tmp_path / "d")
    samples = dataset.samples("arm", 0)
    np.testing.assert_array_equal((samples.time - START) // MS, [10, 20, 40, 50, 60])
    np.testing.assert_array_equal(np.asarray(dataset.array("arm")[samples.rows])[:, 0], [1, 2, 4, 5, 6])
    np.testing.assert_array_equal(dataset.valid("action"), [True, False, True])
    recorded = dataset.episode_info(0)["recorded"]
    assert (recorded["arm"]["refused"], recorded["steps"]["refused"]) == (5, 1)


def test_commands_that_make_no_sense_are_refused(rig: Rig) -> None:
    for command in (rig.recorder.save, rig.recorder.discard):
        with pytest.raises(SchemaError, match="start one first"):
            command()
    rig.recorder.start()
    with pytest.raises(SchemaError, match="save or discard it first"):
        rig.recorder.start()
    with pytest.raises(SchemaError, match="without rows"):
        rig.recorder.save()
    rig.recorder.discard()
    with pytest.raises(SchemaError, match="camera"):
        Recorder(rig.writer, rig.recorder.steps, {"arm": rig.recorder.sources["arm"]})


def device(handle: RingHandle, rate_hz: float, number: int, stop: Event) -> None:
    """A camera, an arm or a control loop: publishes its count at its rate, and notes how late it ever was."""
    ring = Ring.attach(handle)
    period = round(1e9 / rate_hz)
    begin = now_ns() // period * period + period
    for i in range(10**9):
        if stop.is_set():
            return
        due = begin + i * period
        wait_until_ns(due)
        if "time_ns" in handle.fields:
            ring.publish({"time_ns": due, "action": np.full(7, i), "action_sent": np.full(7, i)})
        else:
            _, shape = handle.fields["value"]
            ring.publish({"capture_ns": due, "received_ns": now_ns(), "value": np.full(shape, i % 256)})


@pytest.fixture
def devices(request: pytest.FixtureRequest) -> Iterator[dict[str, RingHandle]]:
    """Rings with room for 10 s, or as many as the test asks for, and the processes that publish into them."""
    room_s = getattr(request, "param", 10.0)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    rates = {"camera": 30.0, "arm": 500.0, "steps": 20.0}
    fields = {name: sample_fields(SCHEMA.streams[name]) for name in ("camera", "arm")} | {"steps": step_fields(SCHEMA)}
    rings = {name: Ring.create(fields[name], round(rate * room_s)) for name, rate in rates.items()}
    running = [
        context.Process(target=device, args=(ring.handle, rates[name], i, stop))
        for i, (name, ring) in enumerate(rings.items())
    ]
    for process in running:
        process.start()
    while not all(ring.count for ring in rings.values()):
        time.sleep(0.01)
    yield {name: ring.handle for name, ring in rings.items()}
    stop.set()
    for process in running:
        process.join()
    for ring in rings.values():
        ring.close()


def ask_until_it_fails(recorder: RecorderProcess) -> None:
    while True:
        recorder.status()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_recorder_in_its_own_process_records_episodes_of_running_devices(
    tmp_path: Path, devices: dict[str, RingHandle]
) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA).close()
    steps = devices.pop("steps")
    with RecorderProcess(path, steps, devices) as recorder:
        for number in range(3):
            recorder.start(task="wave")
            time.sleep(1.0)
            assert recorder.status().recording
            if number == 1:
                recorder.discard()
            else:
                recorder.save(success=True)
        with pytest.raises(RecordingError, match="start one first"):
            recorder.save()
        counts = recorder.status().counts
        assert all(count.lost == 0 for count in counts.values())
    dataset = Dataset.open(path)
    assert dataset.episodes == 2
    assert validate(path) == []
    for number in range(2):
        rows = dataset.rows(number)
        action = dataset.read("action", rows)[:, 0]
        np.testing.assert_array_equal(np.diff(action), 1)
        assert len(action) >= 15
        for name, rate in (("camera", 30), ("arm", 500)):
            samples = dataset.samples(name, number)
            assert len(samples.time) >= 0.7 * rate
            np.testing.assert_array_equal(np.diff(samples.time), round(1e9 / rate))
            values = np.asarray(dataset.array(name)[samples.rows]).reshape(len(samples.time), -1)[:, 0]
            np.testing.assert_array_equal(np.diff(values.astype(int)) % 256, 1)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1.0], indirect=True)
def test_a_recorder_that_stands_still_warns_and_counts_and_what_it_missed_is_holes(
    tmp_path: Path, devices: dict[str, RingHandle], capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA).close()
    steps = devices.pop("steps")
    with RecorderProcess(path, steps, devices) as recorder:
        recorder.start()
        time.sleep(0.5)
        os.kill(recorder.pid, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(recorder.pid, signal.SIGCONT)
        time.sleep(0.5)
        status = recorder.status()
        recorder.save()
    assert {warning.split(":")[0] for warning in status.warnings} == {"camera", "arm", "steps"}
    said = capfd.readouterr().err
    assert all(warning in said for warning in status.warnings)
    assert recorder_lost(path) == {name: count.lost for name, count in status.counts.items()}
    dataset = Dataset.open(path)
    action, valid = dataset.read("action")[:, 0], dataset.valid("action")
    assert 10 < (~valid).sum() < 45
    np.testing.assert_array_equal((action - np.arange(len(action)))[valid], action[0])
    assert (~dataset.valid("camera")).sum() > 10
    samples = dataset.samples("arm", 0)
    numbers = np.asarray(dataset.array("arm")[samples.rows])[:, 0].astype(int)
    np.testing.assert_array_equal(np.diff(samples.time) // 2_000_000 % 256, np.diff(numbers) % 256)
    assert np.diff(samples.time).max() > 1e9
    assert validate(path) == []


def recorder_lost(path: Path) -> dict[str, int]:
    """What the info of the first episode says was lost of each stream."""
    return {name: count["lost"] for name, count in Dataset.open(path).episode_info(0)["recorded"].items()}


def test_while_nobody_drains_a_source_fetches_as_much_as_memory_allows_and_counts_the_rest() -> None:
    stream = SCHEMA.streams["arm"]
    with Ring.create(sample_fields(stream), 10) as ring:
        source = RingSource(ring, limit_bytes=30 * ring.dtype.itemsize)

        def publish(count: int) -> None:
            for _ in range(count):
                number = ring.count
                ring.publish({"capture_ns": number, "received_ns": number, "value": np.full(7, number)})

        publish(10)
        source.fetch()  # too early: whoever drains may still come
        publish(5)
        time.sleep(2.5 * POLL_S)
        for _ in range(6):
            source.fetch()
            publish(10)
        records, lost = source.drain()
        kept = [*range(5, 45), *range(65, 75)]
        assert records["capture_ns"].tolist() == kept
        assert lost == 75 - len(kept)
        assert source.drain()[1] == 0


@pytest.mark.slow
def test_a_recorder_that_is_killed_costs_the_devices_nothing_and_recover_saves_its_episode(
    tmp_path: Path, devices: dict[str, RingHandle]
) -> None:
    path = tmp_path / "d"
    DatasetWriter.create(path, SCHEMA).close()
    steps = devices.pop("steps")
    recorder = RecorderProcess(path, steps, devices)
    recorder.start()
    time.sleep(1.0)
    os.kill(recorder.pid, signal.SIGKILL)
    with pytest.raises(RecordingError, match="recover"):
        ask_until_it_fails(recorder)
    recorder.close()
    with RecorderProcess(path, steps, devices) as next_one:
        assert "robolearn data recover" in next_one.status().warnings[0]
    found = recover(path)
    assert found.losses == []
    assert found.saved[0][1] >= 10
    assert validate(path) == []
    with RecorderProcess(path, steps, devices) as again:
        assert again.status().warnings == ()
        again.start()
        time.sleep(0.3)
        assert again.save() == 1


@pytest.mark.slow
def test_a_full_disk_stops_recording_with_an_error_and_saved_episodes_stay(
    small_disk: Callable[[int], Path], devices: dict[str, RingHandle]
) -> None:
    path = small_disk(3) / "d"
    DatasetWriter.create(path, SCHEMA, compression={"camera": "zstd-1"}).close()
    steps = devices.pop("steps")
    with RecorderProcess(path, steps, devices) as recorder:
        recorder.start()
        time.sleep(0.5)
        recorder.save()
        (path.parent / "filler").write_bytes(bytes(2 * 2**20 + 700_000))
        recorder.start()
        with pytest.raises(RecordingError, match="recording has stopped"):
            ask_until_it_fails(recorder)
    assert Dataset.open(path).episodes == 1
    assert validate(path) == []
