"""What a control loop asks of Linux: priority over everything else, memory that stays, a core of its own.

None of it is demanded: where it is not permitted, the loop runs without and says so.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from dataclasses import dataclass

_MCL_CURRENT, _MCL_FUTURE = 1, 2  # the kernel's numbers, the same on every Linux but Alpha, PowerPC and SPARC
PRIORITY = 50
"""Of 1 to 99. The kernel's own interrupt threads run at 50, watchdogs and migration at 99."""


@dataclass(frozen=True)
class Realtime:
    """What was granted. ``missing`` says in words what was not, and what to do."""

    fifo: bool
    locked: bool
    core: int | None
    missing: tuple[str, ...]

    def __str__(self) -> str:
        priority = f"SCHED_FIFO {PRIORITY}" if self.fifo else "ordinary priority"
        memory = "memory locked" if self.locked else "memory not locked"
        return f"{priority}, {memory}, {'any core' if self.core is None else f'core {self.core}'}"


def ask(*, fifo: bool = True, lock: bool = True, core: int | None = None) -> Realtime:
    """Make this process (its calling thread) a real-time one, as far as that is permitted.

    Args:
        core: to run on; it is left to the kernel where None or where there is no such core.
    """
    missing = []
    if core is not None:
        try:
            os.sched_setaffinity(0, {core})
        except (AttributeError, OSError):
            missing.append(f"core {core} does not exist or may not be used; the kernel chooses")
            core = None
    locked = lock and _lock_memory()
    if lock and not locked:
        missing.append("memory may not be locked: pages may be swapped out; see `robolearn doctor`")
    granted = fifo and _fifo()
    if fifo and not granted:
        missing.append(
            "SCHED_FIFO is not permitted: ticks are late whenever something else runs; see `robolearn doctor`"
        )
    return Realtime(granted, locked, core, tuple(missing))


def freeze_garbage() -> None:
    """Collect now, and never again in this process: a collection takes milliseconds. Reference counts still free."""
    gc.collect()
    gc.freeze()
    gc.disable()


def _fifo() -> bool:
    try:  # threads and processes that it starts are ordinary ones
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except (AttributeError, OSError):
        return False
    return True


def _lock_memory() -> bool:
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT | _MCL_FUTURE) == 0
