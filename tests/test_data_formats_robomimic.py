"""robomimic's HDF5 files arrive value for value, go out so that its SequenceDataset reads them, and are distrusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from format_checks import assert_import_refused

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.formats.robomimic import export_robomimic, import_robomimic
from robolearn_data.schema import Schema, SchemaError, Stream, UserError
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

LENGTHS = {0: 12, 1: 5, 2: 20, 10: 7}
ENVIRONMENT = {
    "env_name": "Lift",
    "env_version": "1.5.2",
    "type": 1,
    "env_kwargs": {"robots": "Panda", "control_freq": 25},
}


def demo(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    steps = LENGTHS[number]
    return {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "rewards": rng.random(steps),
        "dones": (np.arange(steps) == steps - 1).astype("int64"),
        "states": rng.normal(size=(steps, 32)),
        "obs/robot0_eef_pos": rng.normal(size=(steps, 3)),
        "obs/robot0_eef_quat": rng.normal(size=(steps, 4)),
        "obs/robot0_gripper_qpos": rng.normal(size=(steps, 2)),
        "obs/object": rng.normal(size=(steps, 10)),
        "obs/agentview_image": rng.integers(0, 256, (steps, 24, 32, 3), dtype=np.uint8),
        "next_obs/object": rng.normal(size=(steps, 10)),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """As robomimic's dataset_states_to_obs.py writes, with the demos created in no order."""
    path = tmp_path / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number in (2, 10, 0, 1):
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = LENGTHS[number]
            group.attrs["model_file"] = "<mujoco>" + "x" * 5000
            group.attrs["operator"] = "anna"
            for name, values in demo(number).items():
                how = {"compression": "gzip"} if "obs" in name else {}
                group.create_dataset(name, data=values, **how)
        data.attrs["total"] = sum(LENGTHS.values())
        data.attrs["env_args"] = json.dumps(ENVIRONMENT, indent=4)
        file["mask/train"] = np.array(["demo_0", "demo_10", "demo_2"], dtype="S")
        file["mask/valid"] = np.array(["demo_1"], dtype="S")
    return path


def test_every_value_arrives_in_the_order_of_the_demos_numbers(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "import", "--format", "robomimic", str(source), str(tmp_path / "d")]) == 0
    shown = capsys.readouterr().out
    assert "4 episodes, 44 steps" in shown
    assert "note: attribute model_file of the demos is not kept" in shown
    assert "note: next_obs is not kept" in shown
    dataset = Dataset.open(tmp_path / "d")
    assert validate(dataset.path) == []
    assert dataset.schema.rate_hz == 25  # control_freq
    kinds = {name: stream.kind for name, stream in dataset.schema.streams.items()}
    assert kinds == {
        "action": "action",
        **dict.fromkeys(("rewards", "dones", "states"), "info"),
        **dict.fromkeys(("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"), "state"),
        "agentview_image": "image",
    }
    assert dataset.schema.streams["robot0_eef_quat"].names == ("qx", "qy", "qz", "qw")
    for episode, number in enumerate(sorted(LENGTHS)):
        found = dataset.episode(episode)
        for key, values in demo(number).items():
            if not key.startswith("next_obs"):
                name = {"actions": "action"}.get(key, key.removeprefix("obs/"))
                assert found[name].dtype == values.dtype
                np.testing.assert_array_equal(found[name], values)
        info = dataset.episode_info(episode)
        assert (info["source_episode"], info["operator"]) == (f"demo_{number}", "anna")
        assert "model_file" not in info
    origin = dataset.metadata["source"]
    assert origin["env_args"] == ENVIRONMENT
    assert origin["masks"] == {"train": ["demo_0", "demo_10", "demo_2"], "valid": ["demo_1"]}


