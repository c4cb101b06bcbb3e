"""Intel RealSense through librealsense: D400 cameras by serial number, and replay of recorded .db3 and .bag files.

Times. A D400 stamps frames with its own clock (domain hardware_clock), or librealsense has already mapped them to the
wall clock (global_time, its default) by asking the device for its time again and again. The first is mapped to
CLOCK_MONOTONIC by ``DeviceClock``; the second by the offset between wall and monotonic clock when the camera was
opened: should somebody set the wall clock meanwhile, it is treated like a device's clock from then on. Where the
metadata tell it, the time of capture is the middle of the exposure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from robolearn_hardware.cameras.sdk import import_realsense
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.device_clock import DeviceClock, wall_offset_ns
from robolearn_hardware.devices import (
    Camera,
    CameraInfo,
    DeviceError,
    DeviceGoneError,
    DeviceTimeoutError,
    Frame,
)
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.pictures import PictureSpec, make_pictures
from robolearn_hardware.twins.realsense import ADDRESS, RealSenseTwin, VirtualContext

CONNECT_S = 10.0
FIRST_FRAME_MS = 3000
READ_MS = 1000
_PERMISSION = "if it may not be opened, install librealsense's udev rules; if it is in use, end the other program"


@dataclass(frozen=True)
class RealSenseConfig:
    """A camera of the D400 family."""

    serial: str = ""
    """As `robolearn find` prints it, in quotes: it may begin with 0. Empty: the only one that is connected. Or twin"""
    width: int = 640
    height: int = 480
    rate_hz: int = 30
    depth: bool = True
    """Aligned to the colour picture."""
    exposure_ms: float | Literal["auto"] | None = None
    """Of the colour picture, like the next two. A fixed exposure or gain fixes both; None leaves it as it is."""
    gain: float | Literal["auto"] | None = None
    """In the device's unit."""
    white_balance_k: float | Literal["auto"] | None = None
    warmup_frames: int = 15
    """Left out after opening, while exposure and white balance settle."""
    pictures: str = "pattern"
    """What its twin sees, see ``twins.pictures``."""

    def open(self, name: str) -> Camera:
        return RealSense(name, self)

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.serial != "twin":
            return self
        spec = PictureSpec(name, self.width, self.height, 0.9 * self.width, 0.015)
        make = partial(RealSenseTwin, partial(make_pictures, self.pictures, spec), spec, self.rate_hz)
        return replace(self, serial=twins.start(name, make).address)


@dataclass(frozen=True)
class RealSenseFileConfig:
    """Replay of what a RealSense recorded, at the speed at which it was recorded."""

    path: Path
    """.db3, or .bag of librealsense before 2.58"""
    depth: bool = True
    repeat: bool = True
    """Begin again at the end; otherwise it is an error then."""

    def open(self, name: str) -> Camera:
        return RealSenseFile(name, self)

    def with_twin(self, name: str, twins: Twins) -> Self:
        return self


