"""What asking a policy over a socket costs, and how several robots share it: ours beside openpi's pattern.

    python tests/benchmarks/runtime_wire.py [--seconds 8]

openpi's pattern, written out below: the msgpack library with arrays as hooks, a blocking client, a server that infers
in its event loop. Servers run in a process of their own on loopback, clients in threads of this one, the two patterns
alternate, so that what else the machine does falls on both.

- overhead: a policy that answers at once, one client. p50_ms and p99_ms of a request, by what an observation holds.
- sharing: an untrained UNet (flow, 5 steps) on one thread, several clients that ask again at once. chunks_per_s over
  all of them, p50_ms and p99_ms of a request, batch: mean number of requests inferred together.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_deploy.inference import Inference, Reply, Request
from robolearn_hardware.clock import now_ns

HORIZON = 16
STATE = Stream((7,))
ACTION = Stream((7,), kind="action")
CAMERAS = {
    "state": {},
    "state, 2 x 84x84": {name: Stream((84, 84, 3), "uint8", "image") for name in ("left", "right")},
    "state, 2 x 640x480": {name: Stream((480, 640, 3), "uint8", "image") for name in ("left", "right")},
}


def spec_with(cameras: dict[str, Stream]) -> PolicySpec:
    return PolicySpec({"state": STATE, **cameras}, ACTION, 20.0, obs_horizon=1, horizon=HORIZON, action_horizon=8)


class InstantPolicy:
    """Answers at once: what remains is the way there and back."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec
        self._actions = np.zeros((HORIZON, 7), np.float32)

    def infer(self, request: Request) -> Iterator[Reply]:
        yield Reply(self._actions, HORIZON)

    def close(self) -> None:
        pass


def local_policy(checkpoint: Path) -> Inference:
    from robolearn_deploy.local_policy import LocalPolicy

    policy = LocalPolicy(checkpoint)
    for sequence in range(5):
        list(policy.infer(Request(sequence, 0, observation(policy.spec))))
    return policy


def observation(spec: PolicySpec) -> dict[str, np.ndarray]:
    return {name: np.ones((spec.obs_horizon, *s.shape), s.dtype) for name, s in spec.observation.items()}


def our_server(make: Callable[[], Inference], pipe: Connection) -> None:
    from robolearn_deploy.wire.server import ServerOptions, serving

    with serving(make, ServerOptions(port=0)) as server:
        pipe.send(server.port)
        pipe.recv()
        pipe.send(sum(size * n for size, n in server.batches.items()) / max(sum(server.batches.values()), 1))


def their_server(make: Callable[[], Inference], pipe: Connection) -> None:
    """openpi's pattern: one event loop, in which the policy infers."""
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed

    policy = make()

    async def handle(socket: ServerConnection) -> None:
        await socket.send(their_pack({}))
        with contextlib.suppress(ConnectionClosed):
            while True:
                asked = their_unpack(await socket.recv())
                (reply,) = policy.infer(Request(0, 0, asked))
                await socket.send(their_pack({"actions": reply.actions}))

    async def run() -> None:
        async with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
            pipe.send(next(iter(server.sockets)).getsockname()[1])
            await asyncio.to_thread(pipe.recv)
            pipe.send(1.0)

    asyncio.run(run())


def their_pack(value: Any) -> bytes:
    def array(found: Any) -> Any:
        return {b"__ndarray__": True, b"data": found.tobytes(), b"dtype": found.dtype.str, b"shape": found.shape}

    packed = msgpack.packb(value, default=array)
    assert isinstance(packed, bytes)
    return packed


def their_unpack(message: Any) -> Any:
    def array(found: Any) -> Any:
        if b"__ndarray__" not in found:
            return found
        return np.ndarray(buffer=found[b"data"], dtype=np.dtype(found[b"dtype"]), shape=found[b"shape"])

    return msgpack.unpackb(message, object_hook=array)


