"""Recording three 640x480 cameras at 30 Hz, state at 500 Hz and wrench at 1 kHz, beside LeRobot's way of recording.

    python tests/benchmarks/data_recording.py [--seconds 60]

Six other processes publish at their real rates into rings in shared memory: pictures that MuJoCo drew of robosuite's
Lift beforehand, so that they only copy. Each recorder gets the same input for as long, one after the other:

- robolearn: ``RecorderProcess``, every sample with its times, control steps at 50 Hz with the action in four stages,
  JPEG-95, a journal against crashes. What was recorded is compared with what was published.
- LeRobot's way, as its 0.4 to 0.6 record by default, written anew here: a loop at 30 Hz takes the newest sample of each
  stream, 4 threads per camera write PNG (PIL, level 1), and at the end of the episode the PNGs are read back and become
  AV1 (PyAV, libsvtav1, g=2, crf=30, preset 12), rows become parquet. Its statistics of images are left out.

CPU time is that of the whole recording process from the episode's start until it is saved; "cores" is that over the
episode's length. A recorder that gets no time loses samples: on a machine that does other work, give the benchmark a
session of its own that goes first, for both recorders alike:

    setsid bash -c 'echo -15 > /proc/self/autogroup; exec python tests/benchmarks/data_recording.py'
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
from results import write_results
from rich import print

from robolearn_data.dataset import Dataset
from robolearn_data.recorder import ACTION_STAGES
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.recorder import RecorderProcess, sample_fields, step_fields
from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns
from robolearn_hardware.ring import Ring, RingHandle

HEIGHT, WIDTH, STEP_HZ = 480, 640, 50.0
CAMERAS = {"front": "agentview", "side": "sideview", "hand": "robot0_eye_in_hand"}
SCHEMA = Schema(
    STEP_HZ,
    {name: Stream((HEIGHT, WIDTH, 3), "uint8", "image", rate_hz=30.0) for name in CAMERAS}
    | {
        "state": Stream((14,), "float32", rate_hz=500.0, interpolation="linear"),
        "wrench": Stream((6,), "float32", rate_hz=1000.0, interpolation="linear"),
        "action": Stream((7,), "float32", "action"),
    }
    | {name: Stream((7,), "float32", "info") for name in ACTION_STAGES if name != "action"},
)
NATIVE = {name: stream.rate_hz for name, stream in SCHEMA.streams.items() if stream.is_native}
RATES = NATIVE | {"steps": STEP_HZ}
SLOTS = {name: round(2 * rate) for name, rate in RATES.items()}
"""Two seconds: what the disk may stand still."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="where to record; by default where temporary files are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        draw(folder)
        rows = []
        for record in (ours, lerobots_way):
            rows.append(record(folder, options.seconds))
            print(rows[-1])
            print("results:", write_results("data_recording", rows))


def draw(folder: Path, steps: int = 100) -> None:
    """A file of pictures (steps, H, W, 3) for each camera, while the scripted expert lifts the cube."""
    import mujoco

    from robolearn_sim.experts import make_expert
    from robolearn_sim.worlds import make_world

    world: Any = make_world("lift", images=True)
    model, data = world._model, world._data
    model.vis.global_.offwidth, model.vis.global_.offheight = WIDTH, HEIGHT
    options: Any = mujoco.MjvOption()  # pyright: ignore[reportAttributeAccessIssue]
    options.geomgroup[0] = 0  # robosuite keeps collision shapes there
    expert, rng = make_expert("lift"), np.random.default_rng(0)
    pictures = {name: np.empty((steps, HEIGHT, WIDTH, 3), np.uint8) for name in CAMERAS}
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        observation = world.reset(0)
        expert.reset(rng)
        for i in range(steps):
            observation = world.step(expert.act(observation).astype(np.float32)).observation
            for name, camera in CAMERAS.items():
                renderer.update_scene(data, camera, options)
                pictures[name][i] = renderer.render()
    for name, drawn in pictures.items():
        np.save(folder / f"{name}.npy", drawn)


def picture_number(sample: int, pictures: int) -> int:
    """The pictures are shown forwards and backwards, so that nothing jumps."""
    at = sample % (2 * pictures - 2)
    return min(at, 2 * pictures - 2 - at)


