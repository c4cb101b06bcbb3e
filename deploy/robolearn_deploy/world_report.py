"""What a session in a simulated world measured, while it runs and at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from robolearn_deploy.report import Spread
from robolearn_deploy.stall import State
from robolearn_hardware.clock import SECOND_NS


@dataclass
class WorldMeasured:
    """Since the session began. Times in ns."""

    lateness: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    drawing: list[int] = field(default_factory=list)
    missed: int = 0
    state: State = State.STOPPED
    person: bool = False
    due_ns: int = 0
    """Of the newest tick."""
    steps: int = 0
    score: float = 0.0
    """Of the episode in flight."""
    _paced: int = 0
    _paced_ns: int = 0
    _stepped_ns: int = 0  # the tick before made a step then; 0: it made none

    @property
    def cause(self) -> str:
        """What is there to say, for a person."""
        return f"step {self.steps}, score {self.score:.2f}"

    @property
    def rate_hz(self) -> float | None:
        """Steps a second of the episode in flight, pauses left out; None before there were two."""
        return self._paced * SECOND_NS / self._paced_ns if self._paced else None

    def begin(self) -> None:
        """An episode."""
        self.steps, self.score = 0, 0.0
        self._paced = self._paced_ns = self._stepped_ns = 0

    def take(self, done: np.void, *, mine: bool) -> None:
        """A record of ``world_process.DONE_FIELDS``; ``mine``: of the episode in flight."""
        self.due_ns, self.state, self.person = int(done["due_ns"]), State(int(done["state"])), bool(done["person"])
        self.lateness.append(int(done["woke_ns"]) - self.due_ns)
        self.missed += int(done["missed"])
        if done["step_ns"]:
            self.step.append(int(done["step_ns"]))
        if done["drawn_ns"]:
            self.drawing.append(int(done["drawn_ns"]))
        if not mine:
            return
        self.steps, self.score = int(done["steps"]), float(done["score"])
        if done["step_ns"] and self._stepped_ns:
            self._paced, self._paced_ns = self._paced + 1, self._paced_ns + self.due_ns - self._stepped_ns
        self._stepped_ns = self.due_ns if done["step_ns"] else 0


@dataclass(frozen=True)
class SessionReport:
    """What is said at the end."""

    saved: int
    discarded: int
    episodes: int
    """In the dataset."""
    successes: int
    rate_hz: float
    rate_reached_hz: float | None
    """Steps a second in the slowest episode that was saved; None: there was none."""
    ticks: int
    missed: int
    lateness: Spread
    world_step: Spread
    drawing: Spread
    failure: str
    """Why it ended early; empty where it did not."""

    def __str__(self) -> str:
        reached = self.rate_reached_hz
        pace = f"{self.rate_hz:g} Hz" if reached is None else f"{reached:.1f} of {self.rate_hz:g} Hz kept"
        return "\n".join(
            [
                f"episodes  {self.episodes} ({self.successes} successes); saved {self.saved} and discarded "
                f"{self.discarded} in this session",
                f"clock     {pace}; {self.ticks} ticks, {self.missed} deadlines missed",
                f"lateness  {self.lateness}",
                f"world     {self.world_step}",
                f"drawing   {self.drawing}",
            ]
        )
