"""A person's motion between two readings: smooth, close behind, and over when the readings are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from benchmarks.runtime_tracking import MOTIONS, measured
from benchmarks.runtime_tracking import followed as benched
from scipy.linalg import expm

from robolearn_deploy.driven_arm import DrivenArm, ServoOptions
from robolearn_deploy.limiter import Limiter
from robolearn_deploy.stall import Duty
from robolearn_deploy.takeover import STALE_NS, intent_fields, intent_record
from robolearn_deploy.tracking import _AHEAD_S, _LONGEST_S, _SMOOTH, Tracker, smoothed
from robolearn_hardware.clock import now_ns, wait_until_ns
from robolearn_hardware.devices import ArmInfo, Intent, JointLimits
from robolearn_hardware.motion import Setpoint
from robolearn_hardware.simulated import SimulatedConfig

RATE_HZ = 100.0
DT_S = 1 / RATE_HZ
COUNT_RAD = 2 * np.pi / 4096
"""Of the SO-101's encoders."""
Motion = Callable[[Any], Any]


def so101() -> ArmInfo:
    return SimulatedConfig(model="so101", plant="first_order").open("arm").info


def test_readings_that_take_long_to_get_here_are_followed_as_smoothly_and_that_much_later():
    delay_ns = 100_000_000  # of a phone on a bad network: longer than anything is looked ahead
    late = [(read_ns, position) for read_ns, position in read(swing, 6, 1 / 60)]
    setpoints, _ = followed(late, 6, delay_ns=delay_ns)
    times = np.arange(2, 2 + len(setpoints)) * DT_S
    settled = times > 2
    errors = setpoints[:, 0] - swing(times - delay_ns / 1e9)
    assert np.abs(errors[settled]).max() < 0.045 * 0.4 * 2 * np.pi * 0.7
    assert np.percentile(jerk(setpoints)[settled[3:]], 95) < 300


def read(leader: Motion, seconds: float, every_s: float = DT_S) -> list[tuple[int, float]]:
    """(instant, position): readings between the ticks, in counts of an encoder."""
    times = 0.004 + every_s * np.arange(round(seconds / every_s))
    return [(round(t * 1e9), round(leader(t) / COUNT_RAD) * COUNT_RAD) for t in times]


def followed(
    readings: list[tuple[int, float]], seconds: float, *, tracked: bool = True, delay_ns: int = 0
) -> tuple[np.ndarray, Limiter]:
    """(n, J) setpoints of an SO-101, from the second tick on, as its first joint follows ``readings``; without
    ``tracked`` each is a place to rest at."""
    info = so101()
    limiter, tracker = Limiter(info, RATE_HZ), Tracker(info.limits)
    limiter.begin(np.zeros(info.joints))
    pending, newest, setpoints = list(readings), np.zeros(info.joints), []
    for i in range(2, round(seconds * RATE_HZ)):
        at_ns = i * round(DT_S * 1e9)
        while pending and pending[0][0] + delay_ns < at_ns:
            read_ns, position = pending.pop(0)
            newest = np.array([position, *np.zeros(info.joints - 1)])
            tracker.measure(read_ns, newest, at_ns)
        if not tracked:
            limiter.follow(newest)
        elif towards := tracker.follow(at_ns, limiter.sent, DT_S):
            limiter.follow(*towards)
        else:
            limiter.stop()
        setpoints.append(limiter.sent.positions.copy())
    return np.array(setpoints), limiter


def swing(t: Any) -> Any:
    return 0.4 * np.sin(2 * np.pi * 0.7 * t)


def jerk(positions: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(positions[:, 0], 3)) / DT_S**3


def test_the_smoothed_motion_solves_its_differential_equation():
    rng = np.random.default_rng(0)
    w = _SMOOTH
    system = np.array([[0, 1, 0], [0, 0, 1], [-(w**3), -3 * w**2, -3 * w]])
    for passed_s in (1e-4, 0.002, 0.01, 0.1):
        led, position = rng.normal(size=(3, 4)), rng.normal(size=4)
        there = np.stack([position, 0 * position, 0 * position])
        after = expm(system * passed_s) @ (led - there) + there
        np.testing.assert_allclose(smoothed(Setpoint(*led), position, passed_s), after, rtol=1e-9, atol=1e-9)


def test_a_hand_of_constant_velocity_is_followed_steadily_though_readings_come_unevenly():
    rng = np.random.default_rng(1)
    tracker, sent = Tracker(JointLimits(*np.array([[-9.0], [9], [5], [50], [500]]))), Setpoint(*np.zeros((3, 1)))
    read_ns = 1
    for at_ns in range(10_000_000, 1_000_000_000, 10_000_000):
        while read_ns + 12_000_000 < at_ns:
            read_ns += int(rng.uniform(4e6, 12e6))
            tracker.measure(read_ns, np.array([0.7 * read_ns / 1e9]), at_ns)
        towards = tracker.follow(at_ns, sent, DT_S)
        assert towards is not None
        sent = towards
    assert 0.002 < tracker._delay_s < 0.012, "what a reading takes to get here"
    late_s = tracker._delay_s + 3 / _SMOOTH - _AHEAD_S - DT_S / 2  # within a tick the low pass sees its end
    np.testing.assert_allclose(np.ravel(sent)[:2], [0.7 * (0.99 - late_s), 0.7], atol=2e-3)
    assert abs(sent.accelerations[0]) < 1.0