def publish(handle: RingHandle, name: str, folder: Path, seconds: int, begin_ns: Synchronized[int]) -> None:
    """A device or the control loop: everything it publishes holds its number."""
    pictures = np.load(folder / f"{name}.npy") if name in CAMERAS else None
    fields = {field: shape for field, (_, shape) in handle.fields.items()}
    ring = Ring.attach(handle)
    while not begin_ns.value:
        time.sleep(0.001)
    for i in range(round(RATES[name] * seconds)):
        due = begin_ns.value + i * period_ns(RATES[name])
        wait_until_ns(due)
        if name == "steps":
            values = {field: np.full(shape, i, np.float32) for field, shape in fields.items() if field != "time_ns"}
            ring.publish({"time_ns": due, **values})
        else:
            value = np.full(fields["value"], i) if pictures is None else pictures[picture_number(i, len(pictures))]
            ring.publish({"capture_ns": due, "received_ns": now_ns(), "value": value})


@contextmanager
def rig(folder: Path, seconds: int) -> Iterator[tuple[dict[str, Ring], Synchronized[int], list[Any]]]:
    """The rings, the instant at which all begin to publish (set it), and the processes."""
    context = multiprocessing.get_context("spawn")
    begin_ns = context.Value("q", 0)
    with ExitStack() as stack:
        rings = {
            name: stack.enter_context(
                Ring.create(step_fields(SCHEMA) if name == "steps" else sample_fields(SCHEMA.streams[name]), slots)
            )
            for name, slots in SLOTS.items()
        }
        processes = [
            context.Process(target=publish, args=(ring.handle, name, folder, seconds, begin_ns), daemon=True)
            for name, ring in rings.items()
        ]
        for process in processes:
            process.start()
        time.sleep(3)  # they load their pictures
        yield rings, begin_ns, processes
        for process in processes:
            process.join()


def ours(folder: Path, seconds: int) -> dict[str, Any]:
    path = folder / "ours.zarr"
    DatasetWriter.create(path, SCHEMA).close()
    with rig(folder, seconds) as (rings, begin_ns, processes):
        handles = {name: ring.handle for name, ring in rings.items()}
        with RecorderProcess(path, handles.pop("steps"), handles) as recorder:
            recorder.start(task="lift the cube")
            before_s = cpu_s(recorder.pid)
            begin_ns.value = begin = now_ns()
            for process in processes:
                process.join()
            recording_s = cpu_s(recorder.pid) - before_s
            ended = now_ns()
            recorder.save(success=True)
            saving_s = (now_ns() - ended) / 1e9
            used_s = cpu_s(recorder.pid) - before_s
            status = recorder.status()
    check(folder, path, begin, seconds)
    return {
        "recorder": "robolearn",
        "seconds": seconds,
        "cores": used_s / seconds,
        "cpu_s_while_recording": recording_s,
        "cpu_s": used_s,
        "s_until_saved": saving_s,
        **kept({name: status.counts[name].taken for name in NATIVE}, seconds),
        "lost": sum(count.lost for count in status.counts.values()),
        "refused": sum(count.refused for count in status.counts.values()),
        "mb": size_mb(path),
    }


def check(folder: Path, path: Path, begin_ns: int, seconds: int) -> None:
    """Everything that was published is there, at its time, and each picture is the one published then."""
    dataset = Dataset.open(path)
    rows = np.arange(round(STEP_HZ * seconds))
    times = dataset.times()
    assert times is not None
    np.testing.assert_array_equal(times, begin_ns + rows * period_ns(STEP_HZ))
    for name in ACTION_STAGES:
        assert dataset.valid(name).all(), name
        np.testing.assert_array_equal(dataset.read(name)[:, -1], rows)
    for name, rate in NATIVE.items():
        samples = dataset.samples(name, 0)
        numbers = np.arange(round(rate * seconds))
        np.testing.assert_array_equal(samples.time, begin_ns + numbers * period_ns(rate))
        if name not in CAMERAS:
            np.testing.assert_array_equal(np.asarray(dataset.array(name)[:])[:, -1], numbers)
            continue
        drawn = np.load(folder / f"{name}.npy", mmap_mode="r")
        for i in range(0, len(numbers), 37):
            found, meant = dataset.array(name)[i], drawn[picture_number(i, len(drawn))]
            assert np.square(np.asarray(found, float) - meant).mean() < 6, (name, i)