class RealSense:
    """One camera, see ``RealSenseConfig``."""

    def __init__(self, name: str, config: RealSenseConfig, context: Any = None) -> None:
        """``context``: an ``rs.context`` in which the device is looked for; by default that of the USB ports."""
        self._serial = config.serial
        self.info = CameraInfo(name, config.width, config.height, config.rate_hz, config.depth, self._serial)
        self._config = config
        self._context: Any = context
        self._virtual: VirtualContext | None = None
        self._stream: _Stream | None = None

    def connect(self) -> None:
        rs = import_realsense()
        self.close()
        deadline_ns = now_ns() + round(CONNECT_S * SECOND_NS)
        serial = self._serial
        if serial.startswith(ADDRESS):
            self._virtual = VirtualContext(serial)
            self._context, serial = self._virtual.context, self._virtual.serials[0]
        elif self._context is None:
            self._context = rs.context()
        with _errors(self.info.name):
            device, serial = self._find(rs, serial)
            self._check_mode(rs, device)
            sensor = _colour_sensor(rs, device)
            _set_picture(rs, self.info.name, sensor, self._config)
            wanted = rs.config()
            wanted.enable_device(serial)
            size = (self._config.width, self._config.height)
            wanted.enable_stream(rs.stream.color, *size, rs.format.rgb8, self._config.rate_hz)
            if self._config.depth:
                wanted.enable_stream(rs.stream.depth, *size, rs.format.z16, self._config.rate_hz)
            del device, sensor  # references keep an unplugged device in the context
            self._stream = _Stream(rs, self.info.name, rs.pipeline(self._context), wanted)
        self.info = replace(self._stream.info, rate_hz=self._config.rate_hz, serial=serial)
        try:
            self._stream.warm_up(self._config.warmup_frames, deadline_ns)
        except DeviceError:
            self.close()
            raise

    def read(self) -> Frame:
        if self._stream is None:
            raise DeviceError(f"camera {self.info.name!r} is not connected; call connect first")
        try:
            return self._stream.read(READ_MS)
        except DeviceTimeoutError:
            if self._stream.device_is_connected():
                raise
            raise DeviceGoneError(f"camera {self.info.name!r} (serial {self.info.serial}) is unplugged") from None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        if self._virtual is not None:
            self._virtual.close()
            self._virtual = self._context = None

    def _find(self, rs: Any, serial: str) -> tuple[Any, str]:
        found = {device.get_info(rs.camera_info.serial_number): device for device in self._context.query_devices()}
        there = f"connected: {', '.join(sorted(found)) or 'none'}"
        name = self.info.name
        if serial in found:
            return found[serial], serial
        if serial:
            raise DeviceGoneError(
                f"camera {name!r}: no RealSense has the serial number {serial}; {there}. Plug it in, or correct it"
            )
        if not found:
            raise DeviceGoneError(f"camera {name!r}: no RealSense is connected; check cable and USB 3 port")
        if len(found) > 1:
            raise DeviceError(f"camera {name!r} names no serial number, and several are there; {there}. Choose one")
        return next(iter(found.values())), next(iter(found))

    def _check_mode(self, rs: Any, device: Any) -> None:
        config = self._config
        wanted = (config.width, config.height, config.rate_hz)
        for kind, pixel in ((rs.stream.color, rs.format.rgb8), (rs.stream.depth, rs.format.z16)):
            if kind == rs.stream.depth and not config.depth:
                continue
            modes = {
                (video.width(), video.height(), video.fps())
                for sensor in device.query_sensors()
                for profile in sensor.get_stream_profiles()
                if profile.stream_type() == kind and profile.format() == pixel
                for video in [profile.as_video_stream_profile()]
            }
            if wanted not in modes:
                valid = ", ".join(f"{w}x{h} at {fps}" for w, h, fps in sorted(modes)) or "none"
                raise DeviceError(
                    f"camera {self.info.name!r} has no {'depth' if kind == rs.stream.depth else 'colour'} pictures of "
                    f"{wanted[0]}x{wanted[1]} at {wanted[2]} Hz; valid: {valid} (USB 2 has fewer)"
                )


class RealSenseFile:
    """Replay, see ``RealSenseFileConfig``."""

    def __init__(self, name: str, config: RealSenseFileConfig) -> None:
        self.info = CameraInfo(name, 0, 0, 0.0, config.depth)
        self._config = config
        self._stream: _Stream | None = None
        self._ended = False

    def connect(self) -> None:
        rs = import_realsense()
        self.close()
        path = self._config.path
        if self._ended:
            raise DeviceGoneError(f"camera {self.info.name!r}: {path} is at its end; repeat: true begins again")
        if path.suffix not in (".db3", ".bag") or not path.is_file():
            raise DeviceError(f"camera {self.info.name!r}: {path} is no recording; valid: a file .db3 or .bag")
        with _errors(self.info.name, f"{path} cannot be replayed: is it a recording of a RealSense?"):
            wanted = rs.config()
            wanted.enable_device_from_file(str(path), self._config.repeat)
            self._stream = _Stream(rs, self.info.name, rs.pipeline(), wanted, depth=self._config.depth)
        self.info = self._stream.info

    def read(self) -> Frame:
        if self._stream is None:
            raise DeviceError(f"camera {self.info.name!r} is not connected; call connect first")
        try:
            return self._stream.read(READ_MS)
        except DeviceTimeoutError:
            if not self._stream.is_at_end():
                raise
            self._ended = True
            raise DeviceGoneError(f"camera {self.info.name!r}: {self._config.path} is at its end") from None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None


