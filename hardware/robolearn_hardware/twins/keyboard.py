"""The twin of a keyboard: its event node (a FIFO of the kernel's events) or the terminal that it types into (a pty)."""

from __future__ import annotations

import contextlib
import os
import tempfile
import termios
import threading
import tty
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.teleop.keys import EV_KEY, EV_SYN, EVENT, KEY_CODES, SEQUENCES
from robolearn_hardware.twins.faults import Faults

_DELAY_NS, _PERIOD_NS = SECOND_NS // 2, SECOND_NS // 30
"""Before a key that is held is repeated, and between two repetitions: as desktops set it."""
_IDLE_NS = SECOND_NS // 100
_HAND_NS = 4 * SECOND_NS
_POSSIBLE = frozenset({"unplugged"})


class KeyboardTwin:
    """See ``TwinServer``. By default somebody holds the deadman and moves the tool slowly to and fro; ``hold`` says
    otherwise. ``observe``: "down", the names of the keys."""

    def __init__(self, wire: Literal["events", "terminal"], *, hand: bool = True) -> None:
        self._wire, self._hand = wire, hand
        self._folder = tempfile.TemporaryDirectory(prefix="robolearn-twin-")
        self.address = str(Path(self._folder.name) / ("event0" if wire == "events" else "tty-keyboard"))
        self._down: list[str] = []
        self._repeat_ns = 0
        self._fds: list[int] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="keyboard", daemon=True)
        self._plug()

    def start(self) -> None:
        self._thread.start()

    def hold(self, *keys: str) -> int:
        """These keys are down from now on, and no others; pressed in this order. Returns when (ns)."""
        with self._lock:
            self._hand = False
            at_ns = now_ns()
            self._press(keys)
            return at_ns

    def type(self, data: bytes) -> None:
        """What the wire has never seen."""
        with self._lock:
            self._write(data)

    def fault(self, faults: Faults) -> None:
        faults.check("a keyboard", _POSSIBLE)
        with self._lock:
            if faults.unplugged:
                self._unplug()
            elif not self._fds:
                self._plug()

    def observe(self) -> dict[str, Any]:
        with self._lock:
            return {"down": list(self._down)}

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(2)
        with self._lock:
            self._unplug()
        self._folder.cleanup()

    def _serve(self) -> None:
        begun = now_ns()
        while not self._closing.is_set():
            wait_until_ns(now_ns() + _IDLE_NS)
            now = now_ns()
            with self._lock:
                if self._hand:
                    forth = (now - begun) // _HAND_NS % 2 == 0
                    keys = ("left_shift", "up" if forth else "down")
                    if keys != tuple(self._down):
                        self._press(keys)
                if self._down and now >= self._repeat_ns:
                    self._repeat_ns = now + _PERIOD_NS
                    self._say(self._down[-1], 2)

    def _press(self, keys: Collection[str]) -> None:
        for key in self._down:
            if key not in keys:
                self._say(key, 0)
        for key in keys:
            if key not in self._down:
                self._say(key, 1)
                self._repeat_ns = now_ns() + _DELAY_NS
        self._down = list(keys)

    def _say(self, key: str, value: int) -> None:
        """``value``: 0 up, 1 down, 2 repeated."""
        if self._wire == "terminal":
            typed = next((data for data, name in SEQUENCES.items() if name == key), b"")
            typed = typed or (key.encode() if len(key) == 1 else b"")
            if value:
                self._write(typed)
            return
        seconds, rest = divmod(now_ns(), SECOND_NS)
        when = (seconds, rest // 1000)
        self._write(EVENT.pack(*when, EV_KEY, KEY_CODES[key], value) + EVENT.pack(*when, EV_SYN, 0, 0))

    def _write(self, data: bytes) -> None:
        if self._fds and data:
            with contextlib.suppress(BlockingIOError):  # nobody reads
                os.write(self._fds[0], data)

    def _plug(self) -> None:
        if self._wire == "events":
            os.mkfifo(self.address)
            self._fds = [os.open(self.address, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)]
        else:
            master, slave = os.openpty()
            tty.setcbreak(slave)
            attributes = termios.tcgetattr(slave)
            attributes[3] &= ~termios.ECHO
            termios.tcsetattr(slave, termios.TCSANOW, attributes)
            os.set_blocking(master, False)
            os.symlink(os.ttyname(slave), self.address)
            self._fds = [master, slave]

    def _unplug(self) -> None:
        if self._fds:
            os.unlink(self.address)
        for fd in self._fds:
            os.close(fd)
        self._fds = []
