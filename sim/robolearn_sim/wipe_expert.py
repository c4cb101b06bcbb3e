"""Scripted expert for the world "wipe": it knows the line and feels the board. Vectors are in the base frame, m."""

from __future__ import annotations

import numpy as np

from robolearn_data.schema import Observation
from robolearn_sim.wipe import BAND_N, TOOL_STIFFNESS

WANTED_N = 6.0
GAIN = 0.5
"""Of the way that would mend the force at the tool's stiffness, how much in a control step."""
TOUCH_N = 2.0


class WipeExpert:
    """Goes over the line, comes down until it feels the board, then keeps the force by moving up and down, and goes on
    along the line as long as the force is right."""

    noise_shape = np.array([0.01, 0.01, 0.005])

    def __init__(self, *, relative: bool = False) -> None:
        """``relative``: for the world with relative actions."""
        self._relative = relative

    def reset(self, rng: np.random.Generator) -> None:
        self.touched = False
        """Whether the board has been felt."""
        self.height: float | None = None
        """Of the tip, as told last, m."""
        self._speed_m = rng.uniform(0.004, 0.006)
        self._down_m = rng.uniform(0.0015, 0.0025)
        """In a control step."""

    def act(self, observation: Observation) -> np.ndarray:
        tool = observation["state"][:3].astype(np.float64)
        before = np.array([*tool[:2], tool[2] if self.height is None else self.height])
        action = self._target(observation)
        return action - before if self._relative else action

    def _target(self, observation: Observation) -> np.ndarray:
        """Where the tip shall be."""
        state = observation["state"].astype(np.float64)
        tool, way = state[:3], state[3:5]
        force = float(observation["wrench"][-5:, 2].mean())
        z = float(tool[2]) if self.height is None else self.height
        left = float(np.hypot(*way))
        if force > TOUCH_N:
            self.touched = True
        if not self.touched:
            if left < 0.006:
                z -= self._down_m
            onward = tool[:2] + way * min(1.0, 0.015 / max(left, 1e-9))
            self.height = z
            return np.array([*onward, z])
        self.height = z + np.clip(GAIN * (force - WANTED_N) / TOOL_STIFFNESS, -0.003, 0.006)
        right = BAND_N[0] <= force <= BAND_N[1]
        onward = tool[:2] + way * min(1.0, self._speed_m / max(left, 1e-9)) * right
        return np.array([*onward, self.height])
