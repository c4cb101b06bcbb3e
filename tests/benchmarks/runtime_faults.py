"""How soon the arm rests when something breaks: processes of a running robot stopped, killed, broken and starved.

    python tests/benchmarks/runtime_faults.py                          # 1,000 trials, two at a time: about an hour
    python tests/benchmarks/runtime_faults.py --trials 4 --faults "policy SIGKILL" "camera exception" --out none

Each trial is a run as of `robolearn deploy` on a simulated SO-101: servo process at 100 Hz, a policy at 20 Hz that
swings all joints at up to 1 rad/s, and, where the fault is theirs, a camera that the policy sees through, a recorder, a
policy server and its client, a fast policy, or a person's leader arm. While the arm moves, at a random instant, comes
the fault:

- SIGSTOP: the process is there and does nothing. SIGKILL: it is gone, as after the kernel's out-of-memory killer.
- out of memory: its address space may grow no more (RLIMIT_AS), so that the next allocation fails wherever it is.
- exception: the policy, the server's policy or the camera's driver raises; the recorder's disk takes no more bytes.

Faults that can be mended are, and the same run has several of them, one after the other. Then the record of the servo
loop is looked at, all its ticks. rest_ms: from the fault to the first tick whose setpoint is at rest and that no motion
follows. stated_ms: the most that this may take (``stall.stated_times_s``). violations: ticks whose setpoints,
differentiated, break a limit on velocity, acceleration or jerk, and trials that took longer than stated.

What has been tried is appended to runs/bench/faults/trials.jsonl, and a second start goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))
from rig_fakes import spec_of
from rig_run import START_S, Announcing, RunProcess, start

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_deploy.fast import STEPS, FollowChunk
from robolearn_deploy.inference import Reply, Request
from robolearn_deploy.limiter import Limiter
from robolearn_deploy.operator import Command
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.rig_runtime import run_rig
from robolearn_deploy.rig_session import lives
from robolearn_deploy.stall import State, stated_times_s
from robolearn_deploy.wire.client import RemotePolicy
from robolearn_deploy.wire.server import ServerOptions, serving
from robolearn_hardware.cameras.mjpeg import MjpegConfig
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Camera, Frame, Intent
from robolearn_hardware.rig import Rig, with_twins
from robolearn_hardware.simulated import READY, SimulatedConfig
from robolearn_hardware.twins.host import Twins

ARM = SimulatedConfig("so101", plant="first_order")
NAMES = ("joint1", "joint2", "joint3", "joint4", "joint5", "gripper")
SERVO_HZ, FAST_HZ = 100.0, 100.0
AMPLITUDE_RAD, SWING_HZ = 0.4, 0.4
ALLOCATED_BYTES = 64 * 2**20
"""What an inference needs for a moment."""
CAMERA = MjpegConfig("twin", width=320, height=240, rate_hz=30.0)
FOLDER = Path(__file__).parents[2] / "runs/bench/faults"
QUIET_S = 0.4
"""It rests when it has been at rest for so long."""


@dataclass(frozen=True)
class Fault:
    process: str
    """A name of ``stated_times_s``."""
    how: str
    """"SIGSTOP", "SIGKILL", "out of memory", "exception"."""

    @property
    def name(self) -> str:
        return f"{self.process} {self.how}"

    @property
    def can_be_mended(self) -> bool:
        return self.how == "SIGSTOP" or self.process == "policy server"


KINDS = {
    **dict.fromkeys(
        ("policy", "policy server", "camera", "recorder"), ("SIGSTOP", "SIGKILL", "out of memory", "exception")
    ),
    **dict.fromkeys(("fast policy", "teleoperator", "supervisor"), ("SIGSTOP", "SIGKILL")),
}
FAULTS = {fault.name: fault for process, hows in KINDS.items() for fault in (Fault(process, how) for how in hows)}


# What runs in the processes that break.

_broken = False


def _listen() -> None:
    """From here on SIGUSR1 breaks this process's policy or driver, and SIGUSR2 mends it."""

    def hear(number: int, _: object) -> None:
        global _broken
        _broken = number == signal.SIGUSR1

    signal.signal(signal.SIGUSR1, hear)
    signal.signal(signal.SIGUSR2, hear)


