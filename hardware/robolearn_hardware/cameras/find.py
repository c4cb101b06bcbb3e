"""Which cameras are connected, and why one cannot be opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from robolearn_hardware.cameras.realsense import list_realsense
from robolearn_hardware.cameras.uvc import check_node, list_v4l2
from robolearn_hardware.devices import DeviceError


@dataclass(frozen=True)
class FoundCamera:
    kind: str
    """Of a rig file."""
    address: str
    """Its serial number or node, for the rig file."""
    name: str
    problem: str = ""
    """Why it cannot be opened; empty when it can."""


def list_cameras(sys: Path | None = None) -> list[FoundCamera]:
    """RealSense cameras, then V4L2 nodes. A kind of which nothing can be said is one entry without address."""
    found = []
    try:
        found += [FoundCamera("realsense", serial, name) for serial, name in list_realsense()]
    except DeviceError as error:
        found.append(FoundCamera("realsense", "", "", str(error)))
    for node, name in list_v4l2(sys).items():
        if "realsense" in name.lower():  # listed above, where librealsense sees it
            continue
        found.append(FoundCamera("uvc", _lasting(Path(node)), name, _problem(Path(node))))
    return found


def _problem(node: Path) -> str:
    try:
        check_node(str(node), node)
    except DeviceError as error:
        return str(error)
    return ""


def _lasting(node: Path) -> str:
    """The link that goes on naming this camera when others are plugged in, if udev made one."""
    for folder in ("by-id", "by-path"):
        for link in sorted(Path("/dev/v4l", folder).glob("*")):
            if os.path.realpath(link) == str(node):
                return str(link)
    return str(node)
