"""Calibrating a servo arm over its bus, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servo_twins import KINDS, bench, read_until, ready

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.servo.arm import ServoArm
from robolearn_hardware.servo.calibration import (
    Calibration,
    MotorCalibration,
    calibrate_middle,
    check_calibration,
    default_calibration,
    load_calibration,
    record_ranges,
    save_calibration,
)
from robolearn_hardware.servo.models import MODELS
from robolearn_hardware.servo.registers import RAD_PER_TICK


def motors() -> st.SearchStrategy[MotorCalibration]:
    return st.builds(
        MotorCalibration,
        id=st.integers(0, 252),
        motor=st.sampled_from(["sts3215", "xl330-m288"]),
        homing_offset=st.integers(-2047, 2047),
        range_low=st.integers(0, 1900),
        range_high=st.integers(2100, 4095),
        zero=st.integers(0, 4095),
        direction=st.sampled_from([-1, 1]),
    )


@given(motors(), st.floats(-3, 3), st.floats(0, 1))
def test_ticks_and_angles_are_each_others_inverse(motor: MotorCalibration, angle: float, opening: float) -> None:
    assert motor.radians(motor.ticks(angle)) == pytest.approx(angle, abs=RAD_PER_TICK)
    assert motor.opening(motor.opening_ticks(opening)) == pytest.approx(opening, abs=0.01)
    low, high = motor.ends
    assert high - low == pytest.approx((motor.range_high - motor.range_low) * RAD_PER_TICK)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_saved_calibration_is_read_back_the_same(tmp_path: Path, data: st.DataObject) -> None:
    model = MODELS["so101"]
    ids = data.draw(st.lists(st.integers(0, 252), min_size=6, max_size=6, unique=True))
    each = {
        joint.name: dataclasses.replace(data.draw(motors()), id=id) for joint, id in zip(model.motors, ids, strict=True)
    }
    calibration = Calibration("so101", each)
    save_calibration(tmp_path / "c.yaml", calibration)
    assert load_calibration(tmp_path / "c.yaml", model) == calibration


def test_the_factorys_gripper_range_is_kept_in_the_file(tmp_path: Path) -> None:
    calibration = default_calibration(MODELS["viperx"])
    save_calibration(tmp_path / "c.yaml", calibration)
    read = load_calibration(tmp_path / "c.yaml", MODELS["viperx"])
    assert read == calibration
    assert read.motors["gripper"].stored_range == (0, 4095)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("arm: so101", "arm: koch", "of kind koch, not so101"),
        ("version: 1", "version: 9", "of version 9, valid: 1"),
        ("motors:", "engines:", "motors"),
        ("elbow_flex", "knee", "elbow_flex, knee"),
        ("id: 3", "id: 2", "two motors have the same id"),
        ("id: 3", "id: many", "elbow_flex.id"),
        ("direction: 1", "direction: 2", "direction is 1 or -1"),
        ("motor: sts3215", "motor: steam", "sts3215"),
        ("range_low: 910", "range_low: 3999", "range_low must be below range_high"),
        ("zero: 2048", "zero: 2048, colour: red", "colour"),
        ("version: 1", "version: 1: 2", "is not YAML"),
    ],
)
def test_a_broken_calibration_file_is_one_line_that_says_where(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "c.yaml"
    save_calibration(path, default_calibration(MODELS["so101"]))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DeviceError) as error:
        load_calibration(path, MODELS["so101"])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_calibration_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"no calibration .*: No such file or directory; `robolearn calibrate`"):
        load_calibration(tmp_path / "c.yaml", MODELS["so101"])


def test_fingerprints_differ_where_arms_do() -> None:
    own = default_calibration(MODELS["so101"])
    elbow = dataclasses.replace(own.motors["elbow_flex"], homing_offset=1)
    other = dataclasses.replace(own, motors={**own.motors, "elbow_flex": elbow})
    assert own.fingerprint == default_calibration(MODELS["so101"]).fingerprint
    assert own.fingerprint != other.fingerprint


def test_a_calibration_that_leaves_a_joint_no_range_is_refused() -> None:
    own = default_calibration(MODELS["so101"])
    elbow = dataclasses.replace(own.motors["elbow_flex"], zero=6000)
    with bench("so101") as it, pytest.raises(DeviceError, match="joint 2 would have no range left"):
        it.arm(dataclasses.replace(own, motors={**own.motors, "elbow_flex": elbow}))


@pytest.mark.parametrize("kind", KINDS)
def test_calibrating_the_middle_makes_it_the_middle_and_the_motors_remember(kind: str) -> None:
    """The twin's motors were mounted anyhow: half a turn and more away from where the model has them."""
    assembled = default_calibration(MODELS[kind])
    offsets = [1700, -900, 30, -1999, 444, 2000]
    mounted = {
        name: dataclasses.replace(motor, homing_offset=offset)
        for (name, motor), offset in zip(assembled.motors.items(), offsets, strict=True)
    }
    with bench(kind, dataclasses.replace(assembled, motors=mounted), start=(0, 0, 0, 0, 0, 0.5)) as it:
        bus = it.bus()
        bus.open()
        calibration = calibrate_middle(bus, it.model)
        for motor in calibration.motors.values():
            assert abs(bus.read(motor.id, "present_position") - 2048) <= 1
            assert motor.motor in ("sts3215", "xl430-w250", "xl330-m288")
        it.fault(reboot=True)
        time.sleep(0.4)
        it.fault()
        check_calibration(bus, calibration)
        bus.close()


