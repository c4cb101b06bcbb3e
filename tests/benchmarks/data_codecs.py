"""What each compression of images costs: CPU-ms to write and to read a 640x480 frame, bytes, and what it loses.

    python tests/benchmarks/data_codecs.py

Frames: two cameras of robosuite's Lift as MuJoCo draws them, with depth that has a sensor's noise and holes, and a real
arm's camera where ../shared/datasets is at hand. Writing goes through zarr, in one go; single rows are read at random
by `robolearn_data.frames` and, beside it, by zarr. CPU time, the best of three, so that other programs hardly matter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from results import write_results
from rich import print
from zarr.storage import LocalStore

from robolearn_data import storage
from robolearn_data.frames import Frames
from robolearn_data.schema import Stream

REAL = Path("../shared/datasets/cr5_banana_lerobot_v21/videos")
HEIGHT, WIDTH, FRAMES = 480, 640, 24
COLOR = Stream((HEIGHT, WIDTH, 3), "uint8", "image")
DEPTH = Stream((HEIGHT, WIDTH, 1), "uint16", "image")
COMPRESSIONS = ("jpeg-95", "jpeg-90", "lossless", "zstd-1", "h264-23")


def main() -> None:
    rows = []
    for name, (color, depth) in sources().items():
        rows += [measure(name, compression, COLOR, color) for compression in COMPRESSIONS]
        if depth is not None:
            rows += [measure(f"{name} depth", compression, DEPTH, depth) for compression in ("depth", "zstd-1")]
    print("results:", write_results("data_codecs", rows))


def sources() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Name -> colour (n, H, W, 3) and depth (n, H, W, 1) in mm."""
    found: dict[str, tuple[np.ndarray, np.ndarray | None]] = {"lift": lift()}
    videos = sorted(REAL.rglob("*.mp4"))
    if videos:
        import av

        with av.open(str(videos[0])) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame, _ in zip(video.decode(video=0), range(FRAMES))]  # noqa: B905
        found["cr5"] = np.stack(frames), None
    else:
        print(f"{REAL} is not there: rendered frames only")
    return found


def lift() -> tuple[np.ndarray, np.ndarray]:
    """What the two cameras see while the arm moves at random, one after the other."""
    import mujoco

    from robolearn_sim.worlds import make_world

    world: Any = make_world("lift", images=True)
    model, data = world._model, world._data
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    options: Any = mujoco.MjvOption()  # pyright: ignore[reportAttributeAccessIssue]
    options.geomgroup[0] = 0  # robosuite keeps collision shapes there
    rng = np.random.default_rng(0)
    color, depth = [], []
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        for camera in ("agentview", "robot0_eye_in_hand"):
            for _ in range(FRAMES // 2):
                world.step(rng.uniform(-1, 1, 7).astype(np.float32))
                renderer.update_scene(data, camera, options)
                color.append(renderer.render().copy())
                renderer.enable_depth_rendering()
                metres = renderer.render().copy()
                renderer.disable_depth_rendering()
                noisy = np.rint(1000 * metres + 1.5 * metres**2 * rng.normal(size=metres.shape))  # 1.5 mm at 1 m
                holes = np.kron(rng.random((HEIGHT // 10, WIDTH // 10)) < 0.05, np.ones((10, 10), bool))
                depth.append(np.where(holes | (metres > 4), 0, noisy).astype(np.uint16)[..., None])
    return np.stack(color), np.stack(depth)


def measure(source: str, compression: str, stream: Stream, frames: np.ndarray) -> dict[str, Any]:
    n = len(frames)
    order = np.random.default_rng(0).permutation(n)
    with tempfile.TemporaryDirectory() as folder:
        array = storage.create_array(LocalStore(folder), "a", stream, rows=n, compression=compression)

        def write() -> None:
            with zarr.config.set(storage.BULK):
                array[:] = frames

        write_ms = cpu_ms(write) / n
        reader = Frames(array)
        reader.read([0])
        row = {
            "frames": source,
            "compression": compression,
            "write_cpu_ms": write_ms,
            "read_cpu_ms": cpu_ms(lambda: [reader.read(i) for i in order]) / n,
            "zarr_read_cpu_ms": cpu_ms(lambda: [array[int(i)] for i in order]) / n,
            "bytes": sum(file.stat().st_size for file in Path(folder, "a", "c").rglob("*") if file.is_file()) / n,
            "psnr_db": psnr(frames, reader.read(np.arange(n))),
        }
    print(row)
    return row


def cpu_ms(work: Callable[[], Any]) -> float:
    """The least of three runs, in all threads of this process."""
    found = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(1000 * (time.process_time() - began))
    return min(found)


def psnr(a: np.ndarray, b: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio in dB of 8-bit pictures, None where nothing is lost."""
    error = np.mean([np.mean((x.astype(float) - y) ** 2) for x, y in zip(a, b, strict=True)])
    return float(10 * np.log10(255**2 / error)) if error else None


if __name__ == "__main__":
    main()
