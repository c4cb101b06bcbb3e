"""Single keys from the terminal while something else goes on."""

from __future__ import annotations

import select
import sys
from types import TracebackType
from typing import Any


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
        return sys.stdin.read(1)

    def cooked(self) -> None:
        """Give the terminal back, as for a line of text."""
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
            self._before = None
