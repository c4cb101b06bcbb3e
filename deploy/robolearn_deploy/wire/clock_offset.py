"""The offset between the clocks of two machines, from messages that go there and back, with bounds that hold.

A ping leaves at t0 and its answer arrives at t3 by this clock; the other machine receives at t1 and answers at t2 by
its own. It cannot receive before it was sent, nor this one: the other clock minus this one lies in [t2 - t3, t1 - t0],
whichever share of the delay either way had (Marzullo and Owicki, 1983). The shorter the round trip, the narrower.

Between exchanges the clocks drift, quartz by tens of microseconds a second. The rate is bounded in the same way, by
exchanges that lie apart; each interval widens with its age by what the rate leaves open, and what is common to all of
them holds. Without drift that is the exchange with the shortest round trip.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from robolearn_deploy.wire.messages import Clock

MAX_DRIFT = 200e-6
"""By how much two clocks may differ in rate before anything is measured: twice the tolerance of cheap quartz."""
MAX_OFFSET_NS = 1 << 62
"""146 years; no machine has run for longer."""
GROUP_NS = 5_000_000_000
"""Of the exchanges within such a time the one with the shortest round trip is kept."""
GROUPS = 60


@dataclass(frozen=True)
class _Exchange:
    at_ns: int
    low_ns: int
    high_ns: int

    @property
    def width_ns(self) -> int:
        return self.high_ns - self.low_ns


class ClockOffset:
    """The other machine's clock minus this one's, from the pings of the last minutes. Not for several threads."""

    def __init__(self) -> None:
        self._kept: deque[_Exchange] = deque(maxlen=GROUPS)

    def add(self, t0: int, t1: int, t2: int, t3: int) -> bool:
        """Take in one exchange (ns). False: it is impossible or out of order, and left out."""
        exchange = _Exchange((t0 + t3) // 2, t2 - t3, t1 - t0)
        if t3 < t0 or t2 < t1 or exchange.width_ns < 0 or abs(exchange.low_ns) > MAX_OFFSET_NS:
            return False
        if self._kept and exchange.at_ns <= self._kept[-1].at_ns:
            return False
        if not self._kept or self._kept[-1].at_ns // GROUP_NS != exchange.at_ns // GROUP_NS:
            self._kept.append(exchange)
        elif exchange.width_ns <= self._kept[-1].width_ns:
            self._kept[-1] = exchange
        return True

    def drift(self) -> tuple[float, float]:
        """Least and greatest rate at which the other clock gains on this one, seconds per second."""
        low, high = -MAX_DRIFT, MAX_DRIFT
        for older in list(self._kept)[:-1]:
            newest = self._kept[-1]
            apart = newest.at_ns - older.at_ns
            low = max(low, (newest.low_ns - older.high_ns) / apart)
            high = min(high, (newest.high_ns - older.low_ns) / apart)
        # Nothing in common: a clock was set to another rate in between.
        return (low, high) if low <= high else (-MAX_DRIFT, MAX_DRIFT)

    def at(self, instant_ns: int) -> Clock | None:
        """The offset as of an instant of this clock; None before the first exchange."""
        if not self._kept:
            return None
        slowest, fastest = self.drift()
        aged = []
        for exchange in self._kept:
            age = max(instant_ns - exchange.at_ns, 0)
            aged.append((exchange.low_ns + int(slowest * age) - 1, exchange.high_ns + int(fastest * age) + 1))
        low, high = max(a[0] for a in aged), min(a[1] for a in aged)
        if low > high:  # the rate changed: the past says nothing
            low, high = aged[-1]
        return Clock(offset_ns=(low + high) // 2, uncertainty_ns=(high - low + 1) // 2)
