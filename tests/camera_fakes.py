"""What tests of cameras share: a camera made of nothing, whose pictures come as fast as a test wants, and waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robolearn_hardware.cameras.process import CameraProcess
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Camera, CameraInfo, DeviceError, Frame
from robolearn_hardware.twins.host import Twins

LONG_S = 30.0
"""On a machine with much else to do."""


def wait_until(what: Callable[[], bool], seconds: float = LONG_S) -> None:
    """Return as soon as ``what`` holds, and fail when it does not by then."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def wait_frames(camera: CameraProcess, number: int) -> None:
    """Until so many more have come."""
    last = camera.ring.count + number
    wait_until(lambda: camera.ring.count >= last)


@dataclass(frozen=True)
class FakeConfig:
    """Pictures in which every byte is the frame's number, modulo 251."""

    width: int = 320
    height: int = 240
    hang: str = ""
    """"connect" or "read": it never returns."""
    refuse: str = ""
    """It cannot be opened, and says so."""
    grows_at: int = 0
    """From this frame on pictures are larger."""

    def open(self, name: str) -> Camera:
        return FakeCamera(name, self)

    def with_twin(self, name: str, twins: Twins) -> FakeConfig:
        return self


class FakeCamera:
    def __init__(self, name: str, config: FakeConfig) -> None:
        self.info = CameraInfo(name, config.width, config.height, 100.0, has_depth=True)
        self._config = config
        self._number = 0

    def connect(self) -> None:
        if self._config.refuse:
            raise DeviceError(self._config.refuse)
        while self._config.hang == "connect":
            time.sleep(1)

    def read(self) -> Frame:
        while self._config.hang == "read":
            time.sleep(1)
        self._number += 1
        grown = bool(self._config.grows_at) and self._number >= self._config.grows_at
        shape = (self.info.height + grown, self.info.width)
        value, now = self._number % 251, now_ns()
        return Frame(now, now, self._number, np.full((*shape, 3), value, np.uint8), np.full(shape, value, np.uint16))

    def close(self) -> None:
        pass
