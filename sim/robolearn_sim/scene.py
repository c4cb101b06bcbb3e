"""The scene behind an arm's twin: the arm, a table with cubes, a plate and a bin, three cameras, and a parallel gripper
where the arm brings none.

World = the arm's base frame. Arms: SO-101 as ``robolearn_hardware.models`` has it; FER, FR3, UR5e and xArm7 as they lie
in robosuite's wheel, read there and changed in memory; the others as ``drawn_arms`` draws them. Whoever builds a scene
from the same arguments gets the same joints, so that positions alone tell another process what to draw.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.limits import limits_of
from robolearn_hardware.models import FILES, ROBOSUITE, arm_xml
from robolearn_sim.drawn_arms import drawn_arm

CAMERAS = ("front", "top", "wrist")


@dataclass(frozen=True)
class ArmPhysics:
    """What turns a drawing into an arm that follows positions."""

    torque: tuple[float, ...]
    """N m of each joint at most"""
    stiffness: tuple[float, ...]
    """N m/rad of each position servo"""
    size: float
    """Of table, cubes and distances, in metres: about the arm's reach."""
    compensated: bool
    """Its controller carries its weight, and brakes hold it when the motors are off. Otherwise it sags and falls."""
    turned: bool = False
    """In its base frame it reaches along -x, so that the table stands there."""
    weight: float = 0.0
    """Of its moving parts, kg, where it is drawn; the others know it."""


def _robot(torque: tuple[float, ...], stiffness: float, size: float, weight: float = 0.0) -> ArmPhysics:
    return ArmPhysics(torque, tuple(stiffness * t for t in torque), size, compensated=True, weight=weight)


def _universal(torque: tuple[float, float, float, float], size: float, weight: float = 0.0) -> ArmPhysics:
    three = (torque[3],) * 3
    stiffness = (135.0 * torque[0], 135.0 * torque[1], 135.0 * torque[2], *(143.0 * t for t in three))
    return ArmPhysics((*torque[:3], *three), stiffness, size, compensated=True, turned=True, weight=weight)


def _servos(torque: tuple[float, ...], size: float, weight: float) -> ArmPhysics:
    return ArmPhysics(torque, tuple(30.0 * t for t in torque), size, compensated=False, weight=weight)


_FRANKA = _robot((87.0,) * 4 + (12.0,) * 3, 100.0, 0.8)
ARMS: dict[str, ArmPhysics] = {
    "so101": _servos((1.9,) * 5, 0.35, 0.0),
    "widowx": _servos((10.0, 20.0, 15.0, 2.0, 5.0, 1.0), 0.5, 1.9),
    "viperx": _servos((10.0, 20.0, 15.0, 2.0, 5.0, 1.0), 0.6, 2.6),
    "ur3e": _universal((56.0, 56.0, 28.0, 12.0), 0.5, 9.0),
    "ur5e": _universal((150.0, 150.0, 150.0, 28.0), 0.8),
    "ur10e": _universal((330.0, 330.0, 150.0, 56.0), 1.1, 28.0),
    "ur16e": _universal((330.0, 330.0, 150.0, 56.0), 0.8, 28.0),
    "ur20": _universal((738.0, 738.0, 433.0, 107.0), 1.5, 54.0),
    "fer": _FRANKA,
    "fr3": _FRANKA,
    "xarm5": _robot((50.0, 50.0, 32.0, 32.0, 20.0), 130.0, 0.65, 9.0),
    "xarm6": _robot((50.0, 50.0, 32.0, 32.0, 32.0, 20.0), 130.0, 0.65, 10.0),
    "xarm7": _robot((80.0,) * 4 + (50.0,) * 2 + (20.0,), 100.0, 0.7),
    "lite6": _robot((50.0, 50.0, 32.0, 32.0, 32.0, 20.0), 100.0, 0.42, 5.5),
}
"""Torques: so101, Feetech STS3215 at 7.4 V; the others, their makers' data sheets or robot descriptions; lite6, as the
xArm 6. Weights: of the data sheets, less a base. Stiffnesses: ours."""

