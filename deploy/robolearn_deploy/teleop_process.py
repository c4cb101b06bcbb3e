"""Reads a teleoperator in a process of its own and publishes what the person wants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from robolearn_deploy.takeover import intent_record
from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import DeviceError, DeviceGoneError, ForceReflecting, Intent, Teleoperator
from robolearn_hardware.registry import TeleoperatorConfig
from robolearn_hardware.ring import Ring

RATE_HZ = 100.0
"""As a servo loop: each period is one that a hand waits."""
_RETRY_NS = SECOND_NS // 2


def run_teleop(
    name: str,
    config: TeleoperatorConfig,
    intents: Ring,
    joints: int,
    stopped: Callable[[], bool],
    ready: Callable[[], None],
    hear: Callable[[Intent], None] = lambda intent: None,
    behind: Callable[[], np.ndarray | None] = lambda: None,
) -> None:
    """The body of the process: one record for each reading; connects again when the device was unplugged.

    Args:
        hear: is told of each intent too, for its buttons.
        behind: how far (J,) rad the arm is from where the person wants it, None while nobody moves it: for devices
            that let a hand feel it.

    Raises:
        DeviceError: it cannot be connected at the beginning, or is a leader of another number of joints.
    """
    teleoperator = config.open(name)
    teleoperator.connect()
    ready()
    period, due = period_ns(RATE_HZ), now_ns()
    try:
        while not stopped():
            due = max(due + period, now_ns())
            wait_until_ns(due)
            try:
                if isinstance(teleoperator, ForceReflecting) and (far := behind()) is not None:
                    teleoperator.feel(far)
                intent = teleoperator.read()
                intents.publish(intent_record(intent, joints))
                hear(intent)
            except DeviceGoneError:
                _connect_again(teleoperator, stopped)
    finally:
        teleoperator.close()


def _connect_again(teleoperator: Teleoperator, stopped: Callable[[], bool]) -> None:
    while not stopped():
        wait_until_ns(now_ns() + _RETRY_NS)
        try:
            teleoperator.connect()
        except DeviceError:
            continue
        return
