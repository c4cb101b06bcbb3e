"""`validate` finds each kind of fault, says where it is, and finds none in a whole dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError
from robolearn_data.schema import Schema, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    10.0,
    {"camera": Stream((64, 64, 3), "uint8", "image"), "joints": Stream((2,)), "action": Stream((2,), kind="action")},
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three episodes of 200 rows, with times and one hole; shards hold 256 rows."""
    rng = np.random.default_rng(0)
    with DatasetWriter.create(tmp_path / "d", SCHEMA, durable=False) as writer:
        for episode in range(3):
            for i in range(200):
                sample = {
                    "camera": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
                    "joints": np.full(2, i, np.float32),
                    "action": np.zeros(2, np.float32),
                }
                hole = episode == 1 and i == 5
                if hole:
                    del sample["joints"]
                tick = 10**9 * (3 - episode) + 10**8 * i  # each episode from an earlier boot than the one before
                writer.add(sample, time_ns=tick, capture_ns={"camera": tick - 5}, holes=["joints"] if hole else [])
            writer.save_episode()
    return tmp_path / "d"


def write(path: Path, name: str, row: int, value: object) -> None:
    array = zarr.open_array(str(path), path=name, mode="r+")
    array[row : row + 1] = np.array(value, object if isinstance(value, str) else None)


def edit(path: Path, name: str, change: Callable[[dict], object]) -> None:
    file = path / name / "zarr.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def test_a_whole_dataset_has_no_fault(path: Path) -> None:
    done = []
    assert validate(path, progress=lambda n, total: done.append((n, total))) == []
    assert done[-1] == (1800, 1800)
    assert main(["data", "validate", str(path)]) == 0


def test_an_empty_dataset_has_no_fault(tmp_path: Path) -> None:
    DatasetWriter.create(tmp_path / "d", SCHEMA).close()
    assert validate(tmp_path / "d") == []
    assert main(["data", "info", str(tmp_path / "d")]) == 0


def test_rows_of_an_episode_in_flight_are_no_fault(path: Path) -> None:
    edit(path, "data/action", lambda v: v["shape"].__setitem__(0, 900))
    (path / "data/action/c/9").mkdir(parents=True)
    assert validate(path) == []


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda p: write(p, "meta/episode_ends", 1, 150),
        "meta/episode_ends: episode 1 ends at row 150, not after row 200",
    ),
    (lambda p: edit(p, "data/action", lambda v: v["shape"].__setitem__(0, 599)), "data/action: has 599 rows, 600 are"),
    (lambda p: edit(p, "meta/episode_info", lambda v: v["shape"].__setitem__(0, 2)), "meta/episode_info: has 2 rows"),
    (lambda p: edit(p, "time/tick", lambda v: v["shape"].__setitem__(0, 10)), "time/tick: has 10 rows, 600"),
    (lambda p: edit(p, "valid/joints", lambda v: v["shape"].__setitem__(0, 10)), "valid/joints: has 10 rows, 600"),
    (lambda p: edit(p, "data/joints", lambda v: v["shape"].__setitem__(1, 3)), r"data/joints: is float32\(3,\), the"),
    (lambda p: edit(p, "data/joints", lambda v: v.pop("codecs")), "data/joints: cannot be opened"),
    (lambda p: write(p, "data/joints", 410, np.nan), "data/joints: NaN or infinity in 1 rows from row 410, episode 2"),
    (lambda p: write(p, "data/action", 0, np.inf), "data/action: NaN or infinity in 1 rows from row 0, episode 0"),
    (lambda p: write(p, "time/tick", 250, 1), "time/tick: time goes backwards in 1 rows from row 250, episode 1"),
    (lambda p: write(p, "time/camera", 599, 1), "time/camera: time goes backwards in 1 rows from row 599, episode 2"),
    (lambda p: write(p, "meta/episode_info", 1, "{"), "meta/episode_info: episode 1 is not JSON with a uuid"),
    (
        lambda p: write(p, "meta/episode_info", 2, json.dumps(Dataset.open(p).episode_info(0))),
        "meta/episode_info: episodes 0 and 2 have the same uuid",
    ),
    (lambda p: (p / "data/camera/c/1/0/0/0").unlink(), "data/camera: rows 256 to 511 are gone .*, episode 1"),
    (lambda p: (p / "data/joints/c/0/0").write_bytes(b"zzzz"), "data/joints: rows 0 to 599 cannot be decoded"),
    (
        lambda p: (p / "data/camera/c/2/0/0/0").write_bytes(b"zz" * 999),
        "data/camera: rows 512 to 599 cannot be decoded",
    ),
    (lambda p: (p / "meta/episode_ends/c/0").write_bytes(b"zz"), "meta/episode_ends: cannot be read"),
]


@pytest.mark.parametrize(("damage", "expected"), FAULTS, ids=[message[:48] for _, message in FAULTS])
def test_each_fault_is_found_and_placed(
    path: Path, damage: Callable[[Path], object], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(path)
    faults = validate(path)
    assert len(faults) == 1
    assert re.match(expected, faults[0])
    assert "\n" not in faults[0]
    assert main(["data", "validate", str(path)]) == 1
    assert faults[0] in capsys.readouterr().out


def test_a_flipped_bit_in_any_picture_is_found_and_placed(path: Path) -> None:
    file = path / "data/camera/c/1/0/0/0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    (fault,) = validate(path)
    assert re.search(r"data/camera: row 3\d\d is damaged: .*checksum \(file .*\), episode 1", fault)
    assert validate(path, pictures=True) == [fault]


def test_a_picture_that_was_never_written_is_found(path: Path) -> None:
    from robolearn_data import shards

    file = path / "data/camera/c/0/0/0/0"
    frames = [f for f in shards.unpack(Dataset.open(path).location, "data/camera/c/0/0/0/0", 256) if f]
    file.write_bytes(shards.pack(frames[:-1], 256))
    assert validate(path) == ["data/camera: row 255 is never written (file data/camera/c/0/0/0/0), episode 1"]


def test_a_picture_with_a_right_checksum_that_is_no_picture_is_found_by_decoding(path: Path) -> None:
    from robolearn_data import shards

    file = path / "data/camera/c/0/0/0/0"
    frames = [f for f in shards.unpack(Dataset.open(path).location, "data/camera/c/0/0/0/0", 256) if f]
    frames[7] = shards.seal(b"no picture")
    file.write_bytes(shards.pack(frames, 256))
    assert validate(path) == []
    (fault,) = validate(path, pictures=True)
    assert "row 7 is damaged" in fault
    assert main(["data", "validate", str(path), "--pictures"]) == 1


def test_every_fault_is_listed_not_only_the_first(path: Path) -> None:
    write(path, "data/joints", 3, np.nan)
    write(path, "data/action", 500, np.nan)
    write(path, "time/tick", 20, 1)
    assert len(validate(path)) == 3


def test_a_stand_in_in_a_hole_is_no_fault(path: Path) -> None:
    write(path, "data/joints", 205, np.nan)  # the row that was marked as a hole
    assert validate(path) == []


def test_what_is_not_a_dataset_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no dataset at"):
        validate(tmp_path / "nothing")
    assert main(["data", "validate", str(tmp_path / "nothing")]) == 2


def test_a_reader_of_a_damaged_dataset_is_told_to_validate(path: Path) -> None:
    edit(path, "data/action", lambda v: v["shape"].__setitem__(0, 599))
    with pytest.raises(DatasetError, match="data/action has 599 rows of 600; `robolearn data validate"):
        Dataset.open(path)
