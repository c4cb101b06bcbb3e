"""Port 30004: the Real-Time Data Exchange, protocol version 2.

A package is its size (u16, big-endian, these three bytes included), its type (a letter), and what the type says.
"""

from __future__ import annotations

import random
import select
import socket
import struct
from collections import deque

from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.ur.controller import Controller
from robolearn_hardware.twins.ur.fields import INPUTS, NOT_FOUND, OUTPUTS, layout, types_of, width

_HEADER = struct.Struct(">HB")
_PROTOCOL_VERSION, _CONTROLLER_VERSION = ord("V"), ord("v")
_OUTPUT_RECIPE, _INPUT_RECIPE, _START, _PAUSE, _DATA = map(ord, "OISPU")
_GREATEST_HZ = 500.0
_SPIKE_NS = 50_000_000
_IDLE_S = 0.1


class RtdeConnection:
    """One client."""

    def __init__(self, client: socket.socket, controller: Controller, version: tuple[int, int, int, int]) -> None:
        self.faults = Faults()
        self._socket = client
        self._controller = controller
        self._version = version
        self._received = b""
        self._names: list[str] = []
        self._format = struct.Struct(">")
        self._inputs: dict[int, tuple[list[str], list[str], struct.Struct]] = {}
        self._period_ns = period_ns(_GREATEST_HZ)
        self._due_ns = 0
        self._waiting: deque[tuple[int, bytes]] = deque()

    def serve(self) -> None:
        """Until the client leaves or the socket is shut from outside."""
        while True:
            readable, _, _ = select.select([self._socket], [], [], self._wait_s())
            if readable:
                got = self._socket.recv(65536)
                if not got:
                    return
                self._received += got
                self._take_packages()
            if self._due_ns and now_ns() >= self._due_ns:
                self._send_data()
            self._flush()

    def _wait_s(self) -> float:
        due = [at for at in (self._due_ns, self._waiting[0][0] if self._waiting else 0) if at]
        return min([_IDLE_S, *(max(0.0, (at - now_ns()) / SECOND_NS) for at in due)])

    def _take_packages(self) -> None:
        while len(self._received) >= _HEADER.size:
            size, kind = _HEADER.unpack_from(self._received)
            if len(self._received) < size:
                return
            payload, self._received = self._received[_HEADER.size : size], self._received[size:]
            if not self.faults.unplugged:
                self._package(kind, payload)

    def _package(self, kind: int, payload: bytes) -> None:
        if kind == _DATA:
            names, types, form = self._inputs[payload[0]]
            values = list(form.unpack_from(payload, 1))
            found = {}
            for name, of in zip(names, types, strict=True):
                count = width(of)
                found[name], values = (values[:count] if count > 1 else values[0]), values[count:]
            self._controller.write(found)
        elif kind == _PROTOCOL_VERSION:
            self._queue(kind, b"\x01")
        elif kind == _CONTROLLER_VERSION:
            self._queue(kind, struct.pack(">4I", *self._version))
        elif kind == _OUTPUT_RECIPE:
            (rate_hz,) = struct.unpack_from(">d", payload)
            self._names = [name for name in payload[8:].decode().split(",") if name]
            types = types_of(self._names, OUTPUTS)
            self._period_ns = period_ns(min(rate_hz, _GREATEST_HZ))
            if NOT_FOUND not in types:
                self._format = struct.Struct(layout(types))
            self._queue(kind, b"\x01" + ",".join(types).encode())
        elif kind == _INPUT_RECIPE:
            names = [name for name in payload.decode().split(",") if name]
            types = types_of(names, INPUTS)
            recipe = len(self._inputs) + 1
            if NOT_FOUND in types:
                recipe = 0
            else:
                self._inputs[recipe] = names, types, struct.Struct(layout(types))
            self._queue(kind, bytes([recipe]) + ",".join(types).encode())
        elif kind == _START:
            self._due_ns = now_ns()
            self._queue(kind, b"\x01")
        elif kind == _PAUSE:
            self._due_ns = 0
            self._queue(kind, b"\x01")

    def _send_data(self) -> None:
        self._due_ns = max(self._due_ns + self._period_ns, now_ns() - self._period_ns)
        if random.random() < self.faults.lose:
            return
        self._queue(_DATA, b"\x01" + self._format.pack(*self._controller.values(self._names)))

    def _queue(self, kind: int, payload: bytes) -> None:
        package = _HEADER.pack(_HEADER.size + len(payload), kind) + payload
        if random.random() < self.faults.truncate:
            package = package[: random.randrange(_HEADER.size, len(package))]
        due = now_ns() + round(self.faults.latency_s * SECOND_NS)
        if random.random() < self.faults.spikes:
            due += _SPIKE_NS
        if self._waiting:
            due = max(due, self._waiting[-1][0])  # a stream keeps its order
        self._waiting.append((due, package))

    def _flush(self) -> None:
        while self._waiting and self._waiting[0][0] <= now_ns():
            package = self._waiting.popleft()[1]
            if not self.faults.unplugged:
                self._socket.sendall(package)
