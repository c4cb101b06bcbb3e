"""CPU time of one training sample of two 640x480 cameras, beside LeRobot's v3.0 files of the same recording.

    python tests/benchmarks/data_loader.py            # about 4 minutes; writes results/data_loader.json
    python tests/benchmarks/data_loader.py --episodes 1 --samples 50 --out /tmp/x

The recording is Lift, rendered by MuJoCo, without and with the noise of a real sensor. A sample is what one window of
a diffusion policy observes: two consecutive pictures (To = 2) of each of two cameras, at a random step. LeRobot's side
is written by our exporter with LeRobot's settings (AV1, two pictures per key frame, CRF 30) and read by PyAV as LeRobot
does with that backend: open the file, seek to the key frame before, decode up to the last wanted instant, and hand out
float32 in [0, 1], channels first. Rows named "kept open" leave out what could be left out: they are the least that
AV1 costs, with the file kept open, one decoder thread, and 8 bits as ours. CPU time is of the whole process, decoder
threads included, and per pair: one picture of each camera.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from lift_pictures import CAMERAS, HEIGHT, WIDTH, lift_episodes
from results import RESULTS, write_results

from robolearn_data.dataset import Dataset
from robolearn_data.formats.lerobot_write import export_lerobot
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

HORIZON = 2
RATE_HZ = 20.0
OURS = ("jpeg-95", "lossless", "h264-23", "zstd-1")
SENSOR_NOISE = 3.0

LEROBOT = "LeRobot v3.0, AV1, as LeRobot reads it"
LEAST = "LeRobot v3.0, AV1, kept open"

Reader = Callable[[str, np.ndarray], np.ndarray]
"""Camera and rows (To,) -> pictures (To, 480, 640, 3) uint8, or (To, 3, 480, 640) float32."""


def record(root: Path, episodes: int, noise: float) -> dict[str, np.ndarray]:
    """Write the recording in every form; returns the pictures (N, 480, 640, 3) of each camera."""
    image = Stream((HEIGHT, WIDTH, 3), "uint8", "image")
    state = Stream((13,), "float32")
    schema = Schema(RATE_HZ, {**dict.fromkeys(CAMERAS, image), "state": state, "action": Stream((7,), kind="action")})
    kept: dict[str, list[np.ndarray]] = {name: [] for name in CAMERAS}
    writers = {
        how: DatasetWriter.create(root / how, schema, compression=dict.fromkeys(CAMERAS, how), durable=False)
        for how in OURS
    }
    for pictures, states, actions in lift_episodes(episodes, noise=noise):
        rows = {**pictures, "state": states[:, :13].astype(np.float32), "action": actions.astype(np.float32)}
        for writer in writers.values():
            writer.extend(rows)
            writer.save_episode({"task": "lift the cube"})
        for name, frames in pictures.items():
            kept[name].append(frames)
    for writer in writers.values():
        writer.close()
    export_lerobot(root / "zstd-1", root / "lerobot", version="v3.0", images="av1")
    return {name: np.concatenate(frames) for name, frames in kept.items()}


def ours(path: Path) -> Reader:
    dataset = Dataset.open(path)
    return dataset.take


class Video:
    """Pictures of LeRobot's files by row of the whole dataset."""

    def __init__(self, root: Path, *, as_lerobot: bool) -> None:
        """``as_lerobot``: opened for each sample, float32 (To, 3, 480, 640); otherwise the least that is possible."""
        self.root = root
        self.as_lerobot = as_lerobot
        self.kept: dict[str, Any] = {}

    def __call__(self, camera: str, rows: np.ndarray) -> np.ndarray:
        container = self.kept.get(camera) or self._open(camera)
        first, last = (int(row) / RATE_HZ - 0.5 / RATE_HZ for row in (rows[0], rows[-1]))
        stream = container.streams.video[0]
        container.seek(int((first + 0.5 / RATE_HZ) / (stream.time_base or 1)), stream=stream)
        found = []
        for frame in container.decode(stream):
            if self.as_lerobot or frame.time > first:
                found.append((frame.time, frame.to_ndarray(format="rgb24")))
            if frame.time > last:
                break
        wanted = [picture for instant, picture in found if instant > first]
        if not self.as_lerobot:
            return np.stack(wanted)
        container.close()
        chosen = torch.stack([torch.as_tensor(picture).permute(2, 0, 1) for picture in wanted])
        return (chosen.type(torch.float32) / 255).numpy()

    def _open(self, camera: str) -> Any:
        (path,) = self.root.glob(f"videos/*{camera}/chunk-000/file-000.mp4")
        container = av.open(str(path))
        if not self.as_lerobot:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            self.kept[camera] = container
        return container


