"""A camera whose library may block for longer than a driver may: it is used in a thread, and the driver waits with a
deadline. The thread takes every frame, so that none grows old in a buffer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import CameraInfo, DeviceError, DeviceTimeoutError, Frame

_LOG = logging.getLogger(__name__)

CONNECT_S = 10.0
READ_S = 1.0
"""What the contract of cameras allows."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A frame as a source gives it."""

    capture_ns: int
    received_ns: int
    data: Any
    """What the source's ``decode`` takes: all are fetched, and only those that somebody reads are decoded."""


class Source(Protocol):
    """Opened, fetched from and closed by one thread. Errors of its library become DeviceErrors here."""

    def open(self) -> CameraInfo: ...

    def fetch(self) -> Picture | None:
        """The next one; None where one was lost or broken. May block."""
        ...

    def decode(self, data: Any) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB; None where it is broken. In the driver's thread."""
        ...

    def interrupt(self) -> None:
        """Let ``open`` or ``fetch`` return soon, where that is possible. From another thread."""
        ...

    def close(self) -> None: ...


class ThreadedCamera:
    """A ``Camera`` that reads a source."""

    def __init__(self, info: CameraInfo, make: Callable[[], Source], *, warmup_frames: int = 0) -> None:
        """
        Args:
            info: as far as it is known now.
            make: a new source, for every time that it is opened.
            warmup_frames: left out after opening, while exposure and white balance settle.
        """
        self.info = info
        self._make = make
        self._warmup_frames = warmup_frames
        self._session: _Session | None = None

    def connect(self) -> None:
        self.close()
        deadline = _Deadline(CONNECT_S)
        self._session = _Session(self.info.name, self._make())
        try:
            self.info = self._session.wait_open(deadline)
            for _ in range(self._warmup_frames + 1):
                self._session.read(deadline)
        except DeviceError:
            self.close()
            raise

    def read(self) -> Frame:
        if self._session is None:
            raise DeviceError(f"camera {self.info.name!r} is not connected; call connect first")
        return self._session.read(_Deadline(READ_S))

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._at_ns = now_ns() + round(seconds * SECOND_NS)

    def left_s(self) -> float:
        return max(0, self._at_ns - now_ns()) / SECOND_NS


class _Session:
    """One connection: a source, its thread, and the newest picture. A thread that hangs is left behind with it."""

    def __init__(self, name: str, source: Source) -> None:
        self._name = name
        self._source = source
        self._changed = threading.Condition()
        self._info: CameraInfo | None = None
        self._newest: tuple[int, Picture] | None = None
        self._error: DeviceError | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"source of {name}", daemon=True)
        self._thread.start()

    def wait_open(self, deadline: _Deadline) -> CameraInfo:
        self._wait(lambda: self._info is not None, deadline, "is not open")
        assert self._info is not None
        return self._info

    def read(self, deadline: _Deadline) -> Frame:
        """The newest picture that was not read before."""
        while True:
            self._wait(lambda: self._newest is not None, deadline, "sends no picture that is whole")
            with self._changed:
                assert self._newest is not None
                (number, picture), self._newest = self._newest, None
            colour = self._source.decode(picture.data)
            if colour is not None:
                return Frame(picture.capture_ns, picture.received_ns, number, colour)

    def close(self) -> None:
        with self._changed:
            self._ended = True
        self._source.interrupt()
        self._thread.join(1.0)

    def _wait(self, what: Callable[[], bool], deadline: _Deadline, failure: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: what() or self._error, deadline.left_s())
            if what():
                return
            if self._error is not None:
                raise type(self._error)(*self._error.args)
        raise DeviceTimeoutError(
            f"camera {self._name!r} {failure} within {deadline.seconds:g} s; is it overloaded or stuck?"
        )

    def _run(self) -> None:
        number = 0
        try:
            info = self._source.open()
            with self._changed:
                self._info = info
                self._changed.notify_all()
            while not self._ended:
                picture = self._source.fetch()
                number += 1
                if picture is not None:
                    with self._changed:
                        self._newest = (number, picture)
                        self._changed.notify_all()
        except DeviceError as error:
            self._fail(error)
        except Exception as error:  # of a library: whoever waits must hear of it
            if not self._ended:
                _LOG.exception("camera %r", self._name)
            self._fail(DeviceError(f"camera {self._name!r}: {type(error).__name__}: {error}"))
        finally:
            self._source.close()

    def _fail(self, error: DeviceError) -> None:
        with self._changed:
            # A copy, and a copy of it for whoever reads: a traceback would keep the source, and its library's threads.
            self._error = type(error)(*error.args)
            self._changed.notify_all()
