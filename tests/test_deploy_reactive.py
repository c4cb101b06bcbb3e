"""The fast half of a slow-fast policy in the runtime: as its decoder says, in a process of its own, against a world and
on a twin arm with its force sensor."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reactive_makers import HORIZON, RATE_HZ, TICKS, config, policy, statistics

from robolearn.cli.main import main
from robolearn.policies.checkpoint import load_policy, save_policy
from robolearn.policies.policy import Policy
from robolearn.policies.reactive.config import TokenizerConfig, fast_spec
from robolearn.policies.reactive.decoder import FastDecoder
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Stream, UserError
from robolearn_deploy.chunks import Chunk, ControlState, action_times_ns
from robolearn_deploy.fast import STEPS, Felt, Readings
from robolearn_deploy.local_policy import LocalPolicy
from robolearn_deploy.reactive import STALE_NS, ReactiveFast
from robolearn_deploy.runtime import RunOptions, run

PERIOD_NS = round(1e9 / (RATE_HZ * TICKS))
"""Of the toy's fast half."""
BEGIN_NS = 10**12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "c"
    save_policy(policy(), path)
    return path


def chunk_at(begin_ns: int, sequence: int = 3) -> Chunk:
    rows = np.random.default_rng(sequence).normal(0, 1, (HORIZON, policy().spec.chunk.size)).astype(np.float32)
    times = action_times_ns(begin_ns, 0, HORIZON, PERIOD_NS * TICKS)
    return Chunk(sequence, 0, begin_ns + PERIOD_NS, times, rows, int(times[-1]) + PERIOD_NS * TICKS)


def felt_at(now_ns: int, readings: np.ndarray, newest_ns: int, apart_ns: int) -> Felt:
    times = newest_ns - np.arange(len(readings) - 1, -1, -1, dtype=np.int64) * apart_ns
    return Felt(now_ns, np.empty(0), np.zeros(6), {"wrench": Readings(times, readings)})


def test_the_fast_half_says_what_the_decoder_says_of_the_same_readings(checkpoint: Path) -> None:
    """Readings come two to a tick; the process wakes somewhere inside each tick, once not at all."""
    fast, made = ReactiveFast(checkpoint, policy().spec), load_policy(checkpoint)
    fast.start()
    fast.begin()
    chunk, apart = chunk_at(BEGIN_NS), PERIOD_NS // 2
    force = np.random.default_rng(0).normal(0, 2, (20, 2)).astype(np.float32)
    decoder = FastDecoder(made)
    given = 0
    for tick in (0, 1, 2, 4, 5):
        grid_ns = BEGIN_NS + tick * PERIOD_NS
        fresh = force[given : 2 * tick + 2]
        decoder.feel({"wrench": fresh})
        given = 2 * tick + 2
        now_ns = grid_ns + PERIOD_NS // 4
        times = now_ns + np.arange(STEPS, dtype=np.int64) * PERIOD_NS
        said = fast.act(chunk, felt_at(now_ns, fresh, grid_ns, apart), times)
        assert said is not None
        knots = decoder.act(0, chunk.actions, tick, ahead=STEPS + 1)
        between = [np.interp(np.arange(STEPS) + 0.25, np.arange(STEPS + 1), column) for column in knots.T]
        np.testing.assert_allclose(said, np.stack(between, 1), atol=1e-4)


