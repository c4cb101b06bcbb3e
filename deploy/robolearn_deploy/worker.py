"""A child process whose failure is noticed and whose end is bounded in time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any

from robolearn_data.schema import UserError

Rendezvous = Callable[[], None]
"""Called by a child when it is ready; returns when the parent lets it go."""


class StartError(UserError):
    """The runtime could not be started."""


class Worker:
    """Runs ``target(rendezvous, *args)`` in a fresh process (spawned: it shares no locks, threads or CUDA state).

    The child never sees SIGINT and SIGTERM: a Ctrl-C reaches every process of a terminal, and the parent alone decides
    in which order they end.
    """

    def __init__(self, name: str, target: Callable[..., None], *args: Any) -> None:
        self.name = name
        self._ready = False
        self._killed = False
        self._failure = ""
        context = multiprocessing.get_context("spawn")
        self._pipe, child_end = context.Pipe()
        self._process = context.Process(target=_child, name=name, args=(target, child_end, args))
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            child_end.close()  # the child's copy is now the only one, so that its death is an end of file here

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def poll_ready(self) -> bool:
        """Whether the child has come to its rendezvous.

        Raises:
            StartError: it ended before.
        """
        self._listen()
        if not self._ready and not self.running:
            raise StartError(self.failure() or f"the {self.name} process ended before it was ready")
        return self._ready

    def release(self) -> None:
        """Let the child go on from its rendezvous."""
        with contextlib.suppress(OSError):  # it has died since: ``failure`` says so
            self._pipe.send("go")

    def failure(self) -> str:
        """Why the child is no more, in one line; empty while it runs and when it ended well."""
        self._listen()
        if self.running or self._process.exitcode == 0:
            return ""
        if self._failure:
            return f"the {self.name} process failed: {self._failure}"
        if self._killed:
            return f"the {self.name} process did not end when told to and was killed"
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"the {self.name} process {how}"

    def stop(self, timeout_s: float) -> None:
        """Wait for the child, which must have been told to end, and kill it when ``timeout_s`` is over."""
        self._listen()
        self._pipe.close()  # a child at its rendezvous ends here
        self._process.join(timeout_s)
        if self.running:
            self._killed = True
            self._process.kill()
            self._process.join()

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):  # the child is gone: ``running`` and its exit code tell
            while not self._pipe.closed and self._pipe.poll():
                kind, text = self._pipe.recv()
                self._ready |= kind == "ready"
                self._failure = text or self._failure


def wait_ready(workers: list[Worker], timeout_s: float, idle: Callable[[], None]) -> None:
    """Wait until all have come to their rendezvous, calling ``idle`` every 20 ms.

    Raises:
        StartError: one ended before, or ``timeout_s`` is over.
    """
    end = time.monotonic() + timeout_s
    while late := [w.name for w in workers if not w.poll_ready()]:
        if time.monotonic() > end:
            names = " and the ".join(late)
            raise StartError(f"the {names} process was not ready after {timeout_s:g} s; is the machine overloaded?")
        idle()
        time.sleep(0.02)


def _child(target: Callable[..., None], pipe: Connection, args: tuple[Any, ...]) -> None:
    def rendezvous() -> None:
        pipe.send(("ready", ""))
        try:
            pipe.recv()
        except EOFError:
            raise SystemExit(0) from None

    code = 0
    try:
        target(rendezvous, *args)
    except SystemExit:
        pass
    except Exception as error:
        code = 1
        mendable = isinstance(error, UserError | OSError)
        if not mendable:
            traceback.print_exc()
        text = str(error) if mendable else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):  # the parent no longer listens
            pipe.send(("failed", " ".join(text.split())))
    sys.stdout.flush()
    sys.stderr.flush()
    util._run_finalizers(0)  # pyright: ignore[reportAttributeAccessIssue]  # libraries' locks, which would be said to have leaked
    # Everything is closed; what large libraries do at an interpreter's end takes seconds and sometimes aborts.
    os._exit(code)
