"""What a vendor's module says of its arm: how to open it, read it and command it, inside the link process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from robolearn_hardware.devices import ArmInfo, Condition

SILENCE_S = 0.5
"""A reading older than this is a broken connection."""

FOLLOWS = (Condition.READY, Condition.DEGRADED)
"""The conditions in which an arm takes targets."""


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
        the arm follows a target. Raises NotReadyError."""
        ...

    def idle(self) -> None:
        """Called each tick without a target: what keeps the device from giving the connection up."""
        ...

    def hold(self) -> None: ...

    def release(self) -> None: ...

    def recover(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Pace:
    """How the link runs."""

    rate_hz: float
    """Ticks per second: each reads, and sends a setpoint where there is a target."""
    speed: float = 1.0
    """Setpoints move at most at this share of the joints' greatest velocities."""
