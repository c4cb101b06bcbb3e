"""What the dashboard costs: CPU time of its process with three cameras, for none, one and five viewers.

    python tests/benchmarks/runtime_page.py [--seconds 15] [--out FOLDER]

Rings are filled as a rig fills them (500 ticks a second of 7 components, three 640 x 480 cameras at 30 Hz); viewers
confirm what they get as the page does, and look at every camera. Writes runtime_page.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/benchmarks")]

NAMES = ("joint1", "joint2", "joint3", "joint4", "joint5", "joint6", "gripper")
TICK_HZ, CAMERA_HZ, CHUNK_HZ, HORIZON = 500, 30, 5, 16
CAMERAS, PICTURE = ("front", "side", "wrist"), (480, 640, 3)


def fill(rendezvous: Any, rings: Mapping[str, Any], stop: Any) -> None:
    """Plays the rig, in a process of its own, until ``stop`` has a record."""
    from robolearn_deploy.channels import chunk_record
    from robolearn_deploy.chunks import Chunk
    from robolearn_deploy.servo_process import tick_fields
    from robolearn_deploy.stall import State
    from robolearn_hardware.clock import now_ns
    from robolearn_hardware.ring import Ring

    attached, ended = {name: Ring.attach(handle) for name, handle in rings.items()}, Ring.attach(stop)
    rng = np.random.default_rng(0)
    # A smooth picture with noise, which costs a JPEG encoder about what a scene does.
    shade = np.linspace(0, 200, PICTURE[1])[None, :, None] + rng.normal(0, 6, PICTURE)
    pictures = [np.clip(np.roll(shade, 40 * i, axis=1), 0, 255).astype(np.uint8) for i in range(8)]
    blank = {name: np.zeros(shape) if shape else 0 for name, (_, shape) in tick_fields(len(NAMES)).items()}
    rendezvous()
    began, n, period = now_ns(), 0, 1_000_000_000 // TICK_HZ
    while not ended.count:
        due = began + n * period
        time.sleep(max(0.0, (due - now_ns()) / 1e9))
        now, values = now_ns(), np.sin(n / TICK_HZ + np.arange(len(NAMES))).astype(np.float32)
        vectors = dict.fromkeys(("requested", "sent", "measured", "target"), values)
        if n % (TICK_HZ // CHUNK_HZ) == 0:
            sequence = n // (TICK_HZ // CHUNK_HZ)
            times = now + np.arange(HORIZON, dtype=np.int64) * 50_000_000
            chunk = Chunk(sequence, 0, now, times, np.tile(values, (HORIZON, 1)), int(times[-1]))
            rest = {"started_ns": now, "ended_ns": now, "expected_delay": 1, "execute": 4}
            attached["chunks"].publish({**chunk_record(chunk, HORIZON), **rest})
        state = {"state": int(State.RUNNING), "cause": b"the plan begins near the arm", "condition": 1}
        stamps = {"due_ns": due, "woke_ns": now, "done_ns": now, "chunk": n // (TICK_HZ // CHUNK_HZ)}
        attached["ticks"].publish({**blank, **state, **stamps, **vectors, "chunk_capture_ns": now})
        for i, camera in enumerate(CAMERAS):
            if n * CAMERA_HZ % TICK_HZ < CAMERA_HZ:
                picture = pictures[(n // 16 + i) % len(pictures)]
                attached[camera].publish({"capture_ns": now, "received_ns": now, "value": picture})
        n += 1


async def view(url: str, seconds: float) -> tuple[int, int]:
    """A viewer that looks at everything; how many messages of state and pictures it got."""
    from websockets.asyncio.client import connect

    origin: Any = url.rstrip("/")
    states = pictures = 0
    async with connect(
        url.replace("http", "ws") + "socket", origin=origin, compression=None, proxy=None, max_size=None
    ) as socket:
        await socket.send(json.dumps({"look": CAMERAS}))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = await asyncio.wait_for(socket.recv(), 10)
            if isinstance(message, bytes):
                pictures += 1
                await socket.send(json.dumps({"got": CAMERAS[message[0]]}))
            elif (found := json.loads(message))["kind"] == "state":
                states += 1
                await socket.send(json.dumps({"seen": found["n"]}))
    return states, pictures


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(viewers: int, seconds: float) -> dict[str, Any]:
    from robolearn_data.schema import Stream
    from robolearn_deploy.channels import chunk_fields
    from robolearn_deploy.dashboard.access import PageOptions, address, listen
    from robolearn_deploy.dashboard.rings import NOTE_FIELDS, PROGRESS_FIELDS, RigRings
    from robolearn_deploy.dashboard.server import run_page
    from robolearn_deploy.operator import COMMAND_FIELDS
    from robolearn_deploy.recorder import sample_fields
    from robolearn_deploy.rig_senses import SESSION_FIELDS
    from robolearn_deploy.rig_streams import INSTRUCTION_BYTES
    from robolearn_deploy.servo_process import tick_fields
    from robolearn_deploy.worker import Worker, wait_ready
    from robolearn_hardware.ring import Ring

    with ExitStack() as stack:
        camera = sample_fields(Stream(PICTURE, "uint8", "image", rate_hz=CAMERA_HZ))
        fields = {
            **dict.fromkeys(CAMERAS, camera),
            "ticks": tick_fields(len(NAMES)),
            "chunks": chunk_fields(Stream((len(NAMES),), "float32", "action", names=NAMES), HORIZON),
            "instruction": sample_fields(Stream((INSTRUCTION_BYTES,), "uint8", "text", rate_hz=1.0)),
            "commands": COMMAND_FIELDS,
            "notes": NOTE_FIELDS,
            "progress": PROGRESS_FIELDS,
            "session": SESSION_FIELDS,
        }
        slots = {"ticks": 4 * TICK_HZ, **dict.fromkeys(CAMERAS, 8)}
        rings = {name: stack.enter_context(Ring.create(f, slots.get(name, 64))) for name, f in fields.items()}
        handles = {name: ring.handle for name, ring in rings.items()}
        cameras = {name: handles[name] for name in CAMERAS}
        shown = RigRings(
            "rig",
            NAMES,
            ("rad",) * len(NAMES),
            TICK_HZ,
            cameras,
            handles["ticks"],
            handles["chunks"],
            handles["instruction"],
            handles["commands"],
            handles["notes"],
            handles["progress"],
            handles["session"],
            teleoperators=False,
        )
        options = PageOptions(port=0)
        with listen(options) as listening:
            url, page = address(listening, options), Worker("page", run_page, shown, options, listening)
        rig = Worker("rig", fill, handles, handles["session"])

        def stop() -> None:
            rings["session"].publish({"episode": 0, "stop": 1})
            for worker in (page, rig):
                worker.stop(10)

        stack.callback(stop)
        wait_ready([page, rig], 60, lambda: None)
        for worker in (page, rig):
            worker.release()

        async def watch() -> tuple[float, float, list[tuple[int, int]]]:
            watching = [asyncio.create_task(view(url, seconds + 2)) for _ in range(viewers)]
            await asyncio.sleep(2)
            used, began = cpu_s(page.pid), time.monotonic()
            await asyncio.sleep(seconds)
            return cpu_s(page.pid) - used, time.monotonic() - began, await asyncio.gather(*watching)

        used, took, got = asyncio.run(watch())
    return {
        "cameras": len(CAMERAS),
        "viewers": viewers,
        "cpu_percent": round(100 * used / took, 1),
        "states_hz": round(min((s for s, _ in got), default=0) / (seconds + 2), 1),
        "pictures_hz": round(min((p for _, p in got), default=0) / len(CAMERAS) / (seconds + 2), 1),
    }


def main() -> None:
    from results import RESULTS, write_results

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    print("viewers   CPU of one core   states/s   pictures/s of each of three cameras   (the slowest viewer)")
    for viewers in (0, 1, 5):
        rows.append(row := measure(viewers, options.seconds))
        print(f"{viewers:7d} {row['cpu_percent']:15.1f} % {row['states_hz']:10.1f} {row['pictures_hz']:12.1f}")
    print(write_results("runtime_page", rows, options.out))


if __name__ == "__main__":
    main()
