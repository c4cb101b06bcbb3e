"""A follower arm does what its leader does: joins it slowly, follows within its limits, holds when it is let go."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import (
    Arm,
    ArmState,
    Condition,
    DeviceError,
    ForceReflecting,
    Intent,
    LimitError,
    NotReadyError,
    Teleoperator,
)
from robolearn_hardware.motion import JointMotion, Setpoint

NEAR_RAD = 0.05
"""Within this of the leader, in every joint, the follower has joined it."""

_MOVABLE = (Condition.READY, Condition.DEGRADED)


class Phase(Enum):
    JOINING = "joining the leader"
    FOLLOWING = "following"
    HOLDING = "holding: the leader is not enabled"
    BLOCKED = "stopped where its limits or its workspace end"


@dataclass(frozen=True, eq=False)
class MirrorTick:
    """What happened in one tick."""

    phase: Phase
    requested: np.ndarray
    """(J,) rad, the leader's, moved into the follower's limits"""
    sent: np.ndarray
    """(J,) rad"""
    measured: ArmState
    intent: Intent
    took_ns: int
    """Reading both arms and writing one."""

    @property
    def said(self) -> str:
        return self.phase.value


class Mirror:
    """One leader and one follower, both connected, of the same joints. Call ``tick`` at ``rate_hz``."""

    def __init__(self, leader: Teleoperator, follower: Arm, rate_hz: float, *, join_speed: float = 0.25) -> None:
        """``join_speed``: share of the follower's velocity limit, until it has joined the leader.

        Raises:
            DeviceError: the leader gives no joints, or not as many as the follower has.
        """
        self._leader, self._follower = leader, follower
        limits = follower.info.limits
        self._slow = JointMotion(limits, rate_hz, speed=join_speed)
        self._fast = JointMotion(limits, rate_hz)
        state = follower.state()
        _wanted(leader.read(), limits.joints, follower.info.name)
        self._motion = self._slow
        self._stopping = False
        self._slow.begin(state.positions)
        self._sent = np.clip(state.positions, limits.low, limits.high)

    def tick(self) -> MirrorTick:
        """Read both, move the follower by one tick.

        Raises:
            NotReadyError: the follower has stopped by itself.
            DeviceGoneError: one of them is gone. ``stop`` brings the follower to rest.
        """
        begun = now_ns()
        intent = self._leader.read()
        state = self._follower.state()
        if state.condition not in _MOVABLE:
            name = state.condition.name.lower().replace("_", " ")
            raise NotReadyError(f"{self._follower.info.name} does not move any more: {name}; clear it and start again")
        limits = self._follower.info.limits
        wanted = np.clip(_wanted(intent, limits.joints, self._follower.info.name), limits.low, limits.high)
        phase, setpoint = self._next(intent, wanted)
        sent = np.clip(setpoint.positions, limits.low, limits.high)
        try:
            self._follower.command(sent, None if np.isnan(intent.gripper) else intent.gripper)
            self._sent = sent
        except LimitError:  # it keeps its last target, and goes on from there when the leader comes back
            phase, self._motion, self._stopping = Phase.BLOCKED, self._slow, False
            self._slow.begin(self._sent)
        if phase in (Phase.FOLLOWING, Phase.BLOCKED) and isinstance(self._leader, ForceReflecting):
            self._leader.feel(state.positions - _wanted(intent, limits.joints, self._follower.info.name))
        return MirrorTick(phase, wanted, self._sent, state, intent, now_ns() - begun)

    def stop(self) -> bool:
        """One tick on the way to rest; whether it rests."""
        setpoint = self._motion.stop()
        limits = self._follower.info.limits
        self._sent = np.clip(setpoint.positions, limits.low, limits.high)
        self._follower.command(self._sent)
        return self._motion.arrived

    def _next(self, intent: Intent, wanted: np.ndarray) -> tuple[Phase, Setpoint]:
        if not intent.enabled:
            self._stopping = True  # and join it again when it comes back: it may be elsewhere by then
            return Phase.HOLDING, self._come_to_rest()
        if self._stopping:
            return Phase.JOINING, self._come_to_rest(then=self._slow)
        if self._motion is self._slow and np.abs(wanted - self._sent).max() < NEAR_RAD:
            setpoint = self._come_to_rest(then=self._fast)
            return Phase.JOINING, setpoint
        return Phase.JOINING if self._motion is self._slow else Phase.FOLLOWING, self._motion.update(wanted)

    def _come_to_rest(self, then: JointMotion | None = None) -> Setpoint:
        """Each of the two motions begins at rest."""
        setpoint = self._motion.stop()
        if then and self._motion.arrived:
            self._motion, self._stopping = then, False
            then.begin(setpoint.positions)
        return setpoint


def _wanted(intent: Intent, joints: int, name: str) -> np.ndarray:
    if intent.positions is None:
        raise DeviceError(f"{name} can only follow a leader arm; this teleoperator gives no joint positions")
    if intent.positions.shape != (joints,):
        raise DeviceError(f"{name} has {joints} joints and its leader {len(intent.positions)}; they must be of a kind")
    if not np.isfinite(intent.positions).all():
        raise DeviceError(f"the leader of {name} gives NaN; is it calibrated?")
    return intent.positions
