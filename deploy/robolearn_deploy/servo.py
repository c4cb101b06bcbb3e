"""The parent's end of the servo process: starts it, hears which arms there are, gives it its rings, ends it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.realtime import Realtime
from robolearn_deploy.rig_streams import RigLayout
from robolearn_deploy.servo_process import END_S, ServoHandles, run_servo
from robolearn_deploy.starting import POLL_S, START_S
from robolearn_hardware.devices import DeviceError
from robolearn_hardware.rig import Rig


class ServoProcess:
    """Connects the arms of ``rig`` in a process of its own. Use it as a context manager: at its end the arms rest."""

    layout: RigLayout
    rate_hz: float
    start: np.ndarray
    """(N,) where the arms were when they were connected."""
    measures_force: bool
    granted: Realtime

    def __init__(self, rig: Rig, options: ServoOptions, idle: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            idle: is called while the process is waited for, see ``starting.Starting``.

        Raises:
            DeviceError: an arm cannot be connected, as its driver says, or not in time.
        """
        self._idle = idle
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(rig, options, theirs), name="servo")
        self._process.start()
        theirs.close()
        try:
            self.layout, self.rate_hz, self.start, self.measures_force = self._answer("arms")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def failure(self) -> str:
        """Why it is no more, in one line; empty while it runs and when it ended well."""
        if self.running or self._process.exitcode == 0:
            return ""
        with contextlib.suppress(EOFError, OSError):
            while self._pipe.poll():
                kind, text = self._pipe.recv()
                if kind == "error":
                    return f"the servo process failed: {text}"
        return f"the servo process ended with code {self._process.exitcode}; the arms hold their last target"

    def begin(self, handles: ServoHandles) -> None:
        """Give it the rings; from here on it ticks. Raises DeviceError."""
        self._pipe.send(handles)
        self.granted = self._answer("ready")

    def close(self) -> None:
        """Wait until it has brought the arms to rest (tell it ``Command.END`` before), kill it if it does not. May be
        called twice."""
        self._pipe.close()
        self._process.join(END_S + 5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> ServoProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, kind: str) -> Any:
        end = time.monotonic() + START_S
        try:
            while not self._pipe.poll(POLL_S):
                self._idle()
                if time.monotonic() > end:
                    raise DeviceError(f"the arms are not connected after {START_S:g} s; is the machine overloaded?")
            found, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise DeviceError(
                f"the servo process ended before it was ready (exit code {self._process.exitcode})"
            ) from None
        if found != kind:
            raise DeviceError(value)
        return value


def _run(rig: Rig, options: ServoOptions, pipe: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides in which order processes end
        signal.signal(number, signal.SIG_IGN)
    run_servo(rig, options, pipe)
