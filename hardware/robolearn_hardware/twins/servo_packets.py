"""Packets of both servo protocols as a motor sees them: it takes requests out of bytes, and writes status packets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

Instruction = Literal["ping", "read", "write", "reg_write", "action", "reboot", "sync_read", "sync_write", "unknown"]
BROADCAST = 0xFE
_INSTRUCTIONS: dict[int, Instruction] = {
    0x01: "ping",
    0x02: "read",
    0x03: "write",
    0x04: "reg_write",
    0x05: "action",
    0x08: "reboot",
    0x82: "sync_read",
    0x83: "sync_write",
}
"""The same in both protocols."""


@dataclass(frozen=True)
class Request:
    id: int
    instruction: Instruction
    length: int
    """Bytes on the wire."""
    address: int = 0
    size: int = 0
    """Of what is read."""
    data: bytes = b""
    """To write."""
    motors: tuple[int, ...] = ()
    """A sync read asks these, in this order."""
    writes: dict[int, bytes] = field(default_factory=dict)
    """A sync write's ID -> data."""


class Packets(Protocol):
    def take(self, buffer: bytearray) -> Request | None:
        """Take the first whole request out of the buffer, and the noise before it; None when there is none (yet)."""
        ...

    def status(self, id: int, error: int, data: bytes) -> bytes: ...

    def ping_data(self, number: int, firmware: int) -> bytes: ...


class FeetechPackets:
    """FF FF ID LENGTH INSTRUCTION PARAMETERS CHECKSUM, with the checksum ~(ID + ... + last parameter).

    Source: Feetech, "Communication Protocol User Manual".
    """

    _LONGEST = 240

    def take(self, buffer: bytearray) -> Request | None:
        while True:
            start = buffer.find(b"\xff\xff")
            if start < 0:
                del buffer[: max(len(buffer) - 1, 0)]  # the last byte may begin a header
                return None
            del buffer[:start]
            if len(buffer) < 4:
                return None
            if buffer[2] == 0xFF or buffer[3] < 2:
                del buffer[:1]
                continue
            length = buffer[3] + 4
            if len(buffer) < length:
                return None
            packet = bytes(buffer[:length])
            if checksum(packet[2:-1]) != packet[-1]:
                del buffer[:1]
                continue
            del buffer[:length]
            return self._request(packet)

    def status(self, id: int, error: int, data: bytes) -> bytes:
        body = bytes([id, len(data) + 2, error]) + data
        return b"\xff\xff" + body + bytes([checksum(body)])

    def ping_data(self, number: int, firmware: int) -> bytes:
        return b""

    def _request(self, packet: bytes) -> Request:
        id, length, parameters = packet[2], len(packet), packet[5:-1]
        instruction = _INSTRUCTIONS.get(packet[4], "unknown")
        if "read" in instruction and parameters[1:2] > bytes([self._LONGEST]):
            return Request(id, "unknown", length)  # more than a packet holds
        if instruction == "read" and len(parameters) == 2:
            return Request(id, instruction, length, parameters[0], parameters[1])
        if instruction in ("write", "reg_write") and len(parameters) > 1:
            return Request(id, instruction, length, parameters[0], data=parameters[1:])
        if instruction == "sync_read" and len(parameters) > 2:
            return Request(id, instruction, length, parameters[0], parameters[1], motors=tuple(parameters[2:]))
        if instruction == "sync_write" and len(parameters) > 2 and parameters[1]:
            writes = split_writes(parameters[2:], parameters[1])
            return Request(id, instruction, length, parameters[0], writes=writes)
        if instruction in ("ping", "action", "reboot"):
            return Request(id, instruction, length)
        return Request(id, "unknown", length)


class DynamixelPackets:
    """FF FF FD 00 ID LENGTH_L LENGTH_H INSTRUCTION PARAMETERS CRC_L CRC_H, with FF FF FD in the body stuffed by FD.

    Source: emanual.robotis.com/docs/en/dxl/protocol2, "Packet" and "Calculating CRC".
    """

    _HEADER = b"\xff\xff\xfd\x00"
    _LONGEST = 1024

    def take(self, buffer: bytearray) -> Request | None:
        while True:
            start = buffer.find(self._HEADER)
            if start < 0:
                del buffer[: max(len(buffer) - 3, 0)]
                return None
            del buffer[:start]
            if len(buffer) < 7:
                return None
            body = int.from_bytes(buffer[5:7], "little")
            if not 3 <= body <= self._LONGEST:
                del buffer[:4]
                continue
            length = body + 7
            if len(buffer) < length:
                return None
            packet = bytes(buffer[:length])
            if crc16(packet[:-2]) != int.from_bytes(packet[-2:], "little"):
                del buffer[:4]
                continue
            del buffer[:length]
            return self._request(packet)

    def status(self, id: int, error: int, data: bytes) -> bytes:
        body = bytes([0x55, error]) + data
        body = body.replace(b"\xff\xff\xfd", b"\xff\xff\xfd\xfd")
        packet = self._HEADER + bytes([id]) + (len(body) + 2).to_bytes(2, "little") + body
        return packet + crc16(packet).to_bytes(2, "little")

    def ping_data(self, number: int, firmware: int) -> bytes:
        return number.to_bytes(2, "little") + bytes([firmware])

    def _request(self, packet: bytes) -> Request:
        id, length = packet[4], len(packet)
        body = packet[7:-2].replace(b"\xff\xff\xfd\xfd", b"\xff\xff\xfd")
        instruction = _INSTRUCTIONS.get(body[0], "unknown")
        parameters = body[1:]
        first = int.from_bytes(parameters[:2], "little")
        second = int.from_bytes(parameters[2:4], "little")
        if "read" in instruction and second > self._LONGEST:
            return Request(id, "unknown", length)  # more than a packet holds
        if instruction == "read" and len(parameters) == 4:
            return Request(id, instruction, length, first, second)
        if instruction in ("write", "reg_write") and len(parameters) > 2:
            return Request(id, instruction, length, first, data=parameters[2:])
        if instruction == "sync_read" and len(parameters) > 4:
            return Request(id, instruction, length, first, second, motors=tuple(parameters[4:]))
        if instruction == "sync_write" and len(parameters) > 4 and second:
            return Request(id, instruction, length, first, writes=split_writes(parameters[4:], second))
        if instruction in ("ping", "action", "reboot"):
            return Request(id, instruction, length)
        return Request(id, "unknown", length)


def split_writes(parameters: bytes, size: int) -> dict[int, bytes]:
    """ID and ``size`` bytes for each motor; what is incomplete at the end is left out."""
    entries = range(0, len(parameters) - size, size + 1)
    return {parameters[i]: parameters[i + 1 : i + 1 + size] for i in entries}


def checksum(body: bytes) -> int:
    return ~sum(body) & 0xFF


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << 8
        for _ in range(8):
            value = (value << 1) ^ 0x8005 if value & 0x8000 else value << 1
        table.append(value & 0xFFFF)
    return tuple(table)


_CRC = _crc_table()


def crc16(data: bytes) -> int:
    """CRC-16 with polynomial 0x8005, no reflection, initial value 0."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC[value >> 8 ^ byte]
    return value
