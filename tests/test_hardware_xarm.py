"""UFACTORY arms through the genuine xarm-python-sdk, against the twin of their control box."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_arms import eventually, poll, reaches, rests

from robolearn_hardware.devices import Arm, Condition, DeviceError, DeviceGoneError, LimitError, NotReadyError
from robolearn_hardware.network import link
from robolearn_hardware.network.xarm import Lite6Config, Xarm5Config, Xarm6Config, Xarm7Config, XarmConfig
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.twins.process import Twin
from robolearn_hardware.twins.xarm import MODELS, XarmTwin


def can_open_port_502() -> bool:
    try:
        Twin(partial(XarmTwin, "xarm6")).close()
    except DeviceError as error:
        return "may not open port" not in str(error)
    return True


pytest.importorskip("xarm", reason="needs xarm-python-sdk")
pytestmark = pytest.mark.skipif(
    not can_open_port_502(), reason="port 502 is for root; sudo sysctl net.ipv4.ip_unprivileged_port_start=502"
)

RIGS = Path(__file__).parents[1] / "hardware" / "rigs"
START = np.array(MODELS["xarm6"].start)
FAR = START + np.array([3.0, 0, 0, 0, 0, 0])


@contextmanager
def twin_and_arm(**settings: Any) -> Iterator[tuple[Twin, Arm]]:
    with Twin(partial(XarmTwin, "xarm6", **settings)) as twin:
        arm = Xarm6Config(twin.address).open("arm")
        try:
            yield twin, arm
        finally:
            arm.close()


@pytest.mark.parametrize("kind", [Xarm5Config, Xarm6Config, Xarm7Config, Lite6Config])
def test_every_model_connects_reads_and_moves(kind: type[XarmConfig]) -> None:
    with Twin(partial(XarmTwin, kind.MODEL)) as twin, kind(twin.address).open("arm") as arm:
        assert (arm.info.model, arm.info.firmware) == (kind.MODEL, "2.5.0")
        assert arm.info.serial == MODELS[kind.MODEL].serial
        eventually(lambda: arm.state().condition == Condition.READY)
        state = arm.state()
        np.testing.assert_allclose(state.positions, MODELS[kind.MODEL].start, atol=1e-6)
        assert state.temperatures is not None
        target = state.positions + 0.05
        arm.command(target)
        reaches(twin, target)
        eventually(lambda: bool(np.abs(arm.state().positions - target).max() < 1e-3))


@pytest.mark.parametrize(("rig_name", "goal", "arrives"), [("xarm7", 0.7, 0.7), ("lite6", 0.7, 1.0)])
def test_the_twin_rig_moves_arm_and_gripper(rig_name: str, goal: float, arrives: float) -> None:
    """The Lite 6 gripper knows open and closed only."""
    assert load_rig(RIGS / f"{rig_name}.yaml").arms.keys() == {"arm"}
    with (
        with_twins(load_rig(RIGS / f"{rig_name}_twin.yaml")) as (rig, twins),
        rig.arms["arm"].open("arm") as arm,  # type: ignore[attr-defined]
    ):
        target = arm.state().positions + 0.05
        arm.command(target, goal)
        reaches(twins["arm"], target)
        eventually(lambda: abs(twins["arm"].observe()["gripper"] - arrives) < 0.01)
        eventually(lambda: abs(arm.state().gripper - arrives) < 0.01)
        arm.command(target, 0.0)
        eventually(lambda: arm.state().gripper < 0.01)


@pytest.mark.parametrize(("serial", "low"), [("XI130412000001", -118), ("XI130512000001", -117)])
def test_the_serial_number_decides_which_revision_s_limits_hold(serial: str, low: float) -> None:
    with twin_and_arm(serial=serial) as (_, arm):
        arm.connect()
        assert arm.info.limits.low[1] == pytest.approx(np.radians(low))


def test_a_command_that_must_not_be_given_is_refused_and_the_last_one_holds() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.command(START + 0.05)
        for wrong in (np.full(6, np.nan), np.zeros(7), START + 10.0):
            with pytest.raises(LimitError):
                arm.command(wrong)
        with pytest.raises(LimitError, match="no gripper"):
            arm.command(START, 0.5)
        reaches(twin, START + 0.05)
        assert twin.observe()["error"] == 0


def test_hold_ends_a_motion() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.command(FAR)
        eventually(lambda: twin.observe()["positions"][0] > 0.1)
        arm.hold()
        stood = twin.observe()["positions"][0]
        rests(twin)
        assert twin.observe()["positions"][0] < min(stood + 0.15, 2.9), (
            "it goes no further, perhaps back to where it was read"
        )


def test_released_it_takes_no_commands_until_it_is_held() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.release()
        assert arm.state().condition == Condition.RELEASED
        assert twin.observe()["mode"] == 2
        with pytest.raises(NotReadyError, match="hold ends that"):
            arm.command(START)
        arm.hold()
        arm.command(START + 0.05)
        reaches(twin, START + 0.05)


def test_nothing_at_the_address_is_an_error_that_names_it() -> None:
    with pytest.raises(DeviceError, match=r"arm: 127\.9\.9\.9:502 \(commands\) refuses connections"):
        Xarm6Config("127.9.9.9").open("arm").connect()
    with pytest.raises(DeviceError, match="no host 'no such host'"):
        Xarm6Config("no such host").open("arm").connect()


def test_a_box_that_accepts_and_never_answers_costs_the_deadline_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_S", 3.0)
    with twin_and_arm() as (twin, arm):
        twin.fault(lose=1.0)
        began = time.monotonic()
        with pytest.raises(DeviceError, match="did not connect within 3 s"):
            arm.connect()
        assert time.monotonic() - began < 8
        monkeypatch.undo()
        twin.fault()
        arm.connect()


@pytest.mark.parametrize("reports", ["xarm7", "lite6"])
def test_another_arm_than_the_rig_says_is_refused(reports: str) -> None:
    """A Lite 6 has as many axes as an xArm 6: its type tells them apart."""
    with twin_and_arm(reports=reports) as (_, arm), pytest.raises(DeviceError, match="the rig says xarm6"):
        arm.connect()


def test_a_joint_past_its_limit_at_connect_is_refused_and_named() -> None:
    with (
        twin_and_arm(start=(0.0, -0.5, 0.3, 0.0, 1.1, 0.0)) as (_, arm),
        pytest.raises(DeviceError, match=r"joint 2 stands at 0\.300 rad, outside its limits -3\.927 to 0\.192"),
    ):
        arm.connect()


def test_in_an_error_at_connect_it_reads_refuses_and_recovers() -> None:
    with twin_and_arm(error=31) as (twin, arm):
        with pytest.raises(NotReadyError, match="error 31: Collision Caused Abnormal Current; recover clears it"):
            arm.connect()
        assert arm.state().condition == Condition.PROTECTIVE_STOP
        with pytest.raises(NotReadyError, match="PROTECTIVE_STOP"):
            arm.command(START)
        arm.recover()
        arm.command(START + 0.05)
        reaches(twin, START + 0.05)


def test_a_collision_in_motion_holds_and_what_was_told_before_is_not_done_after() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.command(FAR)
        eventually(lambda: twin.observe()["positions"][0] > 0.1)
        twin.fault(protective_stop=True)
        eventually(lambda: arm.state().condition == Condition.PROTECTIVE_STOP)
        arm.recover()
        stood = twin.observe()["positions"]
        time.sleep(0.3)
        np.testing.assert_allclose(twin.observe()["positions"], stood, atol=0.05)
        eventually(lambda: arm.state().condition == Condition.READY)


def test_a_hot_motor_is_a_fault_that_names_the_servo() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(hot=(2,))
        eventually(lambda: arm.state().condition == Condition.FAULT)
        with pytest.raises(NotReadyError, match="error 13"):
            arm.command(START)
        eventually(lambda: np.flatnonzero(np.array(arm.state().temperatures) > 90).tolist() == [2])
        twin.fault()
        arm.recover()
        assert arm.state().condition == Condition.READY


def test_an_emergency_stop_is_for_a_person_to_release() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(emergency_stop=True)
        eventually(lambda: arm.state().condition == Condition.EMERGENCY_STOP)
        with pytest.raises(NotReadyError, match="release it, then recover"):
            arm.recover()
        twin.fault()
        arm.recover()
        arm.command(START + 0.05)
        reaches(twin, START + 0.05)


def test_after_a_reboot_it_connects_in_the_same_process() -> None:
    with twin_and_arm(reboot_s=0.5) as (twin, arm):
        arm.connect()
        twin.fault(reboot=True)
        with pytest.raises(DeviceGoneError):
            poll(arm, 3.0)

        def connects() -> bool:
            try:
                arm.connect()
            except DeviceError:
                return False
            return True

        eventually(connects)
        arm.command(START + 0.05)
        reaches(twin, START + 0.05)


def test_a_cut_cable_is_noticed_within_the_deadline_and_mended_by_connect() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(unplugged=True)
        with pytest.raises(DeviceGoneError, match="check cable and power"):
            poll(arm, 5.0)
        with pytest.raises(DeviceError):
            arm.connect()
        twin.fault()
        arm.connect()
        assert arm.state().condition == Condition.READY


def test_a_box_that_dies_under_the_driver_is_gone() -> None:
    with Twin(partial(XarmTwin, "xarm6")) as twin:
        arm = Xarm6Config(twin.address).open("arm")
        arm.connect()
        twin._process.kill()
        with pytest.raises(DeviceGoneError):
            poll(arm, 5.0)
        with pytest.raises(DeviceGoneError):
            arm.hold()
        arm.close()


def test_truncated_replies_never_become_a_wrong_reading() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(truncate=0.1)
        with pytest.raises(DeviceGoneError):
            poll(arm, 20.0, lambda state: np.testing.assert_allclose(state.positions, START, atol=1e-6))
        twin.fault()
        arm.connect()
        assert arm.state().condition == Condition.READY


def test_lost_replies_degrade_a_reading_and_the_arm_still_follows() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(lose=0.1)
        arm.command(START + 0.05)
        seen = set()
        poll(arm, 1.0, lambda state: seen.add(state.condition))
        assert seen == {Condition.READY, Condition.DEGRADED}
        reaches(twin, START + 0.05)
