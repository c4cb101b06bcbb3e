"""How a camera is, in shared memory: anybody reads it without asking the camera's process."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.ring import Field, Ring

_MESSAGE_BYTES = 240
_FIELDS: dict[str, Field] = {
    "at_ns": ("int64", ()),
    "received_ns": ("int64", ()),
    "changed_ns": ("int64", ()),
    "frames": ("int64", ()),
    "lost": ("int64", ()),
    "reconnects": ("int64", ()),
    "stale_ns": ("int64", ()),
    "condition": ("uint8", ()),
    "message": (f"S{_MESSAGE_BYTES}", ()),
}

HEARTBEAT_S = 0.5
_SILENT_NS = 3 * SECOND_NS
"""A camera's process that has not written for so long has ended or hangs."""


class CameraCondition(IntEnum):
    STARTING = 0
    """It is being opened for the first time."""
    READY = 1
    STALE = 2
    """It is there, and no frame has come for five periods."""
    GONE = 3
    """It is unplugged, or its process has ended. Unless the process has ended, opening it is tried again and again."""


@dataclass(frozen=True)
class CameraHealth:
    """One look at a camera."""

    condition: CameraCondition
    age_s: float
    """Since the last frame was received; infinite before the first."""
    unchanged_s: float
    """How long the picture has been exactly the same. Sensors have noise: a real camera that shows that is frozen."""
    frames: int
    lost: int
    """Frames that the device counted and that never came, or were broken."""
    reconnects: int
    message: str
    """What is wrong, empty while nothing is."""


def create_health_ring() -> Ring:
    return Ring.create(_FIELDS, 8)


def read_health(ring: Ring) -> CameraHealth:
    """The newest health in a ring made by ``create_health_ring``, from any process. Does not wait."""
    found = ring.newest()
    if found is None:
        return CameraHealth(CameraCondition.STARTING, math.inf, 0.0, 0, 0, 0, "")
    record, now = found[1], now_ns()
    message = bytes(record["message"]).decode(errors="replace")
    received = int(record["received_ns"])
    condition = CameraCondition(int(record["condition"]))
    if now - int(record["at_ns"]) > _SILENT_NS:
        condition, message = CameraCondition.GONE, "its process says nothing any more: it has ended or hangs"
    elif condition == CameraCondition.READY and now - received > int(record["stale_ns"]):
        condition, message = CameraCondition.STALE, "no frame comes"
    return CameraHealth(
        condition,
        (now - received) / SECOND_NS if received else math.inf,
        (received - int(record["changed_ns"])) / SECOND_NS,
        int(record["frames"]),
        int(record["lost"]),
        int(record["reconnects"]),
        message,
    )


class HealthWriter:
    """The camera process's end, used by its two threads."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._values: dict[str, Any] = dict.fromkeys(_FIELDS, 0) | {"message": b""}

    def beat(self) -> None:
        """Say that the process lives."""
        self._update()

    def tell(self, condition: CameraCondition, message: str = "") -> None:
        self._update(condition=int(condition), message=message.encode()[:_MESSAGE_BYTES])

    def opened(self, rate_hz: float, *, again: bool) -> None:
        self._update(stale_ns=round(5 * SECOND_NS / rate_hz), reconnects=self._values["reconnects"] + again)

    def frame(self, received_ns: int, *, changed: bool, lost: int) -> None:
        """One has come, another picture than the last one or not, after so many that did not come."""
        self._update(
            condition=int(CameraCondition.READY),
            message=b"",
            received_ns=received_ns,
            changed_ns=received_ns if changed else self._values["changed_ns"],
            frames=self._values["frames"] + 1,
            lost=self._values["lost"] + lost,
        )

    def _update(self, **changes: Any) -> None:
        with self._lock:
            self._values.update(changes, at_ns=now_ns())
            self._ring.publish(self._values)
