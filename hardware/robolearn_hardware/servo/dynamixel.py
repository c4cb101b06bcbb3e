"""Dynamixel X motors through the vendor's SDK (dynamixel-sdk), Protocol 2.0."""

from __future__ import annotations

from collections.abc import Sequence

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.servo.port import SerialLine
from robolearn_hardware.servo.registers import DYNAMIXEL_X
from robolearn_hardware.servo.wire import Answer, LostAnswerError

_STATUS = 11
"""Bytes of a status packet without data."""
_HEADER = 9
"""Bytes before the parameters: FF FF FD 00 ID LENGTH_L LENGTH_H 55 ERROR."""


class DynamixelWire:
    """Protocol 2.0 (emanual.robotis.com/docs/en/dxl/protocol2)."""

    table = DYNAMIXEL_X
    faulty = 0x80
    """The alert bit of a status packet: the register "hardware_error" says what. The other bits tell of the request."""

    def __init__(self) -> None:
        try:
            import dynamixel_sdk
        except ImportError:
            raise DeviceError("Dynamixel motors need their SDK; pip install 'robolearn[dynamixel]'") from None
        self._sdk = dynamixel_sdk
        self._packets = dynamixel_sdk.Protocol2PacketHandler()

    def ask(self, port: SerialLine, id: int, address: int, size: int) -> None:
        self._check(self._packets.readTx(port, id, address, size))

    def tell(self, port: SerialLine, id: int, address: int, data: bytes) -> None:
        self._check(self._packets.writeTxOnly(port, id, address, len(data), list(data)))
        port.setPacketTimeout(_STATUS)

    def ask_all(self, port: SerialLine, ids: Sequence[int], address: int, size: int) -> None:
        self._check(self._packets.syncReadTx(port, address, size, list(ids), len(ids), False))

    def receive(self, port: SerialLine) -> Answer:
        packet, result = self._packets.rxPacket(port, False)
        self._check(result)
        end = 7 + packet[5] + 256 * packet[6] - 2  # the SDK leaves stuffing's remains behind the packet
        return Answer(packet[4], packet[8], bytes(packet[_HEADER:end]))

    def write_all(self, port: SerialLine, address: int, size: int, data: bytes) -> None:
        self._check(self._packets.syncWriteTxOnly(port, address, size, list(data), len(data)))

    def scan(self, port: SerialLine) -> set[int]:
        found, _ = self._packets.broadcastPing(port)
        return set(found or ())

    def reboot(self, port: SerialLine, id: int) -> bool:
        result, _ = self._packets.reboot(port, id)
        self._check(result)
        return True

    def _check(self, result: int) -> None:
        if result != self._sdk.COMM_SUCCESS:
            raise LostAnswerError(garbled=result == self._sdk.COMM_RX_CORRUPT)
