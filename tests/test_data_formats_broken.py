"""Foreign datasets with damaged bytes: an import ends soon, whole or with one line, and leaves nothing else behind."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.formats import EXPORTERS, IMPORTERS
from robolearn_data.schema import Schema, Stream, UserError
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter

LENGTHS = (4, 3, 5)
TIME_LIMIT_S = 30
MEMORY_LIMIT_KB = 600 * 2**10


def small(path: Path) -> Path:
    schema = Schema(
        20.0,
        {
            "camera": Stream((16, 16, 3), "uint8", "image"),
            "state": Stream((3,), "float64", names=("x", "y", "z")),
            "action": Stream((2,), kind="action"),
        },
    )
    rng = np.random.default_rng(0)
    with DatasetWriter.create(path, schema, durable=False) as writer:
        for steps in LENGTHS:
            writer.extend(
                {
                    "camera": rng.integers(0, 256, (steps, 16, 16, 3), dtype=np.uint8),
                    "state": rng.normal(size=(steps, 3)),
                    "action": rng.normal(size=(steps, 2)).astype("float32"),
                }
            )
            writer.save_episode({"task": "lift"})
    return path


def aloha(folder: Path) -> Path:
    folder.mkdir()
    for number, steps in enumerate(LENGTHS):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file["action"] = np.full((steps, 14), 0.5, "float32")
            file["observations/qpos"] = np.full((steps, 14), number, "float32")
            file["observations/images/top"] = np.full((steps, 16, 16, 3), 9, np.uint8)
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small valid dataset of every format: name -> file or folder."""
    folder = tmp_path_factory.mktemp("originals")
    ours = small(folder / "ours")
    found = {"aloha": aloha(folder / "aloha")}
    for name, ending, options in (
        ("lerobot_v30", "", {"images": "h264"}),
        ("lerobot_v30", ".png", {"images": "png"}),
        ("lerobot_v21", "", {}),
        ("diffusion_policy", "", {}),
        ("diffusion_policy", ".zip", {"images": "jpeg2k"}),
        ("robomimic", ".hdf5", {}),
    ):
        EXPORTERS[name](ours, folder / f"{name}{ending}", **options)
        found[f"{name}{ending}"] = folder / f"{name}{ending}"
    return found


def stop(*_: object) -> None:
    raise TimeoutError(f"the import takes more than {TIME_LIMIT_S} s")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "aloha",
        "diffusion_policy",
        "diffusion_policy.zip",
        "lerobot_v21",
        "lerobot_v30",
        "lerobot_v30.png",
        "robomimic.hdf5",
    ],
)
@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_flipped_and_lost_bytes_end_in_a_whole_import_or_one_line(
    originals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    source = folder / originals[name].name
    if originals[name].is_dir():
        shutil.copytree(originals[name], source)
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.stat().st_size)
    else:
        shutil.copy(originals[name], source)
        files = [source]
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    file.write_bytes(content)
    out = folder / "out"
    out.mkdir()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT_S)
    try:
        IMPORTERS[name.partition(".")[0]](source, out / "d")
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert list(out.iterdir()) == []
    else:
        assert [path.name for path in out.iterdir()] == ["d"]
        assert validate(out / "d") == []
    finally:
        signal.alarm(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY_LIMIT_KB
    shutil.rmtree(folder)


def break_aloha(source: Path) -> None:
    (source / "episode_1.hdf5").write_bytes(b"no HDF5")


def break_robomimic(source: Path) -> None:
    with h5py.File(source, "r+") as file:
        demo = file["data/demo_1"]
        assert isinstance(demo, h5py.Group)
        values = np.array(demo["obs/state"])
        values[1, 1] = np.nan
        demo["obs/state"][...] = values  # pyright: ignore[reportIndexIssue]


def break_diffusion_policy(source: Path) -> None:
    zarr.open_array(str(source), path="data/state", mode="r+")[5, 1] = np.nan


def break_lerobot(source: Path) -> None:
    (source / "data/chunk-000/episode_000001.parquet").unlink()


SKIPPED: list[tuple[str, Callable[[Path], None], str]] = [
    ("aloha", break_aloha, "episode_1.hdf5 is not an HDF5 file"),
    ("robomimic.hdf5", break_robomimic, "/data/demo_1: .*'state' holds NaN"),
    ("diffusion_policy", break_diffusion_policy, "episode 1: .*'state' holds NaN"),
    ("lerobot_v21", break_lerobot, "episode 1: .*episode_000001.parquet is missing"),
]


@pytest.mark.parametrize(("name", "damage", "message"), SKIPPED, ids=[name for name, _, _ in SKIPPED])
def test_a_broken_episode_is_an_error_and_skip_broken_keeps_the_others_with_exit_code_3(
    originals: dict[str, Path],
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / originals[name].name
    (shutil.copytree if originals[name].is_dir() else shutil.copy)(originals[name], source)
    damage(source)
    words = ["data", "import", "--format", name.partition(".")[0], str(source), str(tmp_path / "d")]
    assert main(words) == 2
    refused = capsys.readouterr().err
    assert re.search(f"{message}.*; with --skip-broken the 2 whole episodes are imported", refused)
    assert not (tmp_path / "d").exists()
    assert main([*words, "--skip-broken"]) == 3
    shown = capsys.readouterr().out
    assert re.search(f"^left out: .*{message}", shown, re.MULTILINE)
    dataset = Dataset.open(tmp_path / "d")
    assert np.diff(dataset.episode_ends, prepend=0).tolist() == [4, 5]
    assert validate(dataset.path) == []
