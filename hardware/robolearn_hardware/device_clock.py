"""Instants of a device's own clock on CLOCK_MONOTONIC."""

from __future__ import annotations

import time

from robolearn_hardware.clock import SECOND_NS, now_ns

_WINDOW_NS = 10 * SECOND_NS
_NEVER = 2**62


class DeviceClock:
    """Maps the times of one device by the least delay at which its frames were received.

    received = device time + offset + delay, and the delay is never negative: the least difference seen is the offset
    plus the least delay (the way of Cristian's clock synchronisation, 1989). That constant rest (transport of the
    fastest frame) is part of the latency that a calibration measures. Only the last 10 to 20 s count, because clocks
    drift: 50 ppm are 1 ms in 20 s.
    """

    def __init__(self) -> None:
        self._device_ns = self._mapped_ns = 0
        self._least = (_NEVER, _NEVER)
        """Least difference in the window before, and in this one."""
        self._since_ns = 0

    def map(self, device_ns: int, received_ns: int) -> int:
        """The instant of CLOCK_MONOTONIC at which the device's clock stood at ``device_ns``, later than every one
        before. A clock that goes back (a reboot, a counter that wraps) is learned anew."""
        difference = received_ns - device_ns
        if device_ns <= self._device_ns:
            self._least = (_NEVER, difference)
            self._since_ns = received_ns
        elif received_ns - self._since_ns > _WINDOW_NS:
            self._least = (self._least[1], difference)
            self._since_ns = received_ns
        self._least = (self._least[0], min(self._least[1], difference))
        self._device_ns = device_ns
        self._mapped_ns = max(device_ns + min(self._least), self._mapped_ns + 1)
        return self._mapped_ns


def wall_offset_ns() -> int:
    """What to add to an instant of CLOCK_MONOTONIC to get the wall clock's, ns since 1970, now. The best of five tries:
    a process may lose the processor between reading one clock and the other."""
    best = (_NEVER, 0)
    for _ in range(5):
        before, wall, after = now_ns(), time.clock_gettime_ns(time.CLOCK_REALTIME), now_ns()
        best = min(best, (after - before, wall - (before + after) // 2))
    return best[1]
