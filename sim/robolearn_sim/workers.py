"""Does the same thing for one seed after the other in several processes, and hands the results on in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import count
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_order(
    work: Callable[[int], Result],
    *,
    first_seed: int,
    workers: int,
    begin: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Generator[Result, None, None]:
    """What ``work`` makes of the seeds ``first_seed``, ``first_seed + 1``, ... in this order, without end. Close the
    iterator to stop the processes.

    Args:
        work: can be pickled.
        begin: called with ``arguments`` once in each process.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(begin, arguments),
    )
    pending: deque[Future[Result]] = deque()
    try:
        for seed in count(first_seed):
            pending.append(pool.submit(work, seed))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin is not None:
        begin(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
