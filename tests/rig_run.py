"""A run on a rig in a process of its own, seen from outside: what benchmarks break, stop and take over."""

from __future__ import annotations

import contextlib
import glob
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_deploy.dashboard.rings import RigRings
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_log import RigMeasured
from robolearn_deploy.rig_session import lives
from robolearn_hardware.ring import Ring

START_S, END_S = 180.0, 60.0


class Announcing:
    """A ``RigWatcher`` that tells whoever started the process when the run begins."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._page = pipe, ""

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        self._pipe.send((dict(pids), rings, self._page))

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None: ...

    def message(self, text: str) -> None:
        print(text, flush=True)
        if text.startswith("page: "):
            self._page = text.removeprefix("page: ")


class RunProcess:
    """``body(*args, pipe)`` in a process, which calls ``run_rig`` with a watcher that is ``Announcing(pipe)``.

    What it prints goes to the file "log" in ``folder``.
    """

    def __init__(self, stack: ExitStack, folder: Path, body: Callable[..., None], *args: Any) -> None:
        self._folder = folder
        self.supervisor, pipe = start(stack, _logged, folder / "log", body, *args)
        if not pipe.poll(START_S):
            raise TimeoutError(f"the run has not begun after {START_S:g} s; see {folder}")
        try:
            pids, rings, self.page = pipe.recv()
        except EOFError:
            raise RuntimeError(f"the run has not begun: {self.log()}") from None
        self.pids: dict[str, int] = pids | {"supervisor": self.supervisor.pid}
        self.rate_hz: float = rings.rate_hz
        self._ring = stack.enter_context(Ring.attach(rings.ticks))
        self.operator = Operator(stack.enter_context(Ring.attach(rings.commands)))
        """The page's; for whoever has no page."""
        self._next, self._ticks = 0, np.zeros(0, self._ring.dtype)

    def ticks(self) -> np.ndarray:
        """All since ``forget``. To be called more often than every few seconds."""
        begin = self._next
        records, self._next = self._ring.drain(begin)
        if len(records) != self._next - begin:
            raise RuntimeError("ticks were lost to this benchmark: the machine is overloaded")
        self._ticks = np.concatenate([self._ticks, records])
        return self._ticks

    def forget(self, but: int) -> None:
        """All but the last ticks."""
        self._ticks = self.ticks()[-but:]

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.02)
            self.ticks()

    def until(
        self, holds: Callable[[np.ndarray], bool], last: int, what: str, doing: Callable[[], None] | None = None
    ) -> None:
        """Until ``holds`` of the ``last`` ticks, ``doing`` something every second.

        Raises:
            TimeoutError: not within END_S.
        """
        end, again = time.monotonic() + END_S, 0.0
        while time.monotonic() < end:
            newest = self.ticks()[-last:]
            if len(newest) == last and holds(newest):
                return
            if doing is not None and time.monotonic() > again:
                again = time.monotonic() + 1.0
                doing()
            time.sleep(0.01)
        raise TimeoutError(f"not within {END_S:g} s: {what}; {self.log()}")

    def end(self) -> int:
        """Returns how many processes of the run were left behind, and were killed now."""
        if self.supervisor.is_alive():
            self.operator.tell(Command.END)
        self.supervisor.join(END_S)
        end = time.monotonic() + END_S / 4
        while (left := [pid for pid in self.pids.values() if lives(pid)]) and time.monotonic() < end:
            time.sleep(0.05)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in glob.glob(f"/dev/shm/robolearn-{self.supervisor.pid}-*"):  # of a supervisor that was killed
            memory = SharedMemory(os.path.basename(path))
            memory.close()
            memory.unlink()
        return len(left)

    def log(self) -> str:
        """The end of what the run has printed."""
        return (self._folder / "log").read_text()[-2000:]


def start(stack: ExitStack, target: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
    """``target(*args, pipe)`` in a process that ends with ``stack``; the process, and the other end of the pipe."""
    resource_tracker.ensure_running()  # one for both, so that who attaches to a ring does not remove it
    context = multiprocessing.get_context("fork")  # everything is imported already
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(*args, theirs))
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(process.kill)
    return process, ours


def _logged(path: Path, body: Callable[..., None], *args: Any) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    body(*args)
