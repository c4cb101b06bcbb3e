"""A virtual RealSense inside librealsense: the pictures come from the twin's process, and the process that opens the
camera has a ``software_device`` in its context, which the ordinary pipeline opens like one on a USB port."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from robolearn_hardware.cameras.sdk import import_realsense
from robolearn_hardware.clock import now_ns
from robolearn_hardware.device_clock import wall_offset_ns
from robolearn_hardware.devices import DeviceError
from robolearn_hardware.ring import Ring, RingHandle
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.pictures import Feed, Pictures, PictureSpec, TwinFrame

ADDRESS = "twin:"
FAULTS = Feed.FAULTS | {"unplugged"}
OPTIONS = {
    "exposure": (1, 10000, 1, 166),  # units of 100 us, as the colour sensor of a D435
    "gain": (0, 128, 1, 64),
    "white_balance": (2800, 6500, 10, 4600),
    "enable_auto_exposure": (0, 1, 1, 1),
    "enable_auto_white_balance": (0, 1, 1, 1),
}
"""Name in ``rs.option`` -> least, greatest, step, default."""

_HALF_EXPOSURE_NS = 4_000_000
"""The device stamps a frame at the end of its exposure, and says in the metadata when its middle was."""

_MESSAGE = struct.Struct("<q?")
"""Index in the ring (-1: no picture), plugged in."""


@dataclass(frozen=True)
class VirtualDevice:
    """What the camera's process must know of the twin."""

    serial: str
    width: int
    height: int
    rate_hz: int
    focal_px: float
    depth_offset_m: float
    options: tuple[str, ...] = tuple(OPTIONS)


class RealSenseTwin:
    """Takes the pictures, and tells every ``VirtualContext`` that reaches ``address`` of each.

    Its frames carry times of a clock of their own, which drifts ("hardware"), or the wall clock's ("global"), as those
    of a D400 do without and with librealsense's global time.
    """

    def __init__(
        self,
        pictures: Callable[[], Pictures],
        spec: PictureSpec,
        rate_hz: float,
        *,
        clock: str = "hardware",
        drift_ppm: float = 40.0,
        options: tuple[str, ...] = tuple(OPTIONS),
    ) -> None:
        serial = f"twin-{spec.name}"
        self._device = VirtualDevice(
            serial, spec.width, spec.height, round(rate_hz), spec.focal_px, spec.depth_offset_m, options
        )
        self._start_ns, self._wall_offset_ns = now_ns(), wall_offset_ns()
        self._clock, self._drift = clock, 1 + drift_ppm * 1e-6
        h, w = spec.height, spec.width
        self._ring = Ring.create(
            {
                "number": ("int64", ()),
                "stamp_ms": ("float64", ()),
                "wall": ("bool", ()),
                "colour": ("uint8", (h, w, 3)),
                "depth": ("uint16", (h, w)),
            },
            8,
        )
        self._feed = Feed(pictures, rate_hz, self._emit)
        self._clients: list[socket.socket] = []
        self._lock = threading.Lock()
        self._server = socket.socket(socket.AF_UNIX)
        name = f"robolearn-realsense-{os.getpid()}-{secrets.token_hex(4)}"
        self._server.bind("\0" + name)  # abstract: no file is left behind
        self._server.listen()
        self.address = ADDRESS + name

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()
        self._feed.start()

    def fault(self, faults: Faults) -> None:
        faults.check("a RealSense", FAULTS)
        self._feed.faults = faults
        self._tell(-1)

    def observe(self) -> dict[str, Any]:
        """As ``Feed.observe``."""
        return self._feed.observe()

    def close(self) -> None:
        self._feed.close()
        self._server.close()
        for client in self._clients:
            client.close()
        self._ring.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:  # closed
                return
            client.settimeout(0.05)  # who does not take its messages is not waited for
            with self._lock, contextlib.suppress(OSError):
                client.sendall(json.dumps([asdict(self._device), asdict(self._ring.handle)]).encode() + b"\n")
                client.sendall(_MESSAGE.pack(-1, not self._feed.faults.unplugged))
                self._clients.append(client)

    def _emit(self, frame: TwinFrame) -> None:
        stamp_ns = frame.capture_ns + _HALF_EXPOSURE_NS
        if self._clock == "global":
            stamp_ns += self._wall_offset_ns
        else:
            stamp_ns = round((stamp_ns - self._start_ns) * self._drift)
        index = self._ring.publish(
            {
                "number": frame.number,
                "stamp_ms": stamp_ns / 1e6,
                "wall": self._clock == "global",
                "colour": frame.colour,
                "depth": frame.depth,
            }
        )
        self._tell(index)

    def _tell(self, index: int) -> None:
        plugged = not self._feed.faults.unplugged
        with self._lock:
            for client in list(self._clients):
                try:
                    client.sendall(_MESSAGE.pack(index if plugged else -1, plugged))
                except OSError:
                    self._clients.remove(client)
                    client.close()


class VirtualContext:
    """An ``rs.context`` in which the devices of twins come and go as they are plugged in."""

    def __init__(self, *addresses: str) -> None:
        """``addresses`` of RealSenseTwins. Raises DeviceError when one does not answer within 2 s."""
        rs = import_realsense()
        self.context = rs.context('{"dds":{"enabled":false}}')
        self._strong: list[Any] = []
        """The context itself keeps only weak references to software devices."""
        self.context.set_devices_changed_callback(lambda event: self._strong.append(event.get_new_devices()))
        self._links = [_Link(self, address) for address in addresses]
        self.serials = [link.device.serial for link in self._links]

    def add(self, device: Any) -> None:
        known = len(self._strong)
        device.add_to(self.context)
        for _ in range(200):  # the callback comes from another thread
            if len(self._strong) > known:
                return
            time.sleep(0.01)

    def forget(self, device: Any) -> None:
        """Let go of what keeps a device in the context."""
        serial = _serial(device)
        self._strong = [found for found in self._strong if all(_serial(one) != serial for one in found)]

    def close(self) -> None:
        for link in self._links:
            link.close()
        self._strong.clear()


