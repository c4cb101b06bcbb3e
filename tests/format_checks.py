"""What the tests of foreign formats share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robolearn.cli.main import main


def assert_import_refused(
    form: str, source: Path, tmp_path: Path, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`robolearn data import` says one line that matches ``message``, exits with 2 and leaves nothing behind."""
    folder = tmp_path / "out"
    folder.mkdir()
    assert main(["data", "import", "--format", form, str(source), str(folder / "d")]) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown), shown
    assert shown.count("\n") == 1
    assert shown.startswith("robolearn: error: ")
    assert list(folder.iterdir()) == []
