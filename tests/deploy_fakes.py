"""A world and policies small enough to see through, importable by the processes that tests start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Observation, Schema, Stream, UserError
from robolearn_data.world import Step, WorldSpec

RATE_HZ = 50.0
RELATIVE = (0,)
STATE = Stream((2,), names=("step", "episode_seed"))
ACTION = Stream((2,), kind="action", names=("speed", "target"))
POLICY_SPEC = PolicySpec({"state": STATE}, ACTION, RATE_HZ, obs_horizon=2, horizon=16, action_horizon=4)


def world_spec(max_steps: int = 40) -> WorldSpec:
    return WorldSpec("fake", Schema(RATE_HZ, {"state": STATE, "action": ACTION}), max_steps)


class FakeWorld:
    """Counts its steps, and writes every action it is given to ``diary`` as raw float32."""

    def __init__(
        self, diary: Path, *, max_steps: int = 40, step_s: float = 0.0, die_at: int = -1, fail_at: int = -1
    ) -> None:
        self.spec = world_spec(max_steps)
        self._diary = open(diary, "wb", buffering=0)  # noqa: SIM115  closed in close()
        self._step_s, self._die_at, self._fail_at = step_s, die_at, fail_at
        self._seed = self._steps = self._all = 0

    def reset(self, seed: int) -> Observation:
        self._seed, self._steps = seed, 0
        return self._observe()

    def step(self, action: np.ndarray) -> Step:
        self._diary.write(ACTION.check("action", action).tobytes())
        time.sleep(self._step_s)
        if self._all == self._die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._all == self._fail_at:
            raise RuntimeError("the bus is gone")
        self._steps += 1
        self._all += 1
        last = self._steps == self.spec.max_steps
        return Step(self._observe(), score=self._steps / self.spec.max_steps, success=last, done=last)

    def render(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None:
        self._diary.close()

    def _observe(self) -> Observation:
        return {"state": np.array([self._steps, self._seed], np.float32)}


def diary_of(path: Path) -> np.ndarray:
    return np.fromfile(path, np.float32).reshape(-1, 2)


class FakePolicy:
    """Action i of a chunk is [1, world step it is meant for]."""

    spec = POLICY_SPEC

    def __init__(self, *, infer_s: float = 0.005, nan_from: int = 10**9, fail_at: int = 10**9) -> None:
        self._infer_s, self._nan_from, self._fail_at = infer_s, nan_from, fail_at
        self._calls = -3  # warm-up

    def infer(self, observation: Observation) -> np.ndarray:
        time.sleep(self._infer_s)
        assert observation["state"].shape == (2, 2)
        call, self._calls = self._calls, self._calls + 1
        if call == self._fail_at:
            raise RuntimeError("out of memory")
        step = observation["state"][-1, 0]
        target = step + np.arange(self.spec.horizon) - self.spec.start
        actions = np.stack([np.ones(self.spec.horizon), target], axis=1).astype(np.float32)
        if call >= self._nan_from:
            actions[3, 1] = np.nan
        return actions


def broken_policy() -> FakePolicy:
    raise UserError("model.safetensors is damaged; train again")
