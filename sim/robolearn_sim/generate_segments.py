"""Cuts demonstrations into object-centred segments and carries these over to where the objects lie now.

The idea is MimicGen's (Mandlekar et al., CoRL 2023, section 4; written from the paper): while a person reaches for a
thing, only the tool's pose relative to that thing matters, so the same motion relative to it solves other starts. We
differ in two ways: while a thing is carried, its own motion relative to its place is kept and not the tool's, for it
never lies in the hand as it did; and what looks the same after a turn is approached the way that turns the tool least.
Shapes: T control steps; poses (7,) as in ``manipulation``; matrices (4, 4) of poses where they are multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from robolearn_sim.manipulation import pose_of, rotation, rotation_of, rotation_vector

MOVED_M = 0.01
"""A thing that has moved this far while the gripper is closed moves with the tool."""
LEFT_M = 0.05
"""A tool this far from where it opened has let go, and is on its way to the next thing."""
PLACED_M = 0.2
"""A thing that is carried to at most this far from another is put there."""
TURN_M = 0.1
"""A rotation of 1 rad counts as much as a displacement of this length where poses are compared."""

ANY_TURN = 12
"""Turns that are tried where any turn looks the same."""


@dataclass(frozen=True)
class Traits:
    """What must be known of a world: in which ways it looks the same, and how its gripper is told to close."""

    turns: Mapping[str, int] = field(default_factory=dict)
    """Object -> n, if it looks the same after a turn by 1/n about its own z axis; 0: after any turn. Others: 1."""
    tool: int = 1
    """The same for the tool, about its approach z: 2 for two fingers that are alike."""
    mirror: bool = False
    """The whole task, table and objects, looks the same in a mirror at the plane y = 0, and the tool in one across its
    x axis, along which its fingers close."""
    closed: float = 1.0
    """The action's last component that closes the gripper,"""
    open: float = -1.0
    """and the one that opens it. What is nearer to the one than to the other counts as it."""


@dataclass(frozen=True)
class Trace:
    """A demonstration as the world went through it: what was the case before each action, and where it aimed."""

    tool: np.ndarray
    """(T, 7) pose of the tool."""
    target: np.ndarray
    """(T, 7) the tool pose that the action aimed at."""
    gripper: np.ndarray
    """(T,) the action's last component."""
    closed: np.ndarray
    """(T,) bool: it closes the gripper."""
    objects: dict[str, np.ndarray]
    """Name -> (T, 7)."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a demonstration whose motion is relative to one object."""

    reference: str
    pose: np.ndarray
    """(7,) of the object ``reference`` when the segment began."""
    target: np.ndarray
    """(T, 7) tool poses."""
    gripper: np.ndarray
    """(T,)"""
    held: str | None = None
    """What is carried."""
    in_hand: np.ndarray = field(default_factory=lambda: np.eye(4))
    """(4, 4) pose of what is carried, relative to the tool, when the segment began."""


@dataclass(frozen=True)
class Source:
    """A demonstration in segments."""

    episode: int
    mirrored: bool
    segments: tuple[Segment, ...]

    @property
    def course(self) -> tuple[str, ...]:
        """Which objects it is about, one after the other."""
        return tuple(segment.reference for segment in self.segments)


def segments_of(trace: Trace) -> tuple[Segment, ...]:
    """Cut ``trace`` where the tool's relation to the objects changes.

    Reaching and grasping is relative to the thing that then moves with the closed gripper, and ends when it has moved.
    Carrying is relative to the thing that lies nearest to it in the end, within ``PLACED_M``; if there is none, to
    where it was itself. It ends when the opened gripper has gone away, if another thing is grasped after that.
    """
    steps = len(trace.tool)
    cuts: list[tuple[int, str, str | None]] = []  # first step, reference, held
    begin = 0
    while (grasp := _next_grasp(trace, begin)) is not None:
        start, held = grasp
        release = _next(~trace.closed, start)
        cuts += [(begin, held, None), (start, _nearest(trace, held, min(release, steps - 1)) or held, held)]
        begin = _gone(trace, release) if release < steps else steps
    if not cuts:  # nothing was ever moved by a closed gripper: one stretch, relative to what the tool ended at
        end = {name: _distance(poses[-1], trace.tool[-1]) for name, poses in trace.objects.items()}
        cuts = [(0, min(end, key=lambda name: end[name]), None)]
    ends = [first for first, _, _ in cuts[1:]] + [steps]  # what follows the last release belongs to it
    found = []
    for (a, reference, held), b in zip(cuts, ends, strict=True):
        in_hand = np.linalg.inv(matrix(trace.tool[a])) @ matrix(trace.objects[held][a]) if held else np.eye(4)
        pose = trace.objects[reference][a]
        found.append(Segment(reference, pose, trace.target[a:b], trace.gripper[a:b], held, in_hand))
    return tuple(found)


