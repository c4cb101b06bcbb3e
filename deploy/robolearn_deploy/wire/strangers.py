"""Connections that have not yet shown who they are: not too many at a time.

They cost memory and a file descriptor each, and a process has few of those. Where too many wait, the oldest is hung up
on: whoever means it has shown a token some milliseconds after connecting, so that a flood of silent connections keeps
nobody out. How long one may wait is the server's ``open_timeout``.
"""

from __future__ import annotations

import contextlib
import socket

from websockets.asyncio.server import ServerConnection

MOST = 64


class Doorstep(socket.socket):
    """A listening socket, for a server of ``websockets``. TLS or not: it knows connections from the first packet on."""

    def __init__(self, listening: socket.socket) -> None:
        """Takes ``listening`` over."""
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self._strangers: dict[int, socket.socket] = {}
        """By file descriptor, oldest first; also some that are closed since."""

    def accept(self) -> tuple[socket.socket, object]:
        connection, address = super().accept()
        self._strangers.pop(connection.fileno(), None)  # of one that is closed, whose number is free again
        self._strangers[connection.fileno()] = connection
        if len(self._strangers) > MOST:
            self._strangers = {number: s for number, s in self._strangers.items() if s.fileno() == number}
        while len(self._strangers) > MOST:
            with contextlib.suppress(OSError):  # it is gone already
                self._strangers.pop(next(iter(self._strangers))).shutdown(socket.SHUT_RDWR)
        return connection, address

    def let_in(self, connection: ServerConnection) -> None:
        """It has shown who it is, or is on its way out."""
        self._strangers.pop(connection.transport.get_extra_info("socket").fileno(), None)
