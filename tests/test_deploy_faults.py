"""What the trials of tests/benchmarks/runtime_faults.py rest on: stated times, and that everybody lets go in time."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from benchmarks.runtime_faults import breaches, limiter, rest_ms

from robolearn.cli.keys import Keys
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter
from robolearn_deploy import driven_arm
from robolearn_deploy.driven_arm import DrivenArm, ServoOptions
from robolearn_deploy.recorder import ANSWER_S, RecorderProcess, RecordingError, sample_fields, step_fields
from robolearn_deploy.stall import Duty, stated_times_s
from robolearn_deploy.takeover import intent_fields, intent_record
from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns
from robolearn_hardware.devices import Intent
from robolearn_hardware.ring import Ring
from robolearn_hardware.simulated import SimulatedConfig

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")

RATE_HZ = 100.0
TURN = np.array([1.0, 0, 0, 0, 1.0])
"""Of the base and the wrist: no link comes near another."""


def test_the_stated_time_is_the_allowed_silence_the_hold_the_braking_and_two_ticks() -> None:
    stated = stated_times_s(0.33, 0.01, plan_s=0.75, fast_plan_s=0.04, hold_s=0.1)
    silence = {
        "policy": 0.75,
        "policy server": 0.75,
        "fast policy": 0.04,
        "camera": 1.5,
        "recorder": 3,
        "supervisor": 0.5,
    }
    expected = {name: s + 0.1 + 0.33 + 0.02 for name, s in silence.items()}
    assert stated == pytest.approx(expected | {"teleoperator": 0.2 + 0.33 + 0.02, "e-stop": 0.33 + 0.02})


def test_a_camera_whose_process_beats_without_pictures_is_noticed_by_the_policy_whose_plan_then_expires() -> None:
    long_plan = stated_times_s(0.33, 0.01, plan_s=4.0, blind_s=0.25)
    assert long_plan["camera"] == pytest.approx(0.25 + 4.0 + 0.1 + 0.33 + 0.02)
    assert "fast policy" not in long_plan


class Taken:
    """An arm that a person moves, tick by tick, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = now_ns()
        monkeypatch.setattr(driven_arm, "now_ns", lambda: self.now_ns)
        arm = SimulatedConfig("so101", plant="first_order").open("arm")
        arm.connect()
        self.driven = DrivenArm(arm, None, 0, ServoOptions(), RATE_HZ)
        self.driven.plan(16, 50_000_000)
        self.limiter = self.driven.limiter
        self._ring = Ring.create(intent_fields(5), 4)
        self._last = Duty.STAY

    def close(self) -> None:
        self._ring.close()

    def tick(
        self,
        leader: np.ndarray | None = None,
        *,
        hand: np.ndarray | None = None,
        clutch: int = 0,
        duty: Duty = Duty.TELEOP,
    ) -> np.ndarray:
        """The setpoint (5,); ``leader`` or ``hand``: what the teleoperator says now, nothing if None."""
        if leader is not None or hand is not None:
            said = Intent(self.now_ns, True, leader, displacement=hand, clutch=clutch)
            self._ring.publish(intent_record(said, 5))
        found = self._ring.newest()
        self.driven.drive(duty, duty is not self._last, self.now_ns, None if found is None else found[1], None)
        self._last = duty
        self.now_ns += period_ns(RATE_HZ)
        return self.limiter.sent.positions.copy()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    taken = Taken(monkeypatch)
    yield taken
    taken.close()


def test_a_teleoperator_that_falls_silent_far_ahead_of_the_arm_stops_it_at_once(taken: Taken) -> None:
    start = taken.tick(0 * TURN)
    before = [taken.tick(1.5 * TURN) for _ in range(12)][-1]
    assert 0.05 < before[0] - start[0] < 0.7, "the arm is far behind"
    taken.now_ns += SECOND_NS // 4
    ticks = 0
    while not taken.limiter.at_rest:
        taken.tick()
        ticks += 1
    assert ticks / RATE_HZ <= taken.limiter.rest_time_s
    rested = taken.tick()
    np.testing.assert_array_equal(taken.tick(), rested)
    leader = -0.7 * TURN
    for _ in range(3):  # taken in hand again, elsewhere
        np.testing.assert_allclose(taken.tick(leader), rested, atol=1e-9)
    moved = [taken.tick(leader + 0.1 * TURN) for _ in range(100)][-1]
    np.testing.assert_allclose(moved, rested + 0.1 * TURN, atol=1e-6)


