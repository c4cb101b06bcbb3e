"""Universal Robots arms through the genuine ur_rtde, against the twin of their controller."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_arms import eventually, poll, reaches

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import Arm, Condition, DeviceError, DeviceGoneError, LimitError, NotReadyError
from robolearn_hardware.network import link
from robolearn_hardware.network.setpoints import Setpoints
from robolearn_hardware.network.ur import Ur3eConfig, Ur5eConfig, Ur10eConfig, Ur16eConfig, Ur20Config, UrConfig
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.process import Twin
from robolearn_hardware.twins.ur.server import START, UrTwin

pytest.importorskip("rtde_control", reason="needs ur_rtde")

RIGS = Path(__file__).parents[1] / "hardware" / "rigs"
MODELS = [Ur3eConfig, Ur5eConfig, Ur10eConfig, Ur16eConfig, Ur20Config]


@contextmanager
def twin_and_arm(**settings: Any) -> Iterator[tuple[Twin, Arm]]:
    with Twin(partial(UrTwin, "ur5e", **settings)) as twin:
        arm = Ur5eConfig(twin.address, rate_hz=125).open("arm")
        try:
            yield twin, arm
        finally:
            arm.close()


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_connects_reads_and_moves(kind: type[UrConfig]) -> None:
    with Twin(partial(UrTwin, kind.MODEL)) as twin, kind(twin.address, rate_hz=125).open("arm") as arm:
        assert (arm.info.model, arm.info.serial, arm.info.firmware) == (kind.MODEL, "20225500001", "5.12.0.1096")
        state = arm.state()
        np.testing.assert_allclose(state.positions, START)
        assert state.condition == Condition.READY
        assert state.wrench is not None
        assert state.temperatures is not None
        target = np.array(START) + 0.05
        arm.command(target)
        reaches(twin, target)
        eventually(lambda: np.abs(arm.state().positions - target).max() < 1e-3)


def test_the_twin_rig_moves_and_the_real_rig_names_the_same_devices() -> None:
    assert load_rig(RIGS / "ur5e.yaml").arms.keys() == load_rig(RIGS / "ur5e_twin.yaml").arms.keys()
    with with_twins(load_rig(RIGS / "ur5e_twin.yaml")) as (rig, twins), rig.arms["arm"].open("arm") as arm:  # type: ignore[attr-defined]
        target = arm.state().positions + 0.02
        arm.command(target)
        reaches(twins["arm"], target)


def test_a_twin_moves_the_joints_of_a_mujoco_model() -> None:
    if not [entry for entry in entry_points(group="robolearn.plants") if entry.name == "mujoco"]:
        pytest.skip("no plant 'mujoco' is installed")
    with Twins() as twins, Ur5eConfig("twin", plant="mujoco").with_twin("arm", twins).open("arm") as arm:
        target = arm.state().positions + 0.05
        arm.command(target)
        reaches(twins["arm"], target, 0.01)


def test_capture_times_grow_and_never_lie_after_the_receipt() -> None:
    with twin_and_arm() as (_, arm):
        arm.connect()
        seen = []
        while len(seen) < 20:
            state = arm.state()
            assert state.capture_ns <= state.received_ns <= now_ns()
            if not seen or state.capture_ns != seen[-1]:
                seen.append(state.capture_ns)
        assert (np.diff(seen) > 0).all()


def test_a_command_that_must_not_be_given_is_refused_and_the_last_one_holds() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        target = np.array(START) + 0.05
        arm.command(target)
        for wrong, says in [
            (np.full(6, np.nan), "NaN"),
            (np.zeros(7), "shape"),
            (np.array([7.0, 0, 0, 0, 0, 0]), "limits are -6.283"),
        ]:
            with pytest.raises(LimitError, match=says):
                arm.command(wrong)
        with pytest.raises(LimitError, match="no gripper"):
            arm.command(target, 0.5)
        reaches(twin, target)


def test_hold_ends_a_motion() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.command(np.array(START) + 1.5)
        eventually(lambda: twin.observe()["positions"][0] > 0.1)
        arm.hold()
        stood = twin.observe()["positions"]
        time.sleep(0.3)
        assert np.abs(twin.observe()["positions"] - stood).max() < 0.15
        assert twin.observe()["positions"][0] < 1.4


def test_released_it_takes_no_commands_until_it_is_held() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        arm.release()
        assert arm.state().condition == Condition.RELEASED
        time.sleep(0.5)  # longer than the watchdog waits
        assert arm.state().condition == Condition.RELEASED
        with pytest.raises(NotReadyError, match="hold ends that"):
            arm.command(np.array(START))
        arm.hold()
        arm.command(np.array(START) + 0.05)
        reaches(twin, np.array(START) + 0.05)


def test_nothing_at_the_address_is_an_error_that_names_it() -> None:
    arm = Ur5eConfig("127.9.9.9").open("arm")
    with pytest.raises(DeviceError, match=r"arm: 127\.9\.9\.9:29999 \(dashboard\) refuses connections"):
        arm.connect()
    with pytest.raises(DeviceGoneError, match="not connected"):
        arm.state()


def test_a_controller_that_accepts_and_never_answers_costs_the_deadline_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ur_rtde waits for RTDE's first answer for ever, and keeps the interpreter's lock meanwhile."""
    monkeypatch.setattr(link, "CONNECT_S", 3.0)
    with Twin(partial(UrTwin, "ur5e")) as twin:
        twin.fault(truncate=1.0)
        ticks = 0
        done = threading.Event()

        def count() -> None:
            nonlocal ticks
            while not done.wait(0.01):
                ticks += 1

        threading.Thread(target=count).start()
        arm = Ur5eConfig(twin.address).open("arm")
        began = time.monotonic()
        with pytest.raises(DeviceError, match="did not connect within 3 s"):
            arm.connect()
        done.set()
        assert time.monotonic() - began < 8
        assert ticks > 50  # this process went on
        monkeypatch.undo()
        twin.fault()
        arm.connect()
        arm.close()


