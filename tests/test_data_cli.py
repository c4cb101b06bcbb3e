"""`robolearn data` prints what people and programs need and teaches in its help."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    20.0, {"camera": Stream((8, 8, 3), "uint8", "image"), "action": Stream((2,), names=("x", "y"), unit="m")}
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with DatasetWriter.create(tmp_path / "d", SCHEMA, metadata={"rig": "[bench]"}) as writer:
        for steps in (10, 30):
            writer.extend({"camera": np.zeros((steps, 8, 8, 3), np.uint8), "action": np.ones((steps, 2), np.float32)})
            writer.save_episode()
    return tmp_path / "d"


def test_info_as_json_has_the_fixed_names(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["episodes"], facts["steps"], facts["rate_hz"], facts["seconds"]) == (2, 40, 20.0, 2.0)
    assert Schema.from_json({"rate_hz": facts["rate_hz"], "streams": facts["streams"]}) == SCHEMA
    assert facts["bytes"] > 1000
    assert facts["metadata"] == {"rig": "[bench]"}


def test_info_for_people_names_every_stream(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(path)]) == 0
    shown = capsys.readouterr().out
    for word in ("2 episodes, 40 steps", "at 20 Hz", "10 to 30 steps", "camera", "8 x 8 x 3", "x, y", "[bench]"):
        assert word in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "info", "nowhere"], "no dataset at nowhere"),
        (["data", "imfo", "nowhere"], "valid: info, "),
        (["data", "import", "--format", "lerobotic", "a", "b"], "diffusion_policy"),
        (["data", "import", "a", "b"], "--format"),
        (["data", "export", "--format", "aloha", "a", "b"], "unknown format 'aloha'; valid: diffusion_policy"),
        (["data", "import", "--format", "robomimic", "--bgr", "a", "b"], "--bgr has no meaning for --format robomimic"),
        (["data", "import", "--format", "aloha", "nowhere", "b"], "no such file or folder: nowhere"),
        (["data", "import", "--format", "lerobot", "--rate-hz", "5", "a", "b"], "--rate-hz has no meaning for"),
        (["data", "export", "--format", "lerobot_v30", "nowhere", "b"], "no dataset at nowhere"),
        (["data", "import", "--format", "diffusion_policy", "nowhere", "b"], "no such file or folder: nowhere"),
        (["data", "info", "nowhere", "--jsn"], "--jsn"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert message in shown


def test_help_explains_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "import", "--help"])
    shown = capsys.readouterr().out
    assert "ReplayBuffer" in shown
    assert "Control rate" in shown
