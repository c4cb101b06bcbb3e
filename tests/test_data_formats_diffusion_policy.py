"""ReplayBuffers of diffusion_policy and UMI: compressed images, zip files, hostile files, and the way back."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import zarr
from format_checks import assert_import_refused
from zarr.storage import ZipStore

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.formats.diffusion_policy import export_diffusion_policy, import_diffusion_policy
from robolearn_data.schema import Schema, SchemaError, Stream, UserError
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

LENGTHS = (12, 5, 20)
STEPS = sum(LENGTHS)
SHAPE = (48, 64, 3)
JPEGXL = {  # as UMI's copy of the codec writes it
    "id": "imagecodecs_jpegxl",
    "level": 99,
    "effort": None,
    "distance": None,
    "lossless": False,
    "decodingspeed": None,
    "photometric": None,
    "planar": None,
    "usecontainer": None,
    "index": None,
    "keeporientation": None,
    "numthreads": 1,
}
JPEG2K = {  # as diffusion_policy's copy of the codec writes it
    "id": "imagecodecs_jpeg2k",
    "level": 50,
    "codecformat": None,
    "colorspace": None,
    "tile": None,
    "reversible": None,
    "bitspersample": None,
    "resolutions": None,
    "numthreads": None,
    "verbose": 0,
}


def images(steps: int = STEPS, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Smooth pictures, as cameras see them."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(40, 216, (steps, shape[0] // 8, shape[1] // 8, shape[2]), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def put_images(folder: Path, config: dict[str, Any], frames: np.ndarray) -> None:
    """An array as zarr 2 lays it down: a chunk for each image, encoded by imagecodecs itself."""
    folder.mkdir(parents=True)
    encode = getattr(imagecodecs, f"{config['id'].removeprefix('imagecodecs_')}_encode")
    for i, frame in enumerate(frames):
        squeezed = frame[..., 0] if frame.shape[-1] == 1 else frame
        (folder / f"{i}.0.0.0").write_bytes(encode(squeezed, level=config["level"]))
    chunks = [1, *frames.shape[1:]]
    about = {"shape": list(frames.shape), "chunks": chunks, "dtype": "|u1", "compressor": config, "order": "C"}
    (folder / ".zarray").write_text(json.dumps({**about, "fill_value": 0, "filters": None, "zarr_format": 2}))


def umi_lowdim() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "robot0_eef_pos": rng.normal(size=(STEPS, 3)).astype("f4"),
        "robot0_eef_rot_axis_angle": rng.normal(size=(STEPS, 3)).astype("f4"),
        "robot0_gripper_width": rng.random((STEPS, 1)).astype("f4"),
        "robot0_demo_start_pose": rng.normal(size=(STEPS, 6)),
        "robot0_demo_end_pose": rng.normal(size=(STEPS, 6)),
    }


@pytest.fixture
def umi(tmp_path: Path) -> Path:
    """A UMI buffer in a folder: one gripper, one camera in JPEG XL, no action."""
    path = tmp_path / "umi.zarr"
    root = zarr.create_group(path, zarr_format=2)
    for name, values in umi_lowdim().items():
        root.create_array(f"data/{name}", data=values, chunks=(10, values.shape[1]))
    root.create_array("meta/episode_ends", data=np.cumsum(LENGTHS))
    put_images(path / "data/camera0_rgb", JPEGXL, images())
    return path


def zipped(folder: Path, prefix: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    target = folder.with_suffix(".zarr.zip")
    with zipfile.ZipFile(target, "w", compression) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
    return target


@pytest.mark.parametrize("how", ["folder", "zip", "zip of a folder", "deflated zip"])
def test_a_umi_buffer_arrives_with_kinds_units_and_decoded_images(
    umi: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = umi
    if how != "folder":
        compression = zipfile.ZIP_DEFLATED if how.startswith("deflated") else zipfile.ZIP_STORED
        source = zipped(umi, "replay_buffer.zarr/" if "of" in how else "", compression)
        shutil.rmtree(umi)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    target = tmp_path / "out" / "d"
    assert main(["data", "import", "--format", "diffusion_policy", str(source), str(target)]) == 0
    assert "note: the source has no action array" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != "out"} == before

    dataset = Dataset.open(target)
    assert dataset.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    assert dataset.schema.rate_hz == 59.94
    streams = dataset.schema.streams
    assert {name: stream.kind for name, stream in streams.items()} == {
        "camera0_rgb": "image",
        "robot0_demo_end_pose": "info",
        "robot0_demo_start_pose": "info",
        "robot0_eef_pos": "state",
        "robot0_eef_rot_axis_angle": "state",
        "robot0_gripper_width": "state",
    }
    assert (streams["robot0_eef_pos"].names, streams["robot0_eef_pos"].unit) == (("x", "y", "z"), "m")
    assert streams["robot0_eef_rot_axis_angle"].unit == "rad"
    assert streams["robot0_gripper_width"].unit == "m"
    assert streams["robot0_demo_start_pose"].unit == "m,m,m,rad,rad,rad"
    for name, values in umi_lowdim().items():
        assert dataset.read(name).dtype == values.dtype
        np.testing.assert_array_equal(dataset.read(name), values)
    expected = [imagecodecs.jpegxl_decode(imagecodecs.jpegxl_encode(frame, level=99)) for frame in images()]
    np.testing.assert_array_equal(dataset.read("camera0_rgb"), expected)
    assert validate(target) == []


@pytest.mark.parametrize("config", [JPEG2K, JPEGXL], ids=["jpeg2k", "jpegxl"])
@pytest.mark.parametrize("channels", [1, 3])
def test_compressed_images_arrive_as_imagecodecs_decodes_them(
    umi: Path, tmp_path: Path, config: dict[str, Any], channels: int
) -> None:
    frames = images(shape=(*SHAPE[:2], channels))
    put_images(umi / "data/camera1_rgb", config, frames)
    import_diffusion_policy(umi, tmp_path / "d")
    found = Dataset.open(tmp_path / "d").read("camera1_rgb")
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < 3


def set_zarray(path: Path, **changes: Any) -> None:
    file = path / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class Marker:
    """Unpickling it makes the folder "executed" in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def unpickling_codec(path: Path) -> None:
    import pickle

    set_zarray(path / "data/robot0_eef_pos", compressor={"id": "pickle", "protocol": 4})
    for chunk in (path / "data/robot0_eef_pos").glob("[0-9]*"):
        chunk.write_bytes(pickle.dumps(Marker()))


