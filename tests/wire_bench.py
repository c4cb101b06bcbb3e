"""A policy server, its clients, and connections that no library looks after, for tests of the wire."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from websockets.sync.client import ClientConnection, connect
from wire_fakes import CountingPolicy, request

from robolearn_deploy.inference import Inference, Reply
from robolearn_deploy.wire.client import RemotePolicy
from robolearn_deploy.wire.server import PolicyServer, ServerOptions, serving

DEADLINE_S = 20.0
"""Of everything that is expected to happen: these tests share a machine with others."""

Make = Callable[[], Inference]


@contextlib.contextmanager
def served(make: Make = CountingPolicy, **options: Any) -> Iterator[PolicyServer]:
    with serving(make, ServerOptions(port=0, **options)) as server:
        yield server


@contextlib.contextmanager
def remote(server: PolicyServer, **options: Any) -> Iterator[RemotePolicy]:
    policy = RemotePolicy(f"ws://127.0.0.1:{server.port}", **options)
    try:
        yield policy
    finally:
        policy.close()


def ask(policy: RemotePolicy, number: int, **options: Any) -> list[Reply]:
    return list(policy.infer(request(number, deadline_s=DEADLINE_S, **options)))


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.005)


@contextlib.contextmanager
def raw(server: PolicyServer, **options: Any) -> Iterator[ClientConnection]:
    """A bare websocket, past the metadata."""
    with connect(f"ws://127.0.0.1:{server.port}", compression=None, proxy=None, **options) as connection:
        connection.recv(DEADLINE_S)
        yield connection


def open_by_hand(server: PolicyServer) -> socket.socket:
    """A websocket that no library looks after: it says and reads what the test makes it."""
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S)
    opened.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    return opened


def mask(message: bytes) -> bytes:
    """A client's frame around a short ``message`` (RFC 6455, section 5.2), masked with zeros."""
    return bytes((0x82, 0x80 | len(message))) + bytes(4) + message
