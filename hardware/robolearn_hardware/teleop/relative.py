"""From how far a stick is pushed to how fast the tool shall move: deadman, frames, scales, gripper. No device here.

A *deflection* is (6,) from -1 to 1: three translations and three rotations by the right-hand rule, in the person's axes
x forward, y left, z up. Without the deadman nothing moves, whatever the stick says; nor does a reading with NaN or
infinity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import DeviceError, Intent

Axis = Literal["x", "y", "z", "roll", "pitch", "yaw"]
AXES: tuple[Axis, ...] = ("x", "y", "z", "roll", "pitch", "yaw")
Frame = Literal["base", "tool", "view"]
GripperMode = Literal["toggle", "hold", "axis"]

_LONGEST_S = 0.1
"""Between two readings; what is lost beyond that makes nothing faster."""
_MOVED = 0.1
"""Share of its way by which a trigger is moved before the gripper goes along."""


@dataclass(frozen=True)
class RateConfig:
    """What a rig file may say of every device that moves the tool by so much a second."""

    speed_m_s: float = 0.15
    """Of the tool, at full deflection."""
    speed_rad_s: float = 0.8
    frame: Frame = "base"
    """Whose axes it moves along. "base": the arm's, for somebody who stands behind it and looks the way it does.
    "view": the person's, who stands elsewhere. "tool": the gripper's own."""
    view_yaw_deg: float = 0.0
    """For "view": by how much the person is turned against the arm's base, counter-clockwise as seen from above. 180
    for somebody who faces the arm."""
    axes: tuple[Axis, ...] = AXES
    """Those that it moves; the others stay."""
    dead_zone: float = 0.08
    """Of each axis, from 0 to below 1: a smaller deflection is none."""
    curve: float = 2.0
    """Exponent from deflection to speed: above 1 small motions are finer. 1: proportional."""
    rise_s: float = 0.0
    """How long full speed takes to build up. It ends at once."""
    gripper: GripperMode = "toggle"
    """"toggle": each press of its button closes or opens it. "hold": it is closed while the button is down. "axis": it
    goes with a trigger, where the device has one, from the moment when that is moved."""

    def __post_init__(self) -> None:
        checks = {
            "speed_m_s": (self.speed_m_s, 0 < self.speed_m_s <= 2, "above 0, up to 2"),
            "speed_rad_s": (self.speed_rad_s, 0 < self.speed_rad_s <= 6, "above 0, up to 6"),
            "view_yaw_deg": (self.view_yaw_deg, abs(self.view_yaw_deg) <= 360, "-360 to 360"),
            "dead_zone": (self.dead_zone, 0 <= self.dead_zone < 1, "0 to below 1"),
            "curve": (self.curve, 0.5 <= self.curve <= 5, "0.5 to 5"),
            "rise_s": (self.rise_s, 0 <= self.rise_s <= 5, "0 to 5"),
        }
        for name, (value, fine, valid) in checks.items():
            if not fine:
                raise DeviceError(f"{name} is {value}; valid: {valid}")
        if self.view_yaw_deg and self.frame != "view":
            raise DeviceError(f"view_yaw_deg counts in frame: view, not in frame: {self.frame}; change one of them")


@dataclass(frozen=True, eq=False)
class Deflection:
    """What a device says at one instant."""

    capture_ns: int
    axes: np.ndarray
    """(6,) see the module"""
    held: bool
    """The deadman"""
    gripper: bool = False
    """The gripper's button is down."""
    trigger: float = math.nan
    """Of the gripper: 0 released to 1 pulled through; NaN where there is none."""


