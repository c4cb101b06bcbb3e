"""Joint motion: arrives, keeps every limit, and goes on without a jump wherever the target moves to."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn_hardware.devices import DeviceError, LimitError
from robolearn_hardware.limits import LIMITS, limits_of
from robolearn_hardware.motion import JointMotion, Setpoint

pytest.importorskip("ruckig")

models = st.sampled_from(sorted(LIMITS))
seeds = st.integers(0, 2**32 - 1)
speeds = st.sampled_from([0.05, 0.3, 1.0])
rates = st.sampled_from([30.0, 200.0, 1000.0])


def inside(model: str, random: np.random.Generator) -> np.ndarray:
    """Somewhere in the ranges; every third joint at an end of its own."""
    limits = limits_of(model)
    ends = random.choice([0.0, 1.0, random.uniform()], limits.joints)
    return limits.low + ends * (limits.high - limits.low)


def check(motion: JointMotion, last: Setpoint, new: Setpoint, rate_hz: float) -> None:
    """Every limit between two ticks; a jump in position, velocity or acceleration would break one of them."""
    limits, dt, tiny = motion.limits, 1 / rate_hz, 1e-6
    assert ((new.positions >= limits.low - tiny) & (new.positions <= limits.high + tiny)).all()
    assert (np.abs(new.velocities) <= motion.velocity + tiny).all()
    assert (np.abs(new.accelerations) <= motion.acceleration + tiny).all()
    assert (np.abs(new.accelerations - last.accelerations) <= motion.jerk * dt + tiny).all()
    assert (np.abs(new.velocities - last.velocities) <= motion.acceleration * dt + tiny).all()
    assert (np.abs(new.positions - last.positions) <= motion.velocity * dt + tiny).all()
    # Position is the integral of velocity, to within what acceleration can change in a tick.
    drift = new.positions - last.positions - last.velocities * dt
    assert (np.abs(drift) <= motion.acceleration * dt**2 / 2 + tiny).all()


@settings(max_examples=80, deadline=None)
@given(models, seeds, speeds, rates, st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_limits_hold_and_nothing_jumps_when_targets_change_in_mid_motion(
    model: str, seed: int, speed: float, rate: float, ticks: list[int]
) -> None:
    random = np.random.default_rng(seed)
    motion = JointMotion(limits_of(model), rate, speed=speed)
    start = inside(model, random)
    motion.begin(start)
    last = Setpoint(start, np.zeros_like(start), np.zeros_like(start))
    for count in ticks:
        target, stopping = inside(model, random), random.uniform() < 0.2
        for _ in range(count):
            new = motion.stop() if stopping else motion.update(target)
            check(motion, last, new, rate)
            last = new


@settings(max_examples=40, deadline=None)
@given(models, seeds, speeds)
def test_a_plan_arrives_at_rest_within_every_limit_and_no_sooner_than_speed_allows(
    model: str, seed: int, speed: float
) -> None:
    random = np.random.default_rng(seed)
    motion = JointMotion(limits_of(model), 50, speed=speed)
    start, goal = inside(model, random), inside(model, random)
    plan = motion.plan(start, goal)
    assert plan.duration_s >= np.max(np.abs(goal - start) / motion.velocity) - 1e-9
    last = plan.at(0)
    np.testing.assert_allclose(last.positions, start, atol=1e-9)
    for new in plan.ticks(50):
        check(motion, last, new, 50)
        last = new
    np.testing.assert_allclose(last.positions, goal, atol=1e-6)
    np.testing.assert_allclose(last.velocities, 0, atol=1e-6)
    np.testing.assert_array_equal(plan.at(plan.duration_s + 9).positions, plan.at(plan.duration_s).positions)


def test_updates_arrive_when_the_plan_does() -> None:
    motion = JointMotion(limits_of("fer"), 100, speed=0.5)
    start = np.array([0, -0.5, 0, -2.0, 0, 1.6, 0.7])
    goal = start + 0.3
    motion.begin(start)
    setpoint, ticks = motion.update(goal), 1
    while not motion.arrived:
        setpoint, ticks = motion.update(goal), ticks + 1
    np.testing.assert_allclose(setpoint.positions, goal, atol=1e-9)
    assert ticks == pytest.approx(100 * motion.plan(start, goal).duration_s, abs=2)


def test_stop_comes_to_rest_before_the_target() -> None:
    motion = JointMotion(limits_of("ur5e"), 500)
    motion.begin(np.zeros(6))
    for _ in range(200):
        motion.update(np.full(6, 3.0))
    setpoint = motion.stop()
    while not motion.arrived:
        setpoint = motion.stop()
    np.testing.assert_allclose(setpoint.velocities, 0, atol=1e-9)
    assert (setpoint.positions < 2.0).all()


def test_a_refused_target_leaves_the_motion_as_it_was() -> None:
    one, other = (JointMotion(limits_of("so101"), 100) for _ in range(2))
    for motion in (one, other):
        motion.begin(np.zeros(5))
        motion.update(np.full(5, 0.5))
    for bad in (np.full(5, np.nan), np.full(5, 9.0), np.zeros(6)):
        with pytest.raises(LimitError):
            one.update(bad)
    np.testing.assert_array_equal(one.update(np.full(5, 0.5)).positions, other.update(np.full(5, 0.5)).positions)


def test_an_arm_that_stands_past_a_limit_is_led_back() -> None:
    limits = limits_of("so101")
    motion = JointMotion(limits, 100)
    motion.begin(limits.high + 0.1)
    setpoint = motion.update(limits.high)
    while not motion.arrived:
        setpoint = motion.update(limits.high)
    np.testing.assert_allclose(setpoint.positions, limits.high, atol=1e-6)


def test_mistakes_are_errors_that_say_what_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = limits_of("so101")
    with pytest.raises(DeviceError, match="speed must lie above 0 and up to 1"):
        JointMotion(limits, 100, speed=1.5)
    with pytest.raises(DeviceError, match="call begin"):
        JointMotion(limits, 100).update(np.zeros(5))

    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(DeviceError, match=r"pip install 'robolearn\[kinematics\]'"):
        JointMotion(limits, 100)
