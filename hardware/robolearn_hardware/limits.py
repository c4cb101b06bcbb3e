"""Published limits of arms, as data per model and firmware. Where documents or firmwares differ, the tighter holds.

``limits_of("fr3")`` is what a driver, an inverse kinematics or a safety limiter starts from; a rig may narrow it
(``narrowed``), never widen it. Infinite = nothing is published.

Zero of each joint: the manufacturer's. SO-100, SO-101 and Koch: the middle of its range, as LeRobot calibrates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, pi, radians

import numpy as np

from robolearn_hardware.devices import DeviceError, JointLimits

Values = float | tuple[float, ...]
"""One number per joint, or one for all."""


@dataclass(frozen=True)
class ToolLimits:
    """Of the tool's centre. Infinite where nothing is published."""

    speed: float = inf
    """m/s"""
    acceleration: float = inf
    """m/s^2"""
    jerk: float = inf
    """m/s^3"""
    angular_speed: float = inf
    """rad/s"""
    angular_acceleration: float = inf
    """rad/s^2"""
    angular_jerk: float = inf
    """rad/s^3"""


@dataclass(frozen=True)
class Braking:
    """A velocity limit that falls to zero towards the end of a joint's range, so that the arm can always brake:
    v <= sqrt(deceleration (high - q)) - offset, and alike towards ``low``."""

    offset: tuple[float, ...]
    """rad/s"""
    deceleration: tuple[float, ...]
    """rad/s^2"""
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Published:
    """What one document says of one arm."""

    source: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    velocity: Values
    acceleration: Values = inf
    jerk: Values = inf
    tool: ToolLimits = ToolLimits()
    braking: Braking | None = None


def limits_of(model: str, firmware: str = "") -> JointLimits:
    """The joint limits of ``model``, a key of ``LIMITS``.

    Args:
        firmware: a key of ``LIMITS[model]``. Anything else: the tightest of all that are known of the model.

    Raises:
        DeviceError: no such model.
    """
    found = _published(model, firmware)
    joints = len(found[0].low)

    def tightest(values: Sequence[Values]) -> np.ndarray:
        return np.min([np.broadcast_to(np.array(value, np.float64), joints) for value in values], axis=0)

    return JointLimits(
        low=np.max([p.low for p in found], axis=0).astype(np.float64),
        high=np.min([p.high for p in found], axis=0).astype(np.float64),
        velocity=tightest([p.velocity for p in found]),
        acceleration=tightest([p.acceleration for p in found]),
        jerk=tightest([p.jerk for p in found]),
    )


def tool_limits_of(model: str, firmware: str = "") -> ToolLimits:
    """The limits of the tool's motion; arguments and errors as ``limits_of``."""
    tools = [p.tool for p in _published(model, firmware)]
    names = ToolLimits.__dataclass_fields__
    return ToolLimits(**{name: min(getattr(tool, name) for tool in tools) for name in names})


