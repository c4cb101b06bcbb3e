"""An arm whose SDK runs in a process of its own, the link.

    caller (this module)                       link process (``link_process``)
    command ── targets ring (latest wins) ──>  each tick: read the SDK, publish the reading,
    state  <── readings ring ────────────────  step towards the target, send it
    connect, hold, release, recover ── pipe ─> carried out between two ticks

``command`` and ``state`` touch shared memory only. Everything else waits for the link's answer up to a deadline, after
which the link is killed: an SDK that hangs costs a process, never the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import (
    ArmInfo,
    ArmState,
    Condition,
    DeviceError,
    DeviceGoneError,
    DeviceTimeoutError,
    LimitError,
    NotReadyError,
)
from robolearn_hardware.network import link_process
from robolearn_hardware.network.session import FOLLOWS, SILENCE_S, Pace, Session
from robolearn_hardware.ring import Ring

CONNECT_S = 10.0
"""With the start of the process and the import of its SDK."""
RECOVER_S = 10.0
HOLD_S = 2.0
_CLOSE_S = 2.0
_SLOTS = 64
_LATE_PERIODS = 5  # a reading older than this many periods is not new
_LIMIT_SLACK = 1e-3  # rad
_ERRORS = {
    error.__name__: error for error in (DeviceError, DeviceGoneError, DeviceTimeoutError, LimitError, NotReadyError)
}


@dataclass(frozen=True)
class _Link:
    process: Any
    pipe: Connection
    readings: Ring
    targets: Ring
    finalize: Finalize
    """A program that ends without ``close`` would otherwise wait for the link for ever."""

    def end(self, wait_s: float) -> None:
        self.finalize.cancel()
        self.process.join(wait_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        self.readings.close()
        self.targets.close()


class LinkedArm:
    """``devices.Arm`` for an SDK in a process of its own."""

    info: ArmInfo

    def __init__(self, info: ArmInfo, make: Callable[[], Session], pace: Pace) -> None:
        """``info`` as far as it is known before connecting. ``make`` can be pickled."""
        self.info = info
        self._make = make
        self._pace = pace
        self._link: _Link | None = None

    def connect(self) -> None:
        self.close()
        self._link = self._start()
        info, error = self._answer("connect", CONNECT_S)
        self.info = replace(info, name=self.info.name)
        if error:
            raise NotReadyError(error)
        try:
            self._inside()
        except DeviceError:
            self.close()
            raise

    def _start(self) -> _Link:
        joints = (self.info.joints,)
        readings = Ring.create(
            {
                "capture_ns": ("int64", ()),
                "received_ns": ("int64", ()),
                "condition": ("int64", ()),
                "reason": (f"S{link_process.REASON_BYTES}", ()),
                "gripper": ("float64", ()),
                "wrench": ("float64", (6,)),
                **dict.fromkeys(("positions", "velocities", "efforts", "temperatures"), ("float64", joints)),
            },
            _SLOTS,
        )
        targets = Ring.create(
            {"positions": ("float64", joints), "gripper": ("float64", ()), "effect_ns": ("int64", ())}, _SLOTS
        )
        context = get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(
            target=link_process.run,
            args=(self.info.name, self._make, self._pace, theirs, readings.handle, targets.handle),
            name=f"link {self.info.name}",
        )
        process.start()
        theirs.close()
        return _Link(process, pipe, readings, targets, Finalize(None, self.close, exitpriority=10))

    def _inside(self) -> None:
        name, limits = self.info.name, self.info.limits
        positions = self.state().positions
        wrong = np.flatnonzero((positions < limits.low - _LIMIT_SLACK) | (positions > limits.high + _LIMIT_SLACK))
        if wrong.size:
            j = int(wrong[0])
            raise DeviceError(
                f"{name}: joint {j} stands at {positions[j]:.3f} rad, outside its limits {limits.low[j]:.3f} to "
                f"{limits.high[j]:.3f}; move it back by hand or with the vendor's own controls, then connect"
            )

    def state(self) -> ArmState:
        record = self._newest()[1]
        wrench, temperatures = record["wrench"], record["temperatures"]
        condition = Condition(int(record["condition"]))
        old_ns = now_ns() - int(record["received_ns"])
        if condition == Condition.READY and old_ns > _LATE_PERIODS * SECOND_NS / self._pace.rate_hz:
            condition = Condition.DEGRADED
        return ArmState(
            int(record["capture_ns"]),
            int(record["received_ns"]),
            condition,
            record["positions"],
            record["velocities"],
            record["efforts"],
            float(record["gripper"]),
            None if np.isnan(wrench).any() else wrench,
            None if np.isnan(temperatures).any() else temperatures,
        )

    def command(self, positions: np.ndarray, gripper: float | None = None, *, effect_ns: int = 0) -> None:
        wanted = self.info.limits.check(self.info.name, positions)
        if gripper is not None and not self.info.has_gripper:
            raise LimitError(f"{self.info.name} has no gripper; command its joints alone")
        if gripper is not None and not 0.0 <= gripper <= 1.0:
            raise LimitError(f"{self.info.name}: the gripper goes from 0 (closed) to 1 (open), not to {gripper}")
        link, record = self._newest()
        condition = Condition(int(record["condition"]))
        if condition not in FOLLOWS:
            reason = bytes(record["reason"]).decode(errors="replace")
            raise NotReadyError(f"{self.info.name} does not follow ({condition.name}): {reason}")
        link.targets.publish(
            {"positions": wanted, "gripper": np.nan if gripper is None else gripper, "effect_ns": effect_ns}
        )

    def hold(self) -> None:
        self._ask("hold", HOLD_S)

    def release(self) -> None:
        self._ask("release", HOLD_S)

    def recover(self) -> None:
        self._ask("recover", RECOVER_S)

    def close(self) -> None:
        link, self._link = self._link, None
        if link is None:
            return
        with contextlib.suppress(OSError):
            link.pipe.send("close")
        link.end(_CLOSE_S)

    def __enter__(self) -> LinkedArm:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> _Link:
        if self._link is None:
            raise DeviceGoneError(f"{self.info.name} is not connected; call connect first")
        return self._link

    def _newest(self) -> tuple[_Link, Any]:
        link = self._connected()
        found = link.readings.newest()
        assert found is not None  # a connected link has published one
        record = found[1]
        if int(record["condition"]) == Condition.DISCONNECTED:
            raise DeviceGoneError(bytes(record["reason"]).decode(errors="replace"))
        silent_s = (now_ns() - int(record["received_ns"])) / SECOND_NS
        if silent_s > SILENCE_S:
            alive = "" if link.process.is_alive() else " (its link process has died)"
            raise DeviceGoneError(
                f"{self.info.name} has been silent for {silent_s:.1f} s{alive}; check cable and power, then connect"
            )
        return link, record

    def _ask(self, what: str, deadline_s: float) -> None:
        link, _ = self._newest()
        try:
            link.pipe.send(what)
        except OSError:
            raise DeviceGoneError(f"the connection to {self.info.name} has ended; connect again") from None
        self._answer(what, deadline_s)

    def _answer(self, what: str, deadline_s: float) -> Any:
        link = self._connected()
        try:
            if link.pipe.poll(deadline_s):
                error, value = link.pipe.recv()
            else:
                self._kill()
                raise DeviceTimeoutError(
                    f"{self.info.name} did not {what} within {deadline_s:g} s and was let go of; "
                    "check its screen and its network, then connect again"
                )
        except (EOFError, OSError):
            code = link.process.exitcode
            self._kill()
            raise DeviceGoneError(f"the link to {self.info.name} ended (exit code {code}); connect again") from None
        if error:
            if what == "connect":
                self._kill()
            raise _ERRORS[error](value)
        return value

    def _kill(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.process.kill()
            link.end(0.0)
