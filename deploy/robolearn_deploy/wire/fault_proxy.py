"""A TCP proxy that spoils a connection: it drops, delays, reorders and repeats whole websocket messages.

    python -m robolearn_deploy.wire.fault_proxy --listen 9000 --to 127.0.0.1:8000 --drop 0.1 --delay-ms 50

It passes the handshake on as it is and then reads no more of a frame than its length (RFC 6455, section 5.2), so that
tokens, keepalives and closing work through it. TLS cannot be looked into: put it in front of servers without.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_HANDSHAKE = 1 << 16


@dataclass(frozen=True)
class NetworkFaults:
    """What happens to each message, either way. Probabilities are between 0 and 1."""

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Is held back for ``reorder_s``, while those after it go on."""
    reorder_s: float = 0.1
    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Up to this is added to the delay, evenly distributed; the order stays."""
    cut: float = 0.0
    """The connection is reset instead."""
    stall: bool = False
    """Nothing passes any more, and the connections stay open."""


@dataclass
class FaultCounts:
    passed: int = 0
    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    cut: int = 0
    stalled: int = 0


class FaultProxy:
    """Listens on loopback and passes on to one server. ``faults`` may be replaced at any time, from any thread."""

    def __init__(self, host: str, port: int, faults: NetworkFaults = NetworkFaults(), *, seed: int = 0) -> None:
        self.faults = faults
        self.counts = FaultCounts()
        self.port = 0
        self._target = (host, port)
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self, port: int = 0) -> asyncio.Server:
        """Begin to listen; port 0: any free one, see ``port``."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connect, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def cut_all(self) -> None:
        """Reset every connection, from any thread."""

        def cut() -> None:
            for writer in list(self._writers):
                writer.transport.abort()

        self.in_loop(cut)

    def in_loop(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the event loop, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(function)

    async def _connect(self, near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await asyncio.open_connection(*self._target)
        except OSError:
            near.transport.abort()
            return
        pair = {near, far}
        self._writers |= pair
        ways = [asyncio.create_task(self._pass(near_reader, far)), asyncio.create_task(self._pass(far_reader, near))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            self._writers -= pair
            for writer in pair:
                writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until either end closes."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.write(await reader.readuntil(b"\r\n\r\n"))
            while True:
                message = await _read_message(reader)
                faults = self.faults
                while self.faults.stall:
                    self.counts.stalled += 1
                    await asyncio.sleep(0.01)
                if self._happens(faults.cut):
                    self.counts.cut += 1
                    writer.transport.abort()
                    return
                if self._happens(faults.drop):
                    self.counts.dropped += 1
                    continue
                due = loop.time() + faults.delay_s + self._random.uniform(0, faults.jitter_s)
                if self._happens(faults.reorder):
                    self.counts.reordered += 1
                    due += faults.reorder_s
                else:
                    due = last = max(due, last + 1e-6)
                loop.call_at(due, _write, writer, message)
                self.counts.passed += 1
                if self._happens(faults.duplicate):
                    self.counts.duplicated += 1
                    loop.call_at(due + 1e-6, _write, writer, message)

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability


def _write(writer: asyncio.StreamWriter, message: bytes) -> None:
    if not writer.is_closing():
        writer.write(message)


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """One websocket message as it is: its frames up to the last."""
    message = b""
    while True:
        head = await reader.readexactly(2)
        length = head[1] & 0x7F
        if length >= 126:
            extended = await reader.readexactly(2 if length == 126 else 8)
            head += extended
            length = int.from_bytes(extended, "big")
        mask = 4 if head[1] & 0x80 else 0
        message += head + await reader.readexactly(mask + length)
        if head[0] & 0x80:
            return message


@contextlib.contextmanager
def proxying(host: str, port: int, faults: NetworkFaults = NetworkFaults(), *, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy in a thread of this process, until the block ends."""
    proxy = FaultProxy(host, port, faults, seed=seed)
    ready, stop = threading.Event(), asyncio.Event()

    async def body() -> None:
        server = await proxy.start()
        ready.set()
        await stop.wait()
        server.close()  # the tasks of its connections are cancelled at the end of the loop

    thread = threading.Thread(target=lambda: asyncio.run(body()), name="fault proxy", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        proxy.in_loop(stop.set)
        thread.join()


async def _serve(options: argparse.Namespace) -> None:
    host, _, port = options.to.rpartition(":")
    faults = NetworkFaults(
        drop=options.drop,
        duplicate=options.duplicate,
        reorder=options.reorder,
        delay_s=options.delay_ms / 1e3,
        jitter_s=options.jitter_ms / 1e3,
        cut=options.cut,
    )
    proxy = FaultProxy(host or "127.0.0.1", int(port), faults, seed=options.seed)
    server = await proxy.start(options.listen)
    print(f"ws://127.0.0.1:{proxy.port} -> {options.to}   Ctrl-C ends it")
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="Spoils the connection to a policy server.")
    parser.add_argument("--listen", type=int, default=9000, help="port on loopback")
    parser.add_argument("--to", default="127.0.0.1:8000", help="HOST:PORT of the server")
    for name in ("drop", "duplicate", "reorder", "cut"):
        parser.add_argument(f"--{name}", type=float, default=0.0, help="probability for each message")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
