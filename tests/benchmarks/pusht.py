"""PushT from the 206 human demonstrations: trains the policies of the README's tables and evaluates them.

    python tests/benchmarks/pusht.py prepare               # import, and the two derived datasets
    python tests/benchmarks/pusht.py train state flow 0    # one run: kind, policy, seed; about 20 minutes on one core
    python tests/benchmarks/pusht.py evaluate state        # the last five checkpoints of every run; writes results

Every run of a kind has the same data, trunk, optimiser and number of steps. Kinds:

- state: demonstrations relabelled in hindsight (`robolearn_sim.pusht_hindsight`), and their mirror images
  (`robolearn_sim.pusht.mirror`). Both use symmetries of the task; all data comes from the 206 demonstrations.
- recorded: each demonstration as it was recorded, and its mirror image.
- image: as recorded, with images.

Evaluation: 500 starts from seed 100000, the published protocol's starts. An evaluation that is done is not repeated.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from results import write_results
from rich.progress import track

from robolearn.cli.main import main as robolearn
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, UserError
from robolearn_data.writer import DatasetWriter

SOURCE = Path("../shared/datasets/pusht_cchi_v7_replay.zarr")
RUNS = Path("runs/bench")
EPISODES, FIRST_SEED, LAST = 500, 100_000, 5
KINDS = {
    "state": ("pusht-state", "relabelled.zarr", "pusht_state"),
    "recorded": ("pusht-state", "mirrored.zarr", "pusht_state"),
    "image": ("pusht-image", "mirrored.zarr", "pusht_image"),
}
"""Kind -> preset, dataset, results file."""
SAMPLERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "flow": [("flow-10", {})],
    "diffusion": [("ddim-10", {"sampler": "ddim"}), ("ddpm-100", {"sampler": "ddpm"})],
}


def prepare() -> None:
    RUNS.mkdir(parents=True, exist_ok=True)
    human = RUNS / "human.zarr"
    if not human.exists():
        robolearn(["data", "import", "--format", "diffusion_policy", str(SOURCE), str(human)])
    for name in ("mirrored", "relabelled"):
        if not (RUNS / f"{name}.zarr").exists():
            derive(Dataset.open(human), RUNS / f"{name}.zarr", hindsight=name == "relabelled")


def derive(source: Dataset, path: Path, *, hindsight: bool) -> None:
    """The episodes of ``source`` and their mirror images; with images as uint8 where they are not relabelled."""
    from robolearn_sim import pusht
    from robolearn_sim.pusht_hindsight import relabel

    streams = {"state": pusht.STATE, "action": pusht.ACTION, **({} if hindsight else {"img": pusht.IMAGE})}
    world = pusht.PushT()
    partial = path.with_suffix(".partial")
    schema = Schema(source.schema.rate_hz, streams)
    exact = {} if hindsight else {"img": "zstd-1"}
    with DatasetWriter.create(partial, schema, compression=exact, durable=False) as writer:
        for episode in track(range(source.episodes), path.stem):
            rows = source.rows(episode)
            state, action = source.read("state", rows), source.read("action", rows)
            images = None if hindsight else source.read("img", rows, dtype="uint8")
            for shown in relabel(world, state, action) if hindsight else [(state, action)]:
                for mirrored in (False, True):
                    s, a = pusht.mirror(*shown) if mirrored else shown
                    values = {"state": s.astype(np.float32), "action": a.astype(np.float32)}
                    if images is not None:  # the mirror is the other diagonal of the picture
                        values["img"] = images.transpose(0, 2, 1, 3)[:, ::-1, ::-1] if mirrored else images
                    writer.extend(values)
                    writer.save_episode({"source_episode": episode, "mirrored": mirrored})
    partial.rename(path)


def train(kind: str, policy: str, seed: int) -> None:
    preset, data, _ = KINDS[kind]
    run = RUNS / f"{kind}-{policy}-{seed}"
    words = ["train", str(RUNS / data), "--preset", preset, "--policy", policy, "--out", str(run)]
    words += ["--resume"] if (run / "training.safetensors").exists() else ["--seed", str(seed)]
    if robolearn(words):
        raise SystemExit(2)


def evaluate(kind: str, workers: int) -> None:
    rows = []
    for run in sorted(RUNS.glob("*-*-*")):
        run_kind, policy, seed = run.name.split("-")
        if KINDS[run_kind][2] != KINDS[kind][2]:
            continue
        for name, overrides in SAMPLERS[policy]:
            suffix = "-recorded" if run_kind == "recorded" else ""
            figures = _last_checkpoints(run, name, overrides, workers)
            rows.append({"policy": name + suffix, "seed": int(seed), **figures})
            write_results(KINDS[kind][2], rows)
            print(json.dumps(rows[-1]), flush=True)


def _last_checkpoints(run: Path, name: str, overrides: dict[str, Any], workers: int) -> dict[str, Any]:
    from robolearn.evaluation.intervals import wilson_interval
    from robolearn.policies.checkpoint import list_checkpoints, load_policy
    from robolearn.training.config import load_config
    from robolearn.training.metrics import read_metrics

    rows = read_metrics(run)
    checkpoints = list_checkpoints(run)[-LAST:]
    if rows[-1]["step"] != load_config(run / "config.yaml").steps:
        raise UserError(f"{run} is not trained to its end; `train` goes on with it")
    found = [_evaluate(checkpoint, name, overrides, workers) for checkpoint in checkpoints]
    success = float(np.mean([result["success_rate"] for result in found]))
    latency = _latency(checkpoints[-1], overrides)
    return {
        "episodes": EPISODES,
        "score_last5": float(np.mean([result["score"] for result in found])),
        "score_best": max(result["score"] for result in found),
        "success_last5": success,
        # Of 500 starts, not 2,500: the five checkpoints share them.
        "success_interval": list(wilson_interval(round(success * EPISODES), EPISODES)),
        "success_best": max(result["success_rate"] for result in found),
        "parameters": sum(p.numel() for p in load_policy(checkpoints[-1]).parameters()),
        "train_cpu_s": rows[-1]["cpu_s"],
        "ms_per_chunk_p50": latency.ms_p50,
        "ms_per_chunk_p99": latency.ms_p99,
    }


def _evaluate(checkpoint: Path, name: str, overrides: dict[str, Any], workers: int) -> dict[str, Any]:
    from robolearn.evaluation import evaluate
    from robolearn.policies.checkpoint import load_policy
    from robolearn_sim.worlds import make_world

    cache = checkpoint / f"{name}.json"
    if cache.exists():
        return json.loads(cache.read_text())
    load = functools.partial(load_policy, checkpoint, **overrides)
    images = any(stream.kind == "image" for stream in load().spec.observation.values())
    world = functools.partial(make_world, "pusht", images=images)
    seeds = range(FIRST_SEED, FIRST_SEED + EPISODES)
    result = evaluate(load, world, seeds, workers=workers, envs_per_worker=125).to_json()
    print(checkpoint, name, f"score {result['score']:.3f} success {result['success_rate']:.3f}", flush=True)
    cache.write_text(json.dumps(result))
    return result


def _latency(checkpoint: Path, overrides: dict[str, Any]) -> Any:
    from robolearn.evaluation.rollout import measure_latency
    from robolearn.policies.checkpoint import load_policy
    from robolearn_sim.worlds import make_world

    policy = load_policy(checkpoint, **overrides)
    images = any(stream.kind == "image" for stream in policy.spec.observation.values())
    return measure_latency(policy, make_world("pusht", images=images), FIRST_SEED, steps=None, calls=100)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["prepare"]:
            prepare()
        case ["train", kind, policy, seed]:
            train(kind, policy, int(seed))
        case ["evaluate", kind, *workers]:
            evaluate(kind, int(workers[0]) if workers else os.cpu_count() or 1)
        case _:
            raise SystemExit(__doc__)
