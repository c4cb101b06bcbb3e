"""An arm whose SDK runs in a process of its own, the link.

    caller                                     link process
    command ── targets ring (latest wins) ──>  each tick: read the SDK, publish the reading,
    state  <── readings ring ────────────────  step towards the target, send it
    connect, hold, release, recover ── pipe ─> carried out between two ticks

``command`` and ``state`` touch shared memory only. Everything else waits for the link's answer up to a deadline, after
which the link is killed: an SDK that hangs costs a process, never the caller.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns, wait_until_ns
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
from robolearn_hardware.network.setpoints import Setpoints
from robolearn_hardware.ring import Ring, RingHandle

CONNECT_S = 10.0
"""With the start of the process and the import of its SDK."""
RECOVER_S = 10.0
HOLD_S = 2.0
SILENCE_S = 0.5
"""A reading older than this is a broken connection."""
_CLOSE_S = 2.0
_SLOTS = 64
_LATE_PERIODS = 5  # a reading older than this many periods is not new
_REASON_BYTES = 240
_ERRORS = {
    error.__name__: error for error in (DeviceError, DeviceGoneError, DeviceTimeoutError, LimitError, NotReadyError)
}
_FOLLOWS = (Condition.READY, Condition.DEGRADED)


@dataclass(frozen=True, eq=False)
class Reading:
    """What a session reads. Arrays as in ``ArmState``."""

    capture_ns: int
    received_ns: int
    condition: Condition
    positions: np.ndarray
    velocities: np.ndarray
    efforts: np.ndarray
    gripper: float = np.nan
    wrench: np.ndarray | None = None
    temperatures: np.ndarray | None = None
    reason: str = ""
    """Why the condition is neither READY nor DEGRADED, and what to do about it; one line."""


class Session(Protocol):
    """A vendor's SDK, inside the link process and used by its one thread. Errors are as in ``devices.Arm``."""

    def open(self) -> ArmInfo:
        """Find the arm, as far as its state can be read. Raises DeviceError."""
        ...

    def prepare(self) -> None:
        """Make it follow setpoints, without moving it. Raises NotReadyError."""
        ...

    def read(self) -> Reading:
        """The newest reading there is; does not wait. Raises DeviceGoneError."""
        ...

    def send(self, positions: np.ndarray, gripper: float) -> None:
        """One setpoint of the stream: (J,) rad, within limits; the gripper NaN where it stays. Called each tick while
        the arm follows a target."""
        ...

    def idle(self) -> None:
        """Called each tick without a target: what keeps the device from giving the connection up."""
        ...

    def hold(self) -> None: ...

    def release(self) -> None: ...

    def recover(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Speed:
    """How the link runs."""

    rate_hz: float
    """Ticks per second."""
    reading_hz: float
    """New readings per second that the device has."""
    velocity: float = 1.0
    """Setpoints move at most at this share of the joints' greatest velocities."""


@dataclass
class _Process:
    process: Any
    pipe: Connection
    readings: Ring
    targets: Ring
    sent: int = 0
    last_capture_ns: int = field(default=0)

    def end(self, wait_s: float) -> None:
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

    def __init__(self, info: ArmInfo, make: Callable[[], Session], speed: Speed) -> None:
        """``info`` as far as it is known before connecting. ``make`` can be pickled."""
        self.info = info
        self._make = make
        self._speed = speed
        self._link: _Process | None = None

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

    def _start(self) -> _Process:
        joints = (self.info.joints,)
        readings = Ring.create(
            {
                "capture_ns": ("int64", ()),
                "received_ns": ("int64", ()),
                "condition": ("int64", ()),
                "reason": (f"S{_REASON_BYTES}", ()),
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
            target=_run,
            args=(self._make, self._speed, theirs, readings.handle, targets.handle),
            name=f"link {self.info.name}",
        )
        process.start()
        theirs.close()
        return _Process(process, pipe, readings, targets)

    def _inside(self) -> None:
        name, limits = self.info.name, self.info.limits
        positions = self.state().positions
        wrong = np.flatnonzero((positions < limits.low - 1e-3) | (positions > limits.high + 1e-3))
        if wrong.size:
            j = int(wrong[0])
            raise DeviceError(
                f"{name}: joint {j} stands at {positions[j]:.3f} rad, outside its limits {limits.low[j]:.3f} to "
                f"{limits.high[j]:.3f}; move it back by hand or with the vendor's own controls, then connect"
            )

    def state(self) -> ArmState:
        link, record = self._newest()
        wrench, temperatures = record["wrench"], record["temperatures"]
        condition = Condition(int(record["condition"]))
        old_ns = now_ns() - int(record["received_ns"])
        if condition == Condition.READY and old_ns > _LATE_PERIODS * SECOND_NS / self._speed.reading_hz:
            condition = Condition.DEGRADED
        link.last_capture_ns = int(record["capture_ns"])
        return ArmState(
            link.last_capture_ns,
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
        if condition not in _FOLLOWS:
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

    def _connected(self) -> _Process:
        if self._link is None:
            raise DeviceGoneError(f"{self.info.name} is not connected; call connect first")
        return self._link

    def _newest(self) -> tuple[_Process, Any]:
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


def _run(
    make: Callable[[], Session], speed: Speed, pipe: Connection, readings: RingHandle, targets: RingHandle
) -> None:
    """The body of the link process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every process of a terminal; the parent decides
    _quiet()
    session = make()
    try:
        info = session.open()
        link = _Link(session, info, speed, Ring.attach(readings), Ring.attach(targets))
        link.read()
        refused = ""
        try:
            session.prepare()
        except NotReadyError as error:
            refused = str(error)
        link.read()
    except Exception as error:
        pipe.send(_told(error))
        _leave()
    pipe.send(("", (info, refused)))
    gc.freeze()
    try:
        link.run(pipe)
    except Exception as error:
        link.gone(_told(error)[1])
    _leave()


def _told(error: Exception) -> tuple[str, str]:
    """For the caller: name of a DeviceError and its line. SDKs raise whatever they like."""
    if isinstance(error, DeviceError):
        return type(error).__name__, str(error)
    return DeviceError.__name__, f"the SDK failed: {type(error).__name__}: {' '.join(str(error).split())}"


class _Link:
    def __init__(self, session: Session, info: ArmInfo, speed: Speed, readings: Ring, targets: Ring) -> None:
        self._session = session
        self._info = info
        self._speed = speed
        self._readings = readings
        self._targets = targets
        self._taken = 0
        self._setpoints = Setpoints(info.limits.velocity * speed.velocity)
        self._reading: Reading | None = None

    def run(self, pipe: Connection) -> None:
        period = period_ns(self._speed.rate_hz)
        due = now_ns()
        while True:
            due = max(due + period, now_ns() - period)  # what was late is not made up for
            wait_until_ns(due)
            while pipe.poll(0):
                try:
                    what = pipe.recv()
                except (EOFError, OSError):  # the caller was killed
                    what = "close"
                if what == "close":
                    self._session.hold()
                    self._session.close()
                    return
                self._carry_out(what, pipe)
            self._tick(period / SECOND_NS)

    def _carry_out(self, what: str, pipe: Connection) -> None:
        self._forget()
        answer = ("", None)
        try:
            getattr(self._session, what)()
        except DeviceError as error:
            answer = _told(error)
        self.read()
        pipe.send(answer)

    def _tick(self, dt_s: float) -> None:
        reading = self.read()
        if reading.condition not in _FOLLOWS:
            self._forget()
        found = self._targets.newest() if self._targets.count > self._taken else None
        if found is not None:
            index, target = found
            self._taken = index + 1
            now = now_ns()
            self._setpoints.aim(
                reading.positions, target["positions"], float(target["gripper"]), int(target["effect_ns"]), now
            )
        setpoint = self._setpoints.step(now_ns(), dt_s)
        if setpoint is None:
            self._session.idle()
        else:
            self._session.send(setpoint, self._setpoints.gripper)

    def _forget(self) -> None:
        """What was told before a stop must not be done after it."""
        self._taken = self._targets.count
        self._setpoints.clear()

    def read(self) -> Reading:
        self._reading = reading = self._session.read()
        nowhere = np.full(self._info.joints, np.nan)
        self._readings.publish(
            {
                "capture_ns": reading.capture_ns,
                "received_ns": reading.received_ns,
                "condition": int(reading.condition),
                "reason": reading.reason.encode()[:_REASON_BYTES],
                "gripper": reading.gripper,
                "wrench": np.full(6, np.nan) if reading.wrench is None else reading.wrench,
                "positions": reading.positions,
                "velocities": reading.velocities,
                "efforts": reading.efforts,
                "temperatures": nowhere if reading.temperatures is None else reading.temperatures,
            }
        )
        return reading

    def gone(self, reason: str) -> None:
        newest = self._readings.newest()
        assert newest is not None
        record = {name: newest[1][name] for name in self._readings.handle.fields}
        self._readings.publish(
            {**record, "condition": int(Condition.DISCONNECTED), "reason": reason.encode()[:_REASON_BYTES]}
        )


def _quiet() -> None:
    """SDKs print at every connection: let what they say not mix with what the program says."""
    if os.environ.get("ROBOLEARN_SDK_OUTPUT"):
        return
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _leave() -> NoReturn:
    """End without the destructors of SDKs, which wait for connections that may be dead."""
    os._exit(0)
