"""The rings between the processes of a running policy, and what one record of each holds.

``observations`` control -> policy, log: one record at every tick, before the action is chosen.
``chunks``       policy -> control, log: one record for every reply, whole or in part.
``ticks``        control -> policy, log: what was done at each tick, naming its observation by index.
``commands``     parent -> all: what a person has said to do, and whether the run shall end.
``said``         control -> parent: the instruction in force, a person's or the world's own, whenever it changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from robolearn_data.schema import Kind, Observation, Schema, Stream, read_text
from robolearn_deploy.chunks import Chunk
from robolearn_hardware.ring import Field, Ring, RingHandle

LOG_SECONDS = 10.0
"""How long the log may be busy elsewhere before it loses ticks."""
LOG_BYTES = 1 << 28
"""Upper limit to the memory spent on that."""

OBSERVED: tuple[Kind, ...] = ("state", "image", "points", "text")
"""Streams of a world that are published at each tick."""

REFUSALS = 4  # fields of chunks.Refusals
TEXT_BYTES = 512
"""Longest instruction, in UTF-8."""


INSTRUCTION = Stream((TEXT_BYTES,), "uint8", "text")
COMMAND_FIELDS: dict[str, Field] = {"stop": ("u1", ()), "instruction": (INSTRUCTION.dtype, INSTRUCTION.shape)}


@dataclass(frozen=True)
class Handles:
    """The rings by name. It can be pickled."""

    observations: RingHandle
    chunks: RingHandle
    ticks: RingHandle
    commands: RingHandle
    said: RingHandle


@dataclass(frozen=True)
class Channels:
    """The rings of one run, as one process sees them."""

    observations: Ring
    chunks: Ring
    ticks: Ring
    commands: Ring
    said: Ring

    @classmethod
    def create(cls, schema: Schema, action: Stream, horizon: int, *, chunk: Stream | None = None) -> Channels:
        """The rings for a world of ``schema`` and chunks of ``horizon`` actions; or of as many values of ``chunk``."""
        deep = max(64, round(LOG_SECONDS * schema.rate_hz))
        observation = observation_fields(schema)
        said = next(iter(schema.of_kind("text").values()), INSTRUCTION)
        size = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in observation.values())
        with ExitStack() as stack:
            rings = cls(
                observations=stack.enter_context(Ring.create(observation, max(16, min(deep, LOG_BYTES // size)))),
                chunks=stack.enter_context(Ring.create(chunk_fields(chunk or action, horizon), deep)),
                ticks=stack.enter_context(Ring.create(tick_fields(action), deep)),
                commands=stack.enter_context(Ring.create(COMMAND_FIELDS, 16)),
                said=stack.enter_context(Ring.create({"text": (said.dtype, said.shape)}, 16)),
            )
            stack.pop_all()
        return rings

    @classmethod
    def attach(cls, handles: Handles) -> Channels:
        return cls(**{f.name: Ring.attach(getattr(handles, f.name)) for f in fields(cls)})

    @property
    def handles(self) -> Handles:
        return Handles(**{f.name: getattr(self, f.name).handle for f in fields(self)})

    def close(self) -> None:
        for f in fields(self):
            getattr(self, f.name).close()

    def __enter__(self) -> Channels:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def instruct(self, text: str) -> None:
        """Tell the policy what to do, from the next observation on; empty: what the world says.

        Raises:
            SchemaError: it is longer than ``TEXT_BYTES``.
        """
        self.commands.publish({"stop": 0, "instruction": INSTRUCTION.check("instruction", text)})

    def instruction(self) -> str:
        """The newest one that a person gave; empty where none was given."""
        newest = self.commands.newest()
        return read_text(newest[1]["instruction"]) if newest else ""

    def in_force(self) -> str:
        """What the policy is told now, by a person or by the world."""
        newest = self.said.newest()
        return read_text(newest[1]["text"]) if newest else ""

    def stop(self) -> None:
        """Tell every process that the run shall end."""
        self.commands.publish({"stop": 1, "instruction": INSTRUCTION.check("instruction", self.instruction())})

    def stop_check(self) -> Callable[[], bool]:
        """For a child: whether the run shall end, because the parent says so or is no more."""
        parent = os.getppid()

        def stopped() -> bool:
            newest = self.commands.newest()
            return (newest is not None and bool(newest[1]["stop"])) or os.getppid() != parent

        return stopped


def observation_fields(schema: Schema) -> dict[str, Field]:
    streams = {stream_field(name): (s.dtype, s.shape) for name, s in schema.of_kind(*OBSERVED).items()}
    return {"capture_ns": ("i8", ()), "episode": ("i8", ()), **streams}


def stream_field(name: str) -> str:
    """Field of an observation record that holds the stream ``name``."""
    return f"stream/{name}"


def observation_of(record: np.void, schema: Schema) -> Observation:
    """The streams in a record of the ring ``observations``."""
    return {name: record[stream_field(name)] for name in schema.of_kind(*OBSERVED)}


def chunk_fields(action: Stream, horizon: int) -> dict[str, Field]:
    return {
        "sequence": ("i8", ()),
        "final": ("i8", ()),  # leading actions that the record holds: all in the last one of a sequence, 0: it failed
        "episode": ("i8", ()),
        "capture_ns": ("i8", ()),
        "times_ns": ("i8", (horizon,)),
        "actions": ("f4", (horizon, *action.shape)),
        "expiry_ns": ("i8", ()),
        "started_ns": ("i8", ()),  # inference began
        "ended_ns": ("i8", ()),  # these actions were there
        "expected_delay": ("i8", ()),  # d, control steps
        "execute": ("i8", ()),  # s, control steps
    }


def chunk_record(chunk: Chunk, horizon: int) -> dict[str, Any]:
    """The fields of a record of the ring ``chunks`` that make up ``chunk``."""
    final = len(chunk.actions)
    times_ns, actions = np.zeros(horizon, np.int64), np.zeros((horizon, *chunk.actions.shape[1:]), np.float32)
    times_ns[:final], actions[:final] = chunk.times_ns, chunk.actions
    return {
        "sequence": chunk.sequence,
        "final": final,
        "episode": chunk.episode,
        "capture_ns": chunk.capture_ns,
        "times_ns": times_ns,
        "actions": actions,
        "expiry_ns": chunk.expiry_ns,
    }


def chunk_of(record: np.void) -> Chunk:
    """The chunk in a record of the ring ``chunks``."""
    final = int(record["final"])
    return Chunk(
        sequence=int(record["sequence"]),
        episode=int(record["episode"]),
        capture_ns=int(record["capture_ns"]),
        times_ns=record["times_ns"][:final],
        actions=record["actions"][:final],
        expiry_ns=int(record["expiry_ns"]),
    )


def tick_fields(action: Stream) -> dict[str, Field]:
    return {
        "episode": ("i8", ()),
        "observation": ("i8", ()),  # index in the ring ``observations``
        "due_ns": ("i8", ()),
        "woke_ns": ("i8", ()),
        "missed": ("i8", ()),  # deadlines passed unserved, see ticker.Tick
        "state": ("u1", ()),  # chunks.ControlState
        "chunk": ("i8", ()),  # sequence of the chunk that decided, -1 without
        "chunk_capture_ns": ("i8", ()),
        "requested": (action.dtype, action.shape),  # by the policy; the hold action without a chunk
        "sent": (action.dtype, action.shape),
        "step_ns": ("i8", ()),  # what the world took to carry it out
        "score": ("f8", ()),
        "success": ("u1", ()),
        "done": ("u1", ()),
        "refusals": ("i8", (REFUSALS,)),  # chunks.Refusals so far
    }
