"""Streams with rates of their own, times, holes and notes in formats of one rate: kept, or named as left out."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

MS = 1_000_000
START = 5_000_000_000
STEPS = 8
SCHEMA = Schema(
    20.0,
    {
        "camera": Stream((32, 48, 3), "uint8", "image", rate_hz=30.0),
        "wrench": Stream((3,), "float32", unit="N", rate_hz=200.0, interpolation="linear"),
        "state": Stream((2,), "float64", names=("x", "y"), unit="m", frame="base"),
        "action": Stream((2,), "float32", "action"),
    },
)
INFO = {"task": "lift", "success": True, "operator": "ann", "score": 0.75, "marks": [1, 2]}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("rates") / "d"
    rng = np.random.default_rng(0)
    with DatasetWriter.create(path, SCHEMA, compression={"camera": "zstd-1"}, durable=False) as writer:
        for episode in range(2):
            begin = START + episode * 10_000 * MS
            for name, period, count in (("camera", 33 * MS, 14), ("wrench", 5 * MS, 90)):
                stream, times = SCHEMA.streams[name], begin - 20 * MS + np.arange(count) * period
                shade = (10 * np.arange(count))[:, None, None, None] + np.zeros((1, *stream.shape))
                values = shade.astype("uint8") if name == "camera" else rng.normal(size=(count, 3)).astype("float32")
                writer.add_samples(name, values, times, times + 3 * MS)
            for step in range(STEPS):
                now = begin + step * 50 * MS
                writer.add(
                    {"action": rng.normal(size=2).astype("float32")}
                    | ({} if step == 3 else {"state": rng.normal(size=2)}),
                    time_ns=now,
                    capture_ns={"state": now - 2 * MS},
                    received_ns={"state": now - MS},
                    holes=["state"] if step == 3 else [],
                )
            writer.save_episode(INFO)
    return Dataset.open(path)


def round_trip(
    recorded: Dataset, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[Dataset, str]:
    """The dataset that comes back, and the note that the export ended with."""
    out, back = tmp_path / "out", tmp_path / "back"
    assert main(["data", "export", "--format", form, *options, str(recorded.path), str(out)]) == 0
    note = capsys.readouterr().out.splitlines()[1:]
    assert len(note) == 1
    assert note[0].startswith("note: left out, as this format has no place for it: samples between the control steps")
    assert main(["data", "import", "--format", form, str(out), str(back)]) == 0
    return Dataset.open(back), note[0]


def assert_values_at_control_steps(found: Dataset, recorded: Dataset) -> None:
    np.testing.assert_array_equal(found.episode_ends, recorded.episode_ends)
    for name in SCHEMA.streams:
        np.testing.assert_array_equal(found.read(name), recorded.read(name))
        assert not found.schema.streams[name].is_native


@pytest.mark.parametrize("form", ["lerobot_v21", "lerobot_v30"])
def test_lerobot_keeps_times_holes_and_notes_and_says_that_samples_between_steps_are_lost(
    form: str, recorded: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, note = round_trip(recorded, form, tmp_path, capsys, "--images", "png")
    assert note.endswith("control steps of camera (30 Hz), wrench (200 Hz)")
    assert_values_at_control_steps(found, recorded)
    for name in ("tick", "state"):
        np.testing.assert_array_equal(np.asarray(found.times(name)), np.asarray(recorded.times(name)))
    np.testing.assert_array_equal(np.asarray(found.received("state")), np.asarray(recorded.received("state")))
    for name in SCHEMA.streams:
        np.testing.assert_array_equal(found.valid(name), recorded.valid(name))
    assert [found.episode_info(i) for i in range(2)] == [recorded.episode_info(i) for i in range(2)]
    assert found.schema.streams["state"] == SCHEMA.streams["state"]


def test_robomimic_keeps_notes_of_one_value_and_names_what_is_lost(
    recorded: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, note = round_trip(recorded, "robomimic", tmp_path, capsys)
    assert_values_at_control_steps(found, recorded)
    for word in ("times", "holes of state", "names, units and frames", "episode info (marks)"):
        assert word in note
    with h5py.File(tmp_path / "out") as file:
        assert dict(file["data/demo_0"].attrs)["task"] == "lift"
    for number in range(2):
        info = found.episode_info(number)
        assert {key: info[key] for key in ("task", "success", "operator", "score")} == {
            key: INFO[key] for key in ("task", "success", "operator", "score")
        }


def test_diffusion_policy_has_control_steps_alone_and_names_what_is_lost(
    recorded: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, note = round_trip(recorded, "diffusion_policy", tmp_path, capsys)
    assert_values_at_control_steps(found, recorded)
    for word in ("times", "holes of state", "episode info (marks, operator, score, success, task"):
        assert word in note
