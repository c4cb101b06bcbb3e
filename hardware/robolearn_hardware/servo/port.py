"""A serial line, as the packet handlers of both vendors' SDKs want it.

It takes the place of their own port handlers, which wait with a busy loop, read the wall clock, leave old bytes in the
line, share the port with any other program, and never give up while noise keeps coming.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import termios
import time
from collections.abc import Sequence

from robolearn_hardware.devices import DeviceError, DeviceGoneError
from robolearn_hardware.ports import serial_ports

_SETTLED_S = 0.003
"""A line that was quiet for so long has nothing more to say."""
_PATIENCE_S = 0.02
"""How long after its timeout a packet may keep an SDK busy."""


class NoiseError(Exception):
    """Bytes keep coming long after the answer was due, and none of them is one."""


class SerialLine:
    """An open serial line that no other program can open this way. Names in camelCase are those the SDKs call."""

    def __init__(self, path: str, baud: int, *, reply_s: float) -> None:
        """Open ``path``. ``reply_s``: how long a motor may take to answer, besides the bytes' own time.

        Raises:
            DeviceError: it is not there, may not be opened, is in use, is no serial port, does not know the baud rate.
        """
        try:
            import serial
        except ImportError:
            raise DeviceError("servo buses need pyserial; pip install 'robolearn[feetech]' or '[dynamixel]'") from None
        self.path, self.baud = path, baud
        self.is_using = False
        try:
            self._serial = serial.Serial(path, baud, timeout=0, exclusive=True)
        except (ValueError, OverflowError):
            raise DeviceError(f"{path} cannot run at {baud} baud; servo buses use 57600, 1000000 and others") from None
        except (OSError, termios.error) as error:
            raise DeviceError(_why_not_open(path, error)) from None
        with contextlib.suppress(OSError, ValueError, NotImplementedError):
            self._serial.set_low_latency_mode(True)  # FTDI adapters then answer within 1 ms, not 16
        self._fd: int = self._serial.fileno()
        self._buffer = bytearray()
        self._byte_s = 10 / baud
        self.reply_s = reply_s
        self._deadline = 0.0
        self._late_since = 0.0

    def close(self) -> None:
        """May be called twice, and after it was unplugged."""
        with contextlib.suppress(OSError, termios.error):
            self._serial.close()

    def settle(self) -> None:
        """Throw away what still comes, until the line is quiet: on one wire for both ways, a request would collide."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until and select.select([self._fd], [], [], _SETTLED_S)[0]:
            self._receive()
        self._buffer.clear()

    # What the SDKs call.

    def getBaudRate(self) -> int:
        return self.baud

    def clearPort(self) -> None:
        self._buffer.clear()
        try:
            termios.tcflush(self._fd, termios.TCIFLUSH)
        except termios.error:
            raise self._gone() from None

    def writePort(self, packet: Sequence[int]) -> int:
        try:
            return os.write(self._fd, bytes(packet))
        except BlockingIOError:
            return 0
        except OSError:
            raise self._gone() from None

    def readPort(self, length: int) -> bytes:
        """Up to ``length`` bytes; waits for the first one until the packet's timeout.

        Raises:
            NoiseError: the timeout is long past.
        """
        now = time.monotonic()
        if now > self._deadline:  # by much if this process had to wait; what has come by now still counts
            self._late_since = self._late_since or now
            if now > self._late_since + _PATIENCE_S:
                raise NoiseError
        if not self._buffer and select.select([self._fd], [], [], max(self._deadline - now, 0.0))[0]:
            self._receive()
        data = bytes(self._buffer[: max(length, 0)])
        del self._buffer[: len(data)]
        return data

    def setPacketTimeout(self, packet_length: int) -> None:
        self.setPacketTimeoutMillis(1000 * (self.reply_s + packet_length * self._byte_s))

    def setPacketTimeoutMillis(self, milliseconds: float) -> None:
        self._deadline = time.monotonic() + milliseconds / 1000
        self._late_since = 0.0

    def isPacketTimeout(self) -> bool:
        return time.monotonic() > self._deadline

    def _receive(self) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            raise self._gone() from None
        if not data:
            raise self._gone()
        self._buffer += data

    def _gone(self) -> DeviceGoneError:
        return DeviceGoneError(f"{self.path} is unplugged; plug it in and connect again")


def _why_not_open(path: str, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        there = ", ".join(port.path for port in serial_ports()) or "none"
        return f"no port {path}; serial ports here: {there}. Plug the arm in, or correct its port in the rig"
    if number in (errno.EACCES, errno.EPERM):
        return (
            f"no permission to open {path}; join its group (sudo usermod -aG dialout $USER, then log in again) or "
            "install a udev rule, see `robolearn doctor`"
        )
    if number in (errno.EBUSY, errno.EAGAIN):
        return f"{path} is in use by another program; close that one first"
    return f"{path} is not a serial port ({' '.join(str(error).split())}); name the arm's port, such as /dev/ttyACM0"
