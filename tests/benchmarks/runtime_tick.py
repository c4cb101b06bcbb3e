"""What stands between a chunk and an arm, per tick of the servo loop: trajectory, limiter, stall contract.

    python tests/benchmarks/runtime_tick.py

"clip" stands beside them: what a loop without them does, a step that is no longer than the velocity limit allows.
"feasible": the policy's motion is within the limits; "catching up": it jumps every 0.3 s. Times are of one call, in CPU
time of its thread, so that what else the machine does is not in them.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn_deploy.chunks import Chunk
from robolearn_deploy.limiter import Limiter
from robolearn_deploy.selfdistance import SelfDistance
from robolearn_deploy.stall import Inputs, StallContract, Watch
from robolearn_deploy.trajectory import Spaces, Trajectory
from robolearn_hardware.devices import ArmInfo, Condition
from robolearn_hardware.kinematics import Workspace
from robolearn_hardware.limits import limits_of
from robolearn_hardware.simulated import READY

MODELS = ("so101", "ur5e", "fr3")
RATE_HZ = 1000
TICK_NS = 10**9 // RATE_HZ
HORIZON, STEP_NS = 16, 50_000_000
WIDE = Workspace((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))  # looked at, and never left


def measured(part: str, model: str, call: Callable[[int], Any], ticks: int) -> dict[str, Any]:
    for k in range(200):
        call(k)
    took = np.empty(ticks)
    gc.disable()
    for k in range(ticks):
        began = time.thread_time_ns()
        call(200 + k)
        took[k] = time.thread_time_ns() - began
    gc.enable()
    p50, p99 = np.percentile(took, [50, 99]) / 1000
    return {"part": part, "model": model, "p50_us": round(float(p50), 1), "p99_us": round(float(p99), 1)}


def info(model: str) -> ArmInfo:
    limits = limits_of(model)
    return ArmInfo(model, model, tuple(f"joint {j}" for j in range(limits.joints)), limits, True, RATE_HZ)


def chunk(sequence: int, begin_ns: int, start: np.ndarray, jump: bool) -> Chunk:
    """A sine of 0.5 Hz; or random places."""
    times = begin_ns + np.arange(HORIZON, dtype=np.int64) * STEP_NS
    t = (times / 1e9)[:, None]
    actions = start + 0.1 * np.sin(np.pi * t + np.arange(len(start)))
    if jump:
        actions += 0.5 * np.random.default_rng(sequence).uniform(-1, 1, len(start))
    return Chunk(sequence, 0, begin_ns, times, actions, int(times[-1]) + STEP_NS)


def of(model: str, ticks: int) -> list[dict[str, Any]]:
    start = np.array(READY[model])
    joints = len(start)
    trajectory = Trajectory(Spaces(joints), HORIZON, STEP_NS)
    trajectory.begin(0, start)
    limits = limits_of(model)

    def clip(k: int) -> None:
        target = start + 0.1 * np.sin(k * 1e-3)
        step = limits.velocity / RATE_HZ
        np.clip(start + np.clip(target - start, -step, step), limits.low, limits.high)

    def offer(k: int) -> None:
        trajectory.offer(chunks[k], k * TICK_NS)

    chunks = [chunk(k, k * TICK_NS, start, False) for k in range(ticks + 200)]
    rows = [measured("clip", model, clip, ticks), measured("trajectory, a chunk", model, offer, ticks)]

    sequence = 10**6
    wide: dict[str, Any] = {"workspace": WIDE}
    for name, options, jump in (
        ("trajectory, a tick", None, False),
        ("limiter, feasible", {}, False),
        ("limiter, catching up", {}, True),
        ("limiter, feasible, workspace", wide, False),
        ("limiter, feasible, workspace and links", {**wide, "self_distance": SelfDistance(model)}, False),
        ("limiter, catching up, workspace and links", {**wide, "self_distance": SelfDistance(model)}, True),
    ):
        trajectory.begin(0, start)
        setpoints = []
        for k in range(ticks + 200):
            if k % 300 == 0:
                sequence += 1
                trajectory.offer(chunk(sequence, k * TICK_NS, start, jump), k * TICK_NS)
            setpoints.append([x.copy() for x in trajectory.at(k * TICK_NS)])
        if options is None:
            trajectory.begin(0, start)
            sequence += 1
            trajectory.offer(chunk(sequence, 0, start, False), 0)
            rows.append(measured(name, model, lambda k: trajectory.at((k % 700) * TICK_NS), ticks))
            continue
        limiter = Limiter(info(model), RATE_HZ, **options)
        limiter.begin(setpoints[0][0])
        rows.append(measured(name, model, lambda k, f=limiter.follow, s=setpoints: f(*s[k]), ticks))
    return rows


def contract(ticks: int) -> dict[str, Any]:
    names = ("policy", "camera", "recorder", "network", "supervisor")
    stall = StallContract([Watch(name, 100_000_000) for name in names])

    def tick(k: int) -> None:
        now = 10**9 + k * TICK_NS
        stall.tick(Inputs(now, now + 10**8, True, False, Condition.READY, [now] * len(names)))

    return measured("stall contract", "any", tick, ticks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ticks", type=int, default=20_000)
    ticks = parser.parse_args().ticks
    rows = [row for model in MODELS for row in of(model, ticks)] + [contract(ticks)]
    table = Table(title=f"one call, µs; a tick at {RATE_HZ} Hz has 1000")
    for column in ("part", "model", "p50_us", "p99_us"):
        table.add_column(column, justify="left" if column in ("part", "model") else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    print(write_results("runtime_tick", rows, rate_hz=RATE_HZ, ticks=ticks))


if __name__ == "__main__":
    main()
