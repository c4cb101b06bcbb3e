"""Arms and leaders of servo motors, driven through the vendors' SDKs to twins on pseudo-terminals."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from servo_twins import KINDS, bench, connected, read_until, ready

from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Condition, DeviceError, DeviceGoneError, LimitError, NotReadyError
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.servo.calibration import default_calibration, load_calibration
from robolearn_hardware.servo.leader import ServoLeader
from robolearn_hardware.servo.models import MODELS
from robolearn_hardware.servo.registers import RAD_PER_TICK

CLOSE_RAD = 0.02
TRUE_RAD = 2 * CLOSE_RAD  # the plant itself, which the encoder sees in ticks, through the gears' play and a little late


def test_the_so101_twin_rig_answers_moves_and_its_leader_is_read(root: Path) -> None:
    with with_twins(load_rig(root / "hardware/rigs/so101_twin.yaml")) as (rig, twins):
        with connected(rig.arms["follower"].open("follower")) as arm:
            first = arm.state()
            assert arm.info.joint_names == ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
            goal = first.positions + np.array([0.4, -0.3, 0.2, -0.1, 0.5])
            arm.command(goal, 0.9)
            state = read_until(arm, lambda s: np.abs(s.positions - goal).max() < CLOSE_RAD and s.gripper > 0.85)
            assert np.allclose(state.positions, goal, atol=CLOSE_RAD)
            truth = twins["follower"].observe()["positions"]
            assert np.allclose(truth[:5], goal, atol=TRUE_RAD)
            assert truth[5] == pytest.approx(0.9, abs=0.05)
            assert state.temperatures is not None
            assert (state.temperatures > 20).all()
            assert np.isfinite(state.efforts).all()
        with connected(rig.teleoperators["leader"].open("leader")) as leader:
            intent = leader.read()
            assert intent.positions is not None
            assert intent.positions.shape == (5,)
            assert 0 <= intent.gripper <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["so100", "koch", "viperx", "widowx", "gello", "aloha"])
def test_every_twin_rig_answers_and_moves_each_arm_alone(root: Path, name: str) -> None:
    assert load_rig(root / f"hardware/rigs/{name}.yaml").devices().keys() == (
        load_rig(root / f"hardware/rigs/{name}_twin.yaml").devices().keys()
    )
    with with_twins(load_rig(root / f"hardware/rigs/{name}_twin.yaml")) as (rig, twins):
        for arm_name, config in rig.arms.items():
            others = {other: twins[other].observe()["positions"] for other in rig.arms if other != arm_name}
            with connected(config.open(arm_name)) as arm:
                goal = arm.state().positions + 0.15
                arm.command(goal)
                state = read_until(arm, lambda s, goal=goal: np.abs(s.positions - goal).max() < CLOSE_RAD)
                assert np.allclose(state.positions, goal, atol=CLOSE_RAD)
            for other, before in others.items():
                assert np.allclose(twins[other].observe()["positions"], before, atol=TRUE_RAD)
        for teleoperator_name, config in rig.teleoperators.items():
            with connected(config.open(teleoperator_name)) as leader:
                assert leader.read().positions is not None


@pytest.mark.parametrize("kind", KINDS)
def test_connecting_does_not_move_the_arm_whatever_goal_its_motors_remember(kind: str) -> None:
    with bench(kind, start=(0.4, -0.3, 0.2, 0.3, -0.2, 0.7)) as it, it.arm() as arm:
        before = it.twin.observe()["positions"]
        time.sleep(0.3)
        assert np.allclose(it.twin.observe()["positions"], before, atol=3 * RAD_PER_TICK)
        assert all(it.twin.observe()["torque"].values())
        assert np.allclose(arm.state().positions, before[:5], atol=3 * RAD_PER_TICK)


@pytest.mark.parametrize("kind", KINDS)
def test_connecting_again_keeps_an_arm_held_that_was_held(kind: str) -> None:
    with bench(kind) as it:
        arm = it.arm()
        arm.connect()
        goal = arm.state().positions + 0.2
        arm.command(goal)
        read_until(arm, lambda s: np.abs(s.positions - goal).max() < CLOSE_RAD)
        arm.close()
        arm.close()
        assert all(it.twin.observe()["torque"].values())
        arm.connect()
        assert np.allclose(read_until(arm, ready).positions, goal, atol=TRUE_RAD)
        arm.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_reading_was_captured_while_it_was_asked_for(kind: str) -> None:
    with bench(kind) as it, it.arm() as arm:
        for _ in range(20):
            start = now_ns()
            state = arm.state()
            if state.condition is Condition.READY:  # not on a machine that let a packet wait too long
                assert start < state.capture_ns < state.received_ns <= now_ns()


@pytest.mark.parametrize("kind", KINDS)
def test_commands_that_an_arm_must_not_be_given_are_refused_and_change_nothing(kind: str) -> None:
    with bench(kind) as it, it.arm() as arm:
        before = arm.state().positions
        over = before.copy()
        over[2] = arm.info.limits.high[2] + 0.01
        for wrong in (over, np.full(5, np.nan), np.zeros(6)):
            with pytest.raises(LimitError):
                arm.command(wrong)
        for gripper in (1.5, -0.5, np.nan):
            with pytest.raises(LimitError, match="gripper"):
                arm.command(before, gripper)
        time.sleep(0.2)
        assert np.allclose(it.twin.observe()["positions"][:5], before, atol=3 * RAD_PER_TICK)


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_arm_takes_no_commands_until_it_is_held(kind: str) -> None:
    with bench(kind) as it, it.arm() as arm:
        arm.release()
        assert not any(it.twin.observe()["torque"].values())
        assert arm.state().condition is Condition.RELEASED
        with pytest.raises(NotReadyError, match="released"):
            arm.command(np.zeros(5))
        arm.hold()
        assert all(it.twin.observe()["torque"].values())
        assert ready(read_until(arm, ready))


@pytest.mark.parametrize("kind", KINDS)
def test_hold_stops_it_where_it_is(kind: str) -> None:
    with bench(kind) as it, it.arm() as arm:
        high, stood = arm.info.limits.high, arm.info.limits.high
        for _ in range(10):
            arm.command(arm.info.limits.low)
            read_until(arm, lambda s: np.abs(s.positions - arm.info.limits.low).max() < 0.1)
            arm.command(high)
            time.sleep(0.1)
            arm.hold()
            time.sleep(0.4)
            stood = it.twin.observe()["positions"][:5]
            if (stood < high - 0.3).all():
                break  # otherwise the machine was too slow to hold it underway
        assert (stood < high - 0.3).all()
        time.sleep(0.1)
        assert np.allclose(it.twin.observe()["positions"][:5], stood, atol=3 * RAD_PER_TICK)


@pytest.mark.parametrize(("kind", "shoulder"), [("viperx", -1.85), ("widowx", -1.80)])
def test_an_arm_that_sleeps_where_interbotix_lays_it_connects_and_wakes(kind: str, shoulder: float) -> None:
    asleep = np.array([0, shoulder, 1.55, 0, 0.8, 0])
    with bench(kind, start=(*asleep, 0.5)) as it, it.arm() as arm:
        arm.command(asleep + np.array([0, 0.3, 0, 0, 0, 0]))
        assert read_until(arm, lambda s: abs(s.positions[1] - shoulder - 0.3) < CLOSE_RAD).condition is Condition.READY


def test_both_motors_of_a_joint_go_to_the_same_place() -> None:
    with bench("viperx") as it, it.arm() as arm:
        arm.command(arm.state().positions + 0.1, 0.5)
        time.sleep(0.3)
        registers = it.twin.observe()["registers"]
        assert registers[2]["goal_position"] == registers[3]["goal_position"]
        assert registers[4]["goal_position"] == registers[5]["goal_position"]
        assert registers[3]["torque_enable"] == 1


def test_a_gripper_grips_with_a_bounded_torque_and_gains_are_set() -> None:
    with bench("koch") as it, it.arm():
        registers = it.twin.observe()["registers"]
        assert registers[6]["operating_mode"] == 5
        assert registers[6]["goal_current"] == pytest.approx(0.35 * 1470, abs=1)
        assert (registers[3]["position_p_gain"], registers[3]["position_d_gain"]) == (1500, 600)
    with bench("so101") as it, it.arm():
        assert it.twin.observe()["registers"][6]["torque_limit"] == 350


def test_two_motors_of_a_joint_that_disagree_never_get_torque() -> None:
    model = MODELS["viperx"]
    right = default_calibration(model)
    shadow = dataclasses.replace(right.motors["shoulder_shadow"], zero=2048 + 300)
    wrong = dataclasses.replace(right, motors={**right.motors, "shoulder_shadow": shadow})
    with bench("viperx") as it:
        with pytest.raises(DeviceError, match=r"shoulder_shadow .* would fight"):
            it.arm(wrong).connect()
        assert not any(it.twin.observe()["torque"].values())


def test_a_joint_whose_range_crosses_the_seam_of_its_encoder_reads_and_moves_right() -> None:
    """After power-on a Dynamixel knows its place within one turn only: here one turn off for half of the range."""
    right = default_calibration(MODELS["koch"])
    pan = dataclasses.replace(right.motors["shoulder_pan"], homing_offset=-1500, range_low=800, range_high=3300)
    turned = dataclasses.replace(right, motors={**right.motors, "shoulder_pan": pan})
    with bench("koch", turned, start=(1.5, 0, 0, 0, 0, 0.5)) as it, it.arm() as arm:
        assert it.twin.observe()["registers"][1]["present_position"] < 0
        assert arm.state().positions[0] == pytest.approx(1.5, abs=CLOSE_RAD)
        goal = np.array([-1.5, 0, 0, 0, 0])
        arm.command(goal)
        state = read_until(arm, lambda s: abs(s.positions[0] + 1.5) < CLOSE_RAD)
        assert state.positions[0] == pytest.approx(-1.5, abs=CLOSE_RAD)
        assert it.twin.observe()["positions"][0] == pytest.approx(-1.5, abs=TRUE_RAD)


def test_a_motor_that_starts_anew_a_turn_off_is_a_fault_and_never_reads_a_turn_off() -> None:
    own = default_calibration(MODELS["koch"])
    pan = dataclasses.replace(own.motors["shoulder_pan"], homing_offset=-1500, range_low=800, range_high=3300)
    turned = dataclasses.replace(own, motors={**own.motors, "shoulder_pan": pan})
    with bench("koch", turned, start=(-1.5, 0, 0, 0, 0, 0.5)) as it, it.arm() as arm:
        goal = np.array([1.5, 0, 0, 0, 0])
        arm.command(goal)
        read_until(arm, lambda s: abs(s.positions[0] - 1.5) < CLOSE_RAD)
        before = it.twin.observe()["registers"][1]["present_position"]
        it.fault(reboot=True)
        assert abs(it.twin.observe()["registers"][1]["present_position"] - before) > 4000
        it.fault()
        state = arm.state()
        while state.condition is not Condition.FAULT:
            assert state.positions[0] == pytest.approx(1.5, abs=0.05)
            state = arm.state()
        assert state.positions[0] == pytest.approx(1.5, abs=0.05)
        arm.recover()
        assert read_until(arm, ready).positions[0] == pytest.approx(1.5, abs=0.05)
        arm.command(np.array([1.0, 0, 0, 0, 0]))
        read_until(arm, lambda s: abs(s.positions[0] - 1.0) < CLOSE_RAD)
        assert it.twin.observe()["positions"][0] == pytest.approx(1.0, abs=TRUE_RAD)


def test_a_leaders_wrist_goes_over_the_seam_of_its_encoder_without_a_leap() -> None:
    seen = []
    with (
        bench("so101", hand_hz=0.3, reach=1.0, stops={"wrist_roll": (-1.0, 3.6)}) as it,
        ServoLeader("leader", it.model, it.calibration, it.bus()) as leader,
    ):
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            intent = leader.read()
            if intent.enabled and intent.positions is not None:
                seen.append(intent.positions[4])
    assert max(seen) > np.pi + 0.1
    assert np.abs(np.diff(seen)).max() < 3


def test_a_homing_offset_that_does_not_count_in_the_motors_mode_is_refused() -> None:
    own = default_calibration(MODELS["koch"])
    pan = dataclasses.replace(own.motors["shoulder_pan"], homing_offset=-1500)
    with bench("koch", dataclasses.replace(own, motors={**own.motors, "shoulder_pan": pan})) as it:
        bus = it.bus()
        bus.open()
        bus.write(1, "operating_mode", 3)
        bus.close()
        with pytest.raises(DeviceError, match=r"motor 1 \(shoulder_pan\) was set to position control"):
            it.arm().connect()


@pytest.mark.parametrize("kind", KINDS)
def test_a_joint_that_counts_backwards_and_a_shifted_zero_come_out_right(kind: str) -> None:
    right = default_calibration(MODELS[kind])
    elbow = dataclasses.replace(right.motors["elbow_flex"], direction=-1, zero=2100, homing_offset=321)
    gripper = dataclasses.replace(right.motors["gripper"], direction=-1)
    turned = dataclasses.replace(right, motors={**right.motors, "elbow_flex": elbow, "gripper": gripper})
    with bench(kind, turned, start=(0, 0, 0.3, 0, 0, 0.8)) as it, it.arm() as arm:
        state = read_until(arm, ready)
        assert state.positions[2] == pytest.approx(0.3, abs=CLOSE_RAD)
        assert state.gripper == pytest.approx(0.8, abs=0.02)
        arm.command(np.array([0, 0, -0.4, 0, 0]), 0.1)
        read_until(arm, lambda s: abs(s.positions[2] + 0.4) < CLOSE_RAD and s.gripper < 0.12)
        truth = it.twin.observe()["positions"]
        assert truth[2] == pytest.approx(-0.4, abs=TRUE_RAD)
        assert truth[5] == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sdks_print_nothing(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    with bench(kind) as it, it.arm() as arm:
        it.fault(corrupt=1.0)
        arm.state()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["so101", "koch_leader"])
def test_a_leader_is_off_follows_the_hand_and_is_not_enabled_when_a_motor_is_silent(kind: str) -> None:
    with bench(kind, hand_hz=0.5) as it:
        with ServoLeader("leader", it.model, it.calibration, it.bus()) as leader:
            assert not any(it.twin.observe()["torque"].values())
            seen = []
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                before = it.twin.observe()["positions"][:5]
                intent = leader.read()
                after = it.twin.observe()["positions"][:5]
                if intent.enabled and intent.positions is not None:  # otherwise it is not new
                    seen.append(intent.positions)
                    assert (intent.positions > np.minimum(before, after) - 0.2).all()
                    assert (intent.positions < np.maximum(before, after) + 0.2).all()
            assert np.ptp(seen, axis=0).min() > 0.1
            it.fault(silent=(3,))
            assert not leader.read().enabled
        with pytest.raises(DeviceGoneError):
            leader.read()


def test_a_twin_rig_gives_its_default_calibration_as_a_file(root: Path) -> None:
    with with_twins(load_rig(root / "hardware/rigs/gello_twin.yaml")) as (rig, _):
        config = rig.teleoperators["leader"]
        path = getattr(config, "calibration")  # noqa: B009
        assert load_calibration(path, MODELS["gello6"]) == default_calibration(MODELS["gello6"])


def test_an_arm_without_calibration_is_refused_and_told_how_to_get_one(tmp_path: Path) -> None:
    rig = tmp_path / "rig.yaml"
    rig.write_text("arms:\n  arm: {kind: so101, port: /dev/ttyACM0}\n")
    with pytest.raises(DeviceError, match="robolearn calibrate"):
        load_rig(rig).arms["arm"].open("arm")
    rig.write_text("arms:\n  arm: {kind: so101, port: /dev/ttyACM0, reply_s: 3}\n")
    with pytest.raises(DeviceError, match="reply_s"):
        load_rig(rig)