class _Stream:
    """A pipeline that runs."""

    def __init__(self, rs: Any, name: str, pipeline: Any, config: Any, *, depth: bool = True) -> None:
        self._rs, self._name, self._pipeline = rs, name, pipeline
        self._profile = pipeline.start(config)
        streams = {stream.stream_type(): stream.as_video_stream_profile() for stream in self._profile.get_streams()}
        if rs.stream.color not in streams:
            self.close()
            raise DeviceError(f"camera {name!r} has no colour pictures")
        colour = streams[rs.stream.color]
        has_depth = depth and rs.stream.depth in streams
        self._align = rs.align(rs.stream.color) if has_depth else None
        self._clock = DeviceClock()
        self._number = -1
        self._wall_offset_ns = wall_offset_ns()
        lens = colour.get_intrinsics()
        self.info = CameraInfo(
            name,
            colour.width(),
            colour.height(),
            colour.fps(),
            has_depth,
            matrix=np.array([[lens.fx, 0, lens.ppx], [0, lens.fy, lens.ppy], [0, 0, 1]]),
            distortion=np.array(lens.coeffs, np.float64),
            depth_m=_depth_unit(rs, self._profile.get_device()) if has_depth else 0.001,
        )

    def warm_up(self, frames: int, deadline_ns: int) -> None:
        for _ in range(frames + 1):
            self.read(max(1, min(FIRST_FRAME_MS, (deadline_ns - now_ns()) // 1_000_000)))

    def read(self, timeout_ms: int) -> Frame:
        """Raises DeviceTimeoutError, also when what comes is without colour."""
        deadline_ns = now_ns() + timeout_ms * 1_000_000
        while (left_ms := (deadline_ns - now_ns()) // 1_000_000) > 0:
            with _errors(self._name):
                there, frames = self._pipeline.try_wait_for_frames(int(left_ms))
                frame = self._frame(frames, now_ns()) if there else None
            if frame is not None:
                return frame
        raise DeviceTimeoutError(f"camera {self._name!r} sent no frame within {timeout_ms / 1000:g} s; check its cable")

    def _frame(self, frames: Any, received_ns: int) -> Frame | None:
        """None where there is no new colour picture."""
        colour = frames.get_color_frame()
        if not colour or colour.frame_number == self._number:  # the same again, with another depth picture
            return None
        self._number = colour.frame_number
        depth = None
        if self._align is not None and frames.get_depth_frame():
            depth = np.array(self._align.process(frames).get_depth_frame().get_data())
        return Frame(self._capture_ns(colour, received_ns), received_ns, self._number, _pixels(colour), depth)

    def device_is_connected(self) -> bool:
        with _errors(self._name):
            return bool(self._profile.get_device().is_connected())

    def is_at_end(self) -> bool:
        """Of a recording."""
        with _errors(self._name):
            playback = self._profile.get_device().as_playback()
            return playback.current_status() == self._rs.playback_status.stopped

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # it was unplugged
            self._pipeline.stop()

    def _capture_ns(self, frame: Any, received_ns: int) -> int:
        stamp_ns = round(frame.get_timestamp() * 1e6)
        middle, end = self._rs.frame_metadata_value.sensor_timestamp, self._rs.frame_metadata_value.frame_timestamp
        if frame.supports_frame_metadata(middle) and frame.supports_frame_metadata(end):
            since_us = (frame.get_frame_metadata(end) - frame.get_frame_metadata(middle)) % 2**32
            stamp_ns -= since_us * 1000 if since_us < 1_000_000 else 0
        if frame.get_frame_timestamp_domain() != self._rs.timestamp_domain.hardware_clock:
            capture_ns = stamp_ns - self._wall_offset_ns
            if received_ns - SECOND_NS < capture_ns <= received_ns:
                return capture_ns
        return self._clock.map(stamp_ns, received_ns)


def list_realsense(context: Any = None) -> list[tuple[str, str]]:
    """(serial number, name) of each that is connected.

    Raises:
        DeviceError: the SDK is missing, or may not open a device.
    """
    rs = import_realsense()
    with _errors("realsense"):
        return [
            (device.get_info(rs.camera_info.serial_number), device.get_info(rs.camera_info.name))
            for device in (context or rs.context()).query_devices()
        ]


@contextlib.contextmanager
def _errors(name: str, hint: str = _PERMISSION) -> Iterator[None]:
    """What librealsense says as a DeviceError."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceError(f"camera {name!r}: librealsense says: {' '.join(str(error).split())}; {hint}") from None


def _colour_sensor(rs: Any, device: Any) -> Any:
    """By its streams: the D405 takes its colour pictures with the stereo module."""
    for sensor in device.query_sensors():
        if any(profile.stream_type() == rs.stream.color for profile in sensor.get_stream_profiles()):
            return sensor
    raise DeviceError(f"the RealSense {device.get_info(rs.camera_info.name)} has no colour sensor")


def _set_picture(rs: Any, name: str, sensor: Any, config: RealSenseConfig) -> None:
    # In units of 100 us on a colour sensor (as UVC has it), of 1 us on a stereo module.
    stereo = any(profile.stream_type() == rs.stream.depth for profile in sensor.get_stream_profiles())
    unit = 0.001 if stereo else 0.1
    exposure, gain, white_k = config.exposure_ms, config.gain, config.white_balance_k

    def put(setting: str, option: str, value: float, unit: float = 1.0) -> None:
        number = getattr(rs.option, option)
        if not sensor.supports(number):
            has = [key for key in rs.option.__members__ if sensor.supports(getattr(rs.option, key))]
            raise DeviceError(f"camera {name!r} has no setting {option!r} for {setting}; it has: {', '.join(has)}")
        limits = sensor.get_option_range(number)
        if not limits.min <= value / unit <= limits.max:
            raise DeviceError(
                f"camera {name!r}: {setting} must be {limits.min * unit:g} to {limits.max * unit:g}, not {value:g}"
            )
        sensor.set_option(number, limits.min + round((value / unit - limits.min) / limits.step) * limits.step)

    fixed = [
        (setting, option, float(value), scale)
        for setting, option, value, scale in (("exposure_ms", "exposure", exposure, unit), ("gain", "gain", gain, 1.0))
        if isinstance(value, int | float)
    ]
    if fixed or "auto" in (exposure, gain):
        put("exposure_ms", "enable_auto_exposure", float(not fixed))
    for values in fixed:
        put(*values)
    if white_k is not None:
        put("white_balance_k", "enable_auto_white_balance", float(white_k == "auto"))
    if isinstance(white_k, int | float):
        put("white_balance_k", "white_balance", white_k)


def _depth_unit(rs: Any, device: Any) -> float:
    for sensor in device.query_sensors():
        if sensor.supports(rs.option.depth_units):
            return float(sensor.get_option(rs.option.depth_units))
    return 0.001


def _pixels(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB, the caller's own: frames that are kept would starve librealsense."""
    pixels = np.asanyarray(frame.get_data())
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise DeviceError("the colour pictures are not RGB; record them with rs.format.rgb8")
    return pixels.copy()
