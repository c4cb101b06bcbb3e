"""`robolearn collect --rig` at the terminal: keys, pedals, what is shown, and mistakes in one line."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from robolearn.cli.collect_rig import teleoperators
from robolearn.cli.collect_terminal import BELLS, SessionTerminal
from robolearn.cli.keys import COLLECT_KEYS, command_names
from robolearn.cli.main import main
from robolearn.cli.parse import UsageError
from robolearn_data.dataset import Dataset
from robolearn_deploy.collect_session import CollectSession, Cue, SessionOptions, Stage
from robolearn_deploy.operator import Command
from robolearn_deploy.rig_processes import Buttons
from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import Intent
from robolearn_hardware.rig import load_rig


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what the person does: --task"),
        (["--task", "a", "--world", "pusht"], "a rig (--rig) or a simulated world"),
        (["--task", "a", "--task", "a"], "named twice"),
        (["--task", "a", "--teleop", "spoon"], "valid are leader, page"),
        (["--task", "a", "--teleop", "leader", "--teleop", "page"], "one teleoperator moves one arm"),
        (["--task", "a", "--no-page", "--teleop", "page"], "valid are leader"),
        (["--task", "a", "--episodes", "0"], "--episodes 0 is not possible"),
        (["--task", "a", "--rate-hz", "0"], "--rate-hz 0 is not possible"),
        (["--task", "a", "--key", "b"], "give NAME=COMMAND"),
        (["--task", "a", "--button", "b=jump"], "commands: pause, resume"),
        (["--task", "a", "--page-port", "70000"], "--page-port 70000 does not exist"),
        (["--task-file", "nowhere.txt"], "no such file"),
        (["--resume"], "out.zarr"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(
    words: list[str], said: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.zarr"
    assert main(["collect", str(out), "--rig", str(root / "hardware/rigs/so101_twin.yaml"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not out.exists()


def test_who_moves_which_arm_is_asked_where_there_is_a_choice(root: Path) -> None:
    two, one = (load_rig(root / f"hardware/rigs/{name}_twin.yaml") for name in ("aloha", "so101"))
    assert teleoperators(one, (), page=True) == {"leader": "follower"}
    assert teleoperators(one, ("page",), page=True) == {"page": "follower"}
    with pytest.raises(UsageError, match="say who moves which arm"):
        teleoperators(two, (), page=True)
    leaders, arms = list(two.teleoperators), list(two.arms)
    words = [f"{leader}:{arm}" for leader, arm in zip(leaders, arms, strict=False)]
    assert teleoperators(two, words, page=True) == dict(zip(leaders, arms, strict=False))
    with pytest.raises(UsageError, match="each with :ARM of"):
        teleoperators(two, leaders[:1], page=True)


def test_a_key_or_a_button_can_mean_what_makes_sense_at_the_time() -> None:
    assert command_names("--key", ["b=start+success", "==e-stop"]) == {"b": ("START", "SUCCESS"), "=": ("E_STOP",)}


def test_keys_of_deploy_mean_the_same_here() -> None:
    from robolearn.cli.deploy_rig import KEYS

    for key in KEYS.keys() & COLLECT_KEYS.keys():
        assert KEYS[key][0] == COLLECT_KEYS[key][0], key


class Told:
    def __init__(self) -> None:
        self.commands: list[Command] = []

    def tell(self, command: Command) -> None:
        self.commands.append(command)


def test_a_button_counts_once_when_it_is_pressed_and_not_if_it_was_held_from_the_beginning() -> None:
    told: Any = Told()
    buttons = Buttons({"a": (Command.START, Command.SUCCESS)}, told)
    for pressed in ({"a": True}, {"a": True}, {"a": False}, {"a": True, "e_stop": True}, {"a": True}, {"x": True}):
        buttons.hear(Intent(0, True, buttons=pressed))
    assert told.commands == [Command.START, Command.SUCCESS, Command.E_STOP]


def test_without_a_terminal_each_stage_is_a_line_with_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    session = CollectSession(SessionOptions(("push", "pull"), 10))
    session.tallies["push"].saved, session.tallies["push"].successes = 4, 3
    session.saved, session.began_ns = 2, SECOND_NS
    session.recorded_ns = 90 * SECOND_NS
    with SessionTerminal() as terminal:
        for stage in (Stage.READY, Stage.READY, Stage.EPISODE):
            session.stage = stage
            terminal.session(session, 121 * SECOND_NS)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "READY: 4 of 10 episodes, 75 % successes, 1.5 minutes recorded, 6 minutes left (until " in lines[1]
    assert lines[2].startswith("EPISODE")


def test_an_episode_that_waits_for_the_first_motion_says_so_and_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    session = CollectSession(SessionOptions(("push",), 10))
    session.stage, session.ends_ns, session.waiting = Stage.EPISODE, 15 * SECOND_NS, True
    with SessionTerminal() as terminal:
        terminal.session(session, 0)
        waits = terminal._lines(session, 0).plain
        session.waiting = False
        terminal.session(session, 0)
        records = terminal._lines(session, 0).plain
    assert "hold the deadman" in waits
    assert "15 s" not in waits
    assert "recording:" not in waits
    assert "15 s" in records
    assert "recording:" in records
    lines = capsys.readouterr().err.splitlines()
    assert "hold the deadman" in lines[-2]
    assert "hold the deadman" not in lines[-1]


def test_every_cue_can_be_heard() -> None:
    assert BELLS.keys() == {cue.name for cue in Cue} - {"NONE"}


class Terminal:
    """`robolearn collect` in a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self._end, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "150", "LINES": "50"}
        command = [sys.executable, "-m", "robolearn.cli.main", "collect", *words]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def press(self, key: str) -> None:
        os.write(self._end, key.encode())

    def read(self, seconds: float = 0.1) -> bool:
        """Whether the command still runs."""
        if select.select([self._end], [], [], seconds)[0]:
            try:
                new = os.read(self._end, 1 << 16)
            except OSError:  # Linux says so when the other end is closed
                return False
            self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", new.decode(errors="replace"))
        return self.process.poll() is None

    def until(self, text: str, *, press: str = "", seconds: float = 120.0) -> None:
        """``text`` is shown anew; ``press`` is pressed about every second until then."""
        seen, end, pressed = len(self.shown), time.monotonic() + seconds, time.monotonic()
        while text not in self.shown[seen:]:
            alive = self.read()
            assert alive or text in self.shown[seen:], self.shown[-2000:]
            assert time.monotonic() < end, self.shown[-2000:]
            if press and time.monotonic() - pressed > 1:
                self.press(press)
                pressed = time.monotonic()

    def close(self) -> int:
        end = time.monotonic() + 120
        while self.read():
            assert time.monotonic() < end, self.shown[-2000:]
        code = self.process.wait(60)
        os.close(self._end)
        return code