def _next_grasp(trace: Trace, begin: int) -> tuple[int, str] | None:
    """The first step from ``begin`` on at which a thing has moved with the closed gripper, and the thing."""
    since = begin  # the step at which the gripper began to close
    for t in range(begin, len(trace.tool)):
        if not trace.closed[t]:
            since = t + 1
            continue
        moved = {name: _distance(poses[t], poses[since]) for name, poses in trace.objects.items()}
        name = max(moved, key=lambda name: moved[name])
        if moved[name] > MOVED_M:
            return t, name
    return None


def _next(condition: np.ndarray, begin: int) -> int:
    """The first step from ``begin`` on at which ``condition`` (T,) holds; T if there is none."""
    found = np.flatnonzero(condition[begin:])
    return begin + int(found[0]) if len(found) else len(condition)


def _gone(trace: Trace, release: int) -> int:
    return _next(np.linalg.norm(trace.tool[:, :3] - trace.tool[release, :3], axis=1) > LEFT_M, release)


def _nearest(trace: Trace, held: str, t: int) -> str | None:
    others = {n: _distance(p[t], trace.objects[held][t]) for n, p in trace.objects.items() if n != held}
    name = min(others, key=lambda name: others[name], default=None)
    return name if name is not None and others[name] <= PLACED_M else None


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one[:3] - other[:3]))


def matrix(pose: np.ndarray) -> np.ndarray:
    """(4, 4) of ``pose`` (7,)."""
    full = np.eye(4)
    full[:3, :3], full[:3, 3] = rotation_of(pose), pose[:3]
    return full


@dataclass(frozen=True)
class Fit:
    """How a segment is carried over: a target pose of the source, as matrix C, becomes ``before @ C @ after``."""

    before: np.ndarray
    """(4, 4)"""
    after: np.ndarray
    """(4, 4)"""
    way: float
    """How far the segment is changed: the way of the reference object since then, and that of the tool from where it is
    to the first pose, m; a rotation of the tool counts ``TURN_M`` for a radian."""

    def poses(self, targets: np.ndarray) -> np.ndarray:
        """``targets`` (T, 7) carried over, (T, 7)."""
        return np.stack([_pose(self.before @ matrix(target) @ self.after) for target in targets])


def fit(segment: Segment, objects: Mapping[str, np.ndarray], tool: np.ndarray, traits: Traits) -> Fit:
    """How to carry ``segment`` over to where the ``objects`` (7,) and the ``tool`` (7,) are now.

    A target C becomes D C, where D is the motion of the reference since then. While something is carried it becomes
    D C H inv(H'), where H is its pose in the hand then and H' now: so the thing, which was to be at C H, will be at
    D C H. Of all turns that look the same, those are taken that bring the tool least far from where it is now to the
    segment's first pose, with the least rotation to the last.
    """
    now, there = matrix(tool), np.linalg.inv(matrix(segment.pose))
    here = matrix(objects[segment.reference])
    back = np.eye(4)  # inv(H')
    turns = traits.tool
    if segment.held is not None:
        back = np.linalg.inv(matrix(objects[segment.held])) @ now
        turns = traits.turns.get(segment.held, 1)
    first, last = (matrix(segment.target[t]) @ segment.in_hand for t in (0, -1))
    reference_turns = traits.turns.get(segment.reference, 1) or ANY_TURN
    moved = _distance(objects[segment.reference], segment.pose)
    fits = []
    for k in range(reference_turns):
        motion = here @ _about_z(2 * math.pi * k / reference_turns) @ there
        # The cosines of the tool's two rotations grow with the trace of this times the turn that is free.
        product = (back @ np.linalg.inv(now) @ motion)[:3, :3] @ (first + last)[:3, :3]
        own = _about_z(_largest_trace(product, turns)) @ back
        way = _size(motion @ first @ own, tool)
        rotated = rotation_vector((motion @ last @ own)[:3, :3] @ now[:3, :3].T)
        fits.append((way + TURN_M * float(np.linalg.norm(rotated)), Fit(motion, segment.in_hand @ own, way + moved)))
    return min(fits, key=lambda each: each[0])[1]


