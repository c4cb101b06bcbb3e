"""The runtime with a small world and small policies in real processes: its recordings, and what it does in trouble."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import deploy_fakes
import numpy as np
import pytest
from deploy_fakes import (
    POLICY_SPEC,
    RATE_HZ,
    RELATIVE,
    TEXT_SPEC,
    FakePolicy,
    FakeWorld,
    diary_of,
    requests_of,
    world_spec,
)

from robolearn.policies.spec import SpecError
from robolearn_data.dataset import Dataset
from robolearn_data.schema import UserError, read_text
from robolearn_deploy import runtime
from robolearn_deploy.channels import Channels
from robolearn_deploy.chunks import ControlState
from robolearn_deploy.log import Measurements
from robolearn_deploy.policy_process import STALE_PERIODS, PolicyOptions, Thinking
from robolearn_deploy.runtime import Running, RunOptions
from robolearn_deploy.senses import WorldSenses
from robolearn_hardware.clock import now_ns
from robolearn_hardware.ring import PREFIX

SHARED = Path("/dev/shm")


@pytest.fixture(autouse=True)
def nothing_stays_in_shared_memory():
    before = memory_of(os.getpid())
    yield
    assert set(memory_of(os.getpid())) <= set(before)


def memory_of(pid: int) -> list[Path]:
    return list(SHARED.glob(f"{PREFIX}{pid}-*"))


@dataclass
class Trouble:
    """A watcher that sends a signal to one of the processes after some time."""

    victim: str = ""
    signal: signal.Signals = signal.SIGKILL
    after_s: float = 0.5
    messages: list[str] = field(default_factory=list)
    at_s: float = 0.0
    held_at_s: float = 0.0
    processes: Running | None = None

    def started(self, running: Running) -> None:
        self.processes = running

    def progress(self, elapsed_s: float, measured: Measurements) -> None:
        if self.victim and not self.at_s and elapsed_s > self.after_s:
            pid = os.getpid() if self.victim == "parent" else getattr(self.processes, self.victim)
            os.kill(pid, self.signal)
            self.at_s = elapsed_s
        if self.at_s and not self.held_at_s and measured.state is ControlState.HOLDING:
            self.held_at_s = elapsed_s

    def message(self, text: str) -> None:
        self.messages.append(text)


def run(tmp_path: Path, *, world: dict | None = None, policy: dict | None = None, watcher=None, **options):
    world = {"max_steps": 40, **(world or {})}
    policy = policy or {}
    return runtime.run(
        functools.partial(FakeWorld, tmp_path / "diary", **world),
        world_spec(world["max_steps"]),
        functools.partial(FakePolicy, **policy),
        TEXT_SPEC if policy.get("instructed") else POLICY_SPEC,
        RunOptions(**{"seconds": 10.0, "relative": RELATIVE, **options}),
        watcher or Trouble(),
    )


def test_what_was_recorded_is_what_the_world_was_told(tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    report = run(tmp_path, episodes=2, seed=7, out=out, policy={"infer_s": 0.03}, metadata={"source": "test"})
    assert report.failure == ""
    assert (report.complete, report.successes, report.lost_ticks) == (2, 2, 0)

    data = Dataset.open(out)
    assert (data.episodes, data.steps, data.metadata) == (2, 80, {"source": "test"})
    assert np.array_equal(data.read("action_sent"), diary_of(tmp_path / "diary"))
    assert data.schema.streams["action"].kind == "action"
    assert data.schema.streams["action_sent"].kind == "info"
    for i in range(2):
        episode, info = data.episode(i), data.episode_info(i)
        assert info["seed"] == 7 + i
        assert (info["success"], info["complete"], info["score"]) == (True, True, 1.0)
        # A row holds the observation from which the world carried out the row's action.
        assert episode["state"][:, 0].tolist() == list(range(40))
        assert set(episode["state"][:, 1].tolist()) == {7 + i}
        running = episode["control_state"] == ControlState.RUNNING
        assert running.any()
        assert np.array_equal(episode["action"][running], episode["action_sent"][running])
        assert (episode["chunk_age"][running] > 0).all()  # it takes time to think
        assert (np.diff(episode["chunk"][running]) >= 0).all()


def test_capture_times_rise_by_whole_periods_and_agree_with_the_ticks(tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    run(tmp_path, episodes=1, out=out)
    data = Dataset.open(out)
    ticks = np.asarray(data.times("tick"))
    assert np.array_equal(ticks, np.asarray(data.times("state")))
    steps = np.diff(ticks)
    period = round(1e9 / RATE_HZ)
    assert (steps > 0).all()
    assert (steps % period == 0).all()
    assert np.median(steps) == period


def test_each_action_is_carried_out_at_the_time_it_was_meant_for(tmp_path: Path) -> None:
    """The fake policy names the world step that each action is for; a tick lost shifts it by that tick alone."""
    out = tmp_path / "run.zarr"
    report = run(tmp_path, episodes=1, out=out, policy={"infer_s": 0.05})
    episode = Dataset.open(out).episode(0)
    running = episode["control_state"] == ControlState.RUNNING
    error = episode["action_sent"][running, 1] - episode["state"][running, 0]
    # The world stands still while it waits for the first chunk, whose time goes on meanwhile.
    assert (error >= 0).all()
    assert np.median(error[-10:]) <= report.missed


def test_a_world_that_is_too_slow_misses_deadlines_and_the_report_says_so(tmp_path: Path) -> None:
    report = run(tmp_path, episodes=1, world={"step_s": 0.03})
    assert report.missed >= 30
    assert report.rate_reached_hz < 0.75 * RATE_HZ
    assert "did not keep up" in str(report)


@pytest.mark.parametrize("infer_s", [0.005, 0.05])
def test_what_a_policy_is_told_that_the_robot_is_committed_to_is_what_it_then_does(
    tmp_path: Path, infer_s: float
) -> None:
    out, asked = tmp_path / "run.zarr", tmp_path / "requests"
    report = run(
        tmp_path,
        world={"max_steps": 100},
        episodes=2,
        out=out,
        scheduler="rtc",
        policy={"infer_s": infer_s, "requests": asked},
    )
    assert report.failure == ""
    data = Dataset.open(out)
    sent = dict(zip(np.asarray(data.times("tick")).tolist(), data.read("action_sent"), strict=True))
    period = round(1e9 / RATE_HZ)
    compared = 0
    requests = requests_of(asked)
    assert [r["sequence"] for r in requests] == list(range(len(requests)))
    for request in requests:
        if request["committed"] is None:
            continue
        committed, delay = np.array(request["committed"]["actions"]), request["committed"]["delay"]
        assert 1 <= delay <= request["committed"]["execute"] <= POLICY_SPEC.horizon - POLICY_SPEC.start - delay
        # A policy that takes 2.5 periods is not expected sooner than the third.
        assert delay >= np.ceil(infer_s * RATE_HZ)
        for i in range(POLICY_SPEC.start + delay):
            done = sent.get(request["capture_ns"] + (i - POLICY_SPEC.start) * period)
            if done is not None and np.isfinite(committed[i]).all() and i <= POLICY_SPEC.start:
                assert np.array_equal(committed[i], done)
                compared += 1
    assert compared > 10
    # Of each episode the first request; where the machine stood still, perhaps that after a plan which ran out.
    running = [data.episode(i)["control_state"] == ControlState.RUNNING for i in range(2)]
    ran_out = sum(int((~r[1:] & r[:-1]).sum()) for r in running)
    assert 2 <= sum(r["committed"] is None for r in requests) <= 2 + ran_out
    assert sum(report.delay_steps.values()) == report.chunks_used
    # Steps are those carried out: each that the machine misses makes one chunk's delay shorter by one.
    short = sum(n for steps, n in report.delay_steps.items() if steps < np.ceil(infer_s * RATE_HZ))
    assert short <= report.missed


def test_a_robot_that_waits_carries_out_every_chunk_from_its_start_and_holds_in_between(tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    run(tmp_path, world={"max_steps": 60}, episodes=1, out=out, scheduler="sync", policy={"infer_s": 0.05})
    episode = Dataset.open(out).episode(0)
    running = episode["control_state"] == ControlState.RUNNING
    assert 3 * (~running).sum() > running.sum()  # 2.5 periods of thought after four of action, at least
    for number in np.unique(episode["chunk"][running]):
        rows = np.flatnonzero(running & (episode["chunk"] == number))
        target, observed = episode["action_sent"][rows, 1], episode["state"][rows, 0] - np.arange(len(rows))
        # The robot held while the chunk was made: what was meant for the observed step is done when it is there.
        assert (np.diff(target) >= 1).all()
        assert len(rows) <= POLICY_SPEC.action_horizon
        assert target[0] <= observed[0]
    held = np.flatnonzero(~running)
    assert (episode["action_sent"][held, 0] == 0).all()


def test_an_ensemble_infers_at_every_step_if_it_can_and_its_actions_lie_between_those_of_the_chunks(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run.zarr"
    report = run(tmp_path, episodes=1, out=out, scheduler="ensemble", policy={"infer_s": 0.001})
    assert report.chunks > 40 / POLICY_SPEC.action_horizon
    episode = Dataset.open(out).episode(0)
    running = episode["control_state"] == ControlState.RUNNING
    assert (episode["action_sent"][running, 0] == 1).all()
    assert (np.diff(episode["action_sent"][running, 1]) >= 0).all()


def test_the_certain_part_of_a_chunk_is_carried_out_before_the_whole_has_come(tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    report = run(
        tmp_path, world={"max_steps": 100}, episodes=1, out=out, policy={"infer_s": 0.08, "part": POLICY_SPEC.start + 5}
    )
    assert report.failure == ""
    assert report.inference.p50_ms is not None
    assert report.inference.p50_ms >= 80
    assert len(report.delays_ms) in (report.chunks, report.chunks + 1)
    episode = Dataset.open(out).episode(0)
    running = episode["control_state"] == ControlState.RUNNING
    ages = [episode["chunk_age"][running & (episode["chunk"] == n)].min() for n in np.unique(episode["chunk"][running])]
    assert min(ages) < 0.08e9
    assert np.isfinite(episode["action_sent"]).all()


def test_requests_that_are_not_answered_in_time_are_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    report = run(tmp_path, world={"max_steps": 100}, episodes=1, policy={"timeout_every": 3})
    assert report.failure == ""
    assert report.complete == 1
    assert report.requests_failed >= report.chunks // 3 >= 2
    assert "not answered in time" in str(report)


def test_the_instruction_can_be_changed_while_the_policy_runs(tmp_path: Path) -> None:
    class Person(Trouble):
        def progress(self, elapsed_s: float, measured: Measurements) -> None:
            if elapsed_s > 0.5 and not self.messages and self.processes:
                self.message("changed")
                self.processes.instruct("würfel rechts")

    asked, out = tmp_path / "requests", tmp_path / "run.zarr"
    run(
        tmp_path,
        out=out,
        world={"max_steps": 75},
        episodes=1,
        instruction="cube left",
        policy={"instructed": True, "requests": asked},
        watcher=Person(),
    )
    texts = [request["text"] for request in requests_of(asked)]
    assert set(texts) == {"cube left", "würfel rechts"}
    assert texts == sorted(texts)
    recorded = [read_text(value) for value in Dataset.open(out).read("task")]
    assert set(recorded) == set(texts)
    assert recorded == sorted(recorded)


def test_an_observation_that_is_too_old_is_not_inferred_from(tmp_path: Path) -> None:
    spec, schema = POLICY_SPEC, world_spec().schema
    period = round(1e9 / RATE_HZ)
    asked = tmp_path / "requests"
    with contextlib.ExitStack() as stack:
        channels = stack.enter_context(Channels.create(schema, spec.action, spec.horizon))
        senses = stack.enter_context(contextlib.closing(WorldSenses(channels.handles, spec)))
        thinking = Thinking(senses, FakePolicy(requests=asked), PolicyOptions(spec, "naive", 4))
        thinking.warm_up()
        for age, episode in ((STALE_PERIODS + 1, 0), (0, 1), (STALE_PERIODS + 1, 2)):
            record = {"capture_ns": now_ns() - age * period, "episode": episode, "stream/state": np.zeros(2)}
            channels.observations.publish(record)
            thinking.step()
        assert channels.chunks.count == 1
        assert len(requests_of(asked)) == 1


def test_nan_from_the_policy_is_counted_and_never_reaches_the_world(tmp_path: Path) -> None:
    report = run(tmp_path, episodes=1, policy={"nan_from": 2})
    diary = diary_of(tmp_path / "diary")
    assert np.isfinite(diary).all()
    assert report.chunks_refused["non_finite"] >= 1
    assert report.seconds_in["HOLDING"] > 0
    assert report.chunks_used == 2


def test_a_killed_policy_process_leads_to_holding_in_time_and_a_clean_end(tmp_path: Path) -> None:
    watcher = Trouble("policy", signal.SIGKILL)
    out = tmp_path / "run.zarr"
    began = time.monotonic()
    report = run(tmp_path, world={"max_steps": 1000}, seconds=30.0, out=out, watcher=watcher)
    assert report.failure == "the policy process was killed by SIGKILL"
    assert "SIGKILL" in watcher.messages[0]
    assert time.monotonic() - began < 25
    assert watcher.held_at_s - watcher.at_s < 2.0
    episode = Dataset.open(out).episode(0)
    held = episode["control_state"] == ControlState.HOLDING
    assert held[-25:].all()
    # A chunk reaches 15 periods past its observation, and not one tick was carried out from an older one.
    assert 0 < episode["chunk_age"][~held].max() < 15e9 / RATE_HZ
    last = episode["action_sent"][~held][-1]
    assert (episode["action_sent"][held][-25:] == [0.0, last[1]]).all()
    assert not data_valid(out, "action")[held].any()
    assert data_valid(out, "action")[~held].all()


def data_valid(path: Path, stream: str) -> np.ndarray:
    return np.asarray(Dataset.open(path).valid(stream))


def test_a_stopped_policy_process_cannot_stop_the_world_or_the_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runtime, "STOP_TIMEOUT_S", 0.5)
    watcher = Trouble("policy", signal.SIGSTOP)
    report = run(tmp_path, world={"max_steps": 1000}, seconds=2.0, watcher=watcher)
    assert report.seconds_in["HOLDING"] > 0.5
    assert report.failure == "the policy process did not end when told to and was killed"


def test_an_exception_in_the_policy_is_named(tmp_path: Path, capfd) -> None:
    report = run(tmp_path, world={"max_steps": 1000}, policy={"fail_at": 3})
    assert report.failure == "the policy process failed: RuntimeError: out of memory"
    assert "Traceback" in capfd.readouterr().err
    assert report.seconds_in["HOLDING"] > 0.5


@pytest.mark.parametrize(
    ("world", "failure"),
    [
        ({"die_at": 60}, "the control process was killed by SIGKILL"),
        ({"fail_at": 60}, "the control process failed: RuntimeError: the bus is gone"),
    ],
)
def test_a_world_that_dies_ends_the_run_at_once_and_what_was_recorded_is_saved(
    tmp_path: Path, world: dict, failure: str
) -> None:
    out = tmp_path / "run.zarr"
    report = run(tmp_path, world=world, seconds=60.0, out=out)
    assert report.failure == failure
    data = Dataset.open(out)
    # The action of the last step was carried out, and nobody could say so any more.
    assert np.array_equal(data.read("action_sent"), diary_of(tmp_path / "diary")[:60])
    assert [data.episode_info(i)["complete"] for i in range(data.episodes)] == [True, False]


def test_ctrl_c_ends_the_run_in_order_and_saves_what_there_is(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / number.name
        folder.mkdir()
        out = folder / "run.zarr"
        report = run(folder, world={"max_steps": 1000}, seconds=60.0, out=out, watcher=Trouble("parent", number))
        assert report.failure == ""
        assert [e["complete"] for e in report.episodes] == [False]
        assert np.array_equal(Dataset.open(out).read("action_sent"), diary_of(folder / "diary"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_policy_that_does_not_fit_the_world_is_refused_before_anything_starts(tmp_path: Path) -> None:
    spec = replace(POLICY_SPEC, rate_hz=20.0)
    with pytest.raises(SpecError, match="trained at 20 Hz"):
        runtime.run(
            functools.partial(FakeWorld, tmp_path / "diary"), world_spec(), FakePolicy, spec, RunOptions(seconds=1.0)
        )
    assert not (tmp_path / "diary").exists()


def test_a_checkpoint_that_cannot_be_loaded_is_a_one_line_error(tmp_path: Path) -> None:
    world = functools.partial(FakeWorld, tmp_path / "diary")
    out = tmp_path / "run.zarr"
    with pytest.raises(UserError, match=r"^the policy process failed: model\.safetensors is damaged; train again$"):
        runtime.run(world, world_spec(), deploy_fakes.broken_policy, POLICY_SPEC, RunOptions(seconds=1.0, out=out))
    assert not out.exists()


SCRIPT = """
import functools, pathlib, sys, deploy_fakes
from robolearn_deploy.runtime import RunOptions, run
if __name__ == "__main__":
    diary = pathlib.Path(sys.argv[1])
    world = functools.partial(deploy_fakes.FakeWorld, diary, max_steps=100000)
    options = RunOptions(seconds=float(sys.argv[2]), relative=deploy_fakes.RELATIVE)
    print(run(world, deploy_fakes.world_spec(100000), deploy_fakes.FakePolicy, deploy_fakes.POLICY_SPEC, options))
"""


def start_script(tmp_path: Path, seconds: float) -> subprocess.Popen:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))}
    command = [sys.executable, str(script), str(tmp_path / "diary"), str(seconds)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_a_run_leaves_no_warning_about_leaked_memory(tmp_path: Path) -> None:
    process = start_script(tmp_path, 0.5)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "control" in out
    assert error == ""


def test_the_control_process_needs_no_torch() -> None:
    code = "import sys, robolearn_deploy.control_process; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60).returncode == 0


def test_the_children_end_by_themselves_when_the_parent_is_killed(tmp_path: Path) -> None:
    process = start_script(tmp_path, 600)
    diary = tmp_path / "diary"
    until(lambda: diary.exists() and diary.stat().st_size > 100)
    assert len(memory_of(process.pid)) == len(fields(Channels))
    process.kill()
    process.communicate(timeout=60)  # the children hold the pipes until they end
    size = diary.stat().st_size
    time.sleep(0.2)
    assert diary.stat().st_size == size
    # The shared memory is removed by multiprocessing's tracker, shortly after.
    until(lambda: not memory_of(process.pid))


def until(condition, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