def test_a_server_that_is_no_controller_is_an_error() -> None:
    with socket.socket() as server:
        server.bind(("127.9.9.10", 29999))
        server.listen()
        with pytest.raises(DeviceError, match=r"127\.9\.9\.10:30004 \(RTDE\) refuses"):
            Ur5eConfig("127.9.9.10").open("arm").connect()


def test_another_model_than_the_rig_says_is_refused() -> None:
    with twin_and_arm(reports="UR10") as (_, arm), pytest.raises(DeviceError, match="is a 'UR10', the rig says ur5e"):
        arm.connect()


def test_a_joint_past_its_limit_at_connect_is_refused_and_named() -> None:
    start = (0.0, -1.5, 1.5, -1.5, 6.5, 0.0)
    with Twin(partial(UrTwin, "ur5e", start=start)) as twin:
        with pytest.raises(DeviceError, match=r"joint 4 stands at 6\.500 rad, outside its limits -6\.283 to 6\.283"):
            Ur5eConfig(twin.address, rate_hz=125).open("arm").connect()
        assert not twin.observe()["commands"] or not twin.observe()["playing"]


def test_in_local_control_it_reads_and_says_where_to_switch() -> None:
    with twin_and_arm(remote_control=False) as (twin, arm):
        with pytest.raises(NotReadyError, match="not in remote control; switch it"):
            arm.connect()
        np.testing.assert_allclose(arm.state().positions, START)
        with pytest.raises(NotReadyError):
            arm.command(np.array(START))
        assert twin.observe()["uploads"] == 0


