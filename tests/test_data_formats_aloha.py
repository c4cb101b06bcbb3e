"""ALOHA's HDF5 episodes arrive value for value, compressed or not, and broken ones are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import pytest
from format_checks import assert_import_refused

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.formats.aloha import import_aloha
from robolearn_data.schema import UserError
from robolearn_data.validate import validate

LENGTHS = {0: 9, 2: 4, 10: 6}
CAMERAS = ("cam_high", "cam_left_wrist")


def episode(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    steps = LENGTHS[number]
    coarse = rng.integers(0, 256, (2, steps, 6, 8, 3), dtype=np.uint8)
    frames = coarse.repeat(8, axis=2).repeat(8, axis=3)
    return {
        "observations/qpos": rng.normal(size=(steps, 14)).astype("f4"),
        "observations/qvel": rng.normal(size=(steps, 14)).astype("f4"),
        "observations/effort": rng.normal(size=(steps, 14)).astype("f4"),
        "action": rng.normal(size=(steps, 14)).astype("f4"),
        "base_action": rng.normal(size=(steps, 2)).astype("f4"),
        **{f"observations/images/{camera}": frames[i] for i, camera in enumerate(CAMERAS)},
    }


def jpeg(frame: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(frame, level=50))


def write(folder: Path, number: int, *, compress: bool) -> None:
    """As ALOHA's record_episodes.py: JPEGs are padded with zeros to the longest, with their lengths beside them."""
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
        file.attrs["sim"] = False
        file.attrs["compress"] = compress
        lengths = []
        for name, values in episode(number).items():
            if compress and "images" in name:
                encoded = [jpeg(frame) for frame in values]
                width = max(map(len, encoded)) + 10
                lengths.append([len(data) for data in encoded])
                values = np.stack([np.frombuffer(data.ljust(width, b"\0"), np.uint8) for data in encoded])
            chunks = (1, *values.shape[1:]) if "images" in name else None
            file.create_dataset(name, data=values, chunks=chunks)
        if compress:
            file["compress_len"] = np.array(lengths, "f4")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in (10, 0, 2):
        write(tmp_path / "task", number, compress=False)
    (tmp_path / "task" / "dataset_stats.pkl").write_bytes(b"never opened")
    return tmp_path / "task"


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    for number in (10, 0, 2):
        write(tmp_path / "task", number, compress=True)
    return tmp_path / "task"


def test_a_folder_of_episodes_arrives_in_the_order_of_their_numbers(source: Path, tmp_path: Path) -> None:
    assert main(["data", "import", "--format", "aloha", str(source), str(tmp_path / "d")]) == 0
    dataset = Dataset.open(tmp_path / "d")
    assert validate(dataset.path) == []
    assert (dataset.episodes, dataset.steps, dataset.schema.rate_hz) == (3, 19, 50)
    kinds = {name: stream.kind for name, stream in dataset.schema.streams.items()}
    assert kinds == {
        **dict.fromkeys(("qpos", "qvel", "effort"), "state"),
        "action": "action",
        "base_action": "info",
        "cam_high": "image",
        "cam_left_wrist": "image",
    }
    action = dataset.schema.streams["action"]
    assert action.names[:2] == ("left_waist", "left_shoulder")
    assert action.names[-1] == "right_gripper"
    assert action.unit.split(",") == ["rad"] * 6 + [""] + ["rad"] * 6 + [""]
    for i, number in enumerate(sorted(LENGTHS)):
        found = dataset.episode(i)
        for name, values in episode(number).items():
            assert found[name.split("/")[-1]].tobytes() == values.tobytes()
        assert dataset.episode_info(i)["source_episode"] == f"episode_{number}.hdf5"
    assert dataset.metadata["source"]["attributes"] == {"sim": False, "compress": False}


@pytest.mark.parametrize("bgr", [False, True])
def test_compressed_images_are_decoded_and_their_colours_swapped_on_demand(
    compressed: Path, tmp_path: Path, bgr: bool
) -> None:
    words = ["--bgr"] if bgr else []
    assert main(["data", "import", "--format", "aloha", *words, str(compressed), str(tmp_path / "d")]) == 0
    dataset = Dataset.open(tmp_path / "d")
    for i, number in enumerate(sorted(LENGTHS)):
        for camera in CAMERAS:
            expected = [imagecodecs.jpeg8_decode(jpeg(f)) for f in episode(number)[f"observations/images/{camera}"]]
            found = dataset.episode(i)[camera]
            np.testing.assert_array_equal(found[..., ::-1] if bgr else found, expected)


def test_one_file_is_a_dataset_of_one_episode(source: Path, tmp_path: Path) -> None:
    assert import_aloha(source / "episode_2.hdf5", tmp_path / "d", rate_hz=30) == (1, 4)
    assert Dataset.open(tmp_path / "d").schema.rate_hz == 30


def edit(change: Callable[[Any], object], number: int = 10) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with h5py.File(folder / f"episode_{number}.hdf5", "r+") as file:
            change(file)

    return damage