_SETTINGS = """
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="0.002" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual><headlight ambient="0.35 0.35 0.35" diffuse="0.4 0.4 0.4"/><map znear="0.005"/></visual>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.85 0.88 0.92" rgb2="0.6 0.65 0.7" width="64"
      height="64"/>
  </asset>
</mujoco>"""

_FLANGES = {"panda": "right_hand", "ur5e": "right_hand", "xarm7": "link7"}
"""Bodies of robosuite's models."""
_GRIPPER_M = 0.12
"""From the parallel gripper's screws to its fingertips."""
_JAW = (1.9, 20.0, 1.0)
"""Greatest torque (N m), stiffness (N m/rad) and damping (N m s/rad) of the SO-101's gripper."""
_FINGER = (40.0, 2000.0, 40.0)
"""The same of the parallel gripper, in N, N/m and N s/m."""


def build_scene(model: str, *, has_gripper: bool, pictures: bool = True) -> Any:
    """The mujoco.MjModel of an arm of ``model`` at its table.

    Actuators 0..J-1 are the joints' position servos; then that of the gripper, whose target is 0 (closed) to 1 (open).
    Joints 0..J-1 are the arm's.

    Args:
        pictures: False leaves out the meshes that are only looked at: quicker to build, the same to simulate.

    Raises:
        DeviceError: there is no scene for that arm, or robosuite or MuJoCo is not installed.
    """
    if model not in ARMS:
        raise DeviceError(f"there is no scene with an arm {model!r}; valid: {', '.join(ARMS)}")
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ImportError as error:
        raise DeviceError(f"a scene needs MuJoCo ({error}): pip install 'robolearn[sim]'") from None
    physics = ARMS[model]
    scene = mujoco.MjSpec.from_string(_SETTINGS)
    parts = [arm_spec(mujoco, model, pictures=pictures)]  # first, so that its joints are
    texts = (_tabletop(physics.size), _cubes(physics.size), _places(physics.size))
    parts += [mujoco.MjSpec.from_string(text) for text in texts]
    for part in parts:
        # robosuite turns the UR5e, so that it reaches along x; in the controller's base frame it does not.
        turned = physics.turned and (part is not parts[0] or model in ROBOSUITE)
        frame = scene.worldbody.add_frame(quat=(0, 0, 0, 1) if turned else (1, 0, 0, 0))
        scene.attach(part, frame=frame, prefix="")
    if model not in FILES:
        _equip(mujoco, scene, model, has_gripper=has_gripper)
    _drive(mujoco, scene, model, has_gripper=has_gripper)
    return scene.compile()


def _cubes(size: float) -> str:
    """Of 7 % of ``size`` (m), and 7 cm at most, where the arm reaches well."""
    half = 0.035 * min(size, 1.0)
    colours = {"red": "0.85 0.1 0.1 1", "green": "0.1 0.6 0.15 1", "blue": "0.1 0.25 0.85 1"}
    bodies = "".join(
        f'<body name="{name}" pos="{0.62 * size:g} {side * size:g} {half:g}"><freejoint name="{name}"/>'
        f'<geom type="box" size="{half:g} {half:g} {half:g}" rgba="{rgba}" density="400" condim="4" group="1"'
        f' friction="1 0.02 0.001" solimp="0.95 0.99 0.001" solref="0.005 1"/></body>'
        for (name, rgba), side in zip(colours.items(), (-0.25, 0.0, 0.25), strict=True)
    )
    return f"<mujoco><worldbody>{bodies}</worldbody></mujoco>"


