"""The servo process on simulated arms and on twins: it follows, it holds, it stops, it is taken over."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servo_bench import HORIZON, PERIOD_NS, ServoBench, Sine, servo_bench, simulated_rig

from robolearn_deploy.operator import Command
from robolearn_deploy.stall import State
from robolearn_deploy.takeover import intent_record
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Condition, DeviceError, Intent
from robolearn_hardware.kinematics import Kinematics
from robolearn_hardware.rig import load_rig, with_twins

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")


def running(tick: np.void) -> bool:
    return tick["state"] == State.RUNNING


def at_rest(tick: np.void) -> bool:
    return bool(tick["at_rest"]) and tick["state"] == State.STOPPED


def told(bench: ServoBench) -> tuple[np.ndarray, np.ndarray]:
    """(instants in s, setpoints (n, N)) of all ticks that are still in the ring."""
    records, _ = bench.ticks.drain(0)
    return records["due_ns"] / 1e9, records["sent"].astype(float)


def settled() -> Callable[[np.void], bool]:
    """It has run for half a second: the first chunk is no longer being joined."""
    since: list[int] = []

    def holds(tick: np.void) -> bool:
        if running(tick):
            since.append(int(tick["due_ns"]))
        return bool(since) and int(tick["due_ns"]) > since[0] + 500_000_000

    return holds


def staying(there: Callable[[np.void], bool]) -> Callable[[np.void], bool]:
    """It has been ``there`` for three tenths of a second: it does not only pass."""
    came = 0

    def holds(tick: np.void) -> bool:
        nonlocal came
        came = (came or int(tick["due_ns"])) if there(tick) else 0
        return bool(came) and int(tick["due_ns"]) > came + 300_000_000

    return holds


def state_is(*states: State) -> Callable[[np.void], bool]:
    return lambda tick: tick["state"] in states


def test_it_follows_the_chunks_and_comes_to_rest_when_no_more_come(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path)) as bench:
        sine = Sine(bench)

        def follows(tick: np.void) -> bool:
            close = np.abs(tick["sent"] - sine.at(np.array([tick["due_ns"]]))[0]).max() < 0.01
            return running(tick) and close and np.abs(tick["measured"] - tick["sent"]).max() < 0.1

        bench.until(settled(), feed=sine)
        tick = bench.until(staying(follows), feed=sine)
        assert tick["chunk"] > 5
        tick = bench.until(at_rest)
        assert b"expired" in tick["cause"]
        seconds, sent = told(bench)
        assert State.HOLDING in bench.ticks.drain(0)[0]["state"]
        limits = bench.layout.arms[0].limits
        velocity = np.diff(sent[:, : limits.joints], axis=0) / np.diff(seconds)[:, None]
        assert (np.abs(velocity) <= limits.velocity * 1.01).all()


def test_what_is_recorded_is_what_was_asked_limited_sent_and_measured(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path)) as bench:
        sine = Sine(bench)
        bench.until(settled(), feed=sine)
        began = now_ns()
        bench.until(lambda t: t["due_ns"] > began + 1_000_000_000, feed=sine)
        steps, _ = bench.steps.drain(0)
        steps = steps[steps["time_ns"] > began]
        spacing = np.diff(steps["time_ns"])
        assert abs(np.median(spacing) - PERIOD_NS) < PERIOD_NS / 20, "one for each control step"
        wanted = sine.at(steps["time_ns"])
        assert np.abs(steps["action"] - wanted).max() < 0.02
        np.testing.assert_array_equal(steps["action_limited"], steps["action_sent"])
        assert np.abs(steps["action_measured"] - wanted).max() < 0.15
        assert set(steps["control_state"]) == {State.RUNNING}
        assert not steps["intervention"].any()
        samples, _ = bench.state.drain(0)
        assert (np.diff(samples["capture_ns"]) > 0).all()
        assert samples["value"].shape[1] == len(bench.layout.names)


def test_a_recorded_action_belongs_to_the_instant_of_its_effect(tmp_path: Path) -> None:
    rig = simulated_rig(tmp_path, limits="placement: {left: {latency_ms: 200}}\n")
    with servo_bench(rig) as bench:
        sine = Sine(bench)
        bench.until(settled(), feed=sine)
        began = now_ns()
        bench.until(lambda t: t["due_ns"] > began + 1_000_000_000, feed=sine)
        steps, ticks = bench.steps.drain(0)[0], bench.ticks.drain(0)[0]
        steps, ticks = steps[steps["time_ns"] > began], ticks[ticks["due_ns"] > began]
        assert np.median(np.abs(steps["action"] - sine.at(steps["time_ns"]))) < 0.01
        assert np.median(np.abs(ticks["requested"] - sine.at(ticks["due_ns"] + 200_000_000))) < 0.01, (
            "it is sent earlier"
        )


def test_an_e_stop_latches_until_a_person_releases_it_and_another_resumes(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path)) as bench:
        sine = Sine(bench)
        bench.until(running, feed=sine)
        bench.operator.tell(Command.E_STOP)
        tick = bench.until(lambda t: state_is(State.E_STOPPED)(t) and t["at_rest"], feed=sine)
        rested = tick["sent"].copy()
        bench.operator.tell(Command.RESUME)
        later = now_ns() + 300_000_000
        tick = bench.until(lambda t: t["due_ns"] > later, feed=sine)
        assert tick["state"] == State.E_STOPPED
        np.testing.assert_array_equal(tick["sent"], rested)
        bench.operator.tell(Command.RELEASE)
        bench.until(state_is(State.STOPPED), feed=sine)
        bench.operator.tell(Command.RESUME)
        bench.until(running, feed=sine)


def test_a_pause_holds_against_fresh_chunks_and_resume_goes_on(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path)) as bench:
        sine = Sine(bench)
        bench.until(running, feed=sine)
        bench.operator.tell(Command.PAUSE)
        bench.until(at_rest, feed=sine)
        later = now_ns() + 300_000_000
        assert at_rest(bench.until(lambda t: t["due_ns"] > later, feed=sine))
        bench.operator.tell(Command.RESUME)
        bench.until(running, feed=sine)


def test_a_supervisor_that_falls_silent_stops_the_arm_though_chunks_come(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path)) as bench:
        sine = Sine(bench)
        bench.until(running, feed=sine)
        bench.keep_beating = lambda: None  # type: ignore[method-assign]
        tick = bench.until(at_rest, feed=sine)
        assert b"supervisor" in tick["cause"]


def test_a_plan_that_begins_elsewhere_is_approached_slowly(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path), approach_speed=0.1) as bench:
        goal = bench.servo.start + 0.4
        goal[list(bench.layout.grippers)] = 0.5

        def stand() -> None:
            bench.offer(np.tile(goal, (HORIZON, 1)))

        bench.until(state_is(State.MOVING), feed=stand)
        bench.until(running, feed=stand)
        seconds, sent = told(bench)
        states = bench.ticks.drain(0)[0]["state"]
        limits = bench.layout.arms[0].limits
        velocity = np.diff(sent[:, : limits.joints], axis=0) / np.diff(seconds)[:, None]
        moving = states[1:] == State.MOVING
        assert (np.abs(velocity[moving]) <= 0.1 * limits.velocity * 1.05).all()
        bench.until(lambda t: np.abs(t["sent"] - goal).max() < 0.01, feed=stand)


def test_without_approach_it_waits_for_a_person(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path), approach=False) as bench:
        goal = bench.servo.start + 0.4

        def stand() -> None:
            bench.offer(np.tile(goal, (HORIZON, 1)))

        tick = bench.until(lambda t: b"away from the arm" in t["cause"], feed=stand)
        assert tick["state"] == State.STOPPED
        np.testing.assert_allclose(tick["sent"], bench.servo.start, atol=1e-3)
        bench.operator.tell(Command.RESUME)
        bench.until(running, feed=stand)


def test_chunks_with_nan_or_of_another_episode_change_nothing(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path)) as bench:
        sine = Sine(bench, episode=3)
        bench.until(settled(), feed=sine)
        refused = int(bench.newest()["refused"])
        bench.offer(np.full((HORIZON, len(bench.layout.names)), np.nan), episode=3)
        bench.offer(np.tile(bench.servo.start + 3, (HORIZON, 1)), episode=2)
        tick = bench.until(lambda t: t["refused"] >= refused + 2, feed=sine)
        assert running(tick)
        assert np.abs(tick["sent"] - sine.at(np.array([tick["due_ns"]]))[0]).max() < 0.02


class Hand:
    """A leader that stands 0.5 rad away from the follower and is moved by a hand."""

    def __init__(self, bench: ServoBench) -> None:
        self._bench = bench
        joints = bench.layout.arms[0].joints
        self.positions, self.enabled = bench.servo.start[:joints] + 0.5, True

    def __call__(self) -> None:
        self._bench.intent.publish(
            intent_record(Intent(now_ns(), self.enabled, self.positions, gripper=0.3), len(self.positions))
        )


def test_a_person_takes_over_without_a_jump_moves_the_arm_and_hands_back(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path)) as bench:
        sine, hand = Sine(bench, amplitude=0.0), Hand(bench)

        def feed() -> None:
            sine()
            hand()

        bench.until(running, feed=feed)
        bench.operator.tell(Command.TAKE_OVER)
        tick = bench.until(lambda t: t["state"] == State.TELEOP and t["person"], feed=feed)
        before = tick["sent"].copy()
        hand.positions = hand.positions + 0.05
        joints = bench.layout.arms[0].joints

        def reached(tick: np.void) -> bool:
            return bool(np.abs(tick["sent"][:joints] - before[:joints] - 0.05).max() < 1e-4)

        tick = bench.until(staying(reached), feed=feed)
        assert tick["sent"][joints] == pytest.approx(0.3), "the gripper is the leader's"
        hand.enabled = False  # the deadman: the leader moves on its own
        bench.until(lambda t: not t["person"], feed=feed)
        hand.positions = hand.positions - 1.0
        hand.enabled = True
        tick = bench.until(lambda t: t["person"], feed=feed)
        assert np.abs(tick["sent"][:joints] - before[:joints] - 0.05).max() < 1e-3
        steps, _ = bench.steps.drain(0)
        assert {int(i) for i in steps["intervention"]} == {0, 1}
        bench.operator.tell(Command.HAND_BACK)
        bench.until(running, feed=feed)
        _, sent = told(bench)
        step = np.abs(np.diff(sent[:, :joints], axis=0)).max()
        assert step < 0.05, "nothing jumped on the way"


def test_a_twist_moves_the_tool_and_one_that_cannot_be_followed_moves_nothing(tmp_path: Path) -> None:
    tool = Kinematics("so101")
    with servo_bench(simulated_rig(tmp_path)) as bench:
        sine, twist = Sine(bench, amplitude=0.0), np.array([0, 0.05, 0, 0, 0, 0])

        def feed() -> None:
            sine()
            at_ns = now_ns()
            bench.intent.publish(intent_record(Intent(at_ns, True, twist=twist), 5))

        bench.until(running, feed=feed)
        began = tool.forward(bench.newest()["sent"][:5].astype(float)).position
        bench.operator.tell(Command.TAKE_OVER)
        there = bench.until(
            lambda t: tool.forward(t["sent"][:5].astype(float)).position[1] > began[1] + 0.03, feed=feed
        )
        assert there["state"] == State.TELEOP
        twist = np.array([0, 1e300, 0, 0, 0, 0])
        later = now_ns() + 500_000_000
        assert bench.until(lambda t: t["due_ns"] > later, feed=feed)["state"] == State.TELEOP


def test_reset_goes_slowly_to_the_reset_pose_and_stays(tmp_path: Path) -> None:
    rig = simulated_rig(tmp_path)
    with servo_bench(rig) as bench:
        sine = Sine(bench, amplitude=0.3)
        bench.until(running, feed=sine)
        bench.until(lambda t: np.abs(t["sent"] - bench.servo.start).max() > 0.1, feed=sine)
        bench.operator.tell(Command.RESET)
        tick = bench.until(lambda t: at_rest(t) and np.abs(t["sent"] - bench.servo.start).max() < 1e-3, feed=sine)
        assert tick["state"] == State.STOPPED


def test_two_arms_share_one_vector_and_one_state(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path, arms=2)) as bench:
        assert bench.layout.names[0] == "left/joint1"
        assert len(bench.layout.names) == 12
        sine = Sine(bench)
        bench.until(running, feed=sine)
        began = now_ns()

        def follows(tick: np.void) -> bool:
            """A machine that misses ticks leaves the arms behind for a while."""
            return bool(np.abs(tick["sent"] - sine.at(np.array([tick["due_ns"]]))[0]).max() < 0.02)

        bench.until(lambda t: t["due_ns"] > began + 1_000_000_000 and follows(t), 60, feed=sine)


def test_an_arm_that_loses_its_cable_stops_the_robot_and_comes_back_on_resume(root: Path) -> None:
    with with_twins(load_rig(root / "hardware/rigs/so101_twin.yaml")) as (rig, twins), servo_bench(rig) as bench:
        sine = Sine(bench, amplitude=0.1)
        bench.until(running, feed=sine)
        twins["follower"].fault(unplugged=True)
        tick = bench.until(lambda t: t["condition"] == Condition.DISCONNECTED, feed=sine)
        tick = bench.until(state_is(State.STOPPED), feed=sine)
        assert b"disconnected (follower: " in tick["cause"], "and what the driver said"
        twins["follower"].fault()
        time.sleep(0.5)
        for _ in range(10):  # the port may need a moment
            bench.operator.tell(Command.RESUME)
            with contextlib.suppress(AssertionError):
                bench.until(running, seconds=3, feed=sine)
                break
        assert running(bench.until(running, feed=sine))


def test_a_motor_that_protects_itself_stops_the_robot_which_says_which_motor_and_why(root: Path) -> None:
    with with_twins(load_rig(root / "hardware/rigs/so101_twin.yaml")) as (rig, twins), servo_bench(rig) as bench:
        sine = Sine(bench, amplitude=0.1)
        bench.until(running, feed=sine)
        twins["follower"].fault(hot=(3,))
        bench.until(lambda t: t["condition"] == Condition.FAULT, feed=sine)
        tick = bench.until(state_is(State.STOPPED), feed=sine)
        assert b"the arm reports: fault (motor 4 (wrist_flex): over-temperature)" in tick["cause"]


def _orphan(folder: Path, told: Any) -> None:
    with servo_bench(simulated_rig(folder)) as bench:
        sine = Sine(bench)
        bench.until(running, feed=sine)
        told.send(bench.servo.pid)
        bench.until(lambda t: False, seconds=60, feed=sine)


def test_a_parent_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    parent = context.Process(target=_orphan, args=(tmp_path, theirs))
    parent.start()
    pid = ours.recv()
    parent.kill()
    parent.join()
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_an_arm_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rig.yaml").write_text("arms: {arm: {kind: so101, port: /dev/nothing}}")
    rig = load_rig(tmp_path / "rig.yaml")
    with pytest.raises(DeviceError, match="arm: the rig names no calibration"), servo_bench(rig):
        pass
