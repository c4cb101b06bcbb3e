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
        deadline_ns = now_ns() + round(CONNECT_S * SECOND_NS)
        self._session = _Session(self.info.name, self._make())
        try:
            self.info = self._session.wait_open(deadline_ns)
            for _ in range(self._warmup_frames + 1):
                self._session.read(deadline_ns)
        except DeviceError:
            self.close()
            raise

    def read(self) -> Frame:
        if self._session is None:
            raise DeviceError(f"camera {self.info.name!r} is not connected; call connect first")
        return self._session.read(now_ns() + round(READ_S * SECOND_NS))

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None


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

    def wait_open(self, deadline_ns: int) -> CameraInfo:
        self._wait(lambda: self._info is not None, deadline_ns, "is not open")
        assert self._info is not None
        return self._info

    def read(self, deadline_ns: int) -> Frame:
        """The newest picture that was not read before."""
        while True:
            self._wait(lambda: self._newest is not None, deadline_ns, "sends no picture")
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

    def _wait(self, what: Callable[[], bool], deadline_ns: int, failure: str) -> None:
        start_ns = now_ns()
        with self._changed:
            done = self._changed.wait_for(lambda: what() or self._error, max(0, deadline_ns - start_ns) / SECOND_NS)
            if what():
                return
            if self._error is not None:
                raise self._error
        assert not done
        seconds = (deadline_ns - start_ns) / SECOND_NS
        raise DeviceTimeoutError(f"camera {self._name!r} {failure} within {seconds:.1f} s; is it overloaded or stuck?")

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
            self._error = error
            self._changed.notify_all()