def test_in_a_protective_stop_at_connect_it_reads_refuses_and_recovers() -> None:
    with twin_and_arm(protective_stop=True, unlock_after_s=1.0) as (twin, arm):
        with pytest.raises(NotReadyError, match="protective stop; see why"):
            arm.connect()
        assert arm.state().condition == Condition.PROTECTIVE_STOP
        with pytest.raises(NotReadyError, match="PROTECTIVE_STOP"):
            arm.command(np.array(START))
        arm.recover()
        assert arm.state().condition == Condition.READY
        arm.command(np.array(START) + 0.05)
        reaches(twin, np.array(START) + 0.05)


@pytest.mark.slow
def test_recovery_waits_as_long_as_a_controller_refuses_to_unlock() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        began = time.monotonic()
        twin.fault(protective_stop=True)
        arm.recover()
        assert time.monotonic() - began > 4.9
        assert arm.state().condition == Condition.READY


def test_a_protective_stop_in_motion_holds_and_what_was_told_before_is_not_done_after() -> None:
    with twin_and_arm(unlock_after_s=0.3) as (twin, arm):
        arm.connect()
        arm.command(np.array(START) + 2.0)
        eventually(lambda: twin.observe()["positions"][0] > 0.2)
        twin.fault(protective_stop=True)
        eventually(lambda: arm.state().condition == Condition.PROTECTIVE_STOP)
        arm.recover()
        stood = twin.observe()["positions"]
        time.sleep(0.3)
        np.testing.assert_allclose(twin.observe()["positions"], stood, atol=0.05)


def test_an_emergency_stop_is_for_a_person_to_release() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(emergency_stop=True)
        eventually(lambda: arm.state().condition == Condition.EMERGENCY_STOP)
        with pytest.raises(NotReadyError, match="a person must release it"):
            arm.recover()
        twin.fault()
        arm.recover()
        assert arm.state().condition == Condition.READY
        arm.command(np.array(START) + 0.05)
        reaches(twin, np.array(START) + 0.05)


def test_after_a_reboot_it_connects_and_recovers_in_the_same_process() -> None:
    with twin_and_arm(reboot_s=0.5) as (twin, arm):
        arm.connect()
        twin.fault(reboot=True)
        with pytest.raises(DeviceGoneError):
            poll(arm, 3.0)
        eventually(lambda: twin.observe()["mode"] == "POWER_OFF")

        def powered_off() -> bool:
            try:
                arm.connect()
            except NotReadyError as error:
                return "motors are off" in str(error)
            except DeviceError:
                return False
            raise AssertionError("it has no power")

        eventually(powered_off)
        arm.recover()
        arm.command(np.array(START) + 0.05)
        reaches(twin, np.array(START) + 0.05)


def test_a_cut_cable_is_noticed_within_the_deadline_and_mended_by_connect() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(unplugged=True)
        began = time.monotonic()
        with pytest.raises(DeviceGoneError, match=r"check cable and power"):
            poll(arm, 5.0)
        assert time.monotonic() - began > 0.3
        assert not twin.observe()["playing"]  # the watchdog ended the script
        with pytest.raises(DeviceError):
            arm.connect()
        twin.fault()
        arm.connect()
        assert arm.state().condition == Condition.READY


def test_a_controller_that_dies_under_the_driver_is_gone() -> None:
    with Twin(partial(UrTwin, "ur5e")) as twin:
        arm = Ur5eConfig(twin.address, rate_hz=125).open("arm")
        arm.connect()
        twin._process.kill()
        with pytest.raises(DeviceGoneError):
            poll(arm, 5.0)
        with pytest.raises(DeviceGoneError):
            arm.hold()
        arm.close()


def test_readings_that_do_not_change_are_degraded_and_then_gone() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(frozen=True)
        seen = set()
        with pytest.raises(DeviceGoneError):
            poll(arm, 5.0, lambda state: seen.add(state.condition))
        assert Condition.DEGRADED in seen


