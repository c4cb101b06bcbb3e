"""1,000 kills (SIGKILL) at random instants of a process that records episodes, and what is left on disk.

    python tests/benchmarks/data_kill.py              # about 25 minutes; writes results/data_kill.json
    python tests/benchmarks/data_kill.py --kills 50 --out /tmp/x

Each side records one episode after the other (a 64x64 picture, a state and an action, 10 to 40 steps) into one file or
folder, is killed after a random time, and started again on what is left. After each kill the dataset is opened as a
user would and compared, value by value, with what was being written: *torn* means that it cannot be opened, that its
parts disagree about how many rows there are, or that a row of an episode which it shows is not the one that was
recorded. A torn dataset is put aside and a new one begun. *Lost* are episodes whose saving had returned and which are
not there.

- robolearn: `DatasetWriter`, durable; then `recover`, and what that saved is compared too.
- HDF5: h5py as robomimic's collection scripts use it, a group per demonstration, `flush` after each.
- plain zarr: diffusion_policy's ReplayBuffer (zarr v2): the arrays are resized and filled, then `episode_ends`. Rows
  beyond the last end are cut off when it is opened, which its own code does not do: that would tear nearly every one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import zarr
from numcodecs import Blosc
from rich.progress import track

from robolearn_data.dataset import Dataset
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

SHAPES = {"camera": (64, 64, 3), "state": (7,), "action": (7,)}
DTYPES = {"camera": "u1", "state": "f4", "action": "f4"}
SCHEMA = Schema(
    20.0,
    {
        "camera": Stream(SHAPES["camera"], "uint8", "image"),
        "state": Stream((7,)),
        "action": Stream((7,), kind="action"),
    },
)
LONGEST_S = 0.35
"""Kills are spread evenly over this time after a process is ready to write."""

Episode = dict[str, np.ndarray]


def episode(number: int) -> Episode:
    """What episode ``number`` holds: every byte depends on the number, the step and the place."""
    rng = np.random.default_rng(number)
    steps = int(rng.integers(10, 41))
    return {
        "camera": rng.integers(0, 255, (steps, *SHAPES["camera"])).astype("u1"),
        "state": rng.normal(size=(steps, 7)).astype("f4"),
        "action": rng.normal(size=(steps, 7)).astype("f4"),
    }


class Side(Protocol):
    """A way to record."""

    name: str

    def write_for_ever(self, path: Path, saved: Callable[[int], object]) -> None:
        """Go on with the dataset at ``path``, or begin it; ``saved`` is told how many episodes it has."""
        ...

    def read(self, path: Path) -> list[Episode]:
        """The episodes of the dataset. Any exception means that it is torn."""
        ...

    def after_kill(self, path: Path, before: int) -> int:
        """What a user does before going on. Returns how many episodes that saved."""
        ...


class Robolearn:
    name = "robolearn"

    def write_for_ever(self, path: Path, saved: Callable[[int], object]) -> None:
        if not path.exists():
            DatasetWriter.create(path, SCHEMA, compression={"camera": "zstd-1"}).close()
        with DatasetWriter.append(path) as writer:
            saved(writer.episodes)
            while True:
                rows = episode(writer.episodes)
                for step in range(len(rows["state"])):
                    writer.add({name: values[step] for name, values in rows.items()})
                writer.save_episode()
                saved(writer.episodes)

    def read(self, path: Path) -> list[Episode]:
        dataset = Dataset.open(path)
        return [dataset.episode(number) for number in range(dataset.episodes)]

    def after_kill(self, path: Path, before: int) -> int:
        found = recover(path)
        if found.exit_code not in (0, 3, 1) or Dataset.open(path).episodes != before + len(found.saved):
            raise ValueError(f"recover: exit code {found.exit_code}, {found}")
        # What it saved are the first steps of the episode in flight; the episode itself is recorded again.
        for number, steps in found.saved:
            whole, part = episode(number), Dataset.open(path).episode(number)
            check_rows(part, {name: values[:steps] for name, values in whole.items()})
        if found.saved:
            shutil.rmtree(path)
            begin(path, before)
        return len(found.saved)


def begin(path: Path, episodes: int) -> None:
    """The dataset as it was before something was recovered, so that episodes keep their numbers."""
    with DatasetWriter.create(path, SCHEMA, compression={"camera": "zstd-1"}, durable=False) as writer:
        for number in range(episodes):
            writer.extend(episode(number))
            writer.save_episode()


class Hdf5:
    name = "HDF5 (h5py)"

    def write_for_ever(self, path: Path, saved: Callable[[int], object]) -> None:
        with h5py.File(path, "a") as file:
            data: Any = file.require_group("data")
            saved(len(data))
            while True:
                number = len(data)
                demo = data.create_group(f"demo_{number}")
                rows = episode(number)
                for name, values in rows.items():
                    demo.create_dataset(name, data=values)
                demo.attrs["num_samples"] = len(rows["state"])
                file.flush()
                saved(number + 1)

    def read(self, path: Path) -> list[Episode]:
        with h5py.File(path, "r") as file:
            data: Any = file["data"]
            return [{name: data[f"demo_{i}"][name][:] for name in SHAPES} for i in range(len(data))]

    def after_kill(self, path: Path, before: int) -> int:
        return 0


class PlainZarr:
    name = "plain zarr append"

    def write_for_ever(self, path: Path, saved: Callable[[int], object]) -> None:
        root = zarr.open_group(path, mode="a", zarr_format=2)
        if "meta" not in root:
            codec = Blosc("lz4", 5, Blosc.NOSHUFFLE)
            for name, shape in SHAPES.items():
                root.create_array(
                    f"data/{name}", shape=(0, *shape), dtype=DTYPES[name], chunks=(256, *shape), compressors=codec
                )
            root.create_array("meta/episode_ends", shape=(0,), dtype="i8", chunks=(1024,), compressors=None)
        ends: Any = root["meta/episode_ends"]
        arrays: dict[str, Any] = {name: root[f"data/{name}"] for name in SHAPES}
        saved(ends.shape[0])
        while True:
            number = ends.shape[0]
            start = int(ends[number - 1]) if number else 0
            rows = episode(number)
            stop = start + len(rows["state"])
            for name, array in arrays.items():
                array.resize((stop, *SHAPES[name]))
                array[start:stop] = rows[name]
            ends.resize((number + 1,))
            ends[number] = stop
            saved(number + 1)

    def read(self, path: Path) -> list[Episode]:
        root = zarr.open_group(path, mode="r", zarr_format=2)
        ends: Any = np.asarray(root["meta/episode_ends"][:])  # pyright: ignore[reportIndexIssue, reportArgumentType]
        arrays: dict[str, Any] = {name: np.asarray(root[f"data/{name}"][:]) for name in SHAPES}  # pyright: ignore[reportIndexIssue, reportArgumentType]
        if np.any(np.diff(ends, prepend=0) <= 0) or any(len(a) < ends[-1] for a in arrays.values() if len(ends)):
            raise ValueError("episode_ends does not fit the rows")
        starts = np.concatenate(([0], ends))[: len(ends)]
        return [
            {name: array[start:stop] for name, array in arrays.items()}
            for start, stop in zip(starts, ends, strict=True)
        ]

    def after_kill(self, path: Path, before: int) -> int:
        return 0


def check_rows(found: Episode, expected: Episode) -> None:
    for name, values in expected.items():
        if not np.array_equal(found[name], values):
            raise ValueError(f"rows of {name} are not what was recorded")


@dataclass
class Count:
    stored: str
    kills: int = 0
    torn: int = 0
    lost: int = 0
    recovered: int = 0


def record(side: Side, path: Path, events: Connection) -> None:
    side.write_for_ever(path, events.send)


def soak(side: Side, kills: int, folder: Path) -> Count:
    """Kill ``kills`` times."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["__main__", "robolearn_data.writer", "h5py"])
    rng = np.random.default_rng(0)
    count = Count(side.name)
    path, known = folder / "dataset-0", 0
    for _ in track(range(kills), side.name):
        events, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=record, args=(side, path, theirs))
        process.start()
        theirs.close()
        try:
            saved = events.recv()
            time.sleep(float(rng.uniform(0, LONGEST_S)))
        except EOFError:
            saved = -1
        process.kill()
        process.join()
        while saved >= 0 and events.poll():
            try:
                saved = events.recv()
            except EOFError:
                break
        events.close()
        count.kills += 1
        try:
            if saved < 0:
                raise ValueError("the dataset cannot be opened for writing again")
            found = side.read(path)
            for number, rows in enumerate(found[known:], known):
                check_rows(rows, episode(number))
            count.lost += max(saved - len(found), 0)
            count.recovered += side.after_kill(path, len(found))
            known = len(found)
        except Exception as error:
            count.torn += 1
            print(f"{side.name}: kill {count.kills}: {type(error).__name__}: {str(error)[:100]}", flush=True)
            known = -1
        if known < 0 or known > 40:  # torn, or so large that reading it takes longer than writing
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            path, known = folder / f"dataset-{count.kills}", 0
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="of each side")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows = []
    for side in (Robolearn(), Hdf5(), PlainZarr()):
        folder = Path(tempfile.mkdtemp())
        began = time.perf_counter()
        try:
            count = soak(side, options.kills, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        rows.append(asdict(count))
        print(rows[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    from results import RESULTS, write_results  # takes seconds to import, which every process would

    path = write_results("data_kill", rows, options.out or RESULTS)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"torn": rows[0]["torn"], "kills": rows[0]["kills"], **content}, indent=1) + "\n")


if __name__ == "__main__":
    main()
