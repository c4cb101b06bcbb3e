"""The continuous trajectory through chunks of timed actions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, Slerp

from robolearn_data.schema import SchemaError, Stream
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.trajectory import Spaces, Trajectory
from robolearn_hardware.motion import Setpoint

MS = 1_000_000
SECOND = 1000 * MS
PERIOD = 50 * MS
POSITIONS = Spaces(2)
ARM = Spaces(9, angles=(2,), quaternions=(3,), grippers=(7,), velocities=(8,))


def chunk(actions, sequence=0, *, start=SECOND, period=PERIOD, episode=0, expiry=None, times=None):
    actions = np.asarray(actions, np.float64)
    times = start + np.arange(len(actions), dtype=np.int64) * period if times is None else np.array(times, np.int64)
    expiry = int(times[-1]) + period if expiry is None else expiry
    return Chunk(sequence, episode, int(times[0]), times, actions, expiry)


def trajectory(spaces=POSITIONS, at=None, blend_s=0.1, horizon=64):
    made = Trajectory(spaces, horizon, PERIOD, blend_s=blend_s)
    made.begin(0, np.zeros(spaces.size) if at is None else at)
    return made


def copied(setpoint):
    return Setpoint(*(x.copy() for x in setpoint))


def arm_action(position=0.0, angle=0.0, rotation=None, gripper=0.5, change=0.0):
    x, y, z, w = (rotation or Rotation.identity()).as_quat()
    return np.array([position, -position, angle, w, x, y, z, gripper, change])


def test_a_position_is_the_cubic_spline_that_is_natural_at_its_beginning_and_at_rest_at_its_end():
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(12, 2))
    plan = trajectory(at=actions[0])
    assert plan.offer(chunk(actions), 0)
    t = np.arange(12) * 0.05
    ends: Any = ((2, np.zeros(2)), (1, np.zeros(2)))
    expected = CubicSpline(t, actions, bc_type=ends)
    plan.at(SECOND)
    for at in np.linspace(0.1, 0.5499, 200):  # after the blend
        now = plan.at(SECOND + round(at * 1e9))
        for order in range(3):
            np.testing.assert_allclose(now[order], expected(round(at * 1e9) / 1e9, order), rtol=1e-9, atol=1e-7)
    end = plan.at(2 * SECOND)
    np.testing.assert_allclose(end.positions, actions[-1])
    assert not end.velocities.any()
    assert not end.accelerations.any()


def test_unevenly_spaced_actions_are_met_at_their_times():
    times = SECOND + np.array([0, 20, 90, 100, 300]) * MS
    actions = np.random.default_rng(1).normal(size=(5, 2))
    plan = trajectory(at=actions[0], blend_s=0.001)
    plan.offer(chunk(actions, times=times), 0)
    plan.at(SECOND)
    for time, action in zip(times, actions, strict=True):
        np.testing.assert_allclose(plan.at(int(time)).positions, action, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_joins_of_random_chunks_are_continuous_in_position_velocity_and_acceleration(seed):
    rng = np.random.default_rng(seed)
    plan = trajectory(at=rng.normal(size=2))
    now, step = SECOND, 10_000  # 10 us
    last = copied(plan.at(now))
    for sequence in range(4):
        actions = rng.normal(size=(int(rng.integers(1, 12)), 2))
        start = now - int(rng.integers(0, 300)) * MS
        plan.offer(chunk(actions, sequence, start=start, expiry=now + SECOND), now)
        joined = copied(plan.at(now))
        np.testing.assert_allclose(joined.positions, last.positions, atol=1e-9)
        np.testing.assert_allclose(joined.velocities, last.velocities, atol=1e-8)
        np.testing.assert_allclose(joined.accelerations, last.accelerations, atol=1e-6)
        # What is said to be the velocity is the derivative of what is said to be the position.
        after = copied(plan.at(now + step))
        rate = (after.positions - joined.positions) / (step / 1e9)
        np.testing.assert_allclose(rate, joined.velocities, atol=0.1 + 0.01 * np.abs(joined.accelerations).max())
        now += int(rng.integers(1, 200)) * MS
        last = copied(plan.at(now))


def test_a_new_chunk_is_reached_within_the_blend_time():
    plan = trajectory(blend_s=0.15)
    actions = np.cumsum(np.random.default_rng(2).normal(size=(20, 2)), axis=0)
    plan.offer(chunk(actions[:10]), 0)
    plan.at(SECOND + 200 * MS)
    plan.offer(chunk(actions[5:], 1, start=SECOND + 100 * MS), 0)
    join = SECOND + 210 * MS
    plan.at(join)
    fresh = trajectory(at=actions[5], blend_s=0.001)
    fresh.offer(chunk(actions[5:], 1, start=SECOND + 100 * MS), 0)
    fresh.at(SECOND + 100 * MS)
    during = np.abs(plan.at(join + 100 * MS).positions - fresh.at(join + 100 * MS).positions).max()
    after = join + 150 * MS
    np.testing.assert_allclose(plan.at(after), fresh.at(after), atol=1e-9)
    assert during > 1e-3


def test_a_late_chunk_loses_its_past_actions_and_shifts_no_other():
    actions = np.linspace([0, 0], [1, 2], 11)
    plan = trajectory(blend_s=0.001)
    assert plan.offer(chunk(actions), SECOND + 225 * MS)
    plan.at(SECOND + 225 * MS)
    np.testing.assert_allclose(plan.at(SECOND + 250 * MS).positions, actions[5], atol=1e-12)


def test_a_chunk_of_the_future_waits_for_its_first_action():
    plan = trajectory(at=[3.0, 3.0])
    plan.offer(chunk([[0, 0], [1, 1]], start=2 * SECOND), SECOND)
    np.testing.assert_array_equal(plan.at(2 * SECOND - 1).positions, [3.0, 3.0])
    assert plan.sequence == -1
    np.testing.assert_allclose(plan.at(2 * SECOND).positions, [3.0, 3.0])
    assert plan.sequence == 0


def test_actions_from_the_expiry_on_are_not_carried_out():
    actions = np.linspace([0, 0], [1, 1], 11)
    plan = trajectory()
    plan.offer(chunk(actions, expiry=SECOND + 210 * MS), 0)
    plan.at(SECOND)
    end = plan.at(SECOND + 500 * MS)
    np.testing.assert_allclose(end.positions, actions[4])
    assert not end.velocities.any()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (chunk([[np.nan, 0]], 8), "non_finite"),
        (chunk([[0, 0], [np.inf, 0]], 8), "non_finite"),
        (chunk([[1, 1]], 7), "reordered"),
        (chunk([[1, 1]], 3), "reordered"),
        (chunk([[1, 1]], 8, episode=1), "foreign"),
        (chunk([[1, 1]], 8, expiry=SECOND), "late"),
        (chunk([[1, 1]], 8, start=3 * SECOND, expiry=2 * SECOND), "late"),
        (chunk([[1, 1, 1]], 8), "malformed"),
        (chunk([1, 1], 8), "malformed"),
        (chunk(np.zeros((65, 2)), 8), "malformed"),
        (Chunk(8, 0, 0, np.zeros(0, np.int64), np.zeros((0, 2)), 9 * SECOND), "malformed"),
        (chunk([[1, 1]] * 2, 8, times=[SECOND, SECOND]), "malformed"),
        (chunk([[1, 1]] * 2, 8, times=[SECOND, SECOND - 1]), "malformed"),
    ],
)
def test_a_chunk_that_is_of_no_use_is_counted_and_changes_nothing(bad, reason):
    plan = trajectory()
    plan.offer(chunk([[0, 0], [1, 1]], 7, expiry=4 * SECOND), SECOND)
    before = copied(plan.at(SECOND + 20 * MS))
    assert not plan.offer(bad, SECOND + 20 * MS)
    assert getattr(plan.refusals, reason) == 1
    assert sum(vars(plan.refusals).values()) == 1
    np.testing.assert_array_equal(plan.at(SECOND + 20 * MS), before)
    assert plan.sequence == 7


def test_a_quaternion_that_is_none_is_refused():
    plan = trajectory(ARM, arm_action())
    assert not plan.offer(chunk([arm_action(), np.zeros(9)]), 0)
    assert plan.refusals.malformed == 1


def test_orientation_is_slerp_of_unit_length_by_the_short_way():
    rng = np.random.default_rng(3)
    turns = Rotation.from_quat(rng.normal(size=(8, 4)))
    actions = np.array([arm_action(rotation=r) * rng.choice([-1, 1]) for r in turns])  # either sign of a quaternion
    actions[:, 7:] = 0.5
    plan = trajectory(ARM, arm_action(rotation=turns[0]), blend_s=0.001)
    plan.offer(chunk(actions), 0)
    plan.at(SECOND)
    expected = Slerp(np.arange(8) * 0.05, turns)
    for t in np.linspace(0.002, 0.349, 150):
        now = plan.at(SECOND + round(t * 1e9))
        q = now.positions[3:7]
        assert np.linalg.norm(q) == pytest.approx(1, abs=1e-12)
        off = (Rotation.from_quat(q[[1, 2, 3, 0]]).inv() * expected(t)).magnitude()
        assert off < 1e-6


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_orientation_joins_without_a_jump_in_angle_or_angular_velocity(seed):
    rng = np.random.default_rng(seed)
    plan = trajectory(ARM, arm_action())
    now, h = SECOND, 2000
    for sequence in range(3):
        turns = list(Rotation.from_quat(rng.normal(size=(6, 4))))
        q0 = copied(plan.at(now)).positions[3:7]
        omega0 = plan.angular_velocities[0].copy()
        start = now - int(rng.integers(0, 150)) * MS
        plan.offer(chunk([arm_action(rotation=r) for r in turns], sequence, start=start, expiry=now + SECOND), now)
        q1 = copied(plan.at(now)).positions[3:7]
        omega1 = plan.angular_velocities[0].copy()
        assert min(np.abs(q1 - q0).max(), np.abs(q1 + q0).max()) < 1e-9
        np.testing.assert_allclose(omega1, omega0, atol=1e-6)
        q2 = copied(plan.at(now + h)).positions[3:7]
        moved = Rotation.from_quat(q2[[1, 2, 3, 0]]) * Rotation.from_quat(q1[[1, 2, 3, 0]]).inv()
        # 2 us on; the greatest angular acceleration of a blend of 0.1 s is some thousand rad/s^2
        np.testing.assert_allclose(moved.as_rotvec() / (h / 1e9), omega1, atol=0.05 + 0.001 * np.abs(omega1).max())
        now += int(rng.integers(1, 150)) * MS
        assert np.linalg.norm(plan.at(now).positions[3:7]) == pytest.approx(1, abs=1e-12)


def test_an_angle_takes_the_short_way_and_counts_its_turns():
    plan = trajectory(ARM, arm_action(angle=3.0), blend_s=0.01)
    plan.offer(chunk([arm_action(angle=a) for a in (3.0, 3.1, -3.1, -3.0)]), 0)
    seen = [plan.at(SECOND + t * MS).positions[2] for t in range(0, 300, 5)]
    assert np.abs(np.diff(seen)).max() < 0.05
    assert seen[-1] == pytest.approx(2 * np.pi - 3.0)
    plan.offer(chunk([arm_action(angle=-3.0)], 1, start=2 * SECOND), 0)
    assert plan.at(3 * SECOND).positions[2] == pytest.approx(2 * np.pi - 3.0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=10), st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=10))
def test_a_gripper_is_linear_and_never_leaves_the_range_of_what_it_is_between(first, second):
    plan = trajectory(ARM, arm_action(gripper=0.5))
    plan.offer(chunk([arm_action(gripper=g) for g in first]), 0)
    told = np.clip([0.5, *first, *second], 0, 1)
    seen = [plan.at(SECOND + t * MS).positions[7] for t in range(0, 130, 7)]
    plan.offer(chunk([arm_action(gripper=g) for g in second], 1, start=SECOND + 40 * MS, expiry=9 * SECOND), 0)
    seen += [plan.at(SECOND + t * MS).positions[7] for t in range(130, 1000, 7)]
    assert told.min() - 1e-12 <= min(seen)
    assert max(seen) <= told.max() + 1e-12


def test_changes_per_period_are_held_and_fall_to_zero_at_the_expiry():
    plan = trajectory(ARM, arm_action())
    plan.offer(chunk([arm_action(change=c) for c in (0.1, 0.2, 0.4)]), 0)  # the expiry is a period after the last
    for ms, value in ((0, 0.1), (49, 0.1), (50, 0.2), (99, 0.2), (100, 0.4), (125, 0.2), (150, 0.0), (400, 0.0)):
        now = plan.at(SECOND + ms * MS)
        assert now.positions[8] == pytest.approx(value)
        assert now.velocities[8] == pytest.approx(value / 0.05)


def test_a_restart_goes_on_from_where_the_arm_is():
    plan = trajectory(at=[5.0, 5.0])
    plan.offer(chunk(np.linspace([0, 0], [1, 1], 11), expiry=9 * SECOND), 0)
    plan.at(SECOND + 100 * MS)
    where = Setpoint(np.array([0.3, 0.1]), np.array([0.5, -0.5]), np.array([1.0, 2.0]))
    plan.restart(SECOND + 200 * MS, where)
    np.testing.assert_allclose(plan.at(SECOND + 200 * MS), where, atol=1e-12)
    np.testing.assert_allclose(plan.at(3 * SECOND).positions, [1, 1])


def test_distance_is_that_of_the_newest_plan_itself():
    plan = trajectory(ARM, arm_action(position=9.0))
    turn = Rotation.from_rotvec([0, 0, 0.4])
    plan.offer(chunk([arm_action(position=0.1, angle=0.1, rotation=turn, gripper=1.0, change=9.0)]), 0)
    there = arm_action(position=0.1, angle=0.1 + 2 * np.pi, rotation=turn, gripper=0.0)
    assert plan.distance(SECOND, there) == pytest.approx(0, abs=1e-7)
    assert plan.distance(SECOND, arm_action(position=0.1, angle=0.1)) == pytest.approx(0.4)
    assert plan.distance(SECOND, arm_action(position=0.6, angle=0.1, rotation=turn)) == pytest.approx(0.5)


def test_the_spaces_are_read_from_the_stream():
    names = ("x", "y", "yaw", "gripper")
    stream = Stream((4,), "float32", "action", names=names, wraps=(2,), relative=(0, 1))
    assert Spaces.of(stream) == Spaces(4, velocities=(0, 1), angles=(2,), grippers=(3,))
    assert Spaces.of(Stream((4,), "float32", "action", interpolation="quaternion")).quaternions == (0,)
    with pytest.raises(SchemaError, match="twice"):
        Spaces.of(stream, quaternions=(0,))
    with pytest.raises(SchemaError, match="vectors"):
        Spaces.of(Stream((2, 2), "float32", "action"))
