"""The Franka hand, in a process of its own.

pylibfranka keeps the interpreter's lock until a motion of the gripper has ended, so the hand is driven by franky, which
does not; and the two cannot be imported into one process.
"""

from __future__ import annotations

import contextlib
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.devices import DeviceError

_CONNECT_S = 5.0
_PERIOD_NS = SECOND_NS // 30
_STEP = 0.01
_SPEED = 0.1  # m/s


class Hand:
    """0 closed, 1 open. It ends with the process that made it."""

    def __init__(self, host: str) -> None:
        """Raises DeviceError: there is no hand, or it does not answer."""
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._told = np.nan
        process = context.Process(target=_run, args=(host, theirs), name="franka hand", daemon=True)
        process.start()
        theirs.close()
        try:
            answer = self._pipe.recv() if self._pipe.poll(_CONNECT_S) else "no answer"
        except EOFError:
            answer = "its process has ended"
        if isinstance(answer, str):
            process.kill()
            raise DeviceError(f"no Franka hand at {host}: {answer}; set gripper: none if the robot has none")
        self._opened: float = answer

    def opened(self) -> float:
        """As last read; NaN when it answers no more. Does not wait."""
        with contextlib.suppress(OSError):
            try:
                while self._pipe.poll(0):
                    self._opened = self._pipe.recv()
            except EOFError:
                self._opened = np.nan
        return self._opened

    def go(self, wanted: float) -> None:
        """Does not wait; NaN changes nothing. A target that comes while it moves is gone to after that motion."""
        if not np.isnan(wanted) and not abs(wanted - self._told) < _STEP:
            self._told = wanted
            with contextlib.suppress(OSError):
                self._pipe.send(wanted)


def _run(host: str, pipe: Connection) -> None:
    try:
        import franky

        gripper = franky.Gripper(host)
        most_m = gripper.max_width
    except ImportError:
        pipe.send("franky is missing: pip install 'robolearn[franka]'")
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return
    moving, told, wanted = None, np.nan, np.nan
    with contextlib.suppress(EOFError, OSError):
        while True:
            while pipe.poll(0):
                wanted = pipe.recv()
            if (moving is None or moving.wait(0.0)) and wanted != told and not np.isnan(wanted):
                told, moving = wanted, gripper.move_async(wanted * most_m, _SPEED)
            try:
                pipe.send(float(np.clip(gripper.width / most_m, 0.0, 1.0)))
            except franky.Exception:
                pipe.send(np.nan)
            wait_until_ns(now_ns() + _PERIOD_NS)
