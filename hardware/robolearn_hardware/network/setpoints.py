"""From targets, which come when a policy has one, to one setpoint per tick."""

from __future__ import annotations

import numpy as np


class Setpoints:
    """Moves straight towards the newest target, to be there at its effect time, and then stays there.

    It never moves faster than ``velocity`` (J,) rad/s: a target that is far away becomes a ramp, not a jump.
    """

    def __init__(self, velocity: np.ndarray) -> None:
        self._velocity = velocity
        self._now: np.ndarray | None = None
        self.gripper = np.nan

    def clear(self) -> None:
        """No target: ``step`` returns None until the next ``aim``, which starts where the arm then stands."""
        self._now = None
        self.gripper = np.nan

    def aim(self, measured: np.ndarray, target: np.ndarray, gripper: float, effect_ns: int, now_ns: int) -> None:
        """A new target (J,) rad, to be reached at ``effect_ns`` (0 or past: as soon as it can). The first one after
        ``clear`` starts from the ``measured`` positions, later ones from the last setpoint."""
        if self._now is None:
            self._now = measured.copy()
        self._from, self._from_ns = self._now.copy(), now_ns
        self._target, self._effect_ns = target, effect_ns
        if not np.isnan(gripper):
            self.gripper = gripper

    def step(self, now_ns: int, dt_s: float) -> np.ndarray | None:
        """The setpoint (J,) rad of this tick, ``dt_s`` after the last one; None without a target."""
        if self._now is None:
            return None
        if now_ns >= self._effect_ns:
            wanted = self._target
        else:
            share = (now_ns - self._from_ns) / (self._effect_ns - self._from_ns)
            wanted = self._from + (self._target - self._from) * share
        reach = self._velocity * dt_s
        self._now = self._now + np.clip(wanted - self._now, -reach, reach)
        return self._now
