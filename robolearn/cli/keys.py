"""Single keys from the terminal while something else goes on."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from robolearn.cli.parse import UsageError

COLLECT_KEYS = {
    "\n": ("START", "start"),
    "s": ("SUCCESS", "success"),
    "f": ("FAILURE", "failure"),
    "x": ("STOP", "stop, and judge"),
    "d": ("DISCARD", "discard"),
    "a": ("REDO", "again"),
    "n": ("NEXT_TASK", "next task"),
    " ": ("PAUSE", "pause"),
    "c": ("RESUME", "continue"),
    "e": ("E_STOP", "e-stop"),
    "r": ("RELEASE", "release the e-stop"),
    "q": ("END", "end"),
}
"""Of a session of demonstrations: key -> name of an ``operator.Command``, and what it is for. The keys that `robolearn
deploy` has too mean the same there."""


def shown_key(key: str) -> str:
    """As a person reads it."""
    return {" ": "space", "\n": "enter"}.get(key, key)


def command_names(option: str, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Words "b=start+success" as {"b": ("START", "SUCCESS")}.

    Raises:
        UsageError: one is not NAME=COMMAND, or no such command.
    """
    from robolearn_deploy.operator import Command

    found = {}
    for word in words:
        name, sign, told = word.rpartition("=")
        names = tuple(part.strip().upper().replace("-", "_") for part in told.split("+"))
        unknown = [part for part in names if part not in Command.__members__]
        if not sign or not name or unknown:
            valid = ", ".join(command.name.lower() for command in Command)
            raise UsageError(f"{option} {word}: give NAME=COMMAND, as in b=start+success; commands: {valid}")
        found[name] = names
    return found


class Keys:
    """Within, ``pressed`` gives each key at once and does not wait. Nothing where stdin is no terminal."""

    def __init__(self) -> None:
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        if sys.stdin.isatty():
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # Ctrl-C still interrupts
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cooked()

    def pressed(self) -> str:
        """The next key, "" where none was pressed."""
        if self._before is None or not select.select([sys.stdin], [], [], 0)[0]:
            return ""
        # Not through sys.stdin, which would take in all that is there: ``select`` knows nothing of what waits in it.
        return os.read(sys.stdin.fileno(), 1).decode("latin-1")

    def cooked(self) -> None:
        """Give the terminal back, as for a line of text."""
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
            self._before = None
