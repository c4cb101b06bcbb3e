"""What the tests of arms behind a network share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from robolearn_hardware.devices import Arm
from robolearn_hardware.twins.process import Twin


def eventually(true: Callable[[], bool], within_s: float = 15.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, f"not true within {within_s} s"
        time.sleep(0.02)


def reaches(twin: Twin, target: np.ndarray, within: float = 1e-3) -> None:
    """The truth behind the twin comes to ``target`` (J,) rad."""
    eventually(lambda: bool(np.abs(twin.observe()["positions"] - target).max() < within))


def rests(twin: Twin) -> None:
    """The truth behind the twin stays for three tenths of a second where it is."""

    def still() -> bool:
        before = twin.observe()["positions"]
        time.sleep(0.3)
        return bool(np.abs(twin.observe()["positions"] - before).max() < 1e-3)

    eventually(still)


def poll(arm: Arm, limit_s: float, see: Callable[[Any], object] = lambda state: None) -> None:
    """Read the arm for ``limit_s``, or until it raises."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        see(arm.state())
        time.sleep(0.01)
