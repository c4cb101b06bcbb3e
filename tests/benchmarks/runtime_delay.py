"""Success, score, jerk and joins against delay for every chunk scheduler, in virtual time that never waits.

    python tests/benchmarks/runtime_delay_train.py all        # the policies, once (about 2 hours on one core)
    python tests/benchmarks/runtime_delay.py trace             # measure delays under load, once: 2 minutes in real time
    python tests/benchmarks/runtime_delay.py estimate          # CPU time of each cell, from a few episodes
    python tests/benchmarks/runtime_delay.py run --tasks pusht --schedulers naive rtc --delays 0 4 8 trace
    python tests/benchmarks/runtime_delay.py plot

A cell is one task, scheduler and delay: 200 episodes from seed 100000. One that is done is not run again unless its
checkpoint has changed, so that `run` can be stopped, repeated, and run in several processes on different parts.
Delay "trace" replays delays that were measured (runtime_delay_trace.json), each episode from another place in it.

All schedulers of a task share trunk, data and steps of training; rtc-trained and streaming need an objective of their
own. Between the observations of two chunks lie max(d, 8) steps, with ensemble max(d, 1).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from results import RESULTS, commit, write_results

from robolearn.cli.eval import rollout_of
from robolearn.cli.main import main as robolearn
from robolearn.evaluation import evaluate
from robolearn.policies.checkpoint import load_policy, resolve_checkpoint
from robolearn.policies.engines.compiled import EngineName, compile_policy
from robolearn_sim.worlds import make_world

RUNS = Path("runs/bench/delay")
CELLS = RUNS / "cells"
TRACE = RESULTS / "runtime_delay_trace.json"
EPISODES, SEED = 200, 100_000
TASKS = {"pusht": 32, "lift": 8}
"""Task -> worlds stepped together."""
VARIANTS = {
    "sync": "base",
    "naive": "base",
    "ensemble": "base",
    "rtc": "base",
    "rtc-identity": "base",
    "rtc-trained": "prefix",
    "bid": "base",
    "streaming": "streaming",
}
"""Scheduler -> policy, see runtime_delay_train.py."""
DELAYS = [*map(str, range(9)), "trace"]
LOAD_CAMERAS, LOAD_HZ = 3, 30.0


def run(tasks: Sequence[str], schedulers: Sequence[str], delays: Sequence[str], engine: str) -> None:
    """Every cell that is not done yet; the results file is written after each."""
    for task in tasks:
        for scheduler in schedulers:
            for delay in delays:
                row = cell(task, scheduler, delay, engine)
                low, high = row["success_interval"]
                join = "-" if row["join"] is None else f"{row['join']:.2f}"
                print(
                    f"{task:6} {scheduler:12} d {delay:>5}   success {row['success']:.3f} [{low:.3f}, {high:.3f}]   "
                    f"score {row['score']:.3f}   jerk {row['jerk']:10,.0f}   join {join:>5}   {row['cpu_s']:.0f} CPU s",
                    flush=True,
                )
                collect()


def cell(task: str, scheduler: str, delay: str, engine: str) -> dict[str, Any]:
    """The row of one cell, measured now unless it has been."""
    checkpoint = resolve_checkpoint(RUNS / f"{task}_{VARIANTS[scheduler]}")
    weights = fingerprint(checkpoint / "model.safetensors", *([TRACE] if delay == "trace" else []))
    path = CELLS / f"{task}-{scheduler}-{delay}-{SEED}.json"
    if path.exists():
        row = json.loads(path.read_text())
        if row["checkpoint"] == weights:
            return row
    row = measure(checkpoint, task, scheduler, delay, EPISODES, engine)
    row = {**row, "checkpoint": weights, "commit": commit()}
    CELLS.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(row))
    partial.rename(path)
    return row


def measure(
    checkpoint: Path, task: str, scheduler: str, delay: str, episodes: int, engine: str = "torch"
) -> dict[str, Any]:
    """One cell of so many episodes, on one thread of this process; every engine computes the same within 1e-5."""
    policy = compile_policy(load_policy(checkpoint), cast(EngineName, engine), cache=checkpoint / "engines")
    how = rollout_of(scheduler, str(TRACE) if delay == "trace" else delay, None, policy.spec)
    began_s = time.process_time()
    world = functools.partial(make_world, task)
    seeds = range(SEED, SEED + episodes)
    found = evaluate(policy, world, seeds, rollout=how, envs_per_worker=TASKS[task])
    return {
        "task": task,
        "scheduler": scheduler,
        "delay": delay if delay == "trace" else int(delay),
        "seed": SEED,
        "episodes": episodes,
        "score": round(found.score, 5),
        "success": found.success_rate,
        "success_interval": [round(v, 4) for v in found.success_interval],
        "jerk": None if found.jerk is None else round(found.jerk, 4),
        "join": None if found.join is None else round(found.join, 4),
        "score_interval": [round(v, 4) for v in found.score_interval],
        "held": sum(r.held for r in found.results) / found.steps,
        "mean_length": found.steps / episodes,
        "cpu_s": round(time.process_time() - began_s, 1),
        "engine": engine,
    }


def fingerprint(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def collect() -> None:
    """Write the cells that are done to runtime_delay.json, in the order of the tables above."""
    orders = (list(TASKS), list(VARIANTS), DELAYS)
    rows = [json.loads(path.read_text()) for path in CELLS.glob("*.json")]
    names = ("task", "scheduler", "delay")
    rows.sort(key=lambda row: [order.index(str(row[name])) for order, name in zip(orders, names, strict=True)])
    write_results("runtime_delay", rows)


def estimate(tasks: Sequence[str], schedulers: Sequence[str], delays: Sequence[str], episodes: int) -> None:
    """Print the CPU time that cells will take, from a batch of episodes each."""
    total_s = 0.0
    for task in tasks:
        for scheduler in schedulers:
            for delay in delays:
                try:
                    checkpoint = resolve_checkpoint(RUNS / f"{task}_{VARIANTS[scheduler]}")
                    row = measure(checkpoint, task, scheduler, delay, episodes)
                except ValueError as error:
                    print(f"{task:6} {scheduler:12} d {delay:>5}   {error}")
                    continue
                cell_s = row["cpu_s"] * EPISODES / episodes
                total_s += cell_s
                print(
                    f"{task:6} {scheduler:12} d {delay:>5}   {cell_s:6.0f} CPU s   ({row['mean_length']:.0f} steps an "
                    f"episode, success {row['success']:.2f}, join {row['join'] or 0:.2f})",
                    flush=True,
                )
    print(f"together {total_s / 60:.0f} CPU minutes")


def trace(seconds: float, note: str) -> None:
    """Run PushT in real time under the load of cameras and a recording, and keep the delays of all chunks."""
    out = Path(RUNS, "trace.zarr")
    summary = Path(RUNS, "trace.json")
    if out.exists():
        import shutil

        shutil.rmtree(out)
    words = ["deploy", str(RUNS / "pusht_base"), "--world", "pusht", "--scheduler", "rtc", "--seconds", f"{seconds:g}"]
    load_before = os.getloadavg()[0]
    with cameras():
        if robolearn([*words, "--out", str(out), "--json", str(summary)]):
            raise SystemExit(2)
    report = json.loads(summary.read_text())
    delays_ms = report["delays_ms"]
    path = write_results(
        "runtime_delay_trace",
        [],
        delays_ms=delays_ms,
        what="capture of an observation to the moment when its chunk was there, ms, in order; warm-up excluded",
        command=f"robolearn {' '.join(words)}",
        load=f"{LOAD_CAMERAS} processes that encode a 640x480 picture at {LOAD_HZ:g} Hz, and a recording; one-minute "
        f"load average before: {load_before:.1f}. {note}".strip(),
        inference=report["inference"],
        delay_steps=report["delay_steps"],
    )
    p50, p99 = np.percentile(delays_ms, [50, 99])
    print(f"{len(delays_ms)} delays: p50 {p50:.0f} ms, p99 {p99:.0f} ms, max {max(delays_ms):.0f} ms -> {path}")


@contextlib.contextmanager
def cameras() -> Iterator[None]:
    """The load of ``LOAD_CAMERAS`` cameras while it lasts."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_camera, daemon=True) for _ in range(LOAD_CAMERAS)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _camera() -> None:
    import simplejpeg

    from robolearn_deploy.ticker import Ticker
    from robolearn_hardware.clock import now_ns, period_ns

    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    ticker = Ticker(now_ns(), period_ns(LOAD_HZ))
    while True:
        ticker.wait()
        simplejpeg.encode_jpeg(picture, quality=90)