def as_bytes(pictures: np.ndarray) -> np.ndarray:
    """(To, 480, 640, 3) uint8 of what any reader gave."""
    if pictures.dtype == np.uint8:
        return pictures
    return np.rint(pictures * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def measure(read: Reader, rows: np.ndarray) -> tuple[float, float]:
    """CPU-ms and wall-ms per sample, medians over rounds."""
    for sample in rows[:3]:
        for camera in CAMERAS:
            read(camera, sample)
    cpu, wall = [], []
    for part in np.array_split(rows, 5):
        began, began_cpu = time.perf_counter(), time.process_time()
        for sample in part:
            for camera in CAMERAS:
                read(camera, sample)
        cpu.append((time.process_time() - began_cpu) / len(part))
        wall.append((time.perf_counter() - began) / len(part))
    return 1e3 * float(np.median(cpu)), 1e3 * float(np.median(wall))


def psnr(found: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((found.astype(float) - expected) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def measure_all(root: Path, episodes: int, samples: int, noise: float) -> list[dict[str, Any]]:
    pictures = record(root, episodes, noise)
    ends = Dataset.open(root / "zstd-1").episode_ends
    first = np.setdiff1d(np.arange(ends[-1]), ends - 1)  # the last step of an episode has none after it
    rows = np.random.default_rng(0).choice(first, samples)[:, None] + np.arange(HORIZON)
    readers: dict[str, tuple[Reader, Path]] = {f"robolearn {how}": (ours(root / how), root / how) for how in OURS}
    lerobot = root / "lerobot"
    readers[LEROBOT] = (Video(lerobot, as_lerobot=True), lerobot / "videos")
    readers[LEAST] = (Video(lerobot, as_lerobot=False), lerobot / "videos")
    out = []
    for name, (read, files) in readers.items():
        probes = rows[:: max(len(rows) // 20, 1)]
        quality = np.mean([psnr(as_bytes(read(c, probe)), pictures[c][probe]) for probe in probes for c in CAMERAS])
        cpu_ms, wall_ms = measure(read, rows)
        size = sum(file.stat().st_size for file in files.rglob("*") if file.is_file())
        row = {
            "stored": name,
            "sensor_noise": noise,
            "cpu_ms_per_pair": cpu_ms / HORIZON,
            "cpu_ms_per_sample": cpu_ms,
            "wall_ms_per_sample": wall_ms,
            "kB_per_picture": size / 1e3 / sum(len(frames) for frames in pictures.values()),
            "psnr_dB": None if np.isinf(quality) else float(quality),
        }
        print("  ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
        out.append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for noise in (0.0, SENSOR_NOISE):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure_all(Path(folder), options.episodes, options.samples, noise)

    def pair(stored: str) -> float:
        """The dearer of the two recordings."""
        return max(row["cpu_ms_per_pair"] for row in rows if row["stored"] == stored)

    path = write_results("data_loader", rows, options.out)
    content = json.loads(path.read_text())
    figures = {
        "ours_cpu_ms": pair("robolearn jpeg-95"),
        "lerobot_v30_cpu_ms": pair(LEROBOT),
        "lerobot_v30_least_cpu_ms": pair(LEAST),
    }
    path.write_text(json.dumps({**figures, **content}, indent=1) + "\n")
    ours_ms, theirs, least = figures.values()
    print(
        f"{path}: a pair of pictures costs {ours_ms:.2f} CPU-ms; LeRobot's reading {theirs:.2f} ({theirs / ours_ms:.1f}"
    )
    print(f"times that), the least that its files could cost {least:.2f} ({least / ours_ms:.1f} times)")


if __name__ == "__main__":
    main()
