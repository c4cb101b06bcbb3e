"""Feetech STS motors through the vendor's SDK (feetech-servo-sdk, module ``scservo_sdk``)."""

from __future__ import annotations

from collections.abc import Sequence

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.servo.port import SerialLine
from robolearn_hardware.servo.registers import FEETECH_STS
from robolearn_hardware.servo.wire import Answer, LostAnswerError

_PING = 1
_BROADCAST = 0xFE
_STATUS = 6
"""Bytes of a status packet without data."""
_HEADER = 5
"""Bytes before the parameters: FF FF ID LENGTH ERROR."""


class FeetechWire:
    """Protocol of STS and SMS motors ("Communication Protocol User Manual", Feetech)."""

    table = FEETECH_STS
    faulty = 0b101111
    """Bits of a status packet's error byte that tell of the motor itself."""

    def __init__(self) -> None:
        try:
            import scservo_sdk
        except ImportError:
            raise DeviceError("Feetech motors need their SDK; pip install 'robolearn[feetech]'") from None
        self._sdk = scservo_sdk
        self._packets = scservo_sdk.PacketHandler(0)

    def ask(self, port: SerialLine, id: int, address: int, size: int) -> None:
        self._check(self._packets.readTx(port, id, address, size))

    def tell(self, port: SerialLine, id: int, address: int, data: bytes) -> None:
        self._check(self._packets.writeTxOnly(port, id, address, len(data), list(data)))
        port.setPacketTimeout(_STATUS)

    def ask_all(self, port: SerialLine, ids: Sequence[int], address: int, size: int) -> None:
        self._check(self._packets.syncReadTx(port, address, size, list(ids), len(ids)))

    def receive(self, port: SerialLine) -> Answer:
        packet, result = self._packets.rxPacket(port)
        self._check(result)
        return Answer(packet[2], packet[4], bytes(packet[_HEADER:-1]))

    def write_all(self, port: SerialLine, address: int, size: int, data: bytes) -> None:
        self._check(self._packets.syncWriteTxOnly(port, address, size, list(data), len(data)))

    def scan(self, port: SerialLine) -> set[int]:
        """The SDK has no broadcast ping of its own; the motors answer one in turn, 3 ms for each possible ID."""
        self._check(self._packets.txPacket(port, [0, 0, _BROADCAST, 2, _PING, 0]))
        port.setPacketTimeoutMillis(1000 * 6 * 253 * 10 / port.baud + 3 * 253 + 16)
        found = set()
        while True:
            try:
                found.add(self.receive(port).id)
            except LostAnswerError as lost:
                if not lost.garbled:
                    return found
                if port.isPacketTimeout():
                    return found

    def reboot(self, port: SerialLine, id: int) -> bool:
        """These motors have no such instruction: switching torque off clears what can be cleared."""
        return False

    def _check(self, result: int) -> None:
        if result != self._sdk.COMM_SUCCESS:
            raise LostAnswerError(garbled=result == self._sdk.COMM_RX_CORRUPT)
