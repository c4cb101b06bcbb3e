"""A world and policies small enough to see through, importable by the processes that tests start."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Observation, Schema, Stream, UserError, read_text
from robolearn_data.world import Step, WorldSpec
from robolearn_deploy.inference import Reply, Request
from robolearn_deploy.policy_process import WARM_UP

RATE_HZ = 50.0
RELATIVE = (0,)
STATE = Stream((2,), names=("step", "episode_seed"))
ACTION = Stream((2,), kind="action", names=("speed", "target"))
POLICY_SPEC = PolicySpec({"state": STATE}, ACTION, RATE_HZ, obs_horizon=2, horizon=16, action_horizon=4)

TEXT_SPEC = replace(POLICY_SPEC, observation={"state": STATE, "task": Stream((64,), "uint8", "text")})


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

    def __init__(
        self,
        *,
        infer_s: float = 0.005,
        nan_from: int = 10**9,
        fail_at: int = 10**9,
        timeout_every: int = 10**9,
        part: int = 0,
        requests: Path | None = None,
        instructed: bool = False,
    ) -> None:
        """
        Args:
            timeout_every: of so many requests one is not answered.
            part: of each chunk so many actions are given at once, the whole after ``infer_s``.
            requests: a line of JSON is written here for each request.
            instructed: it observes a text too.
        """
        self.spec = TEXT_SPEC if instructed else POLICY_SPEC
        self._infer_s, self._nan_from, self._fail_at, self._part = infer_s, nan_from, fail_at, part
        self._timeout_every, self._requests = timeout_every, requests
        self._calls = -WARM_UP

    def infer(self, request: Request) -> Iterator[Reply]:
        observation = request.observation
        assert observation["state"].shape == (2, 2)
        call, self._calls = self._calls, self._calls + 1
        step = observation["state"][-1, 0]
        target = step + np.arange(self.spec.horizon) - self.spec.start
        actions = np.stack([np.ones(self.spec.horizon), target], axis=1).astype(np.float32)
        if self._requests and call >= 0:
            self._write(self._requests, request)
        if self._part and call >= 0:
            yield Reply(actions, self._part)
        time.sleep(self._infer_s)
        if call == self._fail_at:
            raise RuntimeError("out of memory")
        if call >= 0 and call % self._timeout_every == self._timeout_every - 1:
            raise TimeoutError
        if call >= self._nan_from:
            actions[3, 1] = np.nan
        yield Reply(actions, len(actions))

    def close(self) -> None: ...

    def _write(self, path: Path, request: Request) -> None:
        c = request.committed
        committed = None if c is None else {"actions": c.actions.tolist(), "delay": c.delay, "execute": c.execute}
        text = read_text(request.observation["task"][-1]) if "task" in request.observation else ""
        line = {"capture_ns": request.capture_ns, "sequence": request.sequence, "text": text, "committed": committed}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def requests_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def broken_policy() -> FakePolicy:
    raise UserError("model.safetensors is damaged; train again")