def test_a_person_who_takes_over_a_moving_arm_gets_it_where_it_comes_to_rest(taken: Taken) -> None:
    taken.tick(0 * TURN)
    for _ in range(15):
        taken.tick(TURN)
    assert taken.limiter.sent.velocities.max() > 1.0
    taken.tick(duty=Duty.STOP)  # for a tick; then somebody takes over anew
    end = taken.limiter.stop_positions
    path = [taken.tick(0.3 * TURN) for _ in range(100)]
    np.testing.assert_allclose(path[-1], end, atol=1e-6)
    assert (np.max(path, axis=0) - end < 1e-6).all(), "it goes no farther"


def test_a_hand_whose_tracking_has_jumped_stays_unfollowed_until_the_clutch_is_taken_again(taken: Taken) -> None:
    taken.driven.takeover.prepare()
    start = taken.tick(hand=np.zeros(6))
    sideways = np.array([0, 1.0, 0, 0, 0, 0])
    jumped = [taken.tick(hand=(0.3 + 0.001 * k) * sideways) for k in range(50)]
    np.testing.assert_allclose(jumped, np.tile(start, (50, 1)), atol=1e-9)
    moved = [taken.tick(hand=(0.4 + 0.001 * k) * sideways, clutch=1) for k in range(50)]
    assert np.abs(moved[-1] - start).max() > 0.02


@pytest.mark.slow
def test_a_recorder_that_is_stopped_costs_its_answer_time_and_not_the_run(tmp_path: Path) -> None:
    step = Stream((2,), "float32", "action")
    schema = Schema(20.0, {"action": step, "state": Stream((2,), rate_hz=100.0)})
    DatasetWriter.create(tmp_path / "run.zarr", schema).close()
    steps, state = Ring.create(step_fields(schema), 64), Ring.create(sample_fields(schema.streams["state"]), 64)
    with steps, state, RecorderProcess(tmp_path / "run.zarr", steps.handle, {"state": state.handle}) as recorder:
        os.kill(recorder.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(RecordingError, match=f"has not answered for {ANSWER_S:g} s and was killed"):
            recorder.start(task="wave")
        with pytest.raises(RecordingError):
            recorder.status()
        assert time.monotonic() - began < ANSWER_S + 30


def test_keys_that_are_pressed_at_the_same_moment_are_all_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with open(slave) as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", terminal)
        with Keys() as keys:
            os.write(master, b"gex")
            end = time.monotonic() + 10
            heard = ""
            while len(heard) < 3 and time.monotonic() < end:
                heard += keys.pressed()
            assert heard == "gex"
            assert keys.pressed() == ""
    os.close(master)


def test_the_record_of_a_trial_is_judged_by_the_last_motion_and_by_every_difference_of_setpoints() -> None:
    ticks = np.zeros(6, [("done_ns", "i8"), ("at_rest", "u1")])
    ticks["done_ns"], ticks["at_rest"] = np.arange(6) * 10_000_000, [1, 0, 1, 0, 1, 1]
    assert rest_ms(ticks, 5_000_000) == pytest.approx(35.0), "it moved once more"
    ticks["at_rest"][-1] = 0
    assert rest_ms(ticks, 5_000_000) == np.inf
    limits = limiter()
    limits.begin(np.zeros(5))
    moves = [limits.follow(np.array([1.0, 0, 0, 0, 0])).setpoint.positions.copy() for _ in range(40)]
    positions = np.array(moves).astype(np.float32).astype(np.float64)
    assert breaches(positions, limits) == 0, "float32 is no breach, and the quickest motion neither"
    assert breaches(np.delete(positions, 12, axis=0), limits) > 0, "a setpoint left out"
    positions[30:] += 2e-3
    assert breaches(positions, limits) > 0, "a jump of 2 mrad"