def sequences(path: Path, mask: str | None = None) -> dict[str, dict[str, np.ndarray]]:
    """What robomimic's SequenceDataset takes from a file: the demos by number, num_samples, obs, actions, the rest."""
    found = {}
    with h5py.File(path, "r", swmr=True, libver="latest") as opened:
        file: Any = opened
        demos = [name.decode() for name in file[f"mask/{mask}"][:]] if mask else list(file["data"])
        for name in sorted(demos, key=lambda n: int(n[5:])):
            group = file[f"data/{name}"]
            steps = group.attrs["num_samples"]
            found[name] = {key: group[f"obs/{key}"][()] for key in group["obs"]}
            found[name] |= {key: group[key][()].astype("float32") for key in ("actions", "rewards", "dones")}
            assert all(len(values) == steps for values in found[name].values())
        assert json.loads(file["data"].attrs["env_args"])["env_kwargs"] is not None
        assert file["data"].attrs["total"] == sum(file[f"data/{d}"].attrs["num_samples"] for d in file["data"])
    return found


def test_an_imported_file_goes_out_with_its_environment_masks_and_values(source: Path, tmp_path: Path) -> None:
    import_robomimic(source, tmp_path / "d")
    target = tmp_path / "out.hdf5"
    assert main(["data", "export", "--format", "robomimic", str(tmp_path / "d"), str(target)]) == 0
    found = sequences(target)
    assert list(found) == ["demo_0", "demo_1", "demo_2", "demo_3"]
    for name, number in zip(found, sorted(LENGTHS), strict=True):
        for key, values in demo(number).items():
            if key.startswith("obs/"):
                assert found[name][key[4:]].dtype == values.dtype
                np.testing.assert_array_equal(found[name][key[4:]], values)
            elif key in ("actions", "rewards", "dones"):
                np.testing.assert_array_equal(found[name][key], values.astype("float32"))
    assert list(sequences(target, "train")) == ["demo_0", "demo_2", "demo_3"]
    with h5py.File(target) as opened:
        file: Any = opened
        assert json.loads(file["data"].attrs["env_args"]) == ENVIRONMENT
        assert file["data/demo_3/actions"].dtype == np.float64
        np.testing.assert_array_equal(file["data/demo_3/states"], demo(10)["states"])
        image = file["data/demo_0/obs/agentview_image"]
        assert (image.compression, image.chunks) == ("gzip", (1, 24, 32, 3))

    import_robomimic(target, tmp_path / "back")
    one, two = Dataset.open(tmp_path / "d"), Dataset.open(tmp_path / "back")
    assert one.schema == two.schema
    assert one.fingerprint() == two.fingerprint()


def test_a_recording_of_our_own_goes_out_with_rewards_and_dones(tmp_path: Path) -> None:
    streams = {
        "camera": Stream((8, 8, 3), "float32", "image"),
        "joints": Stream((3,)),
        "action": Stream((2,), "float32", "action"),
    }
    with DatasetWriter.create(tmp_path / "d", Schema(20, streams), durable=False) as writer:
        for steps in (4, 3):
            camera = np.full((steps, 8, 8, 3), steps, np.float32)
            rows = {"camera": camera, "joints": np.ones((steps, 3), "f4"), "action": np.zeros((steps, 2), "f4")}
            writer.extend(rows)
            writer.save_episode()
    assert export_robomimic(tmp_path / "d", tmp_path / "out.hdf5") == (2, 7)
    found = sequences(tmp_path / "out.hdf5")
    assert found["demo_0"]["dones"].tolist() == [0, 0, 0, 1]
    assert found["demo_1"]["rewards"].tolist() == [0, 0, 0]
    assert found["demo_1"]["camera"].dtype == np.uint8
    assert found["demo_1"]["camera"].max() == 3


