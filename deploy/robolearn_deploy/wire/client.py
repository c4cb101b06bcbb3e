"""A policy on another machine that is asked as if it were on this one.

A thread of its own keeps the connection: it connects again when it is lost, empties it of answers that come too late,
and measures the offset of the server's clock. Whoever asks waits on that thread, never on the network, and so never
past the deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import UserError
from robolearn_deploy.inference import Reply, Request
from robolearn_deploy.wire.codec import MAX_BYTES, WireError, pack, unpack
from robolearn_deploy.wire.connection import Connection, explain
from robolearn_deploy.wire.messages import (
    EXTENSION,
    Answer,
    Clock,
    check_message,
    ping_message,
    plain_request_message,
    read_answer,
    read_metadata,
    read_plain_answer,
    read_pong,
    request_message,
)
from robolearn_deploy.wire.security import client_tls, read_certificate
from robolearn_hardware.clock import now_ns

log = logging.getLogger(__name__)

FIRST_PINGS = 8
PING_S = 1.0
SILENCE_S = 5.0
"""A server of ours that has answered no ping for this long is given up, and connected to anew."""
BACKOFF_S = (0.05, 2.0)
"""Pause before connecting again: after the first failure, and at most. Each failure doubles it."""


class RemotePolicyError(UserError):
    """There is no policy server at a URL, or not one that can be used."""


class PeerError(ConnectionError):
    """The server answered, but with a failure or with something that cannot be used. The next request may succeed."""


@dataclass
class Counters:
    """What a client has seen, for people to read."""

    connections: int = 0
    late: int = 0
    """Answers that came after their request was given up, or twice."""
    unusable: int = 0
    """Messages that were not what the protocol allows."""


class RemotePolicy:
    """The policy behind a URL. An ``Inference``: used by one thread."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        certificate: Path | None = None,
        spec: PolicySpec | None = None,
        keys: Mapping[str, str] | None = None,
        connect_s: float = 10.0,
        reply_s: float = 10.0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """
        Args:
            url: ws://host:port, or wss://host:port for TLS.
            token: what the server demands.
            certificate: the server's own, where no authority that this system trusts has signed it.
            spec: of the policy, for servers of openpi, which do not say; of others it is compared.
            keys: stream -> its name in observations for a server of openpi, where they differ.
            connect_s: how long to wait for the first connection, and for each server's first message.
            reply_s: how long to wait for an answer to requests without a deadline.
            max_bytes: of one message from the server.

        Raises:
            RemotePolicyError: nothing there that can be used, by then.
        """
        if not _is_url(url):
            raise RemotePolicyError(
                f"{url!r} is not the URL of a policy server; give ws://HOST:PORT or wss://HOST:PORT"
            )
        if certificate is not None and not url.startswith("wss"):
            raise RemotePolicyError(f"{url} is without TLS, and a certificate for it is given; give wss://HOST:PORT")
        self.url = url
        self.counters = Counters()
        self.scheduler = ""
        """Whose requests the server's policy understands, as it says."""
        self._token = token
        self._certificate = read_certificate(certificate) if certificate is not None else None
        self._tls = client_tls(certificate) if url.startswith("wss") else None
        self._keys = dict(keys or {})
        self._connect_s = connect_s
        self._reply_s = reply_s
        self._max_bytes = max_bytes
        self._known_spec = spec
        self._ids = itertools.count()
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._checks = False
        self._problem = "not connected yet"
        self._refusal: str | None = None
        self._closing = False
        self._waiting_id: int | None = None
        self._inbox: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._main: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="remote policy", daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._connection is not None or self._refusal is not None, connect_s)
            connection, problem = self._connection, self._refusal or self._problem
        if connection is None:
            self.close()
            raise RemotePolicyError(f"no policy can be used at {url}: {problem}")
        assert self._known_spec is not None
        self.spec = self._known_spec

    def infer(self, request: Request) -> Iterator[Reply]:
        """See ``Inference``: also raises ``PeerError``, a ConnectionError, for answers that cannot be used."""
        started_ns = now_ns()
        deadline_ns = request.deadline_ns or started_ns + int(self._reply_s * 1e9)
        with self._changed:
            self._changed.wait_for(lambda: self._connection is not None or self._closing, _left_s(deadline_ns))
            connection, problem = self._connection, self._problem
            if connection is None:
                raise ConnectionError(f"no connection to {self.url}: {problem}")
            id = next(self._ids)
            self._waiting_id, self._inbox = id, queue.SimpleQueue()
            inbox = self._inbox
        whole = False
        try:
            connection.send(pack(self._message(request, id, connection)))
            sent = 0
            while not whole:
                answer = _receive(inbox, deadline_ns)
                if answer.reply is None:
                    raise PeerError(f"{self.url}: {answer.error}")
                reply = answer.reply
                whole = reply.final >= self.spec.horizon
                if whole or reply.final > sent:  # not a copy of what was there already
                    sent = reply.final
                    network_ms = (now_ns() - started_ns - answer.server_ns) / 1e6
                    yield Reply(reply.actions, reply.final, {**reply.timing_ms, "network": max(network_ms, 0.0)})
        finally:
            with self._changed:
                self._waiting_id = None
                if not whole and connection.is_plain and self._connection is connection:
                    # Its answers have no numbers: one that comes late would be taken for the next one's.
                    self._connection, self._problem = None, "it did not answer in time"
                    connection.abandon()

    def check_instruction(self, text: str) -> None:
        """Ask whether the policy can be told ``text``. A server of openpi is not asked.

        Raises:
            RemotePolicyError: it cannot, or there is no answer in time.
        """
        deadline_ns = now_ns() + int(self._reply_s * 1e9)
        with self._changed:
            self._changed.wait_for(lambda: self._connection is not None, _left_s(deadline_ns))
            connection, problem = self._connection, self._problem
            if connection is None:
                raise RemotePolicyError(f"{self.url} cannot check the instruction: {problem}")
            if not self._checks:
                return
            self._waiting_id, self._inbox = next(self._ids), queue.SimpleQueue()
            id, inbox = self._waiting_id, self._inbox
        try:
            connection.send(pack(check_message(id, text)))
            answer = _receive(inbox, deadline_ns)
        except (TimeoutError, ConnectionError) as error:
            raise RemotePolicyError(f"{self.url} has not checked the instruction: {error}; try again") from error
        finally:
            with self._changed:
                self._waiting_id = None
        if answer.error:
            raise RemotePolicyError(answer.error)

    def clock(self) -> Clock | None:
        """The server's clock as of now; None while it is unknown, as with a server of openpi."""
        with self._changed:
            return self._connection.offset.at(now_ns()) if self._connection is not None else None

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        with contextlib.suppress(RuntimeError):  # the thread has ended already
            self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join(5.0)

    def _message(self, request: Request, id: int, connection: Connection) -> dict[str, Any]:
        if connection.is_plain:
            return plain_request_message(request, self.spec, self._keys)
        return request_message(request, id, self.clock())

    # What follows runs in the thread of the connection.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._keep_connected())
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    async def _keep_connected(self) -> None:
        pause_s = BACKOFF_S[0]
        while not self._closing:
            served = self.counters.connections
            try:
                await self._connect_once()
                problem = "the server closed the connection"
            except (OSError, WebSocketException, WireError) as error:
                problem, mends_itself = explain(error, tls=self._tls is not None)
                if not mends_itself:
                    self._refusal = problem
            except Exception as error:  # whatever else it is, the connection is tried again and the robot is told
                log.exception("the connection to %s failed", self.url)
                problem = f"{type(error).__name__}: {error}"
            self._lost(problem)
            if self._refusal is not None and not self.counters.connections:
                return  # a mistake of the user; later on it is one of the server, that may be mended
            if self.counters.connections > served:
                pause_s = BACKOFF_S[0]
            # Up to half of it by chance: clients that a server's restart cut off do not all come back at once.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, BACKOFF_S[1])

    async def _connect_once(self) -> None:
        self._refusal = None
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        async with connect(
            self.url,
            additional_headers=headers,
            ssl=self._tls,
            compression=None,
            max_size=self._max_bytes,
            open_timeout=self._connect_s,
            close_timeout=0.5,
            ping_interval=None,  # our own pings tell more, and servers of openpi answer none while they infer
            proxy=None,
        ) as connected:
            self._check_certificate(connected)
            message = await asyncio.wait_for(connected.recv(), self._connect_s)
            connection = Connection(connected, is_plain=self._learn(message))
            pings = asyncio.create_task(self._ping(connection)) if not connection.is_plain else None
            sender = asyncio.create_task(connection.write())
            try:
                if pings is not None:
                    await self._receive_until(connection, connection.synchronised)
                self._connected(connection)
                await self._receive_until(connection, None)
            finally:
                for task in (pings, sender):
                    if task is not None:
                        task.cancel()

    def _learn(self, message: bytes | str) -> bool:
        """Take in a server's metadata. Returns whether it is one of openpi.

        Raises:
            WireError: unreadable.
        """
        if isinstance(message, str):
            raise WireError("it does not begin with metadata, so that it is no policy server")
        metadata = unpack(message, max_bytes=self._max_bytes)
        spec, scheduler = read_metadata(metadata)
        self._checks = spec is not None and metadata[EXTENSION].get("checks") is True
        known = self._known_spec
        if spec is None and known is None:
            self._refusal = "it does not say what its policy observes, as servers of openpi do not; give a spec"
        elif spec is not None and known is not None and spec.to_json() != known.to_json():
            self._refusal = "it serves a policy of another spec than expected; start again, or serve the former policy"
        elif self.counters.connections and scheduler != self.scheduler:
            self._refusal = f"it serves chunks for the scheduler {scheduler!r} now, not {self.scheduler!r} as before"
        if self._refusal is not None:
            raise WireError(self._refusal)
        self._known_spec = known or spec
        self.scheduler = scheduler
        return spec is None

    def _check_certificate(self, connected: ClientConnection) -> None:
        if self._certificate is None:
            return
        if connected.transport.get_extra_info("ssl_object").getpeercert(binary_form=True) != self._certificate:
            self._refusal = "its certificate is not trusted (not the one that was given); give the server's own"
            raise WireError(self._refusal)

    async def _ping(self, connection: Connection) -> None:
        """Some pings at once for a first estimate of the clock, then one a second. Gives up a server that is silent."""
        with contextlib.suppress(WebSocketException):  # who receives notices too, and reports it
            for number in itertools.count():
                connection.pings[number] = now_ns()
                # A network that takes in nothing more holds up sending: that must not keep us from noticing.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SILENCE_S):
                        await connection.socket.send(pack(ping_message(number)))
                        await asyncio.sleep(PING_S / 50 if number < FIRST_PINGS else PING_S)
                if now_ns() - connection.heard_ns > SILENCE_S * 1e9:
                    connection.abandon()

    async def _receive_until(self, connection: Connection, event: asyncio.Event | None) -> None:
        """Take in messages until ``event``, or until the connection ends."""
        async for message in connection.socket:
            connection.heard_ns = now_ns()
            try:
                self._take(connection, message)
            except WireError as error:
                self.counters.unusable += 1
                # Whose answer it was cannot be known; the one who waits is told rather than left to wait.
                self._hand_over(None, PeerError(f"{self.url}: {error}"))
            if event is not None and event.is_set():
                return

    def _take(self, connection: Connection, message: bytes | str) -> None:
        if isinstance(message, str):
            raise WireError("the server reports: " + " ".join(message.split())[-300:])
        spec = self._known_spec
        assert spec is not None
        frame = unpack(message, max_bytes=self._max_bytes)
        if connection.is_plain:
            self._hand_over(None, read_plain_answer(frame, spec))
            return
        pong = read_pong(frame)
        if pong is not None:
            number, received_ns, sent_ns = pong
            ping_ns = connection.pings.pop(number, None)
            if ping_ns is not None:
                with self._changed:
                    connection.offset.add(ping_ns, received_ns, sent_ns, connection.heard_ns)
            if number >= FIRST_PINGS // 2:
                connection.synchronised.set()
            return
        answer = read_answer(frame, spec)
        whole = answer.reply is not None and answer.reply.final >= spec.horizon
        self._hand_over(answer.id, answer, whole=whole)

    def _hand_over(self, id: int | None, answer: Answer | Exception, *, whole: bool = False) -> None:
        """To whoever waits; without an ``id`` it can only be for them."""
        with self._changed:
            if self._waiting_id is None or (id is not None and id != self._waiting_id):
                self.counters.late += 1
                return
            self._inbox.put(answer)
            if whole:  # a copy of it is late, whenever the one who waited looks
                self._waiting_id = None

    def _connected(self, connection: Connection) -> None:
        with self._changed:
            self._connection = connection
            self.counters.connections += 1
            self._changed.notify_all()

    def _lost(self, problem: str) -> None:
        with self._changed:
            if self._connection is not None:
                log.warning("lost the connection to %s: %s", self.url, problem)
            if self._waiting_id is not None:
                self._inbox.put(ConnectionError(f"lost the connection to {self.url}: {problem}"))
            self._connection, self._problem = None, problem
            self._changed.notify_all()


@dataclass(frozen=True)
class RemoteCheck:
    """Asks the server behind a URL whether its policy can be told something, over a connection of its own: an
    ``instructions.Check`` for processes that have no policy."""

    url: str
    token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    within_s: float = 3.0

    def __call__(self, text: str) -> None:
        within: dict[str, Any] = {"connect_s": self.within_s, "reply_s": self.within_s}
        with contextlib.closing(
            RemotePolicy(self.url, token=self.token, certificate=self.certificate, **within)
        ) as peer:
            peer.check_instruction(text)


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0  # a bad port raises
    except ValueError:
        return False


def _receive(inbox: queue.SimpleQueue[Answer | Exception], deadline_ns: int) -> Answer:
    try:
        answer = inbox.get(timeout=_left_s(deadline_ns))
    except queue.Empty:
        raise TimeoutError("no whole answer by the deadline") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _left_s(deadline_ns: int) -> float:
    return max(deadline_ns - now_ns(), 0) / 1e9
