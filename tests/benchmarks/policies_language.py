"""Does a small VLA follow instructions? Trained and tested at the SO-101's table with three cubes and four verbs.

    python tests/benchmarks/policies_language.py prepare                # the demonstrations, once
    python tests/benchmarks/policies_language.py run method 0           # one run: variant, seed; trains, evaluates
    python tests/benchmarks/policies_language.py all --seeds 3          # all that are missing, one after the other
    python tests/benchmarks/policies_language.py write                  # what is done -> results/families.json

Each can be stopped at any time and goes on where it was (`resumable.py`). Variants:

- method: flow matching, 2 M parameters, words as tokens; sees the joints, the tool, the cubes' poses and the
  instruction.
- control-no-language: the same without the instruction: what can be had by looking at the scene alone.
- control-shuffled: the method's weights, told another instruction than the one that counts. A policy that does not
  listen does as well as with the right one.
- method-images: two cameras and the joints in place of the poses.

Conditions: seen (sentences and pairs of verb and colour of the demonstrations, other scenes); held-out-reworded (other
sentences of the same words), held-out-synonyms (a verb in other words), held-out-pairs (pairs of verb and colour that
no demonstration has), held-out (these three together); switched (another instruction after 40 steps, which alone
counts). The last five of ten checkpoints run by turns the starts from seed 100000 on.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results import add_rows, commit, family_order, has_row
from resumable import by_turns, checked, save, saved, train, train_cpu_s

from robolearn.evaluation.intervals import wilson_interval
from robolearn.evaluation.results import Evaluation
from robolearn.policies.checkpoint import list_checkpoints, load_policy
from robolearn.policies.vla.config import SmallConfig
from robolearn.training.config import PRESETS, OptimiserConfig, TrainConfig, dump_config
from robolearn.training.metrics import read_metrics
from robolearn_data.dataset import Dataset
from robolearn_data.schema import UserError

FAMILY, WORLD = "vla", "so101_language"
FIRST_SEED, CHECKPOINTS = 100_000, 10
SAMPLER_STEPS, EPISODE_STEPS = 5, 150
"""In evaluation: of flow matching, and at most in an episode (demonstrations take about 50)."""
EPISODES, NOISE = 2000, 0.2
"""Of the demonstrations."""
CONDITIONS = {
    "seen": WORLD,
    "held-out-reworded": f"{WORLD}/reworded",
    "held-out-synonyms": f"{WORLD}/synonyms",
    "held-out-pairs": f"{WORLD}/new-pairs",
    "switched": f"{WORLD}/switched",
}
HELD_OUT = tuple(name for name in CONDITIONS if name.startswith("held-out-"))
POSES, CAMERAS = ("state", "tool", "things"), ("front", "wrist", "state")
TRAINED: dict[str, tuple[str, ...]] = {
    "method": (*POSES, "instruction"),
    "control-no-language": POSES,
    "method-images": (*CAMERAS, "instruction"),
}
"""Variant -> the streams that it observes."""
TESTED: dict[str, tuple[str, dict[str, str]]] = {
    "method": ("method", CONDITIONS),
    "control-shuffled": ("method", {"seen": f"{WORLD}/shuffled"}),
    "control-no-language": ("control-no-language", {name: CONDITIONS[name] for name in ("seen", "switched")}),
    "method-images": ("method-images", CONDITIONS),
}
"""Variant -> whose weights it has, and condition -> world."""


def settings(variant: str, seed: int, steps: int) -> TrainConfig:
    config = PRESETS["vla-small"]()
    trunk = config.policy.trunk
    backbone = SmallConfig(width=128, layers=3, heads=4, kv_heads=4, head_dim=32, mlp=344, text="words")
    trunk = replace(trunk, backbone=backbone, max_text=13)  # pyright: ignore[reportArgumentType]
    return replace(
        config,
        policy=replace(config.policy, trunk=trunk),
        optimiser=OptimiserConfig(lr=1e-3, warmup=200),
        observe=TRAINED[variant],
        steps=steps,
        batch_size=64,
        seed=seed,
        checkpoint_every=max(steps // CHECKPOINTS, 1),
    )


def data_of(runs: Path, variant: str) -> Path:
    return runs / ("images.zarr" if "front" in TRAINED[variant] else "poses.zarr")


def prepare(runs: Path, variant: str, episodes: int) -> None:
    path = data_of(runs, variant)
    runs.mkdir(parents=True, exist_ok=True)
    words = ["collect", str(path), "--world", WORLD, "--teleop", "scripted", "--episodes", str(episodes)]
    words += ["--noise", str(NOISE), "--workers", "1"]
    words += ["--images"] if "front" in TRAINED[variant] else []
    if path.exists():
        if Dataset.open(path).episodes >= episodes:
            return
        words += ["--resume"]
    checked(words)


def run(runs: Path, variant: str, seed: int, *, episodes: int, starts: int, steps: int) -> None:
    """Train and evaluate; writes a file for each condition."""
    source, conditions = TESTED[variant]
    folder = runs / f"{source}-{seed}"
    for condition, world in conditions.items():
        row = {"family": FAMILY, "variant": variant, "condition": condition, "seed": seed, "episodes": starts}
        done = folder / f"row-{variant}-{condition}-{starts}.json"
        if done.exists() or has_row("families", **row):
            continue
        prepare(runs, source, episodes)
        start = runs / f"{source}-{seed}.yaml"
        start.write_text(dump_config(settings(source, seed, steps)))
        words = ["train", str(data_of(runs, source)), "--out", str(folder), "--device", "cpu"]
        train(folder, words, ["--config", str(start)], steps)
        found = evaluated(folder, world, starts)
        row |= {"success": found.success_rate, "success_interval": list(found.success_interval), "score": found.score}
        row |= {**about(folder, runs, source), "commit": commit()}
        if condition != "switched":
            row["by_verb"] = by_verb(world, found)
        save(done, row)
        print(done.read_text(), flush=True)


def evaluated(folder: Path, world: str, starts: int) -> Evaluation:
    from robolearn.evaluation import evaluate
    from robolearn_sim.worlds import make_world

    images = {"images": True} if "front" in load_policy(folder).spec.observation else {}
    make = functools.partial(make_world, world, max_steps=EPISODE_STEPS, **images)

    def one(checkpoint: Path, seeds: range) -> Evaluation:
        load = functools.partial(load_policy, checkpoint)
        return evaluate(load, make, seeds, steps=SAMPLER_STEPS, workers=0, envs_per_worker=40)

    return by_turns(folder, range(FIRST_SEED, FIRST_SEED + starts), one)


def by_verb(world: str, found: Evaluation) -> dict[str, str]:
    """Verb -> "solved of asked"."""
    from robolearn_sim.worlds import make_world

    asked, solved = Counter[str](), Counter[str]()
    with closing(make_world(world)) as scene:
        for episode in found.results:
            scene.reset(episode.seed)
            verb = scene.goal.verb  # type: ignore[attr-defined]
            asked[verb] += 1
            solved[verb] += episode.success
    return {verb: f"{solved[verb]} of {asked[verb]}" for verb in sorted(asked)}


def about(folder: Path, runs: Path, variant: str) -> dict[str, Any]:
    policy = load_policy(list_checkpoints(folder)[-1])
    return {
        "observes": list(TRAINED[variant]),
        "demonstrations": Dataset.open(data_of(runs, variant)).episodes,
        "steps": read_metrics(folder)[-1]["step"],
        "train_cpu_s": train_cpu_s(folder),
        "parameters": sum(p.numel() for p in policy.parameters()),
    }


def write(runs: Path) -> None:
    """Rows of all runs, with the three held-out conditions taken together as well."""
    rows = saved(list(runs.glob("*/row-*.json")))
    for variant, seed, starts in {(row["variant"], row["seed"], row["episodes"]) for row in rows}:
        mine = [row for row in rows if (row["variant"], row["seed"], row["episodes"]) == (variant, seed, starts)]
        parts = [row for row in mine if row["condition"] in HELD_OUT]
        if len(parts) == len(HELD_OUT):
            together = {key: value for key, value in parts[0].items() if key != "by_verb"}
            together |= {k: float(np.mean([row[k] for row in parts])) for k in ("success", "score")}
            episodes = sum(row["episodes"] for row in parts)
            interval = wilson_interval(round(together["success"] * episodes), episodes)
            rows.append(together | {"condition": "held-out", "episodes": episodes, "success_interval": list(interval)})
    print(add_rows("families", rows, family_order))


def everything(runs: Path, seeds: int, variants: list[str], **how: int) -> None:
    """Seed by seed, so that a table of one seed is there early."""
    for seed in range(seeds):
        for variant in variants:
            run(runs, variant, seed, **how)
            write(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run", "all", "write"])
    parser.add_argument("which", nargs="*", help="of run: variant, seed; of all: variants, by default those from poses")
    parser.add_argument("--runs", type=Path, default=Path("runs/language"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--demonstrations", type=int, default=EPISODES)
    parser.add_argument("--episodes", type=int, default=200, help="starts of each condition")
    parser.add_argument("--steps", type=int, default=6000, help="of training")
    options = parser.parse_args()
    how = {"episodes": options.demonstrations, "starts": options.episodes, "steps": options.steps}
    match options.what, options.which:
        case "prepare", []:
            prepare(options.runs, "method", options.demonstrations)
        case "run", [variant, seed] if variant in TESTED and seed.isdigit():
            run(options.runs, variant, int(seed), **how)
        case "all", variants if set(variants) <= set(TESTED):
            everything(options.runs, options.seeds, variants or list(TESTED)[:3], **how)
        case "write", []:
            write(options.runs)
        case _:
            raise UserError(f"run takes a variant ({', '.join(TESTED)}) and a seed; all takes variants")


if __name__ == "__main__":
    main()
