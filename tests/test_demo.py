"""`robolearn demo` goes the whole way and reports what it found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robolearn.cli import demo
from robolearn.cli.main import main
from robolearn_data.dataset import Dataset


@pytest.mark.slow
def test_demo_collects_trains_evaluates_deploys_and_reports_twice_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("robosuite", reason="the demo needs the extra [sim]")
    out = tmp_path / "demo"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "run").mkdir()  # As an earlier demo that was interrupted left it.
    (out / "run" / "config.yaml").write_text("steps: 3\n")
    words = ["--demonstrations", "2", "--train-steps", "2", "--episodes", "2", "--seconds", "2"]
    assert main(["demo", "--out", str(out), *words]) == 0
    said = capsys.readouterr().out
    for command in ("collect", "train", "eval", "deploy"):
        assert f"$ robolearn {command} " in said
    assert len(re.findall(r"\[\d/4\] \w+ took \d+ s", said)) == 4

    report = json.loads((out / "report.json").read_text())
    assert report["episodes"] == 2
    low, high = report["success_interval"]
    assert 0 <= low <= report["success_rate"] <= high <= 1
    assert report["demonstrations"]["episodes"] == 2
    assert report["training"]["steps"] == 2
    assert report["deploy"]["ticks"] > 0
    assert report["machine"]
    assert [stage["name"] for stage in report["stages"]] == ["Collect", "Train", "Evaluate", "Deploy"]

    html = (out / "report.html").read_text()
    assert html.count("data:video/mp4;base64,") == 3
    assert html.count("data:image/svg+xml;base64,") == 2
    assert not re.search(r"(src|href)=[\"'](?!data:)", html)  # Whole in itself.
    assert "<script" not in html
    assert Dataset.open(out / "demonstrations.zarr").episodes == 2
    assert (out / "notes.txt").read_text() == "mine"


def test_a_stage_that_fails_stops_the_demo_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[str] = []

    def fail(words: list[str]) -> int:
        began.append(words[0])
        return 0 if words[0] == "collect" else 2

    monkeypatch.setattr("robolearn.cli.main.main", fail)
    assert demo.run(demo.Demo(out=tmp_path / "demo")) == 2
    assert began == ["collect", "train"]
    assert "train failed with exit code 2" in capsys.readouterr().out
    assert not (tmp_path / "demo" / "report.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--demonstrations", "0"], "--demonstrations 0 is too small"),
        (["--train-steps", "0"], "--train-steps 0 is too small"),
        (["--seconds", "-1"], "--seconds -1.0 is too small"),
    ],
)
def test_impossible_options_are_named_before_anything_is_removed(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text("{}")
    assert main(["demo", "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "report.json").exists()


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").write_text("mine")
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
