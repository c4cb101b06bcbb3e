"""Whatever is asked of the limiter, what it sends keeps the limits: what is sent is differentiated."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")

from robolearn_deploy.limiter import Limiter, Reason, Verdict
from robolearn_deploy.selfdistance import SelfDistance
from robolearn_hardware.bounded import ArmBounds
from robolearn_hardware.devices import ArmInfo, DeviceError, LimitError
from robolearn_hardware.kinematics import Kinematics, Workspace
from robolearn_hardware.limits import limits_of, velocity_range
from robolearn_hardware.models import MODELS
from robolearn_hardware.motion import RAMP_S

RATES = (100, 1000)


def info(model, firmware=""):
    limits = limits_of(model, firmware)
    names = tuple(f"joint_{j}" for j in range(limits.joints))
    return ArmInfo(model, model, names, limits, True, 100.0, firmware=firmware)


def begun(model, rate=100, at=None, **options):
    limiter = Limiter(info(model), rate, **options)
    limits = limiter.info.limits
    limiter.begin((limits.low + limits.high) / 2 if at is None else at)
    return limiter


def assert_within_limits(limiter, sent):
    """sent (N, J): the first three at rest."""
    limits, rates = limiter.info.limits, np.array(sent)
    assert (rates >= np.minimum(limits.low, rates[0]) - 1e-8).all()
    assert (rates <= np.maximum(limits.high, rates[0]) + 1e-8).all()
    for bound in (limiter.velocity, limiter.acceleration, limiter.jerk):
        rates = np.diff(rates, axis=0) / limiter.dt_s
        assert (np.abs(rates) <= bound * (1 + 1e-6)).all()


def resting(limiter):
    return [limiter.sent.positions.copy()] * 3


def smooth(t, joints):
    """Position, velocity and acceleration of a sine that begins at rest, with all derivatives up to the third."""
    phase = np.arange(joints)
    total = np.zeros((3, joints))
    for rate, share in ((1.0, 1.0), (1.7, 0.5)):
        f = np.array([np.sin(rate * t + phase), rate * np.cos(rate * t + phase), -(rate**2) * np.sin(rate * t + phase)])
        total += 0.1 * share * f
    s = min(t / 0.8, 1.0)
    w = np.array([35 * s**4 - 84 * s**5 + 70 * s**6 - 20 * s**7])[0]
    dw = (140 * s**3 - 420 * s**4 + 420 * s**5 - 140 * s**6) / 0.8
    ddw = (420 * s**2 - 1680 * s**3 + 2100 * s**4 - 840 * s**5) / 0.64
    p, v, a = total
    return w * p, dw * p + w * v, ddw * p + 2 * dw * v + w * a


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("model", ["so101", "ur5e", "fr3", "xarm7"])
def test_a_feasible_trajectory_is_followed_exactly_and_called_ok(model, rate):
    limiter = begun(model, rate)
    start, sent = limiter.sent.positions.copy(), resting(limiter)
    for k in range(1, 2 * rate):
        p, v, a = smooth(k / rate, limiter.info.joints)
        answer = limiter.follow(start + p, v, a)
        assert answer.verdict is Verdict.OK
        assert answer.reason is Reason.NONE
        np.testing.assert_allclose(answer.setpoint.positions, start + p, rtol=0, atol=1e-6)
        sent.append(answer.setpoint.positions.copy())
    assert_within_limits(limiter, sent)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("model", ["so101", "koch", "ur10e", "fer", "fr3", "xarm6"])
def test_random_targets_break_no_limit(model, rate):
    rng = np.random.default_rng(0)
    limiter = begun(model, rate)
    limits, joints, sent = limiter.info.limits, limiter.info.joints, resting(limiter)
    target, velocity, acceleration = limiter.sent
    for _ in range(1500):
        if rng.random() < 3 / rate:
            target = rng.uniform(np.maximum(limits.low, -4) - 0.3, np.minimum(limits.high, 4) + 0.3)
            velocity = rng.normal(size=joints) * limiter.velocity * rng.choice([0, 0.5, 2])
            acceleration = rng.normal(size=joints) * limiter.acceleration * rng.choice([0, 0.5, 2])
        target = target + velocity * limiter.dt_s
        kind = rng.integers(12)
        if kind == 0:
            answer = limiter.approach(target)
        elif kind == 1:
            answer = limiter.stop()
        else:
            answer = limiter.follow(target, velocity, acceleration)
        sent.append(answer.setpoint.positions.copy())
    assert np.ptp(sent, axis=0).min() > 0.05
    assert_within_limits(limiter, sent)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from(RATES))
def test_stop_comes_to_rest_within_the_stated_time(seed, rate):
    rng = np.random.default_rng(seed)
    limiter = begun("fr3", rate)
    limits = limiter.info.limits
    for _ in range(int(rng.integers(1, 0.6 * rate))):
        limiter.follow(limits.low if seed % 2 else limits.high)
    for _ in range(int(rng.integers(0, 0.1 * rate))):
        limiter.follow(limits.high if seed % 2 else limits.low)
    sent = resting(limiter)
    ticks = 0
    while not limiter.at_rest:
        sent.append(limiter.stop().setpoint.positions.copy())
        ticks += 1
    assert ticks / rate <= limiter.rest_time_s
    np.testing.assert_array_equal(limiter.stop().setpoint.positions, sent[-1])


def test_the_stated_time_to_rest_is_that_of_the_slowest_joint_at_full_speed_and_acceleration():
    limiter = begun("fer")
    v, a, j = limiter.velocity, limiter.acceleration, limiter.jerk
    # The acceleration is taken away, then built up the other way, held, and taken away.
    assert limiter.rest_time_s == pytest.approx((a / j + v / a + a / j).max() + limiter.dt_s)


def test_limits_that_are_not_published_mean_what_joint_motion_says():
    limiter = begun("ur5e")
    np.testing.assert_allclose(limiter.acceleration, limiter.velocity / RAMP_S)
    np.testing.assert_allclose(limiter.jerk, 2 * limiter.acceleration / RAMP_S)
    limiter = begun("so101")
    np.testing.assert_allclose(limiter.acceleration, limiter.info.limits.acceleration)


def test_a_rig_narrows_the_limits_that_are_kept():
    bounds = ArmBounds(joints={"joint_1": (-0.2, 0.3)}, speed=0.25)
    limiter = Limiter(bounds.apply(info("so101")), 100)
    limiter.begin(np.zeros(5))
    for _ in range(200):
        limiter.follow(np.ones(5))
    answer = limiter.follow(np.ones(5))
    assert answer.verdict is Verdict.LIMITED
    assert answer.reason is Reason.RANGE
    np.testing.assert_allclose(limiter.sent.positions, [1, 0.3, 1, 1, 1], atol=1e-9)
    np.testing.assert_allclose(limiter.velocity, 0.25 * limits_of("so101").velocity)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(3))
def test_nan_and_infinity_are_rejected_and_the_arm_comes_to_rest(bad, place):
    limiter = begun("so101")
    for _ in range(20):
        limiter.follow(np.ones(5))
    assert not limiter.at_rest
    target = [np.ones(5), np.zeros(5), np.zeros(5)]
    target[place][3] = bad
    sent = resting(limiter)
    for _ in range(round(limiter.rest_time_s / limiter.dt_s) + 1):
        answer = limiter.follow(*target)
        assert (answer.verdict, answer.reason) == (Verdict.REJECTED, Reason.NON_FINITE)
        sent.append(answer.setpoint.positions.copy())
    assert limiter.at_rest
    assert np.isfinite(sent).all()


def test_huge_numbers_break_no_limit():
    limiter = begun("so101")
    sent = resting(limiter)
    for sign in (1, -1):
        for place in range(3):
            target = [np.zeros(5), np.zeros(5), np.zeros(5)]
            target[place][:] = sign * 1e300
            sent += [limiter.follow(*target).setpoint.positions.copy() for _ in range(40)]
    assert_within_limits(limiter, sent)


def test_an_arm_outside_its_range_is_led_back_and_never_further_out():
    limiter = begun("so101", at=limits_of("so101").high + 0.04)
    sent = [limiter.follow(limiter.info.limits.high + 0.5).setpoint.positions.copy() for _ in range(100)]
    assert (np.diff(sent, axis=0) <= 1e-12).all()
    np.testing.assert_allclose(sent[-1], limiter.info.limits.high, atol=1e-9)


@pytest.mark.parametrize(("firmware", "rate"), [("2023", 100), ("2023", 1000), ("2025", 100)])
def test_the_fr3_never_exceeds_the_velocity_that_falls_towards_the_ends_of_its_range(firmware, rate):
    limiter = Limiter(info("fr3", firmware), rate)
    limits = limiter.info.limits
    limiter.begin((limits.low + limits.high) / 2)
    for goal in (limits.high, limits.low):
        sent = resting(limiter)
        for _ in range(4 * rate):
            sent.append(limiter.follow(goal, np.sign(goal - sent[-1]) * limiter.velocity).setpoint.positions.copy())
        for before, after in pairwise(sent):
            velocity = (after - before) * rate
            (low_a, high_a), (low_b, high_b) = (velocity_range("fr3", q, firmware) for q in (before, after))
            assert (velocity <= np.maximum(high_a, high_b) + 1e-6).all()
            assert (velocity >= np.minimum(low_a, low_b) - 1e-6).all()
        if firmware == "2023":  # the limits of 2025 reach further than the arm may move
            assert np.abs(sent[-1] - goal).max() < 0.02


def lag_of(limiter, speed, ticks):
    """Follows a ramp that begins at once, in the first joint."""
    start, velocity = limiter.sent.positions.copy(), np.zeros(limiter.info.joints)
    velocity[0] = speed
    lags = []
    for k in range(1, ticks):
        target = start + velocity * k * limiter.dt_s
        lags.append(np.abs(limiter.follow(target, velocity).setpoint.positions - target)[0])
    return np.array(lags)


@pytest.mark.parametrize("model", ["so101", "ur5e", "fr3"])
def test_what_is_limited_catches_up_with_a_moving_target(model):
    limiter = begun(model)
    lags = lag_of(limiter, 0.3 * limiter.velocity[0], 100)
    assert lags.max() > 1e-3
    assert lags[-1] < 1e-6


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("model", ["so101", "ur5e", "fr3"])
def test_what_is_limited_catches_up_with_a_target_that_accelerates(model, rate):
    limiter = begun(model, rate)
    start = limiter.sent.positions.copy() + 0.2  # a jump at once
    answers = [limiter.follow(start + (s := smooth(k / rate, limiter.info.joints))[0], *s[1:]) for k in range(2 * rate)]
    verdicts = [answer.verdict for answer in answers]
    assert verdicts[0] is Verdict.LIMITED
    assert set(verdicts[rate:]) == {Verdict.OK}


def test_an_approach_is_slow_and_arrives():
    limiter = begun("so101", approach_speed=0.1)
    start = limiter.sent.positions.copy()
    sent = resting(limiter)
    for _ in range(2000):
        answer = limiter.approach(start + 0.5)
        sent.append(answer.setpoint.positions.copy())
        if answer.verdict is Verdict.OK:
            break
    np.testing.assert_allclose(sent[-1], start + 0.5, atol=1e-9)
    assert np.abs(np.diff(sent, axis=0)).max() / limiter.dt_s <= 0.1 * limiter.velocity.max() + 1e-9
    assert_within_limits(limiter, sent)


def wander(limiter: Limiter, seen: Callable[[np.ndarray], None], ticks=1500):
    """Follows a policy that drifts and jumps, and counts the reasons."""
    rng = np.random.default_rng(4)
    limits, reasons = limiter.info.limits, dict.fromkeys(Reason, 0)
    target = limiter.sent.positions.copy()
    for k in range(ticks):
        if k % 60 == 0:
            target = rng.uniform(limits.low, limits.high)
        answer = limiter.follow(target)
        reasons[answer.reason] += 1
        seen(answer.setpoint.positions)
    return reasons


def test_the_tool_stays_within_the_workspace():
    workspace = Workspace(low=(0.1, -0.2, 0.05), high=(0.42, 0.2, 0.35), floor=0.03)
    limiter = begun("so101", at=np.zeros(5), workspace=workspace)
    kinematics, sent = Kinematics("so101"), resting(limiter)
    assert not kinematics.outside(sent[0], workspace).any()

    def seen(positions):
        sent.append(positions.copy())
        assert kinematics.outside(positions, workspace).max() < 1e-3

    reasons = wander(limiter, seen)
    assert reasons[Reason.WORKSPACE] > 50
    assert reasons[Reason.MOTION] > 50
    assert_within_limits(limiter, sent)


def test_an_arm_outside_the_workspace_is_led_back_and_never_further_out():
    workspace = Workspace(low=(-1, -1, 0.3))
    limiter = begun("so101", at=np.zeros(5), workspace=workspace)
    kinematics = Kinematics("so101")
    begin = kinematics.outside(np.zeros(5), workspace).max()
    assert begin > 0.01
    down, up = np.array([0, 0.3, 0.3, 0, 0.0]), np.array([0, -0.5, -0.3, 0, 0.0])
    for _ in range(50):
        assert kinematics.outside(limiter.follow(down).setpoint.positions, workspace).max() <= begin + 1e-5
    assert limiter.follow(down).reason is Reason.WORKSPACE
    for _ in range(200):
        limiter.follow(up)
    answer = limiter.follow(up)
    assert answer.verdict is Verdict.OK
    assert not kinematics.outside(answer.setpoint.positions, workspace).any()


@pytest.mark.parametrize("model", ["so101", "viperx"])
def test_links_do_not_come_nearer_than_the_minimum(model):
    own = SelfDistance(model, minimum_m=0.01)
    limiter = begun(model, self_distance=own)
    least = []
    reasons = wander(limiter, lambda positions: least.append(own.nearest(positions)))
    assert min(least) > 0.009
    assert reasons[Reason.SELF_DISTANCE] > 50


def test_links_that_are_too_near_may_part():
    own = SelfDistance("so101", minimum_m=0.03)
    folded = np.array([0.0, -1.7, 1.6, 1.2, 0.0])
    limiter = begun("so101", at=folded, self_distance=own)
    begin = own.nearest(folded)
    assert begin < 0.03
    distances = [own.nearest(limiter.follow(np.zeros(5)).setpoint.positions) for _ in range(300)]
    assert distances[-1] == 0.03
    assert min(distances) >= begin - 1e-5


def brute_distance(capsules, bodies, pairs):
    """Between points on the axes, 40 on each."""
    s = np.linspace(0, 1, 40)
    found = []
    for i, j in pairs:
        one, other = (
            (bodies[c.body] @ np.append(c.start, 1))[:3] * (1 - s[:, None])
            + (bodies[c.body] @ np.append(c.end, 1))[:3] * s[:, None]
            for c in (capsules[i], capsules[j])
        )
        gap = np.linalg.norm(one[:, None] - other[None], axis=2).min()
        found.append(gap - capsules[i].radius - capsules[j].radius)
    return min(found)


@pytest.mark.parametrize("model", ["so101", "ur5e", "fr3", "widowx"])
def test_the_distance_between_links_is_that_between_points_on_their_axes(model):
    own, kinematics, rng = SelfDistance(model), Kinematics(model), np.random.default_rng(1)
    limits = limits_of(model)
    for _ in range(25):
        q = rng.uniform(np.maximum(limits.low, -3), np.minimum(limits.high, 3))
        kinematics.forward(q)
        bodies = []
        for k in range(kinematics.mj_model.nbody):
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = kinematics.mj_data.xmat[k].reshape(3, 3), kinematics.mj_data.xpos[k]
            bodies.append(pose)
        expected = brute_distance(own.capsules, bodies, own.pairs)
        assert own.nearest(q, up_to_m=10.0) == pytest.approx(expected, abs=1.5e-3)
        assert own.nearest(q) == pytest.approx(min(expected, own.minimum_m), abs=1.5e-3)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_pairs_of_links_and_stands_free_in_the_middle_of_its_ranges(model):
    own, limits = SelfDistance(model), limits_of(model)
    assert own.pairs
    assert own.nearest((limits.low + limits.high) / 2) == own.minimum_m


def test_a_limiter_that_has_not_begun_or_begins_at_nan_says_so():
    limiter = Limiter(info("so101"), 100)
    with pytest.raises(DeviceError, match="begin"):
        limiter.stop()
    with pytest.raises(LimitError, match="NaN"):
        limiter.begin(np.full(5, np.nan))
    with pytest.raises(DeviceError, match="speed"):
        Limiter(info("so101"), 100, approach_speed=0.0)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(["so101", "fr3", "ur5e"]), st.integers(0, 2**32 - 1), st.floats(0.01, 1.0))
def test_a_pair_of_links_changes_its_distance_by_no_more_than_its_levers_say(model, seed, turn):
    rng, limits, own = np.random.default_rng(seed), limits_of(model), SelfDistance(model)
    far = np.full(len(own.pairs), 10.0)
    before = rng.uniform(limits.low, limits.high)
    after = np.clip(before + rng.uniform(-turn, turn, len(before)), limits.low, limits.high)
    changed = np.abs(own.apart(after, far) - own.apart(before, far))
    assert (changed <= own.levers @ np.abs(after - before) + 1e-4).all()
    assert own.apart(after, far).min() == pytest.approx(own.nearest(after, up_to_m=10.0), abs=1e-6)
    assert (own.levers == 0).any()
    assert (own.levers > 0).any(axis=1).all()
