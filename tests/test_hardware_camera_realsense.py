"""The RealSense driver through genuine librealsense, against a virtual device inside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from camera_fakes import wait_frames, wait_until

from robolearn_hardware.cameras import realsense
from robolearn_hardware.cameras.device_clock import DeviceClock, wall_offset_ns
from robolearn_hardware.cameras.health import CameraCondition
from robolearn_hardware.cameras.process import CameraProcess, open_cameras
from robolearn_hardware.cameras.realsense import RealSense, RealSenseConfig, RealSenseFileConfig, list_realsense
from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import Camera, DeviceError, DeviceGoneError, DeviceTimeoutError, Frame
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.pictures import PictureSpec, bar_at, make_pictures, read_bar, read_time
from robolearn_hardware.twins.realsense import OPTIONS, RealSenseTwin, VirtualContext

rs: Any = pytest.importorskip("pyrealsense2")

MS = 1_000_000
SMALL = RealSenseConfig("twin", width=320, height=240, warmup_frames=2)


@pytest.fixture(scope="module")
def twins() -> Iterator[Twins]:
    with Twins() as found:
        yield found


@pytest.fixture(scope="module")
def config(twins: Twins) -> RealSenseConfig:
    return SMALL.with_twin("front", twins)


@pytest.fixture
def context(config: RealSenseConfig) -> Iterator[VirtualContext]:
    virtual = VirtualContext(config.serial)
    yield virtual
    virtual.close()


def test_pictures_come_in_order_with_their_own_times_and_the_intrinsics_of_the_device(config: RealSenseConfig) -> None:
    camera = config.open("front")
    camera.connect()
    frames = [camera.read() for _ in range(10)]
    camera.close()
    written = [read_time(frame.colour) for frame in frames]
    assert written == sorted(set(written))
    assert [frame.number for frame in frames] == sorted({frame.number for frame in frames})
    for frame, time_ns in zip(frames, written, strict=True):
        assert frame.colour.shape == (240, 320, 3)
        assert time_ns <= frame.capture_ns <= frame.received_ns
        assert abs(read_bar(frame.colour) - bar_at(time_ns)) < 0.01  # and red is red: RGB, not BGR
    assert (camera.info.width, camera.info.height, camera.info.rate_hz) == (320, 240, 30)
    assert camera.info.serial == "twin-front"
    assert camera.info.matrix is not None
    assert camera.info.matrix.tolist() == [[288, 0, 160], [0, 288, 120], [0, 0, 1]]
    assert camera.info.depth_m == pytest.approx(0.001)


def test_pictures_that_nobody_read_are_skipped(config: RealSenseConfig) -> None:
    camera = config.open("front")
    camera.connect()
    first = camera.read()
    time.sleep(1)
    second = camera.read()
    camera.close()
    assert second.number - first.number > 5
    assert read_time(second.colour) - read_time(first.colour) > SECOND_NS // 2


def test_depth_is_aligned_to_the_colour_picture(config: RealSenseConfig) -> None:
    """The virtual depth camera stands 15 mm beside: the bar, 0.5 m away, is 9 pixels elsewhere before alignment."""
    camera = config.open("front")
    camera.connect()
    for _ in range(5):
        frame = camera.read()
        assert frame.depth is not None
        near = np.flatnonzero(frame.depth[120] == 500)
        middle = (near.mean() + 0.5) / 320
        assert abs(middle - read_bar(frame.colour)) < 1.5 / 320
        assert frame.depth[120, 2] in (0, 1000)
    camera.close()


@pytest.mark.parametrize("clock", ["hardware", "global"])
def test_device_times_are_mapped_to_the_monotonic_clock_through_latency_and_drift(clock: str) -> None:
    """Frames are 60 ms late, a third of them 110; capture times differ from those in the pictures by what the fastest
    needs (hardware clock), or not at all (global time)."""
    spec = PictureSpec("late", 320, 240, 288.0)
    make = partial(RealSenseTwin, partial(make_pictures, "pattern", spec), spec, 30, clock=clock, drift_ppm=200.0)
    with Twins() as twins:
        twin = twins.start("late", make)
        twin.fault(latency_s=0.06, spikes=0.3)
        camera = replace(SMALL, serial=twin.address, depth=False).open("late")
        camera.connect()
        frames = [camera.read() for _ in range(40)]
        camera.close()
    errors = np.array([frame.capture_ns - read_time(frame.colour) for frame in frames]) / MS
    delays = np.array([frame.received_ns - read_time(frame.colour) for frame in frames]) / MS
    if clock == "global":
        assert np.abs(errors).max() < 5
    else:
        assert errors.min() >= 59.9  # the least delay cannot be told from an offset
        assert np.ptp(errors[10:]) < 25
        assert np.ptp(delays[10:]) >= 49
    assert np.all(delays >= 59.9)


def test_a_wall_clock_that_was_set_while_the_camera_ran_does_not_move_capture_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = PictureSpec("set", 320, 240, 288.0)
    make = partial(RealSenseTwin, partial(make_pictures, "pattern", spec), spec, 30, clock="global")
    for wrong_ns in (-3600 * SECOND_NS, 3600 * SECOND_NS):
        monkeypatch.setattr(realsense, "wall_offset_ns", lambda shift=wrong_ns: wall_offset_ns() + shift)
        with Twins() as twins:
            camera = replace(SMALL, serial=twins.start("set", make).address, depth=False).open("set")
            camera.connect()
            frames = [camera.read() for _ in range(5)]
            camera.close()
        for frame in frames:
            assert read_time(frame.colour) < frame.capture_ns <= frame.received_ns


def test_a_device_clock_that_drifts_and_starts_anew_is_followed() -> None:
    clock, random = DeviceClock(), np.random.default_rng(0)
    true = 7 * SECOND_NS + np.arange(6000) * 33 * MS  # 198 s
    device = 5_000_000_000_000 + (true * (1 + 100e-6)).astype(np.int64)
    device[4000:] -= device[4000]
    received = true + random.exponential(5 * MS, len(true)).astype(np.int64) + 2 * MS
    mapped = np.array([clock.map(int(d), int(r)) for d, r in zip(device, received, strict=True)])
    error = (mapped - true) / MS
    assert (np.diff(mapped) > 0).all()
    assert (mapped <= received + 1).all()
    settled = np.r_[100:4000, 4100:6000]
    assert error[settled].min() > 0  # 2 ms, less 100 ppm of 20 s
    assert error[settled].max() < 4


def test_several_cameras_are_told_apart_by_their_serial_numbers(twins: Twins) -> None:
    configs = {name: replace(SMALL, depth=False).with_twin(name, twins) for name in ("left", "right")}
    virtual = VirtualContext(*(config.serial for config in configs.values()))
    assert sorted(serial for serial, _ in list_realsense(virtual.context)) == ["twin-left", "twin-right"]
    with pytest.raises(DeviceError, match="several are there; connected: twin-left, twin-right"):
        RealSense("any", replace(SMALL, serial=""), virtual.context).connect()
    twins["left"].fault(frozen=True)
    for name, moves in (("left", False), ("right", True)):
        camera = RealSense(name, replace(SMALL, depth=False, serial=f"twin-{name}"), virtual.context)
        camera.connect()
        time.sleep(0.1)
        camera.read()
        assert (read_time(camera.read().colour) != read_time(camera.read().colour)) == moves
        camera.close()
    virtual.close()
    with open_cameras(configs) as cameras:
        assert {name: camera.info.serial for name, camera in cameras.items()} == {
            "left": "twin-left",
            "right": "twin-right",
        }


def test_a_wrong_serial_number_is_answered_with_those_that_are_there(context: VirtualContext) -> None:
    start = time.monotonic()
    with pytest.raises(DeviceGoneError, match="no RealSense has the serial number 838212070384; connected: twin-front"):
        RealSense("front", RealSenseConfig("838212070384"), context.context).connect()
    assert time.monotonic() - start < 5  # librealsense itself would wait for 15 s


def test_a_mode_that_the_camera_does_not_have_is_answered_with_those_it_has(config: RealSenseConfig) -> None:
    for wrong in ({"width": 1280}, {"rate_hz": 90}):
        with pytest.raises(DeviceError, match=r"has no colour pictures of .*; valid: 320x240 at 30"):
            replace(config, **wrong).open("front").connect()


def read_on(camera: Camera, frames: list[Frame]) -> None:
    """Until it raises."""
    while True:
        frames.append(camera.read())


def option(context: VirtualContext, name: str) -> float:
    """Of the colour sensor."""
    device = next(iter(context.context.query_devices()))
    return device.query_sensors()[1].get_option(getattr(rs.option, name))


def test_exposure_gain_and_white_balance_are_set_and_set_again_when_the_camera_is_back(
    context: VirtualContext, twins: Twins
) -> None:
    wanted = replace(SMALL, serial="twin-front", exposure_ms=8.0, gain=32, white_balance_k=5200)
    camera = RealSense("front", wanted, context.context)
    expected = {
        "exposure": 80,
        "gain": 32,
        "white_balance": 5200,
        "enable_auto_exposure": 0,
        "enable_auto_white_balance": 0,
    }
    camera.connect()
    assert {name: option(context, name) for name in expected} == expected
    twins["front"].fault(unplugged=True)
    with pytest.raises(DeviceTimeoutError):  # the pipeline keeps the device in librealsense's list
        read_on(camera, [])
    with pytest.raises(DeviceGoneError, match="connected: none"):
        camera.connect()
    twins["front"].fault()
    wait_until(lambda: len(context.context.query_devices()) == 1)
    assert option(context, "exposure") == OPTIONS["exposure"][3]  # it forgot, as a camera without power does
    camera.connect()
    assert {name: option(context, name) for name in expected} == expected
    camera.close()
    automatic = replace(wanted, exposure_ms="auto", gain=None, white_balance_k="auto")
    camera = RealSense("front", automatic, context.context)
    camera.connect()
    assert option(context, "enable_auto_exposure") == option(context, "enable_auto_white_balance") == 1
    camera.close()


def test_a_setting_out_of_range_or_missing_is_refused(config: RealSenseConfig) -> None:
    with pytest.raises(DeviceError, match=r"exposure_ms must be 0\.1 to 1000, not 5000"):
        replace(config, exposure_ms=5000).open("front").connect()
    spec = PictureSpec("plain", 320, 240, 288.0)
    make = partial(RealSenseTwin, partial(make_pictures, "pattern", spec), spec, 30, options=("exposure", "gain"))
    with Twins() as twins:
        plain = replace(SMALL, serial=twins.start("plain", make).address)
        with pytest.raises(
            DeviceError, match=r"no setting 'enable_auto_white_balance' for white_balance_k; it has: .*gain"
        ):
            replace(plain, white_balance_k="auto").open("plain").connect()


def test_unplugged_and_plugged_in_again_its_frames_go_on_in_the_same_rings(
    config: RealSenseConfig, twins: Twins
) -> None:
    with CameraProcess("front", config) as camera:
        wait_frames(camera, 3)
        pid = camera.pid
        twins["front"].fault(unplugged=True)
        wait_until(lambda: camera.health().condition == CameraCondition.GONE)
        assert "no RealSense has the serial number twin-front; connected: none" in camera.health().message
        depth = camera.depth_ring
        assert depth is not None
        before = depth.count
        twins["front"].fault()
        wait_until(lambda: camera.health().condition == CameraCondition.READY)
        wait_frames(camera, 5)
        wait_until(lambda: depth.count > before)
        assert camera.pid == pid
        found = camera.ring.newest()
        assert found is not None
        assert 0 <= found[1]["capture_ns"] - read_time(found[1]["value"]) < SECOND_NS


def test_frames_lost_on_the_wire_are_counted_by_their_numbers(config: RealSenseConfig, twins: Twins) -> None:
    with CameraProcess("front", config) as camera:
        wait_frames(camera, 3)
        twins["front"].fault(lose=0.5)
        wait_until(lambda: camera.health().lost > 5)
        twins["front"].fault()


def record(config: RealSenseConfig, path: Path, frames: int) -> None:
    """A recording by librealsense itself."""
    virtual = VirtualContext(config.serial)
    wanted = rs.config()
    wanted.enable_device(virtual.serials[0])
    wanted.enable_stream(rs.stream.color, 320, 240, rs.format.rgb8, 30)
    wanted.enable_stream(rs.stream.depth, 320, 240, rs.format.z16, 30)
    wanted.enable_record_to_file(str(path))
    pipeline = rs.pipeline(virtual.context)
    pipeline.start(wanted)
    for _ in range(frames):
        pipeline.wait_for_frames(2000)
    pipeline.stop()
    del pipeline, wanted
    virtual.close()


def test_a_recording_is_replayed_once_or_again_and_again(config: RealSenseConfig, tmp_path: Path) -> None:
    record(config, tmp_path / "take.db3", 20)
    camera = RealSenseFileConfig(tmp_path / "take.db3", repeat=False).open("front")
    camera.connect()
    assert camera.info.matrix is not None
    assert camera.info.matrix.tolist() == [[288, 0, 160], [0, 288, 120], [0, 0, 1]]
    frames: list[Frame] = []
    with pytest.raises(DeviceGoneError, match=r"take\.db3 is at its end"):
        read_on(camera, frames)
    assert all(frame.depth is not None for frame in frames)
    written = [read_time(frame.colour) for frame in frames]
    captured = [frame.capture_ns for frame in frames]
    assert len(written) > 5
    assert written == sorted(set(written))
    assert captured == sorted(set(captured))
    with pytest.raises(DeviceGoneError, match="repeat: true begins again"):
        camera.connect()
    camera.close()
    camera = RealSenseFileConfig(tmp_path / "take.db3").open("front")
    camera.connect()
    frames = [camera.read() for _ in range(30)]
    camera.close()
    assert (np.diff([read_time(frame.colour) for frame in frames]) < 0).any()
    assert (np.diff([frame.capture_ns for frame in frames]) > 0).all()


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.db3").write_bytes(b"SQLite format 3\0" + bytes(2000))
    (tmp_path / "video.mp4").write_bytes(b"x")
    for name, message in (
        ("none.db3", "is no recording"),
        ("video.mp4", "is no recording"),
        ("broken.db3", "cannot be replayed"),
    ):
        with pytest.raises(DeviceError, match=message):
            RealSenseFileConfig(tmp_path / name).open("x").connect()


def test_a_rig_file_that_says_twin_runs_the_ordinary_driver(tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text(
        "cameras:\n"
        "  wrist: {kind: realsense, serial: twin, width: 320, height: 240, warmup_frames: 0, exposure_ms: 5}\n"
        "  front: {kind: mjpeg, url: twin, width: 320, height: 240}\n"
    )
    with with_twins(load_rig(path)) as (rig, twins), open_cameras(rig.cameras) as cameras:
        assert "wrist" in twins
        for camera in cameras.values():
            wait_frames(camera, 2)
    path.write_text("cameras: {wrist: {kind: realsense, serial: twin, exposure_ms: bright}}")
    with pytest.raises(DeviceError, match="cameras, wrist: exposure_ms"):
        load_rig(path)
    path.write_text("cameras: {wrist: {kind: realsense, serial: 036522070660}}")  # YAML reads an octal number
    with pytest.raises(DeviceError, match="cameras, wrist: serial: Input should be a valid string"):
        load_rig(path)