def _largest_trace(product: np.ndarray, turns: int) -> float:
    """The angle t, a multiple of 1 / ``turns`` of a full one (0: any), for which trace(product @ Rz(t)) is largest."""
    angle = math.atan2(product[0, 1] - product[1, 0], product[0, 0] + product[1, 1])
    return 2 * math.pi / turns * round(angle * turns / (2 * math.pi)) if turns else angle


def _about_z(angle: float) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = rotation(np.array([0.0, 0.0, angle]))
    return turn


def _pose(full: np.ndarray) -> np.ndarray:
    return pose_of(full[:3, 3], full[:3, :3])


def _size(full: np.ndarray, pose: np.ndarray) -> float:
    """How far a ``pose`` (7,) is from a matrix (4, 4), m; a rotation counts ``TURN_M`` for a radian."""
    turn = rotation_vector(full[:3, :3] @ rotation_of(pose).T)
    return float(np.linalg.norm(full[:3, 3] - pose[:3]) + TURN_M * np.linalg.norm(turn))


def way_between(start: np.ndarray, end: np.ndarray, *, move_m: float, turn_rad: float) -> np.ndarray:
    """Poses (T, 7) on the straight way from the pose ``start`` (7,) to ``end`` (7,), both left out, in steps of at most
    ``move_m`` and ``turn_rad``; T is 0 where one such step suffices. Rotations go about one axis (slerp)."""
    turn = rotation_vector(rotation_of(end) @ rotation_of(start).T)
    steps = math.ceil(max(_distance(start, end) / move_m, float(np.linalg.norm(turn)) / turn_rad))
    axes = rotation_of(start)
    way = [
        pose_of(start[:3] + s * (end[:3] - start[:3]), rotation(s * turn) @ axes)
        for s in (k / steps for k in range(1, steps))
    ]
    return np.array(way).reshape(-1, 7)


_TOOL_MIRROR = np.diag([-1.0, 1.0, 1.0])
"""Both fingers are alike: the tool is its own image at the plane across its closing direction x."""
_OBJECT_MIRROR = np.diag([1.0, -1.0, 1.0])


def mirrored(trace: Trace) -> Trace:
    """``trace`` seen in a mirror at the plane y = 0, for tools whose two fingers are alike."""
    return Trace(
        _reflected(trace.tool, _TOOL_MIRROR),
        _reflected(trace.target, _TOOL_MIRROR),
        trace.gripper,
        trace.closed,
        {name: _reflected(poses, _OBJECT_MIRROR) for name, poses in trace.objects.items()},
    )


def _reflected(poses: np.ndarray, own: np.ndarray) -> np.ndarray:
    """``poses`` (T, 7) at y = 0; ``own`` (3, 3) is the reflection after which the body itself looks the same, without
    which the image of a rotation would be none."""
    plane = np.diag([1.0, -1.0, 1.0])
    return np.stack([pose_of(plane @ pose[:3], plane @ rotation_of(pose) @ own) for pose in poses])


def sources_of(episode: int, trace: Trace, *, mirror: bool) -> list[Source]:
    """The demonstration ``episode`` in segments, and with ``mirror`` its image too."""
    found = [Source(episode, False, segments_of(trace))]
    return [*found, Source(episode, True, segments_of(mirrored(trace)))] if mirror else found


def choose(ways: Sequence[float], nearest: int, rng: np.random.Generator) -> int:
    """Which segment to follow, given how far each had to be changed: drawn from the ``nearest``; 0: from all."""
    return int(rng.choice(np.argsort(ways, kind="stable")[: nearest or None]))
