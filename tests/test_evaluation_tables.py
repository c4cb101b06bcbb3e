"""The benchmark tables of the READMEs are those of the result files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import render_tables, results

ROW = {
    "policy": "flow-10",
    "seed": 0,
    "episodes": 500,
    "score_last5": 0.9712,
    "score_best": 0.98,
    "success_last5": 0.813,
    "success_interval": [0.7966, 0.8279],
    "parameters": 1_234_567,
    "train_cpu_s": 3600.0,
    "ms_per_chunk_p50": 14.26,
    "ms_per_chunk_p99": 15.1,
}
PAGE = "# Title\n<!-- table: pusht_state -->\nold\n<!-- /table -->\nafter\n"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    rows = [{**ROW, "policy": "flow-10", "seed": 1}, ROW, {**ROW, "policy": "ddim-10"}]
    results.write_results("pusht_state", rows, tmp_path)
    (tmp_path / "README.md").write_text(PAGE)
    return tmp_path / "README.md"


def test_the_readmes_say_what_the_result_files_say() -> None:
    assert render_tables.main(["--check"]) == 0


def test_a_table_has_one_line_for_each_policy_and_seed_and_its_provenance(page: Path) -> None:
    assert render_tables.main([], [page], page.parent) == 0
    text = page.read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert lines[2].startswith("| ddim-10 | 0 | 500 | 0.971 | 0.980 | 81.3 % | 79.7 to 82.8 % | 1.23 M | 60 min | 14.3")
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["0", "0", "1"]
    assert results.machine() in text
    assert text.startswith("# Title\n")
    assert text.endswith("<!-- /table -->\nafter\n")


def test_rendering_again_changes_nothing_and_check_sees_edits(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render_tables.main(["--check"], [page], page.parent) == 1
    assert "differs" in capsys.readouterr().err
    render_tables.main([], [page], page.parent)
    once = page.read_text()
    render_tables.main([], [page], page.parent)
    assert page.read_text() == once
    assert render_tables.main(["--check"], [page], page.parent) == 0
    page.write_text(once.replace("0.980", "0.990"))
    assert render_tables.main(["--check"], [page], page.parent) == 1


def test_a_table_without_its_result_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "README.md").write_text(PAGE)
    assert render_tables.main(["--check"], [tmp_path / "README.md"], tmp_path) == 1
    assert "pusht_state.json, which is not there" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == PAGE


def test_other_benchmarks_stand_under_the_names_of_their_keys() -> None:
    rows = [{"network": "UNet 66 M", "steps_per_s": 0.12345}, {"network": "UNet 1 M", "batch": 128}]
    table = render_tables.render({"machine": "m", "date": "d", "commit": "c", "rows": rows})
    assert table.splitlines()[0] == "| network | steps per s | batch |"
    assert table.splitlines()[2:4] == ["| UNet 66 M | 0.1235 |  |", "| UNet 1 M |  | 128 |"]


def test_result_files_name_machine_date_and_commit(tmp_path: Path) -> None:
    content = json.loads(results.write_results("x", [{"a": 1}], tmp_path, best=1).read_text())
    assert set(content) == {"best", "machine", "date", "commit", "rows"}
    assert "cores" in content["machine"]
    assert content["commit"]
