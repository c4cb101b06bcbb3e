"""How late a control loop is while a policy infers and three cameras run: the servo process beside a single thread.

    python tests/benchmarks/runtime_jitter.py                    # 8 rows of 30 s: about 6 minutes
    python tests/benchmarks/runtime_jitter.py --seconds 5 --hz 500 --out none

Both sides drive the same simulated arm, with the same policy (of pictures and state, about 1 M parameters, on one torch
thread) and the same three cameras (H.264 files, 320 x 240 at 30 Hz), one after the other in the same run.

- servo_process: what `robolearn deploy` runs. Servo loop, policy and each camera have a process of their own.
- single_thread: LeRobot's pattern. One Python process; a thread for each camera keeps its newest picture; the loop
  reads the arm, takes the pictures (without waiting for a new one, which is kinder than the original), infers when the
  last chunk is used up, sends the action, and sleeps for what is left of the period. A chunk lasts as long as with the
  servo process, 8 actions of 50 ms, so that both infer about equally often.

Lateness: of every deadline, from its instant to the beginning of the tick that served it. A tick that is 20 ms late at
500 Hz serves ten deadlines late. The servo process's deadlines lie on a grid; those of the single thread are counted
from the beginning of the tick before, so that its drift is not held against it. `missed`: deadlines that passed while
the loop was still at work. `fifo`: with SCHED_FIFO and locked memory, where the machine permits it.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from results import write_results

sys.path.insert(0, str(Path(__file__).parents[1]))
from servo_bench import HORIZON, PERIOD_NS, ServoBench, servo_bench

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_deploy import realtime
from robolearn_deploy.inference import Request
from robolearn_deploy.local_policy import LocalPolicy
from robolearn_deploy.policy_process import PolicyOptions, policy_process
from robolearn_deploy.rig_senses import SESSION_FIELDS, RigHandles, RigSenses
from robolearn_deploy.worker import StartError, Worker, wait_ready
from robolearn_hardware.cameras.process import CameraProcess
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Camera, DeviceError
from robolearn_hardware.rig import Rig, load_rig
from robolearn_hardware.ring import Ring

CAMERAS = ("front", "side", "wrist")
SIZE, CAMERA_HZ = (240, 320), 30
CONTROL_HZ = 1e9 / PERIOD_NS
TA = 8
SETTLE_S = 1.0
"""Not measured, after everything has started."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each row")
    parser.add_argument("--hz", type=float, nargs="+", default=[500.0, 1000.0])
    parser.add_argument("--patterns", nargs="+", default=["servo_process", "single_thread"])
    parser.add_argument("--out", default="runtime_jitter", help="name of the result file; none: only print")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        video = write_video(Path(folder) / "scene.mp4")
        print(
            f"{'pattern':14} {'Hz':>5} {'fifo':>5} {'p50':>8} {'p99':>8} {'p99.9':>8} {'max':>8} ms  missed (of)"
            "        work p50, p99   inferences  load",
            flush=True,
        )
        for hz in options.hz:
            rig = write_rig(Path(folder) / f"rig{hz:g}.yaml", video, hz)
            with servo_bench(rig, rate_hz=hz) as bench:  # which vector the arm has
                spec, start = spec_of(bench), bench.servo.start
            checkpoint = write_policy(Path(folder) / f"checkpoint{hz:g}", spec, start)
            for fifo in (True, False):
                for pattern in options.patterns:
                    measure = {"servo_process": servo_process, "single_thread": single_thread}[pattern]
                    measured = patiently(measure, rig, checkpoint, spec, hz, fifo, options.seconds)
                    rows.append(row(pattern, hz, fifo, measured))
                    show(rows[-1])
    if options.out != "none":
        print(
            write_results(options.out, rows, seconds=options.seconds, cameras=len(CAMERAS), kernel=os.uname().version)
        )


def patiently(measure: Callable[..., Measured], *arguments: Any) -> Measured:
    """On a machine that is busy with other things, devices may not open in time."""
    for _ in range(4):
        try:
            return measure(*arguments)
        except (DeviceError, StartError) as error:
            print(f"once more, because: {error}", flush=True)
    return measure(*arguments)


# What both sides share.


