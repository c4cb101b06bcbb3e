"""The link process: one SDK, ticking. See ``link.py``."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NoReturn

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import ArmInfo, Condition, DeviceError, NotReadyError
from robolearn_hardware.network.session import FOLLOWS, SILENCE_S, Pace, Reading, Session
from robolearn_hardware.network.setpoints import Setpoints
from robolearn_hardware.ring import Ring, RingHandle

REASON_BYTES = 240
"""Room for ``Reading.reason`` in the ring."""
_PRIORITY = 50
_AGAIN_NS = SECOND_NS // 500


def run(
    name: str,
    make: Callable[[], Session],
    pace: Pace,
    pipe: Connection,
    readings: RingHandle,
    targets: RingHandle,
) -> None:
    """The body of the link process of the arm ``name``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every process of a terminal; the parent decides
    _quiet()
    session = make()
    try:
        info = session.open()
        link = _Ticker(session, info, pace, Ring.attach(readings), Ring.attach(targets))
        link.read_anew()
        refused = ""
        try:
            session.prepare()
        except NotReadyError as error:
            refused = str(error)
        link.read_anew()
    except Exception as error:
        pipe.send(_told(name, error))
        _leave()
    pipe.send(("", (info, refused)))
    _below_the_kernel()
    gc.freeze()
    try:
        link.run(pipe)
    except Exception as error:
        link.gone(_told(name, error)[1])
    _leave()


def _told(name: str, error: Exception) -> tuple[str, str]:
    """For the caller: name of a DeviceError and its line. SDKs raise whatever they like."""
    if isinstance(error, DeviceError):
        return type(error).__name__, str(error)
    return DeviceError.__name__, f"{name}: the SDK failed: {type(error).__name__}: {' '.join(str(error).split())}"


class _Ticker:
    def __init__(self, session: Session, info: ArmInfo, pace: Pace, readings: Ring, targets: Ring) -> None:
        self._session = session
        self._info = info
        self._pace = pace
        self._readings = readings
        self._targets = targets
        self._taken = 0
        self._setpoints = Setpoints(info.limits.velocity * pace.speed)

    def run(self, pipe: Connection) -> None:
        period = period_ns(self._pace.rate_hz)
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
            answer = _told(self._info.name, error)
        self.read_anew()
        pipe.send(answer)

    def _tick(self, dt_s: float) -> None:
        reading = self.read()
        if reading.condition not in FOLLOWS:
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
            return
        try:
            self._session.send(setpoint, self._setpoints.gripper)
        except NotReadyError:  # it has stopped since it was read; the next reading says why
            self._forget()

    def _forget(self) -> None:
        """What was told before a stop must not be done after it."""
        self._taken = self._targets.count
        self._setpoints.clear()

    def read_anew(self) -> None:
        """Publish a reading of after this moment: what is told of an arm is from after what was done to it.

        One exchange may fail, or bring what was on its way; so there is as much time as a connection may be silent.
        """
        begun = now_ns()
        while True:
            is_last = now_ns() > begun + SILENCE_S * SECOND_NS
            try:
                if self.read().received_ns >= begun or is_last:
                    return
            except DeviceError:
                if is_last:
                    raise
            wait_until_ns(now_ns() + _AGAIN_NS)

    def read(self) -> Reading:
        reading = self._session.read()
        nowhere = np.full(self._info.joints, np.nan)
        self._readings.publish(
            {
                "capture_ns": reading.capture_ns,
                "received_ns": reading.received_ns,
                "condition": int(reading.condition),
                "reason": reading.reason.encode()[:REASON_BYTES],
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
            {**record, "condition": int(Condition.DISCONNECTED), "reason": reason.encode()[:REASON_BYTES]}
        )


def _below_the_kernel() -> None:
    """ur_rtde takes the highest real-time priority that there is, if it may. No Python loop should have that."""
    if hasattr(os, "SCHED_FIFO") and os.sched_getscheduler(0) == os.SCHED_FIFO:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))


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