def replace(name: str, values: Any, number: int = 10, **options: Any) -> Callable[[Path], None]:
    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return edit(change, number)


def cut(folder: Path) -> None:
    path = folder / "episode_2.hdf5"
    path.write_bytes(path.read_bytes()[:-1000])


CAMERA = "observations/images/cam_high"
BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: shutil.rmtree(p), "no such file or folder"),
    (lambda p: [path.unlink() for path in p.glob("*.hdf5")], "has no files episode_0.hdf5"),
    (cut, "episode_2.hdf5 is not an HDF5 file, or is damaged: .*truncated"),
    (lambda p: (p / "episode_10.hdf5").write_bytes(b""), "episode_10.hdf5 is not an HDF5 file, or is damaged"),
    (edit(lambda f: f.pop("action")), "episode_10.hdf5: has no array 'action'|no array 'action'"),
    (edit(lambda f: f.pop("observations/qpos")), "episode_10.hdf5.* has no array 'qpos'"),
    (edit(lambda f: f.pop("observations")), "episode_10.hdf5.* has no group 'observations'"),
    (edit(lambda f: f.pop("observations/qvel")), "episode_10.hdf5 differs from episode_0.hdf5 in qvel"),
    (edit(lambda f: f.move(CAMERA, CAMERA + "2")), "differs from episode_0.hdf5 in cam_high, cam_high2"),
    (replace("observations/qvel", np.zeros((5, 14))), "observations/qvel has 5 rows, /action has 6"),
    (replace("observations/qvel", np.zeros((6, 13), "f4")), "differs from episode_0.hdf5 in qvel"),
    (replace("observations/qpos", np.full((6, 14), np.nan, "f4")), "episode_10.hdf5: stream 'qpos' holds NaN"),
    (replace(CAMERA, np.zeros((6, 48, 65, 3), "u1")), "differs from episode_0.hdf5 in cam_high"),
    (replace(CAMERA, np.zeros((6, 48), "u1")), f"{CAMERA} holds neither images .* nor rows of JPEG bytes"),
    (replace(CAMERA, np.zeros((6, 48), "f4")), f"{CAMERA}: image stream needs shape"),
    (
        edit(lambda f: [f.pop(CAMERA), f.create_dataset(CAMERA, (6,), h5py.vlen_dtype(np.uint8))]),
        f"{CAMERA} is object, not numeric",
    ),
    (
        edit(lambda f: f["observations/images"].__setitem__("cam", h5py.ExternalLink("/etc/hosts", "/"))),
        "observations/images/cam is a link",
    ),
    (edit(lambda f: f.__setitem__("base", h5py.SoftLink("/action"))), "episode_10.hdf5: /base is a link"),
    (
        edit(lambda f: f["observations/images"].create_dataset("qpos", data=np.zeros((6, 8, 8, 3), "u1"))),
        "images/qpos: two arrays would get the name 'qpos'",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message[:50] for _, message in BROKEN])
def test_broken_or_hostile_episodes_are_refused_in_one_line(
    source: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(source)
    assert_import_refused("aloha", source, tmp_path, message, capsys)


def rows(data: bytes) -> np.ndarray:
    return np.tile(np.frombuffer(data, np.uint8), (6, 1))


GOOD = jpeg(np.zeros((48, 64, 3), np.uint8))
HUGE = GOOD.replace(b"\x00\x30\x00\x40\x03", b"\xff\xff\xff\xff\x03", 1)
BROKEN_JPEGS: list[tuple[Callable[[Path], object], str]] = [
    (replace(CAMERA, rows(GOOD[:-100])), f"{CAMERA} cannot be decoded at row 0: the JPEG is cut short"),
    (replace(CAMERA, rows(HUGE)), f"{CAMERA} has shape .* MB in one step; its header is damaged"),
    (replace(CAMERA, rows(HUGE), number=0), f"{CAMERA} has shape .* MB in one step; its header is damaged"),
    (replace(CAMERA, rows(jpeg(np.zeros((40, 64, 3), np.uint8)))), "differs from episode_0.hdf5 in cam_high"),
    (
        edit(lambda f: f[CAMERA].__setitem__((3, slice(0, 20)), np.zeros(20, np.uint8))),
        f"{CAMERA} cannot be decoded at row 3: Not a JPEG file",
    ),
    (replace(CAMERA, rows(b"\xff\xd8\xff\xe0\x00\x00" + bytes(50))), "holds neither images"),
    (replace(CAMERA, rows(b"\xff\xd8" + b"\xff\xe0\xff\xff" * 50)), "holds neither images"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN_JPEGS, ids=[message[:50] for _, message in BROKEN_JPEGS])
def test_broken_or_hostile_jpegs_are_refused_in_one_line(
    compressed: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert HUGE != GOOD
    damage(compressed)
    assert_import_refused("aloha", compressed, tmp_path, message, capsys)


def test_an_existing_target_is_refused_and_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "d").write_text("keep")
    with pytest.raises(UserError, match="exists; choose another path"):
        import_aloha(source, tmp_path / "d")
    assert (tmp_path / "d").read_text() == "keep"