def _places(size: float) -> str:
    """A plate to the arm's right and a bin to its left, fixed to the table."""
    radius, rim, wall, high = 0.13 * size, 0.006 * size, 0.01 * size, 0.07 * size
    sides = "".join(
        f'<geom name="bin_{i}" type="box" pos="{x * (radius - wall):g} {y * (radius - wall):g} {high / 2:g}" size='
        f'"{wall if x else radius:g} {wall if y else radius:g} {high / 2:g}" rgba="0.35 0.4 0.5 1" group="1"/>'
        for i, (x, y) in enumerate(((1, 0), (-1, 0), (0, 1), (0, -1)))
    )
    return f"""
<mujoco>
  <worldbody>
    <body name="plate" pos="{0.36 * size:g} {-0.52 * size:g} 0">
      <geom name="plate" type="cylinder" size="{radius:g} {rim / 2:g}" pos="0 0 {rim / 2:g}" group="1"
        rgba="0.95 0.95 0.92 1"/>
      <geom type="cylinder" size="{0.7 * radius:g} {rim / 2:g}" pos="0 0 {rim / 2 + 0.0003:g}" rgba="0.55 0.7 0.85 1"
        group="1" contype="0" conaffinity="0"/>
    </body>
    <body name="bin" pos="{0.36 * size:g} {0.52 * size:g} 0">
      <geom name="bin" type="box" size="{radius:g} {radius:g} {rim / 2:g}" pos="0 0 {rim / 2:g}" group="1"
        rgba="0.25 0.3 0.4 1"/>
      {sides}
    </body>
  </worldbody>
</mujoco>"""


def _tabletop(size: float) -> str:
    """Its top is at z = 0; ``size`` in m."""
    return f"""
<mujoco>
  <asset>
    <texture name="wood" type="2d" builtin="checker" rgb1="0.74 0.66 0.56" rgb2="0.7 0.62 0.52" width="64" height="64"/>
    <material name="wood" texture="wood" texrepeat="12 12"/>
  </asset>
  <worldbody>
    <light pos="0 0 {4 * size:g}" dir="0.2 0.1 -1" diffuse="0.5 0.5 0.5"/>
    <geom name="table" type="box" size="{1.2 * size:g} {1.4 * size:g} 0.02" pos="{0.5 * size:g} 0 -0.02" material="wood"
      group="1"/>
    <camera name="front" pos="{1.8 * size:g} 0 {1.1 * size:g}" xyaxes="0 1 0 -0.5 0 0.866" fovy="50"/>
    <camera name="top" pos="{0.6 * size:g} 0 {1.9 * size:g}" xyaxes="0 -1 0 1 0 0" fovy="50"/>
  </worldbody>
</mujoco>"""


def arm_spec(mujoco: Any, model: str, *, pictures: bool = True) -> Any:
    """The mujoco.MjSpec of an arm without actuators; tools go to its body "hand". Arguments as of ``build_scene``."""
    if model in FILES:
        return mujoco.MjSpec.from_string(arm_xml(model))
    if model not in ROBOSUITE:
        size, weight = ARMS[model].size, ARMS[model].weight
        return drawn_arm(mujoco, model, radius=0.07 * size, weight=weight, hand_m=_hand_behind_flange(model))
    found = find_spec("robosuite")
    if found is None or found.origin is None:
        raise DeviceError(f"the model of an arm {model!r} is in robosuite: pip install 'robolearn[sim]'")
    folder = Path(found.origin).parent / "models" / "assets" / "robots" / ROBOSUITE[model]
    spec = mujoco.MjSpec.from_file(str(folder / "robot.xml"))
    for actuator in list(spec.actuators):
        spec.delete(actuator)
    for camera in list(spec.cameras):
        spec.delete(camera)
    for site in list(spec.sites):
        spec.delete(site)
    spec.body(_FLANGES[ROBOSUITE[model]]).add_body(name="hand")
    if ROBOSUITE[model] == "panda":  # its links are given ten times the inertia of real ones
        for body in spec.bodies:
            body.inertia = 0.1 * body.inertia
    if not pictures:
        for geom in [geom for geom in spec.geoms if geom.group == 1 and geom.contype == 0]:
            spec.delete(geom)
        used = {geom.meshname for geom in spec.geoms}
        for mesh in [mesh for mesh in spec.meshes if mesh.name not in used]:
            spec.delete(mesh)
    return spec


def _hand_behind_flange(model: str) -> float:
    """m; 0 where the flange is what a gripper is screwed to, and not the point between its fingertips."""
    return _GRIPPER_M * _gripper_scale(model) if model in ("widowx", "viperx") else 0.0