class RateMotion:
    """Makes intents of one device's deflections, in the order in which they were captured."""

    def __init__(self, config: RateConfig) -> None:
        self._config = config
        self._mask = np.array([axis in config.axes for axis in AXES], np.float64)
        self._into_base = _yawed(math.radians(config.view_yaw_deg)) if config.frame == "view" else np.eye(3)
        self._gripper = Gripper(config.gripper)
        self.forget()

    def forget(self) -> None:
        """After the device was gone: it begins at rest, and what is down was not pressed."""
        self._linear, self._angular = np.zeros(3), np.zeros(3)
        self._capture_ns = 0
        self._gripper.let_go(pressed=True)

    def intent(self, said: Deflection, buttons: Mapping[str, bool] | None = None) -> Intent:
        """What a person wants who holds the device like that. ``buttons`` go through."""
        config = self._config
        since_s = min(max(said.capture_ns - self._capture_ns, 0) / SECOND_NS, _LONGEST_S)
        self._capture_ns = said.capture_ns
        if not said.held or not np.isfinite(said.axes).all():
            self._linear, self._angular = np.zeros(3), np.zeros(3)
            self._gripper.let_go(pressed=said.gripper)
            return Intent(said.capture_ns, enabled=False, twist=np.zeros(6), buttons=dict(buttons or {}))
        share = shaped(said.axes, config.dead_zone, config.curve) * self._mask
        grow = since_s / config.rise_s if config.rise_s else math.inf
        self._linear = _risen(self._linear, _within(share[:3]), grow)
        self._angular = _risen(self._angular, _within(share[3:]), grow)
        twist = np.concatenate(
            (
                self._into_base @ self._linear * config.speed_m_s,
                self._into_base @ self._angular * config.speed_rad_s,
            )
        )
        return Intent(
            said.capture_ns,
            enabled=True,
            twist=twist,
            tool_axes=config.frame == "tool",
            gripper=self._gripper.wanted(pressed=said.gripper, trigger=said.trigger),
            buttons=dict(buttons or {}),
        )


class Gripper:
    """What the gripper shall do: 0 closed, 1 open; NaN: it stays as it is.

    It stays until its button is pressed, or its trigger moved, with the deadman held: whoever takes over from a policy
    does not drop what that has gripped.
    """

    def __init__(self, mode: GripperMode) -> None:
        self._mode = mode
        self._last = 1.0
        self._down = False
        self.let_go()

    def let_go(self, *, pressed: bool = False) -> None:
        """The deadman is not held; ``pressed``: the button is down."""
        self._down = pressed
        self._wanted = math.nan
        self._rest: float | None = None

    def wanted(self, *, pressed: bool, trigger: float) -> float:
        """With the deadman held."""
        anew, self._down = pressed and not self._down, pressed
        match self._mode:
            case "toggle" if anew:
                self._wanted = 0.0 if self._last > 0.5 else 1.0
            case "hold" if anew or not math.isnan(self._wanted):
                self._wanted = 0.0 if pressed else 1.0
            case "axis" if math.isfinite(trigger):
                self._rest = trigger if self._rest is None else self._rest
                if not math.isnan(self._wanted) or abs(trigger - self._rest) > _MOVED:
                    self._wanted = 1.0 - min(max(trigger, 0.0), 1.0)
            case _:
                pass
        self._last = self._last if math.isnan(self._wanted) else self._wanted
        return self._wanted


def shaped(axes: np.ndarray, dead_zone: float, curve: float) -> np.ndarray:
    """Of each deflection -1..1 the share of the speed, -1..1: none within the dead zone, continuous at its edge."""
    size = (np.minimum(np.abs(axes), 1.0) - dead_zone) / (1.0 - dead_zone)
    return np.sign(axes) * np.maximum(size, 0.0) ** curve


def _within(share: np.ndarray) -> np.ndarray:
    """(3,) at most 1 long: no faster along a diagonal."""
    return share / max(1.0, float(np.linalg.norm(share)))


def _risen(last: np.ndarray, wanted: np.ndarray, grow: float) -> np.ndarray:
    """``wanted`` (3,), whose length has grown by at most ``grow``; a reversal begins at rest."""
    before = float(np.linalg.norm(last)) if float(last @ wanted) > 0 else 0.0
    length = float(np.linalg.norm(wanted))
    return wanted if length <= before + grow else wanted * ((before + grow) / length)


def _yawed(yaw: float) -> np.ndarray:
    """(3, 3) from the axes of somebody who is turned by ``yaw`` about z."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    return np.array(((cosine, -sine, 0.0), (sine, cosine, 0.0), (0.0, 0.0, 1.0)))
