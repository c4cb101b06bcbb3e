"""Kinematics that makers publish, as chains of joints, and the MuJoCo model of each.

A row places a joint in the frame of the one before (of the base, for the first). Base frames are the controllers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

from robolearn_hardware.limits import limits_of

HALF = pi / 2


@dataclass(frozen=True)
class Joint:
    """``position`` (m) and ``quaternion`` (w, x, y, z) in the parent's frame; turns about ``axis`` in its own."""

    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    axis: tuple[int, int, int] = (0, 0, 1)


@dataclass(frozen=True)
class Chain:
    source: str
    joints: tuple[Joint, ...]
    flange: Joint = Joint((0.0, 0.0, 0.0))
    """The flange in the last joint's frame, z pointing out; its axis means nothing. Of ViperX and WidowX: the point
    between the fingers."""


def _dh(alpha: float, a: float, d: float, theta: float = 0.0) -> Joint:
    """A row of modified Denavit-Hartenberg parameters (Craig): Rx(alpha) Tx(a) Rz(theta) Tz(d)."""
    ca, sa, ct, st = cos(alpha / 2), sin(alpha / 2), cos(theta / 2), sin(theta / 2)
    return Joint((a, -d * sin(alpha), d * cos(alpha)), (ca * ct, sa * ct, -sa * st, ca * st))


def _universal_robots(d1: float, a2: float, a3: float, d4: float, d5: float, d6: float) -> Chain:
    """The distal (classical) parameters of Universal Robots' article, moved one row on."""
    rows = ((0, 0, d1), (HALF, 0, 0), (0, a2, 0), (0, a3, d4), (HALF, 0, d5), (-HALF, 0, d6))
    return Chain(
        "Universal Robots, 'DH parameters for calculations of kinematics and dynamics'",
        tuple(_dh(alpha, a, d) for alpha, a, d in rows),
    )


_XARM = "UFACTORY user manual, appendix: modified D-H parameters"
_XARM_BEND = 1.3849179
"""rad: atan(284.5 / 53), the bend of the xArm's upper arm."""

_FRANKA = Chain(
    "Franka control interface documentation: Denavit-Hartenberg parameters (Craig's convention)",
    (
        _dh(0, 0, 0.333),
        _dh(-HALF, 0, 0),
        _dh(HALF, 0, 0.316),
        _dh(HALF, 0.0825, 0),
        _dh(-HALF, -0.0825, 0.384),
        _dh(HALF, 0, 0),
        _dh(HALF, 0.088, 0),
    ),
    Joint((0.0, 0.0, 0.107)),
)


def _trossen(
    source: str, shoulder: float, elbow: tuple[float, float], roll: float, wrist: float, rotate: float, tip: float
) -> Chain:
    """Lengths in m along the stretched arm: x forward, z up; ``shoulder`` is the height of its axis."""
    y, x = (0, 1, 0), (1, 0, 0)
    return Chain(
        source,
        (
            Joint((0.0, 0.0, 0.0)),
            Joint((0.0, 0.0, shoulder), axis=y),
            Joint((elbow[0], 0.0, elbow[1]), axis=y),
            Joint((roll, 0.0, 0.0), axis=x),
            Joint((wrist, 0.0, 0.0), axis=y),
            Joint((rotate, 0.0, 0.0), axis=x),
        ),
        Joint((tip, 0.0, 0.0), (0.5**0.5, 0.0, 0.5**0.5, 0.0)),  # z forward, y to the left, across the fingers
    )


CHAINS: dict[str, Chain] = {
    "ur3e": _universal_robots(0.15185, -0.24355, -0.2132, 0.13105, 0.08535, 0.0921),
    "ur5e": _universal_robots(0.1625, -0.425, -0.3922, 0.1333, 0.0997, 0.0996),
    "ur10e": _universal_robots(0.1807, -0.6127, -0.57155, 0.17415, 0.11985, 0.11655),
    "ur16e": _universal_robots(0.1807, -0.4784, -0.36, 0.17415, 0.11985, 0.11655),
    "ur20": _universal_robots(0.2363, -0.862, -0.7287, 0.201, 0.1593, 0.1543),
    "fer": _FRANKA,
    "fr3": _FRANKA,
    "xarm5": Chain(
        _XARM,
        (
            _dh(0, 0, 0.267),
            _dh(-HALF, 0, 0, -_XARM_BEND),
            _dh(0, 0.28948866, 0, 2.7331843),
            _dh(0, 0.351158796, 0, -1.3482664),
            _dh(-HALF, 0.076, 0.097),
        ),
    ),
    "xarm6": Chain(
        _XARM,
        (
            _dh(0, 0, 0.267),
            _dh(-HALF, 0, 0, -_XARM_BEND),
            _dh(0, 0.28948866, 0, _XARM_BEND),
            _dh(-HALF, 0.0775, 0.3425),
            _dh(HALF, 0, 0),
            _dh(-HALF, 0.076, 0.097),
        ),
    ),
    "xarm7": Chain(
        _XARM,
        (
            _dh(0, 0, 0.267),
            _dh(-HALF, 0, 0),
            _dh(HALF, 0, 0.293),
            _dh(HALF, 0.0525, 0),
            _dh(HALF, 0.0775, 0.3425),
            _dh(HALF, 0, 0),
            _dh(-HALF, 0.076, 0.097),
        ),
    ),
    "lite6": Chain(
        _XARM,
        (
            _dh(0, 0, 0.2433),
            _dh(-HALF, 0, 0, -HALF),
            _dh(pi, 0.2, 0, -HALF),
            _dh(HALF, 0.087, 0.2276),
            _dh(HALF, 0, 0),
            _dh(-HALF, 0, 0.0615),
        ),
    ),
    "widowx": _trossen(
        "Trossen Robotics, WidowX-250 6DOF: drawing and robot description",
        *(0.11065, (0.04975, 0.25), 0.175, 0.075, 0.065, 0.0765),
    ),
    "viperx": _trossen(
        "Trossen Robotics, ViperX-300 6DOF: drawing and robot description",
        *(0.12705, (0.05955, 0.3), 0.2, 0.1, 0.069744, 0.0765),
    ),
}


def chain_xml(model: str) -> str:
    """MJCF of a chain: bodies "link1"..., joints "joint1"... with the arm's range, the site "flange". Its masses mean
    nothing."""
    chain, limits = CHAINS[model], limits_of(model)
    opened, closed = [], []
    for i, joint in enumerate(chain.joints):
        opened.append(
            f'<body name="link{i + 1}" pos="{_text(joint.position)}" quat="{_text(joint.quaternion)}">'
            f'<inertial pos="0 0 0" mass="1" diaginertia="0.01 0.01 0.01"/>'
            f'<joint name="joint{i + 1}" axis="{_text(joint.axis)}" range="{limits.low[i]!r} {limits.high[i]!r}"/>'
        )
        closed.append("</body>")
    flange = f'<site name="flange" pos="{_text(chain.flange.position)}" quat="{_text(chain.flange.quaternion)}"/>'
    bodies = "\n".join([*opened, flange, *closed])
    return (
        f'<mujoco model="{model}"><compiler angle="radian" autolimits="true"/>'
        f"<worldbody>\n{bodies}\n</worldbody></mujoco>"
    )


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:.10g}" for value in values)
