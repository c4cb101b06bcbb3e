"""A follower joins its leader slowly, follows it within its limits, and comes to rest when the leader is let go."""

from __future__ import annotations

import numpy as np
import pytest

from robolearn_hardware.devices import (
    ArmInfo,
    ArmState,
    Condition,
    DeviceError,
    Intent,
    JointLimits,
    LimitError,
    NotReadyError,
)
from robolearn_hardware.mirror import NEAR_RAD, Mirror, Phase
from robolearn_hardware.motion import RAMP_S

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")

RATE_HZ = 100.0
LIMITS = JointLimits(*(np.full(3, v) for v in (-2.0, 2.0, 3.0, 30.0, 600.0)))


class Leader:
    """What the test's hand does."""

    def __init__(self) -> None:
        self.positions, self.enabled, self.gripper = np.array([1.5, -1.0, 0.5]), True, 0.3

    def connect(self) -> None: ...

    def read(self) -> Intent:
        return Intent(0, self.enabled, self.positions, gripper=self.gripper)

    def close(self) -> None: ...


class Follower:
    """Stands at each tick where the tick before told it to, and keeps all that it was told."""

    def __init__(self) -> None:
        self.info = ArmInfo("follower", "test", ("a", "b", "c"), LIMITS, True, RATE_HZ)
        self.told = [np.zeros(3)]
        self.gripper = np.nan
        self.condition = Condition.READY

    def state(self) -> ArmState:
        return ArmState(0, 0, self.condition, self.told[-1], np.zeros(3), np.zeros(3))

    def command(self, positions: np.ndarray, gripper: float | None = None, *, effect_ns: int = 0) -> None:
        self.told.append(LIMITS.check("follower", positions))
        self.gripper = np.nan if gripper is None else gripper

    def connect(self) -> None: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    def recover(self) -> None: ...
    def close(self) -> None: ...


def derivatives(follower: Follower) -> tuple[float, float]:
    """Greatest velocity and acceleration of what it was told."""
    told = np.array(follower.told)
    velocity = np.diff(told, axis=0) * RATE_HZ
    return float(np.abs(velocity).max()), float(np.abs(np.diff(velocity, axis=0)).max() * RATE_HZ)


def test_it_joins_slowly_then_follows_as_fast_as_the_leader_and_never_leaves_its_limits() -> None:
    leader, follower = Leader(), Follower()
    mirror = Mirror(leader, follower, RATE_HZ, join_speed=0.2)
    phases = [mirror.tick().phase for _ in range(500)]
    assert phases[0] is Phase.JOINING
    assert phases[-1] is Phase.FOLLOWING
    joining = phases.index(Phase.FOLLOWING)
    assert derivatives(follower)[0] <= 0.2 * 3.0 + 1e-6, "it joins at a fifth of its speed"
    assert joining > 1.5 / (0.2 * 3.0) * RATE_HZ * 0.9
    assert np.abs(follower.told[-1] - leader.positions).max() < 1e-6
    assert follower.gripper == 0.3

    rng = np.random.default_rng(0)
    for _ in range(300):  # a leader that is shaken, and thrown beyond what the follower can reach
        leader.positions = rng.uniform(-4, 4, 3)
        mirror.tick()
    speed, acceleration = derivatives(follower)
    assert speed <= 3.0 + 1e-6
    assert acceleration <= 30.0 * (1 + 1e-6)
    assert np.abs(follower.told).max() <= 2.0

    path = np.sin(np.arange(400) / RATE_HZ)[:, None] * [1.0, 0.5, -0.5]
    errors = []
    for leader.positions in path:
        tick = mirror.tick()
        errors.append(np.abs(tick.sent - tick.requested).max())
    assert max(errors[200:]) < 1.0 * 2 * RAMP_S, "it lags by less than its ramps"


def test_at_the_edge_of_its_workspace_it_stops_and_comes_back_with_its_leader() -> None:
    leader, follower = Leader(), Follower()

    def command(positions: np.ndarray, gripper: float | None = None, *, effect_ns: int = 0) -> None:
        if positions[0] > 1.0:
            raise LimitError("follower: outside the workspace")
        follower.told.append(positions)

    follower.command = command
    mirror = Mirror(leader, follower, RATE_HZ)
    phases = [mirror.tick().phase for _ in range(400)]
    assert phases[-1] is Phase.BLOCKED
    assert 0.95 < follower.told[-1][0] <= 1.0
    leader.positions = np.array([0.5, -1.0, 0.5])
    before = len(follower.told)
    while mirror.tick().phase is not Phase.FOLLOWING:
        assert len(follower.told) < before + 500
    assert np.abs(follower.told[-1] - leader.positions).max() < NEAR_RAD
    assert np.abs(np.diff(follower.told[before - 1 :], axis=0)).max() * RATE_HZ <= 0.25 * 3.0 + 1e-6


def test_a_leader_that_is_let_go_brings_it_to_rest_and_is_joined_slowly_again() -> None:
    leader, follower = Leader(), Follower()
    mirror = Mirror(leader, follower, RATE_HZ)
    while mirror.tick().phase is not Phase.FOLLOWING:
        pass
    leader.positions = np.array([-1.5, 1.0, -0.5])
    for _ in range(20):
        mirror.tick()
    leader.enabled = False
    assert {mirror.tick().phase for _ in range(100)} == {Phase.HOLDING}
    assert follower.told[-1] == pytest.approx(follower.told[-20], abs=1e-9), "it rests"
    assert np.abs(follower.told[-1] - leader.positions).max() > NEAR_RAD
    leader.enabled = True
    before = len(follower.told)
    assert mirror.tick().phase is Phase.JOINING
    while mirror.tick().phase is Phase.JOINING:
        pass
    assert np.abs(np.diff(follower.told[before:], axis=0)).max() * RATE_HZ <= 0.25 * 3.0 + 1e-6
    assert derivatives(follower)[1] <= 30.0 * (1 + 1e-6)


def test_it_stops_on_demand_and_says_what_is_wrong() -> None:
    leader, follower = Leader(), Follower()
    mirror = Mirror(leader, follower, RATE_HZ)
    for _ in range(50):
        mirror.tick()
    while not mirror.stop():
        pass
    assert derivatives(follower)[1] <= 30.0
    follower.condition = Condition.PROTECTIVE_STOP
    told = len(follower.told)
    with pytest.raises(NotReadyError, match="follower does not move any more: protective stop"):
        mirror.tick()
    assert len(follower.told) == told
    follower.condition = Condition.READY
    leader.positions = np.array([0.0, np.nan, 0.0])
    with pytest.raises(DeviceError, match="the leader of follower gives NaN"):
        mirror.tick()
    leader.positions = np.zeros(6)
    with pytest.raises(DeviceError, match="has 3 joints and its leader 6"):
        Mirror(leader, follower, RATE_HZ)
