"""`robolearn find`: which port and which camera is which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robolearn.cli.parse import UsageError

if TYPE_CHECKING:
    from robolearn_hardware.ports import SerialPort


@dataclass(frozen=True)
class FindPorts:
    """List the serial ports that have a device behind them, and what it probably is.

    The path that is shown is for a rig file: it stays the same when other devices come and go.
    """

    unplug: bool = False
    """Say which port belongs to the cable that you then pull out."""


def find_ports(options: FindPorts) -> int:
    """list serial ports, or find the one of a cable by unplugging it"""
    from robolearn_hardware.ports import serial_ports

    ports = serial_ports()
    if options.unplug:
        return _unplugged(ports, serial_ports)
    if not ports:
        print("no serial port has a device behind it: is it plugged in and powered? `dmesg | tail` says what came")
        return 1
    for port in ports:
        print(f"{port.path}  ({port.device}{f', serial {port.serial}' if port.serial else ''})")
        print(f"    {port.what or 'not known'}")
        if port.problem:
            print(f"    cannot be opened: {port.problem}")
    return 0


def _unplugged(before: list[SerialPort], look: Callable[[], list[SerialPort]]) -> int:
    if not before:
        raise UsageError("no serial port has a device behind it; plug it in first")
    input(f"{len(before)} ports. Unplug the cable you want to know, then press Enter. ")
    left = {port.path for port in look()}
    gone = [port for port in before if port.path not in left]
    for port in gone:
        print(f"that was {port.path}  ({port.what or 'not known'})")
    if not gone:
        print("no port has gone; wait a second after pulling the cable")
    return 0 if gone else 1


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "ports": (FindPorts, find_ports),
}
