"""How long the parts of an inference take: this one's, and the median and the 99th percentile of the last ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class Timed:
    """Stop watch of a policy. Used by one thread::

        timed = Timed()
        with timed("total"):
            with timed("encode"):
                context = policy.encode(observation)
            with timed("sample"):
                chunk = policy.sample(context).cpu()
        reply = Reply(chunk, final, timing_ms=timed.take())

    A GPU answers before it is done: time what ends with a copy to the CPU.
    """

    def __init__(self, window: int = 1000) -> None:
        """``window``: inferences that ``percentiles`` looks back on."""
        self._window = window
        self._current: dict[str, float] = {}
        self._recent: dict[str, deque[float]] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time what is done inside. A part that is done several times in one inference adds up."""
        begun_ns = time.monotonic_ns()
        try:
            yield
        finally:
            self._current[part] = self._current.get(part, 0.0) + (time.monotonic_ns() - begun_ns) / 1e6

    def take(self) -> dict[str, float]:
        """Part -> ms of the inference that is over, which then counts in ``percentiles``. The next one begins."""
        taken, self._current = self._current, {}
        for part, value in taken.items():
            self._recent.setdefault(part, deque(maxlen=self._window)).append(value)
        return taken

    def clear(self) -> None:
        """Forget everything, as after warm-up."""
        self._current.clear()
        self._recent.clear()

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """Part -> (p50, p99) in ms of the last inferences."""
        return {part: tuple(np.percentile(values, (50, 99)).tolist()) for part, values in self._recent.items()}
