"""How long everything that a run needs may take to start, and what happens meanwhile: one place, for all of it."""

from __future__ import annotations

import time
from collections.abc import Callable

START_S = 180.0
"""For each of them: loading torch from a slow disk, on a machine that is busy, takes more than a minute. What is
broken says so at once; a device that does not answer has a deadline of its own in its driver, 10 s for most."""
SAY_S = 10.0
POLL_S = 0.02


class Starting:
    """Whoever waits calls it every ``POLL_S``."""

    def __init__(
        self, stop_asked: Callable[[], bool] = lambda: False, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """``say``: is told now and then what is waited for."""
        self._stop_asked, self._say = stop_asked, say
        self._what = ""
        self._began = self._said = time.monotonic()

    def begin(self, what: str) -> None:
        """From here on ``what`` is waited for: "the cameras"."""
        self._what = what
        self._began = self._said = time.monotonic()

    def __call__(self) -> None:
        """Raises KeyboardInterrupt: somebody has asked to stop."""
        if self._stop_asked():
            raise KeyboardInterrupt
        now = time.monotonic()
        if now - self._said >= SAY_S:
            self._said = now
            self._say(f"still starting {self._what} ({now - self._began:.0f} s; at most {START_S:.0f})")
