"""The bar that a person watches while something long is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE_S = 2.0


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error where that is a terminal, driven by calls with (done, total); none within two seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    console = Console(stderr=True)
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = progress.add_task(what, total=None)
    begun = time.monotonic()
    started = False

    def show(done: int, total: int) -> None:
        nonlocal started
        if not started and time.monotonic() - begun > _PATIENCE_S:
            progress.start()
            started = True
        progress.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        progress.stop()


@contextmanager
def attempts_bar(what: str, episodes: int) -> Iterator[Callable[[int, int, int], None]]:
    """A bar towards ``episodes`` of a dataset, driven by calls with (episodes there, attempts that succeeded now, that
    failed now)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}")) as bar:
        task = bar.add_task("starting the simulator", total=episodes)

        def show(done: int, saved: int, failed: int) -> None:
            bar.update(task, completed=done, description=f"{saved} of {saved + failed} attempts succeeded")

        yield show
