"""What a person tells a running robot, and how processes say that they live: both in shared memory.

A ring has one writer: every source of commands (the terminal, the page, a pedal) has its own ring of COMMAND_FIELDS,
and the servo process reads them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum

from robolearn_hardware.clock import now_ns
from robolearn_hardware.ring import Field, Ring


class Command(IntEnum):
    PAUSE = 1
    """Come to rest and stay there; the policy goes on thinking in vain."""
    RESUME = 2
    """Go on after a pause, a stop or the reset pose."""
    RESET = 3
    """Go to the reset pose, slowly, and stay there."""
    TAKE_OVER = 4
    """From here on the arm does what the teleoperator does."""
    HAND_BACK = 5
    """The policy goes on."""
    E_STOP = 6
    """Come to rest at once and stay there until RELEASE."""
    RELEASE = 7
    """A person has looked and lets the arm move again; RESUME must follow."""
    SUCCESS = 8
    """The episode is over: it has succeeded."""
    FAILURE = 9
    """The episode is over: it has failed."""
    DISCARD = 10
    """The episode is over and is not kept."""
    END = 11
    """The run is over."""
    START = 12
    """Collecting: the next episode may begin."""
    STOP = 13
    """Collecting: the episode is over; the verdict follows (SUCCESS, FAILURE, DISCARD or REDO)."""
    REDO = 14
    """Collecting: the episode is not kept and begins again at once, with the same task."""
    NEXT_TASK = 15
    """Collecting: the next episode is of the next task."""


COMMAND_FIELDS: dict[str, Field] = {"at_ns": ("i8", ()), "command": ("u1", ())}
BEAT_FIELDS: dict[str, Field] = {"at_ns": ("i8", ())}


class Operator:
    """The writing end of a ring of commands."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def tell(self, command: Command) -> None:
        self._ring.publish({"at_ns": now_ns(), "command": int(command)})


class Commands:
    """The reading end of several such rings."""

    def __init__(self, rings: Mapping[str, Ring]) -> None:
        self._rings = dict(rings)
        self._next = {name: ring.count for name, ring in rings.items()}

    def new(self) -> Iterator[tuple[str, Command]]:
        """(source, command) of each that came since the last call. An unknown number is left out."""
        for name, ring in self._rings.items():
            if ring.count == self._next[name]:
                continue
            for index, record in ring.since(self._next[name]):
                self._next[name] = index + 1
                if int(record["command"]) in Command.__members__.values():
                    yield name, Command(int(record["command"]))


def beat(ring: Ring) -> None:
    """Say that this process lives."""
    ring.publish({"at_ns": now_ns()})
