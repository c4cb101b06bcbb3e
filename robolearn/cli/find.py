"""`robolearn find ports | cameras | motors | teleoperators`: what is connected, and under which name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

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


@dataclass(frozen=True)
class FindCameras:
    """List RealSense and USB cameras, by the serial number or path that a rig file names."""


@dataclass(frozen=True)
class FindMotors:
    """Ask a port for servo motors at the usual rates. Nothing moves."""

    port: Positional[str]
    """Such as /dev/ttyACM0, see `robolearn find ports`."""
    maker: Literal["feetech", "dynamixel"] | None = None
    """By default both are asked."""
    baud: int | None = None
    """By default the usual ones."""


@dataclass(frozen=True)
class FindTeleoperators:
    """List SpaceMice, gamepads and keyboards, as a rig file names them. Leader arms are among the ports."""


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


def find_cameras(options: FindCameras) -> int:
    """list cameras, and why one cannot be opened"""
    from robolearn_hardware.cameras.find import list_cameras

    found = list_cameras()
    for camera in found:
        print(f"{camera.kind}: {camera.address or 'none'}  {camera.name}".rstrip())
        if camera.problem:
            print(f"    {camera.problem}")
    if not any(camera.address for camera in found):
        print("no camera is connected by USB; network cameras (kinds mjpeg, rtsp) have an address instead")
        return 1
    return 0


def find_teleoperators(options: FindTeleoperators) -> int:
    """list SpaceMice, gamepads and keyboards, and why one cannot be used"""
    from robolearn_hardware.teleop.find import list_teleoperators

    found = list_teleoperators()
    for one in found:
        device = f"  device: {one.device}" if one.device else ""
        print(f"kind: {one.kind}{device}  ({one.name})")
        if one.problem:
            print(f"    {one.problem}")
    if not any(one.kind != "keyboard" and not one.problem for one in found):
        print(
            "no SpaceMouse and no gamepad can be used: is it plugged in, or its receiver? The keyboard of a terminal "
            "can (kind: keyboard), and `--teleop page` needs a browser alone"
        )
        return 1
    return 0


def find_motors(options: FindMotors) -> int:
    """which servo motors answer on a port"""
    from robolearn_hardware.servo.bus import ServoBus
    from robolearn_hardware.servo.dynamixel import DynamixelWire
    from robolearn_hardware.servo.feetech import FeetechWire

    makers = {"feetech": FeetechWire, "dynamixel": DynamixelWire}
    total = 0
    for maker in [options.maker] if options.maker else makers:
        for baud in [options.baud] if options.baud else _BAUDS[maker]:
            bus = ServoBus(options.port, makers[maker](), options.port, baud)
            bus.open()
            try:
                found = bus.scan()
            finally:
                bus.close()
            for motor, model in found.items():
                name = f"model number {model}, not known" if isinstance(model, int) else model.name
                print(f"{maker} at {baud} baud: motor {motor}, {name}")
            total += len(found)
    if not total:
        print("no motor answers: is the power on, and the cable in the bus's first socket?")
    return 0 if total else 1


_BAUDS = {"feetech": (1_000_000, 115_200), "dynamixel": (1_000_000, 57_600, 4_000_000)}
"""As motors are delivered and as arms are usually set up."""

COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "ports": (FindPorts, find_ports),
    "cameras": (FindCameras, find_cameras),
    "motors": (FindMotors, find_motors),
    "teleoperators": (FindTeleoperators, find_teleoperators),
}
