"""Network cameras that stream by RTSP, and whatever else FFmpeg opens by a URL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from robolearn_hardware.cameras.calibration_file import with_lens
from robolearn_hardware.cameras.reader import Picture, ThreadedCamera
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.device_clock import DeviceClock
from robolearn_hardware.devices import Camera, CameraInfo, DeviceError, DeviceGoneError, DeviceTimeoutError
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.pictures import PictureSpec, make_pictures
from robolearn_hardware.twins.rtsp import RtspTwin

_OPEN_S, _SILENCE_S = 8.0, 3.0


@dataclass(frozen=True)
class RtspConfig:
    """An RTSP stream. The capture time is the camera's own (its RTP clock), mapped by ``DeviceClock``: the jitter of
    encoder and network is taken out. What they always need is a latency to be measured; FFmpeg adds one frame, because
    it knows the end of a frame by the beginning of the next."""

    url: str
    """rtsp://host:port/path, rtsp://user:password@host/path; or twin"""
    width: int = 640
    height: int = 480
    """What the camera sends; it is not scaled."""
    rate_hz: float = 30.0
    transport: Literal["tcp", "udp"] = "tcp"
    calibration: Path | None = None
    """What `robolearn calibrate` has written: the lens."""
    pictures: str = "pattern"
    """What its twin sees, see ``twins.pictures``."""

    def open(self, name: str) -> Camera:
        info = with_lens(CameraInfo(name, self.width, self.height, self.rate_hz), self.calibration)
        return ThreadedCamera(info, partial(_Stream, self, info))

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.url != "twin":
            return self
        spec = PictureSpec(name, self.width, self.height, 0.9 * self.width)
        make = partial(RtspTwin, partial(make_pictures, self.pictures, spec), self.rate_hz)
        return replace(self, url=twins.start(name, make).address)


class _Stream:
    """The source of ``ThreadedCamera``."""

    def __init__(self, config: RtspConfig, info: CameraInfo) -> None:
        self._config, self._info = config, info
        self._where = f"camera {info.name!r} at {config.url.split('@')[-1]}"
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._clock = DeviceClock()

    def open(self) -> CameraInfo:
        import av
        from av.codec.context import Flags
        from av.error import FFmpegError

        options = {"rtsp_transport": self._config.transport, "fflags": "nobuffer", "max_delay": "0"}
        try:
            self._container = av.open(self._config.url, options=options, timeout=(_OPEN_S, _SILENCE_S))
            stream = self._container.streams.video[0]
        except (FFmpegError, IndexError) as error:
            raise DeviceGoneError(
                f"{self._where} is not reached, or sends no video: {_reason(error)}; is it on, and the URL right?"
            ) from None
        if not stream.codec_context.width:
            raise DeviceTimeoutError(f"{self._where} sends no picture that can be decoded within {_OPEN_S:g} s")
        check_size(self._where, stream.codec_context, self._info)
        stream.codec_context.flags |= Flags.low_delay  # no frame waits for one that is to be shown before it
        self._frames = decoded(self._container, stream)
        return self._info

    def fetch(self) -> Picture | None:
        from av.error import ExitError, FFmpegError

        try:
            frame = next(self._frames)
        except StopIteration:
            raise DeviceGoneError(f"{self._where} has ended the stream") from None
        except FFmpegError as error:
            if isinstance(error, ExitError | TimeoutError):
                raise DeviceTimeoutError(f"{self._where} sent nothing for {_SILENCE_S:g} s") from None
            raise DeviceGoneError(f"{self._where} has broken off: {_reason(error)}") from None
        if frame is None:
            return None
        received_ns = now_ns()
        if frame.pts is None:
            return Picture(received_ns, received_ns, frame)
        return Picture(self._clock.map(time_ns(frame), received_ns), received_ns, frame)

    def decode(self, data: Any) -> np.ndarray | None:
        return data.to_ndarray(format="rgb24")

    def interrupt(self) -> None:
        pass  # FFmpeg ends by its own deadlines

    def close(self) -> None:
        if self._container is not None:
            self._container.close()


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Every frame of a video stream; None for packets that cannot be decoded."""
    from av.error import FFmpegError

    stream.codec_context.thread_count = 1  # several would hold frames back, and outlive the stream
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except FFmpegError:
            yield None
            continue
        yield from frames


def time_ns(frame: Any) -> int:
    """Presentation time, by the stream's clock."""
    return round(Fraction(frame.pts) * frame.time_base * SECOND_NS)


def check_size(where: str, found: Any, info: CameraInfo) -> None:
    """Raise DeviceError where pictures are of another size than the rig says."""
    if (found.width, found.height) != (info.width, info.height):
        raise DeviceError(
            f"{where} sends pictures of {found.width}x{found.height}, not {info.width}x{info.height}; set width and "
            "height to what it sends, or the camera to what is wanted"
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
