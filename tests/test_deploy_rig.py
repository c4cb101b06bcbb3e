"""A whole run on a rig: cameras, policy, servo and recorder, each in its process."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from rig_fakes import RATE_HZ, SinePolicy, spec_of
from servo_bench import simulated_rig

from robolearn.cli.main import main
from robolearn.policies.checkpoint import save_policy
from robolearn.policies.config import POLICIES
from robolearn.policies.policy import Policy
from robolearn.policies.spec import SpecError
from robolearn_data.dataset import Dataset
from robolearn_data.statistics import StreamStatistics
from robolearn_deploy.dashboard.rings import RigRings
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.fast import GuardedMotion
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_log import RigMeasured
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.rig_runtime import run_rig
from robolearn_deploy.stall import State
from robolearn_hardware.rig import load_rig, with_twins

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")

JOINTS = ("joint1", "joint2", "joint3", "joint4", "joint5", "gripper")
SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
ORDINARY = ServoOptions(fifo=False)


class Person:
    """Watches a run and does something once the robot has run for a moment."""

    def __init__(self, acts: Callable[[Person], None] | None = None, *, after_ticks: int = 50) -> None:
        self._acts, self._after = acts, after_ticks
        self.operator: Operator
        self.instruct: Callable[[str], None]
        self.pids: Mapping[str, int] = {}
        self.messages: list[str] = []
        self.states: list[State] = []

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        self.operator, self.instruct, self.pids = operator, instruct, pids

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
        if measured.state is not None and (not self.states or self.states[-1] is not measured.state):
            self.states.append(measured.state)
        if self._acts and measured.ticks_in[State.RUNNING] > self._after:
            act, self._acts = self._acts, None
            act(self)

    def message(self, text: str) -> None:
        self.messages.append(text)


def ends(after_ticks: int = 150) -> Person:
    """Ends the run once the robot has run for so many ticks, however long a busy machine takes to get there."""
    return Person(lambda person: person.operator.tell(Command.END), after_ticks=after_ticks)


def test_a_policy_drives_a_rig_and_everything_is_recorded(tmp_path: Path) -> None:
    spec, out = spec_of(JOINTS), tmp_path / "run.zarr"
    options = RigOptions(60.0, out=out, instruction="wave", servo=ORDINARY)
    report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, options, ends())
    assert report.failure == ""
    assert report.chunks_used > 3
    assert report.delay.p50_ms is not None
    dataset = Dataset.open(out)
    assert dataset.episodes == 1
    assert dataset.metadata["rig"] == "rig"
    assert dataset.schema.streams["state"].names == JOINTS
    asked, sent = dataset.read("action"), dataset.read("action_sent")
    assert np.ptp(sent[:, 0]) > 0.05, "it moved"
    ran = dataset.read("control_state") == State.RUNNING
    assert ran.sum() > 10
    assert np.median(np.abs(asked - sent)[ran]) < 0.02


@pytest.mark.parametrize("scheduler", ["sync", "ensemble"])
def test_schedulers_that_wait_or_average_drive_a_rig(tmp_path: Path, scheduler: str) -> None:
    spec = spec_of(JOINTS)
    options = RigOptions(60.0, scheduler=scheduler, servo=ORDINARY)
    report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, options, ends())
    assert report.failure == ""
    assert report.chunks_used > 3


def test_a_fast_policy_stands_between_the_slow_one_and_the_servo(tmp_path: Path) -> None:
    spec = spec_of(JOINTS)
    options = RigOptions(60.0, servo=ORDINARY, fast=GuardedMotion(50.0, rate_hz=100.0))
    person = ends()
    report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, options, person)
    assert report.failure == ""
    assert "fast policy" in person.pids


def go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended since
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_an_e_stop_is_heard_while_the_recorder_publishes_an_episode(tmp_path: Path) -> None:
    """Keys are read in ``progress``, as those of a terminal are."""
    spec, out = spec_of(JOINTS), tmp_path / "run.zarr"

    class Pressing(Person):
        at_rest = 0

        def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
            super().progress(elapsed_s, measured, episode)
            self.at_rest += measured.state is State.STOPPED and episode == 1
            if self.at_rest == 20:
                self.operator.tell(Command.E_STOP)
            if measured.state is State.E_STOPPED:
                os.kill(self.pids["recorder"], signal.SIGCONT)

    def act(person: Person) -> None:
        os.kill(person.pids["recorder"], signal.SIGSTOP)  # as a disk that stands still
        person.operator.tell(Command.SUCCESS)
        late.start()

    person = Pressing(act)
    late = threading.Timer(60, lambda: go_on(person.pids["recorder"]))
    options = RigOptions(120.0, episodes=1, episode_s=100.0, out=out, servo=ORDINARY)
    try:
        report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, options, person)
    finally:
        late.cancel()
    assert report.failure == ""
    assert person.states[-1] is State.E_STOPPED
    assert Dataset.open(out).episodes == 1


def hurt(name: str, number: int) -> Callable[[Person], None]:
    return lambda person: os.kill(person.pids[name], number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (hurt("policy", signal.SIGKILL), "the policy process was killed by SIGKILL"),
        (hurt("recorder", signal.SIGKILL), "the recorder process has ended"),
        (hurt("servo", signal.SIGKILL), "the arms hold their last target"),
    ],
    ids=["policy killed", "recorder killed", "servo killed"],
)
def test_a_process_that_is_killed_ends_the_run_with_the_arms_at_rest(
    tmp_path: Path, fault: Callable[[Person], None], said: str
) -> None:
    spec, out = spec_of(JOINTS), tmp_path / "run.zarr"
    person = Person(fault)
    options = RigOptions(60.0, out=out, servo=ORDINARY)
    report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, options, person)
    assert said in report.failure
    assert any("come to rest" in text for text in person.messages)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [{"fail_at": 10}, {"eat_from": 10}], ids=["exception", "out of memory"])
def test_a_policy_that_breaks_ends_the_run_in_one_line(tmp_path: Path, policy: dict[str, int]) -> None:
    spec = spec_of(JOINTS)
    options = RigOptions(60.0, servo=ORDINARY)
    report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec, **policy), spec, options)
    assert report.failure.startswith("the policy process failed: ")
    assert "\n" not in report.failure


@pytest.mark.slow
def test_a_policy_that_is_stopped_lets_the_arm_come_to_rest_and_goes_on_when_it_is_continued(tmp_path: Path) -> None:
    spec = spec_of(JOINTS)

    def pause(person: Person) -> None:
        os.kill(person.pids["policy"], signal.SIGSTOP)
        threading.Timer(3.0, os.kill, (person.pids["policy"], signal.SIGCONT)).start()

    person = Person(pause)
    report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, RigOptions(9.0), person)
    assert report.failure == ""
    assert State.STOPPED in person.states[1:]
    assert (
        person.states[-1] is not State.STOPPED
        or State.RUNNING in person.states[person.states.index(State.STOPPED, 1) :]
    )


@pytest.mark.slow
def test_episodes_begin_at_the_reset_pose_and_end_with_a_persons_verdict(tmp_path: Path) -> None:
    spec, out = spec_of(JOINTS), tmp_path / "run.zarr"
    verdicts = [Command.SUCCESS, Command.DISCARD, Command.FAILURE]

    class Judge(Person):
        def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
            ran = measured.ticks_in[State.RUNNING]
            if measured.state is State.RUNNING and episode < len(verdicts) and ran > self._after:
                self._after = ran + 60
                self.operator.tell(verdicts[episode])

    options = RigOptions(60.0, out=out, episodes=3, reset_s=0.1, servo=ORDINARY)
    report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, options, Judge())
    assert report.failure == ""
    assert (report.episodes, report.successes) == (3, 1)
    info = [Dataset.open(out).episode_info(i) for i in range(Dataset.open(out).episodes)]
    assert [i["success"] for i in info] == [True, False]


def test_a_policy_of_another_robot_is_refused_before_anything_moves(tmp_path: Path) -> None:
    spec = spec_of(SO101)
    with pytest.raises(SpecError, match=r"the policy moves shoulder_pan, .*; the rig 'rig' has joint1"):
        run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, RigOptions(4.0, servo=ORDINARY))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained policy that keeps an SO-101 near its middle."""
    spec = spec_of(SO101)
    statistics = {}
    for name, stream in {"state": spec.observation["state"], "action": spec.action}.items():
        ones = np.ones(stream.shape)
        statistics[name] = StreamStatistics(2, *(share * ones for share in (-0.02, 0.02, 0, 0.01, -0.02, 0.02)))
    torch.manual_seed(0)
    save_policy(Policy(spec, statistics, POLICIES["flow"]()), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.slow
def test_deploy_drives_the_so101_twin_from_a_checkpoint(
    checkpoint: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rig, out, summary = root / "hardware/rigs/so101_twin.yaml", tmp_path / "run.zarr", tmp_path / "run.json"
    words = [str(checkpoint), "--rig", str(rig), "--seconds", "10", "--steps", "2", "--no-fifo", "--page-port", "0"]
    assert main(["deploy", *words, "--out", str(out), "--json", str(summary)]) == 0
    shown = capsys.readouterr().out
    assert "deadlines missed" in shown
    report = json.loads(summary.read_text())
    assert report["failure"] == ""
    assert report["chunks_used"] > 0
    dataset = Dataset.open(out)
    assert dataset.episodes == 1
    assert dataset.schema.streams["action"].names == SO101
    assert dataset.schema.rate_hz == RATE_HZ
    assert main(["data", "validate", str(out)]) == 0


@pytest.mark.slow
def test_a_person_takes_over_with_a_leader_arm_and_what_they_do_is_labelled(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"

    class Relief(Person):
        def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
            super().progress(elapsed_s, measured, episode)
            if measured.ticks_in[State.TELEOP] > 100:
                self.operator.tell(Command.END)

    with with_twins(load_rig(root / "hardware/rigs/so101_twin.yaml")) as (rig, _):
        spec, person = spec_of(SO101), Relief(lambda p: p.operator.tell(Command.TAKE_OVER))
        options = RigOptions(90.0, out=out, servo=ORDINARY, teleoperators={"leader": "follower"})
        report = run_rig(rig, functools.partial(SinePolicy, spec), spec, options, person)
    assert report.failure == ""
    assert "leader" in person.pids
    dataset = Dataset.open(out)
    person_did = dataset.read("intervention") == 1
    assert person_did.sum() > 10
    np.testing.assert_array_equal(person_did, dataset.read("control_state") == State.TELEOP)
    moved = np.abs(np.diff(dataset.read("action_sent")[person_did], axis=0))
    assert 0 < moved.max() < 0.3, "the leader's twin is moved, and nothing jumped"


def test_deploy_wants_one_place_to_run(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", str(checkpoint)]) == 2
    assert "say where: --rig" in capsys.readouterr().err


@pytest.mark.slow
def test_a_camera_that_is_killed_stops_a_policy_that_sees_through_it(root: Path, tmp_path: Path) -> None:
    rig_file = tmp_path / "rig.yaml"
    rig_file.write_text(
        "arms:\n  arm: {kind: simulated, model: so101, plant: first_order}\n"
        "cameras:\n  front: {kind: mjpeg, url: twin, width: 96, height: 64, rate_hz: 30}\n"
    )
    with with_twins(load_rig(rig_file)) as (rig, _):
        from robolearn_data.schema import Stream

        spec = spec_of(JOINTS, camera=Stream((64, 96, 3), "uint8", "image", rate_hz=30.0))
        person = Person(hurt("camera front", signal.SIGKILL))
        options = RigOptions(60.0, servo=ORDINARY)
        report = run_rig(rig, functools.partial(SinePolicy, spec), spec, options, person)
        assert "camera front" in report.failure
