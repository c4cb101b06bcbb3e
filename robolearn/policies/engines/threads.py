"""How many threads a process computes with, and on which cores: a servo loop keeps its own core to itself.

Linux: affinity is set for the threads that exist and inherited by those that come.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from robolearn_data.schema import UserError


class CoresError(UserError):
    """Cores that this machine, or this process, does not have."""


def parse_cores(text: str) -> frozenset[int]:
    """``0,2-3`` -> {0, 2, 3}, as `taskset` and `isolcpus` write it.

    Raises:
        CoresError: not such a list.
    """
    cores: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            cores.update(range(int(first), int(last or first) + 1))
            if int(last or first) < int(first):
                raise ValueError
    except ValueError:
        raise CoresError(f"cores {text!r} are not a list such as 0,2-3") from None
    return frozenset(cores)


def cores_without(reserved: Collection[int]) -> frozenset[int]:
    """The cores that this process may run on, less those reserved for others.

    Raises:
        CoresError: none is left.
    """
    allowed = os.sched_getaffinity(0)
    left = frozenset(allowed - set(reserved))
    if not left:
        raise CoresError(f"of the cores {_text(allowed)} none is left without {_text(reserved)}; reserve fewer")
    return left


def use_threads(threads: int = 1, cores: Collection[int] | None = None) -> None:
    """Compute with ``threads`` threads, on ``cores`` (None: leave them): in torch, and in engines made from now on.

    More threads make a large network faster; one disturbs the least, and waits for nobody.

    Raises:
        CoresError: a core that this process may not use, or threads below 1.
    """
    import torch

    if threads < 1:
        raise CoresError(f"{threads} threads are too few; give 1 or more")
    if cores is not None:
        _pin(frozenset(cores))
    torch.set_num_threads(threads)
    # Between operations torch would start one thread for each core of the machine. Once used, it cannot be changed.
    with contextlib.suppress(RuntimeError):
        torch.set_num_interop_threads(1)


def _pin(cores: frozenset[int]) -> None:
    """Pin every thread of this process. `sched_setaffinity` knows threads only, so that each is named."""
    try:
        os.sched_setaffinity(0, cores)
    except (OSError, ValueError) as error:
        online = range(os.cpu_count() or 1)
        raise CoresError(f"cannot run on the cores {_text(cores)}; this machine has {_text(online)}") from error
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # ended since
            os.sched_setaffinity(int(task.name), cores)


def _text(cores: Collection[int]) -> str:
    return ",".join(map(str, sorted(cores))) or "none"
