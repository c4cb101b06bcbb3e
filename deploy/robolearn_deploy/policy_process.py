"""The slow half: turns the newest observations into chunks, when the scheduler says that it is time for one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.schema import Observation
from robolearn_deploy.channels import chunk_record
from robolearn_deploy.chunks import Chunk, action_times_ns
from robolearn_deploy.inference import Committed, Inference, Request
from robolearn_deploy.plan import Commitment
from robolearn_deploy.schedulers import DelayWindow, find, steps_of
from robolearn_deploy.senses import Senses
from robolearn_deploy.worker import Rendezvous
from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns

POLL_NS = 1_000_000
"""Pause between two looks at a ring that has nothing new."""

WARM_UP = 3
"""Inferences before the run: the first ones are slower by an order of magnitude, and count for no delay."""

STALE_PERIODS = 5
"""An observation that is older than so many control periods is not inferred from."""


@dataclass(frozen=True)
class PolicyOptions:
    spec: PolicySpec
    """What the control process was told the policy is."""
    scheduler: str
    """See schedulers.py."""
    execute: int
    """Control periods between the observations of two chunks, at least."""


def policy_process(
    rendezvous: Rendezvous,
    attach: Callable[[PolicySpec], Senses],
    make: Callable[[], Inference],
    options: PolicyOptions,
) -> None:
    """The body of the process, until the run ends."""
    with contextlib.closing(attach(options.spec)) as senses, contextlib.closing(make()) as policy:
        if policy.spec != options.spec:
            raise SpecError("the policy that was loaded has another spec than the one announced; start again")
        thinking = Thinking(senses, policy, options)
        thinking.warm_up()
        rendezvous()
        while not senses.stopped():
            wait_until_ns(thinking.step())


class Thinking:
    """Decides when to infer, and asks the policy."""

    def __init__(self, senses: Senses, policy: Inference, options: PolicyOptions) -> None:
        self._senses = senses
        self._policy = policy
        self._spec = policy.spec
        self._scheduler = find(options.scheduler)
        self._execute = options.execute
        self._period = period_ns(self._spec.rate_hz)
        self._commitment = Commitment(self._period)
        self._delays = DelayWindow(1)
        self._sequence = 0
        self._last_used = -1
        self._episode = -1
        self._next_capture_ns = 0
        self._unused_since_ns: int | None = None  # when the newest chunk was there, while nothing of it was carried out

    def warm_up(self) -> None:
        spec = self._spec
        blank = {n: np.zeros((spec.obs_horizon, *s.shape), s.dtype) for n, s in spec.observation.items()}
        actions = np.zeros((spec.horizon, *spec.action.shape), np.float32)
        delay, execute = steps_of(1, self._execute, spec)
        committed = Committed(actions, delay, execute) if self._scheduler.committed else None
        took_ns = 0
        for i in range(WARM_UP):
            began_ns = now_ns()
            for _ in self._policy.infer(Request(0, began_ns, blank, committed if i else None)):
                pass
            took_ns = now_ns() - began_ns
        self._delays = DelayWindow(-(-took_ns // self._period))

    def step(self) -> int:
        """Infer once if it is time to. Returns the instant at which to look again (ns)."""
        now = now_ns()
        newest = self._senses.newest()
        if newest is None:
            return now + POLL_NS
        episode, capture_ns = newest
        if episode != self._episode:
            self._episode, self._next_capture_ns, self._unused_since_ns = episode, 0, None
            self._commitment.begin()
        self._follow_ticks()
        if self._scheduler.waits and self._unused_since_ns is not None:
            # Nobody asks for the next chunk while the last one is on its way, unless that has been refused.
            if now < self._unused_since_ns + 2 * self._period:
                return now + POLL_NS
            self._next_capture_ns = 0
        if capture_ns < self._next_capture_ns:
            # Sleep until that observation is due, yet never longer than a period: the run or the episode may end.
            return min(max(self._next_capture_ns, now + POLL_NS), now + self._period)
        if now - capture_ns > STALE_PERIODS * self._period:
            return now + POLL_NS  # the robot goes on with its plan, and holds when that has expired
        observation = self._senses.observe()
        if observation is None:  # a device is silent: as above
            return now + POLL_NS
        self._infer(observation, capture_ns)
        return now_ns()

    def _follow_ticks(self) -> None:
        """What was carried out since the last look, and how long chunks took to get there."""
        for done in self._senses.done():
            if done.episode != self._episode:
                continue
            self._commitment.did(done.due_ns, done.action)
            if done.chunk <= self._last_used:
                continue
            self._last_used = done.chunk
            self._delays.add((done.due_ns - done.chunk_capture_ns) // self._period)
            if done.chunk == self._sequence - 1:
                self._unused_since_ns = None
                if self._scheduler.waits:
                    self._next_capture_ns = done.due_ns + self._execute * self._period

    def _infer(self, observation: Observation, capture_ns: int) -> None:
        spec, period = self._spec, self._period
        times_ns = action_times_ns(capture_ns, spec.start, spec.horizon, period)
        expiry_ns = int(times_ns[-1]) + period
        delay, execute = steps_of(self._delays.expected, self._execute, spec)
        actions = self._commitment.on(times_ns) if self._scheduler.committed else None
        committed = None if actions is None else Committed(actions, delay, execute)
        deadline_ns = 0 if self._scheduler.waits else expiry_ns
        request = Request(self._sequence, capture_ns, observation, committed, deadline_ns)
        self._sequence += 1
        self._next_capture_ns = capture_ns + execute * period
        begun = {"started_ns": now_ns(), "expected_delay": delay, "execute": execute}
        try:
            for reply in self._policy.infer(request):
                times, actions = times_ns[: reply.final], reply.actions[: reply.final]
                chunk = Chunk(request.sequence, self._episode, capture_ns, times, actions, int(times[-1]) + period)
                self._publish(chunk, **begun)
        except (TimeoutError, ConnectionError):
            # The next request may be answered; until then the plan goes on, and the robot holds when it has expired.
            self._next_capture_ns = now_ns()
            nothing = np.zeros((0, *spec.chunk.shape), np.float32)
            self._publish(Chunk(request.sequence, self._episode, capture_ns, times_ns[:0], nothing, 0), **begun)

    def _publish(self, chunk: Chunk, **begun: int) -> None:
        ended_ns = now_ns()
        self._senses.publish({**chunk_record(chunk, self._spec.horizon), **begun, "ended_ns": ended_ns})
        if len(chunk.actions):
            self._unused_since_ns = ended_ns
            self._commitment.follow(chunk, ended_ns)
