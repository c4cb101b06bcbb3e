"""Which serial ports this machine has, what is probably behind them, and whether they may be opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from robolearn_hardware.devices import DeviceError

KNOWN = {
    (0x0403, 0x6014): "FTDI FT232H: ROBOTIS U2D2 (Dynamixel: Koch, ALOHA, GELLO)",
    (0x0403, 0x6001): "FTDI FT232R: a serial adapter",
    (0x1A86, 0x55D3): "WCH CH343: servo board of the SO-100 and SO-101 (Feetech)",
    (0x1A86, 0x7523): "WCH CH340: a serial adapter (often Feetech)",
    (0x10C4, 0xEA60): "Silicon Labs CP210x: a serial adapter",
    (0x2F5D, 0x2202): "ROBOTIS OpenRB-150 (Dynamixel)",
}
"""USB vendor and product -> what it usually is, from the USB IDs that the makers of these boards publish."""

_BY_ID = Path("/dev/serial/by-id")


@dataclass(frozen=True)
class SerialPort:
    path: str
    """For a rig file: the name under /dev/serial/by-id where there is one, because it does not change."""
    device: str
    what: str
    serial: str
    problem: str = ""
    """Why it cannot be opened, and what to do."""


def serial_ports() -> list[SerialPort]:
    """Every serial port that has a device behind it.

    Raises:
        DeviceError: pyserial is not installed.
    """
    try:
        from serial.tools.list_ports import comports
    except ImportError:
        raise DeviceError("serial ports are listed by pyserial: pip install 'robolearn[feetech]'") from None
    lasting = {str(link.resolve()): str(link) for link in _BY_ID.glob("*")} if _BY_ID.exists() else {}
    found = []
    for port in sorted(comports()):
        if port.vid is None and port.device.startswith("/dev/ttyS"):
            continue  # a port of the board, which is there whether or not something is plugged into it
        what = KNOWN.get((port.vid or 0, port.pid or 0), port.description or "")
        problem = "" if os.access(port.device, os.R_OK | os.W_OK) else _problem(port.device)
        found.append(
            SerialPort(lasting.get(port.device, port.device), port.device, what, port.serial_number or "", problem)
        )
    return found


def _problem(device: str) -> str:
    try:
        group = Path(device).group()
    except (OSError, KeyError):
        group = "dialout"
    return f"no permission: sudo usermod -aG {group} $USER and log in again, or install the udev rules"
