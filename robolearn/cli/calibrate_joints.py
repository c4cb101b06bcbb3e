"""`robolearn calibrate joints`: zero and range of the joints of a servo arm."""

from __future__ import annotations

import select
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from robolearn.cli.parse import UsageError

if TYPE_CHECKING:
    from robolearn_hardware.rig import Rig
    from robolearn_hardware.servo.calibration import Calibration


@dataclass(frozen=True)
class Joints:
    """Find the zero and the range of every joint of a servo arm or leader, and write its calibration file.

    The arm goes limp: hold it. Nothing but the motors' homing offsets and ranges is changed; a file that was there is
    kept as FILE.old.
    """

    rig: Positional[Path]
    """A rig file, see hardware/rigs."""
    device: Positional[str]
    """The arm's or leader's name in it."""
    out: Path | None = None
    """The file to write; by default the one that the rig names."""


def joints(options: Joints) -> int:
    """zero and range of every joint of a servo arm"""
    from robolearn_hardware.rig import load_rig, with_twins
    from robolearn_hardware.servo.calibration import calibrate_middle, record_ranges, save_calibration

    rig = load_rig(options.rig)
    config = _device(rig, options.device)
    out = options.out or config.calibration
    if out is None:
        raise UsageError(f"the rig names no calibration file for {options.device}; say which to write: --out FILE.yaml")
    with with_twins(rig) as (reachable, _):
        config = _device(reachable, options.device)
        bus = config.bus(options.device)
        bus.open()
        try:
            input(f"{options.device} goes limp: hold it, every joint in the middle of its range, and press Enter. ")
            calibration = calibrate_middle(bus, config.model)
            print("Now move every joint from one end to the other, the gripper too. Press Enter when all were there.")
            calibration = record_ranges(bus, calibration, _enter_pressed)
        finally:
            bus.close()
    if out.exists():
        out.replace(out.with_name(f"{out.name}.old"))
        print(f"the calibration that was there is {out.name}.old")
    save_calibration(out, calibration)
    print(f"{out}: {_said(calibration)}")
    return 0


def _device(rig: Rig, name: str) -> Any:
    from robolearn_hardware.servo.kinds import ServoConfig

    devices = {key: config for key, config in rig.devices().items() if isinstance(config, ServoConfig)}
    if name not in devices:
        raise UsageError(f"rig {rig.name} has no servo arm {name!r}; valid: {', '.join(devices) or 'none'}")
    return devices[name]


def _enter_pressed() -> bool:
    """Whether a line waits on standard input; it is taken."""
    ready = bool(select.select([sys.stdin], [], [], 0)[0])
    if ready:
        sys.stdin.readline()
    return ready


def _said(calibration: Calibration) -> str:
    import math

    ranges = (
        f"{name} {math.degrees(m.ends[0]):.0f} to {math.degrees(m.ends[1]):.0f}"
        for name, m in calibration.motors.items()
    )
    return f"ranges in degrees: {', '.join(ranges)}"


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {
    "joints": (Joints, joints),
}
