"""A 3Dconnexion SpaceMouse, read from its hidraw node: no library, no daemon (stop spacenavd, which takes it away).

Reports, little-endian, as read off the devices by several open drivers: 1 = translation (3 x int16), 2 = rotation
(3 x int16), 3 = buttons (a bit each); newer models (Wireless, Enterprise, by their Universal Receiver) send translation
and rotation together in report 1 (6 x int16). Full deflection is 350. Axes: right, towards the person, down; rotations
by the right-hand rule about the same. While the cap is out of its middle a report comes every 16 ms or faster.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import DeviceError, DeviceGoneError, Intent
from robolearn_hardware.teleop.node import DeviceNode, why_not
from robolearn_hardware.teleop.relative import Deflection, RateConfig, RateMotion
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.spacemouse import SpaceMouseTwin

FULL = 350.0
_SILENT_NS = SECOND_NS // 4
"""A cap that is out of its middle and says no more (an empty battery) is let go."""
_REPORT_BYTES = 64
_VENDORS = (0x256F, 0x046D)
"""3Dconnexion; Logitech, which sold the older ones."""
MODELS = {
    0xC626: "SpaceNavigator",
    0xC627: "SpaceExplorer",
    0xC628: "SpaceNavigator for Notebooks",
    0xC629: "SpacePilot Pro",
    0xC62B: "SpaceMouse Pro",
    0xC62E: "SpaceMouse Wireless (cable)",
    0xC62F: "SpaceMouse Wireless (receiver)",
    0xC631: "SpaceMouse Pro Wireless (cable)",
    0xC632: "SpaceMouse Pro Wireless (receiver)",
    0xC633: "SpaceMouse Enterprise",
    0xC635: "SpaceMouse Compact",
    0xC638: "SpaceMouse Pro Wireless Bluetooth (cable)",
    0xC63A: "SpaceMouse Wireless Bluetooth",
    0xC652: "3Dconnexion Universal Receiver",
}
"""USB product -> what it is. Another of its vendor is tried too."""


@dataclass(frozen=True)
class SpaceMouseConfig(RateConfig):
    """A SpaceMouse. Its cap moves the tool."""

    device: str = ""
    """Its node, /dev/hidraw0 or better a lasting link to it; empty: the only one connected. Or twin."""
    deadman: Literal["cap", "button"] = "cap"
    """What must be held: the cap, which springs back when it is let go; or ``deadman_button`` beside it."""
    deadman_button: int = 0
    """Bit in the report of buttons. Models with two buttons: 0 left, 1 right."""
    gripper_button: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("deadman_button", "gripper_button"):
            if not 0 <= getattr(self, name) <= 31:
                raise DeviceError(f"{name} is {getattr(self, name)}; valid: 0 to 31")
        if self.gripper == "axis":
            raise DeviceError("a SpaceMouse has no trigger for gripper: axis; valid: toggle, hold")
        if self.deadman == "button" and self.deadman_button == self.gripper_button:
            raise DeviceError(f"deadman_button and gripper_button are both {self.gripper_button}; change one of them")

    def open(self, name: str) -> SpaceMouse:
        return SpaceMouse(name, self)

    def with_twin(self, name: str, twins: Twins) -> Self:
        return replace(self, device=twins.start(name, SpaceMouseTwin).address) if self.device == "twin" else self


class SpaceMouse:
    """See ``devices.Teleoperator``. ``Intent.buttons``: "button_0" and on, of those that were ever pressed."""

    def __init__(self, name: str, config: SpaceMouseConfig) -> None:
        self._name, self._config = name, config
        self._motion = RateMotion(config)
        self._node = DeviceNode(name)

    def connect(self) -> None:
        """
        Raises:
            DeviceError: there is none, or more than one, or it may not be opened.
        """
        self._node.open(self._config.device or _the_only_one(self._name))
        for _ in self._node.packets(_REPORT_BYTES):  # of before
            pass
        self._motion.forget()
        self._axes, self._buttons, self._seen = np.zeros(6), 0, 0
        self._reported_ns = 0

    def read(self) -> Intent:
        """Does not wait."""
        for report in self._node.packets(_REPORT_BYTES):
            self._take(report)
        now, config = now_ns(), self._config
        axes = self._axes / FULL
        alive = now - self._reported_ns < _SILENT_NS
        gripper, deadman = (bool(self._buttons >> bit & 1) for bit in (config.gripper_button, config.deadman_button))
        if config.deadman == "button":
            held = deadman and (alive or not self._axes.any())
        else:
            held = (alive and bool((np.abs(axes) > config.dead_zone).any())) or gripper
        buttons = {f"button_{i}": bool(self._buttons >> i & 1) for i in range(32) if self._seen >> i & 1}
        # From the device's axes (right, back, down) to forward, left, up.
        turned = np.concatenate((-axes[[1, 0, 2]], -axes[[4, 3, 5]])) if alive else np.zeros(6)
        return self._motion.intent(Deflection(now, turned, held, gripper), buttons)

    def close(self) -> None:
        """May be called twice."""
        self._node.close()

    def _take(self, report: bytes) -> None:
        """Unknown reports (battery) and those that are too short are left out."""
        kind, data = report[0] if report else 0, report[1:]
        if kind == 1 and len(data) >= 12:
            self._axes[:] = struct.unpack_from("<6h", data)
        elif kind in (1, 2) and len(data) >= 6:
            self._axes[3 * (kind - 1) : 3 * kind] = struct.unpack_from("<3h", data)
        elif kind == 3 and data:
            self._buttons = int.from_bytes(data[:4], "little")
            self._seen |= self._buttons
            return
        else:
            return
        self._reported_ns = now_ns()


@dataclass(frozen=True)
class FoundSpaceMouse:
    node: str
    model: str
    problem: str = ""
    """Why it cannot be opened, and what to do."""


def list_spacemice(sys: Path = Path("/sys/class/hidraw")) -> list[FoundSpaceMouse]:
    """Every SpaceMouse that the kernel sees, by the identifiers in ``sys``."""
    found = []
    for entry in sorted(sys.glob("hidraw*"), key=lambda path: int(path.name.removeprefix("hidraw") or 0)):
        try:
            lines = (entry / "device" / "uevent").read_text().splitlines()
        except OSError:
            continue
        said = dict(line.split("=", 1) for line in lines if "=" in line)
        _, vendor, product = (int(part, 16) for part in said.get("HID_ID", "0:0:0").split(":"))
        name = said.get("HID_NAME", "")
        theirs = vendor == _VENDORS[0] or (vendor == _VENDORS[1] and product in MODELS)
        if theirs and not any(other in name.lower() for other in ("keyboard", "cadmouse")):
            node = f"/dev/{entry.name}"
            problem = "" if os.access(node, os.R_OK) else why_not(node)
            found.append(FoundSpaceMouse(node, MODELS.get(product, name or f"product {product:04x}"), problem))
    return found


def _the_only_one(name: str) -> str:
    found = list_spacemice()
    if len(found) == 1:
        return found[0].node
    if not found:
        raise DeviceGoneError(
            f"{name}: no SpaceMouse is connected; plug it in, `robolearn find teleoperators` lists it"
        )
    nodes = ", ".join(f"{one.node} ({one.model})" for one in found)
    raise DeviceError(f"{name}: several are connected: {nodes}; name one in the rig: device: {found[0].node}")
