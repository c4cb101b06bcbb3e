"""A device's clock, mapped to this machine's."""

from __future__ import annotations

from robolearn_hardware.clock import SECOND_NS


class DeviceClock:
    """Instants of a device's clock -> CLOCK_MONOTONIC, by the running minimum of (received - device time).

    The smallest delay seen is taken for none: what remains is the constant part of the latency, which
    `robolearn calibrate latency` measures. The minimum is of the last one to two windows, so that it follows clocks
    that drift.
    """

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_ns = round(window_s * SECOND_NS)
        self._began_ns = 0
        self._last: int | None = None
        self._this: int | None = None

    def capture_ns(self, device_s: float, received_ns: int) -> int:
        """When it was ``device_s`` at the device; never later than ``received_ns``."""
        offset = received_ns - round(device_s * SECOND_NS)
        if self._this is None or received_ns - self._began_ns > self._window_ns:
            self._last, self._this, self._began_ns = self._this, offset, received_ns
        self._this = min(self._this, offset)
        smallest = self._this if self._last is None else min(self._this, self._last)
        return received_ns - (offset - smallest)
