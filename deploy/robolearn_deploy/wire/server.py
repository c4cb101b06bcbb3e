"""A policy for clients on a network: ours, and openpi's.

One event loop speaks with all of them and a thread infers (``inference_worker.py``). No client can hold up another:
each has a queue of its own for what is sent to it; who does not read is read from no more, and dropped after a while.
Nothing that a client says is decoded before its token was right.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Observation, UserError, read_text
from robolearn_deploy.inference import Inference
from robolearn_deploy.instructions import Check, InstructionCheck, accept
from robolearn_deploy.wire.codec import MAX_BYTES, WireError, pack, unpack
from robolearn_deploy.wire.inference_worker import InferenceWorker, Job
from robolearn_deploy.wire.messages import (
    EXTENSION,
    accepted_message,
    failure_message,
    metadata_message,
    pong_message,
    read_check,
    read_ping,
    read_request,
)
from robolearn_deploy.wire.security import SecurityError, bind, is_loopback, token_matches
from robolearn_deploy.wire.server_client import Client, Pending, Statistics
from robolearn_deploy.wire.strangers import Doorstep
from robolearn_hardware.clock import now_ns

log = logging.getLogger(__name__)

CLOSE_S = 1.0
"""For the farewell at the end of a connection."""
GOING_AWAY, INVALID_DATA = 1001, 1007  # RFC 6455, section 7.4.1


@dataclass(frozen=True)
class ServerOptions:
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one, see ``PolicyServer.port``."""
    token: str | None = None
    """What clients must show. Needed for every host but loopback."""
    tls: ssl.SSLContext | None = None
    name: str = ""
    """Of the policy, for clients to show."""
    scheduler: str = ""
    """Which scheduler's requests the policy understands, for clients to compare."""
    check_instruction: Check = accept
    """Of the policy: which instructions it can be told."""
    max_bytes: int = MAX_BYTES
    """Of one message, either way."""
    max_clients: int = 32
    max_batch: int = 8
    """Requests that are inferred together, if the policy can."""
    batch_window_s: float = 0.002
    """How long a request waits for those of other clients."""
    handshake_s: float = 5.0
    """Who has not connected in full by then is hung up on; what they send meanwhile is not kept."""
    keepalive_s: float = 20.0
    """A client that answers no websocket ping, or takes in nothing that it is sent, for this long is dropped."""
    hang_s: float = 30.0
    """An inference that takes longer counts as hanging, see ``/healthz``."""
    drain_s: float = 5.0
    """At the end, time for what is being inferred."""


class ServerError(UserError):
    """There can be no server here."""


