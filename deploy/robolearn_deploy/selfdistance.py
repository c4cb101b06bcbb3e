"""How near an arm's links come to each other: capsules that move with its MuJoCo model.

A model with shapes (SO-101) is covered: a box by two capsules side by side, a cylinder by one. (MuJoCo's
``mj_geomDistance``, 3.9, is exact between capsules, and sometimes wrong by centimetres between boxes.)

Chains of joints (``models.chains``) have no shapes: each link is a capsule from its joint to the next one. Makers do
not publish how thick their links are; the radius is 5 % of the length of all links together: 38 mm for a WidowX, 60 mm
for a UR5e, 66 mm for a FR3. (The shapes of the SO-101 are 3 to 5 % of its length thick.) State it where you know
better. What an arm carries (a gripper, a tool) is not in a chain.

Links that a joint joins, that the model excludes, or (chains) that the links between cannot hold apart, are no pair.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.limits import limits_of
from robolearn_hardware.models import arm_xml

RADIUS = 0.05
"""Of a link's capsule, as a share of the length of all links, where nothing better is known."""


class Capsule(NamedTuple):
    """All that is nearer than ``radius`` to the line between two points in the frame of a body, m."""

    body: int
    start: np.ndarray
    end: np.ndarray
    radius: float


class SelfDistance:
    """Of one arm. Not for several threads at once."""

    def __init__(self, model: str, *, minimum_m: float = 0.005, radius_m: float | None = None) -> None:
        """
        Args:
            model: one of ``robolearn_hardware.models.MODELS``.
            minimum_m: what the limiter keeps.
            radius_m: of the links' capsules where the model has no shapes.

        Raises:
            DeviceError: no model of that arm; MuJoCo is not installed; a distance below 0.
        """
        if minimum_m < 0 or (radius_m is not None and radius_m <= 0):
            raise DeviceError(f"minimum_m must be 0 or more and radius_m above 0, got {minimum_m} and {radius_m}")
        mujoco = self._mujoco = _mujoco()
        spec = mujoco.MjSpec.from_string(arm_xml(model))
        for name in [joint.name for joint in spec.joints][limits_of(model).joints :]:  # a gripper
            spec.delete(spec.joint(name))
        plain = spec.compile()
        if plain.ngeom:
            capsules = [capsule for geom in range(plain.ngeom) for capsule in _covering(mujoco, plain, geom)]
            pairs = _pairs_of_shapes(plain, capsules)
        else:
            capsules = _links(plain, plain.site("flange"), radius_m)
            pairs = _pairs_of_links(capsules, minimum_m)
        for geom in list(spec.geoms):
            spec.delete(geom)
        bodies = {body.name: body for body in spec.bodies}
        for capsule in capsules:
            bodies[plain.body(capsule.body).name].add_geom(
                name=f"capsule {len(spec.geoms)}",
                type=mujoco.mjtGeom.mjGEOM_CAPSULE,
                fromto=[*capsule.start, *capsule.end],
                size=[capsule.radius, 0, 0],
            )
        self.minimum_m = minimum_m
        self.capsules = capsules
        """What the arm is made of."""
        self.pairs = [(int(a), int(b)) for a, b in pairs]
        """Those whose distances count."""
        made = self._model = spec.compile()
        self._data = mujoco.MjData(made)
        geoms = np.array([made.geom(f"capsule {i}").id for i in range(len(capsules))])[pairs]
        self._one, self._other = geoms[:, 0], geoms[:, 1]
        self._geoms = geoms.tolist()
        self._all = np.arange(len(geoms))
        self._reach = made.geom_rbound[geoms].sum(1)
        self._between = np.zeros(6)
        ends = [_farthest(capsules[a], capsules[b]) for a, b in self.pairs]
        self.levers = np.array([levers(made, *end) for end in ends]).reshape(-1, made.njnt)
        """(pairs, J) m: a turn of a joint by 1 rad changes the distance of a pair by no more. Most joints do not: they
        move both of its links, or neither."""

    def nearest(self, positions: np.ndarray | list[float], *, up_to_m: float | None = None) -> float:
        """Smallest distance between links at joint ``positions`` (J,) rad, m; < 0 where they overlap. ``up_to_m`` where
        none is smaller than that: by default ``minimum_m``, which is the quickest to find out."""
        smallest = up_to_m = self.minimum_m if up_to_m is None else up_to_m
        model, data, distance = self._model, self._data, self._mujoco.mj_geomDistance
        data.qpos[:] = positions
        self._mujoco.mj_kinematics(model, data)
        way = data.geom_xpos[self._one] - data.geom_xpos[self._other]
        apart = np.sqrt((way * way).sum(1)) - self._reach  # between the spheres around both
        near = (apart < smallest).nonzero()[0]
        for i in near[apart[near].argsort()].tolist():
            if apart[i] >= smallest:
                break
            smallest = min(smallest, distance(model, data, *self._geoms[i], up_to_m + 0.001, self._between))
        return smallest

    def apart(
        self, positions: np.ndarray | list[float], up_to_m: np.ndarray, which: np.ndarray | None = None
    ) -> np.ndarray:
        """Distance of each of ``pairs[which]`` (all if None) at joint ``positions`` (J,) rad, m; of one that is farther
        apart than its ``up_to_m`` (which,), a number that lies between that and its distance."""
        which = self._all if which is None else which
        model, data, distance = self._model, self._data, self._mujoco.mj_geomDistance
        data.qpos[:] = positions
        self._mujoco.mj_kinematics(model, data)
        way = data.geom_xpos[self._one[which]] - data.geom_xpos[self._other[which]]
        found = np.sqrt((way * way).sum(1)) - self._reach[which]  # between the spheres around both
        for i in (found < up_to_m).nonzero()[0].tolist():
            found[i] = distance(model, data, *self._geoms[which[i]], up_to_m[i] + 0.001, self._between)
        return found


