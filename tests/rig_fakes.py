"""Policies for rigs, importable by the processes that tests start."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_deploy.inference import Reply, Request
from robolearn_hardware.clock import now_ns

RATE_HZ = 20.0


def spec_of(names: tuple[str, ...], *, camera: Stream | None = None) -> PolicySpec:
    """What such a policy expects of a rig whose vector has these components."""
    state = Stream((len(names),), names=names, rate_hz=100.0, interpolation="linear")
    action = Stream((len(names),), "float32", "action", names=names)
    observation = {"state": state} | ({"front": camera} if camera else {})
    return PolicySpec(observation, action, RATE_HZ, obs_horizon=2, horizon=16, action_horizon=4)


class SinePolicy:
    """Moves every joint in a sine about where it first saw the arm; the gripper stays."""

    def __init__(
        self,
        spec: PolicySpec,
        *,
        amplitude: float = 0.15,
        infer_s: float = 0.02,
        fail_at: int = 10**9,
        eat_from: int = 10**9,
    ) -> None:
        self.spec = spec
        self._amplitude, self._infer_s, self._fail_at, self._eat_from = amplitude, infer_s, fail_at, eat_from
        self._middle: np.ndarray | None = None
        self._calls = -3  # warm-up

    def infer(self, request: Request) -> Iterator[Reply]:
        time.sleep(self._infer_s)
        call, self._calls = self._calls, self._calls + 1
        if call >= self._eat_from:
            raise MemoryError("cannot allocate a tensor")
        if call == self._fail_at:
            raise RuntimeError("the kernel crashed")
        state = request.observation["state"]
        if self._middle is None and call >= 0:
            self._middle = state[-1].astype(np.float64)
        middle = state[-1] if self._middle is None else self._middle
        steps = np.arange(self.spec.horizon) - self.spec.start
        seconds = request.capture_ns / 1e9 + steps / self.spec.rate_hz
        moves = np.array([0.0 if n.endswith("gripper") else self._amplitude for n in self.spec.action.names])
        actions = middle + moves * np.sin(2 * np.pi * 0.4 * (seconds - _BEGAN_NS / 1e9))[:, None]
        yield Reply(actions.astype(np.float32), self.spec.horizon)

    def close(self) -> None: ...


_BEGAN_NS = now_ns()
