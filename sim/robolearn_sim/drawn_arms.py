"""Arms without a model of their makers' at hand: capsules along the published chain of joints, of plausible weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from robolearn_hardware.models import arm_xml

_SHARES = (0.25, 0.3, 0.2, 0.1, 0.08, 0.07)
"""Of the moving weight, from the base to the hand."""
_COLOUR, _JOINT_COLOUR = (0.75, 0.77, 0.8, 1), (0.2, 0.2, 0.22, 1)


def drawn_arm(mujoco: Any, model: str, *, radius: float, weight: float, hand_m: float) -> Any:
    """The mujoco.MjSpec of an arm of ``model``, one of ``robolearn_hardware.models.CHAINS``, on a pedestal, with a body
    "hand" at its flange.

    Its links touch table and things, and not each other: capsules would, where real links do not.

    Args:
        radius: of its first link, m; the last one is half as thick.
        weight: of all that moves, kg.
        hand_m: how far behind the flange the hand is.
    """
    spec = mujoco.MjSpec.from_string(arm_xml(model))
    bodies = list(spec.worldbody.bodies)
    while bodies[-1].bodies:
        bodies.append(bodies[-1].bodies[0])
    flange, back = spec.site("flange"), np.zeros(3)
    mujoco.mju_rotVecQuat(back, np.array([0, 0, hand_m]), flange.quat)
    hand = bodies[-1].add_body(name="hand", pos=flange.pos - back, quat=flange.quat)
    ends = [*(np.array(body.pos) for body in bodies[1:]), np.array(hand.pos)]
    sizes = np.linspace(radius, radius / 2, len(bodies))
    solid = {"contype": 1, "conaffinity": 0, "group": 1}
    for body, end, size, share in zip(bodies, ends, sizes, _SHARES, strict=False):
        body.explicitinertial = False
        length = float(np.linalg.norm(end))
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(size, 0, 0), mass=weight * share / 2, rgba=_JOINT_COLOUR, **solid
        )
        shape = {"size": (0.8 * size, 0, 0), "fromto": [0, 0, 0, *end]} if length > size else {"size": (size, 0, 0)}
        kind = mujoco.mjtGeom.mjGEOM_CAPSULE if length > size else mujoco.mjtGeom.mjGEOM_SPHERE
        body.add_geom(type=kind, mass=weight * share / 2, rgba=_COLOUR, **shape, **solid)
    height = float(bodies[1].pos[2] + bodies[0].pos[2])
    spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        size=(1.2 * radius, height / 2, 0),
        pos=(0, 0, height / 2),
        rgba=_JOINT_COLOUR,
        **solid,
    )
    spec.delete(flange)
    return spec