def swing(time_ns: np.ndarray) -> np.ndarray:
    """(n,) -> (n, 6): where the policy and the person are, at instants of the machine's clock."""
    phase = 2 * np.pi * SWING_HZ * (time_ns % (1000 * 10**9)) / 1e9
    moves = np.array([AMPLITUDE_RAD] * 5 + [0.0])
    return np.array([*READY["so101"], 0.5]) + moves * np.sin(phase)[:, None]


class Swing:
    """A policy: swings about the pose in which the arm begins."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec

    def infer(self, request: Request) -> Iterator[Reply]:
        if _broken:
            raise RuntimeError("the kernel crashed")
        np.empty(ALLOCATED_BYTES, np.uint8)
        time.sleep(0.02)
        steps = np.arange(self.spec.horizon, dtype=np.int64) - self.spec.start
        actions = swing(request.capture_ns + steps * round(1e9 / self.spec.rate_hz))
        yield Reply(actions.astype(np.float32), self.spec.horizon)

    def close(self) -> None: ...


def make_swing(spec: PolicySpec) -> Swing:
    _listen()
    return Swing(spec)


@dataclass(frozen=True)
class BreakableCamera:
    """An MJPEG camera whose driver has a bug."""

    config: MjpegConfig

    def open(self, name: str) -> Camera:
        _listen()
        camera = self.config.open(name)
        read = camera.read

        def read_or_break() -> Frame:
            if _broken:
                raise ZeroDivisionError("a bug of the driver")
            return read()

        camera.read = read_or_break  # type: ignore[method-assign]
        return camera

    def with_twin(self, name: str, twins: Twins) -> Self:
        return dataclasses.replace(self, config=self.config.with_twin(name, twins))


@dataclass(frozen=True)
class Leader:
    """A leader arm that a person swings all the time."""

    def open(self, name: str) -> Leader:
        return self

    def with_twin(self, name: str, twins: Twins) -> Self:
        return self

    def connect(self) -> None: ...

    def read(self) -> Intent:
        now = now_ns()
        return Intent(now, True, swing(np.array([now]))[0, :5])

    def close(self) -> None: ...


# A run, in processes of its own.


def spec_for(process: str) -> PolicySpec:
    shape = (CAMERA.height, CAMERA.width, 3)
    return spec_of(
        NAMES, camera=Stream(shape, "uint8", "image", rate_hz=CAMERA.rate_hz) if process == "camera" else None
    )


def _run(fault: Fault, url: str, folder: Path, pipe: Connection) -> None:
    """The body of the process that a terminal would have: the supervisor."""
    process = fault.process
    if fault.how == "out of memory":  # of malloc, for its children: it gives back what is freed, a picture say
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    spec = spec_for(process)
    rig = Rig(
        "faults",
        arms={"arm": ARM},
        cameras={"front": BreakableCamera(CAMERA)} if process in ("camera", "recorder") else {},
        teleoperators={"leader": Leader()} if process == "teleoperator" else {},
    )
    options = RigOptions(
        3600.0,
        out=folder / "run.zarr" if process == "recorder" else None,
        fast=FollowChunk(FAST_HZ) if process == "fast policy" else None,
        teleoperators={"leader": "arm"} if process == "teleoperator" else {},
    )
    make = functools.partial(RemotePolicy, url, spec=spec) if url else functools.partial(make_swing, spec)

    with with_twins(rig) as (reachable, _):
        run_rig(reachable, make, spec, options, Announcing(pipe))


def _serve(port: int, pipe: Connection) -> None:
    """The body of the policy server's process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _listen()
    with serving(functools.partial(Swing, spec_for("policy server")), ServerOptions(port=port)) as server:
        pipe.send(server.port)
        while True:
            time.sleep(1.0)


