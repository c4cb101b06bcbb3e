"""Loading training batches of the human PushT demonstrations with images: ours beside diffusion_policy's scheme.

    python tests/benchmarks/data_pusht_images.py

Batch 64, two observations, chunks of 16, as in the preset pusht-image. Ours: images in memory (uint8), or read and
decoded from disk as they are wanted, from a JPEG copy and a lossless one; files are in the page cache, as in a run they
soon are. The rival is written after the published description: the whole array in memory as float32, each window
copied in Python (`SequenceSampler`: all 16 images, or the observed two where `key_first_k` says so, the others NaN),
scaled, collated by torch's DataLoader. "processes" are torch's DataLoader workers, "threads" ours.

Each row is a process of its own. CPU time is of all its threads and children; memory is its peak over what the imports
take, shared pages counted once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from results import write_results
from rich import print
from torch.utils.data import DataLoader, Dataset

from robolearn.cli.main import main as robolearn
from robolearn.training.batches import WindowBatches
from robolearn.training.config import PRESETS
from robolearn.training.sources import open_sources, spec_for

SOURCE = Path("../shared/datasets/pusht_cchi_v7_replay.zarr")
RUNS = Path("runs/bench")
HUMAN = RUNS / "human.zarr"
COPIES = {name: RUNS / f"human-{name}.zarr" for name in ("jpeg-95", "zstd-1")}
BATCHES, REPEATS, WARM = 60, 5, 10

SETUPS: dict[str, dict[str, Any]] = {
    "robolearn, memory": {"copy": "zstd-1", "images": "memory"},
    "robolearn, memory, 2 threads": {"copy": "zstd-1", "images": "memory", "threads": 2},
    **{
        f"robolearn, disk, {copy}{text}": {"copy": copy, "images": "disk", **how}
        for copy in COPIES
        for text, how in {
            "": {},
            ", 1 thread": {"threads": 1},
            ", 2 threads": {"threads": 2},
            ", 2 processes": {"processes": 2},
        }.items()
    },
    "diffusion_policy": {"images_copied": 16},
    "diffusion_policy, 2 processes": {"images_copied": 16, "processes": 2},
    "diffusion_policy, key_first_k": {"images_copied": 2},
    "diffusion_policy, key_first_k, 2 processes": {"images_copied": 2, "processes": 2},
}
"""Row -> how it reads."""


def main() -> None:
    prepare()
    rows = []
    for name in SETUPS:
        done = subprocess.run([sys.executable, __file__, name], stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1])
    print("results:", write_results("data_pusht_images", rows))


def prepare() -> None:
    if not SOURCE.is_dir() and not HUMAN.exists():
        raise SystemExit(f"the human PushT demonstrations are not at {SOURCE}")
    RUNS.mkdir(parents=True, exist_ok=True)
    if not HUMAN.exists() and robolearn(["data", "import", "--format", "diffusion_policy", str(SOURCE), str(HUMAN)]):
        raise SystemExit(2)
    for name, path in COPIES.items():
        words = ["data", "convert", str(HUMAN), str(path), "--dtype", "img=uint8", "--compression", f"img={name}"]
        if not path.exists() and robolearn(words):
            raise SystemExit(2)


def measure(name: str) -> dict[str, Any]:
    """Samples per second and CPU milliseconds per sample (medians of runs of batches), memory."""
    how = SETUPS[name]
    before = memory_bytes()
    began = time.perf_counter()
    with ExitStack() as stack:
        batches = ours(stack, **how) if "copy" in how else rival(**how)
        batch = next(batches)
        started = time.perf_counter() - began
        shape = tuple(batch["observation"]["img"].shape)
        for _ in range(WARM):
            next(batches)
        wall, cpu = [], []
        for _ in range(REPEATS):
            wall_began, cpu_began = time.perf_counter(), cpu_s()
            for _ in range(BATCHES):
                next(batches)
            wall.append(time.perf_counter() - wall_began)
            cpu.append(cpu_s() - cpu_began)
        samples = BATCHES * shape[0]
        return {
            "loader": name,
            "samples_per_s": round(samples / float(np.median(wall))),
            "cpu_ms_per_sample": 1000 * float(np.median(cpu)) / samples,
            "memory_mb": round((max(memory_bytes(), peak_bytes()) - before) / 1e6),
            "first_batch_s": round(started, 1),
        }


def ours(stack: ExitStack, copy: str, images: Any, threads: int = 0, processes: int = 0) -> Iterator[Any]:
    config = PRESETS["pusht-image"]()
    sources = open_sources([COPIES[copy]])
    batches = WindowBatches(
        sources, spec_for(config, sources), batch_size=config.batch_size, seed=config.seed, images=images
    )
    steps = 1 + WARM + REPEATS * BATCHES + 10
    if processes:
        loader = DataLoader(_Steps(batches.batch, steps), batch_size=None, num_workers=processes)
        yield from ({"observation": batch.observation} for batch in loader)
        return
    for batch in stack.enter_context(batches.coming(0, steps, threads)):
        yield {"observation": batch.observation}


class _Steps(Dataset[Any]):
    """Items are the batches of steps."""

    def __init__(self, batch: Callable[[int], Any], steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Any:
        return self.batch(step)


def rival(images_copied: int, processes: int = 0) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)
    data = _Sequences(images_copied)
    loader = DataLoader(
        data, batch_size=64, shuffle=True, num_workers=processes, generator=generator, persistent_workers=processes > 0
    )
    while True:
        yield from loader


class _Sequences(Dataset[Any]):
    """Windows as diffusion_policy's PushT image dataset cuts them: horizon 16, padded 1 before and 7 after."""

    HORIZON, BEFORE, AFTER = 16, 1, 7

    def __init__(self, images_copied: int) -> None:
        self.first_k = {"img": images_copied}
        group = zarr.open_group(str(SOURCE), mode="r")
        self.arrays = {name: in_memory(group[f"data/{name}"]) for name in ("img", "state", "action")}
        ends = np.asarray(group["meta/episode_ends"])
        found = []
        for begin, end in zip(np.concatenate(([0], ends[:-1])).tolist(), ends.tolist(), strict=True):
            length = end - begin
            for start in range(-self.BEFORE, length - self.HORIZON + self.AFTER + 1):
                first, last = max(start, 0) + begin, min(start + self.HORIZON, length) + begin
                skipped = first - (start + begin)
                found.append((first, last, skipped, skipped + last - first))
        self.indices = np.array(found)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Any:
        first, last, start, stop = self.indices[number].tolist()
        sample = {}
        for name, array in self.arrays.items():
            count = last - first
            copied = min(self.first_k.get(name, count), count)
            part = np.full((count, *array.shape[1:]), np.nan, array.dtype)
            part[:copied] = array[first : first + copied]
            if start > 0 or stop < self.HORIZON:
                padded = np.zeros((self.HORIZON, *array.shape[1:]), array.dtype)
                padded[:start], padded[stop:], padded[start:stop] = part[0], part[-1], part
                part = padded
            sample[name] = part
        image = np.moveaxis(sample["img"], -1, 1) / 255
        return {
            "observation": {
                "img": torch.from_numpy(image),
                "agent_pos": torch.from_numpy(sample["state"][:, :2].astype(np.float32)),
            },
            "action": torch.from_numpy(sample["action"].astype(np.float32)),
        }


def in_memory(array: Any) -> np.ndarray:
    """Piece by piece, so that nothing exists twice."""
    out = np.empty(array.shape, array.dtype)
    for first in range(0, len(out), 512):
        out[first : first + 512] = array[first : first + 512]
    return out


def children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for file in tasks for pid in file.read_text().split()]


def cpu_s() -> float:
    """Of this process and its living children."""
    total = time.process_time()
    for pid in children():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def memory_bytes() -> int:
    """Of this process and its children together (PSS)."""
    total = 0
    for pid in ["self", *children()]:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
    return total


def peak_bytes() -> int:
    """The most that this process had in memory since it began; `getrusage` would count its parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(measure(sys.argv[1])))
    else:
        main()
