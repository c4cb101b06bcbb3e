"""`robolearn deploy` with real checkpoints and real worlds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robolearn.cli.main import main
from robolearn.policies.checkpoint import save_policy
from robolearn.policies.config import POLICIES
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn_data.dataset import Dataset
from robolearn_data.statistics import StreamStatistics
from robolearn_deploy.chunks import ControlState
from robolearn_deploy.local_policy import LocalPolicy
from robolearn_deploy.policy_process import WARM_UP
from robolearn_sim.worlds import world_spec


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory):
    """World -> folder of an untrained policy for it."""

    def make(world: str) -> Path:
        schema = world_spec(world).schema
        streams = {name: schema.stream(name) for name in ("state", "action")}
        spec = PolicySpec({"state": streams["state"]}, streams["action"], float(schema.rate_hz), 2, 16, 8)
        middle, spread = (256.0, 100.0) if world == "pusht" else (0.0, 0.5)
        statistics = {}
        for name, stream in streams.items():
            ones = np.ones(stream.shape)
            low, high = (middle - spread) * ones, (middle + spread) * ones
            statistics[name] = StreamStatistics(2, low, high, middle * ones, spread * ones, low, high)
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(world) / "checkpoint"
        save_policy(Policy(spec, statistics, POLICIES["flow"]()), folder)
        return folder

    made: dict[str, Path] = {}
    return lambda world: made[world] if world in made else made.setdefault(world, make(world))


@pytest.mark.slow
def test_deploy_drives_pusht_with_what_the_checkpoint_infers_from_what_was_observed(
    checkpoints, tmp_path: Path, capsys
) -> None:
    """Every recorded action is computed once more, from the recorded observations alone."""
    folder, out, summary = checkpoints("pusht"), tmp_path / "run.zarr", tmp_path / "summary.json"
    words = [str(folder), "--world", "pusht", "--seconds", "5", "--seed", "3", "--steps", "2"]
    assert main(["deploy", *words, "--out", str(out), "--json", str(summary)]) == 0
    assert "deadlines missed" in capsys.readouterr().out
    report = json.loads(summary.read_text())
    assert report["failure"] == ""
    assert 5 < report["rate_reached_hz"] < 10.1
    assert report["inference"]["p50_ms"] > 0
    assert report["delay"]["p50_ms"] > report["inference"]["p50_ms"]
    assert main(["data", "info", str(out), "--json"]) == 0
    assert main(["data", "validate", str(out)]) == 0

    data = Dataset.open(out)
    assert data.episode_info(0)["seed"] == 3
    state, ages, chunks = data.read("state"), data.read("chunk_age"), data.read("chunk")
    ticks = np.asarray(data.times("tick"))
    running = data.read("control_state") == ControlState.RUNNING
    assert len(np.unique(chunks[running])) >= 3
    policy = LocalPolicy(folder, steps=2, sampler=None, seed=3, device="cpu")
    blank = {"state": np.zeros((2, 5), np.float32)}
    for _ in range(WARM_UP):
        policy.infer(blank)
    period = 100_000_000
    for number in range(int(chunks.max()) + 1):
        rows = np.flatnonzero(chunks == number)
        if not len(rows):
            policy.infer(blank)  # made and never used; it drew noise all the same
            continue
        captured_ns = ticks[rows[0]] - ages[rows[0]]
        # Before the first row the world stood still at the first row's observation.
        window = [max(0, np.searchsorted(ticks, captured_ns - back, "right") - 1) for back in (period // 2, 0)]
        chunk = policy.infer({"state": state[window]})
        carried_out = chunk[policy.spec.start + ages[rows] // period]
        assert np.allclose(data.read("action_sent")[rows], carried_out, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")
def test_deploy_drives_lift_in_real_time(checkpoints, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    words = [str(checkpoints("lift")), "--world", "lift", "--seconds", "4", "--steps", "2", "--json", str(summary)]
    assert main(["deploy", *words]) == 0
    report = json.loads(summary.read_text())
    assert 10 < report["rate_reached_hz"] < 20.2
    assert report["chunks_used"] >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "moon"], "there is no world 'moon'"),
        (["--world", "lift"], "the policy"),
        (["--world", "pusht", "--seconds", "-1"], "--seconds -1"),
        (["--world", "pusht", "--replan", "0"], "--replan 0"),
        (["--world", "pusht", "--out", "."], ". exists"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(checkpoints, capsys, words: list[str], message: str) -> None:
    assert main(["deploy", str(checkpoints("pusht")), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("robolearn: error: ")


def test_a_folder_without_a_checkpoint_is_one_line_and_exit_code_2(tmp_path: Path, capsys) -> None:
    assert main(["deploy", str(tmp_path), "--world", "pusht"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