def write_video(path: Path, seconds: int = 4) -> Path:
    """A moving pattern with some grain, as a camera sees it."""
    import av

    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0]))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=CAMERA_HZ)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for i in range(seconds * CAMERA_HZ):
            wave = np.stack([np.sin((x + k * 3 * i) / 17) + np.cos((y - 2 * i) / 23) for k in (1, 2, 3)], -1)
            picture = 128 + 50 * wave + rng.normal(0, 6, wave.shape)
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_rig(path: Path, video: Path, hz: float) -> Rig:
    arm = f"arms:\n  arm: {{kind: simulated, model: so101, plant: first_order, rate_hz: {hz:g}}}\n"
    cameras = "".join(f"  {name}: {{kind: video, path: {video}}}\n" for name in CAMERAS)
    path.write_text(f"{arm}cameras:\n{cameras}")
    return load_rig(path)


def spec_of(bench: ServoBench) -> PolicySpec:
    observation = {"state": bench.layout.state(bench.servo.rate_hz)}
    for name in CAMERAS:
        observation[name] = Stream((*SIZE, 3), "uint8", "image", rate_hz=CAMERA_HZ)
    return PolicySpec(observation, bench.layout.action(), CONTROL_HZ, 2, HORIZON, TA)


def write_policy(folder: Path, spec: PolicySpec, start: np.ndarray) -> Path:
    """Untrained; its actions are about where the arm starts."""
    import torch

    from robolearn.policies.checkpoint import save_policy
    from robolearn.policies.config import PolicyConfig
    from robolearn.policies.encoders.observation import EncoderConfig
    from robolearn.policies.policy import Policy
    from robolearn.policies.trunks.unet1d import UNet1dConfig
    from robolearn_data.statistics import StreamStatistics

    low, high = start - 0.05, start + 0.05
    values = StreamStatistics(2, low, high, start, np.full(len(start), 0.05), low, high)
    torch.manual_seed(0)
    config = PolicyConfig(trunk=UNet1dConfig(widths=(24, 48)), encoder=EncoderConfig(image_width=12))
    policy = Policy(spec, {"state": values, "action": values}, config)
    print(f"policy of {sum(p.numel() for p in policy.parameters()) / 1e6:.2f} M parameters", flush=True)
    save_policy(policy, folder)
    return folder


@dataclass(frozen=True, eq=False)
class Measured:
    """Of each tick (n,), int64 ns."""

    due: np.ndarray
    """The newest deadline that it serves."""
    following: np.ndarray
    """The deadline after that, from which the next tick's are counted."""
    woke: np.ndarray
    done: np.ndarray
    inferences: int


