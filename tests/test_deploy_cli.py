"""`robolearn deploy` with real checkpoints and real worlds."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from dashboard_bench import get
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from robolearn.cli.collect_world import TOOL_M_S
from robolearn.cli.main import main
from robolearn.policies.checkpoint import save_policy
from robolearn.policies.config import POLICIES
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn_data.dataset import Dataset
from robolearn_data.statistics import StreamStatistics
from robolearn_deploy.chunks import ControlState
from robolearn_deploy.dashboard.teleop import SPEED_M_S
from robolearn_deploy.inference import Request
from robolearn_deploy.local_policy import LocalPolicy
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
    policy = LocalPolicy(folder, steps=2, seed=3)
    period = 100_000_000
    for number in np.unique(chunks[running]):
        rows = np.flatnonzero(chunks == number)
        captured_ns = ticks[rows[0]] - ages[rows[0]]
        # Before the first row the world stood still at the first row's observation.
        window = [max(0, np.searchsorted(ticks, captured_ns - back, "right") - 1) for back in (period // 2, 0)]
        (reply,) = policy.infer(Request(int(number), int(captured_ns), {"state": state[window]}))
        assert reply.final == policy.spec.horizon
        assert set(reply.timing_ms) == {"encode", "sample", "total"}
        carried_out = reply.actions[policy.spec.start + ages[rows] // period]
        assert np.allclose(data.read("action_sent")[rows], carried_out, atol=1e-3)


@pytest.mark.slow
def test_deploy_with_real_time_chunking_reports_its_delays_and_evaluation_takes_them(
    checkpoints, tmp_path: Path, capsys
) -> None:
    folder, summary = checkpoints("pusht"), tmp_path / "summary.json"
    words = [str(folder), "--world", "pusht", "--scheduler", "rtc", "--steps", "2"]
    assert main(["deploy", *words, "--seconds", "5", "--json", str(summary)]) == 0
    out = capsys.readouterr().out
    assert "scheduler rtc" in out
    assert "in control steps: " in out
    report = json.loads(summary.read_text())
    assert (report["scheduler"], report["failure"], report["requests_failed"]) == ("rtc", "", 0)
    assert report["jerk"] > 0
    assert report["join"] > 0
    assert sum(report["delay_steps"].values()) == report["chunks_used"] >= 3
    assert len(report["delays_ms"]) == report["chunks"]

    evaluated = tmp_path / "eval"
    words += ["--delay", str(summary), "--episodes", "2", "--workers", "0", "--no-videos", "--out", str(evaluated)]
    assert main(["eval", *words]) == 0
    assert "motion   jerk" in capsys.readouterr().out
    results = json.loads((evaluated / "results.json").read_text())
    assert (results["scheduler"], results["delay"], results["episodes"]) == ("rtc", str(summary), 2)
    assert results["jerk"] > 0


@pytest.mark.slow
def test_a_policy_on_a_server_drives_a_world_with_the_server_s_scheduler(checkpoints, tmp_path: Path, capsys) -> None:
    folder, summary = checkpoints("pusht"), tmp_path / "summary.json"
    command = [sys.executable, "-m", "robolearn.cli.main", "serve", str(folder), "--port", "0"]
    command += ["--scheduler", "rtc-identity", "--steps", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("ROBOLEARN_TOKEN", None)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split(" at ")[1].split()[0]
            words = ["deploy", "--policy", url, "--world", "pusht", "--seconds", "4"]
            assert main([*words, "--json", str(summary)]) == 0
            assert main([*words, "--scheduler", "naive"]) == 2
            assert "serves chunks for the scheduler 'rtc-identity'" in capsys.readouterr().err
        finally:
            server.kill()
    report = json.loads(summary.read_text())
    assert (report["scheduler"], report["policy"], report["failure"]) == ("rtc-identity", url, "")
    assert report["chunks_used"] >= 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")
def test_deploy_drives_lift_in_real_time(checkpoints, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    words = [str(checkpoints("lift")), "--world", "lift", "--seconds", "4", "--steps", "2", "--json", str(summary)]
    assert main(["deploy", *words]) == 0
    report = json.loads(summary.read_text())
    assert 10 < report["rate_reached_hz"] < 20.2
    assert report["chunks_used"] >= 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")
def test_a_person_at_the_page_takes_over_lift_from_a_policy(checkpoints, tmp_path: Path) -> None:
    """The command as it is typed, and a viewer on its page: what they do is carried out, and labelled."""
    out = tmp_path / "run.zarr"
    words = ["deploy", str(checkpoints("lift")), "--world", "lift", "--teleop", "page", "--page-port", "0"]
    command = [sys.executable, "-m", "robolearn.cli.main", *words, "--seconds", "90", "--steps", "2", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("ROBOLEARN_TOKEN", None)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            said = iter(process.stderr.readline, "")
            found = urlsplit(next(line for line in said if "page: http://" in line).split("page: ")[1].strip())
            home = f"http://{found.netloc}"
            cookie = str(get(home, f"/?{found.query}").headers["Set-Cookie"]).split(";")[0] if found.query else ""
            how: Any = {"origin": Origin(home), "additional_headers": {"Cookie": cookie}, "open_timeout": 60}
            with connect(f"ws://{found.netloc}/socket", **how) as page:
                _take_over(page)
            assert process.wait(120) == 0
        finally:
            process.kill()
    rows = Dataset.open(out).episode(0)
    by_person = rows["intervention"] == 1
    assert by_person.any()
    assert not by_person.all()
    moved = rows["action"][by_person]
    assert moved[:, 2].max() == pytest.approx(SPEED_M_S / TOOL_M_S, rel=0.01), "up, as the key says"
    assert not moved[:, [0, 1, 3, 4, 5]].any()


def _take_over(page: ClientConnection) -> None:
    """Take over as soon as the policy runs, hold a key for a second, and end the run."""

    def tell(**message: object) -> None:
        page.send(json.dumps(message))

    since, told = None, 0.0
    tell(control="ask")
    while True:
        message = json.loads(page.recv(timeout=60))
        if message["kind"] == "over":
            return
        if message["kind"] != "state":
            continue
        now = message["now"]
        tell(seen=message["n"])
        if message["state"] == "RUNNING" and now - told > 500:
            told = now
            tell(do="TAKE_OVER")
        if message["state"] == "TELEOP":
            since, made = since or now, time.monotonic() * 1e3
            intent = {"t": made, "heard": [now, made], "arm": "tool", "clutch": 1, "rate": [0, 1, 0, 0, 0, 0]}
            tell(intent=intent)
            if now - since > 1500 and now - told > 500:
                told = now
                tell(do="END")


@pytest.mark.parametrize(
    ("words", "most"), [(["--world", "pusht"], 512), (["--rig", "hardware/rigs/so101_twin.yaml"], 256)]
)
def test_an_instruction_that_is_too_long_is_refused_before_anything_is_started(
    checkpoints, capsys, monkeypatch: pytest.MonkeyPatch, words: list[str], most: int
) -> None:
    for started in ("deploy_rig.run_on_rig", "deploy_world.run_in_world"):
        monkeypatch.setattr(f"robolearn.cli.{started}", lambda *_: pytest.fail("something was started"))
    assert main(["deploy", str(checkpoints("pusht")), *words, "--instruction", "ä" * (most // 2 + 1)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"--instruction has {most + 2} bytes" in message
    assert f"at most {most}" in message


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        (["--world", "pusht"], False),
        (["--world", "pusht", "--teleop", "page"], True),
        (["--world", "pusht", "--teleop", "page", "--no-page"], False),
        (["--rig", "hardware/rigs/so101_twin.yaml"], True),
        (["--rig", "hardware/rigs/so101_twin.yaml", "--no-page"], False),
    ],
)
def test_a_token_is_for_a_server_or_for_a_page(tmp_path: Path, capsys, words: list[str], fits: bool) -> None:
    """Where it fits, the next mistake is found: there is no checkpoint."""
    assert main(["deploy", str(tmp_path / "none"), *words, "--token-file", "token"]) == 2
    assert ("--token-file is for" in capsys.readouterr().err) is not fits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "moon"], "there is no world 'moon'"),
        (["--world", "lift"], "the policy"),
        (["--world", "pusht", "--seconds", "-1"], "--seconds -1"),
        (["--world", "pusht", "--replan", "0"], "--replan 0"),
        (["--world", "pusht", "--replan", "16"], "16 steps between chunks are more than the 15 actions"),
        (["--world", "pusht", "--scheduler", "fast"], "there is no scheduler 'fast'; valid: sync, naive"),
        (["--world", "pusht", "--out", "."], ". exists"),
        (["--world", "pusht", "--rig", "rig.yaml"], "in one place, not several"),
        (["--world", "pusht", "--policy", "ws://localhost:1"], "two policies are named"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(checkpoints, capsys, words: list[str], message: str) -> None:
    assert main(["deploy", str(checkpoints("pusht")), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("robolearn: error: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a policy"),
        (["--policy", "http://localhost"], "is not the URL of a policy server"),
        (["--policy", "ws://localhost:1", "--steps", "2"], "--steps: the server decides"),
    ],
)
def test_a_policy_that_is_nowhere_is_one_line_and_exit_code_2(capsys, words: list[str], message: str) -> None:
    assert main(["deploy", "--world", "pusht", *words]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_without_a_checkpoint_is_one_line_and_exit_code_2(tmp_path: Path, capsys) -> None:
    assert main(["deploy", str(tmp_path), "--world", "pusht"]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--delay", "4"], "name one with --scheduler"),
        (["--scheduler", "fast"], "there is no scheduler 'fast'; valid: sync, naive"),
        (["--scheduler", "rtc", "--delay", "8"], "cannot bridge a delay of 8 control steps with 8 steps between them"),
        (["--scheduler", "rtc", "--delay", "-1"], "a delay of -1 steps is not possible"),
        (["--scheduler", "rtc", "--delay", "trace.json"], "trace.json holds no delays"),
        (["--scheduler", "rtc-trained", "--delay", "2"], "objective.prefix"),
        (["--scheduler", "naive", "--replan", "16"], "16 steps between chunks are more than the 15 actions"),
    ],
)
def test_a_delay_or_scheduler_that_cannot_be_evaluated_is_one_line_and_exit_code_2(
    checkpoints, capsys, tmp_path: Path, words: list[str], message: str
) -> None:
    options = ["--episodes", "1", "--workers", "0", "--steps", "1", "--out", str(tmp_path / "eval")]
    assert main(["eval", str(checkpoints("pusht")), "--world", "pusht", *options, *words]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line
    assert line.startswith("robolearn: error: ")
