"""The twin of a gamepad: a process that somebody's hands are in, and SDL's virtual joystick in the driver's process.

SDL then knows it as it knows a real one: the driver opens it by its name and reads it by SDL's standard layout.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import socket
import struct
import tempfile
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import DeviceGoneError
from robolearn_hardware.twins.faults import Faults

_STATE = struct.Struct("<6hH")
"""Axes in SDL's order: left x, y, right x, y, left and right trigger; a bit for each button in SDL's order."""
_FULL = 32767
_TRIGGERS = (4, 5)
_DEADMAN = 1 << 9  # left shoulder
_RATE_HZ = 125.0
_POSSIBLE = frozenset({"unplugged"})
_TYPE_GAMECONTROLLER, _BUTTONS = 1, 15


class GamepadTwin:
    """See ``TwinServer``. By default somebody holds the left shoulder button and moves the left stick slowly to and
    fro; ``push`` says otherwise. ``observe``: "axes", "buttons", "clients" (drivers that are connected)."""

    def __init__(self, *, hand_hz: float = 0.1) -> None:
        self._hand = hand_hz
        self._folder = tempfile.TemporaryDirectory(prefix="robolearn-twin-")
        self.address = str(Path(self._folder.name) / "gamepad")
        self._axes, self._buttons = [0.0] * 6, 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._listening: socket.socket | None = None
        self._clients: list[socket.socket] = []
        self._threads = [
            threading.Thread(target=target, name="gamepad", daemon=True) for target in (self._serve, self._accept)
        ]
        self._plug()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def push(self, axes: Sequence[float] = (), buttons: Collection[int] = ()) -> int:
        """Hold it like that from now on. Returns when (ns).

        Args:
            axes: of left x, y, right x, y (-1..1; right and down are positive) and the two triggers (0..1).
            buttons: those that are down, by their places in SDL's order.
        """
        with self._lock:
            self._hand = 0.0
            self._axes = [*axes, *[0.0] * (6 - len(axes))]
            self._buttons = sum(1 << button for button in buttons)
            at_ns = now_ns()
            self._say()
            return at_ns

    def fault(self, faults: Faults) -> None:
        faults.check("a gamepad", _POSSIBLE)
        with self._lock:
            if faults.unplugged:
                self._unplug()
            elif self._listening is None:
                self._plug()

    def observe(self) -> dict[str, Any]:
        with self._lock:
            return {"axes": list(self._axes), "buttons": self._buttons, "clients": len(self._clients)}

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            self._unplug()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2)
        self._folder.cleanup()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                listening = self._listening
            if listening is None:
                self._closing.wait(0.02)
                continue
            with contextlib.suppress(OSError):  # none yet, or unplugged
                client, _ = listening.accept()
                with self._lock:
                    client.setblocking(False)
                    self._clients.append(client)
                    self._say()

    def _serve(self) -> None:
        due = now_ns()
        while not self._closing.is_set():
            due = max(due + period_ns(_RATE_HZ), now_ns())
            wait_until_ns(due)
            with self._lock:
                if self._hand:
                    self._axes[1] = -0.6 * math.sin(2 * math.pi * self._hand * due / SECOND_NS)
                    self._buttons = _DEADMAN
                    self._say()

    def _say(self) -> None:
        values = [round(value * _FULL) for value in self._axes]
        for i in _TRIGGERS:  # SDL's axes of triggers begin at their lower end
            values[i] = min(2 * values[i] - _FULL, _FULL)
        packet = _STATE.pack(*values, self._buttons)
        for client in list(self._clients):
            try:
                client.send(packet)
            except BlockingIOError:
                pass
            except OSError:  # it has closed
                self._clients.remove(client)
                client.close()

    def _plug(self) -> None:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(self.address)
        self._listening.listen()
        self._listening.settimeout(0.05)

    def _unplug(self) -> None:
        if self._listening is not None:
            Path(self.address).unlink(missing_ok=True)
            self._listening.close()
            self._listening = None
        for client in self._clients:
            client.close()
        self._clients.clear()


class VirtualPad:
    """The driver's end: a virtual joystick of SDL that does what the twin's process says, and goes when that does."""

    _numbers = itertools.count(1)

    def __init__(self, name: str, address: str) -> None:
        """
        Raises:
            DeviceGoneError: no twin is there.
        """
        self._sdl = _library()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise DeviceGoneError(f"{name}: there is no gamepad at {address}: {error.strerror}") from None
        self.label = f"Twin {next(self._numbers)} of a gamepad"
        self._label = self.label.encode()
        described = _Description(1, _TYPE_GAMECONTROLLER, 6, _BUTTONS, name=self._label)
        self._index = self._sdl.SDL_JoystickAttachVirtualEx(ctypes.byref(described))
        self._joystick = self._sdl.SDL_JoystickOpen(self._index)
        self._instance = self._sdl.SDL_JoystickInstanceID(self._joystick)
        self._take(_STATE.pack(0, 0, 0, 0, -_FULL, -_FULL, 0))
        self._thread = threading.Thread(target=self._listen, name="virtual gamepad", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(2)
        self._socket.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while packet := self._socket.recv(_STATE.size):
                self._take(packet)
        sdl = self._sdl
        for index in range(sdl.SDL_NumJoysticks()):
            if sdl.SDL_JoystickGetDeviceInstanceID(index) == self._instance:
                sdl.SDL_JoystickDetachVirtual(index)
                break
        sdl.SDL_JoystickClose(self._joystick)

    def _take(self, packet: bytes) -> None:
        """Each call takes SDL's lock by itself. To hold it from here would end in a deadlock: pygame waits for it with
        the interpreter's lock held."""
        *axes, buttons = _STATE.unpack(packet)
        for i, value in enumerate(axes):
            self._sdl.SDL_JoystickSetVirtualAxis(self._joystick, i, value)
        for i in range(_BUTTONS):
            self._sdl.SDL_JoystickSetVirtualButton(self._joystick, i, buttons >> i & 1)


class _Description(ctypes.Structure):
    """SDL_VirtualJoystickDesc of SDL_joystick.h (SDL 2.24 and on)."""

    _fields_ = (
        ("version", ctypes.c_uint16),
        ("type", ctypes.c_uint16),
        ("naxes", ctypes.c_uint16),
        ("nbuttons", ctypes.c_uint16),
        ("nhats", ctypes.c_uint16),
        ("vendor_id", ctypes.c_uint16),
        ("product_id", ctypes.c_uint16),
        ("padding", ctypes.c_uint16),
        ("button_mask", ctypes.c_uint32),
        ("axis_mask", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("userdata", ctypes.c_void_p),
        ("callbacks", ctypes.c_void_p * 6),
    )


def _library() -> Any:
    """The SDL that pygame has loaded into this process."""
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "libSDL2-2" in line and ".so" in line}
    library = ctypes.CDLL(sorted(paths)[0])
    pointer = ctypes.c_void_p
    library.SDL_JoystickOpen.restype = pointer
    for name in ("SDL_JoystickInstanceID", "SDL_JoystickClose"):
        getattr(library, name).argtypes = (pointer,)
    library.SDL_JoystickSetVirtualAxis.argtypes = (pointer, ctypes.c_int, ctypes.c_int16)
    library.SDL_JoystickSetVirtualButton.argtypes = (pointer, ctypes.c_int, ctypes.c_uint8)
    return library