class Running(RunProcess):
    """A run in which one process can be broken."""

    def __init__(self, fault: Fault, folder: Path, stack: ExitStack) -> None:
        self._fault, self._stack = fault, stack
        self._port = self._server_pid = 0
        if fault.process == "policy server":
            self._start_server()
        url = f"ws://127.0.0.1:{self._port}" if self._port else ""
        super().__init__(stack, folder, _run, fault, url, folder)

    def until_moving(self) -> None:
        """Until the policy, or where there is one the person, has moved the arm for a moment."""
        teleop = self._fault.process == "teleoperator"
        wanted = State.TELEOP if teleop else State.RUNNING

        def moves(newest: np.ndarray) -> bool:
            return bool((newest["state"] == wanted).all() and not newest["at_rest"].any())

        def take_over() -> None:
            if teleop and not (self.ticks()["state"][-1:] == wanted).any():
                self.operator.tell(Command.TAKE_OVER)

        self.until(moves, 20, "the arm moves", take_over)

    def until_rest(self, at_most_s: float) -> None:
        """Until the arm has rested for a moment, the servo process has ended, or the time is over."""
        rests = (State.STOPPED, State.TELEOP)
        end = time.monotonic() + at_most_s
        while time.monotonic() < end and lives(self.pids["servo"]):
            self.wait(0.05)
            newest = self.ticks()[-round(QUIET_S * SERVO_HZ) :]
            if newest["at_rest"].all() and np.isin(newest["state"], rests).all():
                return
        self.wait(0.05)

    def break_(self) -> None:
        fault, pid = self._fault, self._pid()
        if fault.how == "out of memory":
            resource.prlimit(pid, resource.RLIMIT_AS, (2**20, resource.RLIM_INFINITY))
        elif fault.how != "exception":
            os.kill(pid, getattr(signal, fault.how))
        elif fault.process == "recorder":
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        else:
            os.kill(pid, signal.SIGUSR1)

    def mend(self) -> None:
        fault, pid = self._fault, self._pid()
        if fault.how == "out of memory":
            resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        elif fault.how == "SIGKILL":
            self._start_server()
        else:
            os.kill(pid, signal.SIGCONT if fault.how == "SIGSTOP" else signal.SIGUSR2)

    def _pid(self) -> int:
        process = self._fault.process
        if process == "policy server":
            return self._server_pid
        return self.pids[{"camera": "camera front", "teleoperator": "leader"}.get(process, process)]

    def _start_server(self) -> None:
        process, pipe = start(self._stack, _serve, self._port)
        if not pipe.poll(START_S):
            raise TimeoutError(f"the policy server has not started after {START_S:g} s")
        self._port, self._server_pid = pipe.recv(), process.pid


# Trials.


def limiter() -> Limiter:
    return Limiter(ARM.open("arm").info, SERVO_HZ)


def stated_ms(fault: Fault) -> float:
    spec = spec_for(fault.process)
    plan_s = (spec.horizon - spec.start) / spec.rate_hz
    every = stated_times_s(limiter().rest_time_s, 1 / SERVO_HZ, plan_s=plan_s, fast_plan_s=STEPS / FAST_HZ)
    return 1000 * every[fault.process]


def rest_ms(ticks: np.ndarray, fault_ns: int) -> float:
    """From ``fault_ns`` to the first tick at rest that no motion follows; infinite where there is none."""
    after = ticks[ticks["done_ns"] >= fault_ns]
    moving = np.flatnonzero(after["at_rest"] == 0)
    first = moving[-1] + 1 if len(moving) else 0
    return (int(after["done_ns"][first]) - fault_ns) / 1e6 if first < len(after) else math.inf


def breaches(positions: np.ndarray, limits: Limiter) -> int:
    """Setpoints (n, J) rad, one for each tick, of which a difference breaks a limit. They come as float32."""
    dt, rounding = limits.dt_s, np.abs(positions).max(initial=0.0) * 2.0**-24
    broken = np.zeros(len(positions), bool)
    for order, most in ((1, limits.velocity), (2, limits.acceleration), (3, limits.jerk)):
        rates = np.abs(np.diff(positions, order, axis=0)) / dt**order
        broken[order:] |= (rates > 1.0001 * most + 2**order * rounding / dt**order).any(axis=1)
    return int(broken.sum())


