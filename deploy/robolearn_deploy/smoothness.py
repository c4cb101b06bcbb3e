"""How smooth a motion was: jerk of what was commanded, and jumps where one chunk followed another."""

from __future__ import annotations

from collections import deque

import numpy as np

from robolearn_data.schema import Stream


class Smoothness:
    """Follows the actions of one episode, however long it is."""

    def __init__(self, action: Stream, rate_hz: float) -> None:
        self._relative = list(action.relative)
        self._rate_hz = rate_hz
        self._last: np.ndarray | None = None
        self._chunk: int | None = None
        self._summed = np.zeros(action.shape)
        self._positions: deque[np.ndarray] = deque(maxlen=4)
        self._jerks, self._jumps, self._steps = _Mean(), _Mean(), _Mean()

    def chunk(self, actions: np.ndarray) -> None:
        """A chunk was inferred; ``actions`` (n, A) are those from its observation's capture on."""
        if len(actions) > 1:
            self._steps.add(float(np.linalg.norm(np.diff(actions, axis=0), axis=1).mean()))

    def sent(self, action: np.ndarray, chunk: int | None) -> None:
        """``action`` (A,) was sent because the chunk of that number said so; None while the robot held."""
        if self._last is not None and chunk is not None and chunk != self._chunk:
            self._jumps.add(float(np.linalg.norm(action - self._last)))
        self._last, self._chunk = np.array(action, np.float64), chunk
        self._summed = self._summed + self._last
        position = self._last.copy()
        position[self._relative] = self._summed[self._relative]
        self._positions.append(position)
        if len(self._positions) == 4:
            a, b, c, d = self._positions
            self._jerks.add(float(np.linalg.norm(d - 3 * c + 3 * b - a)) * self._rate_hz**3)

    @property
    def jerk(self) -> float | None:
        """Mean magnitude of the third derivative of the position that was commanded, units per s^3; None below four
        actions. Components that are changes per period (``Stream.relative``) are summed to positions first."""
        return self._jerks.value

    @property
    def jump(self) -> float | None:
        """Mean change of the action from one step to the next where another chunk took over; None without any."""
        return self._jumps.value

    @property
    def step(self) -> float | None:
        """Mean change of the action from one step to the next inside the chunks; None without any."""
        return self._steps.value


class _Mean:
    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._sum, self._count = self._sum + value, self._count + 1

    @property
    def value(self) -> float | None:
        return self._sum / self._count if self._count else None