def levers(model: Any, body: int, beyond_m: float, other: int = 0, beyond_other_m: float = 0.0) -> np.ndarray:
    """(J,) m: how far a turn of each joint by 1 rad moves points of two bodies against each other at most, in any
    posture. A point lies up to ``beyond_m`` from its body's origin. By default the other one is the world."""
    found = np.zeros(model.njnt)
    for end, beyond in ((body, beyond_m), (other, beyond_other_m)):
        chain, reach = {}, beyond
        while end:
            for joint in np.flatnonzero(model.jnt_bodyid == end):
                chain[joint] = reach + float(np.linalg.norm(model.jnt_pos[joint]))
            reach += float(np.linalg.norm(model.body_pos[end]))
            end = int(model.body_parentid[end])
        for joint, lever in chain.items():
            # One that both hang on moves neither against the other.
            found[joint] = 0.0 if found[joint] else lever
    return found


def _farthest(one: Capsule, other: Capsule) -> tuple[int, float, int, float]:
    """The bodies of two capsules, and how far the lines in them reach from the origins."""
    far = [float(max(np.linalg.norm(c.start), np.linalg.norm(c.end))) for c in (one, other)]
    return one.body, far[0], other.body, far[1]


def _links(model: Any, flange: Any, radius_m: float | None) -> list[Capsule]:
    """Those of a chain that have a length, from the base on."""
    ends = [(body - 1, model.body_pos[body]) for body in range(1, model.nbody)] + [(model.nbody - 1, flange.pos)]
    radius = radius_m or RADIUS * float(sum(np.linalg.norm(end) for _, end in ends))
    return [Capsule(body, np.zeros(3), end.copy(), radius) for body, end in ends if np.linalg.norm(end) > 1e-6]


def _pairs_of_links(capsules: list[Capsule], minimum_m: float) -> np.ndarray:
    lengths = np.array([np.linalg.norm(c.end) for c in capsules])
    apart = 2 * capsules[0].radius + minimum_m
    n = len(capsules)
    found = [(i, j) for i in range(n) for j in range(i + 2, n) if lengths[i + 1 : j].sum() > apart]
    return np.array(found, np.int64).reshape(-1, 2)


def _covering(mujoco: Any, model: Any, geom: int) -> list[Capsule]:
    """Capsules that together contain a shape."""
    kind, size = model.geom_type[geom], model.geom_size[geom]
    body, middle = int(model.geom_bodyid[geom]), model.geom_pos[geom].copy()
    axes = np.zeros(9)
    mujoco.mju_quat2Mat(axes, model.geom_quat[geom])
    axes = axes.reshape(3, 3).T
    shapes = mujoco.mjtGeom
    if kind in (shapes.mjGEOM_CAPSULE, shapes.mjGEOM_CYLINDER):
        return [Capsule(body, middle - size[1] * axes[2], middle + size[1] * axes[2], float(size[0]))]
    if kind == shapes.mjGEOM_SPHERE:
        return [Capsule(body, middle, middle, float(size[0]))]
    if kind != shapes.mjGEOM_BOX:
        raise DeviceError(f"distances between links know boxes, capsules, cylinders and spheres, not shape {kind}")
    thin, wide, long = np.argsort(size)
    aside, along = size[wide] / 2 * axes[wide], size[long] * axes[long]
    radius = float(np.hypot(size[wide] / 2, size[thin]))
    return [Capsule(body, middle + side - along, middle + side + along, radius) for side in (aside, -aside)]


def _pairs_of_shapes(model: Any, capsules: list[Capsule]) -> np.ndarray:
    apart = {(int(s) >> 16, int(s) & 0xFFFF) for s in model.exclude_signature}
    apart |= {(int(model.body_parentid[b]), b) for b in range(model.nbody)}
    n = len(capsules)
    found = [
        (i, j)
        for i in range(n)
        for j in range(i + 1, n)
        if (a := capsules[i].body) != (b := capsules[j].body) and (a, b) not in apart and (b, a) not in apart
    ]
    return np.array(found, np.int64).reshape(-1, 2)


def _mujoco() -> Any:
    try:
        return importlib.import_module("mujoco")
    except ImportError as error:
        raise DeviceError(f"self-distance needs mujoco ({error}): pip install 'robolearn[kinematics]'") from None
