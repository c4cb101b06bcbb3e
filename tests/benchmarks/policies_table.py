"""Nine policies on PushT and Lift from states: the same data, trunk, optimiser and number of steps for each.

Both tasks are trained as the preset lift-state says, PushT for four times as many steps of half the batch: its own
preset has twice the weights and sees six times as many windows, and fifteen runs of it would take two days of a core.

    python tests/benchmarks/policies_table.py prepare                   # the datasets, once
    python tests/benchmarks/policies_table.py run pusht meanflow 0      # one run: task, policy, seed; trains, evaluates
    python tests/benchmarks/policies_table.py all --seeds 3             # all that are missing, one after the other
    python tests/benchmarks/policies_table.py time                      # chunk_ms and denoiser_ms of what is done, anew
    python tests/benchmarks/policies_table.py write                     # what is done -> results/policies.json

Each can be stopped at any time and goes on where it was (`resumable.py`). One run gives one row for each way to sample
it (flow: 10 steps and 1; diffusion: ddim-10, ddim-1, ddpm-100). The last five of ten checkpoints run by turns the same
starts (seed 100000 and on).

- evaluations: of the trunk, for one chunk.
- chunk_ms: from an observation to its chunk, batch 1, median of 50; denoiser_ms: the trunk's part of it. CPU time of
  the one thread that does it: beside other work, or at low priority, the clock on the wall measures that.
- train_cpu_s: CPU time of the training steps. A mean-flow step takes a forward derivative more than the others.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from results import add_rows, commit, has_row
from resumable import by_turns, checked, save, saved, train, train_cpu_s

from robolearn.evaluation.results import Evaluation
from robolearn_data.schema import UserError

RESULT = "policies"
FIRST_SEED, CHECKPOINTS = 100_000, 10


class Task(NamedTuple):
    data: str
    worlds: int
    """Stepped together in one process."""
    steps: int
    batch_size: int


TASKS = {"lift": Task("lift100.zarr", 20, 2_000, 128), "pusht": Task("relabelled.zarr", 40, 8_000, 64)}
SAMPLERS: dict[str, dict[str, tuple[dict[str, Any], int | None]]] = {
    "meanflow": {"meanflow-1": ({}, None)},
    "flow": {"flow-10": ({}, 10), "flow-1": ({}, 1)},
    "diffusion": {
        "ddim-10": ({"sampler": "ddim"}, 10),
        "ddim-1": ({"sampler": "ddim"}, 1),
        "ddpm-100": ({"sampler": "ddpm"}, None),
    },
    "act": {"act": ({}, None)},
    "regression": {"mse": ({}, None)},
    "nearest": {"nearest": ({}, None)},
}
"""Policy that is trained -> row -> (how it is loaded, steps of its sampler)."""


def prepare(runs: Path) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    if not (runs / TASKS["pusht"].data).exists():
        import pusht

        pusht.RUNS = runs
        pusht.prepare()
    if not (runs / TASKS["lift"].data).exists():
        words = ["collect", "--world", "lift", "--teleop", "scripted", "--episodes", "100"]
        checked([*words, str(runs / TASKS["lift"].data)])


def run(runs: Path, task: str, policy: str, seed: int, *, episodes: int, workers: int) -> None:
    rows = {name: {"task": task, "policy": name, "seed": seed, "episodes": episodes} for name in SAMPLERS[policy]}
    missing = [name for name, row in rows.items() if not has_row(RESULT, **row)]
    if not missing:
        return
    folder = runs / f"policies-{task}-{policy}-{seed}"
    learn(runs, folder, task, policy, seed)
    for name in missing:
        done = folder / f"row-{name}-{episodes}.json"
        if not done.exists():
            figures = measure(folder, task, *SAMPLERS[policy][name], episodes, workers)
            save(done, {**rows[name], **figures, "commit": commit()})
            print(done.read_text(), flush=True)


def learn(runs: Path, folder: Path, task: str, policy: str, seed: int) -> None:
    of = TASKS[task]
    steps = 1 if policy == "nearest" else of.steps
    words = ["train", str(runs / of.data), "--out", str(folder), "--device", "cpu"]
    chosen = ["--preset", "lift-state", "--policy", policy, "--seed", str(seed), "--batch-size", str(of.batch_size)]
    chosen += ["--steps", str(steps), "--checkpoint-every", str(max(steps // CHECKPOINTS, 1))]
    train(folder, words, chosen, steps)


def measure(
    folder: Path, task: str, how: dict[str, Any], steps: int | None, episodes: int, workers: int
) -> dict[str, Any]:
    from robolearn.evaluation import evaluate
    from robolearn.policies.checkpoint import list_checkpoints, load_policy
    from robolearn_sim.worlds import make_world

    make = functools.partial(make_world, task)

    def one(checkpoint: Path, seeds: range) -> Evaluation:
        load = functools.partial(load_policy, checkpoint, **how)
        return evaluate(load, make, seeds, steps=steps, workers=workers, envs_per_worker=TASKS[task].worlds)

    found = by_turns(folder, range(FIRST_SEED, FIRST_SEED + episodes), one)
    policy = load_policy(list_checkpoints(folder)[-1], **how)
    return {
        "score": found.score,
        "success": found.success_rate,
        "success_interval": list(found.success_interval),
        **speed(policy, task, steps),
        "train_cpu_s": train_cpu_s(folder),
        "parameters": sum(p.numel() for p in policy.parameters()),
    }


def speed(policy: Any, task: str, steps: int | None, calls: int = 50, budget_s: float = 30.0) -> dict[str, float]:
    """Evaluations of the trunk for one chunk, and medians of the CPU time of a chunk and of the trunk in it, ms."""
    from robolearn.evaluation.lockstep import Episode, infer, one_thread
    from robolearn_sim.worlds import make_world

    spent: list[float] = []
    began = [0.0]
    policy.trunk.register_forward_pre_hook(lambda *_: began.__setitem__(0, time.thread_time()))
    policy.trunk.register_forward_hook(lambda *_: spent.append(time.thread_time() - began[0]))
    world = make_world(task)
    chunks, trunks, counts = [], [], set()
    try:
        episode = Episode(world, policy, FIRST_SEED)
        with one_thread(), torch.inference_mode():
            for _ in range(3):
                infer(policy, [episode], steps=steps)
            while len(chunks) < calls and (len(chunks) < 10 or sum(chunks) < budget_s):
                spent.clear()
                start = time.thread_time()
                infer(policy, [episode], steps=steps)
                chunks.append(time.thread_time() - start)
                trunks.append(sum(spent))
                counts.add(len(spent))
    finally:
        world.close()
    (evaluations,) = counts
    return {
        "evaluations": evaluations,
        "chunk_ms": 1e3 * float(np.median(chunks)),
        "denoiser_ms": 1e3 * float(np.median(trunks)),
    }


def time_anew(runs: Path) -> None:
    from robolearn.policies.checkpoint import list_checkpoints, load_policy

    for path in sorted(runs.glob("policies-*/row-*.json")):
        (row,) = saved([path])
        how, steps = next(names[row["policy"]] for names in SAMPLERS.values() if row["policy"] in names)
        found = speed(load_policy(list_checkpoints(path.parent)[-1], **how), row["task"], steps)
        before, now = row["chunk_ms"], found["chunk_ms"]
        print(f"{row['task']} {row['policy']} {row['seed']}: {before:.2f} -> {now:.2f} ms", flush=True)
        save(path, {**row, **found})


def write(runs: Path) -> None:
    print(add_rows(RESULT, saved(list(runs.glob("policies-*/row-*.json"))), order))


def order(row: dict[str, Any]) -> tuple[Any, ...]:
    policies = [name for names in SAMPLERS.values() for name in names]
    return list(TASKS).index(row["task"]), policies.index(row["policy"]), row["seed"], row["episodes"]


def everything(runs: Path, seeds: int, one: Callable[[str, str, int], None]) -> None:
    """Seed by seed, so that a table of one seed is there early."""
    for seed in range(seeds):
        for task in TASKS:
            for policy in SAMPLERS:
                one(task, policy, seed)
                write(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run", "all", "time", "write"])
    parser.add_argument("which", nargs="*", help="of run: task, policy, seed")
    parser.add_argument("--runs", type=Path, default=Path("runs/bench"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0, help="processes that evaluate, beside this one")
    options = parser.parse_args()
    one = functools.partial(run, options.runs, episodes=options.episodes, workers=options.workers)
    match options.what, options.which:
        case "prepare", []:
            prepare(options.runs)
        case "run", [task, policy, seed] if task in TASKS and policy in SAMPLERS and seed.isdigit():
            one(task, policy, int(seed))
        case "all", []:
            prepare(options.runs)
            everything(options.runs, options.seeds, one)
        case "time", []:
            time_anew(options.runs)
            write(options.runs)
        case "write", []:
            write(options.runs)
        case _:
            raise UserError(f"run takes a task ({', '.join(TASKS)}), a policy ({', '.join(SAMPLERS)}) and a seed")


if __name__ == "__main__":
    main()
