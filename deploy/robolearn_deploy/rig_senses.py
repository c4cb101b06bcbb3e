"""What a policy sees of a rig: the newest samples of every device as of one instant, out of shared memory.

As in training, an observation is made of samples that had been captured by its instant, one control period apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.resample import blend, places
from robolearn_data.schema import Observation
from robolearn_deploy.senses import Done
from robolearn_deploy.stall import State
from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns
from robolearn_hardware.ring import Field, Ring, RingHandle

STALE_NS = SECOND_NS // 4
"""A device that has given nothing for so long (or for five of its periods) is not observed any more."""


SESSION_FIELDS: dict[str, Field] = {"episode": ("i8", ()), "stop": ("u1", ())}


def stop_check(session: Ring) -> Callable[[], bool]:
    """For a child of the supervisor: whether the run shall end, because that says so or is no more."""
    parent = os.getppid()

    def stopped() -> bool:
        found = session.newest()
        return (found is not None and bool(found[1]["stop"])) or os.getppid() != parent

    return stopped


@dataclass(frozen=True)
class RigHandles:
    """What the policy process attaches to. It can be pickled."""

    streams: Mapping[str, RingHandle]
    """One for each stream that the policy observes, and "state": records with "capture_ns" and "value"."""
    chunks: RingHandle
    ticks: RingHandle
    """Of the servo process."""
    session: RingHandle
    """Of ``SESSION_FIELDS``, by the supervisor."""


class RigSenses:
    """``Senses`` of a rig. The state decides the instant of an observation."""

    def __init__(self, handles: RigHandles, spec: PolicySpec) -> None:
        self._spec = spec
        self._rings = {name: Ring.attach(handle) for name, handle in handles.streams.items()}
        self._chunks, self._ticks = Ring.attach(handles.chunks), Ring.attach(handles.ticks)
        self._session = Ring.attach(handles.session)
        self.stopped: Callable[[], bool] = stop_check(self._session)
        self._period_ns = period_ns(spec.rate_hz)
        self._limit_ns = {
            name: max(STALE_NS, round(5 * SECOND_NS / stream.rate_hz)) if stream.is_native else STALE_NS
            for name, stream in spec.observation.items()
        }
        self._next_tick, self._last_done_ns, self._last_chunk = self._ticks.count, 0, -1
        self._capture_ns = 0

    def newest(self) -> tuple[int, int] | None:
        session, state = self._session.newest(), self._rings["state"].newest()
        if session is None or state is None or session[1]["episode"] < 0:
            return None
        self._capture_ns = int(state[1]["capture_ns"])
        return int(session[1]["episode"]), self._capture_ns

    def observe(self) -> Observation | None:
        now, streams = now_ns(), {}
        instants = [self._capture_ns - k * self._period_ns for k in reversed(range(self._spec.obs_horizon))]
        for name, stream in self._spec.observation.items():
            times, values = _recent(self._rings[name], instants[0], instants[-1])
            if stream.kind == "text" and not len(times):
                streams[name] = np.zeros((len(instants), *stream.shape), stream.dtype)
                continue
            if not len(times) or (stream.kind != "text" and now - int(times[-1]) > self._limit_ns[name]):
                return None
            # As training reads its windows: between samples captured by the present, as the schema says.
            before, share = places(times, np.array(instants), stream.interpolation)
            found, between = values[before], share > 0
            if between.any():
                after = values[before[between] + 1]
                found[between] = blend(found[between], after, share[between], stream.interpolation)
            streams[name] = found.astype(stream.dtype, copy=False)
        return streams

    def done(self) -> Iterator[Done]:
        """One for each control period and each new chunk: the servo loop has many more ticks."""
        for index, tick in self._ticks.since(self._next_tick):
            self._next_tick = index + 1
            due_ns, chunk = int(tick["due_ns"]), int(tick["chunk"])
            if chunk == self._last_chunk and due_ns < self._last_done_ns + self._period_ns:
                continue
            self._last_done_ns, self._last_chunk = due_ns, chunk
            used = chunk if tick["state"] in (State.RUNNING, State.HOLDING) else -1
            yield Done(due_ns, tick["sent"], int(tick["episode"]), used, int(tick["chunk_capture_ns"]))

    def publish(self, record: Mapping[str, Any]) -> None:
        self._chunks.publish(record)

    def close(self) -> None:
        for ring in (*self._rings.values(), self._chunks, self._ticks, self._session):
            ring.close()


def _recent(ring: Ring, first_ns: int, last_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """Capture times (n,) and values (n, ...) of the records captured by ``last_ns``, back to the newest one captured by
    ``first_ns`` (or the oldest there is)."""
    found = ring.newest()
    records: list[np.void] = []
    while found is not None:
        index, record = found
        if record["capture_ns"] <= last_ns:
            records.append(record)
        if record["capture_ns"] <= first_ns or not index:
            break
        older = ring.read(index - 1)
        found = None if older is None else (index - 1, older)
    if not records:
        return np.empty(0, np.int64), np.empty(0)
    records.reverse()
    return np.array([r["capture_ns"] for r in records]), np.stack([r["value"] for r in records])
