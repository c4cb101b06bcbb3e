"""A video file as a camera: for trying out without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from robolearn_hardware.cameras.reader import Picture, ThreadedCamera
from robolearn_hardware.cameras.rtsp import decoded, time_ns
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import Camera, CameraInfo, DeviceError, DeviceGoneError
from robolearn_hardware.twins.host import Twins


@dataclass(frozen=True)
class VideoConfig:
    """Plays a file (whatever FFmpeg reads) at its own speed. Size and rate are those of the file."""

    path: Path
    repeat: bool = True
    """Begin again at the end; otherwise it is an error then."""

    def open(self, name: str) -> Camera:
        ended = threading.Event()
        return ThreadedCamera(CameraInfo(name, 0, 0, 0.0), partial(_File, name, self, ended))

    def with_twin(self, name: str, twins: Twins) -> Self:
        return self


class _File:
    """The source of ``ThreadedCamera``."""

    def __init__(self, name: str, config: VideoConfig, ended: threading.Event) -> None:
        """``ended`` outlives this: a file that is at its end stays there when the camera is connected again."""
        self._name, self._config, self._ended = name, config, ended
        self._interrupted = threading.Event()
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._start_ns = 0
        """When the frame of time 0 is due."""

    def open(self) -> CameraInfo:
        self._begin()
        video = self._container.streams.video[0]
        rate = float(video.average_rate or 30)
        return CameraInfo(self._name, video.codec_context.width, video.codec_context.height, rate)

    def _begin(self) -> None:
        import av
        from av.error import FFmpegError

        path = self._config.path
        if self._ended.is_set():
            raise DeviceGoneError(f"camera {self._name!r}: {path} is at its end; repeat: true begins again")
        self.close()
        try:
            self._container = av.open(str(path))
            self._frames = decoded(self._container, self._container.streams.video[0])
        except (FFmpegError, IndexError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DeviceError(f"camera {self._name!r}: {path} cannot be played: {reason}; is it a video?") from None
        self._start_ns = now_ns()

    def fetch(self) -> Picture | None:
        try:
            frame = next(self._frames)
        except StopIteration:
            if not self._config.repeat:
                self._ended.set()
            self._begin()
            frame = next(self._frames, None)
        if frame is None or frame.pts is None:
            return None
        due_ns = self._start_ns + time_ns(frame)
        self._interrupted.wait(max(0, due_ns - now_ns()) / SECOND_NS)
        return Picture(due_ns, now_ns(), frame)

    def decode(self, data: Any) -> np.ndarray | None:
        return data.to_ndarray(format="rgb24")

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
