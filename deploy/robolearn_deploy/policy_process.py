"""The slow half: turns the newest observations into chunks, as fast as it can or as often as it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.schema import Observation
from robolearn_deploy.channels import Channels, Handles, stream_field
from robolearn_deploy.chunks import action_times_ns
from robolearn_deploy.worker import Rendezvous
from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns
from robolearn_hardware.ring import Ring

POLL_NS = 1_000_000
"""Pause between two looks at a ring that has nothing new."""

WARM_UP = 3
"""Inferences before the run: the first ones are slower by an order of magnitude."""


class Inference(Protocol):
    """A policy on this machine or on another."""

    spec: PolicySpec

    def infer(self, observation: Observation) -> np.ndarray:
        """A chunk (Tp, *action shape) in physical units from stream -> (To, *stream shape), oldest first."""
        ...


@dataclass(frozen=True)
class PolicyOptions:
    spec: PolicySpec
    """What the control process was told the policy is."""
    replan_steps: int
    """Control periods between the observations of two chunks, at least."""


def policy_process(
    rendezvous: Rendezvous, handles: Handles, make: Callable[[], Inference], options: PolicyOptions
) -> None:
    """The body of the process, until the run ends."""
    with Channels.attach(handles) as channels:
        stopped = channels.stop_check()
        policy = make()
        if policy.spec != options.spec:
            raise SpecError("the policy that was loaded has another spec than the one announced; start again")
        blank = {n: np.zeros((policy.spec.obs_horizon, *s.shape), s.dtype) for n, s in policy.spec.observation.items()}
        for _ in range(WARM_UP):
            policy.infer(blank)
        rendezvous()
        _infer_until(stopped, channels, policy, options.replan_steps)


def _infer_until(stopped: Callable[[], bool], channels: Channels, policy: Inference, replan_steps: int) -> None:
    spec = policy.spec
    period = period_ns(spec.rate_hz)
    last_episode, next_capture_ns = -1, 0
    sequence = 0
    while not stopped():
        newest = channels.observations.newest()
        if newest is None:
            wait_until_ns(now_ns() + POLL_NS)
            continue
        index, record = newest
        episode, capture_ns = int(record["episode"]), int(record["capture_ns"])
        if episode == last_episode and capture_ns < next_capture_ns:
            # Sleep until that observation is due, yet never longer than a period: the run or the episode may end.
            now = now_ns()
            wait_until_ns(min(max(next_capture_ns, now + POLL_NS), now + period))
            continue
        observation = window(channels.observations, index, record, spec, period)
        started_ns = now_ns()
        actions = policy.infer(observation)
        times_ns = action_times_ns(capture_ns, spec.start, spec.horizon, period)
        channels.chunks.publish(
            {
                "sequence": sequence,
                "episode": episode,
                "capture_ns": capture_ns,
                "times_ns": times_ns,
                "actions": actions,
                "expiry_ns": int(times_ns[-1]) + period,
                "started_ns": started_ns,
                "ended_ns": now_ns(),
            }
        )
        sequence += 1
        last_episode, next_capture_ns = episode, capture_ns + replan_steps * period


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