@contextlib.contextmanager
def our_client(port: int, spec: PolicySpec) -> Iterator[Callable[[int], Any]]:
    from robolearn_deploy.wire.client import RemotePolicy

    policy = RemotePolicy(f"ws://127.0.0.1:{port}", connect_s=60.0)
    asked = observation(spec)
    yield lambda sequence: list(policy.infer(Request(sequence, now_ns(), asked, deadline_ns=now_ns() + 30 * 10**9)))
    policy.close()


@contextlib.contextmanager
def their_client(port: int, spec: PolicySpec) -> Iterator[Callable[[int], Any]]:
    from websockets.sync.client import connect

    asked = observation(spec)
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as socket:
        socket.recv()

        def ask(sequence: int) -> Any:
            socket.send(their_pack(asked))
            return their_unpack(socket.recv())

        yield ask


PATTERNS: dict[str, tuple[Any, Any]] = {"robolearn": (our_server, our_client), "openpi": (their_server, their_client)}


def measure(
    pattern: str, make: Callable[[], Inference], spec: PolicySpec, clients: int, seconds: float
) -> tuple[list[float], float, float]:
    """(ms of each request, requests per second, mean batch) with ``clients`` that ask again as soon as answered."""
    server, client = PATTERNS[pattern]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=server, args=(make, theirs), daemon=True)
    process.start()
    port = ours.recv()
    took_ms: list[float] = []
    start = threading.Barrier(clients)

    def work() -> None:
        with client(port, spec) as ask:
            for sequence in range(10):
                ask(sequence)
            start.wait()
            until_ns = now_ns() + int(seconds * 1e9)
            mine = []
            while (began_ns := now_ns()) < until_ns:
                ask(len(mine))
                mine.append((now_ns() - began_ns) / 1e6)
            took_ms.extend(mine)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ours.send("stop")
    batch = ours.recv()
    process.join()
    return took_ms, len(took_ms) / seconds, batch


def untrained(folder: Path) -> Path:
    import torch

    from robolearn.policies.checkpoint import save_policy
    from robolearn.policies.config import POLICIES
    from robolearn.policies.policy import Policy
    from robolearn_data.statistics import StreamStatistics

    ones = np.ones(7)
    statistics = StreamStatistics(2, -ones, ones, 0 * ones, 0.5 * ones, -ones, ones)
    torch.manual_seed(0)
    save_policy(Policy(spec_with({}), {"state": statistics, "action": statistics}, POLICIES["flow"]()), folder)
    return folder


def rows(seconds: float, rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    cases: list[tuple[str, str, Callable[[], Inference], PolicySpec, int]] = []
    for name, cameras in CAMERAS.items():
        spec = spec_with(cameras)
        cases.append(("overhead", name, functools.partial(InstantPolicy, spec), spec, 1))
    make = functools.partial(local_policy, untrained(folder / "checkpoint"))
    cases += [("sharing", "UNet, flow", make, spec_with({}), clients) for clients in (1, 2, 4, 8)]
    for part, policy, make, spec, clients in cases:
        found: dict[str, list[Any]] = {pattern: [] for pattern in PATTERNS}
        for _ in range(rounds):
            for pattern, runs in found.items():
                runs.append(measure(pattern, make, spec, clients, seconds / rounds))
        for pattern, runs in found.items():
            p50, p99 = np.percentile([ms for took, _, _ in runs for ms in took], (50, 99))
            yield {
                "part": part,
                "policy": policy,
                "clients": clients,
                "pattern": pattern,
                "p50_ms": round(float(p50), 2),
                "p99_ms": round(float(p99), 2),
                "chunks_per_s": round(float(np.mean([rate for _, rate, _ in runs])), 1),
                "batch": round(float(np.mean([batch for _, _, batch in runs])), 2),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of a policy behind a socket.")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each row")
    parser.add_argument("--rounds", type=int, default=2, help="turns that the patterns take")
    options = parser.parse_args()
    table = Table(title="a policy behind a socket")
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(options.seconds, options.rounds, Path(folder)):
            measured.append(row)
            print(row, flush=True)
    for name in measured[0]:
        table.add_column(name, justify="right" if isinstance(measured[0][name], int | float) else "left")
    for row in measured:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    write_results("runtime_wire", measured)


if __name__ == "__main__":
    main()
