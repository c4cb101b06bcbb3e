"""A latent-action policy on PushT: pictures of 206 people's episodes, 10 of which (5 %) show robot actions.

    python tests/benchmarks/policies_latent.py prepare            # the datasets, once
    python tests/benchmarks/policies_latent.py run method 0       # one run: variant, seed; trains, evaluates
    python tests/benchmarks/policies_latent.py all --seeds 3      # all that are missing, one after the other
    python tests/benchmarks/policies_latent.py write              # what is done -> results/*.json

Rows go to families.json, and to policies_latent.json as a page shows them; latent_models.json says what the models of
latent actions have learned.

Each can be stopped at any time and goes on where it was (`resumable.py`). Every policy sees the last two 96x96 pictures
and nothing else, has the same encoder, trunk and objective, and as many optimiser steps in all (PRETRAIN + DECODE);
each seed has its own ten labelled episodes. The last five checkpoints, of averaged weights and 125 steps apart, run by
turns the starts from seed 100000 on.

- method: latent actions from the pictures of all 206 episodes, a policy trained to predict them, then the ten episodes.
- control-few: cloning of the ten episodes alone.
- control-all: cloning of all 206 episodes with their actions, which the method never sees.
- control-untrained: as method, the latent-action model being left as it was drawn: whatever it says of two pictures.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from results import add_rows, commit, family_order, has_row
from resumable import by_turns, checked, save, saved, train, train_cpu_s

from robolearn.evaluation.results import Evaluation
from robolearn_data.schema import UserError

SOURCE = Path("../shared/datasets/pusht_cchi_v7_replay.zarr")
FAMILY = "latent-action"
FIRST_SEED, LABELLED, EPISODES = 100_000, 10, 206
VARIANTS = ("method", "control-few", "control-all", "control-untrained")
LEARN, PRETRAIN, DECODE = 2_000, 2_500, 1_250
POLICY = ["--observe", "img", "--policy.trunk.widths", "32", "64", "128", "--batch-size", "64", "--precision", "bf16"]
POLICY += ["--optimiser.lr", "5e-4", "--optimiser.warmup", "100"]


def prepare(runs: Path) -> None:
    """The video without actions, the same with them, and ten episodes with them for each seed."""
    from robolearn_data.dataset import Dataset
    from robolearn_data.schema import Schema
    from robolearn_data.writer import DatasetWriter
    from robolearn_sim import pusht

    runs.mkdir(parents=True, exist_ok=True)
    human = runs / "human.zarr"
    labelled = {"img": pusht.IMAGE, "state": pusht.STATE, "action": pusht.ACTION}
    wanted: dict[str, tuple[list[int], dict[str, Any]]] = {
        "all": (list(range(EPISODES)), labelled),
        "video": (list(range(EPISODES)), {"img": pusht.IMAGE}),
        **{f"few-{seed}": (labelled_episodes(seed), labelled) for seed in range(3)},
    }
    missing = [name for name in wanted if not (runs / f"{name}.zarr").exists()]
    if missing and not human.exists():
        checked(["data", "import", "--format", "diffusion_policy", str(SOURCE), str(human)])
    for name in missing:
        source, (episodes, streams) = Dataset.open(human), wanted[name]
        partial = runs / f"{name}.partial"
        schema = Schema(source.schema.rate_hz, streams)
        with DatasetWriter.create(partial, schema, compression={"img": "zstd-1"}, durable=False) as writer:
            for episode in episodes:
                rows = source.rows(episode)
                writer.extend({stream: source.read(stream, rows).astype(streams[stream].dtype) for stream in streams})
                writer.save_episode({"source_episode": episode})
        partial.rename(runs / f"{name}.zarr")


def labelled_episodes(seed: int) -> list[int]:
    return sorted(np.random.default_rng(seed).permutation(EPISODES)[:LABELLED].tolist())


def run(runs: Path, variant: str, seed: int, *, episodes: int, workers: int) -> None:
    folder = runs / f"{variant}-{seed}"
    done = folder / f"row-{episodes}.json"
    row = {"family": FAMILY, "variant": variant, "condition": "seen", "seed": seed, "episodes": episodes}
    if done.exists() or has_row("families", **row):
        return
    prepare(runs)
    few = runs / f"few-{seed}.zarr"
    if variant == "control-few":
        train_policy(few, folder, seed, PRETRAIN + DECODE)
    elif variant == "control-all":
        train_policy(runs / "all.zarr", folder, seed, PRETRAIN + DECODE)
    else:
        model = runs / (f"latent-{seed}" if variant == "method" else f"untrained-{seed}")
        if variant == "method":
            learn(runs, model, seed)
        else:
            untrained(model, runs, seed)
        pretrained = runs / f"{variant}-{seed}-pretrained"
        train_policy(runs / "video.zarr", pretrained, seed, PRETRAIN, "--latent", str(model))
        train_policy(few, folder, seed, DECODE, "--start-from", str(pretrained))
    save(done, {**row, **evaluated(folder, episodes, workers), "commit": commit()})
    print(done.read_text(), flush=True)


def learn(runs: Path, folder: Path, seed: int, bottleneck: str = "gaussian") -> None:
    chosen = ["--model.bottleneck", bottleneck, "--seed", str(seed), "--steps", str(LEARN), "--checkpoint-every", "500"]
    words = ["latent", "learn", str(runs / "video.zarr"), "--out", str(folder)]
    train(folder, words, chosen, LEARN)
    if not (folder / "report" / "report.json").exists():
        words = ["latent", "report", str(folder), str(runs / "all.zarr"), "--episodes", "0-49"]
        checked([*words, "--out", str(folder / "report")])


def train_policy(data: Path, folder: Path, seed: int, steps: int, *more: str) -> None:
    words = ["train", str(data), "--out", str(folder), "--device", "cpu"]
    chosen = [*POLICY, "--seed", str(seed), "--steps", str(steps), "--checkpoint-every", "125", *more]
    train(folder, words, chosen, steps)


def untrained(folder: Path, runs: Path, seed: int) -> None:
    """A latent-action model as it is before its first step."""
    import torch

    from robolearn.policies.latent.checkpoint import save_latent_model
    from robolearn.policies.latent.config import LatentModelConfig
    from robolearn.policies.latent.model import LatentActionModel
    from robolearn_data.dataset import Dataset

    if not folder.exists():
        schema = Dataset.open(runs / "video.zarr").schema
        torch.manual_seed(seed)
        image = schema.streams["img"]
        save_latent_model(LatentActionModel("img", image, schema.rate_hz, LatentModelConfig()), folder)


def figures(folder: Path) -> dict[str, Any]:
    """What `robolearn latent report` says of a model, in one row; R^2 of probes are means of the components."""
    found = json.loads((folder / "report" / "report.json").read_text())
    seed, bottleneck = (*folder.name.split("-")[1:], "gaussian")[:2]
    codes = found["codes"]
    row = {
        "bottleneck": bottleneck,
        "seed": int(seed),
        "explained": found["explained"]["z"],
        "explained by another z": found["explained"]["z of another pair"],
        "leak: mean picture": found["leakage"]["mean picture and z"],
        "leak: another picture": found["leakage"]["another picture and z"],
        "picture from z": found["leakage"]["picture from z, linear"],
        "codes used": f"{codes['used']} of {codes['size']}" if "size" in codes else "",
        "perplexity": round(codes["perplexity"], 1) if "size" in codes else "",
    }
    for name in ("state, change", "action, change"):
        for source in ("z", "untrained"):
            row[f"{name}: {source}"] = float(np.mean(found["probes"][name][source]))
    return row


def evaluated(folder: Path, episodes: int, workers: int) -> dict[str, Any]:
    from robolearn.evaluation import evaluate
    from robolearn.policies.checkpoint import load_policy
    from robolearn_sim.worlds import make_world

    make = functools.partial(make_world, "pusht", images=True)

    def one(checkpoint: Path, seeds: range) -> Evaluation:
        load = functools.partial(load_policy, checkpoint)
        return evaluate(load, make, seeds, workers=workers, envs_per_worker=50)

    found = by_turns(folder, range(FIRST_SEED, FIRST_SEED + episodes), one)
    return {
        "success": found.success_rate,
        "success_interval": list(found.success_interval),
        "score": found.score,
        "score_interval": list(found.score_interval),
        "train_cpu_s": train_cpu_s(folder),
        "parameters": sum(p.numel() for p in load_policy(folder).parameters()),
    }


def write(runs: Path) -> None:
    rows = saved(list(runs.glob("*/row-*.json")))
    print(add_rows("families", rows, family_order))
    print(add_rows("policies_latent", [_shown(row) for row in rows], lambda row: tuple(row.values())[:3]))
    models = sorted(path.parents[1] for path in runs.glob("latent-*/report/report.json"))
    models = [{**figures(model), "commit": commit()} for model in models]
    print(add_rows("latent_models", models, lambda row: (row["bottleneck"], row["seed"])))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """What a page shows of a row."""
    keys = ("variant", "seed", "episodes", "score", "success", "success_interval", "train_cpu_s", "commit")
    return {key: row[key] for key in keys}


def everything(runs: Path, seeds: int, one: Callable[[str, int], None]) -> None:
    """The controls that answer the question first, seed by seed; then the last control, and the other bottlenecks."""
    for variants in (VARIANTS[:3], VARIANTS[3:]):
        for seed in range(seeds):
            for variant in variants:
                one(variant, seed)
                write(runs)
    for bottleneck in ("vq", "fsq"):
        if not has_row("latent_models", bottleneck=bottleneck, seed=0):
            prepare(runs)
            learn(runs, runs / f"latent-0-{bottleneck}", 0, bottleneck)
            write(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run", "all", "write"])
    parser.add_argument("which", nargs="*", help="of run: variant, seed")
    parser.add_argument("--runs", type=Path, default=Path("runs/latent"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="processes that evaluate")
    options = parser.parse_args()
    one = functools.partial(run, options.runs, episodes=options.episodes, workers=options.workers)
    match options.what, options.which:
        case "prepare", []:
            prepare(options.runs)
        case "run", [variant, seed] if variant in VARIANTS and seed in ("0", "1", "2"):
            one(variant, int(seed))
        case "all", [] if 1 <= options.seeds <= 3:
            everything(options.runs, options.seeds, one)
        case "write", []:
            write(options.runs)
        case _:
            raise UserError(f"run takes a variant ({', '.join(VARIANTS)}) and a seed from 0 to 2; all up to 3 seeds")


if __name__ == "__main__":
    main()
