"""What size costs: opening many episodes, appending one more, and the number of files; beside other formats.

    python tests/benchmarks/data_open.py              # about 5 minutes; writes results/data_open.json
    python tests/benchmarks/data_open.py --quick --out /tmp/x

Episodes are of 20 steps of a state and an action, 7 numbers each. The others are what their own libraries leave behind:
diffusion_policy's ReplayBuffer (zarr v2, resized for each episode), robomimic's HDF5 (a group for each), both written
here as they do it, and LeRobot v3.0 by our exporter. Opening is what is needed before the first sample can be read: the
length of every episode. Seconds are CPU seconds, medians of five.

The number of files for ten hours of three 640x480 cameras at 30 Hz is extrapolated from ten minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import zarr
from numcodecs import Blosc
from results import RESULTS, write_results

from robolearn_data import shards
from robolearn_data.dataset import Dataset
from robolearn_data.formats.lerobot_write import export_lerobot
from robolearn_data.schema import Schema, Stream
from robolearn_data.shards import Encoded
from robolearn_data.writer import DatasetWriter

STEPS = 20
SIZES = (10, 1_000, 10_000)
SCHEMA = Schema(20.0, {"state": Stream((7,)), "action": Stream((7,), kind="action")})
ROWS = {name: np.random.default_rng(0).normal(size=(STEPS, 7)).astype(np.float32) for name in SCHEMA.streams}


def cpu_s(work: Callable[[], Any], times: int = 5) -> float:
    """Median CPU seconds of ``work``, first call left out."""
    work()
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return float(np.median(taken))


class Ours:
    name = "robolearn"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ours"
        self.writer = DatasetWriter.create(self.path, SCHEMA)

    def fill(self, episodes: int) -> None:
        """Without waiting for the disk; what is measured does."""
        self.writer.close()
        self.writer = DatasetWriter.append(self.path, durable=False)
        for _ in range(episodes):
            self.append()
        self.writer.close()
        self.writer = DatasetWriter.append(self.path)

    def append(self) -> None:
        self.writer.extend(ROWS)
        self.writer.save_episode({"task": "pour"})

    def open(self) -> int:
        return len(Dataset.open(self.path).episode_ends)


class ReplayBuffer:
    """diffusion_policy and UMI: two arrays of rows, and the ends of episodes, in zarr v2."""

    name = "diffusion_policy"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "replay"
        root = zarr.open_group(self.path, mode="w", zarr_format=2)
        compressor = Blosc("lz4", 5, Blosc.NOSHUFFLE)
        self.arrays = {
            name: root.create_array(f"data/{name}", shape=(0, 7), dtype="f4", chunks=(1024, 7), compressors=compressor)
            for name in SCHEMA.streams
        }
        self.ends = root.create_array("meta/episode_ends", shape=(0,), dtype="i8", chunks=(1024,), compressors=None)

    def fill(self, episodes: int) -> None:
        for _ in range(episodes):
            self.append()

    def append(self) -> None:
        end = self.arrays["state"].shape[0] + STEPS
        for name, array in self.arrays.items():
            array.resize((end, 7))
            array[end - STEPS :] = ROWS[name]
        self.ends.resize((self.ends.shape[0] + 1,))
        self.ends[-1] = end

    def open(self) -> int:
        root = zarr.open_group(self.path, mode="r", zarr_format=2)
        return len(np.asarray(root["meta/episode_ends"][:]))  # pyright: ignore[reportIndexIssue, reportArgumentType]


class Hdf5:
    """robomimic: a group for each demonstration, whose length is its attribute."""

    name = "robomimic HDF5"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "demo.hdf5"
        with h5py.File(self.path, "w") as file:
            file.create_group("data")

    def fill(self, episodes: int) -> None:
        for _ in range(episodes):
            self.append()

    def append(self) -> None:
        with h5py.File(self.path, "a") as file:
            data: Any = file["data"]
            demo = data.create_group(f"demo_{len(data)}")
            demo.create_dataset("obs/state", data=ROWS["state"])
            demo.create_dataset("actions", data=ROWS["action"])
            demo.attrs["num_samples"] = STEPS

    def open(self) -> int:
        with h5py.File(self.path, "r") as file:
            data: Any = file["data"]
            return len([int(data[name].attrs["num_samples"]) for name in data])


def lerobot_open(root: Path) -> int:
    """Read what LeRobot reads before the first sample: info, statistics, tasks and the table of episodes."""
    json.loads((root / "meta/info.json").read_text())
    json.loads((root / "meta/stats.json").read_text())
    pq.read_table(root / "meta/tasks.parquet")
    return len(pq.read_table(root / "meta/episodes").to_pylist())


def files(path: Path) -> int:
    return sum(1 for file in path.rglob("*") if file.is_file()) if path.is_dir() else 1


def measure(folder: Path, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind in (Ours, ReplayBuffer, Hdf5):
        side = kind(folder)
        written = 0
        for size in sizes:
            side.fill(size - written)
            written = size
            opened = cpu_s(side.open)
            assert side.open() == size
            append = cpu_s(side.append)
            written += 6
            row = {"stored": side.name, "episodes": size, "open_cpu_s": opened, "append_cpu_s": append}
            rows.append({**row, "files": files(side.path)})
            print(rows[-1], flush=True)
            if size == sizes[-1] and isinstance(side, Ours):
                side.writer.close()
                export_lerobot(side.path, folder / "lerobot", version="v3.0")
                opened = cpu_s(lambda: lerobot_open(folder / "lerobot"))
                row = {"stored": "LeRobot v3.0", "episodes": written, "open_cpu_s": opened, "append_cpu_s": None}
                rows.append({**row, "files": files(folder / "lerobot")})
                print(rows[-1], flush=True)
    return rows


def files_of_ten_hours(path: Path) -> dict[str, int]:
    """Files of three 640x480 cameras at 30 Hz, a 500 Hz state and an action at 20 Hz: measured over two times five
    minutes in episodes of 30 s, the difference taken 120 times. The pictures are one JPEG again and again."""
    image, minutes, episodes = Stream((480, 640, 3), "uint8", "image", rate_hz=30.0), 5, 10
    streams = {**dict.fromkeys(("left", "right", "wrist"), image), "arm": Stream((7,), rate_hz=500.0)}
    action = Stream((7,), kind="action")
    counts = []
    with DatasetWriter.create(path, Schema(20.0, {**streams, "action": action}), durable=False) as writer:
        jpeg = shards.encoder(writer.array("left"))(np.zeros(image.shape, np.uint8))
        for number in range(2 * episodes):
            start = 1 + number * 60 * minutes // episodes * 10**9
            seconds = 60 * minutes // episodes
            for name, stream in streams.items():
                count = int(seconds * stream.rate_hz)
                values = Encoded([jpeg] * count) if stream is image else np.zeros((count, 7), np.float32)
                times = start + np.arange(count) * round(1e9 / stream.rate_hz)
                writer.add_samples(name, values, times, times)
            steps = 20 * seconds
            writer.extend({"action": np.zeros((steps, 7), np.float32)}, time_ns=start + np.arange(steps) * 50_000_000)
            writer.save_episode({"task": "pour"})
            if number % episodes == episodes - 1:
                counts.append(files(path))
    first, both = counts
    hours, pieces = 10, 10 * 60 // minutes
    return {"files": first + (pieces - 1) * (both - first), "pictures": 3 * 30 * 3600 * hours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 1,000 episodes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        rows = measure(folder, SIZES[:2] if options.quick else SIZES)
        ten_hours = files_of_ten_hours(folder / "hours")
    finally:
        shutil.rmtree(folder)
    ours = [row for row in rows if row["stored"] == Ours.name]
    figures = {
        "open_10000_cpu_s": ours[-1]["open_cpu_s"],
        "append_growth": ours[-1]["append_cpu_s"] / ours[0]["append_cpu_s"],
        "ten_hours_of_three_cameras": ten_hours,
    }
    path = write_results("data_open", rows, options.out, **figures)
    print(f"{path}: {figures}")


if __name__ == "__main__":
    main()
