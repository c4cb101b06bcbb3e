"""A simulated world as a page for people sees it: pictures like those of a camera, ticks like those of a servo loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.world import World, WorldSpec
from robolearn_deploy.limiter import Reason, Verdict
from robolearn_deploy.recorder import sample_fields
from robolearn_deploy.servo_process import CAUSE_BYTES
from robolearn_deploy.stall import State
from robolearn_deploy.ticker import Tick
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import Condition
from robolearn_hardware.ring import Field, Ring

VIEW = "view"
"""The camera that people look through: ``World.render``."""
LONGEST_NS = SECOND_NS // 2
"""A person sees a picture so often at least, and if a control step has to wait for it."""


def picture_fields(spec: WorldSpec, view: tuple[int, ...]) -> dict[str, dict[str, Field]]:
    """Camera -> record of its ring: the view (``view``: its shape), and the cameras that the world observes."""
    shapes = {VIEW: view, **{name: s.shape for name, s in spec.schema.of_kind("image").items()}}
    return {name: sample_fields(Stream(shape, "uint8", kind="image")) for name, shape in shapes.items()}


class Pictures:
    """Publishes them in what time the control periods leave."""

    def __init__(self, world: World, rings: Mapping[str, Ring]) -> None:
        self._world, self._rings = world, dict(rings)
        self._view = self._rings.pop(VIEW)
        self._took_ns: deque[int] = deque(maxlen=16)
        self._last_ns = 0

    def publish(self, observation: Observation, until_ns: int) -> int:
        """Of the world as it is now, where it can be drawn before ``until_ns``. Returns what that took (ns)."""
        for name, ring in self._rings.items():
            ring.publish(_sample(observation[name], now_ns()))
        began_ns = now_ns()
        expected_ns = float(np.median(self._took_ns)) if self._took_ns else 0.0
        if began_ns + expected_ns > until_ns and began_ns - self._last_ns < LONGEST_NS:
            return 0
        self._view.publish(_sample(self._world.render(), began_ns))
        self._last_ns = now_ns()
        self._took_ns.append(self._last_ns - began_ns)
        return self._took_ns[-1]


def _sample(value: np.ndarray, at_ns: int) -> dict[str, Any]:
    return {"capture_ns": at_ns, "received_ns": at_ns, "value": value}


class PageTicks:
    """Publishes what a world does as ``servo_process.tick_fields`` have it, so that one page shows rigs and worlds."""

    def __init__(self, ring: Ring, schema: Schema) -> None:
        self._ring = ring
        names, state = schema.stream("action").names, schema.stream("state").names
        self._measured = [state.index(name) if name in state else -1 for name in names]

    def publish(
        self,
        tick: Tick,
        state: State,
        cause: str,
        *,
        paused: bool,
        person: bool,
        episode: int,
        observation: Observation,
        action: np.ndarray,
        chunk: int = -1,
        chunk_capture_ns: int = 0,
        refused: int = 0,
    ) -> None:
        measured = [observation["state"][i] if i >= 0 else np.nan for i in self._measured]
        self._ring.publish(
            {
                "due_ns": tick.due_ns,
                "woke_ns": tick.woke_ns,
                "done_ns": now_ns(),
                "missed": tick.missed,
                "state": int(state),
                "cause": cause.encode()[:CAUSE_BYTES],
                "paused": paused,
                "condition": int(Condition.READY),
                "person": person,
                "at_rest": state in (State.STOPPED, State.E_STOPPED),
                "verdict": int(Verdict.OK),
                "reason": int(Reason.NONE),
                "episode": episode,
                "chunk": chunk,
                "chunk_capture_ns": chunk_capture_ns,
                "refused": refused,
                "requested": action,
                "sent": action,
                "measured": np.array(measured, np.float32),
                "target": action,
            }
        )
