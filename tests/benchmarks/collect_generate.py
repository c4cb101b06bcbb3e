"""Does `robolearn data generate` help? Policies trained on 10 demonstrations against ones trained on 200 made of them.

    python tests/benchmarks/collect_generate.py all              # everything below, in this order
    python tests/benchmarks/collect_generate.py prepare lift     # records 10 demonstrations, generates 200
    python tests/benchmarks/collect_generate.py run lift 200 0   # trains with seed 0 and evaluates
    python tests/benchmarks/collect_generate.py report           # writes the results of all runs there are

Three comparisons: Lift and Can as they are, and Lift where the cube lies anywhere within 12 cm (`lift/wide`) while the
ten demonstrations have it within 3: to generate is also to go where nobody demonstrated.

No person was at hand: the demonstrations are those of the scripted expert, disturbed by the noise of `robolearn
collect`. Their labels are the actions that were carried out, errors included, which is all that a person's
demonstrations hold.

Both sides of a comparison have the same network, optimiser, batch size and number of steps, and are evaluated once,
after the last step, from the same starts. What is done is not done again.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn.cli.main import main as robolearn
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema
from robolearn_data.writer import DatasetWriter

RUNS = Path("runs/generate")
DEMONSTRATIONS, GENERATED = 10, 200
SEEDS = (0, 1, 2)
EPISODES, FIRST_SEED = 200, 100_000
STEPS = {"lift": 1_000, "lift/wide": 1_000, "can": 6_000}
RECORDED_IN = {"lift": "lift", "lift/wide": "lift", "can": "can"}
BATCH = 64


def prepare(task: str) -> None:
    where = RECORDED_IN[task]
    source, generated = _dataset(where, DEMONSTRATIONS), _dataset(task, GENERATED)
    if not source.exists():
        recorded = RUNS / f"{where}-recorded.zarr"
        if not recorded.exists():
            _do(
                "collect",
                str(recorded),
                "--world",
                RECORDED_IN[task],
                "--episodes",
                str(DEMONSTRATIONS),
                "--workers",
                "1",
            )
        _with_sent_labels(Dataset.open(recorded), source)
    if not (generated.exists() and Dataset.open(generated).episodes == GENERATED):
        words = ["data", "generate", str(source), str(generated), "--world", task, "--episodes", str(GENERATED)]
        _do(*words, *(["--resume"] if generated.exists() else []))


def _with_sent_labels(recorded: Dataset, path: Path) -> None:
    streams = {name: recorded.schema.streams[name] for name in ("state", "action")}
    with DatasetWriter.create(path, Schema(recorded.schema.rate_hz, streams)) as writer:
        for i in range(recorded.episodes):
            episode = recorded.episode(i)
            writer.extend({"state": episode["state"], "action": np.clip(episode["action_sent"], -1, 1)})
            writer.save_episode(recorded.episode_info(i))


def run(task: str, episodes: int, seed: int) -> None:
    folder = _folder(task, episodes, seed)
    if not (folder / "evaluation.json").exists():
        prepare(task)
        where = task if episodes == GENERATED else RECORDED_IN[task]
        if not (folder / "training.safetensors").exists():
            shutil.rmtree(folder, ignore_errors=True)  # stopped before its end, where all is saved
            words = ["train", str(_dataset(where, episodes)), "--preset", "lift-state", "--out", str(folder)]
            words += ["--steps", str(STEPS[task]), "--batch-size", str(BATCH), "--checkpoint-every", str(STEPS[task])]
            _do(*words, "--seed", str(seed))
        (folder / "evaluation.json").write_text(json.dumps(_evaluate(task, folder)))


def _evaluate(task: str, folder: Path) -> dict[str, Any]:
    from robolearn.evaluation import evaluate
    from robolearn.policies.checkpoint import load_policy, resolve_checkpoint
    from robolearn_sim.worlds import make_world

    load = functools.partial(load_policy, resolve_checkpoint(folder), "cpu")
    world = functools.partial(make_world, task)
    seeds = range(FIRST_SEED, FIRST_SEED + EPISODES)
    found = evaluate(load, world, seeds, workers=0, envs_per_worker=8)
    return {"successes": sum(result.success for result in found.results), "episodes": len(found.results)}


def report() -> None:
    from robolearn.evaluation.intervals import wilson_interval

    table = Table("task", "trained on", "seed", "steps", "success", "95 % interval")
    rows = []
    for path in sorted(RUNS.glob("*/evaluation.json")):
        name, episodes, seed, steps = path.parent.name.split("-")
        task = name.replace("_", "/")
        found = json.loads(path.read_text())
        low, high = wilson_interval(found["successes"], found["episodes"])
        rate = found["successes"] / found["episodes"]
        made = GENERATED if int(episodes) == GENERATED else 0
        rows.append(
            {
                "task": task,
                "demonstrations": DEMONSTRATIONS,
                "generated": made,
                "seed": int(seed),
                "steps": int(steps),
                "episodes": found["episodes"],
                "success": rate,
                "success_interval": [low, high],
            }
        )
        data = f"{made} generated" if made else f"{DEMONSTRATIONS} recorded"
        table.add_row(task, data, seed, steps, f"{rate:.0%}", f"{low:.0%} to {high:.0%}")
    write_results("collect_generate", rows, demonstrator="scripted expert, noise 0.2", batch_size=BATCH)
    Console(width=100).print(table)


def _runs() -> list[tuple[str, int, int]]:
    """Task, episodes to train on and seed, in the order in which they are run."""
    return [(task, episodes, seed) for seed in SEEDS for task in STEPS for episodes in (DEMONSTRATIONS, GENERATED)]


def _dataset(task: str, episodes: int) -> Path:
    return RUNS / f"{task.replace('/', '_')}-{episodes}.zarr"


def _folder(task: str, episodes: int, seed: int) -> Path:
    return RUNS / f"{task.replace('/', '_')}-{episodes}-{seed}-{STEPS[task]}"


def _do(*words: str) -> None:
    if code := robolearn(list(words)):
        raise SystemExit(code)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["prepare", task]:
            prepare(task)
        case ["run", task, episodes, seed]:
            run(task, int(episodes), int(seed))
        case ["report"]:
            report()
        case ["all"]:
            for job in _runs():
                run(*job)
                report()
        case _:
            raise SystemExit(__doc__)
