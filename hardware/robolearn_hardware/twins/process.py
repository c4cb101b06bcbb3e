"""A twin in a process of its own: its interpreter is never busy with what the driver's does."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Protocol

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.twins.faults import Faults

_ANSWER_S = 20.0


class TwinServer(Protocol):
    """Runs in the twin's process."""

    address: str
    """What a driver's configuration names to reach it: a port, a host."""

    def start(self) -> None:
        """Begin to answer, in threads of its own."""
        ...

    def fault(self, faults: Faults) -> None:
        """Misbehave from now on as ``faults`` says, and no longer as it was told before. Raises DeviceError."""
        ...

    def observe(self) -> dict[str, Any]:
        """The truth, for tests: "positions" (n,) and whatever else its module says."""
        ...

    def close(self) -> None: ...


class Twin:
    """A running twin, from outside. Use it as a context manager."""

    def __init__(self, make: Callable[[], TwinServer]) -> None:
        """``make`` can be pickled: a class's ``functools.partial``. Raises DeviceError if the twin cannot start."""
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(make, theirs), name="twin", daemon=True)
        self._process.start()
        theirs.close()
        self.address: str = self._answer()

    def fault(self, **faults: Any) -> None:
        """``twin.fault(silent=(3,))``; ``twin.fault()`` ends them all."""
        self._ask("fault", Faults(**faults))

    def observe(self) -> dict[str, Any]:
        return self._ask("observe")

    def close(self) -> None:
        with contextlib.suppress(DeviceError):
            self._ask("close")
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, what: str, argument: Any = None) -> Any:
        try:
            self._pipe.send((what, argument))
        except OSError:
            raise DeviceError(f"the twin has ended (exit code {self._process.exitcode})") from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._pipe.poll(_ANSWER_S):
                raise DeviceError(f"the twin does not answer within {_ANSWER_S:g} s")
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1)
            raise DeviceError(f"the twin has ended (exit code {self._process.exitcode})") from None
        if kind == "error":
            raise DeviceError(value)
        return value


def _run(make: Callable[[], TwinServer], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every process of a terminal; the parent decides
    try:
        server = make()
        server.start()
    except (DeviceError, OSError) as error:
        pipe.send(("error", f"the twin cannot start: {error}"))
        return
    pipe.send(("ok", server.address))
    try:
        while True:
            try:
                what, argument = pipe.recv()
            except (EOFError, OSError):  # the parent was killed
                return
            if what == "close":
                pipe.send(("ok", None))
                return
            try:
                pipe.send(("ok", server.observe() if what == "observe" else server.fault(argument)))
            except DeviceError as error:
                pipe.send(("error", str(error)))
    finally:
        server.close()