def test_truncated_packets_never_become_a_wrong_reading() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(truncate=0.1)

        def check(state: Any) -> None:
            np.testing.assert_allclose(state.positions, START, atol=1e-6)

        with pytest.raises(DeviceGoneError):
            poll(arm, 20.0, check)
        twin.fault()
        arm.connect()
        assert arm.state().condition == Condition.READY


def test_a_late_and_lossy_network_is_still_followed() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        twin.fault(latency_s=0.02, lose=0.2, spikes=0.02)
        arm.command(np.array(START) + 0.05)
        reaches(twin, np.array(START) + 0.05)
        assert arm.state().condition in (Condition.READY, Condition.DEGRADED)


def test_a_driver_that_is_stopped_loses_the_arm_to_the_watchdog_and_recovers() -> None:
    with twin_and_arm() as (twin, arm):
        arm.connect()
        process = arm._link.process  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGSTOP)
        try:
            eventually(lambda: not twin.observe()["playing"])
        finally:
            os.kill(process.pid, signal.SIGCONT)

        def faulty() -> bool:
            with suppress(DeviceGoneError):  # on a busy machine it was stopped for longer than a reading is good for
                return arm.state().condition == Condition.FAULT
            return False

        eventually(faulty)
        with pytest.raises(NotReadyError, match="control script does not run"):
            arm.command(np.array(START))
        arm.recover()
        assert arm.state().condition == Condition.READY


MOVES = """
import sys
import time
from robolearn_hardware.network.ur import Ur5eConfig

if __name__ == "__main__":
    arm = Ur5eConfig(sys.argv[1], rate_hz=125).open("arm")
    arm.connect()
    arm.command(arm.state().positions + 3.0)
    print("moving", flush=True)
"""


@contextmanager
def program(text: str, twin: Twin) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", text, twin.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "moving\n"
        yield process


def test_a_program_that_is_killed_leaves_the_arm_held() -> None:
    with Twin(partial(UrTwin, "ur5e")) as twin:
        with program(MOVES + "    time.sleep(60)\n", twin) as process:
            process.kill()
        eventually(lambda: not twin.observe()["playing"])
        assert twin.observe()["positions"][0] < 2.9


def test_a_program_that_forgets_to_close_ends_and_leaves_the_arm_held() -> None:
    with Twin(partial(UrTwin, "ur5e")) as twin:
        with program(MOVES, twin) as process:
            assert process.wait(10) == 0
        assert not twin.observe()["playing"]
        assert twin.observe()["positions"][0] < 2.9


def test_an_unknown_variable_is_refused_as_a_controller_does() -> None:
    """In a process of its own: ur_rtde gives whoever calls it the highest real-time priority, for good."""
    with Twin(partial(UrTwin, "ur5e")) as twin:
        code = f"import rtde_receive; rtde_receive.RTDEReceiveInterface({twin.address!r}, 125.0, ['no_such_variable'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "not found by the controller" in done.stderr


def test_a_fault_that_its_wire_does_not_have_is_refused() -> None:
    with Twin(partial(UrTwin, "ur5e")) as twin, pytest.raises(DeviceError, match="has no fault 'silent'"):
        twin.fault(silent=(3,))


def test_setpoints_arrive_at_the_effect_time_and_no_faster_than_the_joints() -> None:
    setpoints = Setpoints(np.array([1.0, 100.0]))
    assert setpoints.step(0, 0.01) is None
    setpoints.aim(np.zeros(2), np.array([0.5, 0.5]), np.nan, SECOND_NS, 0)
    seen = np.array([setpoints.step(i * 10_000_000, 0.01) for i in range(101)])
    np.testing.assert_allclose(seen[50], [0.25, 0.25])
    np.testing.assert_allclose(seen[100], [0.5, 0.5])
    setpoints.aim(np.zeros(2), np.array([1.5, 1.5]), np.nan, 0, SECOND_NS)
    np.testing.assert_allclose(np.array(setpoints.step(SECOND_NS, 0.01)), [0.51, 1.5])  # the first joint may do 1 rad/s
