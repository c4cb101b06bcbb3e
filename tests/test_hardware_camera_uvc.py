"""USB cameras as far as a machine without one goes: what is listed, and what is said of those that cannot be opened."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robolearn_hardware.cameras import find, sdk, uvc
from robolearn_hardware.cameras.find import FoundCamera, list_cameras
from robolearn_hardware.cameras.realsense import RealSenseConfig
from robolearn_hardware.cameras.uvc import UvcConfig, check_node, list_v4l2
from robolearn_hardware.devices import DeviceError, DeviceGoneError

cv2 = pytest.importorskip("cv2")


def make_sys(folder: Path, *nodes: tuple[str, str, str]) -> Path:
    """A /sys/class/video4linux with (node, name, index) each."""
    for node, name, index in nodes:
        (folder / node).mkdir(parents=True)
        (folder / node / "name").write_text(name + "\n")
        (folder / node / "index").write_text(index + "\n")
    return folder


def test_cameras_are_listed_by_their_first_node_and_name_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    sys_folder = make_sys(
        tmp_path,
        ("video10", "HD Webcam", "0"),
        ("video2", "Logitech C920", "0"),
        ("video3", "Logitech C920", "1"),  # its metadata
    )
    (sys_folder / "video5").mkdir()  # a driver that says nothing
    assert list_v4l2(sys_folder) == {
        "/dev/video2": "Logitech C920",
        "/dev/video5": "unknown",
        "/dev/video10": "HD Webcam",
    }
    assert list_v4l2(tmp_path / "none") == {}


def test_what_is_found_can_be_named_in_a_rig_and_says_why_it_cannot_be_opened(tmp_path: Path) -> None:
    folder = make_sys(tmp_path, ("video97", "Webcam", "0"), ("video98", "Intel(R) RealSense(TM) 435", "0"))
    found = [camera for camera in list_cameras(folder) if camera.kind == "uvc"]
    assert found == [FoundCamera("uvc", "/dev/video97", "Webcam", found[0].problem)]
    assert "/dev/video97 is not there" in found[0].problem


def test_a_camera_that_is_not_there_is_answered_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvc, "SYS", make_sys(tmp_path, ("video2", "Logitech C920", "0")))
    for device in (97, "97", "/dev/video97"):
        with pytest.raises(DeviceGoneError, match=r"'front' at /dev/video97 is not there; cameras: /dev/video2 \(Logi"):
            UvcConfig(device).open("front").connect()


def test_what_is_no_camera_or_in_use_is_refused_by_opencv_within_its_deadline(tmp_path: Path) -> None:
    (tmp_path / "node").write_bytes(b"not a camera")
    with pytest.raises(DeviceError, match=r"cannot be opened: another program uses it, or it is no camera"):
        UvcConfig(str(tmp_path / "node")).open("front").connect()
    with pytest.raises(DeviceError, match=r"cannot be opened: another program uses it, or it is no camera"):
        UvcConfig("/dev/null").open("front").connect()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_node_that_this_user_may_not_open_names_the_group() -> None:
    node = Path("/etc/shadow")  # there, and root's alone, on every machine
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # the check as user "nobody"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            check_node("camera 'front'", node)
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as answer:
        assert "DeviceError: camera 'front' may not be opened by this user; join the group" in answer.read()


class Capture:
    """What OpenCV gives of a camera that has one mode and few settings. No genuine one can be had without a device."""

    def __init__(self, refuses: tuple[int, ...] = ()) -> None:
        self.settings = {
            cv2.CAP_PROP_FRAME_WIDTH: 640.0,
            cv2.CAP_PROP_FRAME_HEIGHT: 480.0,
            cv2.CAP_PROP_FPS: 30.0,
            cv2.CAP_PROP_FOURCC: float(int.from_bytes(b"MJPG", "little")),
        }
        self.modes = tuple(self.settings)
        self.refuses = refuses
        self.plugged = True

    def isOpened(self) -> bool:
        return True

    def set(self, key: int, value: float) -> bool:
        if key in self.modes:
            return self.settings[key] == value
        if key not in self.refuses:
            self.settings[key] = value
        return key not in self.refuses

    def get(self, key: int) -> float:
        return self.settings.get(key, 0.0)

    def grab(self) -> bool:
        time.sleep(1 / self.settings[cv2.CAP_PROP_FPS])
        return self.plugged

    def retrieve(self) -> tuple[bool, np.ndarray]:
        picture = np.zeros((480, 640, 3), np.uint8)
        picture[..., 0] = 200  # blue
        return True, picture

    def release(self) -> None:
        pass


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    made = Capture()
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: made)
    return made


def test_settings_reach_opencv_in_its_units_and_pictures_are_rgb(capture: Capture) -> None:
    camera = UvcConfig("/dev/null", exposure_ms=8.3, gain=7, white_balance_k=4600, warmup_frames=1).open("front")
    with closing(camera):
        camera.connect()
        assert capture.settings[cv2.CAP_PROP_AUTO_EXPOSURE] == 1
        assert capture.settings[cv2.CAP_PROP_EXPOSURE] == 83  # of 100 us
        assert capture.settings[cv2.CAP_PROP_GAIN] == 7
        assert capture.settings[cv2.CAP_PROP_AUTO_WB] == 0
        assert capture.settings[cv2.CAP_PROP_WB_TEMPERATURE] == 4600
        assert camera.read().colour[0, 0].tolist() == [0, 0, 200]
        capture.plugged = False
        with pytest.raises(DeviceGoneError, match="is unplugged, or gives no frames"):
            read_on(camera)
    capture.plugged = True
    camera = UvcConfig("/dev/null", exposure_ms="auto", white_balance_k="auto", warmup_frames=0).open("front")
    with closing(camera):
        camera.connect()
    assert capture.settings[cv2.CAP_PROP_AUTO_EXPOSURE] == 3
    assert capture.settings[cv2.CAP_PROP_AUTO_WB] == 1


def read_on(camera: Any) -> None:
    """Until it raises."""
    while True:
        camera.read()


@pytest.mark.parametrize("wrong", [{"width": 800}, {"rate_hz": 60}, {"format": "YUYV"}])
def test_a_mode_that_the_camera_does_not_have_is_answered_with_the_nearest(
    capture: Capture, wrong: dict[str, Any]
) -> None:
    with pytest.raises(DeviceError, match=r"has no .*; the nearest is 640x480 MJPG at 30 Hz"):
        UvcConfig("/dev/null", **wrong).open("front").connect()


def test_a_setting_that_the_camera_does_not_have_is_refused(capture: Capture) -> None:
    capture.refuses = (cv2.CAP_PROP_GAIN,)
    with pytest.raises(DeviceError, match=r"does not take gain: 3; `v4l2-ctl -d /dev/null -l` lists"):
        UvcConfig("/dev/null", gain=3).open("front").connect()


def test_without_its_library_a_camera_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DeviceError, match=r"pip install 'robolearn\[cameras\]'"):
        sdk.import_opencv()
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    with pytest.raises(DeviceError, match=r"pip install 'robolearn\[realsense\]'"):
        RealSenseConfig("1").open("front").connect()
    assert any("pip install" in camera.problem for camera in find.list_cameras(Path("/nowhere")))