def lerobots_way(folder: Path, seconds: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with rig(folder, seconds) as (rings, begin_ns, _):
        mine, theirs = context.Pipe()
        handles = {name: ring.handle for name, ring in rings.items()}
        process = context.Process(target=record_as_lerobot, args=(handles, folder / "lerobot", seconds, theirs))
        process.start()
        assert mine.recv() == "ready"
        begin_ns.value = now_ns()
        mine.send(begin_ns.value)
        measured = mine.recv()
        process.join()
    return {
        "recorder": "LeRobot's way",
        "seconds": seconds,
        "cores": measured["cpu_s"] / seconds,
        **{key: measured[key] for key in ("cpu_s_while_recording", "cpu_s", "s_until_saved")},
        **kept(measured["kept"], seconds),
        "frames_waiting_at_end": measured["frames_waiting_at_end"],
        "mb": size_mb(folder / "lerobot"),
    }


def record_as_lerobot(handles: Mapping[str, RingHandle], folder: Path, seconds: int, pipe: Connection) -> None:
    """In a process of its own; sends what it used and kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rings = {name: Ring.attach(handle) for name, handle in handles.items()}
    waiting: queue.Queue[tuple[np.ndarray, Path] | None] = queue.Queue()

    def write_pictures() -> None:
        while (item := waiting.get()) is not None:
            Image.fromarray(item[0]).save(item[1], compress_level=1)
            waiting.task_done()
        waiting.task_done()

    threads = [threading.Thread(target=write_pictures) for _ in range(4 * len(CAMERAS))]
    for thread in threads:
        thread.start()
    for name in CAMERAS:
        (folder / "images" / name).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    taken: dict[str, set[int]] = {name: set() for name in NATIVE}
    fps = 30
    pipe.send("ready")
    begin_ns = pipe.recv()
    while not all(ring.count for ring in rings.values()):
        time.sleep(0.001)
    began = time.process_time()
    for i in range(fps * seconds):
        wait_until_ns(begin_ns + (i + 1) * period_ns(fps) - period_ns(fps) // 2)  # half a period after each frame
        row: dict[str, Any] = {"frame_index": i, "timestamp": i / fps}
        for name, ring in rings.items():
            newest = ring.newest()
            assert newest is not None
            index, record = newest
            if name in CAMERAS:
                waiting.put((record["value"], folder / "images" / name / f"frame-{i:06d}.png"))
            else:
                row[name] = np.array(record["action" if name == "steps" else "value"])
            if name in taken:
                taken[name].add(index)
        rows.append(row)
    ended, backlog = time.monotonic(), waiting.qsize()
    recording_s = time.process_time() - began
    for _ in threads:
        waiting.put(None)
    waiting.join()
    for name in CAMERAS:
        encode_as_lerobot(folder / "images" / name, folder / f"{name}.mp4", fps)
    columns = {key: [np.ravel(row[key]).tolist() for row in rows] for key in rows[0]}
    pq.write_table(pa.table(columns), folder / "episode.parquet")
    pipe.send(
        {
            "cpu_s_while_recording": recording_s,
            "cpu_s": time.process_time() - began,
            "s_until_saved": time.monotonic() - ended,
            "kept": {name: len(found) for name, found in taken.items()},
            "frames_waiting_at_end": backlog,
        }
    )


def encode_as_lerobot(pictures: Path, video: Path, fps: int) -> None:
    import av
    from PIL import Image

    os.environ["SVT_LOG"] = "1"  # errors only
    with av.open(str(video), "w") as output:
        stream = output.add_stream("libsvtav1", fps, options={"g": "2", "crf": "30", "preset": "12"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for path in sorted(pictures.iterdir()):
            with Image.open(path) as picture:
                output.mux(stream.encode(av.VideoFrame.from_image(picture.convert("RGB"))))
            path.unlink()
        output.mux(stream.encode())


def kept(found: Mapping[str, int], seconds: int) -> dict[str, int]:
    """How many frames, and samples of state and wrench, were published and are not in the recording."""
    missing = {name: round(rate * seconds) - found[name] for name, rate in NATIVE.items()}
    return {
        "frames_missing": sum(missing[name] for name in CAMERAS),
        "frames": round(30 * seconds) * len(CAMERAS),
        "samples_missing": missing["state"] + missing["wrench"],
        "samples": round(1500 * seconds),
    }


def cpu_s(pid: int) -> float:
    """CPU time of a process, all its threads, in user and kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
