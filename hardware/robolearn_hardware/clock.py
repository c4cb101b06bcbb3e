"""The one clock of a machine: CLOCK_MONOTONIC in integer nanoseconds, and waiting for an instant of it.

``time.sleep`` takes a duration, so that whatever happens between reading the clock and falling asleep is added to
every wait. Waiting for an absolute instant (``clock_nanosleep`` with ``TIMER_ABSTIME``, POSIX.1-2017) does not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable

SECOND_NS = 1_000_000_000

now_ns = time.monotonic_ns
"""The present instant, ns of CLOCK_MONOTONIC."""


def period_ns(rate_hz: float) -> int:
    """One period of ``rate_hz`` in whole nanoseconds: the same number in every process that counts ticks."""
    return round(SECOND_NS / rate_hz)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


def _linux_wait() -> Callable[[int], None]:
    libc = ctypes.CDLL(None)
    clock_nanosleep = libc.clock_nanosleep
    clock_nanosleep.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Timespec), ctypes.c_void_p)
    clock_monotonic, timer_abstime = 1, 1  # the kernel's numbers, the same on every Linux

    def wait(at_ns: int) -> None:
        instant = _Timespec(*divmod(at_ns, SECOND_NS))
        # A signal ends the sleep early; its Python handler has run by the time the call is made again.
        while code := clock_nanosleep(clock_monotonic, timer_abstime, ctypes.byref(instant), None):
            if code != errno.EINTR:
                raise OSError(code, f"clock_nanosleep: {os.strerror(code)}")

    return wait


def _portable_wait(at_ns: int) -> None:
    while (left_ns := at_ns - now_ns()) > 0:
        time.sleep(left_ns / SECOND_NS)


wait_until_ns: Callable[[int], None] = _linux_wait() if sys.platform == "linux" else _portable_wait
"""Sleep until an instant of CLOCK_MONOTONIC (ns); returns at once when it has passed. Releases the interpreter lock."""