def row(pattern: str, hz: float, fifo: bool, m: Measured) -> dict[str, Any]:
    period = round(1e9 / hz)
    served = (m.due[1:] - m.following[:-1]) // period + 1
    late = (m.woke - m.due)[1:]
    lateness = np.concatenate([late[i] + period * np.arange(n) for i, n in enumerate(served.tolist())])
    overrun = m.done - m.following
    missed = np.where(overrun > 0, 1 + overrun // period, 0).sum()
    p50, p99, p999, most = np.percentile(lateness, [50, 99, 99.9, 100]) / 1e6
    work = np.percentile(m.done - m.woke, [50, 99]) / 1e6
    return {
        "pattern": pattern,
        "hz": hz,
        "fifo": fifo,
        "p50_ms": round(float(p50), 4),
        "p99_ms": round(float(p99), 4),
        "p999_ms": round(float(p999), 4),
        "max_ms": round(float(most), 3),
        "missed": int(missed),
        "deadlines": len(lateness),
        "work_p50_ms": round(float(work[0]), 4),
        "work_p99_ms": round(float(work[1]), 4),
        "inferences": m.inferences,
        "load": round(os.getloadavg()[0], 1),
    }


def show(r: dict[str, Any]) -> None:
    print(
        f"{r['pattern']:14} {r['hz']:5g} {'yes' if r['fifo'] else 'no':>5} {r['p50_ms']:8.3f} {r['p99_ms']:8.3f} "
        f"{r['p999_ms']:8.3f} {r['max_ms']:8.2f}     {r['missed']:6} ({r['deadlines']})  "
        f"{r['work_p50_ms']:7.3f} {r['work_p99_ms']:8.3f}   {r['inferences']:8}  {r['load']:4.1f}",
        flush=True,
    )


# The servo process.


def servo_process(rig: Rig, checkpoint: Path, spec: PolicySpec, hz: float, fifo: bool, seconds: float) -> Measured:
    with ExitStack() as stack:
        cameras = {name: CameraProcess(name, config) for name, config in rig.cameras.items()}
        for camera in cameras.values():
            stack.callback(camera.close)
        for camera in cameras.values():
            camera.wait_ready(120.0)  # on a busy machine
        bench = stack.enter_context(servo_bench(rig, rate_hz=hz, fifo=fifo))
        session = stack.enter_context(Ring.create(SESSION_FIELDS, 4))
        streams = {"state": bench.state.handle, **{name: c.ring.handle for name, c in cameras.items()}}
        handles = RigHandles(streams, bench.chunks.handle, bench.ticks.handle, session.handle)
        attach = functools.partial(RigSenses, handles)
        make = functools.partial(LocalPolicy, checkpoint)
        worker = Worker("policy", policy_process, attach, make, PolicyOptions(spec, "naive", TA))
        try:
            with beating(bench):
                wait_ready([worker], 120.0, lambda: None)
                session.publish({"episode": 0, "stop": 0})
                worker.release()
                time.sleep(SETTLE_S)
                if bench.servo.granted.fifo != fifo:
                    print("warning: SCHED_FIFO is not permitted here", flush=True)
                ticks = drained(bench.ticks, seconds)
                asked = bench.chunks.count
            session.publish({"episode": 0, "stop": 1})
        finally:
            worker.stop(10.0)
    return Measured(ticks["due_ns"], ticks["due_ns"] + round(1e9 / hz), ticks["woke_ns"], ticks["done_ns"], asked)


@contextmanager
def beating(bench: ServoBench) -> Iterator[None]:
    end = threading.Event()

    def beat() -> None:
        while not end.wait(0.05):
            bench.keep_beating()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def drained(ring: Ring, seconds: float) -> np.ndarray:
    following, found, end = ring.count, [], time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        records, after = ring.drain(following)
        if after - following != len(records):
            raise RuntimeError("ticks were lost to this benchmark: the machine is overloaded")
        following = after
        found.append(records)
    return np.concatenate(found)


# One thread.


def single_thread(rig: Rig, checkpoint: Path, spec: PolicySpec, hz: float, fifo: bool, seconds: float) -> Measured:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_single_thread, args=(rig, checkpoint, spec, hz, fifo, seconds, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _single_thread(
    rig: Rig, checkpoint: Path, spec: PolicySpec, hz: float, fifo: bool, seconds: float, pipe: Any
) -> None:
    policy = LocalPolicy(checkpoint)
    arm = rig.open_arm("arm")
    arm.connect()
    pictures: dict[str, np.ndarray] = {}
    cameras = [rig.cameras[name].open(name) for name in CAMERAS]
    end = threading.Event()
    for name, camera in zip(CAMERAS, cameras, strict=True):
        camera.connect()
        pictures[name] = camera.read().colour
        threading.Thread(target=_keep_newest, args=(camera, name, pictures, end), daemon=True).start()
    low, high = arm.info.limits.low, arm.info.limits.high
    hold = round(hz / CONTROL_HZ)  # ticks of an action
    past: list[dict[str, np.ndarray]] = []
    chunk, step, asked = np.zeros((0, 6)), 0, 0
    blank = {name: np.zeros((2, *s.shape), s.dtype) for name, s in spec.observation.items()}
    for _ in range(3):  # warm-up
        list(policy.infer(Request(0, now_ns(), blank)))
    if fifo and not realtime.ask().fifo:
        print("warning: SCHED_FIFO is not permitted here", flush=True)
    period, ticks = round(1e9 / hz), []
    start = began = now_ns()
    while began - start < (seconds + SETTLE_S) * 1e9:
        last, began = began, now_ns()
        state = arm.state()
        observation = {"state": np.append(state.positions, state.gripper).astype(np.float32), **pictures}
        if not step % hold:
            past = [*past[-1:], observation]
        if step % (TA * hold) == 0:
            window = {name: np.stack([past[0][name], past[-1][name]]) for name in spec.observation}
            *_, reply = policy.infer(Request(asked, began, window))
            chunk, asked = reply.actions[spec.start :], asked + 1
        action = chunk[step % (TA * hold) // hold]
        arm.command(np.clip(action[:-1], low, high), float(np.clip(action[-1], 0, 1)))
        step += 1
        ended = now_ns()
        if began - start > SETTLE_S * 1e9:
            due = began - max(began - last, 0) % period  # of the deadlines since the tick before, one period apart
            ticks.append((due, began + period, began, ended))
        time.sleep(max(0.0, 1 / hz - (ended - began) / 1e9))
    end.set()
    for camera in cameras:
        camera.close()
    arm.close()
    due, following, woke, done = np.array(ticks).T
    pipe.send(Measured(due, following, woke, done, asked))


def _keep_newest(camera: Camera, name: str, pictures: dict[str, np.ndarray], end: threading.Event) -> None:
    while not end.is_set():
        pictures[name] = camera.read().colour


if __name__ == "__main__":
    main()
