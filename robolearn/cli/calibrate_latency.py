"""`robolearn calibrate latency`: how late an arm or a camera is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from robolearn.cli.parse import UsageError

_SURE = 0.7


@dataclass(frozen=True)
class LatencyOf:
    """Measure the latency of an arm, or of a camera that sees an arm move, by cross-correlation.

    The arm moves: one joint, 6 degrees to both sides of where it stands, for some seconds. Nothing is written; the line
    that is printed belongs into the rig file.
    """

    rig: Positional[Path]
    """A rig file, see hardware/rigs."""
    device: Positional[str]
    """The arm's or camera's name in it."""
    arm: str | None = None
    """For a camera: which arm to move. Not needed where there is one."""
    joint: int = 0
    """Which of its joints, from 0. A camera must see it move."""
    seconds: float = 8.0
    """How long."""


def latency(options: LatencyOf) -> int:
    """how late an arm or a camera is"""
    if not 4 <= options.seconds <= 120:
        raise UsageError(f"--seconds must lie between 4 and 120, got {options.seconds:g}")
    from robolearn_hardware.rig import load_rig, with_twins
    from robolearn_hardware.shake import arm_latency, camera_latency

    rig = load_rig(options.rig)
    movable = [options.device] if options.device in rig.arms else list(rig.arms)
    arm_name = options.arm or (movable[0] if len(movable) == 1 else "")
    if options.device not in (*rig.arms, *rig.cameras) or arm_name not in rig.arms:
        raise UsageError(
            f"rig {rig.name} has arms {', '.join(rig.arms) or 'none'} and cameras {', '.join(rig.cameras) or 'none'}; "
            "name one of them, and for a camera the arm that it sees: --arm ARM"
        )
    with with_twins(rig) as (reachable, _), contextlib.ExitStack() as stack:
        arm = reachable.open_arm(arm_name)
        stack.callback(arm.close)
        arm.connect()
        if options.device == arm_name:
            found = arm_latency(arm, seconds=options.seconds, joint=options.joint)
        else:
            camera = reachable.cameras[options.device].open(options.device)
            stack.callback(camera.close)
            camera.connect()
            found = camera_latency(camera, arm, seconds=options.seconds, joint=options.joint)
    print(f"{options.device} is {found.lag_s * 1e3:.0f} ms late (correlation {found.confidence:.2f})")
    if found.confidence < _SURE:
        print("that is not sure: move another joint, one that is seen better, for longer")
        return 1
    print(f"in {options.rig}, under placement:\n  {options.device}: {{latency_ms: {found.lag_s * 1e3:.0f}}}")
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"latency": (LatencyOf, latency)}