def test_a_silent_sensor_is_not_reacted_to(checkpoint: Path) -> None:
    fast = ReactiveFast(checkpoint, policy().spec)
    fast.start()
    fast.begin()
    chunk, force = chunk_at(BEGIN_NS), np.ones((4, 2), np.float32)
    times = BEGIN_NS + np.arange(STEPS, dtype=np.int64) * PERIOD_NS
    nothing = Felt(BEGIN_NS, np.empty(0), np.zeros(6), {})
    assert fast.act(chunk, nothing, times) is None
    assert fast.act(chunk, felt_at(BEGIN_NS, force, BEGIN_NS, PERIOD_NS // 2), times) is not None
    assert fast.act(chunk, replace(nothing, capture_ns=BEGIN_NS + STALE_NS), times + STALE_NS) is not None
    assert fast.act(chunk, replace(nothing, capture_ns=BEGIN_NS + STALE_NS), times + STALE_NS + 1) is None


def wipe_checkpoint(folder: Path) -> PolicySpec:
    """For wipe with relative actions, with random weights: small motions about where it is."""
    from robolearn_sim import wipe

    schema = wipe.spec(relative=True).schema
    made = config()
    tokenizer = replace(made.tokenizer or TokenizerConfig(), fast_hz=100.0)
    fast = fast_spec({"wrench": schema.streams["wrench"]}, 20.0, 16, tokenizer)
    action = schema.streams["action"]
    spec = PolicySpec({"state": schema.streams["state"]}, action, 20.0, 2, 16, 8, fast=fast)
    found = {"state": statistics(wipe.STATE, -1, 1), "wrench": statistics(wipe.WRENCH, -9, 9)}
    torch.manual_seed(0)
    settings = replace(made, horizon=16, action_horizon=8, tokenizer=tokenizer)
    policy = Policy(spec, {**found, "action": statistics(action, -0.01, 0.01)}, settings)
    assert policy.tokenizer is not None
    policy.tokenizer.settle([torch.rand(64, 16, 3) * 2 - 1])
    save_policy(policy, folder)
    return spec


@pytest.mark.slow
def test_a_slow_fast_policy_acts_in_a_world_in_real_time_and_what_it_did_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("robosuite")
    from robolearn_sim.worlds import make_world, world_spec

    spec = wipe_checkpoint(tmp_path / "c")
    name, how = "wipe/calm-relative", {"max_steps": 30}
    make = functools.partial(make_world, name, **how)
    fast = ReactiveFast(tmp_path / "c", spec)
    options = RunOptions(60.0, episodes=2, fast=fast, relative=(0, 1, 2), out=tmp_path / "run.zarr")
    report = run(make, world_spec(name, **how), functools.partial(LocalPolicy, tmp_path / "c"), spec, options)
    assert report.failure == ""
    dataset = Dataset.open(tmp_path / "run.zarr")
    assert dataset.episodes == 2
    state, sent = dataset.read("control_state"), dataset.read("action_sent")
    running = state == ControlState.RUNNING
    assert running.sum() > 10, "the fast half said what to do"
    assert np.abs(sent[running]).max() > 0
    rows = dataset.rows(0)
    tool = dataset.read("state")[rows, :3]
    np.testing.assert_allclose(tool[-1] - tool[0], sent[rows].sum(0), atol=0.02)
    chunks = dataset.read("chunk")[running]
    assert (np.diff(chunks[chunks >= 0]) >= 0).all(), "the slow half's"
    with pytest.raises(SpecError, match="both its halves"):
        run(make, world_spec(name, **how), functools.partial(LocalPolicy, tmp_path / "c"), spec, RunOptions(1.0))


class Dying(ReactiveFast):
    """Comes to an end as soon as it is asked."""

    def act(self, chunk: Chunk, felt: Felt, times_ns: np.ndarray) -> np.ndarray | None:
        raise UserError("the readings make no sense")


@pytest.mark.slow
def test_a_fast_half_that_dies_ends_the_run_and_the_report_says_why(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("robosuite")
    from robolearn_sim.worlds import make_world, world_spec

    spec = wipe_checkpoint(tmp_path / "c")
    name = "wipe/calm-relative"
    options = RunOptions(120.0, fast=Dying(tmp_path / "c", spec), relative=(0, 1, 2))
    make, policy = functools.partial(make_world, name), functools.partial(LocalPolicy, tmp_path / "c")
    report = run(make, world_spec(name), policy, spec, options)
    assert report.failure == "the fast policy process failed: the readings make no sense"


@pytest.mark.slow
def test_a_slow_fast_policy_drives_a_twin_arm_by_its_force_sensor_within_the_limits(tmp_path: Path) -> None:
    """A UR5e twin, whose controller measures force at the tool."""
    pytest.importorskip("rtde_control")
    pytest.importorskip("ruckig")
    from test_deploy_rig import ORDINARY, ends

    from robolearn_deploy.rig_options import RigOptions
    from robolearn_deploy.rig_runtime import run_rig
    from robolearn_deploy.stall import State
    from robolearn_hardware.rig import load_rig, with_twins

    with with_twins(load_rig(Path("hardware/rigs/ur5e_twin.yaml"))) as (rig, _):
        arm = rig.arms["arm"].open("arm")
        arm.connect()
        info, start = arm.info, arm.state().positions
        arm.close()
        made = config()
        tokenizer = replace(made.tokenizer or TokenizerConfig(), fast_hz=100.0)
        names = info.joint_names
        wrench = Stream((6,), rate_hz=500.0, interpolation="linear")
        state = Stream((6,), names=names, unit="rad", rate_hz=500.0, interpolation="linear")
        action = Stream((6,), "float32", "action", names=names, unit="rad")
        fast = fast_spec({"wrench": wrench}, 20.0, 16, tokenizer)
        spec = PolicySpec({"state": state}, action, 20.0, 2, 16, 8, fast=fast)
        found = {"state": statistics(state, -3, 3), "wrench": statistics(wrench, -9, 9)}
        found["action"] = replace(statistics(action, 0, 1), min=start - 0.05, max=start + 0.05)
        settings = replace(made, horizon=16, action_horizon=8, tokenizer=tokenizer)
        torch.manual_seed(0)
        policy = Policy(spec, found, settings)
        assert policy.tokenizer is not None
        policy.tokenizer.settle([torch.rand(64, 16, 6) * 2 - 1])
        save_policy(policy, tmp_path / "c")
        person = ends(1000)
        options = RigOptions(120.0, servo=ORDINARY, fast=ReactiveFast(tmp_path / "c", spec), out=tmp_path / "run.zarr")
        report = run_rig(rig, functools.partial(LocalPolicy, tmp_path / "c"), spec, options, person)
    assert report.failure == ""
    assert "fast policy" in person.pids
    assert report.chunks_used > 3
    assert State.RUNNING in person.states
    dataset = Dataset.open(tmp_path / "run.zarr")
    ran = dataset.read("control_state") == State.RUNNING
    asked, sent = dataset.read("action"), dataset.read("action_sent")
    assert ran.sum() > 10
    assert np.ptp(sent[ran], axis=0).max() > 1e-3, "it moved"
    assert np.abs(asked[ran] - start).max() < 0.15, "near the middle of what its statistics span"


@pytest.mark.slow
def test_the_command_line_collects_trains_evaluates_and_deploys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("robosuite")
    data, out, world = str(tmp_path / "d"), str(tmp_path / "run"), "wipe/perturbed-relative"
    collect = ["collect", "--world", world, "--teleop", "scripted", "--episodes", "2", "--workers", "1", data]
    assert main(collect) == 0
    tiny = ["--policy.trunk.widths", "16", "32", "--policy.tokenizer.width", "16", "--policy.tokenizer.steps", "3"]
    assert main(["train", data, "--policy", "reactive", "--out", out, *tiny, "--steps", "2", "--batch-size", "8"]) == 0
    how = ["--episodes", "1", "--workers", "0", "--no-videos"]
    assert main(["eval", out, "--world", world, *how]) == 0
    assert main(["eval", out, "--world", world, *how, "--scheduler", "naive", "--delay", "2"]) == 0
    assert main(["deploy", out, "--world", world, "--seconds", "4", "--json", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["failure"] == ""
    capsys.readouterr()
    for words, said in (
        (["eval", out, "--world", "lift", *how], "stream 'state' has shape (13,) in world lift"),
        (["eval", out, "--world", world, *how, "--scheduler", "rtc"], "this policy can have: naive"),
        (["serve", out, "--port", "0"], "is not served"),
        (["train", data, "--feel", "wrench", "--out", str(tmp_path / "no")], "add --policy reactive"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err
