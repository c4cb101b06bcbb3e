"""Ports that a protocol fixes, on a loopback address that no other twin of this machine has."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Callable, Mapping

from robolearn_hardware.devices import DeviceError

Handler = Callable[[socket.socket], None]
"""Serves one client in a thread of its own; an OSError from it is the end of that connection."""

_ATTEMPTS = 50
_BACKLOG = 8


class Listeners:
    """TCP servers on the ports of one device, all at ``address`` (127.x.y.z)."""

    def __init__(self, ports: Mapping[int, Handler]) -> None:
        self._ports = dict(ports)
        self._open: list[socket.socket] = []
        self._answering = False
        self._clients: set[socket.socket] = set()
        self.address = self._reserve()

    def _reserve(self) -> str:
        """Listening keeps an address: whoever has its ports has it."""
        for _ in range(_ATTEMPTS):
            address = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(2, 255)}"
            try:
                self._bind(address)
            except PermissionError:
                raise DeviceError(
                    f"a twin may not open port {min(self._ports)}; allow it: "
                    f"sudo sysctl net.ipv4.ip_unprivileged_port_start={min(self._ports)}"
                ) from None
            except OSError:
                continue
            return address
        raise DeviceError(f"no free loopback address for ports {', '.join(map(str, self._ports))}")

    def _bind(self, address: str) -> None:
        opened = []
        try:
            for port in self._ports:
                server = socket.socket()
                opened.append(server)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.bind((address, port))
                server.listen(_BACKLOG)
        except OSError:
            for server in opened:
                server.close()
            raise
        self._open = opened

    def open(self) -> None:
        """Begin to answer; nothing if it does already."""
        if not self._open:
            self._bind(self.address)
        if not self._answering:
            self._answering = True
            for server, handler in zip(self._open, self._ports.values(), strict=True):
                threading.Thread(target=self._accept, args=(server, handler), daemon=True).start()

    def refuse(self) -> None:
        """No new clients; those that are there stay."""
        servers, self._open, self._answering = self._open, [], False
        for server in servers:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()

    def close(self) -> None:
        """End every connection too."""
        self.refuse()
        for client in list(self._clients):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def _accept(self, server: socket.socket, handler: Handler) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:  # closed
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._clients.add(client)
            threading.Thread(target=self._serve, args=(client, handler), daemon=True).start()

    def _serve(self, client: socket.socket, handler: Handler) -> None:
        try:
            with contextlib.suppress(OSError):
                handler(client)
        finally:
            self._clients.discard(client)
            client.close()