def test_calibrating_in_a_known_pose_puts_zero_where_that_pose_says() -> None:
    with bench("gello6", start=(0, 0, 0, 0, 0, 0, 0.5)) as it:
        bus = it.bus()
        bus.open()
        pose = (0.0, -math.pi / 2, math.pi / 2, -math.pi / 2, -math.pi / 2, 0.0, 0.0)
        calibration = calibrate_middle(bus, it.model, pose)
        for motor, angle in zip(calibration.motors.values(), pose, strict=True):
            assert motor.radians(bus.read(motor.id, "present_position")) == pytest.approx(angle, abs=0.01)
        bus.close()


@pytest.mark.parametrize("kind", KINDS)
def test_recording_the_ranges_gives_an_arm_that_connects_with_its_true_limits(kind: str, tmp_path: Path) -> None:
    stops = {
        "shoulder_pan": (-1.5, 1.7),
        "shoulder_lift": (-1.2, 1.2),
        "elbow_flex": (-1.0, 1.3),
        "wrist_flex": (-1.4, 1.1),
        "wrist_roll": (-1.0, 1.0),
    }
    with bench(kind, stops=stops, hand_hz=0.4, reach=1.0) as it:
        bus = it.bus()
        bus.open()
        middle = default_calibration(it.model)
        end = time.monotonic() + 3.5
        calibration = record_ranges(bus, middle, lambda: time.monotonic() > end)
        full = {joint.name for joint in it.model.motors if joint.full_turn}
        assert "wrist_roll" in full
        for name, (low, high) in stops.items():
            if name in full:
                assert (calibration.motors[name].range_low, calibration.motors[name].range_high) == (
                    middle.motors[name].range_low,
                    middle.motors[name].range_high,
                )
                continue
            found = calibration.motors[name]
            assert (found.range_high - found.range_low) * RAD_PER_TICK == pytest.approx(high - low, abs=0.06)
        if kind == "so101":  # its limits are published: zero lies in their middle
            pan = calibration.motors["shoulder_pan"]
            assert pan.radians((pan.range_low + pan.range_high) / 2) == pytest.approx(0, abs=0.01)
        bus.close()
        save_calibration(tmp_path / "c.yaml", calibration)
        with ServoArm("arm", it.model, load_calibration(tmp_path / "c.yaml", it.model), it.bus()) as arm:
            assert ready(read_until(arm, ready))
            span = arm.info.limits.high - arm.info.limits.low
            assert np.allclose(span[1:4], [2.4, 2.3, 2.5], atol=0.06)


def test_a_joint_that_was_not_moved_is_named() -> None:
    with bench("so101") as it:
        bus = it.bus()
        bus.open()
        with pytest.raises(DeviceError, match=r"shoulder_pan was moved by 0\.0\d rad; move every joint"):
            record_ranges(bus, it.calibration, iter([False, False, True]).__next__)
        bus.close()
