"""USB cameras (UVC) and whatever else has a V4L2 node, through OpenCV."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from robolearn_hardware.cameras.calibration_file import with_lens
from robolearn_hardware.cameras.reader import Picture, ThreadedCamera
from robolearn_hardware.cameras.sdk import import_opencv
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import Camera, CameraInfo, DeviceError, DeviceGoneError
from robolearn_hardware.twins.host import Twins

SYS = Path("/sys/class/video4linux")
_MANUAL, _APERTURE_PRIORITY = 1.0, 3.0
"""V4L2_CID_EXPOSURE_AUTO, which OpenCV passes on as it is."""


@dataclass(frozen=True)
class UvcConfig:
    """A V4L2 camera. The capture time is the kernel's: when the first packet of the frame arrived (uvcvideo)."""

    device: int | str
    """0 for /dev/video0; or a path, best one below /dev/v4l/by-id or by-path, which stays when others are plugged in"""
    width: int = 640
    height: int = 480
    rate_hz: float = 30.0
    format: str = "MJPG"
    """How pictures come over the wire, by its four letters: "MJPG", or "YUYV" (exact, and fewer fit through USB)."""
    exposure_ms: float | Literal["auto"] | None = None
    """None leaves it as it is."""
    gain: float | None = None
    """In the device's unit."""
    white_balance_k: float | Literal["auto"] | None = None
    warmup_frames: int = 10
    """Left out after opening, while exposure and white balance settle."""
    calibration: Path | None = None
    """What `robolearn calibrate` has written: the lens."""

    def open(self, name: str) -> Camera:
        info = with_lens(CameraInfo(name, self.width, self.height, self.rate_hz), self.calibration)
        return ThreadedCamera(info, partial(_Device, self, info), warmup_frames=self.warmup_frames)

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.device == "twin":
            raise DeviceError(f"camera {name!r}: uvc has no twin; kinds with one: realsense, mjpeg, rtsp")
        return self


class _Device:
    """The source of ``ThreadedCamera``."""

    def __init__(self, config: UvcConfig, info: CameraInfo) -> None:
        self._config, self._info = config, info
        device = config.device
        self._path = Path(f"/dev/video{device}" if isinstance(device, int) or device.isdigit() else device)
        self._where = f"camera {info.name!r} at {self._path}"
        self._capture: Any = None

    def open(self) -> CameraInfo:
        check_node(self._where, self._path)
        cv2 = import_opencv()
        self._capture = cv2.VideoCapture(os.path.realpath(self._path), cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise DeviceError(
                f"{self._where} cannot be opened: another program uses it, or it is no camera (one camera has several "
                f"nodes); {there()}"
            )
        config = self._config
        for key, value in (
            (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*config.format.ljust(4)[:4])),
            (cv2.CAP_PROP_FRAME_WIDTH, config.width),
            (cv2.CAP_PROP_FRAME_HEIGHT, config.height),
            (cv2.CAP_PROP_FPS, config.rate_hz),
        ):
            self._capture.set(key, value)
        self._check_mode(cv2)
        self._set_picture(cv2)
        return self._info

    def _check_mode(self, cv2: Any) -> None:
        """V4L2 takes the nearest mode that the camera has, and does not complain."""
        get, config = self._capture.get, self._config
        found = (round(get(cv2.CAP_PROP_FRAME_WIDTH)), round(get(cv2.CAP_PROP_FRAME_HEIGHT)))
        pixel = int(get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1").strip()
        rate = get(cv2.CAP_PROP_FPS)
        wrong_rate = rate > 0 and abs(rate - config.rate_hz) > 0.5  # some drivers do not tell
        if wrong_rate or (*found, pixel) != (config.width, config.height, config.format):
            raise DeviceError(
                f"{self._where} has no {config.width}x{config.height} {config.format} at {config.rate_hz:g} Hz; the "
                f"nearest is {found[0]}x{found[1]} {pixel} at {rate:g} Hz. See v4l2-ctl --list-formats-ext"
            )

    def _set_picture(self, cv2: Any) -> None:
        config = self._config

        def put(setting: str, key: int, value: float) -> None:
            if not self._capture.set(key, value):
                raise DeviceError(
                    f"{self._where} does not take {setting}: {getattr(config, setting)}; `v4l2-ctl -d {self._path} -l` "
                    "lists what it has"
                )

        if config.exposure_ms == "auto":
            put("exposure_ms", cv2.CAP_PROP_AUTO_EXPOSURE, _APERTURE_PRIORITY)
        elif config.exposure_ms is not None:
            put("exposure_ms", cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL)
            put("exposure_ms", cv2.CAP_PROP_EXPOSURE, round(10 * config.exposure_ms))  # units of 100 us
        if config.gain is not None:
            put("gain", cv2.CAP_PROP_GAIN, config.gain)
        if config.white_balance_k is not None:
            automatic = config.white_balance_k == "auto"
            put("white_balance_k", cv2.CAP_PROP_AUTO_WB, float(automatic))
            if not automatic:
                put("white_balance_k", cv2.CAP_PROP_WB_TEMPERATURE, float(config.white_balance_k))

    def fetch(self) -> Picture | None:
        cv2 = import_opencv()
        if not self._capture.grab():
            raise DeviceGoneError(f"{self._where} is unplugged, or gives no frames")
        received_ns = now_ns()
        there, picture = self._capture.retrieve()
        if not there:
            return None
        # The buffer's time stamp, which uvcvideo takes from CLOCK_MONOTONIC; other drivers may have another clock.
        stamp_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        known = received_ns - SECOND_NS < stamp_ns <= received_ns
        return Picture(stamp_ns if known else received_ns, received_ns, picture)

    def decode(self, data: np.ndarray) -> np.ndarray | None:
        cv2 = import_opencv()
        return cv2.cvtColor(data, cv2.COLOR_BGR2RGB)

    def interrupt(self) -> None:
        pass  # OpenCV ends by its own deadline

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()


def list_v4l2(sys: Path | None = None) -> dict[str, str]:
    """Node ("/dev/video0") -> what its driver calls it; the first node of each camera, which has the pictures.
    ``sys`` stands in for ``SYS``."""
    found = {}
    for folder in sorted((sys or SYS).glob("video*"), key=lambda path: (len(path.name), path.name)):
        if _text(folder / "index") in ("", "0"):
            found[f"/dev/{folder.name}"] = _text(folder / "name") or "unknown"
    return found


def check_node(where: str, path: Path) -> None:
    """Raise DeviceError unless this user may read and write the node."""
    if not path.exists():
        raise DeviceGoneError(f"{where} is not there; {there()}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise DeviceError(
            f"{where} may not be opened by this user; join the group that owns it (`sudo usermod -aG video $USER`) and "
            "log in again"
        )


def there() -> str:
    """The cameras that are connected, for messages."""
    found = ", ".join(f"{node} ({name})" for node, name in list_v4l2().items())
    return f"cameras: {found or 'none'}"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
