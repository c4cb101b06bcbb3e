"""The bodies of the smaller processes of a run on a rig: fast policy, teleoperators, force sensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from robolearn_deploy.fast import FastPolicy, FastRings, run_fast
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_senses import stop_check
from robolearn_deploy.stall import TELEOPERATOR_NS, State
from robolearn_deploy.teleop_process import run_teleop
from robolearn_deploy.worker import Rendezvous
from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import DeviceError, DeviceGoneError, ForceSensor, Intent
from robolearn_hardware.registry import ForceSensorConfig, TeleoperatorConfig
from robolearn_hardware.ring import Ring, RingHandle

FORCE_POLL_HZ = 200.0
"""How often the samples of a force sensor are taken from it; each keeps its own time."""
_RETRY_NS = SECOND_NS // 2


def fast_process(
    rendezvous: Rendezvous,
    policy: FastPolicy,
    chunks: RingHandle,
    short: RingHandle,
    streams: Mapping[str, RingHandle],
    session: RingHandle,
) -> None:
    attached = {name: Ring.attach(handle) for name, handle in streams.items()}
    rings = FastRings(Ring.attach(chunks), Ring.attach(short), attached)
    policy.start()
    rendezvous()
    run_fast(policy, rings, stop_check(Ring.attach(session)))


class Buttons:
    """Tells what the buttons of a teleoperator mean, once for each time that one is pressed."""

    def __init__(self, meaning: Mapping[str, tuple[Command, ...]], operator: Operator) -> None:
        """``meaning``: name of a button -> commands, of which those that make no sense at the time do nothing; besides,
        a button that is named like a command means it."""
        named = {command.name.lower(): (command,) for command in Command}
        self._meaning = {**named, **meaning}
        self._operator = operator
        self._pressed: frozenset[str] | None = None
        """None: not known. A button that is pressed from the beginning says nothing."""

    def hear(self, intent: Intent) -> None:
        pressed = frozenset(name for name, down in intent.buttons.items() if down)
        before, self._pressed = self._pressed, pressed
        for name in sorted(pressed - before) if before is not None else ():
            for command in self._meaning.get(name, ()):
                self._operator.tell(command)


def teleop_process(
    rendezvous: Rendezvous,
    name: str,
    config: TeleoperatorConfig,
    intents: RingHandle,
    joints: int,
    commands: RingHandle,
    meaning: Mapping[str, tuple[Command, ...]],
    session: RingHandle,
    ticks: RingHandle | None = None,
    first: int = 0,
) -> None:
    """
    Args:
        ticks: of the servo process, for a leader that pushes back.
        first: where the joints of its arm begin in the rig's vector.
    """
    ring, stopped = Ring.attach(intents), stop_check(Ring.attach(session))
    buttons = Buttons(meaning, Operator(Ring.attach(commands)))
    behind = (lambda: None) if ticks is None else follower_lag(Ring.attach(ticks), slice(first, first + joints))
    run_teleop(name, config, ring, joints, stopped, rendezvous, hear=buttons.hear, behind=behind)


def follower_lag(ticks: Ring, joints: slice) -> Callable[[], np.ndarray | None]:
    """How far (J,) rad an arm is from where a person wants it, by the servo process's newest tick; None while nobody
    moves it, or the tick is old.

    Args:
        ticks: of ``servo_process.tick_fields``.
        joints: of the arm, in the rig's vector.
    """

    def behind() -> np.ndarray | None:
        found = ticks.newest()
        if found is None:
            return None
        tick = found[1]
        fresh = now_ns() - int(tick["due_ns"]) < TELEOPERATOR_NS
        if not fresh or not tick["person"] or int(tick["state"]) != State.TELEOP:
            return None
        return np.asarray(tick["measured"][joints] - tick["requested"][joints], np.float64)

    return behind


def force_process(
    rendezvous: Rendezvous,
    name: str,
    config: ForceSensorConfig,
    samples: RingHandle,
    latency_ns: int,
    session: RingHandle,
) -> None:
    """Publishes every sample of a force sensor; connects again when it was unplugged.

    Args:
        samples: a ring of "capture_ns", "received_ns" and "value" (6,): N and N m in the sensor's frame.
        latency_ns: of the sensor, as the rig states it.

    Raises:
        DeviceError: it cannot be connected at the beginning.
    """
    ring, stopped = Ring.attach(samples), stop_check(Ring.attach(session))
    sensor = config.open(name)
    sensor.connect()
    rendezvous()
    period, due = period_ns(FORCE_POLL_HZ), now_ns()
    try:
        while not stopped():
            due = max(due + period, now_ns())
            wait_until_ns(due)
            try:
                found = sensor.read()
            except DeviceGoneError:
                _connect_again(sensor, stopped)
                continue
            for capture_ns, received_ns, wrench in zip(
                found.capture_ns.tolist(), found.received_ns.tolist(), found.wrench, strict=True
            ):
                ring.publish({"capture_ns": capture_ns - latency_ns, "received_ns": received_ns, "value": wrench})
    finally:
        sensor.close()


def _connect_again(sensor: ForceSensor, stopped: Callable[[], bool]) -> None:
    while not stopped():
        wait_until_ns(now_ns() + _RETRY_NS)
        try:
            sensor.connect()
        except DeviceError:
            continue
        return
