"""The command line: one line on standard error and exit code 2 for every mistake, and a quick ``--help``."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro

from robolearn.cli import main as command_line
from robolearn.cli.main import main
from robolearn_data.schema import UserError


@dataclass(frozen=True)
class Trunk:
    widths: tuple[int, ...] = (64, 128)
    """Channels of each level."""


@dataclass(frozen=True)
class Model:
    trunk: Trunk = field(default_factory=Trunk)
    horizon: int = 16


@dataclass(frozen=True)
class Options:
    dataset: tyro.conf.Positional[Path]
    """Folder of the dataset."""
    model: Model = field(default_factory=Model)
    steps: int = 100
    """Optimiser steps."""
    objective: Literal["flow", "diffusion"] = "flow"
    json: bool = False
    """Print JSON."""
    dry_run: bool = False
    a_long_name_for_a_switch_that_nobody_would_like_to_type: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Command:
    """Runs the made-up command ``robolearn fit`` and keeps what it was given."""

    given: list[Options]
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *words: str) -> Options:
        assert main(["fit", *words]) == 0
        return self.given[-1]

    def fails(self, *words: str) -> str:
        """The line on standard error, without its newline."""
        assert main(["fit", *words]) == 2
        out, err = self.capsys.readouterr()
        assert out == ""
        assert err.startswith("robolearn: error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err.rstrip("\n")


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    given: list[Options] = []
    _install(monkeypatch, "fit", {"": (Options, given.append)})
    return Command(given, capsys)


def _install(monkeypatch: pytest.MonkeyPatch, name: str, commands: dict[str, Any]) -> None:
    module = types.ModuleType(f"robolearn.cli.{name}")
    module.__dict__["COMMANDS"] = commands
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(command_line.COMMANDS, name, "made up")


def _run(*words: str, code: str = "import sys; from robolearn.cli.main import main; sys.exit(main())") -> Any:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["data", "--help"], ["fit", "--help"]])
def test_help_exits_0_and_explains(words: list[str], fit: Command) -> None:
    try:
        code = main(words)
    except SystemExit as stop:  # tyro's own way out
        code = stop.code
    out, err = fit.capsys.readouterr()
    assert (code, err) == (0, "")
    assert "usage: robolearn" in out


def test_help_of_a_command_shows_docstrings_and_default_values(fit: Command) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "data", "--help"])
    out = fit.capsys.readouterr().out
    assert "Optimiser steps. (default: 100)" in out
    assert "DATASET" in out


def test_overview_imports_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys; from robolearn.cli.main import main; code = main(['--help']); "
        "print([m for m in ('torch', 'mujoco', 'zarr', 'diffusers', 'matplotlib', 'pygame', 'robolearn_sim') "
        "if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = _run(code=code)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert "train" in done.stdout


def test_overview_lists_every_command_and_each_has_its_module() -> None:
    folder = Path(command_line.__file__).parent
    lines = _run("--help").stdout.splitlines()
    for name in command_line.COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in lines)
        assert (folder / f"{name}.py").is_file()


def test_no_command_shows_the_overview_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_unknown_command_names_the_valid_ones() -> None:
    done = _run("trian")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "'trian'" in line
    assert all(name in line for name in command_line.COMMANDS)


def test_unknown_command_of_a_group_names_the_valid_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def info(_: Options) -> None:
        """Describe it."""

    _install(monkeypatch, "group", {"info": (Options, info)})
    assert main(["group", "inof"]) == 2
    assert capsys.readouterr().err == "robolearn: error: unknown command 'robolearn group inof'; valid: info\n"
    assert main(["group", "--help"]) == 0
    assert "info       Describe it." in capsys.readouterr().out


def test_options_are_read_in_every_spelling(fit: Command) -> None:
    assert fit("d", "--steps", "3").steps == 3
    assert fit("--steps=3", "d") == Options(Path("d"), steps=3)
    assert fit("d", "--objective", "diffusion", "--device", "cpu") == Options(
        Path("d"), objective="diffusion", device="cpu"
    )
    assert fit("d", "--model.trunk.widths", "32", "64", "--model.horizon", "8").model == Model(Trunk((32, 64)), 8)


def test_a_flag_takes_no_value(fit: Command) -> None:
    assert fit("d", "--json").json is True
    assert fit("--json", "d") == Options(Path("d"), json=True)
    assert fit("d", "--json", "--no-json").json is False
    assert fit("d", "--dry_run").dry_run is True
    assert fit("d", "--dry-run").dry_run is True
    assert "'True'" in fit.fails("d", "--json", "True")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["d", "--stpes", "3"], ["unknown option --stpes", "did you mean --steps?"]),
        (["d", "--step=3"], ["unknown option --step;", "did you mean --steps?"]),
        (["--stpes", "3"], ["unknown option --stpes", "did you mean --steps?"]),
        (["d", "--widths", "3"], ["unknown option --widths", "did you mean --model.trunk.widths?"]),
        (["d", "--model.horison", "3"], ["--model.horison", "did you mean --model.horizon?"]),
        (
            ["d", "--zebra"],
            ["unknown option --zebra", "--steps, --objective, --json, --no-json", "--model.trunk.widths"],
        ),
        (["d", "-x"], ["unknown option -x", "--steps, --objective"]),
        (["d", "e"], ["unexpected 'e'", "--steps, --objective"]),
        ([], ["missing DATASET (Folder of the dataset.)"]),
        (["d", "--steps"], ["'--steps'"]),
        (["d", "--steps", "many"], ["--steps", "'many'", "INT"]),
        (["d", "--steps", "1.5"], ["--steps", "'1.5'", "INT"]),
        (["d", "--model.trunk.widths", "wide"], ["--model.trunk.widths", "'wide'", "INT"]),
        (["d", "--objective", "flwo"], ["'flwo'", "--objective", "'flow', 'diffusion'"]),
        (["d", "--steps", "0"], ["--steps must be at least 1, got 0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_gives_one_line_that_says_what_is_valid(words: list[str], parts: list[str], fit: Command) -> None:
    line = fit.fails(*words)
    assert [part for part in parts if part not in line] == [], line
    assert line.endswith("see `robolearn fit --help`")
    assert not set("│╭╰─\x1b") & set(line)


def test_width_of_the_terminal_does_not_break_words(fit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "x" * 60
    assert f"'{name}'" in fit.fails("d", "--steps", name)
    assert os.environ["COLUMNS"] == "40"


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (UserError("the rate is 3 Hz;\n  valid: 10"), ["the rate is 3 Hz; valid: 10"]),
        (OSError(errno.ENOSPC, "No space left on device", "out.zarr"), ["disk is full (out.zarr)", "free space"]),
        (FileNotFoundError(errno.ENOENT, "No such file", "gone"), ["no such file or folder (gone)", "check the path"]),
        (PermissionError(errno.EACCES, "Permission denied", "locked"), ["not permitted (locked)", "owner and mode"]),
        (FileNotFoundError("nothing at there.zarr"), ["nothing at there.zarr"]),
        (TimeoutError(), ["TimeoutError"]),
    ],
)
def test_a_fault_while_running_gives_one_line(
    error: Exception, parts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Options) -> None:
        raise error

    _install(monkeypatch, "fit", {"": (Options, run)})
    line = Command([], capsys).fails("d")
    assert [part for part in parts if part not in line] == [], line


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Options) -> None:
        raise ZeroDivisionError

    _install(monkeypatch, "fit", {"": (Options, run)})
    with pytest.raises(ZeroDivisionError):
        main(["fit", "d"])


def test_interrupt_stops_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: Options) -> None:
        raise KeyboardInterrupt

    _install(monkeypatch, "fit", {"": (Options, run)})
    assert main(["fit", "d"]) == 130
    assert capsys.readouterr().err == "robolearn: stopped\n"


class Dying:
    """Ctrl-C is pressed while its finalizer runs."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_meets_a_finalizer_stops_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: Options) -> None:
        Dying()
        Dying()
        time.sleep(20)

    _install(monkeypatch, "fit", {"": (Options, run)})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        began = time.monotonic()
        assert main(["fit", "d"]) == 130
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "robolearn: stopped\n"


def test_exit_code_of_a_command_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, "fit", {"": (Options, lambda _: 1)})
    assert main(["fit", "d"]) == 1


def test_a_closed_pipe_ends_the_command_without_a_traceback() -> None:
    code = "import sys; from robolearn.cli.main import main; sys.stdin.read(); sys.exit(main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_message_is_the_same_with_and_without_drawing_characters(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = _run("data", "info", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("robolearn: error: missing PATH|URL (")
    assert done.stderr.endswith("); see `robolearn data info --help`\n")


def test_help_fills_its_lines_whatever_line_breaks_a_docstring_has(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["deploy", "--help"])
    rows = [
        line[22:-2].strip()
        for line in capsys.readouterr().out.splitlines()
        if line[1:22].isspace() and line[22:-2].strip()
    ]
    broken = [
        (row, after)
        for row, after in itertools.pairwise(rows)
        if not row.endswith((")", ".")) and len(f"{row} {after.split()[0]}") <= 74
    ]
    assert rows
    assert not broken
