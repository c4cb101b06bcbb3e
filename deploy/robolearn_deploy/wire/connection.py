"""One connection of a client to a policy server, and why there is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidMessage, InvalidStatus, WebSocketException

from robolearn_deploy.wire.clock_offset import ClockOffset
from robolearn_hardware.clock import now_ns


class Connection:
    """One connection, from the server's metadata to its end. ``send`` and ``abandon`` may be called by any thread."""

    def __init__(self, socket: ClientConnection, *, is_plain: bool) -> None:
        self.socket = socket
        self.is_plain = is_plain
        """To a server of openpi."""
        self.offset = ClockOffset()
        self.pings: dict[int, int] = {}
        """Those without an answer yet: number -> when it was sent, ns."""
        self.heard_ns = now_ns()
        self.synchronised = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(1)

    def send(self, message: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody will answer
            self._loop.call_soon_threadsafe(self._put, message)

    def abandon(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.socket.transport.abort)

    async def write(self) -> None:
        with contextlib.suppress(WebSocketException):  # who receives notices too, and reports it
            while True:
                await self.socket.send(await self._outbox.get())

    def _put(self, message: bytes) -> None:
        if self._outbox.full():
            self._outbox.get_nowait()  # a former request that the network has not taken yet is of no use any more
        self._outbox.put_nowait(message)


def explain(error: Exception, *, tls: bool) -> tuple[str, bool]:
    """Why there is no connection and what to do, and whether that may mend itself.

    Args:
        tls: the client speaks TLS.
    """
    match error:
        case InvalidStatus() if error.response.status_code == 401:
            return "it refuses the token; give the one that it was started with (--token-file)", False
        case InvalidStatus() if error.response.status_code == 503:
            return "it has too many clients, or is about to stop", True
        case InvalidStatus():
            return f"it answers with HTTP status {error.response.status_code}, as no policy server does", True
        case ssl.SSLCertVerificationError():
            hint = "give the server's own with --certificate"
            return f"its certificate is not trusted ({error.verify_message}); {hint}", False
        case InvalidMessage() | ssl.SSLError() | ConnectionResetError():
            hint = "has no TLS, give ws://" if tls else "has TLS, give wss:// and its --certificate"
            return f"it does not answer as a policy server does; if it {hint}", True
        case socket.gaierror():
            return "there is no machine of that name", True
        case TimeoutError():
            return "no answer in time", True
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "nobody listens there; start `robolearn serve`, or check the host and the port", True
    return " ".join(str(error).split()) or type(error).__name__, True
