"""`robolearn calibrate ...`: what a person does once so that a rig's numbers are true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from robolearn.cli import calibrate_camera, calibrate_joints, calibrate_latency

COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    **calibrate_joints.COMMANDS,
    **calibrate_latency.COMMANDS,
    **calibrate_camera.COMMANDS,
}
