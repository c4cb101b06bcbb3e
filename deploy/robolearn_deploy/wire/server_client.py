"""One client of a policy server: what waits to be sent to it, and its requests on their way through the worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from robolearn.policies.spec import PolicySpec
from robolearn_deploy.inference import Reply
from robolearn_deploy.wire.codec import WireError, pack
from robolearn_deploy.wire.messages import IncomingRequest, failure_message, reply_message
from robolearn_hardware.clock import now_ns

log = logging.getLogger(__name__)

QUEUE = 16
"""Messages that wait to be sent to one client, at most."""


@dataclass
class Statistics:
    """What a server has done, for people to read."""

    clients: int = 0
    answered: int = 0
    failed: int = 0
    """Requests answered with an error: malformed, too late, replaced by a newer one, or the policy failed."""
    refused: int = 0
    """Connections without the right token, or one too many."""
    dropped: int = 0
    """Clients that did not read what they were sent."""
    total_ms: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    """From the arrival of each of the last requests to its whole answer."""


class Client:
    """One connection and what waits to be sent over it."""

    def __init__(self, connection: ServerConnection, statistics: Statistics, patience_s: float) -> None:
        self.connection = connection
        self.queue: asyncio.Queue[bytes | str] = asyncio.Queue(QUEUE)
        self._statistics = statistics
        self._patience_s = patience_s
        self.previous_ms: float | None = None
        """What the previous request took; openpi's server says so too."""
        self.memory: dict[str, Any] = {}
        """What the policy keeps for this robot; used by the worker's thread alone."""
        self.asked = 0
        """How many requests came; the number of each where the client gives none."""
        self.newest_id = -1
        """Of the requests that came, where they are numbered."""

    async def send(self, message: bytes | str) -> None:
        """In answer to what was read: while the queue is full, nothing more is."""
        await self.until(self.queue.put(message))

    def push(self, message: bytes | str, *, needed: bool = True) -> None:
        """From the policy, which waits for nobody: a client with a full queue is dropped, or does without."""
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            if needed:
                self._drop()

    async def until(self, event: Coroutine[Any, Any, Any]) -> None:
        """Wait for ``event``, or for the end of the connection."""
        waits = [asyncio.ensure_future(event), asyncio.ensure_future(self.connection.wait_closed())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def write(self) -> None:
        """Send what is queued, at the pace of the client."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = await self.queue.get()
                try:
                    # websockets' own keepalive waits behind what is being sent, and would wait for ever.
                    async with asyncio.timeout(self._patience_s):
                        await self.connection.send(message)
                except TimeoutError:
                    self._drop()
                    return
                self.queue.task_done()

    def _drop(self) -> None:
        if not self.connection.transport.is_closing():
            self._statistics.dropped += 1
            log.warning("a client at %s does not read what it is sent; dropped", self.connection.remote_address)
            self.connection.transport.abort()


class Pending:
    """A request on its way through the worker. ``deliver`` and ``fail`` are called in the worker's thread."""

    def __init__(
        self,
        client: Client,
        incoming: IncomingRequest,
        spec: PolicySpec,
        received_ns: int,
        statistics: Statistics,
        in_loop: Callable[..., None],
    ) -> None:
        """``in_loop``: calls a function in the event loop, from any thread."""
        self._statistics, self._in_loop = statistics, in_loop
        self._client = client
        self._incoming = incoming
        self._spec = spec
        self._received_ns = received_ns
        self.done = asyncio.Event()

    def deliver(self, reply: Reply) -> None:
        self._in_loop(self._answer, reply)

    def fail(self, error: str) -> None:
        self._in_loop(self._refuse, error)

    def _answer(self, reply: Reply) -> None:
        if self.done.is_set():
            return
        if reply.actions.shape != (self._spec.horizon, *self._spec.action.shape):
            self._refuse(f"the policy gave actions of shape {reply.actions.shape}")
            return
        if not np.isfinite(reply.actions[: reply.final]).all():
            self._refuse("the policy gave NaN or infinity")
            return
        server_ns = now_ns() - self._received_ns
        message = reply_message(self._incoming, reply, self._spec, server_ns=server_ns)
        if self._client.previous_ms is not None:
            message["server_timing"]["prev_total_ms"] = self._client.previous_ms
        try:
            packed = pack(message)
        except WireError as error:
            self._refuse(f"the policy's reply cannot be sent: {error}")
            return
        whole = reply.final >= self._spec.horizon or not self._incoming.partial
        self._client.push(packed, needed=whole)
        if whole:
            self.done.set()
            self._client.previous_ms = server_ns / 1e6
            self._statistics.answered += 1
            self._statistics.total_ms.append(server_ns / 1e6)

    def _refuse(self, error: str) -> None:
        if self.done.is_set():
            return
        self.done.set()
        self._statistics.failed += 1
        id = self._incoming.id
        self._client.push(f"error: {error}" if id is None else pack(failure_message(id, error)))