@pytest.mark.slow
def test_a_whole_session_at_the_terminal_with_enter_keys_and_a_pedal(root: Path, tmp_path: Path) -> None:
    out, tasks = tmp_path / "out.zarr", tmp_path / "tasks.txt"
    tasks.write_text("push the cube\npull the cube\n")
    terminal = Terminal(
        *(str(out), "--rig", str(root / "hardware/rigs/so101_twin.yaml"), "--task-file", str(tasks)),
        *("--episodes", "2", "--countdown-s", "1", "--no-fifo", "--page-port", "0", "--key", "b=start+success"),
    )
    try:
        terminal.until("set the scene")
        assert "teleoperator leader" in terminal.shown
        assert "enter start" in terminal.shown
        terminal.until("COUNTDOWN", press="\n")
        terminal.until("EPISODE")
        terminal.until("1 of 2 episodes, 0 % successes", press="f")
        assert "\a" in terminal.shown
        terminal.until("2 of 2 episodes, 50 % successes", press="b")
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
    dataset = Dataset.open(out)
    infos = [dataset.episode_info(i) for i in range(dataset.episodes)]
    assert [(i["task"], i["success"]) for i in infos] == [("push the cube", False), ("pull the cube", True)]
    assert "look at them with: robolearn data info" in terminal.shown


@pytest.mark.slow
def test_ctrl_c_in_an_episode_ends_in_order_and_says_how_to_save_it(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    rig = str(root / "hardware/rigs/so101_twin.yaml")
    terminal = Terminal(str(out), "--rig", rig, "--task", "push", "--countdown-s", "0", "--no-fifo", "--no-page")
    try:
        terminal.until("set the scene")
        terminal.until("EPISODE", press="\n")
        terminal.read(1.0)
        os.killpg(terminal.process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
        assert terminal.close() == 0
    finally:
        terminal.process.kill()
    assert f"robolearn data recover {out}" in terminal.shown.replace("\r\n", "")
    assert main(["data", "recover", str(out)]) == 0
    assert Dataset.open(out).episodes == 1