def test_robosuites_own_file_without_observations_arrives(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env"] = "Lift"
        data.attrs["env_info"] = "{}"
        group = data.create_group("demo_1")
        group["states"] = np.ones((5, 32))
        group["actions"] = np.zeros((5, 7))
    assert import_robomimic(tmp_path / "demo.hdf5", tmp_path / "d") == (1, 5)
    dataset = Dataset.open(tmp_path / "d")
    assert set(dataset.schema.streams) == {"action", "states"}
    assert dataset.schema.rate_hz == 20
    assert dataset.metadata["source"]["attributes"] == {"env": "Lift", "env_info": "{}"}


def edit(change: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return damage


def replace(name: str, values: Any, **options: Any) -> Callable[[Path], None]:
    def change(file: Any) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, data=values, **options)

    return edit(change)


def absurd(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Callable[[Path], None]:
    def change(file: Any) -> None:
        del file["data/demo_1/obs/object"]
        file["data/demo_1/obs"].create_dataset("object", shape, "f8", chunks=chunks)

    return edit(change)


def external_values(file: Any) -> None:
    del file["data/demo_1/obs/object"]
    file["data/demo_1/obs"].create_dataset("object", (5, 10), "u1", external=[("/etc/passwd", 0, 50)])


def virtual_values(file: Any) -> None:
    del file["data/demo_1/obs/object"]
    layout = h5py.VirtualLayout((5, 10), "f8")
    layout[:] = h5py.VirtualSource("/tmp/other.hdf5", "x", (5, 10))
    file["data/demo_1/obs"].create_virtual_dataset("object", layout)


def scrambled(path: Path) -> None:
    with h5py.File(path) as file:
        chunk: Any = file["data/demo_2/obs/agentview_image"].id.get_chunk_info(0)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(64))


def with_nan(file: Any) -> None:
    file["data/demo_2/obs/object"][3, 1] = np.nan


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (lambda p: p.unlink(), "no such file: .*low_dim.hdf5"),
    (lambda p: (p.unlink(), p.mkdir()), "no such file: .*low_dim.hdf5"),
    (lambda p: p.write_bytes(b""), "low_dim.hdf5 is not an HDF5 file, or is damaged"),
    (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "is damaged: .*truncated"),
    (scrambled, "data/demo_2/obs/agentview_image cannot be read near row 0"),
    (edit(lambda f: f.move("data", "dota")), "has no group 'data'; it has dota, mask"),
    (edit(lambda f: [f["data"].pop(name) for name in list(f["data"])]), "has no demos under /data"),
    (edit(lambda f: f["data"].move("demo_1", "trial_1")), "data/trial_1 is not a demo; valid are groups demo_0"),
    (edit(lambda f: f["data"].create_dataset("demo_7", data=[1])), "data/demo_7 is not a demo"),
    (edit(lambda f: f["data/demo_1"].pop("actions")), "/data/demo_1 has no array 'actions'"),
    (edit(lambda f: f["data/demo_1/obs"].pop("object")), "/data/demo_1 differs from the first demo in object"),
    (replace("data/demo_1/obs/object", np.zeros((5, 9))), "/data/demo_1 differs from the first demo in object"),
    (replace("data/demo_1/obs/object", np.zeros((5, 10), "f4")), "differs from the first demo in object"),
    (replace("data/demo_1/obs/object", np.zeros((4, 10))), "demo_1/obs/object has 4 rows, actions have 5"),
    (
        edit(lambda f: f["data/demo_1"].attrs.__setitem__("num_samples", 6)),
        "demo_1 has 5 actions but num_samples 6",
    ),
    (edit(with_nan), "data/demo_2: stream 'object' holds NaN or infinity"),
    (
        replace("data/demo_1/obs/object", [b"a"] * 5, dtype=h5py.string_dtype()),
        "demo_1/obs/object is object, not numeric",
    ),
    (replace("data/demo_1/obs/object", np.array(["a"] * 5, "S")), "demo_1/obs/object is .S1, not numeric"),
    (replace("data/demo_1/obs/object", np.zeros((5, 10), "c16")), "is complex128, not numeric"),
    (absurd((5, 10**9), (1, 1000)), "demo_1/obs/object has shape .* MB in one step"),
    (absurd((10**10, 10), (1000, 10)), "demo_1/obs/object has shape .* bytes in the file; it is damaged"),
    (absurd((5, 10**7), (5, 10**7)), "demo_1/obs/object, a chunk of which has shape"),
    (
        edit(lambda f: f["data/demo_1/obs"].__setitem__("extra", h5py.ExternalLink("/etc/hosts", "/"))),
        "data/demo_1/obs/extra is a link",
    ),
    (
        edit(lambda f: f["data/demo_1/obs"].__setitem__("extra", h5py.SoftLink("/data/demo_0"))),
        "data/demo_1/obs/extra is a link",
    ),
    (edit(lambda f: f["data"].__setitem__("demo_5", h5py.ExternalLink("x.h5", "/data"))), "data/demo_5 is a link"),
    (edit(lambda f: f.__setitem__("masks", h5py.SoftLink("/nowhere"))), "/masks is a link"),
    (edit(external_values), "data/demo_1/obs/object keeps its values in another file"),
    (edit(virtual_values), "data/demo_1/obs/object keeps its values in another file"),
    (edit(lambda f: f["mask"].create_dataset("x", data=[1.0])), "/mask/x is not a list of demo names"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message[:50] for _, message in BROKEN])