class PolicyServer:
    """Serves one policy. ``run`` in an event loop of one's own, or ``serving`` in a thread."""

    def __init__(self, make: Callable[[], Inference], options: ServerOptions) -> None:
        """
        Args:
            make: opens the policy, in the thread that uses it.

        Raises:
            SecurityError: others could connect, and no token is demanded of them.
        """
        if options.token is None and not is_loopback(options.host):
            raise SecurityError(
                f"on host {options.host} anybody on the network could connect; "
                "give --token-file, or set ROBOLEARN_TOKEN, or serve on 127.0.0.1"
            )
        self._options = options
        self._worker = InferenceWorker(make, max_batch=options.max_batch, batch_window_s=options.batch_window_s)
        self._clients: set[Client] = set()
        self._draining = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_event: asyncio.Event | None = None
        self.statistics = Statistics()
        self.port = options.port
        self.spec: PolicySpec | None = None
        self.batches = self._worker.batches
        """Size -> how many batches of it were inferred."""

    async def run(self, ready: Callable[[], None] | None = None) -> None:
        """Serve until ``stop``. ``ready`` is called when clients can connect.

        Whoever asks for /healthz gets 200 while requests are answered, else 503 and why.

        Raises:
            ServerError: the port is taken, or the host is not of this machine. Whatever opening the policy raises.
        """
        self._loop = asyncio.get_running_loop()
        self._stop_event = stop = asyncio.Event()
        self._doorstep = Doorstep(self._bind())
        with self._doorstep as bound:
            self.port = bound.getsockname()[1]
            await self._run(bound, stop, ready)

    async def _run(self, bound: socket.socket, stop: asyncio.Event, ready: Callable[[], None] | None) -> None:
        opening = asyncio.create_task(asyncio.to_thread(self._worker.start))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not opening.done():
            self._worker.stop(0)  # a policy that is still being opened is left to the end of the process
        self.spec = spec = await opening
        if spec is None:
            return
        options = self._options
        self._check = InstructionCheck(spec.observation, options.check_instruction)
        self._metadata = pack(metadata_message(spec, name=options.name, scheduler=options.scheduler, checks=True))
        try:
            server = await self._listen(bound)
            try:
                if ready is not None:
                    ready()
                await stop.wait()
                self._draining = True
                server.close(close_connections=False)
                await self._drain()
            finally:
                server.close()
                await server.wait_closed()
        finally:
            self._draining = True
            await asyncio.to_thread(self._worker.stop, options.drain_s)

    def _bind(self) -> socket.socket:
        host, port = self._options.host, self._options.port
        try:
            return bind(host, port)
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}; "
                "give another --port, or a --host of this machine"
            ) from error

    async def _listen(self, bound: socket.socket) -> Server:
        options = self._options
        tls: dict[str, Any] = {}
        if options.tls is not None:
            tls = {"ssl": options.tls, "ssl_handshake_timeout": options.handshake_s, "ssl_shutdown_timeout": CLOSE_S}
        return await serve(
            self._serve_client,
            sock=bound,
            process_request=self._admit,
            origins=[None],  # browsers name theirs: no web page may use a policy on this machine
            compression=None,
            max_size=options.max_bytes,
            max_queue=2,
            open_timeout=options.handshake_s,
            ping_interval=options.keepalive_s / 2,
            ping_timeout=options.keepalive_s / 2,
            close_timeout=CLOSE_S,
            server_header=None,
            **tls,
        )

    def stop(self) -> None:
        """Let ``run`` finish what it is doing and return. From any thread."""
        if self._loop is not None and self._stop_event is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has finished already
                self._loop.call_soon_threadsafe(self._stop_event.set)

    async def _drain(self) -> None:
        until_ns = now_ns() + int(self._options.drain_s * 1e9)
        while now_ns() < until_ns and not (self._worker.idle and all(c.queue.empty() for c in self._clients)):
            await asyncio.sleep(0.01)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*(c.connection.close(GOING_AWAY, "the server stops") for c in list(self._clients)))
        for client in self._clients:  # who does not read cannot be told
            client.connection.transport.abort()

    def _admit(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """None: go on with the websocket's handshake."""
        if request.path == "/healthz":
            fault = "it is about to stop" if self._draining else self._worker.fault(self._options.hang_s)
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if fault else http.HTTPStatus.OK
            return connection.respond(status, f"{fault or 'OK'}\n")
        if self._options.token is not None:
            given = request.headers.get_all("Authorization")
            if len(given) != 1 or not token_matches(given[0], self._options.token):
                self.statistics.refused += 1
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "the token is missing or wrong\n")
        self._doorstep.let_in(connection)
        if self._draining or len(self._clients) >= self._options.max_clients:
            self.statistics.refused += 1
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "the server stops or has too many clients\n")
        return None

    async def _serve_client(self, connection: ServerConnection) -> None:
        client = Client(connection, self.statistics, self._options.keepalive_s)
        self._clients.add(client)
        self._count_clients()
        writer = asyncio.create_task(client.write())
        try:
            await client.send(self._metadata)
            async for message in connection:
                await self._take(client, message, now_ns())
                await asyncio.sleep(0)  # whoever sends without a pause leaves the loop to others too
        except ConnectionClosed:
            pass
        except WireError as error:
            self.statistics.failed += 1
            await client.send(str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.queue.join(), CLOSE_S)
            await connection.close(INVALID_DATA, str(error).encode()[:120].decode(errors="ignore"))
        finally:
            self._clients.discard(client)
            self._count_clients()
            self._worker.forget(client)
            writer.cancel()

    def _count_clients(self) -> None:
        self.statistics.clients = len(self._clients)
        self._worker.set_clients(len(self._clients))

    async def _take(self, client: Client, message: bytes | str, received_ns: int) -> None:
        """Act on one message; when this returns the client's next one may be read.

        Raises:
            WireError: it is no message of the protocol at all.
        """
        if isinstance(message, str):
            raise WireError("messages must be binary: msgpack")
        frame = unpack(message, max_bytes=self._options.max_bytes)
        ping = read_ping(frame)
        if ping is not None:
            await client.send(pack(pong_message(ping, received_ns, now_ns())))
            return
        if (check := read_check(frame)) is not None:
            await client.send(pack(self._checked(*check)))
            return
        assert self.spec is not None
        extension = frame.get(EXTENSION)
        id = extension.get("id") if extension is not None else None
        try:
            if self._draining:
                raise WireError("the server stops")
            incoming = read_request(frame, self.spec, received_ns, sequence=client.asked)
            for text in _texts(incoming.request.observation, self.spec):
                self._check(text)
            client.asked += 1
        except (WireError, UserError) as error:
            self.statistics.failed += 1
            if extension is not None and type(id) is not int:
                raise
            await client.send(str(error) if id is None else pack(failure_message(id, str(error))))
            return
        if incoming.id is not None:
            if incoming.id <= client.newest_id:
                return  # sent twice, or overtaken on the way
            client.newest_id = incoming.id
        pending = Pending(client, incoming, self.spec, received_ns, self.statistics, self.in_loop)
        job = Job(incoming.request, pending.deliver, pending.fail, client.memory, partial=incoming.partial)
        replaced = self._worker.submit(client, job)
        if replaced is not None:
            replaced.fail("a newer request has taken its place")
        if incoming.id is None:
            await client.until(pending.done.wait())  # openpi's clients number nothing: one after the other

    def _checked(self, id: int, instruction: str) -> dict[str, Any]:
        try:
            self._check(instruction)
        except UserError as error:
            return failure_message(id, str(error))
        return accepted_message(id)

    def in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call ``function`` in the event loop, from the worker's thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be answered
            self._loop.call_soon_threadsafe(function, *arguments)


def _texts(observation: Observation, spec: PolicySpec) -> set[str]:
    return {
        read_text(row)
        for name, stream in spec.observation.items()
        if stream.kind == "text"
        for row in observation[name]
    }


@contextlib.contextmanager
def serving(make: Callable[[], Inference], options: ServerOptions) -> Iterator[PolicyServer]:
    """A server in a thread of this process, until the block ends. Raises what ``PolicyServer.run`` raises."""
    server = PolicyServer(make, options)
    ready = threading.Event()
    failures: list[BaseException] = []

    def body() -> None:
        try:
            asyncio.run(server.run(ready.set))
        except BaseException as error:  # raised again below, in the thread that waits
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=body, name="policy server", daemon=True)
    thread.start()
    ready.wait()
    if failures:
        thread.join()
        raise failures[0]
    try:
        yield server
    finally:
        server.stop()
        thread.join()
