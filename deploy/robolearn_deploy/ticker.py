"""Ticks of a control loop on one fixed grid of instants."""

from __future__ import annotations

from dataclasses import dataclass

from robolearn_hardware.clock import now_ns, wait_until_ns


@dataclass(frozen=True)
class Tick:
    due_ns: int
    """The instant on the grid that this tick stands for."""
    woke_ns: int
    """When the loop really began it; the difference is the tick's lateness."""
    missed: int
    """Deadlines the loop was still working at when they passed: this tick's own, and those left out before it."""

    @property
    def lateness_ns(self) -> int:
        return self.woke_ns - self.due_ns


class Ticker:
    """Instants ``start + n * period``. A loop that overruns stays on the grid and leaves out the ticks it has lost,
    so that its time never slips against the clock that chunks and other processes use."""

    def __init__(self, start_ns: int, period_ns: int) -> None:
        self._next_ns = start_ns
        self._period_ns = period_ns

    def wait(self) -> Tick:
        """Sleep until the next deadline; when it has passed already, return at once with the newest one that has."""
        due = self._next_ns
        overrun = now_ns() - due
        missed = 0
        if overrun > 0:
            lost = overrun // self._period_ns
            due += lost * self._period_ns
            missed = 1 + lost
        else:
            wait_until_ns(due)
        self._next_ns = due + self._period_ns
        return Tick(due, now_ns(), missed)
