"""A device file from which packets are read without waiting: hidraw, evdev, a terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from robolearn_hardware.devices import DeviceError, DeviceGoneError

_MOST = 256
"""Packets of one call: a device that floods cannot keep the reader."""


class DeviceNode:
    """Made closed. Every method raises DeviceGoneError when the device has gone."""

    def __init__(self, name: str) -> None:
        """``name`` begins every message."""
        self._name = name
        self._path = ""
        self._fd = -1

    def open(self, path: str) -> int:
        """Open it anew; what it had to say before is forgotten. Returns its file descriptor.

        Raises:
            DeviceGoneError: it is not there.
            DeviceError: it may not be opened.
        """
        self.close()
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except FileNotFoundError:
            raise DeviceGoneError(f"{self._name}: there is no {path}; is it plugged in?") from None
        except PermissionError:
            raise DeviceError(f"{self._name}: {path} may not be opened; {why_not(path)}") from None
        except OSError as error:
            raise DeviceGoneError(f"{self._name}: {path} cannot be opened: {error.strerror}") from None
        return self._fd

    def packets(self, size: int) -> Iterator[bytes]:
        """Those that wait, oldest first, each at most ``size`` bytes long."""
        if self._fd < 0:
            raise DeviceGoneError(f"{self._name} is not connected; connect first")
        for _ in range(_MOST):
            try:
                packet = os.read(self._fd, size)
            except BlockingIOError:
                return
            except OSError as error:
                raise self._gone(error.strerror or "it was unplugged") from None
            if not packet:
                raise self._gone("it was unplugged")
            yield packet

    def close(self) -> None:
        """May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _gone(self, why: str) -> DeviceGoneError:
        self.close()
        return DeviceGoneError(f"{self._name}: {self._path} has gone: {why}; plug it in again")


def why_not(path: str) -> str:
    """What to do about a device file that may not be opened."""
    try:
        group = Path(path).group()
    except (OSError, KeyError):
        group = "input"
    usable = group if group != "root" else "plugdev"
    return (
        "install the udev rules (`robolearn doctor` says how), or: "
        f"sudo chgrp {usable} {path} && sudo chmod g+r {path} && sudo usermod -aG {usable} $USER, and log in again"
    )
