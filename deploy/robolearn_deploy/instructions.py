"""What may be said to a policy, told where it is said: on a page, at a terminal, by a client on the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from robolearn_data.schema import Stream

Check = Callable[[str], None]
"""Raises UserError where a policy cannot be told a text: what is wrong, and what is valid."""


def accept(text: str) -> None:
    """The ``Check`` of a policy that may be told anything."""


@dataclass(frozen=True)
class InstructionCheck:
    """A ``Check`` that can be pickled, for a run whose texts are these streams."""

    streams: Mapping[str, Stream] = field(default_factory=dict)
    policy: Check = accept
    """The policy's own."""

    def __call__(self, text: str) -> None:
        for name, stream in self.streams.items():
            if stream.kind == "text":
                stream.check(name, text)
        self.policy(text)
