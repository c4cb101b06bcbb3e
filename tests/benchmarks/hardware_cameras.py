"""From the instant of a picture to shared memory, and what that costs: three cameras of 640x480 at 30 Hz at a time, and
the ring beside a pipe and a queue.

    python tests/benchmarks/hardware.py --only cameras

Cameras are twins, each a process of its own beside the camera's, so that a machine with few cores is busier than with
real cameras; their pictures state when they were taken, and what drawing them took (p50) is subtracted. Encoding is
not: a real camera encodes, too. cpu is that of the camera's process, in cores, without the twin's.

Frames of 0.92 MB go through ring, pipe and queue at 30 Hz from one process to another, which notes when it has a copy.
It looks every 0.5 ms for a new one in the ring, and waits in the others. cpu is of both processes together.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from robolearn_hardware.cameras.mjpeg import MjpegConfig
from robolearn_hardware.cameras.process import CameraProcess, open_cameras
from robolearn_hardware.cameras.realsense import RealSenseConfig
from robolearn_hardware.cameras.rtsp import RtspConfig
from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
from robolearn_hardware.registry import CameraConfig
from robolearn_hardware.ring import Ring
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.pictures import read_time

CAMERAS: dict[str, CameraConfig] = {
    "RealSense, colour": RealSenseConfig("twin", depth=False),
    "RealSense, colour and aligned depth": RealSenseConfig("twin"),
    "MJPEG over HTTP": MjpegConfig("twin"),
    "H.264 over RTSP": RtspConfig("twin"),
}
NAMES = ("left", "right", "wrist")
SHAPE = (480, 640, 3)
LOOK_NS = 500_000


def row(device: str, hz: float, latencies_ns: np.ndarray, cpu: float) -> dict[str, Any]:
    p50, p99 = np.percentile(latencies_ns, [50, 99]) / 1e6
    return {
        "device": device,
        "hz": round(hz, 1),
        "p50_ms": round(p50, 2),
        "p99_ms": round(p99, 2),
        "cpu": round(cpu, 3),
    }


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, s."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def three_cameras(kind: str, config: CameraConfig, seconds: float) -> dict[str, Any]:
    with Twins() as twins:
        configs = {name: config.with_twin(name, twins) for name in NAMES}
        with open_cameras(configs) as cameras:
            time.sleep(1)
            used = {name: cpu_s(camera.pid) for name, camera in cameras.items()}
            start = now_ns()
            latencies = watch(cameras, start + round(seconds * SECOND_NS))
            taken = (now_ns() - start) / SECOND_NS
            cpu = sum(cpu_s(camera.pid) - used[name] for name, camera in cameras.items()) / taken / len(NAMES)
        drawing = np.median(np.concatenate([twins[name].observe()["delays_ns"] for name in NAMES]))
    return row(f"3 cameras: {kind}", len(latencies) / taken / len(NAMES), latencies - drawing, cpu)


def watch(cameras: dict[str, CameraProcess], until_ns: int) -> np.ndarray:
    """From the time written in each picture to when it was seen in the ring, ns."""
    seen = {name: camera.ring.count for name, camera in cameras.items()}
    found = []
    while (now := now_ns()) < until_ns:
        for name, camera in cameras.items():
            while seen[name] < camera.ring.count:
                record = camera.ring.read(seen[name])
                seen[name] += 1
                if record is not None:
                    found.append(now - read_time(record["value"]))
        wait_until_ns(now + LOOK_NS)
    return np.array(found)


def through(name: str, frames: int) -> dict[str, Any]:
    """Frames from a process to this one."""
    context = multiprocessing.get_context("spawn")
    with channel(name, context) as (theirs, receive):
        sender = context.Process(target=send, args=(name, theirs, frames))
        sender.start()
        first = receive()
        mine, its = time.process_time(), cpu_s(sender.pid or 0)
        start, latencies = now_ns(), []
        for _ in range(frames - 1):
            sent_ns = receive()
            latencies.append(now_ns() - sent_ns)
        taken = (now_ns() - start) / SECOND_NS
        cpu = (time.process_time() - mine + cpu_s(sender.pid or 0) - its) / taken
        assert first < start
        sender.kill()
        sender.join()
    return row(f"0.92 MB between processes: {name}", (frames - 1) / taken, np.array(latencies), cpu)


@contextmanager
def channel(name: str, context: Any) -> Iterator[tuple[Any, Callable[[], int]]]:
    """The sender's end, and a function that waits for the next frame, copies it and returns when it was sent."""
    if name == "shared-memory ring":
        with Ring.create({"sent_ns": ("int64", ()), "value": ("uint8", SHAPE)}, 16) as ring:
            index = 0

            def look() -> int:
                nonlocal index
                while ring.count <= index:
                    wait_until_ns(now_ns() + LOOK_NS)
                record = ring.read(index)
                assert record is not None
                index += 1
                return int(record["sent_ns"])

            yield ring.handle, look
    elif name == "pipe":
        ours, theirs = context.Pipe()
        yield theirs, lambda: ours.recv()[0]
    else:
        queue = context.Queue(16)
        yield queue, lambda: queue.get()[0]


def send(name: str, end: Any, frames: int) -> None:
    picture = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    ring = Ring.attach(end) if name == "shared-memory ring" else None
    start = now_ns()
    for number in range(frames):
        wait_until_ns(start + number * SECOND_NS // 30)
        if ring is not None:
            ring.publish({"sent_ns": now_ns(), "value": picture})
        elif name == "pipe":
            end.send((now_ns(), picture))
        else:
            end.put((now_ns(), picture))
    time.sleep(60)  # until it is killed: what it used is read from outside


def rows(seconds: float = 15.0) -> list[dict[str, Any]]:
    found = [three_cameras(kind, config, seconds) for kind, config in CAMERAS.items()]
    return found + [through(name, round(30 * seconds)) for name in ("shared-memory ring", "pipe", "queue")]
