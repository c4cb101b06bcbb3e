"""`robolearn collect --world` for a person, as they type it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_deploy.world_collect import recorded_schema
from robolearn_sim.worlds import world_spec


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--world", "pusht", "--teleop", "joystick"], "--teleop joystick: valid are page, scripted, "),
        (["--world", "pusht", "--teleop", "page", "--no-page"], "nobody could move the world"),
        (["--world", "pusht", "--teleop", "so101_leader"], "say where it is, as so101_leader:PORT"),
        (["--world", "mars", "--teleop", "page"], "there is no world 'mars'"),
        (["--world", "pusht", "--teleop", "page", "--episodes", "0"], "--episodes 0 is not possible"),
    ],
)
def test_a_mistake_is_one_line_with_what_is_valid(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROBOLEARN_TOKEN", raising=False)
    assert main(["collect", *words, str(tmp_path / "out.zarr")]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert said in printed[-1]


@pytest.mark.slow
def test_a_session_shows_its_page_ends_at_ctrl_c_and_is_gone_on_with(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "out.zarr"
    words = ["collect", "--world", "pusht", "--teleop", "page", "--page-port", "0", "--seed", "4", str(out)]
    paths = [str(root), *(str(root / name) for name in ("data", "hardware", "sim", "deploy"))]
    for more in ([], ["--resume"]):
        process = subprocess.Popen(
            [sys.executable, "-m", "robolearn.cli.main", *words, *more],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "READY" in line:
                process.send_signal(signal.SIGINT)
                break
        printed, rest = process.communicate()
        watchdog.cancel()
        assert process.returncode == 0, "".join(said) + rest
        assert any("page: http://127.0.0.1:" in line for line in said)
        assert "saved 0 and discarded 0" in printed
    dataset = Dataset.open(out)
    assert dataset.episodes == 0
    assert dataset.schema == recorded_schema(world_spec("pusht"))
    assert main([*words]) == 2, "it is there already"
