"""How the arms are built: joints, the motors that move them, and how far.

Sources: SO-101, "so101_new_calib.urdf" of TheRobotStudio's SO-ARM100 (zero is the middle of each joint's range; SO-100
is taken to move alike); Koch v1.1, its bill of materials, and LeRobot's gains of its elbow; ViperX and WidowX with 6
degrees of freedom, Interbotix's vx300s.yaml and wx250s.yaml (limits in ticks around 2048), gripper ends of ALOHA's
constants.py; GELLO, its published leader for UR and Franka arms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robolearn_hardware.devices import JointLimits
from robolearn_hardware.limits import limits_of
from robolearn_hardware.servo.registers import MOTORS, RAD_PER_TICK, ControlTable

_ANY = (-math.pi, math.pi)


@dataclass(frozen=True)
class ServoJoint:
    """One motor of an arm, and what it moves."""

    name: str
    motor: int
    """Its ID on the bus."""
    kind: str
    """A name of ``MOTORS``."""
    low: float = _ANY[0]
    """rad; the gripper's closed end"""
    high: float = _ANY[1]
    """rad; the gripper's open end"""
    direction: int = 1
    """-1: more ticks is less of an angle, as the factory delivers the arm."""
    full_turn: bool = False
    """It turns without an end, so that nobody can move it to both."""
    shadow_of: str = ""
    """The joint that this motor moves together with the one of that name."""
    gains: tuple[int, int, int] | None = None
    """Position P, I and D, where the motor's own are too weak (Dynamixel)."""


@dataclass(frozen=True)
class ServoArmModel:
    name: str
    motors: tuple[ServoJoint, ...]
    """In the order of the arm's joints, shadows behind the motor they go with, and the gripper last."""
    baud: int
    gripper: str = "gripper"
    """The name of the motor that is the gripper; "" for none."""
    published: str = ""
    """The key in ``limits.LIMITS`` under which its speeds are known."""
    factory_calibrated: bool = False
    """Delivered so that every joint's zero is tick 2048."""

    @property
    def table(self) -> ControlTable:
        return MOTORS[self.motors[0].kind].table

    @property
    def joints(self) -> tuple[ServoJoint, ...]:
        """Without gripper and shadows."""
        return tuple(m for m in self.motors if m.name != self.gripper and not m.shadow_of)

    @property
    def limits(self) -> JointLimits:
        """Of the joints (J,). The ranges are those of this module: they are what the motors are set to."""
        low = np.array([joint.low for joint in self.joints])
        high = np.array([joint.high for joint in self.joints])
        if self.published:
            known = limits_of(self.published)
            return JointLimits(low, high, known.velocity, known.acceleration, known.jerk)
        speed = np.array([MOTORS[joint.kind].speed for joint in self.joints])
        unknown = np.full(len(low), np.inf)
        return JointLimits(low, high, speed, unknown, unknown)


def _so_arm(name: str) -> ServoArmModel:
    ranges = {
        "shoulder_pan": (-1.91986, 1.91986),
        "shoulder_lift": (-1.74533, 1.74533),
        "elbow_flex": (-1.69, 1.69),
        "wrist_flex": (-1.65806, 1.65806),
        "wrist_roll": (-2.74385, 2.84121),
    }
    joints = [
        ServoJoint(joint, i, "sts3215", ends[0], ends[1], full_turn=joint == "wrist_roll")
        for i, (joint, ends) in enumerate(ranges.items(), start=1)
    ]
    gripper = ServoJoint("gripper", 6, "sts3215", -0.17453, 1.74533)
    return ServoArmModel(name, (*joints, gripper), 1_000_000, published=name)


def _koch(name: str, kinds: tuple[str, ...], published: str) -> ServoArmModel:
    names = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
    joints = [
        ServoJoint(
            joint,
            i,
            kinds[i - 1],
            full_turn=joint in ("shoulder_pan", "wrist_roll"),
            gains=(1500, 0, 600) if joint == "elbow_flex" else None,
        )
        for i, joint in enumerate(names, start=1)
    ]
    return ServoArmModel(name, (*joints, ServoJoint("gripper", 6, kinds[5], -0.6, 0.9)), 1_000_000, published=published)


def _at(ticks: int) -> float:
    return (ticks - 2048) * RAD_PER_TICK


def _interbotix(
    name: str,
    kinds: tuple[str, str, str],
    shoulder: tuple[int, int],
    elbow: tuple[int, int],
    wrist: tuple[int, int],
    grip: tuple[float, float],
) -> ServoArmModel:
    """``kinds``: of the arm, the last joint and the gripper. Direction stays 1: the motors' own drive mode turns some
    of them around."""
    arm, rotate, gripper = kinds
    return ServoArmModel(
        name,
        (
            ServoJoint("waist", 1, arm, full_turn=True),
            ServoJoint("shoulder", 2, arm, _at(shoulder[0]), _at(shoulder[1])),
            ServoJoint("shoulder_shadow", 3, arm, _at(shoulder[0]), _at(shoulder[1]), shadow_of="shoulder"),
            ServoJoint("elbow", 4, arm, _at(elbow[0]), _at(elbow[1])),
            ServoJoint("elbow_shadow", 5, arm, _at(elbow[0]), _at(elbow[1]), shadow_of="elbow"),
            ServoJoint("forearm_roll", 6, arm, full_turn=True),
            ServoJoint("wrist_angle", 7, arm, _at(wrist[0]), _at(wrist[1])),
            ServoJoint("wrist_rotate", 8, rotate, full_turn=True),
            ServoJoint("gripper", 9, gripper, grip[0], grip[1]),
        ),
        1_000_000,
        published=name,
        factory_calibrated=True,
    )


def _gello(joints: int) -> ServoArmModel:
    motors = [ServoJoint(f"joint_{i}", i, "xl330-m288", full_turn=True) for i in range(1, joints + 1)]
    trigger = ServoJoint("gripper", joints + 1, "xl330-m077", -0.3, 0.5)
    return ServoArmModel(f"gello{joints}", (*motors, trigger), 57_600)


_M077, _M288, _XL430 = "xl330-m077", "xl330-m288", "xl430-w250"
_XM430, _XM540 = "xm430-w350", "xm540-w270"

MODELS: dict[str, ServoArmModel] = {
    model.name: model
    for model in (
        _so_arm("so100"),
        _so_arm("so101"),
        _koch("koch", (_XL430, _XL430, _M288, _M288, _M288, _M288), "koch"),
        _koch("koch_leader", (_M077,) * 6, ""),
        _interbotix("widowx", (_XM430, _XL430, _XL430), (819, 3345), (648, 3094), (910, 3447), (-0.6842, 0.3083)),
        _interbotix("viperx", (_XM540, _XM430, _XM430), (841, 2867), (898, 3094), (830, 3504), (-0.6213, 1.4910)),
        _gello(6),
        _gello(7),
    )
}
"""By name. Leaders of SO-100, SO-101 are built as their followers. ViperX: vx300s; WidowX: wx250s."""
