"""Policies whose chunks say which observation they belong to, for tests of the wire."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_deploy.inference import Committed, Reply, Request
from robolearn_hardware.clock import now_ns

HORIZON = 8
SPEC = PolicySpec(
    {"state": Stream((3,)), "instruction": Stream((16,), "uint8", "text")},
    Stream((2,), kind="action"),
    20.0,
    obs_horizon=2,
    horizon=HORIZON,
    action_horizon=4,
)


def packb(value: Any) -> bytes:
    """With the msgpack library, as peers of others write it."""
    packed = msgpack.packb(value)
    assert isinstance(packed, bytes)
    return packed


def request(number: int, *, deadline_s: float = 0.0, committed: Committed | None = None) -> Request:
    """A request whose observation holds ``number``."""
    now = now_ns()
    text = np.frombuffer(f"task {number}".encode().ljust(16, b"\0"), np.uint8)
    observation = {"state": np.full((2, 3), number, np.float32), "instruction": np.stack([text, text])}
    return Request(number, now, observation, committed, now + int(deadline_s * 1e9) if deadline_s else 0)


def chunk(number: float) -> np.ndarray:
    """What ``CountingPolicy`` answers to ``request(number)``: (HORIZON, 2)."""
    steps = np.arange(HORIZON, dtype=np.float32)
    return np.stack([np.full(HORIZON, number, np.float32), number * HORIZON + steps], axis=1)


class CountingPolicy:
    """Answers ``chunk(state)`` after ``seconds``; in several parts if asked to; counts what it was asked."""

    def __init__(self, *, seconds: float = 0.0, parts: Sequence[int] = (HORIZON,), spec: PolicySpec = SPEC) -> None:
        self.spec = spec
        self.seen: list[Request] = []
        self.closed = threading.Event()
        self._seconds = seconds
        self._parts = parts

    def infer(self, request: Request) -> Iterator[Reply]:
        self.seen.append(request)
        number = float(request.observation["state"][-1, 0])
        if number == 13:
            raise RuntimeError("a secret of the server")
        actions = chunk(number)
        if number == 14:
            actions[3] = np.inf
        for final in self._parts:
            time.sleep(self._seconds)
            shown = actions.copy()
            shown[final:] = np.nan
            yield Reply(shown, final, {"total": self._seconds * 1e3})

    def close(self) -> None:
        self.closed.set()


class BatchingPolicy(CountingPolicy):
    """Takes as long for many requests as for one."""

    def __init__(self, *, seconds: float = 0.0) -> None:
        super().__init__(seconds=seconds)
        self.sizes: list[int] = []
        self.remembered: list[list[int]] = []

    def infer_batch(self, requests: Sequence[Request], memories: Sequence[dict[str, Any]]) -> list[Reply]:
        """Also remembers, for each robot, the numbers that it was asked since the episode's beginning."""
        self.sizes.append(len(requests))
        for request, memory in zip(requests, memories, strict=True):
            self.remembered.append(memory.setdefault("numbers", []))
            memory["numbers"].append(request.sequence)
        if any(r.sequence == 13 for r in requests):
            raise RuntimeError("a secret of the server")
        time.sleep(self._seconds)
        return [Reply(chunk(float(r.observation["state"][-1, 0])), HORIZON) for r in requests]
