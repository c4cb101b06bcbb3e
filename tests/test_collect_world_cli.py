"""`robolearn collect --world` for a person, as they type it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from test_collect_cli import Terminal

from robolearn.cli.collect_world import TOOL_M_S
from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.schema import read_text
from robolearn_deploy.world_collect import recorded_schema
from robolearn_hardware.teleop.keyboard import KeyboardConfig
from robolearn_sim.instructions import goal_of
from robolearn_sim.worlds import world_spec


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--world", "pusht", "--teleop", "joystick"], "--teleop joystick: valid are page, scripted, "),
        (["--world", "pusht", "--teleop", "page", "--no-page"], "nobody could move the world"),
        (["--world", "so101_tabletop", "--teleop", "so101_leader"], "say where it is, as so101_leader:PORT"),
        (["--world", "lift", "--teleop", "so101_leader:twin"], "no arm whose joints could mirror a leader's"),
        (["--world", "mars", "--teleop", "page"], "there is no world 'mars'"),
        (["--world", "pusht", "--teleop", "page", "--episodes", "0"], "--episodes 0 is not possible"),
        (["--world", "pusht", "--teleop", "page", "--episode-s", "nan"], "--episode-s nan is not possible"),
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


def demonstrated(out: Path, *words: str, press: str = "") -> dict[str, np.ndarray]:
    """The one episode of a session at the terminal, of two seconds of the world; ``press`` is typed as if held."""
    terminal = Terminal(
        *("--episodes", "1", "--episode-s", "2", "--countdown-s", "0", "--page-port", "0", *words, str(out))
    )
    try:
        terminal.until("set the scene")
        terminal.until("EPISODE", press="\n")
        seen, end = len(terminal.shown), time.monotonic() + 120
        while "JUDGING" not in terminal.shown[seen:]:
            assert terminal.read(0.02), terminal.shown[-2000:]
            assert time.monotonic() < end, terminal.shown[-2000:]
            if press:
                terminal.press(press)
        terminal.until("1 of 1 episodes", press="f")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
    dataset = Dataset.open(out)
    assert dataset.episodes == 1
    return dataset.episode(0)


@pytest.mark.slow
def test_an_arrow_key_of_the_terminal_moves_lift_s_tool_forward(tmp_path: Path) -> None:
    rows = demonstrated(tmp_path / "out.zarr", "--world", "lift", "--teleop", "keyboard", press="\x1b[A")
    action = rows["action"]
    assert len(action) == 40
    assert action[:, 0].max() == pytest.approx(KeyboardConfig().speed_m_s / TOOL_M_S, abs=0.02)
    assert not action[:, 1:6].any()
    assert rows["state"][-1, 0] > rows["state"][0, 0] + 0.01


@pytest.mark.slow
def test_a_gamepad_moves_lift_s_tool(tmp_path: Path) -> None:
    rows = demonstrated(tmp_path / "out.zarr", "--world", "lift", "--teleop", "gamepad:twin")  # its hand never rests
    assert np.abs(rows["action"][:, :6]).max() > 0.05
    assert np.ptp(rows["state"][:, :3], axis=0).max() > 0.002  # a loaded machine follows less of its motion


@pytest.mark.slow
def test_a_leader_arm_is_mirrored_by_the_tabletop_s(tmp_path: Path) -> None:
    where = ("--world", "so101_tabletop", "--teleop", "so101_leader:twin")  # moved slowly, as if by a hand
    rows = demonstrated(tmp_path / "out.zarr", *where)
    moved = np.ptp(rows["action"][:, :5], axis=0)
    assert moved.max() > 0.02
    assert np.abs(np.diff(rows["action"][:, :5], axis=0)).max() < 0.5, "and never jumps"


@pytest.mark.slow
def test_what_a_world_says_is_recorded_with_what_a_person_does(tmp_path: Path) -> None:
    where = ("--world", "so101_language", "--teleop", "so101_leader:twin")
    rows = demonstrated(tmp_path / "out.zarr", *where)
    assert goal_of(read_text(rows["instruction"][0]))
    assert len(np.unique(rows["instruction"], axis=0)) == 1
