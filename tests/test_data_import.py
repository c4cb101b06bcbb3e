"""The import of diffusion_policy's ReplayBuffer is exact, and a broken source leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.formats.diffusion_policy import import_diffusion_policy
from robolearn_data.formats.transfer import ImportFormatError
from robolearn_data.schema import SchemaError, UserError
from robolearn_data.validate import validate
from robolearn_data.windows import windows

LENGTHS = (30, 7, 120)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small ReplayBuffer of another robot than PushT."""
    rng = np.random.default_rng(0)
    root = zarr.create_group(tmp_path / "replay.zarr", zarr_format=2)
    total = sum(LENGTHS)
    for name, values in {
        "data/action": rng.normal(size=(total, 7)),
        "data/robot_eef_pose": rng.normal(size=(total, 6)).astype("f4"),
        "data/camera_0": rng.integers(0, 256, (total, 24, 32, 3), dtype=np.uint8),
        "data/timestamp": np.arange(total, dtype=">f8") / 10,
        "meta/episode_ends": np.cumsum(LENGTHS),
    }.items():
        root.create_array(name, data=values, chunks=(50, *values.shape[1:]))
    return tmp_path / "replay.zarr"


@pytest.mark.slow
def test_the_human_pusht_demonstrations_arrive_bit_for_bit(human_pusht: Path, tmp_path: Path) -> None:
    target = tmp_path / "pusht"
    assert main(["data", "import", "--format", "diffusion_policy", str(human_pusht), str(target)]) == 0
    dataset = Dataset.open(target)
    assert (dataset.episodes, dataset.steps) == (206, 25_650)
    assert len(windows(dataset.episode_ends, 16, 1, 7)) == 24_208
    original = zarr.open_group(str(human_pusht), mode="r")
    assert set(dataset.schema.streams) == {"action", "img", "keypoint", "n_contacts", "state"}
    np.testing.assert_array_equal(dataset.episode_ends, np.asarray(original["meta/episode_ends"]))
    for name in dataset.schema.streams:
        array = original[f"data/{name}"]
        assert isinstance(array, zarr.Array)
        for start in range(0, dataset.steps, 1024):
            expected = np.asarray(array[start : min(start + 1024, dataset.steps)])
            found = dataset.read(name, slice(start, start + 1024))
            assert found.dtype == expected.dtype
            assert found.tobytes() == expected.tobytes()
    state = dataset.schema.streams["state"]
    assert state.names == ("agent_x", "agent_y", "block_x", "block_y", "block_angle")
    assert state.wraps == (4,)
    assert dataset.schema.streams["img"].kind == "image"
    assert dataset.schema.rate_hz == 10
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    assert size < 32e6  # the source has 32 MB


def test_another_robots_buffer_arrives_with_inferred_kinds(source: Path, tmp_path: Path) -> None:
    done = []
    counted = import_diffusion_policy(source, tmp_path / "new" / "d", rate_hz=20, progress=lambda *n: done.append(n))
    assert counted == (3, 157)
    assert done == [(30, 157), (37, 157), (157, 157)]
    dataset = Dataset.open(tmp_path / "new" / "d")
    original = zarr.open_group(str(source), mode="r")
    kinds = {name: stream.kind for name, stream in dataset.schema.streams.items()}
    assert kinds == {"action": "action", "camera_0": "image", "robot_eef_pose": "state", "timestamp": "info"}
    assert dataset.schema.rate_hz == 20
    for name in kinds:
        expected = np.asarray(original[f"data/{name}"])
        np.testing.assert_array_equal(dataset.read(name), expected)
        assert dataset.read(name).dtype == expected.dtype.newbyteorder("=")
    assert [dataset.episode_info(i)["source_episode"] for i in range(3)] == [0, 1, 2]
    assert dataset.metadata == {"source": {"format": "diffusion_policy", "name": "replay.zarr"}}
    assert validate(dataset.path) == []


def ends(source: Path, values: list[Any]) -> None:
    zarr.create_array(source, name="meta/episode_ends", data=np.array(values), zarr_format=2, overwrite=True)


def unknown_compressor(source: Path) -> None:
    file = source / "data/camera_0/.zarray"
    value = json.loads(file.read_text())
    value["compressor"] = {"id": "imagecodecs_jpegxl", "level": 99}
    file.write_text(json.dumps(value))


def set_nan(source: Path) -> None:
    zarr.open_array(str(source), path="data/robot_eef_pose", mode="r+")[140, 2] = np.nan


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: shutil.rmtree(p), "no such file or folder"),
    (lambda p: (shutil.rmtree(p), p.mkdir()), "is not a zarr v2 folder"),
    (lambda p: (shutil.rmtree(p), p.write_text("x")), "is not a zarr v2 folder"),
    (lambda p: shutil.rmtree(p / "data"), "has no group data"),
    (lambda p: [shutil.rmtree(a) for a in (p / "data").iterdir() if a.is_dir()], "has no arrays under data/"),
    (lambda p: shutil.rmtree(p / "meta"), "has no array meta/episode_ends"),
    (lambda p: ends(p, [30, 37, 158]), r"data/action of .* has shape \(157, 7\), but episode_ends needs 158 rows"),
    (lambda p: ends(p, [30, 37, 150]), "but episode_ends needs 150 rows"),
    (lambda p: ends(p, [37, 30, 157]), "must be whole numbers that increase"),
    (lambda p: ends(p, [0, 30, 157]), "must be whole numbers that increase"),
    (lambda p: ends(p, [0.5, 157]), "must be whole numbers that increase"),
    (unknown_compressor, "imagecodecs_jpegxl"),
    (set_nan, "'robot_eef_pose' holds NaN or infinity"),
    (lambda p: (p / "data/camera_0/0.0.0.0").write_bytes(b"damaged"), "data/camera_0 cannot be decoded near row 0"),
    (
        lambda p: zarr.create_array(p, name="data/note", data=np.array(["a"] * 157), zarr_format=2),
        "data/note: stream dtype '<U1' is not numeric",
    ),
    (
        lambda p: zarr.create_array(p, name="data/a b", data=np.zeros(157), zarr_format=2),
        "stream name 'a b' is not valid",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_a_broken_source_is_one_line_and_leaves_nothing(
    source: Path, tmp_path: Path, damage: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(source)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(UserError, match=message):
        import_diffusion_policy(source, folder / "d")
    assert main(["data", "import", "--format", "diffusion_policy", str(source), str(folder / "d")]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith("robolearn: error: ")
    assert list(folder.iterdir()) == []


def test_an_existing_target_is_refused_and_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("keep")
    with pytest.raises(UserError, match="exists; choose another path"):
        import_diffusion_policy(source, tmp_path / "d")
    assert (tmp_path / "d" / "mine").read_text() == "keep"


def test_an_interrupted_import_leaves_nothing(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_diffusion_policy(source, folder / "d", progress=stop)
    assert list(folder.iterdir()) == []


def test_a_rate_that_is_not_positive_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="rate_hz must be a positive number"):
        import_diffusion_policy(source, tmp_path / "d", rate_hz=0)


def test_a_replay_buffer_given_where_a_dataset_is_wanted_names_the_command(source: Path) -> None:
    with pytest.raises(UserError, match="robolearn data import --format diffusion_policy"):
        Dataset.open(source)
    assert issubclass(ImportFormatError, UserError)
