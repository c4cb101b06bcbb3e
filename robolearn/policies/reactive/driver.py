"""Control steps of a simulated world in which the fast half acts: for evaluation, in step with the world's own time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from robolearn.policies.reactive.decoder import FastDecoder
from robolearn_data.schema import Observation
from robolearn_data.world import Step, World, action_since, fast_world, way_of

if TYPE_CHECKING:
    from robolearn.policies.policy import Policy


class FastDriver:
    """Takes the control steps of one world, with a decision of the fast half in each of their fast periods."""

    def __init__(self, policy: Policy, world: World) -> None:
        """Raises FastWorldError: the world's control steps have no such fast periods."""
        self._decoder = FastDecoder(policy)
        self._world = fast_world(world, self._decoder.ticks)
        assert policy.spec.fast is not None
        self._streams = list(policy.spec.fast.observation)

    def begin(self, observation: Observation) -> None:
        """An episode begins with ``observation``."""
        self._decoder.begin()
        self._decoder.feel({name: observation[name].reshape(-1, observation[name].shape[-1]) for name in self._streams})

    def step(self, chunk: int, rows: np.ndarray, index: int) -> tuple[Step, np.ndarray]:
        """One control step, which begins at the time of row ``index`` of ``rows`` (T, W), the chunk of that number.
        Returns what it led to, and the action (A,) that was made."""
        before = self._world.commanded
        for tick in range(self._decoder.ticks):
            [action] = self._decoder.act(chunk, rows, index * self._decoder.ticks + tick)
            instant = self._world.advance(self._world.commanded + way_of(self._world, action) / self._decoder.ticks)
            self._decoder.feel({name: np.asarray(instant.readings[name]) for name in self._streams})
        return self._world.finish(), action_since(self._world, before)
