"""A slow-fast policy against a simulated world: control steps in fast periods, and the process of the fast half.

At each fast period the control process publishes what was felt in the one before, and leads the world to where the
newest short chunk says. It never waits for the fast half: where no short chunk covers the instant, the robot holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from robolearn.policies.spec import FastSpec, PolicySpec
from robolearn_data.schema import Observation, Stream
from robolearn_data.world import Step, World, action_since, fast_world, way_of
from robolearn_deploy.channels import Channels, Handles, chunk_of
from robolearn_deploy.chunks import Refusals
from robolearn_deploy.fast import FastPolicy, FastRings, run_fast, short_fields
from robolearn_deploy.plan import Planned, PlanTiming, ReplacePlan
from robolearn_deploy.recorder import sample_fields
from robolearn_deploy.worker import Rendezvous
from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns
from robolearn_hardware.ring import Ring, RingHandle

SECONDS = 4.0
"""How long the fast half may be busy elsewhere before it loses readings."""


@dataclass(frozen=True)
class FastHandles:
    """The rings between control process and fast half. It can be pickled."""

    fast: FastSpec
    short: RingHandle
    readings: Mapping[str, RingHandle]

    @classmethod
    def create(cls, stack: ExitStack, spec: PolicySpec, fast: FastSpec) -> FastHandles:
        """The rings, which ``stack`` closes."""
        short = stack.enter_context(Ring.create(short_fields(spec.action), 256))
        readings = {}
        for name, stream in fast.observation.items():
            sample = Stream(stream.shape[-1:])
            slots = round(SECONDS * spec.rate_hz * _samples(stream))
            readings[name] = stack.enter_context(Ring.create(sample_fields(sample), max(64, slots))).handle
        return cls(fast, short.handle, readings)


def fast_world_process(rendezvous: Rendezvous, policy: FastPolicy, handles: Handles, fast: FastHandles) -> None:
    """The body of the process, until the run ends."""
    with Channels.attach(handles) as channels, ExitStack() as stack:
        short = stack.enter_context(Ring.attach(fast.short))
        readings = {name: stack.enter_context(Ring.attach(handle)) for name, handle in fast.readings.items()}
        policy.start()
        rendezvous()
        run_fast(policy, FastRings(channels.chunks, short, readings), channels.stop_check())


class FastSteps:
    """The control process's end: the plan that short chunks make, and control steps in fast periods."""

    def __init__(self, stack: ExitStack, handles: FastHandles, world: World, refusals: Refusals) -> None:
        """Raises FastWorldError: the world's control steps have no such fast periods."""
        self._world = fast_world(world, handles.fast.ticks)
        rate_hz = world.spec.schema.rate_hz
        self._period_ns = period_ns(rate_hz * handles.fast.ticks)
        self._short = stack.enter_context(Ring.attach(handles.short))
        self._readings = {n: stack.enter_context(Ring.attach(h)) for n, h in handles.readings.items()}
        self.plan = ReplacePlan(refusals, PlanTiming(self._period_ns, 0, 1))
        self._next, self._slow = self._short.count, (-1, -1, 0)

    def begin(self, episode: int, observation: Observation) -> None:
        self.plan.begin(episode)
        self._felt: Mapping[str, np.ndarray] = {}
        self._observed = observation

    def receive(self, at_ns: int) -> None:
        """Take in the short chunks that have come."""
        for index, record in self._short.since(self._next):
            self._next = index + 1
            if self.plan.offer(chunk_of(record), at_ns):
                self._slow = int(record["sequence"]), int(record["slow"]), int(record["slow_capture_ns"])

    def slow(self, planned: Planned) -> tuple[int, int]:
        """Sequence and capture time (ns) of the slow half's chunk that ``planned`` comes from."""
        sequence, slow, capture_ns = self._slow
        return (slow, capture_ns) if sequence == planned.chunk.sequence else (-1, 0)

    def felt(self, due_ns: int) -> None:
        """Tell what was felt up to ``due_ns``, when a control step begins."""
        if not self._felt:  # nothing was done: the sensor goes on measuring what it measured
            self._felt = {name: self._observed[name] for name in self._readings}
        self._publish(due_ns)

    def step(self, due_ns: int, action: np.ndarray, *, follow: bool) -> tuple[Step, np.ndarray, int]:
        """One control step from ``due_ns`` on; the action that was made; the time (ns) that the world took for it.

        Args:
            action: for this instant.
            follow: go on by the plan inside the step; otherwise the step leads to ``action``.
        """
        took_ns, start, way = 0, self._world.commanded, way_of(self._world, action)
        for tick in range(self._world.fast_steps):
            if tick:
                due_ns += self._period_ns
                wait_until_ns(due_ns)
                self._publish(due_ns)
                self.receive(now_ns())
            began_ns = now_ns()
            if follow:
                planned = self.plan.at(due_ns)
                way = way_of(self._world, planned.action) if planned else np.zeros_like(way)
                target = self._world.commanded + way / self._world.fast_steps
            else:
                target = start + way * ((tick + 1) / self._world.fast_steps)
            self._felt = self._world.advance(target).readings
            took_ns += now_ns() - began_ns
        began_ns = now_ns()
        step = self._world.finish()
        self._observed = step.observation
        return step, action_since(self._world, start), took_ns + now_ns() - began_ns

    def _publish(self, due_ns: int) -> None:
        for name, values in self._felt.items():
            if name not in self._readings:
                continue
            values = values.reshape(-1, values.shape[-1]).astype(np.float32)
            apart = self._period_ns * self._world.fast_steps // _samples(self._world.spec.schema.stream(name))
            for back, value in zip(range(len(values) - 1, -1, -1), values, strict=True):
                self._readings[name].publish(
                    {"capture_ns": due_ns - back * apart, "received_ns": due_ns, "value": value}
                )
        self._felt = {}


def _samples(stream: Stream) -> int:
    """Readings in a control period."""
    return stream.shape[0] if len(stream.shape) == 2 else 1