def large_image(path: Path) -> None:
    bomb = imagecodecs.jpegxl_encode(np.zeros((400, 400, 3), np.uint8), level=99)
    (path / "data/camera0_rgb/3.0.0.0").write_bytes(bomb)


def object_array(path: Path) -> None:
    set_zarray(path / "data/robot0_eef_pos", dtype="|O", filters=[{"id": "vlen-utf8"}], fill_value="")


def all_lengths(path: Path, steps: int) -> None:
    """A dataset of absurd length whose chunks are not there."""
    for name in umi_lowdim():
        shutil.rmtree(path / "data" / name)
    set_zarray(path / "data/camera0_rgb", shape=[steps, *SHAPE])
    zarr.create_array(path, name="meta/episode_ends", data=np.array([steps]), zarr_format=2, overwrite=True)


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (unpickling_codec, "cannot be read: .*'pickle'|uses codec 'pickle'"),
    (
        lambda p: set_zarray(p / "data/robot0_eef_pos", filters=[{"id": "pickle", "protocol": 4}]),
        "cannot be read: .*'pickle'|uses codec 'pickle'",
    ),
    (object_array, "data/robot0_eef_pos.*(codec 'vlen-utf8'|not numeric)"),
    (large_image, r"data/camera0_rgb cannot be decoded near row 0: .*\(400, 400, 3\)"),
    (
        lambda p: (p / "data/camera0_rgb/14.0.0.0").write_bytes(b"\xff\x0a damaged"),
        "data/camera0_rgb cannot be decoded near row 12",
    ),
    (
        lambda p: set_zarray(p / "data/camera0_rgb", chunks=[2, *SHAPE]),
        "data/camera0_rgb has codec 'imagecodecs_jpegxl' but not one image a chunk",
    ),
    (
        lambda p: set_zarray(p / "data/camera0_rgb", shape=[STEPS, 99_000, 64_000, 3]),
        r"data/camera0_rgb has shape .* MB in one step; its header is damaged",
    ),
    (
        lambda p: set_zarray(p / "data/camera0_rgb", chunks=[1, 99_000, 64_000, 3]),
        r"data/camera0_rgb, a chunk of which has shape .* its header is damaged",
    ),
    (lambda p: all_lengths(p, 10**9), "data/camera0_rgb has shape .* bytes in the file; it is damaged"),
    (lambda p: set_zarray(p / "data/robot0_eef_pos", shape=[-1, 3]), "cannot be read|has shape"),
    (lambda p: (p / "data/robot0_eef_pos/.zarray").write_text("{"), "."),
    (lambda p: (p / "meta/episode_ends/.zarray").write_text("[]"), "."),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