def trials(name: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Of one fault, in one run."""
    fault, rows, chance = FAULTS[name], [], random.Random(seed)
    stated, limits = stated_ms(fault), limiter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, ExitStack() as stack:
        run = Running(fault, Path(folder), stack)
        seen = 0
        for trial in range(count):
            if trial:
                run.mend()
            run.until_moving()
            run.wait(chance.uniform(0.0, 1.0))
            fault_ns = now_ns()
            run.break_()
            run.until_rest(stated / 1000 + 5.0)
            ticks = run.ticks()
            took, since = rest_ms(ticks, fault_ns), max(0, seen - 3)
            seen = len(ticks)
            row = {
                "fault": name,
                "rest_ms": round(took, 2) if math.isfinite(took) else None,
                "stated_ms": round(stated, 1),
                "breaches": breaches(ticks["sent"][since:, : len(limits.velocity)].astype(np.float64), limits),
                "ticks": len(ticks) - since,
                "missed": int(ticks["missed"][since:].sum()),
                "load": round(os.getloadavg()[0], 1),
            }
            if not took <= stated:
                after = ticks[ticks["done_ns"] >= fault_ns]
                row["after"] = [
                    (round((int(t["done_ns"]) - fault_ns) / 1e6), int(t["state"]), int(t["at_rest"]))
                    for t in after[::5]
                ]
                row["log"] = run.log()
            rows.append(row)
        if fault.can_be_mended:
            run.mend()
        left = run.end()
        if left:
            rows[-1]["left_behind"] = left
    return rows


def summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    rest = [row["rest_ms"] if row["rest_ms"] is not None else math.inf for row in rows]
    late = sum(took > row["stated_ms"] for took, row in zip(rest, rows, strict=True))
    most = max(rest)
    return {
        "fault": name,
        "trials": len(rows),
        "violations": late + sum(row["breaches"] for row in rows),
        "rest_ms_p50": round(float(np.median(rest)), 1),
        "rest_ms_max": round(most, 1) if math.isfinite(most) else None,
        "stated_ms": rows[0]["stated_ms"],
        "ticks": sum(row["ticks"] for row in rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=-(-1000 // len(FAULTS)), help="of each fault")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--per-run", type=int, default=10, help="trials of one run, of faults that can be mended")
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--log", type=Path, default=FOLDER / "trials.jsonl")
    parser.add_argument("--out", default="runtime_faults", help="name of the result file; none: only print")
    options = parser.parse_args()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    options.log.touch()
    done = [json.loads(line) for line in options.log.read_text().splitlines()]
    had = Counter(row["fault"] for row in done)
    jobs = []
    for name in options.faults:
        missing, most = options.trials - had[name], options.per_run if FAULTS[name].can_be_mended else 1
        jobs += [(name, min(most, missing - begin), had[name] + begin) for begin in range(0, missing, most)]
    random.Random(0).shuffle(jobs)  # every fault at every time of day
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.parallel, context) as pool, options.log.open("a") as log:
        futures = {pool.submit(trials, *job): job for job in jobs}
        for number, future in enumerate(as_completed(futures)):
            try:
                rows = future.result()
            except (
                Exception
            ) as error:  # no trial, as where nothing starts on a busy machine: the next start tries again
                print(f"{number + 1}/{len(jobs)} {futures[future][0]}: {type(error).__name__}: {error}", flush=True)
                continue
            done += rows
            for row in rows:
                log.write(json.dumps(row) + "\n")
            log.flush()
            took = ", ".join(f"{row['rest_ms']}" for row in rows)
            print(f"{number + 1}/{len(jobs)} {rows[0]['fault']}: {took} of {rows[0]['stated_ms']} ms", flush=True)
    table = Table("fault", "trials", "violations", "rest p50", "rest max, ms", "stated, ms", "ticks")
    summaries = []
    for name in options.faults:
        rows = [row for row in done if row["fault"] == name]
        if rows:
            summaries.append(summary(name, rows))
            table.add_row(*map(str, summaries[-1].values()))
    Console(width=120).print(table)
    if options.out != "none":
        from results import write_results  # imports torch, which no process of a trial needs

        print(write_results(options.out, summaries, trials=sum(s["trials"] for s in summaries)))


if __name__ == "__main__":
    main()
