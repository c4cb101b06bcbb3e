"""Which SpaceMice, gamepads and keyboards this machine has, and why one cannot be used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.teleop.gamepad import list_gamepads
from robolearn_hardware.teleop.node import why_not
from robolearn_hardware.teleop.spacemouse import list_spacemice


@dataclass(frozen=True)
class FoundTeleoperator:
    kind: str
    """Of a rig file."""
    device: str
    """For the rig file."""
    name: str
    problem: str = ""
    """Why it cannot be used, and what to do; empty when it can."""


def list_teleoperators(
    hidraw: Path = Path("/sys/class/hidraw"), links: Path = Path("/dev/input/by-id")
) -> list[FoundTeleoperator]:
    """By what the kernel lists in ``hidraw``, what SDL can open, and the lasting names in ``links``."""
    found = [FoundTeleoperator("spacemouse", one.node, one.model, one.problem) for one in list_spacemice(hidraw)]
    try:
        pads = list_gamepads()
    except DeviceError as error:
        pads, problem = [], str(error)
    else:
        problem = ""
    found += [FoundTeleoperator("gamepad", name, name) for name in pads]
    for link in sorted(links.glob("*-event-joystick")):
        blocked = problem if os.access(link, os.R_OK) else why_not(str(link))
        if blocked:  # SDL does not list it
            found.append(FoundTeleoperator("gamepad", "", link.name, blocked))
    for link in sorted(links.glob("*-event-kbd")):
        blocked = "" if os.access(link, os.R_OK) else _why_no_keys(link)
        found.append(FoundTeleoperator("keyboard", str(link), link.name.removesuffix("-event-kbd"), blocked))
    return found


def _why_no_keys(link: Path) -> str:
    return (
        "not opened, as it should be: who may read it reads passwords too. Use the terminal (leave device out), or for "
        f"a keyboard or pedal of its own: sudo setfacl -m u:$USER:r {os.path.realpath(link)}"
    )
