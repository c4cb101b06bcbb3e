"""`robolearn serve` with a real checkpoint: what a robot far away gets is what it would have computed itself."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from robolearn.cli.main import main
from robolearn.policies.checkpoint import save_policy
from robolearn.policies.config import POLICIES
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics
from robolearn_deploy.inference import Committed, Request
from robolearn_deploy.local_policy import LocalPolicy
from robolearn_deploy.wire.client import RemotePolicy, RemotePolicyError
from robolearn_deploy.wire.server import PolicyServer, ServerOptions, serving
from robolearn_hardware.clock import now_ns
from robolearn_sim.worlds import world_spec

DEADLINE_S = 60.0


def untrained(spec: PolicySpec, folder: Path) -> Path:
    """A checkpoint with random weights."""
    statistics = {}
    for name, stream in (*spec.observation.items(), ("action", spec.action)):
        ones = np.ones(stream.shape)
        statistics[name] = StreamStatistics(2, -ones, ones, 0 * ones, 0.5 * ones, -ones, ones)
    torch.manual_seed(0)
    save_policy(Policy(spec, statistics, POLICIES["flow"]()), folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = PolicySpec({"state": Stream((3,))}, Stream((2,), kind="action"), 10.0, 2, 16, 8)
    return untrained(spec, tmp_path_factory.mktemp("policy") / "checkpoint")


@dataclass
class Served:
    process: subprocess.Popen[str]
    port: int
    said: str


@contextlib.contextmanager
def serve(checkpoint: Path, *words: str, home: Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "robolearn.cli.main", "serve", str(checkpoint), "--port", "0", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CONFIG_HOME": str(home / ".config")}
    environment.pop("ROBOLEARN_TOKEN", None)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        assert said.startswith("serving"), process.stderr.read()
        yield Served(process, int(said.split("://")[1].split()[0].rsplit(":", 1)[1]), said)
    finally:
        process.kill()
        process.communicate()


def ask(policy: RemotePolicy | LocalPolicy, sequence: int, committed: Committed | None = None) -> np.ndarray:
    rng = np.random.default_rng(sequence)
    observation = {"state": rng.standard_normal((2, 3)).astype(np.float32)}
    (reply,) = policy.infer(
        Request(sequence, now_ns(), observation, committed, deadline_ns=now_ns() + int(DEADLINE_S * 1e9))
    )
    return reply.actions


@pytest.mark.slow
def test_a_served_checkpoint_gives_the_chunks_of_the_same_one_at_hand_and_ends_in_order(
    checkpoint: Path, tmp_path: Path
) -> None:
    words = ["--token-file", str(tmp_path / "token"), "--scheduler", "rtc-identity", "--seed", "5"]
    with serve(checkpoint, *words, home=tmp_path) as served:
        url = f"ws://127.0.0.1:{served.port}"
        with pytest.raises(RemotePolicyError, match="refuses the token"):
            RemotePolicy(url, connect_s=DEADLINE_S)
        token = (tmp_path / "token").read_text().strip()
        remote = RemotePolicy(url, token=token, connect_s=DEADLINE_S)
        local = LocalPolicy(checkpoint, seed=5, scheduler="rtc-identity")
        assert remote.scheduler == "rtc-identity"
        assert remote.spec.to_json() == local.spec.to_json()
        for sequence in range(4):
            plan = np.full((16, 2), np.nan, np.float32)
            plan[:8] = 0.1 * sequence
            committed = Committed(plan, delay=2, execute=4) if sequence else None
            far, near = (ask(policy, sequence, committed) for policy in (remote, local))
            np.testing.assert_allclose(far, near, atol=1e-5)
        remote.close()
        served.process.send_signal(signal.SIGTERM)
        out, error = served.process.communicate(timeout=DEADLINE_S)
    assert served.process.returncode == 0, error
    assert "answered  4 requests, 0 failed" in out
    assert "1 refused" in out
    assert error == ""


@pytest.mark.slow
def test_a_self_signed_certificate_is_made_where_the_command_says_and_clients_trust_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    with serve(checkpoint, "--self-signed", home=tmp_path) as served:
        assert "wss://" in served.said
        assert served.process.stdout is not None
        certificate = Path(served.process.stdout.readline().split()[1])
        assert certificate.is_relative_to(tmp_path)
        remote = RemotePolicy(f"wss://127.0.0.1:{served.port}", certificate=certificate, connect_s=DEADLINE_S)
        assert ask(remote, 0).shape == (16, 2)
        remote.close()


@pytest.mark.slow
def test_a_robot_holds_while_its_server_is_away_and_goes_on_when_it_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = world_spec("pusht").schema
    state, action = schema.stream("state"), schema.stream("action")
    folder = untrained(PolicySpec({"state": state}, action, schema.rate_hz, 2, 16, 8), tmp_path / "checkpoint")
    make = functools.partial(LocalPolicy, folder, steps=1)
    used = []

    def away_and_back(port: int, running: PolicyServer) -> None:
        until = now_ns() + int(DEADLINE_S * 1e9)
        while running.statistics.answered < 5 and now_ns() < until:  # three to warm up, and then some
            time.sleep(0.01)
        running.stop()
        time.sleep(3.0)  # longer than a chunk lasts
        with serving(make, ServerOptions(port=port)) as server:
            while server.statistics.answered < 3 and now_ns() < until:
                time.sleep(0.01)
            finished.wait(DEADLINE_S)
            used.append(server.statistics.answered)

    finished = threading.Event()
    with serving(make, ServerOptions(port=0)) as server:
        helper = threading.Thread(target=away_and_back, args=(server.port, server))
        helper.start()
        words = ["--policy", f"ws://127.0.0.1:{server.port}", "--world", "pusht", "--seconds", "20"]
        code = main(["deploy", *words, "--json", str(tmp_path / "report.json")])
        finished.set()
        helper.join()
    assert code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failure"] == ""
    assert report["seconds_in"]["HOLDING"] > 0.5
    assert report["seconds_in"]["RUNNING"] > 0.5
    assert used[0] >= 3, "the robot never came back to its server"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "a", "--tls-key", "b", "--self-signed"], "give one of the two"),
        (["--tls-cert", "a", "--tls-key", "b"], "a and b cannot be used for TLS"),
        (["--port", "70000"], "--port 70000 does not exist"),
        (["--max-batch", "0"], "--max-batch 0 is too small"),
        (["--batch-window-ms", "-1"], "--batch-window-ms -1 is not possible"),
        (["--device", "abacus"], "the device 'abacus' cannot be used"),
        (["--scheduler", "nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: list[str], said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROBOLEARN_TOKEN", raising=False)
    assert main(["serve", str(checkpoint), "--port", "0", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_checkpoint_that_is_none_is_a_mistake_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err