def test_a_swinging_leader_is_followed_at_less_lag_and_less_jerk_than_a_place_to_rest_at_each_reading():
    readings = read(swing, 6)
    errors, jerks = [], []
    for tracked in (False, True):
        setpoints, _ = followed(readings, 6, tracked=tracked)
        times = np.arange(2, 2 + len(setpoints)) * DT_S
        settled = times > 2
        errors.append(np.abs(setpoints[:, 0] - swing(times))[settled].max())
        jerks.append(np.percentile(jerk(setpoints)[settled[3:]], 95))
    lag_s = np.array(errors) / (0.4 * 2 * np.pi * 0.7)
    assert lag_s[1] < 0.045 < 0.06 < lag_s[0]
    assert jerks[1] < 0.8 * jerks[0]


def test_an_arm_that_is_behind_is_not_thrown_after_the_person():
    for hz in (0.5, 0.7, 0.9, 1.2):
        leader = lambda t, hz=hz: 0.4 * np.sin(2 * np.pi * hz * t)  # noqa: E731  # at full speed from the beginning on
        setpoints, _ = followed(read(leader, 4), 4)
        assert np.abs(setpoints[:, 0]).max() < 0.4 + 0.02, f"at {hz} Hz it goes beyond where the person was"


@pytest.mark.parametrize("readings_hz", [30, 60])
@pytest.mark.parametrize("motion", MOTIONS)
def test_an_arm_hardly_goes_beyond_where_a_person_turns_round_and_stays_close_where_it_can(
    motion: str, readings_hz: float
):
    found = measured(MOTIONS[motion], *benched(MOTIONS[motion], readings_hz, tracked=True))
    assert found["overshoot_rad"] < 0.012
    if motion in ("sine, 0.4 rad at 0.7 Hz", "reaching, 0.5 rad in 0.5 s"):  # the others are too much for its jerk
        assert found["lag_ms"] <= 40


@pytest.mark.parametrize("every_s", [0.01, 1 / 60, 1 / 30])
def test_a_leader_that_falls_silent_is_not_followed_for_longer_than_two_readings(every_s: float):
    readings = read(swing, 2.86, every_s)  # near the middle of the swing, at full speed
    setpoints, limiter = followed(readings, 5)
    last_s = readings[-1][0] / 1e9
    times = np.arange(2, 2 + len(setpoints)) * DT_S
    speeds = np.abs(np.diff(setpoints[:, 0])) / DT_S
    extrapolated_s = min(3 * every_s, _LONGEST_S)
    braking = times[1:] > last_s + extrapolated_s + 5 * DT_S  # the first ticks of a stop take acceleration away
    assert speeds[times[1:] > last_s].max() > 1.2, "it was in full motion"
    assert (np.diff(speeds[braking]) < 1e-9).all(), "it is on the quickest way to rest"
    resting = times > last_s + extrapolated_s + 2 * DT_S + limiter.rest_time_s
    assert (setpoints[resting] == setpoints[-1]).all()


def test_a_person_who_is_back_after_a_silence_is_followed_from_where_the_arm_stopped():
    readings = [(t, p) for t, p in read(swing, 6) if not 2.86e9 < t < 3.0e9]
    setpoints, limiter = followed(readings, 6)
    times = np.arange(2, 2 + len(setpoints)) * DT_S
    assert np.abs(np.diff(setpoints[:, 0], 2)).max() / DT_S**2 <= limiter.acceleration[0] * 1.001
    assert np.abs(setpoints[:, 0] - swing(times))[times > 5].max() < 0.08


@pytest.mark.parametrize("how", ["deadman released", "silent", "nobody"])
def test_whoever_lets_go_stops_the_arm_at_once(how: str):
    arm = SimulatedConfig(model="so101", plant="first_order").open("arm")
    arm.connect()
    driven = DrivenArm(arm, None, 0, ServoOptions(RATE_HZ, min_distance_m=None), RATE_HZ)
    record = np.zeros(1, [(name, *of) for name, of in intent_fields(5).items()])
    start, began_ns = driven.limiter.sent.positions.copy(), now_ns()

    def tick(enabled: bool = True, age_ns: int = 0, there: bool = True) -> None:
        at_ns = now_ns()
        joints = start + np.array([0.3 * np.sin(4 * (at_ns - began_ns) / 1e9), 0, 0, 0, 0])
        for name, value in intent_record(Intent(at_ns - age_ns, enabled, joints), 5).items():
            record[name] = value
        driven.drive(Duty.TELEOP, False, at_ns, record[0] if there else None, None)

    for _ in range(3000):
        tick()
        if abs(driven.limiter.sent.velocities[0]) > 0.5:
            break
        wait_until_ns(now_ns() + round(DT_S * 1e9))
    assert driven.person
    assert abs(driven.limiter.sent.velocities[0]) > 0.5, "it is in full motion"
    other = Limiter(driven.info, RATE_HZ)
    other.begin(driven.limiter.sent.positions)
    for ours, theirs in zip(driven.limiter._joints, other._joints, strict=True):
        theirs.state = ours.state
    for _ in range(5):
        tick(how == "silent", STALE_NS + 1 if how == "silent" else 0, how != "nobody")
        assert not driven.person
        np.testing.assert_array_equal(driven.limiter.sent.positions, other.stop().setpoint.positions)