class _Link:
    """From one twin to its software device here."""

    def __init__(self, context: VirtualContext, address: str) -> None:
        self._context = context
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(2.0)
        try:
            self._socket.connect("\0" + address.removeprefix(ADDRESS))
            self._stream = self._socket.makefile("rb")
            hello = self._stream.readline()
        except OSError as error:
            raise DeviceError(f"the twin at {address!r} does not answer: {error}") from None
        device, handle = json.loads(hello)
        self.device = VirtualDevice(**device)
        fields = {name: (dtype, tuple(shape)) for name, (dtype, shape) in handle.pop("fields").items()}
        self._ring = Ring.attach(RingHandle(fields=fields, **handle))
        self._plugged: _SoftwareCamera | None = None
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"twin {self.device.serial}", daemon=True)
        self._thread.start()
        self._first.wait(2.0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(2.0)
        self._stream.close()
        self._socket.close()
        self._ring.close()

    def _run(self) -> None:
        self._socket.settimeout(None)
        while message := self._read():
            index, plugged = _MESSAGE.unpack(message)
            if plugged and self._plugged is None:
                self._plugged = _SoftwareCamera(self.device)
                self._context.add(self._plugged.device)
            elif not plugged and self._plugged is not None:
                self._unplug()
            self._first.set()
            record = self._ring.read(index) if index >= 0 else None
            if record is not None and self._plugged is not None:
                self._plugged.push(record)
        self._unplug()

    def _read(self) -> bytes:
        """The next message; nothing when the twin has gone."""
        try:
            message = self._stream.read(_MESSAGE.size)
        except (OSError, ValueError):
            return b""
        return message if len(message) == _MESSAGE.size else b""

    def _unplug(self) -> None:
        if self._plugged is not None:
            self._context.forget(self._plugged.device)
            self._plugged = None


class _SoftwareCamera:
    """A D435 as far as a pipeline can tell: a depth and a colour stream, intrinsics, extrinsics and options."""

    def __init__(self, spec: VirtualDevice) -> None:
        self._rs = rs = import_realsense()
        self.device = rs.software_device()
        for key, value in (
            (rs.camera_info.name, "Virtual D435"),
            (rs.camera_info.serial_number, spec.serial),
            (rs.camera_info.product_line, "D400"),
        ):
            self.device.register_info(key, value)
        intrinsics = rs.intrinsics()
        intrinsics.width, intrinsics.height = spec.width, spec.height
        intrinsics.fx = intrinsics.fy = spec.focal_px
        intrinsics.ppx, intrinsics.ppy = spec.width / 2, spec.height / 2
        intrinsics.model, intrinsics.coeffs = rs.distortion.brown_conrady, [0.0] * 5
        streams = (
            ("Stereo Module", rs.stream.depth, rs.format.z16, 2),
            ("RGB Camera", rs.stream.color, rs.format.rgb8, 3),
        )
        self._sensors = []
        for uid, (name, kind, pixel, size) in enumerate(streams):
            sensor, video = self.device.add_sensor(name), rs.video_stream()
            video.type, video.index, video.uid, video.fmt, video.bpp = kind, 0, uid, pixel, size
            video.width, video.height, video.fps, video.intrinsics = spec.width, spec.height, spec.rate_hz, intrinsics
            profile = sensor.add_video_stream(video, True).as_video_stream_profile()
            self._sensors.append((sensor, profile, size))
        (depth, depth_profile, _), (colour, colour_profile, _) = self._sensors
        depth.add_read_only_option(rs.option.depth_units, 0.001)
        for name in spec.options:
            limits = rs.option_range()
            limits.min, limits.max, limits.step, limits.default = OPTIONS[name]
            colour.add_option(getattr(rs.option, name), limits, True)
            colour.set_option(getattr(rs.option, name), limits.default)
        place = rs.extrinsics()
        place.rotation, place.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [-spec.depth_offset_m, 0, 0]
        depth_profile.register_extrinsics_to(colour_profile, place)
        self.device.create_matcher(rs.matchers.default)

    def push(self, record: Any) -> None:
        rs = self._rs
        stamp_us = round(float(record["stamp_ms"]) * 1000)
        for (sensor, profile, size), pixels in zip(self._sensors, (record["depth"], record["colour"]), strict=True):
            sensor.set_metadata(rs.frame_metadata_value.frame_timestamp, stamp_us)
            sensor.set_metadata(rs.frame_metadata_value.sensor_timestamp, stamp_us - _HALF_EXPOSURE_NS // 1000)
            frame = rs.software_video_frame()
            frame.pixels, frame.bpp, frame.stride = pixels, size, pixels.shape[1] * size
            frame.timestamp, frame.frame_number = float(record["stamp_ms"]), int(record["number"])
            wall = bool(record["wall"])
            frame.domain = rs.timestamp_domain.global_time if wall else rs.timestamp_domain.hardware_clock
            frame.profile, frame.depth_units = profile, 0.001
            sensor.on_video_frame(frame)


def _serial(device: Any) -> str:
    return device.get_info(import_realsense().camera_info.serial_number)
