"""The twin of a SpaceMouse: reports through a FIFO whose writes stay packets (O_DIRECT), as those of hidraw are."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import struct
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns
from robolearn_hardware.twins.faults import Faults

_FULL = 350.0
_RATE_HZ = 62.5
_POSSIBLE = frozenset({"frozen", "unplugged"})


class SpaceMouseTwin:
    """See ``TwinServer``. Reports at 62.5 Hz while its cap is out of the middle, and once when it comes back there.

    By default somebody pushes the cap slowly to and fro; ``push`` says otherwise. ``observe``: "axes" (6,), "buttons".
    """

    def __init__(self, *, hand_hz: float = 0.1, together: bool = False) -> None:
        """``together``: one report for translation and rotation, as newer models send them."""
        self._hand, self._together = hand_hz, together
        self._folder = tempfile.TemporaryDirectory(prefix="robolearn-twin-")
        self.address = str(Path(self._folder.name) / "hidraw0")
        self._axes, self._buttons = np.zeros(6), 0
        self._faults, self._fd = Faults(), -1
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="spacemouse", daemon=True)
        self._plug()

    def start(self) -> None:
        self._thread.start()

    def push(self, axes: Sequence[float], buttons: int = 0) -> int:
        """Hold the cap and the buttons like that from now on, and report it at once. Returns when (ns).

        Args:
            axes: (6,) -1..1 of the device: right, towards the person, down, and about these.
        """
        with self._lock:
            self._hand = 0.0
            pressed, self._buttons = self._buttons != buttons, buttons
            self._axes = np.array(axes, np.float64)
            at_ns = now_ns()
            if pressed:
                self._report(b"\x03" + struct.pack("<H", buttons))
            self._report_axes()
            return at_ns

    def fault(self, faults: Faults) -> None:
        faults.check("a SpaceMouse", _POSSIBLE)
        with self._lock:
            self._faults = faults
            if faults.unplugged:
                self._unplug()
            elif self._fd < 0:
                self._plug()

    def observe(self) -> dict[str, Any]:
        with self._lock:
            return {"axes": self._axes.copy(), "buttons": self._buttons}

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2)
        with self._lock:
            self._unplug()
        self._folder.cleanup()

    def _serve(self) -> None:
        due, moved = now_ns(), False
        while not self._closing.is_set():
            due = max(due + period_ns(_RATE_HZ), now_ns())
            wait_until_ns(due)
            with self._lock:
                if self._hand:
                    self._axes[1] = -0.5 * math.sin(2 * math.pi * self._hand * due / 1e9)
                if self._axes.any() or moved:
                    self._report_axes()
                moved = bool(self._axes.any())

    def _report_axes(self) -> None:
        values = np.rint(self._axes * _FULL).astype("<i2")
        if self._together:
            self._report(b"\x01" + values.tobytes())
        else:
            self._report(b"\x01" + values[:3].tobytes())
            self._report(b"\x02" + values[3:].tobytes())

    def _report(self, report: bytes) -> None:
        if self._fd >= 0 and not self._faults.frozen:
            with contextlib.suppress(BlockingIOError):  # nobody reads: a hidraw node forgets too
                os.write(self._fd, report)

    def _plug(self) -> None:
        os.mkfifo(self.address)
        self._fd = os.open(self.address, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) | os.O_DIRECT)

    def _unplug(self) -> None:
        if self._fd >= 0:
            os.unlink(self.address)
            os.close(self._fd)
        self._fd = -1
