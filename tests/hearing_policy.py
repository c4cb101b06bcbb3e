"""A policy that stays where it is and writes down what it is told; importable by the processes that tests start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import UserError, read_text
from robolearn_deploy.inference import Reply, Request
from robolearn_sim.worlds import world_spec

WORLD = "so101_language"
_SCHEMA = world_spec(WORLD).schema
SPEC = PolicySpec(
    {name: _SCHEMA.streams[name] for name in ("state", "instruction")},
    _SCHEMA.stream("action"),
    _SCHEMA.rate_hz,
    obs_horizon=1,
    horizon=8,
    action_horizon=4,
)


class HearingPolicy:
    def __init__(self, heard: Path) -> None:
        self.spec, self._heard = SPEC, heard

    def infer(self, request: Request) -> Iterator[Reply]:
        state, text = request.observation["state"][-1], read_text(request.observation["instruction"][-1])
        with self._heard.open("a") as file:
            file.write(json.dumps({"capture_ns": request.capture_ns, "text": text}) + "\n")
        yield Reply(np.repeat(state[None], SPEC.horizon, axis=0), SPEC.horizon)

    def close(self) -> None: ...


def at_most_ten(text: str) -> None:
    """An ``instructions.Check``."""
    if len(text) > 10:
        raise UserError(f"the instruction {text!r} has {len(text)} letters, the policy takes 10: say it shorter")
