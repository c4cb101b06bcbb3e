"""What a policy is asked and what it answers, whether it runs in this process, in another or on another machine.

Shapes: Tp actions of a chunk; index ``spec.start`` belongs to the capture of the observation, those before to the past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Observation


@dataclass(frozen=True, eq=False)
class Committed:
    """What the robot goes on doing until a new chunk can take over."""

    actions: np.ndarray
    """(Tp, *action shape), the current plan on the indices of the chunk that is asked for: index i at the same instant.
    NaN where the current plan says nothing."""
    delay: int
    """d: control steps from the observation's capture to the first action of the new chunk that can be carried out, as
    expected. The actions before index ``start + d`` will have happened by then."""
    execute: int
    """s: control steps between the observations of this chunk and the next."""


@dataclass(frozen=True, eq=False)
class Request:
    """One question. Instants are CLOCK_MONOTONIC ns of the machine that asks."""

    sequence: int
    """Rises by one with every request of a run."""
    capture_ns: int
    """Capture time of the newest observation."""
    observation: Observation
    """Stream -> (To, *stream shape), oldest first; a text stream holds the instruction."""
    committed: Committed | None = None
    """None for the first chunk of an episode, and with a scheduler that looks at nothing but the observation."""
    deadline_ns: int = 0
    """From here on an answer is of no use; 0: always of use."""


@dataclass(frozen=True, eq=False)
class Reply:
    """One chunk, or the part of it that is certain already."""

    actions: np.ndarray
    """(Tp, *action shape), physical units."""
    final: int
    """Leading actions that will not change any more: Tp in the last reply to a request."""
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    """What took how long: "encode", "sample", "total", over a network also "network"."""


class Inference(Protocol):
    """A policy on this machine or on another. Used by one thread."""

    spec: PolicySpec

    def infer(self, request: Request) -> Iterator[Reply]:
        """Answers as they become certain, at least one; the last one is whole.

        Raises:
            TimeoutError: no whole answer by the deadline. The next request may be answered.
            ConnectionError: the policy is gone for now; the next request tries again.
        """
        ...

    def close(self) -> None: ...
