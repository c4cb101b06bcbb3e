"""What the policy process sees of the robot, and what it tells it, whether that is a simulated world or a rig."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Observation
from robolearn_deploy.channels import Channels, Handles, stream_field
from robolearn_deploy.chunks import DRIVEN
from robolearn_hardware.clock import period_ns
from robolearn_hardware.ring import Ring


@dataclass(frozen=True, eq=False)
class Done:
    """An action that was carried out."""

    due_ns: int
    """The instant that it was for."""
    action: np.ndarray
    """As sent."""
    episode: int
    chunk: int
    """Sequence of the chunk that decided, -1 without."""
    chunk_capture_ns: int


class Senses(Protocol):
    def newest(self) -> tuple[int, int] | None:
        """Episode, and capture time (ns) of the newest observation; None before the first. Does not wait."""
        ...

    def observe(self) -> Observation | None:
        """That observation: stream -> (To, *shape), oldest first; None where a device is silent."""
        ...

    def done(self) -> Iterator[Done]:
        """What was carried out since the last call, in order."""
        ...

    def publish(self, record: Mapping[str, Any]) -> None:
        """A record of ``channels.chunk_fields`` for whoever acts."""
        ...

    def stopped(self) -> bool:
        """Whether the run is over."""
        ...

    def close(self) -> None: ...


class WorldSenses:
    """Of a control process that steps a world."""

    def __init__(self, handles: Handles, spec: PolicySpec) -> None:
        self._channels, self._spec = Channels.attach(handles), spec
        self._period = period_ns(spec.rate_hz)
        self._newest: tuple[int, np.void] | None = None
        self._next_tick = 0
        self.stopped: Callable[[], bool] = self._channels.stop_check()

    def newest(self) -> tuple[int, int] | None:
        self._newest = self._channels.observations.newest()
        if self._newest is None:
            return None
        _, record = self._newest
        return int(record["episode"]), int(record["capture_ns"])

    def observe(self) -> Observation | None:
        if self._newest is None:
            return None
        return window(self._channels.observations, *self._newest, self._spec, self._period)

    def done(self) -> Iterator[Done]:
        for index, tick in self._channels.ticks.since(self._next_tick):
            self._next_tick = index + 1
            if tick["state"] in DRIVEN:
                yield Done(
                    int(tick["due_ns"]),
                    tick["sent"],
                    int(tick["episode"]),
                    int(tick["chunk"]),
                    int(tick["chunk_capture_ns"]),
                )

    def publish(self, record: Mapping[str, Any]) -> None:
        self._channels.chunks.publish(record)

    def close(self) -> None:
        self._channels.close()


def window(ring: Ring, index: int, newest: np.void, spec: PolicySpec, period: int) -> Observation:
    """The last To observations as of the capture of ``newest``, one ``period`` (ns) apart: stream -> (To, ...).

    For each instant it takes the newest observation not later than half a period after it. Before the episode's first
    observation that one is repeated, as at the edges of training windows.
    """
    chosen = newest
    records = [newest]
    for back in range(1, spec.obs_horizon):
        limit_ns = int(newest["capture_ns"]) - back * period + period // 2
        while int(chosen["capture_ns"]) > limit_ns and index > 0:
            older = ring.read(index - 1)
            if older is None or older["episode"] != newest["episode"]:
                break
            index, chosen = index - 1, older
        records.append(chosen)
    records.reverse()
    return {name: np.stack([r[stream_field(name)] for r in records]) for name in spec.observation}