def plot(path: Path) -> None:
    """Success and join against delay, a line for each scheduler, a column for each task."""
    from matplotlib.figure import Figure

    rows = json.loads((RESULTS / "runtime_delay.json").read_text())["rows"]
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    figure = Figure(figsize=(5.4 * len(tasks), 6.6), dpi=120, layout="constrained")
    grid = figure.subplots(2, len(tasks), squeeze=False, sharex=True)
    colours = dict(zip(VARIANTS, [f"C{i}" for i in range(10)], strict=False))
    for column, task in enumerate(tasks):
        success, join = grid[:, column]
        for shift, scheduler in enumerate(VARIANTS):
            mine = [row for row in rows if (row["task"], row["scheduler"]) == (task, scheduler)]
            fixed = sorted((row for row in mine if row["delay"] != "trace"), key=lambda row: row["delay"])
            for part, marker in ((fixed, "o"), ([row for row in mine if row["delay"] == "trace"], "*")):
                if not part:
                    continue
                # Beside each other, so that intervals can be told apart.
                x = np.array([10 if row["delay"] == "trace" else row["delay"] for row in part]) + 0.05 * (shift - 3.5)
                y = np.array([100 * row["success"] for row in part])
                low, high = 100 * np.array([row["success_interval"] for row in part]).T
                style = {"color": colours[scheduler], "marker": marker, "markersize": 4, "linewidth": 1.2}
                label = scheduler if part is fixed else None
                success.errorbar(x, y, (y - low, high - y), elinewidth=0.6, label=label, **style)
                joins = np.array([np.nan if row["join"] is None else row["join"] for row in part])
                join.plot(x, joins, label=label, **style)
        success.set(title={"pusht": "PushT, 10 Hz", "lift": "Lift, 20 Hz"}[task], ylabel="success, %")
        join.set(ylabel="change at joins / inside chunks", xlabel="delay, control steps", yscale="log")
        for axis in (join.yaxis.set_major_formatter, join.yaxis.set_minor_formatter):
            axis("{x:g}")
        join.set_xticks([*range(9), 10], [*map(str, range(9)), "trace"])
        for axes in (success, join):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=4, fontsize=8, loc="outside lower center")
    figure.savefig(path)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "estimate", "trace", "plot"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--schedulers", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--delays", nargs="+", default=DELAYS, choices=DELAYS)
    parser.add_argument("--engine", default="torch", choices=get_args(EngineName), help="of a run")
    parser.add_argument("--episodes", type=int, default=16, help="of an estimate")
    parser.add_argument("--seconds", type=float, default=120.0, help="of a trace")
    parser.add_argument("--note", default="", help="what else there is to say of the load under which a trace is taken")
    parser.add_argument("--out", type=Path, default=RESULTS / "runtime_delay.png", help="of the plot")
    options = parser.parse_args()
    if options.what == "run":
        run(options.tasks, options.schedulers, options.delays, options.engine)
    elif options.what == "estimate":
        estimate(options.tasks, options.schedulers, options.delays, options.episodes)
    elif options.what == "trace":
        trace(options.seconds, options.note)
    else:
        plot(options.out)


if __name__ == "__main__":
    main()
