"""How a collecting session is told to whoever shows it, such as the page: one record, in a ring of its own."""

from __future__ import annotations

from collections.abc import Mapping

from robolearn_deploy.collect_session import TEXT_BYTES, CollectSession
from robolearn_hardware.ring import Field

COLLECT_FIELDS: dict[str, Field] = {
    "at_ns": ("i8", ()),
    "stage": ("u1", ()),  # Stage
    "waiting": ("u1", ()),  # for the first motion
    "since_ns": ("i8", ()),
    "ends_ns": ("i8", ()),  # the stage ends by itself; 0: it does not
    "task": (f"S{TEXT_BYTES}", ()),
    "note": (f"S{TEXT_BYTES}", ()),
    "episodes": ("i8", ()),  # in the dataset
    "goal": ("i8", ()),
    "tasks": ("i8", ()),  # that take turns
    "successes": ("i8", ()),  # in the dataset
    "discarded": ("i8", ()),  # in this session, as are all that follow
    "saved": ("i8", ()),
    "recorded_ns": ("i8", ()),
    "elapsed_ns": ("i8", ()),
    "left_ns": ("i8", ()),  # at the pace so far; -1: not known yet
    "cue": ("u1", ()),  # Cue; it is new when "cues" has changed
    "cues": ("i8", ()),
}
"""Of the ring in which the session is told to whoever shows it."""


def collect_record(session: CollectSession, now_ns: int) -> Mapping[str, object]:
    """``session`` as such a record."""
    left_ns = session.left_ns(now_ns)
    return {
        "at_ns": now_ns,
        "stage": int(session.stage),
        "waiting": session.waiting,
        "since_ns": session.since_ns,
        "ends_ns": session.ends_ns,
        "task": session.task.encode(),
        "note": session.note.encode()[:TEXT_BYTES],
        "episodes": session.total,
        "goal": session.options.episodes,
        "tasks": len(session.options.tasks),
        "successes": session.successes,
        "discarded": session.discarded,
        "saved": session.saved,
        "recorded_ns": session.recorded_ns,
        "elapsed_ns": now_ns - (session.began_ns or now_ns),
        "left_ns": -1 if left_ns is None else left_ns,
        "cue": int(session.cue),
        "cues": session.cues,
    }