def _gripper_scale(model: str) -> float:
    return min(1.0, ARMS[model].size / 0.8)


def _equip(mujoco: Any, scene: Any, model: str, *, has_gripper: bool) -> None:
    """A camera at the hand, and a gripper of two parallel fingers that open 80 mm, less on a small arm.

    The site "flange" is where things are held: between the fingertips, where there are any."""
    hand, scale = scene.body("hand"), _gripper_scale(model)
    box, grey, dark = mujoco.mjtGeom.mjGEOM_BOX, (0.6, 0.6, 0.62, 1), (0.15, 0.15, 0.15, 1)
    # Forward, and 25 deg towards the axis of the hand; the fingers come from below.
    hand.add_camera(name="wrist", pos=(-0.09 * scale, 0, 0), quat=(0.1530, 0.6903, -0.6903, -0.1530), fovy=70)
    hand.add_site(name="flange", pos=(0, 0, _GRIPPER_M * scale if has_gripper else _hand_behind_flange(model)), group=4)
    if not has_gripper:
        return
    hand.add_geom(
        type=box,
        size=np.multiply(scale, (0.03, 0.06, 0.03)),
        pos=(0, 0, 0.035 * scale),
        mass=0.5 * scale**3,
        rgba=grey,
        group=1,
        conaffinity=0,
    )
    for name, side in (("left", 1.0), ("right", -1.0)):
        finger = hand.add_body(name=f"{name}_finger", pos=(0, side * 0.006 * scale, 0.1 * scale))
        finger.add_joint(
            name=f"{name}_finger",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=(0, side, 0),
            range=(0, 0.04 * scale),
            damping=[20.0, 0.0, 0.0],
            armature=0.1,
        )
        finger.add_geom(
            type=box,
            size=np.multiply(scale, (0.011, 0.006, 0.035)),
            mass=0.05 * scale**3,
            rgba=dark,
            group=1,
            condim=4,
            conaffinity=0,
            friction=(1.5, 0.05, 0.001),
            solimp=(0.95, 0.99, 0.001, 0.5, 2),
            solref=(0.005, 1),
        )
    both = scene.add_equality(name="fingers", type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT)
    both.name1, both.name2 = "right_finger", "left_finger"


def _drive(mujoco: Any, scene: Any, model: str, *, has_gripper: bool) -> None:
    """Position servos within the joints' torques."""
    physics = ARMS[model]
    revolute = [joint for joint in scene.joints if joint.type == mujoco.mjtJoint.mjJNT_HINGE]
    joints = revolute[: limits_of(model).joints]
    for joint, torque, stiffness in zip(joints, physics.torque, physics.stiffness, strict=True):
        joint.actfrclimited, joint.actfrcrange = 1, (-torque, torque)
        joint.actgravcomp = physics.compensated
        servo = scene.add_actuator(name=joint.name, target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        servo.set_to_position(kp=stiffness, dampratio=1.0)
    if model not in (*FILES, *ROBOSUITE) and not physics.compensated:
        for joint in joints:  # servos with high gears
            joint.armature, joint.damping = 0.02, [0.3, 0.0, 0.0]
    if physics.compensated:
        # A real arm's rotors resist acceleration many times more than its last links do.
        for joint, torque in zip(joints, physics.torque, strict=True):
            joint.armature = max(joint.armature, 0.003 * torque)
        for body in _below(joints[0].parent):
            body.gravcomp = 1.0
    if has_gripper:
        name = "left_finger" if model not in FILES else "gripper"
        finger = scene.joint(name)
        low, high = finger.range
        servo = scene.add_actuator(name="gripper", target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        force, stiffness, damping = _FINGER if model not in FILES else _JAW
        finger.actfrclimited, finger.actfrcrange = 1, (-force, force)
        servo.set_to_position(kp=stiffness, kv=damping)
        # Its target in shares of its range: force = kp (low + share (high - low) - q) - ...
        servo.gainprm[0] = stiffness * (high - low)
        servo.biasprm[0] = stiffness * low


def _below(body: Any) -> list[Any]:
    return [body, *(deeper for child in body.bodies for deeper in _below(child))]
