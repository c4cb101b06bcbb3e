"""What the supervisor of a rig gives to the page that shows it: rings, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from robolearn_data.schema import Stream
from robolearn_deploy.rig_streams import INSTRUCTION_BYTES
from robolearn_hardware.ring import Field, RingHandle

VIEWER_BYTES = 64


class Phase(IntEnum):
    """Where a run is."""

    STARTING = 0
    EPISODE = 1
    RESET = 2
    """Between two episodes."""
    ENDING = 3


PROGRESS_FIELDS: dict[str, Field] = {
    "at_ns": ("i8", ()),
    "phase": ("u1", ()),
    "episodes": ("i8", ()),  # that are over
    "successes": ("i8", ()),
    "heard": ("i8", ()),  # notes of the page that the supervisor has read
}
"""Of the ring in which the supervisor says where the run is."""

NOTE_FIELDS: dict[str, Field] = {
    "at_ns": ("i8", ()),
    "viewer": (f"S{VIEWER_BYTES}", ()),
    "command": ("u1", ()),  # operator.Command that the viewer gave; 0: an instruction
    "instruction": ("u1", (INSTRUCTION_BYTES,)),  # UTF-8, zeros after it
}
"""Of the ring in which the page says what each viewer did, for the supervisor's log. Commands are carried out without
it: they are in the ring of commands, which the servo process reads."""


@dataclass(frozen=True)
class Plane:
    """A picture that shows a plane of a world from straight above: a place in it is a position there."""

    camera: str
    top_left: tuple[float, float]
    bottom_right: tuple[float, float]
    """World coordinates of the picture's corners."""


@dataclass(frozen=True)
class PageArm:
    """An arm that viewers can move: the page is the one writer of its intents."""

    intents: RingHandle
    """Of ``takeover.intent_fields(joints)``."""
    joints: int
    """2 with a ``plane``."""
    model: str = ""
    """Of its ``ArmInfo``: who wants to move in the tool's frame needs its kinematics."""
    first: int = 0
    """Where its joints begin in the vector."""
    plane: Plane | None = None
    """A pointer's place in that picture is wanted, as ``positions`` (2,): PushT."""


def units_of(stream: Stream) -> tuple[str, ...]:
    """Of each component of a vector: the stream names one for all, or one for each."""
    named = stream.unit.split(",")
    return tuple(named) if len(named) == stream.size else (stream.unit,) * stream.size


@dataclass(frozen=True)
class RigRings:
    """Everything that happens on a rig, for whoever watches it. It can be pickled."""

    rig: str
    """Its name."""
    names: tuple[str, ...]
    """Of the components of the vectors."""
    units: tuple[str, ...]
    """Of the same."""
    rate_hz: float
    """Of the servo's ticks."""
    cameras: Mapping[str, RingHandle]
    ticks: RingHandle
    chunks: RingHandle
    """Those that the ticks name."""
    instruction: RingHandle
    commands: RingHandle
    """A ring of commands of its own, which it writes."""
    notes: RingHandle
    """Of NOTE_FIELDS, which it writes."""
    progress: RingHandle
    session: RingHandle
    """Of ``rig_senses.SESSION_FIELDS``: says when the run is over."""
    teleoperators: bool
    """A person can take over."""
    arms: Mapping[str, PageArm] = field(default_factory=dict)
    """Those that are moved from the page."""
    forces: Mapping[str, RingHandle] = field(default_factory=dict)
    """Wrenches and tactile arrays: rings of "capture_ns", "received_ns" and "value"."""
    dataset: Path | None = None
    """Where the run is recorded."""
    collect: RingHandle | None = None
    """Of ``collect_ring.COLLECT_FIELDS``, where demonstrations are collected."""
