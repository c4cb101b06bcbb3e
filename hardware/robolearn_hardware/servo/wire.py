"""What a vendor's protocol is to the bus: a few exchanges, each through the vendor's SDK."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from robolearn_hardware.servo.port import SerialLine
from robolearn_hardware.servo.registers import ControlTable


@dataclass(frozen=True)
class Answer:
    """A status packet."""

    id: int
    error: int
    """Its error byte."""
    data: bytes


class LostAnswerError(Exception):
    """No answer, or (``garbled``) one that is damaged."""

    def __init__(self, *, garbled: bool) -> None:
        super().__init__()
        self.garbled = garbled


class Wire(Protocol):
    """Each method raises LostAnswerError; none waits longer than the port's timeout, ``scan`` about 1.5 s.

    What is asked and told is answered by one status packet, which ``receive`` returns.
    """

    table: ControlTable
    faulty: int
    """Bits of the error byte that tell of a fault of the motor."""

    def ask(self, port: SerialLine, id: int, address: int, size: int) -> None:
        """Send a read."""
        ...

    def tell(self, port: SerialLine, id: int, address: int, data: bytes) -> None:
        """Send a write."""
        ...

    def ask_all(self, port: SerialLine, ids: Sequence[int], address: int, size: int) -> None:
        """Send a sync read; the motors answer in this order, each by one packet."""
        ...

    def receive(self, port: SerialLine) -> Answer:
        """The next status packet, whosever it is. The SDKs' own calls take any packet of the right motor for the
        answer, of whatever length, so that one that was late answers the next question."""
        ...

    def write_all(self, port: SerialLine, address: int, size: int, data: bytes) -> None:
        """A sync write, which nobody answers. ``data``: for each motor its ID and ``size`` bytes."""
        ...

    def scan(self, port: SerialLine) -> set[int]: ...

    def reboot(self, port: SerialLine, id: int) -> bool:
        """Restart a motor; False where the protocol cannot."""
        ...
