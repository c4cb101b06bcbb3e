"""Texts (instructions that change while recording) are streams as any other: recorded, read, shown, exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.inspect import inspect
from robolearn_data.plot import episode_page
from robolearn_data.reading import View, WindowReader
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, SchemaError, Stream, read_text
from robolearn_data.statistics import statistics
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

MS = 1_000_000
START = 10**9
SCHEMA = Schema(
    10.0,
    {
        "said": Stream((48,), "uint8", "text", rate_hz=1.0),
        "phase": Stream((16,), "uint8", "text"),
        "state": Stream((2,)),
        "action": Stream((2,), kind="action"),
    },
)
SAID = ["put the banana on the plate", "", "grüße, 世界 <b>"]
"""At the start, after 5 s and after 5.4 s."""
PHASES = ["reach"] * 30 + ["grasp"] * 30


def said(dataset: Dataset) -> list[str]:
    return [read_text(value) for value in dataset.take("said", np.arange(3))]


def fill(writer: DatasetWriter) -> None:
    rng = np.random.default_rng(0)
    writer.add_samples("said", SAID, START + np.array([0, 5000, 5400]) * MS)
    for step, phase in enumerate(PHASES):
        pose = np.sin(step / 10 + rng.normal(scale=0.01, size=2)).astype("float32")
        writer.add({"phase": phase, "state": pose, "action": pose}, time_ns=START + step * 100 * MS + MS)


@pytest.fixture
def recorded(tmp_path: Path) -> Dataset:
    with DatasetWriter.create(tmp_path / "d", SCHEMA) as writer:
        fill(writer)
        writer.save_episode({"task": "tidy up"})
    return Dataset.open(tmp_path / "d")


def test_a_text_holds_until_the_next_and_is_no_hole(recorded: Dataset) -> None:
    assert said(recorded) == SAID
    at_steps = [read_text(value) for value in recorded.episode(0)["said"]]
    assert at_steps == [SAID[0]] * 50 + [SAID[1]] * 4 + [SAID[2]] * 6
    assert recorded.valid("said").all()
    assert [read_text(value) for value in recorded.episode(0)["phase"]] == PHASES
    reader = WindowReader(recorded, {"said": View("said", 2, ahead=0)})
    values, missing = reader.read(np.array([0, 0]), np.array([49, 50]))
    assert [[read_text(text) for text in window] for window in values["said"]] == [[SAID[0]] * 2, SAID[:2]]
    assert not missing["said"].any()


def test_the_tools_know_that_it_is_no_signal(recorded: Dataset) -> None:
    assert validate(recorded.path) == []
    assert [finding.stream for finding in inspect(recorded)] == []
    assert set(statistics(recorded)) == {"state", "action"}
    with pytest.raises(SchemaError, match="'said' holds texts"):
        statistics(recorded, ["said"])
    page = episode_page(recorded, 0)
    assert "<td>5.40 s</td><td>grüße, 世界 &lt;b&gt;</td>" in page
    assert "<td>3.00 s</td><td>grasp</td>" in page


def test_a_text_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "d", SCHEMA, durable=False) as writer:
        with pytest.raises(SchemaError, match="'said' takes texts of 48 bytes, got one of 50"):
            writer.add_samples("said", ["ä" * 25], [START])
        with pytest.raises(SchemaError, match="shape"):
            writer.add_samples("said", np.zeros((1, 47), np.uint8), [START])
    with pytest.raises(SchemaError, match=r"needs shape \(bytes,\) and uint8"):
        Stream((48,), "float32", "text")


def test_recover_saves_texts(tmp_path: Path) -> None:
    writer = DatasetWriter.create(tmp_path / "d", SCHEMA)
    fill(writer)
    writer.close(keep_unfinished=True)
    assert recover(tmp_path / "d").saved == [(0, 60)]
    assert said(Dataset.open(tmp_path / "d")) == SAID


def test_mcap_has_the_texts(recorded: Dataset, tmp_path: Path) -> None:
    reader = pytest.importorskip("mcap.reader", reason="needs robolearn[viewers]")
    target = tmp_path / "out.mcap"
    assert main(["data", "export", "--format", "mcap", str(recorded.path), str(target)]) == 0
    with target.open("rb") as file:
        found = [json.loads(m.data) for _, _, m in reader.make_reader(file).iter_messages(topics=["/said"])]
    assert found == [{"text": text} for text in SAID]


def test_rerun_has_the_texts(recorded: Dataset, tmp_path: Path) -> None:
    rerun = pytest.importorskip("rerun", reason="needs robolearn[viewers]")
    target, entity = tmp_path / "out.rrd", "/episode_0/said"
    assert main(["data", "export", "--format", "rerun", str(recorded.path), str(target)]) == 0
    view = rerun.dataframe.load_recording(target).view(index="captured", contents=entity)
    assert [row[0] for row in view.select().read_all()[f"{entity}:Text"].to_pylist()] == SAID


@pytest.mark.parametrize("form", ["lerobot_v30", "lerobot_v21", "robomimic", "diffusion_policy"])
def test_other_formats_keep_the_bytes_at_each_step(form: str, recorded: Dataset, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there = there.with_suffix(".hdf5") if form == "robomimic" else there
    assert main(["data", "export", "--format", form, str(recorded.path), str(there)]) == 0
    assert (
        main(["data", "import", "--format", form.removesuffix("_v30").removesuffix("_v21"), str(there), str(back)]) == 0
    )
    found = Dataset.open(back)
    for name in ("said", "phase"):
        np.testing.assert_array_equal(found.episode(0)[name], recorded.episode(0)[name])