def test_a_broken_or_hostile_file_is_refused_in_one_line(
    source: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(source)
    assert_import_refused("robomimic", source, tmp_path, message, capsys)


def test_names_that_a_stream_cannot_have_are_mapped_and_never_collide(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "r+") as file:
        for number in LENGTHS:
            observed: Any = file[f"data/demo_{number}/obs"]
            observed["eye in hand.rgb"] = demo(number)["obs/agentview_image"]
            observed["states"] = demo(number)["obs/object"]
    import_robomimic(source, tmp_path / "d")
    streams = Dataset.open(tmp_path / "d").schema.streams
    assert streams["eye_in_hand_rgb"].kind == "image"
    assert (streams["states"].shape, streams["obs_states"].shape) == ((32,), (10,))


def test_env_args_that_are_not_strict_json_are_kept_as_text(source: Path, tmp_path: Path) -> None:
    with h5py.File(source, "r+") as file:
        file["data"].attrs["env_args"] = '{"env_name": NaN}'
    import_robomimic(source, tmp_path / "d")
    assert Dataset.open(tmp_path / "d").metadata["source"]["env_args"] == '{"env_name": NaN}'


def test_what_robomimic_cannot_hold_is_refused(tmp_path: Path) -> None:
    def make(name: str, streams: dict[str, Stream], rows: dict[str, np.ndarray]) -> Path:
        with DatasetWriter.create(tmp_path / name, Schema(20, streams), durable=False) as writer:
            if rows:
                writer.extend(rows)
                writer.save_episode()
        return tmp_path / name

    empty = make("empty", {"action": Stream((2,), kind="action")}, {})
    with pytest.raises(UserError, match="has no episodes; there is nothing to export"):
        export_robomimic(empty, tmp_path / "out")
    without = make("without", {"x": Stream((2,))}, {"x": np.zeros((3, 2), "f4")})
    with pytest.raises(UserError, match="has no stream 'action', which robomimic needs; it has x"):
        export_robomimic(without, tmp_path / "out")
    streams = {"img": Stream((8, 8, 3), "float32", "image"), "action": Stream((1,), kind="action")}
    rows = {"img": np.full((3, 8, 8, 3), 0.5, "f4"), "action": np.zeros((3, 1), "f4")}
    with pytest.raises(SchemaError, match="'img' cannot be exported as uint8 images"):
        export_robomimic(make("float", streams, rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_target_is_refused_and_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    import_robomimic(source, tmp_path / "d")
    with pytest.raises(UserError, match="exists; choose another path"):
        import_robomimic(source, tmp_path / "mine")
    with pytest.raises(UserError, match="exists; choose another path"):
        export_robomimic(tmp_path / "d", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "keep"


def test_a_missing_h5py_names_the_extra_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_robomimic(source, tmp_path / "d")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"h5py is not installed; .* `pip install 'robolearn\[formats\]'`"):
        import_robomimic(source, tmp_path / "e")
    with pytest.raises(UserError, match="h5py is not installed"):
        export_robomimic(tmp_path / "d", tmp_path / "e")


def test_a_full_disk_ends_an_export_and_an_import_and_leaves_nothing(
    small_disk: Callable[[int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    with DatasetWriter.create(
        tmp_path / "d", Schema(1, {"action": Stream((1000,), "float64", "action")}), durable=False
    ) as writer:
        writer.extend({"action": rng.normal(size=(600, 1000))})
        writer.save_episode()
    export_robomimic(tmp_path / "d", tmp_path / "x.hdf5")
    disk = small_disk(3)
    for words in (["export", str(tmp_path / "d")], ["import", str(tmp_path / "x.hdf5")]):
        assert main(["data", words[0], "--format", "robomimic", words[1], str(disk / "x")]) == 2
        assert "the disk is full" in capsys.readouterr().err
        assert list(disk.iterdir()) == []