def velocity_range(model: str, positions: np.ndarray, firmware: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The lowest (J,) <= 0 and the highest (J,) >= 0 velocity, rad/s, that the arm accepts at ``positions`` (J,) rad.

    The same everywhere, but of the FR3, whose controller stops the arm when it comes too fast near the end of a range.
    Arguments and errors as ``limits_of``.
    """
    highest = limits_of(model, firmware).velocity
    lowest = -highest
    for braking in (p.braking for p in _published(model, firmware) if p.braking):
        offset, deceleration = np.array(braking.offset), np.array(braking.deceleration)
        up = np.sqrt(np.maximum(deceleration * (np.array(braking.high) - positions), 0.0)) - offset
        down = np.sqrt(np.maximum(deceleration * (positions - np.array(braking.low)), 0.0)) - offset
        highest, lowest = np.minimum(highest, np.maximum(up, 0.0)), np.maximum(lowest, -np.maximum(down, 0.0))
    return lowest, highest


def brakes_early(model: str, firmware: str = "") -> bool:
    """Whether ``velocity_range`` depends on the positions."""
    return any(p.braking for p in _published(model, firmware))


def narrowed(limits: JointLimits, other: JointLimits) -> JointLimits:
    """The tighter of both, joint by joint.

    Raises:
        DeviceError: another number of joints, or nothing is left of a joint's range.
    """
    if limits.joints != other.joints:
        raise DeviceError(f"limits of {other.joints} joints do not fit an arm of {limits.joints}")
    low, high = np.maximum(limits.low, other.low), np.minimum(limits.high, other.high)
    if (low > high).any():
        j = int(np.argmax(low > high))
        raise DeviceError(
            f"joint {j} would have no range left: {other.low[j]:.3f} to {other.high[j]:.3f} rad lies outside its "
            f"{limits.low[j]:.3f} to {limits.high[j]:.3f}"
        )
    return JointLimits(
        low,
        high,
        np.minimum(limits.velocity, other.velocity),
        np.minimum(limits.acceleration, other.acceleration),
        np.minimum(limits.jerk, other.jerk),
    )


def _published(model: str, firmware: str) -> list[Published]:
    if model not in LIMITS:
        raise DeviceError(f"no limits are known of an arm {model!r}; valid: {', '.join(sorted(LIMITS))}")
    known = LIMITS[model]
    return [known[firmware]] if firmware in known else list(known.values())


def _symmetric(*degrees: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    high = tuple(map(radians, degrees))
    return tuple(-value for value in high), high


def _degrees(*degrees: float) -> tuple[float, ...]:
    return tuple(map(radians, degrees))


_SO_SPEED = 2 * pi * 45 / 60
"""Feetech STS3215, 12 V datasheet: 0.222 s/60 deg without load; the 7.4 V motor is faster (0.192 s/60 deg)."""
_SO_ACCELERATION = 2 * pi * 254 * 100 / 4096
"""Greatest that the STS3215's acceleration register (address 41, unit 100 steps/s^2) can state."""


def _so_arm(source: str, *high: float) -> dict[str, Published]:
    return {"": Published(source, tuple(-value for value in high), high, _SO_SPEED, _SO_ACCELERATION)}


def _universal_robots(manual: str, speeds: tuple[float, ...], tool: float) -> dict[str, Published]:
    """``speeds`` in deg/s. The manual gives every joint +-360 deg. No accelerations are published."""
    low, high = _symmetric(*[360.0] * 6)
    return {"": Published(manual, low, high, _degrees(*speeds), tool=ToolLimits(speed=tool))}


_UFACTORY = "UFACTORY xArm/Lite6 user manual, technical specifications and appendix 'motion parameters'"
_XARM_TOOL = ToolLimits(speed=1.0, acceleration=50.0, jerk=100.0)
_TURN = 360.0


def _xarm(standard: tuple[tuple[float, float], ...], later: tuple[tuple[float, float], ...]) -> dict[str, Published]:
    """Ranges in deg. All: 180 deg/s, 1145 deg/s^2, 28647 deg/s^3."""

    def published(source: str, ranges: tuple[tuple[float, float], ...]) -> Published:
        low, high = zip(*(_degrees(*pair) for pair in ranges), strict=True)
        return Published(source, low, high, pi, radians(1145), radians(28647), _XARM_TOOL)

    return {
        "": published(f"{_UFACTORY}, 3.1", standard),
        "1305": published(f"{_UFACTORY}; arms whose serial number says 1305 (joint limits of their controller)", later),
    }


_FRANKA = "Franka control interface documentation, robot and interface specifications"
_FR3_BRAKING = Braking(
    offset=(0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35),
    deceleration=(12.0, 5.17, 7.00, 8.00, 34.0, 11.0, 34.0),
    low=(-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196),
    high=(2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196),
)
_FR3_VELOCITY = (2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26)
_FR3_TOOL = ToolLimits(3.0, 9.0, 4500.0, 2.5, 17.0, 8500.0)

LIMITS: dict[str, dict[str, Published]] = {
    "so100": _so_arm(
        "ranges of the SO-100's published simulation model, about their middle; Feetech STS3215 datasheet",
        *(1.91986, 1.74533, 1.658, 1.65806, 2.79253),
    ),
    "so101": _so_arm(
        "SO-ARM100 repository, SO-101 model of the new calibration; Feetech STS3215 datasheet",
        *(1.91986, 1.74533, 1.69, 1.65806, 2.79253),
    ),
    "koch": {
        "": Published(
            "no ranges are published: one turn of the encoder; ROBOTIS: XL430-W250 57 rpm at 11.1 V (joints 1 and 2), "
            "XL330-M288 103 rpm at 5 V",
            (-pi,) * 5,
            (pi,) * 5,
            (5.97, 5.97, 10.79, 10.79, 10.79),
        )
    },
    "widowx": {
        "": Published(
            "Trossen Robotics, WidowX-250 6DOF: specifications and robot description",
            _degrees(-180, -108, -123, -180, -100, -180),
            _degrees(180, 114, 92, 180, 123, 180),
            pi,
        )
    },
    "viperx": {
        "": Published(
            # Its specification page has +-101 deg for the shoulder, and its sleep pose stands at -106.
            "Trossen Robotics, ViperX-300 6DOF: robot description",
            _degrees(-180, -106, -101, -180, -107, -180),
            _degrees(180, 72, 92, 180, 128, 180),
            pi,
        )
    },
    "ur3e": _universal_robots("UR3e technical specification", (180, 180, 180, 360, 360, 360), 1.0),
    "ur5e": _universal_robots("UR5e technical specification", (180,) * 6, 1.0),
    "ur10e": _universal_robots("UR10e technical specification", (120, 120, 180, 180, 180, 180), 1.0),
    "ur16e": _universal_robots("UR16e technical specification", (120, 120, 180, 180, 180, 180), 1.0),
    "ur20": _universal_robots("UR20 technical specification", (120, 120, 150, 210, 210, 210), 2.0),
    "fer": {
        "": Published(
            f"{_FRANKA}: limits for Panda",
            (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973),
            (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973),
            (2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61),
            (15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0),
            (7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0),
            ToolLimits(1.7, 13.0, 6500.0, 2.5, 25.0, 12500.0),
        )
    },
    "fr3": {
        "2023": Published(
            f"{_FRANKA}: limits for Franka Research 3; franka_description up to 1.0",
            (-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159),
            (2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159),
            _FR3_VELOCITY,
            10.0,
            5000.0,
            _FR3_TOOL,
            _FR3_BRAKING,
        ),
        "2025": Published(
            "franka_description from 1.1 (braking: that of 2023, which is not looser)",
            (-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508),
            (2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508),
            _FR3_VELOCITY,
            10.0,
            5000.0,
            _FR3_TOOL,
            _FR3_BRAKING,
        ),
    },
    "xarm5": _xarm(
        ((-_TURN, _TURN), (-118, 120), (-225, 11), (-97, 180), (-_TURN, _TURN)),
        ((-_TURN, _TURN), (-117, 116), (-219, 10), (-97, 180), (-_TURN, _TURN)),
    ),
    "xarm6": _xarm(
        ((-_TURN, _TURN), (-118, 120), (-225, 11), (-_TURN, _TURN), (-97, 180), (-_TURN, _TURN)),
        ((-_TURN, _TURN), (-117, 116), (-219, 10), (-_TURN, _TURN), (-97, 180), (-_TURN, _TURN)),
    ),
    "xarm7": _xarm(
        ((-_TURN, _TURN), (-118, 120), (-_TURN, _TURN), (-11, 225), (-_TURN, _TURN), (-97, 180), (-_TURN, _TURN)),
        ((-_TURN, _TURN), (-117, 116), (-_TURN, _TURN), (-6, 225), (-_TURN, _TURN), (-97, 180), (-_TURN, _TURN)),
    ),
    "lite6": {
        "": Published(
            f"{_UFACTORY} of the Lite 6",
            _degrees(-_TURN, -150, -3.5, -_TURN, -124, -_TURN),
            _degrees(_TURN, 150, 300, _TURN, 124, _TURN),
            pi,
            radians(1145),
            radians(28647),
            ToolLimits(speed=0.5, acceleration=50.0, jerk=100.0),
        )
    },
}
"""Model -> firmware (a revision of the arm or of its document; "" = the only one, or the usual one) -> limits."""
