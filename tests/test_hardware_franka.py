"""Franka arms through the genuine pylibfranka and franky, against franky-sim in an environment of its own.

franky-sim is a Research 3. The session of the FER, which is the same SDK built for an older robot, runs against it as
far as the two are alike: told that the robot it looks for is called "fr3".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_arms import eventually, poll, reaches

from robolearn_hardware.devices import Arm, Condition, DeviceError, DeviceGoneError, LimitError, NotReadyError
from robolearn_hardware.network.fer import FerConfig
from robolearn_hardware.network.fr3 import Fr3Config
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.twins.franka import START, FrankaTwin, sim_python
from robolearn_hardware.twins.process import Twin

RIGS = Path(__file__).parents[1] / "hardware" / "rigs"
TARGET = np.array(START) + 0.05
CLOSE = 0.02  # rad; what gravity and friction leave at the FER's stiffness

if find_spec("pylibfranka") is None or find_spec("franky") is None:  # looked for only: one process cannot have both
    pytest.skip("needs pylibfranka and franky-control", allow_module_level=True)
with_simulator = pytest.mark.skipif(sim_python() is None, reason="no franky-sim here: make franka-sim")


Fr3AsFerConfig = partial(FerConfig, urdf="fr3")
KINDS = [pytest.param(Fr3Config, id="fr3"), pytest.param(Fr3AsFerConfig, id="fer")]


@contextmanager
def twin_and_arm(
    kind: Callable[..., Any] = Fr3Config, gripper: Any = "none", **settings: Any
) -> Iterator[tuple[Twin, Arm]]:
    with Twin(partial(FrankaTwin, **settings)) as twin:
        arm = kind(twin.address, realtime="ignore", gripper=gripper).open("arm")
        try:
            yield twin, arm
        finally:
            arm.close()


@with_simulator
@pytest.mark.parametrize("name", ["fr3", "fer"])
def test_the_twin_rig_moves_arm_and_hand(name: str) -> None:
    assert load_rig(RIGS / f"{name}.yaml").arms.keys() == {"arm"}
    with (
        with_twins(load_rig(RIGS / f"{name}_twin.yaml")) as (rig, twins),
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
@pytest.mark.parametrize("kind", KINDS)
def test_hold_ends_a_motion_and_release_takes_no_commands(kind: Any) -> None:
    with twin_and_arm(kind) as (twin, arm):
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
def test_a_fer_is_refused_by_the_sdk_of_a_research_3() -> None:
    with twin_and_arm(reports="fer") as (_, arm), pytest.raises(DeviceError, match="server version: 5"):
        arm.connect()
    with (
        twin_and_arm(FerConfig, reports="fer") as (_, arm),
        pytest.raises(DeviceError, match=r"built for libfranka 0\.9"),
    ):
        arm.connect()


@with_simulator
def test_a_research_3_is_not_driven_as_a_fer() -> None:
    with twin_and_arm(FerConfig) as (_, arm), pytest.raises(DeviceError, match="is a 'fr3', the rig says fer"):
        arm.connect()


@with_simulator
def test_a_joint_past_its_limit_at_connect_is_refused_and_named() -> None:
    with (
        twin_and_arm(start=(0.0, -0.4, 0.0, -0.12, 0.0, 1.6, 0.8)) as (_, arm),
        pytest.raises(DeviceError, match=r"joint 3 stands at -0\.1"),
    ):
        arm.connect()


@with_simulator
@pytest.mark.parametrize("kind", KINDS)
def test_a_reflex_in_motion_holds_and_is_recovered_without_a_jump(kind: Any) -> None:
    with twin_and_arm(kind) as (twin, arm):
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
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_reflex_at_connect_it_reads_refuses_and_recovers(kind: Any) -> None:
    with twin_and_arm(kind) as (twin, arm):
        twin.fault(protective_stop=True)
        with pytest.raises(NotReadyError, match="joint_reflex"):
            arm.connect()
        assert arm.state().condition == Condition.PROTECTIVE_STOP
        arm.recover()
        arm.command(TARGET)
        reaches(twin, TARGET, CLOSE)


@with_simulator
@pytest.mark.parametrize("kind", KINDS)
def test_the_user_stop_is_for_a_person_to_release(kind: Any) -> None:
    with twin_and_arm(kind) as (twin, arm):
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
@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_robot_is_noticed_within_the_deadline_and_mended_by_connect(kind: Any) -> None:
    with twin_and_arm(kind) as (twin, arm):
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
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_reboot_it_connects_in_the_same_process(kind: Any) -> None:
    with twin_and_arm(kind) as (twin, arm):
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
