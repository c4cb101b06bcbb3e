"""The Franka Research 3 through the genuine pylibfranka, against franky-sim in an environment of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_arms import eventually, poll, reaches

from robolearn_hardware.devices import Arm, Condition, DeviceError, DeviceGoneError, LimitError, NotReadyError
from robolearn_hardware.network.franka import Fr3Config
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.twins.franka import START, FrankaTwin, sim_python
from robolearn_hardware.twins.process import Twin

RIGS = Path(__file__).parents[1] / "hardware" / "rigs"
TARGET = np.array(START) + 0.05
CLOSE = 5e-3  # rad; what gravity and friction leave

pytest.importorskip("pylibfranka", reason="needs pylibfranka")
with_simulator = pytest.mark.skipif(sim_python() is None, reason="no franky-sim here: make franka-sim")


@contextmanager
def twin_and_arm(**settings: Any) -> Iterator[tuple[Twin, Arm]]:
    with Twin(partial(FrankaTwin, **settings)) as twin:
        arm = Fr3Config(twin.address, realtime="ignore", gripper="none").open("arm")
        try:
            yield twin, arm
        finally:
            arm.close()


@with_simulator
def test_the_twin_rig_moves_arm_and_hand() -> None:
    assert load_rig(RIGS / "fr3.yaml").arms.keys() == {"arm"}
    with (
        with_twins(load_rig(RIGS / "fr3_twin.yaml")) as (rig, twins),
        rig.arms["arm"].open("arm") as arm,  # type: ignore[attr-defined]
    ):
        state = arm.state()
        np.testing.assert_allclose(state.positions, START, atol=CLOSE)
        assert state.condition == Condition.READY
        assert state.wrench is not None
        arm.command(TARGET, 0.9)
        reaches(twins["arm"], TARGET, CLOSE)
        eventually(lambda: abs(arm.state().gripper - 0.9) < 0.05)


@with_simulator
def test_a_command_that_must_not_be_given_is_refused_and_the_last_one_holds() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.command(TARGET)
        for wrong in (np.full(7, np.nan), np.zeros(6), np.zeros(7)):  # joint 3 must bend: zero is outside its limits
            with pytest.raises(LimitError):
                arm.command(wrong)
        reaches(twin, TARGET, CLOSE)


@with_simulator
def test_hold_ends_a_motion_and_release_takes_no_commands() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.command(np.array(START) + np.array([1.5, 0, 0, 0, 0, 0, 0]))
        eventually(lambda: twin.observe()["positions"][0] > 0.1)
        arm.hold()
        time.sleep(1.0)
        assert twin.observe()["positions"][0] < 1.3
        arm.release()
        assert arm.state().condition == Condition.RELEASED
        with pytest.raises(NotReadyError, match="hold ends that"):
            arm.command(TARGET)
        arm.hold()
        arm.command(TARGET)
        reaches(twin, TARGET, CLOSE)


def test_nothing_at_the_address_is_an_error_that_names_it() -> None:
    with pytest.raises(DeviceError, match=r"127\.9\.9\.9:1337 \(robot control\) refuses connections"):
        Fr3Config("127.9.9.9").open("arm").connect()


@with_simulator
def test_a_fer_is_refused() -> None:
    with twin_and_arm(reports="fer") as (_, arm), pytest.raises(DeviceError, match="refuses"):
        arm.connect()


@with_simulator
def test_a_joint_past_its_limit_at_connect_is_refused_and_named() -> None:
    with (
        twin_and_arm(start=(0.0, -0.4, 0.0, -0.12, 0.0, 1.6, 0.8)) as (_, arm),
        pytest.raises(DeviceError, match=r"joint 3 stands at -0\.1"),
    ):
        arm.connect()


@with_simulator
def test_a_reflex_in_motion_holds_and_is_recovered_without_a_jump() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.command(np.array(START) + np.array([1.5, 0, 0, 0, 0, 0, 0]))
        eventually(lambda: twin.observe()["positions"][0] > 0.1)
        twin.fault(protective_stop=True)
        eventually(lambda: arm.state().condition == Condition.PROTECTIVE_STOP)
        with pytest.raises(NotReadyError, match="joint_reflex"):
            arm.command(TARGET)
        arm.recover()
        stood = twin.observe()["positions"]
        time.sleep(0.5)
        np.testing.assert_allclose(twin.observe()["positions"], stood, atol=0.1)
        arm.command(TARGET)
        reaches(twin, TARGET, CLOSE)


@with_simulator
def test_in_a_reflex_at_connect_it_reads_refuses_and_recovers() -> None:
    with twin_and_arm() as (twin, arm):
        twin.fault(protective_stop=True)
        with pytest.raises(NotReadyError, match="joint_reflex"):
            arm.connect()
        assert arm.state().condition == Condition.PROTECTIVE_STOP
        arm.recover()
        arm.command(TARGET)
        reaches(twin, TARGET, CLOSE)


@with_simulator
def test_the_user_stop_is_for_a_person_to_release() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(emergency_stop=True)
        eventually(lambda: arm.state().condition == Condition.EMERGENCY_STOP)
        with pytest.raises(NotReadyError, match="a person must release it"):
            arm.recover()
        twin.fault()
        arm.recover()
        arm.command(TARGET)
        reaches(twin, TARGET, CLOSE)


@with_simulator
def test_a_silent_robot_is_noticed_within_the_deadline_and_mended_by_connect() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(unplugged=True)
        began = time.monotonic()
        with pytest.raises(DeviceGoneError):
            poll(arm, 5.0)
        assert time.monotonic() - began > 0.3
        twin.fault()
        arm.connect()
        assert arm.state().condition == Condition.READY


@with_simulator
def test_after_a_reboot_it_connects_in_the_same_process() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(reboot=True)
        with pytest.raises(DeviceGoneError):
            poll(arm, 5.0)
        arm.connect()
        arm.command(TARGET)
        reaches(twin, TARGET, CLOSE)


def test_without_its_environment_the_twin_says_how_to_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOLEARN_FRANKA_SIM", "/nonexistent")
    with pytest.raises(DeviceError, match="make franka-sim"):
        Twin(FrankaTwin)