@pytest.mark.parametrize("how", ["folder", "zip"])
def test_a_damaged_or_hostile_buffer_is_refused_in_one_line(
    umi: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
    how: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(umi)
    assert_import_refused("diffusion_policy", umi if how == "folder" else zipped(umi), tmp_path, message, capsys)
    assert not (tmp_path / "executed").exists()


def with_member(name: str) -> Callable[[Path], object]:
    def add(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(name, "x")

    return add


def zip_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("data/robot0_eef_pos/9.9", "w") as out,
    ):
        for _ in range(65):
            out.write(bytes(2**24))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


BROKEN_ZIPS: list[tuple[Callable[[Path], object], str]] = [
    (with_member("../../escaped"), r"names '../../escaped', outside of itself"),
    (with_member("/etc/escaped"), "names '/etc/escaped', outside of itself"),
    (with_member("C:\\escaped"), "outside of itself"),
    (with_member("other/meta/episode_ends/.zarray"), "must hold one ReplayBuffer .*, it holds 2"),
    (zip_bomb, "data/robot0_eef_pos/9.9 unpacks to 1,090,519,040 bytes"),
    (cut, "is not a zarr v2 folder or zip file|is a damaged zip file"),
    (lambda p: p.write_bytes(b""), "is not a zarr v2 folder or zip file"),
    (lambda p: p.write_bytes(b"PK\5\6" + bytes(18)), "must hold one ReplayBuffer .*, it holds 0"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN_ZIPS, ids=[message[:40] for _, message in BROKEN_ZIPS])
def test_a_damaged_or_hostile_zip_file_is_refused_in_one_line(
    umi: Path, tmp_path: Path, damage: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = zipped(umi)
    damage(source)
    before = sorted(tmp_path.iterdir())
    assert_import_refused("diffusion_policy", source, tmp_path, message, capsys)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "out"])


def test_a_damaged_member_of_a_zip_file_is_refused(
    umi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = zipped(umi)
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as file:
        at = file.getinfo("data/robot0_eef_pos/1.0").header_offset
    data[at + 70 : at + 80] = bytes(10)
    source.write_bytes(data)
    assert_import_refused("diffusion_policy", source, tmp_path, "data/robot0_eef_pos cannot be decoded", capsys)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    schema = Schema(
        10.0,
        {
            "camera": Stream(SHAPE, "uint8", "image"),
            "joints": Stream((7,), "float64"),
            "contact": Stream((), "bool", "info"),
            "action": Stream((2,), "float32", "action"),
        },
    )
    rng = np.random.default_rng(0)
    exact = {"camera": "lossless"}
    with DatasetWriter.create(tmp_path / "d", schema, compression=exact, durable=False) as writer:
        for steps in LENGTHS:
            writer.extend(
                {
                    "camera": images(steps),
                    "joints": rng.normal(size=(steps, 7)),
                    "contact": rng.random(steps) < 0.5,
                    "action": rng.normal(size=(steps, 2)).astype("f4"),
                }
            )
            writer.save_episode()
    return tmp_path / "d"


@pytest.mark.parametrize("name", ["replay.zarr", "replay.zarr.zip"])
def test_an_exported_buffer_has_diffusion_policys_layout_and_comes_back_equal(
    dataset: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "new" / name
    assert main(["data", "export", "--format", "diffusion_policy", str(dataset), str(target)]) == 0
    original = Dataset.open(dataset)
    store = ZipStore(target, mode="r") if name.endswith("zip") else target
    root = zarr.open_group(store, mode="r", zarr_format=2)
    ends: Any = root["meta/episode_ends"]
    assert (ends.dtype, ends[:].tolist()) == (np.int64, np.cumsum(LENGTHS).tolist())
    for stream in original.schema.streams:
        array: Any = root[f"data/{stream}"]
        np.testing.assert_array_equal(array[:], original.read(stream))
        assert array.metadata.compressor.get_config()["cname"] == "lz4"
        assert array.chunks[1:] == array.shape[1:]
    import_diffusion_policy(target, tmp_path / "back", rate_hz=10)
    back = Dataset.open(tmp_path / "back")
    np.testing.assert_array_equal(back.episode_ends, original.episode_ends)
    for stream in original.schema.streams:
        assert back.read(stream).tobytes() == original.read(stream).tobytes()
    if name.endswith("zip"):
        with zipfile.ZipFile(target) as file:
            members = file.namelist()
        assert len(members) == len(set(members))
    assert [path.name for path in target.parent.iterdir()] == [name]


def test_long_streams_are_cut_in_time_into_chunks_of_two_megabytes(tmp_path: Path) -> None:
    schema = Schema(10.0, {"img": Stream((96, 96, 3), "float32", "image")})
    with DatasetWriter.create(tmp_path / "d", schema, durable=False) as writer:
        writer.extend({"img": np.zeros((50, 96, 96, 3), np.float32)})
        writer.save_episode()
    export_diffusion_policy(tmp_path / "d", tmp_path / "z")
    array: Any = zarr.open_group(tmp_path / "z", mode="r")["data/img"]
    assert array.chunks == (19, 96, 96, 3)  # diffusion_policy's get_optimal_chunks: ceil(2e6 / 110592)


@pytest.mark.parametrize(("choice", "error"), [("jpeg2k", 1.0), ("jpegxl", 3.0)])
def test_exported_images_can_be_compressed_as_umi_and_diffusion_policy_do(
    dataset: Path, tmp_path: Path, choice: str, error: float
) -> None:
    target = tmp_path / "z.zarr.zip"
    words = ["data", "export", "--format", "diffusion_policy", "--images", choice, str(dataset), str(target)]
    assert main(words) == 0
    with zipfile.ZipFile(target) as file:
        about = json.loads(file.read("data/camera/.zarray"))
        first = file.read("data/camera/0.0.0.0")
    assert about["chunks"] == [1, *SHAPE]
    # No key that the codecs inside diffusion_policy and UMI do not know.
    assert about["compressor"] == {"id": f"imagecodecs_{choice}", "level": 50 if choice == "jpeg2k" else 99}
    decoded = getattr(imagecodecs, f"{choice}_decode")(first)
    assert np.abs(decoded.astype(int) - images()[0]).mean() < error
    import_diffusion_policy(target, tmp_path / "back")
    back = Dataset.open(tmp_path / "back")
    np.testing.assert_array_equal(back.read("camera")[0], decoded)
    np.testing.assert_array_equal(back.read("joints"), Dataset.open(dataset).read("joints"))


@pytest.mark.parametrize(
    ("damage", "words", "message"),
    [
        (lambda p: shutil.rmtree(p), [], "no dataset at"),
        (lambda p: shutil.rmtree(p / "data/joints"), [], "data/joints is missing"),
        (lambda p: None, ["--images", "png"], "images 'png' is unknown; valid: blosc, jpeg2k, jpegxl"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    dataset: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(dataset)
    target = tmp_path / "out" / "z"
    assert main(["data", "export", "--format", "diffusion_policy", *words, str(dataset), str(target)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert message in shown
    assert not list((tmp_path / "out").glob("*"))


def test_float_images_that_are_no_pixels_are_refused_by_the_image_codecs(tmp_path: Path) -> None:
    with DatasetWriter.create(tmp_path / "d", Schema(1, {"x": Stream((8, 8, 3), "float32", "image")})) as writer:
        writer.extend({"x": np.full((2, 8, 8, 3), 0.5, np.float32)})
        writer.save_episode()
    with pytest.raises(SchemaError, match="'x' of float32 cannot be read as uint8"):
        export_diffusion_policy(tmp_path / "d", tmp_path / "z", images="jpegxl")
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("name", ["z", "z.zarr.zip"])
def test_an_export_to_what_exists_is_refused_and_keeps_it(dataset: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="exists; choose another path"):
        export_diffusion_policy(dataset, tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["z", "z.zarr.zip"])
def test_a_full_disk_ends_an_export_and_an_import_and_leaves_nothing(
    small_disk: Callable[[int], Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    with DatasetWriter.create(tmp_path / "d", Schema(1, {"x": Stream((1000,), "float64")}), durable=False) as writer:
        writer.extend({"x": rng.normal(size=(600, 1000))})
        writer.save_episode()
    export_diffusion_policy(tmp_path / "d", tmp_path / name)
    disk = small_disk(3)
    for words in (["export", str(tmp_path / "d")], ["import", str(tmp_path / name)]):
        assert main(["data", words[0], "--format", "diffusion_policy", words[1], str(disk / name)]) == 2
        assert "the disk is full" in capsys.readouterr().err
        assert list(disk.iterdir()) == []


def test_human_pusht_episodes_go_out_and_come_back_bit_for_bit(human_pusht: Path, tmp_path: Path) -> None:
    """The first 3 episodes; import, export and import again."""
    whole = zarr.open_group(human_pusht, mode="r", zarr_format=2)
    ends: Any = whole["meta/episode_ends"]
    steps = int(ends[2])
    source = zarr.create_group(tmp_path / "source.zarr", zarr_format=2)
    source.create_array("meta/episode_ends", data=np.asarray(ends[:3]))
    originals: dict[str, np.ndarray] = {}
    for name in ("action", "img", "keypoint", "n_contacts", "state"):
        array: Any = whole[f"data/{name}"]
        originals[name] = np.asarray(array[:steps])
        source.create_array(f"data/{name}", data=originals[name], chunks=array.chunks)
    import_diffusion_policy(tmp_path / "source.zarr", tmp_path / "a")
    export_diffusion_policy(tmp_path / "a", tmp_path / "out.zarr")
    exported = zarr.open_group(tmp_path / "out.zarr", mode="r", zarr_format=2)
    import_diffusion_policy(tmp_path / "out.zarr", tmp_path / "b")
    one, two = Dataset.open(tmp_path / "a"), Dataset.open(tmp_path / "b")
    assert one.schema == two.schema
    assert one.fingerprint() == two.fingerprint()
    for name, values in originals.items():
        again: Any = exported[f"data/{name}"]
        assert again[:].tobytes() == values.tobytes()
        assert two.read(name).tobytes() == values.tobytes()
