"""Which keys of a keyboard are down: told by the kernel (evdev), or guessed from what a terminal types."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
import tty
from pathlib import Path
from typing import Any, Protocol

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import DeviceGoneError
from robolearn_hardware.teleop.node import DeviceNode

TAP_S = 0.15
"""So long a key counts as down after a terminal has typed it. Terminals repeat every 20 to 40 ms."""
_ESCAPE_NS = SECOND_NS // 20
"""The rest of an escape sequence comes sooner than that."""

SEQUENCES = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1b[C": "right",
    b"\x1b[D": "left",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1bOC": "right",
    b"\x1bOD": "left",
    b"\x1b[5~": "page_up",
    b"\x1b[6~": "page_down",
    b"\t": "tab",
    b" ": "space",
    b"\r": "enter",
    b"\n": "enter",
}
"""xterm's, "PC-Style Function Keys", in normal and in application mode."""

EVENT = struct.Struct("@llHHi")
"""input_event of linux/input.h: seconds, microseconds, type, code, value."""
EV_SYN, EV_KEY = 0, 1
_SYN_DROPPED = 3
_EVIOCGKEY = 0x80604518
"""Asks for 96 bytes with a bit for each key that is down (linux/input.h)."""

_ROWS = {2: "1234567890", 16: "qwertyuiop", 30: "asdfghjkl", 44: "zxcvbnm"}
KEY_CODES: dict[str, int] = {
    **{letter: first + i for first, row in _ROWS.items() for i, letter in enumerate(row)},
    "tab": 15,
    "enter": 28,
    "left_ctrl": 29,
    "left_shift": 42,
    "right_shift": 54,
    "left_alt": 56,
    "space": 57,
    "caps_lock": 58,
    "right_ctrl": 97,
    "right_alt": 100,
    "up": 103,
    "page_up": 104,
    "left": 105,
    "right": 106,
    "down": 108,
    "page_down": 109,
}
"""linux/input-event-codes.h; letters are where a US keyboard has them."""
_NAMES = {code: name for name, code in KEY_CODES.items()}


class Keys(Protocol):
    def connect(self) -> None:
        """Raises DeviceError."""
        ...

    def down(self, at_ns: int) -> frozenset[str]:
        """Names of the keys that are down now. Raises DeviceGoneError."""
        ...

    def close(self) -> None: ...


def keys_of(name: str, device: str) -> Keys:
    """Of a kernel's event node, or of the terminal ``device``; empty: the one that this program runs in."""
    if Path(os.path.realpath(device)).name.startswith("event"):
        return EventKeys(name, device)
    return TerminalKeys(name, device or "/dev/tty")


class TerminalKeys:
    """A terminal types a key when it goes down, and again and again while it is held, after a pause of 0.2 to 0.7 s. It
    says nothing when a key goes up, and repeats one key at a time. So a tap counts as ``TAP_S``, and a key that is held
    as down from its first repetition until ``TAP_S`` after the last."""

    def __init__(self, name: str, terminal: str) -> None:
        self._name, self._terminal = name, terminal
        self._node = DeviceNode(name)
        self._before: tuple[int, list[Any]] | None = None
        self._until_ns: dict[str, int] = {}
        self._rest = b""
        self._rest_ns = 0

    def connect(self) -> None:
        self.close()
        try:
            fd = self._node.open(self._terminal)
        except DeviceGoneError as error:
            raise DeviceGoneError(
                f"{error}; a keyboard is read from the terminal that this runs in, or by `device: /dev/input/...` of "
                "the rig (`robolearn find teleoperators`)"
            ) from None
        with contextlib.suppress(termios.error):  # a pipe that somebody types into
            self._before = (fd, termios.tcgetattr(fd))
            tty.setcbreak(fd)  # Ctrl-C still interrupts
        self._until_ns.clear()
        self._rest = b""
        for _ in self._node.packets(1024):  # typed before
            pass

    def down(self, at_ns: int) -> frozenset[str]:
        data = b"".join(self._node.packets(1024))
        if data or (self._rest and at_ns - self._rest_ns > _ESCAPE_NS):
            keys, self._rest = decoded(self._rest + data, more=bool(data))
            self._rest_ns = at_ns
            self._until_ns |= dict.fromkeys(keys, at_ns + round(TAP_S * SECOND_NS))
        return frozenset(key for key, until_ns in self._until_ns.items() if at_ns < until_ns)

    def close(self) -> None:
        """The terminal is as it was before. May be called twice."""
        if self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._before[0], termios.TCSADRAIN, self._before[1])
            self._before = None
        self._node.close()


def decoded(data: bytes, *, more: bool) -> tuple[list[str], bytes]:
    """Names of the keys that a terminal has typed, and the beginning of a sequence whose rest may come (``more``)."""
    keys: list[str] = []
    while data:
        found = next((s for s in SEQUENCES if data.startswith(s)), b"")
        if found:
            keys.append(SEQUENCES[found])
            data = data[len(found) :]
        elif data[0] != 0x1B:
            keys += [chr(data[0]).lower()] if data[:1].isalnum() else []
            data = data[1:]
        elif more and any(sequence.startswith(data) for sequence in SEQUENCES):
            return keys, data
        else:  # an unknown sequence, or the key Esc
            data = data[1:].lstrip(b"[O0123456789;")[1:] if data[1:2] in (b"[", b"O") else data[1:]
    return keys, b""


class EventKeys:
    """A keyboard's event node (or a pedal's): the kernel says when a key goes down and when it goes up, in whichever
    window that is typed."""

    def __init__(self, name: str, device: str) -> None:
        self._name, self._device = name, device
        self._node = DeviceNode(name)
        self._down: set[int] = set()
        self._fd = -1

    def connect(self) -> None:
        self._fd = self._node.open(self._device)
        self._down.clear()  # what is down already must be pressed anew
        for _ in self._node.packets(EVENT.size * 64):
            pass

    def down(self, at_ns: int) -> frozenset[str]:
        for data in self._node.packets(EVENT.size * 64):
            for _, _, kind, code, value in EVENT.iter_unpack(data[: len(data) // EVENT.size * EVENT.size]):
                if kind == EV_KEY and value:
                    self._down.add(code)
                elif kind == EV_KEY:
                    self._down.discard(code)
                elif kind == EV_SYN and code == _SYN_DROPPED:  # the kernel's buffer was full, and a key-up may be lost
                    self._look()
        return frozenset(_NAMES[code] for code in self._down if code in _NAMES)

    def close(self) -> None:
        """May be called twice."""
        self._node.close()

    def _look(self) -> None:
        bits = bytearray(96)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _EVIOCGKEY, bits)
        self._down = {code for code in _NAMES if bits[code // 8] >> code % 8 & 1}
