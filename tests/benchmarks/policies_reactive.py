"""A slow-fast policy on the world wipe, where a board moves after a chunk has begun, beside policies that cannot feel
inside a chunk.

    python tests/benchmarks/policies_reactive.py prepare            # the demonstrations, and what they answer, once
    python tests/benchmarks/policies_reactive.py run method 0       # one run: variant, seed; trains and evaluates
    python tests/benchmarks/policies_reactive.py all --seeds 3      # all that are missing, one after the other
    python tests/benchmarks/policies_reactive.py write              # what is done -> results/families.json

Each can be stopped at any time and goes on where it was (`resumable.py`). All learn from the same demonstrations, see
the same observations (wrench included), and have the same trunk, sampler and number of steps; a new chunk is there
DELAY control steps after its observation (100 ms, `robolearn eval --scheduler naive --delay 2`). The last five
checkpoints (averaged weights) run by turns the starts from seed 100000 on, on a board that stays ("calm") and one that
moves ("perturbed").

- method: latent diffusion, a chunk every LONG steps; the decoder feels at 100 Hz.
- control-long: diffusion of actions, a chunk every LONG steps.
- control-short: the same, asked again as soon as an answer is there: every DELAY steps.
- control-ensemble: as control-short, with temporal ensembling of what its chunks say.
- control-force-zeroed: as method, its decoder trained and run with zero for the force.
- control-force-swapped: the method's weights; the decoder is given what was felt in the method's episode of the next
  start.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results import add_rows, commit, family_order, has_row
from resumable import by_turns, checked, save, saved, train, train_cpu_s

from robolearn.evaluation.results import Evaluation
from robolearn_data.schema import Observation
from robolearn_data.world import FastWorld, Instant, Step

FAMILY = "slow-fast"
FIRST_SEED, DELAY, LONG = 100_000, 2, 12
DATA = "perturbed-relative.zarr"
DEMONSTRATIONS, TOKENIZER_STEPS, STEPS = 300, 1500, 4000
WORLDS = {"calm": "wipe/calm-relative", "perturbed": "wipe/perturbed-relative"}
TOKENIZER = ["--policy.tokenizer.steps", str(TOKENIZER_STEPS), "--policy.tokenizer.kl", "1e-4"]
SHARED = ["--policy.horizon", "16", "--policy.action-horizon", str(LONG), "--policy.trunk.widths", "32", "64", "128"]
SHARED += ["--policy.learn-padding", "--pad-after", "14", "--optimiser.lr", "1e-3", "--optimiser.warmup", "200"]
TRAINED = {
    "reactive": ["--policy", "reactive", *TOKENIZER],
    "numb": ["--policy", "reactive", *TOKENIZER, "--policy.tokenizer.no-feels"],
    "diffusion": ["--policy", "diffusion"],
}
VARIANTS: dict[str, tuple[str, str, int]] = {
    "method": ("reactive", "naive", LONG),
    "control-long": ("diffusion", "naive", LONG),
    "control-short": ("diffusion", "naive", DELAY),
    "control-ensemble": ("diffusion", "ensemble", DELAY),
    "control-force-zeroed": ("numb", "naive", LONG),
    "control-force-swapped": ("reactive", "naive", LONG),
}
"""Variant -> what is trained, scheduler, control steps between the observations of two chunks."""


class Noted:
    """A ``FastWorld`` that writes down what is felt in each fast period of an episode."""

    def __init__(self, world: FastWorld, folder: Path) -> None:
        self._world, self._folder = world, folder
        self.spec, self.fast_steps, self.close, self.render = world.spec, world.fast_steps, world.close, world.render
        self._felt: list[np.ndarray] = []
        self._seed = 0

    @property
    def commanded(self) -> np.ndarray:
        return self._world.commanded

    def reset(self, seed: int) -> Observation:
        self._seed, self._felt = seed, []
        return self._world.reset(seed)

    def step(self, action: np.ndarray) -> Step:
        return self._world.step(action)

    def advance(self, target: np.ndarray) -> Instant:
        instant = self._world.advance(target)
        self._felt.append(instant.readings["wrench"])
        return instant

    def finish(self) -> Step:
        step = self._world.finish()
        if step.done:
            np.save(_felt_in(self._folder, self._seed), np.stack(self._felt))
        return step


class Swapped(Noted):
    """A ``FastWorld`` in which is felt, inside control steps, what was felt in the episode of the next seed; its last
    reading on when that was shorter."""

    def __init__(self, world: FastWorld, folder: Path, seeds: range) -> None:
        super().__init__(world, folder)
        self._seeds = seeds

    def reset(self, seed: int) -> Observation:
        other = self._seeds[(seed - self._seeds.start + 1) % len(self._seeds)]
        self._other, self._number = np.load(_felt_in(self._folder, other)), 0
        return super().reset(seed)

    def advance(self, target: np.ndarray) -> Instant:
        felt = self._other[min(self._number, len(self._other) - 1)]
        self._number += 1
        return replace(self._world.advance(target), readings={"wrench": felt})

    def finish(self) -> Step:
        return self._world.finish()


def _felt(run: Path, condition: str) -> Path:
    """What was felt in the method's episodes."""
    return run / f"felt-{condition}"


def _felt_in(folder: Path, seed: int) -> Path:
    return folder / f"{seed}.npy"


def prepare(runs: Path) -> None:
    """Record the demonstrations, and print how much of their up and down answers the force."""
    data = runs / DATA
    words = ["collect", "--world", WORLDS["perturbed"], "--teleop", "scripted", "--noise", "0.1", "--workers", "1"]
    if not data.exists():
        partial = data.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        checked([*words, "--episodes", str(DEMONSTRATIONS), str(partial)])
        partial.rename(data)
    print(json.dumps(reactions(data)))


def reactions(data: Path) -> dict[str, float]:
    """In the demonstrations, once the board is felt: R^2 of the change of the commanded height against the force of the
    10 ms before, as the expert's law is linear in it up to its limits; and the share of steps outside the band."""
    from robolearn_data.dataset import Dataset
    from robolearn_sim.wipe import BAND_N

    dataset = Dataset.open(data)
    action, wrench = dataset.read("action"), dataset.read("wrench")
    moves, forces = [], []
    for episode in range(dataset.episodes):
        rows = dataset.rows(episode)
        dz, felt = action[rows, 2].astype(np.float64), wrench[rows, -5:, 2].mean(1).astype(np.float64)
        touched = np.flatnonzero(felt > 2.0)[0]
        moves.append(dz[touched:])
        forces.append(felt[touched:])
    move, force = np.concatenate(moves), np.concatenate(forces)
    outside = float(np.mean((force < BAND_N[0]) | (force > BAND_N[1])))
    return {"r2_of_height_and_force": float(np.corrcoef(move, force)[0, 1] ** 2), "outside_band": outside}


def learn(runs: Path, name: str, seed: int) -> Path:
    folder = runs / f"{name}-{seed}"
    words = ["train", str(runs / DATA), "--out", str(folder), "--device", "cpu"]
    chosen = [*TRAINED[name], *SHARED, "--seed", str(seed), "--steps", str(STEPS), "--checkpoint-every", "250"]
    train(folder, words, chosen, STEPS + (0 if name == "diffusion" else TOKENIZER_STEPS))
    return folder


def run(runs: Path, variant: str, seed: int, *, episodes: int, workers: int) -> None:
    name, scheduler, every = VARIANTS[variant]
    rows = {condition: runs / f"row-{variant}-{seed}-{condition}-{episodes}.json" for condition in WORLDS}
    row = {"family": FAMILY, "variant": variant, "seed": seed, "episodes": episodes}
    if all(path.exists() or has_row("families", **row, condition=condition) for condition, path in rows.items()):
        return
    folder = learn(runs, name, seed)
    for condition, path in rows.items():
        if variant == "control-force-swapped" and not _felt_in(_felt(folder, condition), FIRST_SEED).exists():
            evaluated(folder, "method", condition, scheduler, every, seed, episodes, workers)
        if not path.exists():
            row = evaluated(folder, variant, condition, scheduler, every, seed, episodes, workers)
            save(path, row)
            print(path.read_text(), flush=True)


def evaluated(
    folder: Path, variant: str, condition: str, scheduler: str, every: int, seed: int, episodes: int, workers: int
) -> dict[str, Any]:
    from robolearn.cli.eval import DelayedRollout
    from robolearn.evaluation import evaluate
    from robolearn_deploy.delayed import Delays

    seeds = range(FIRST_SEED, FIRST_SEED + episodes)
    felt = _felt(folder, condition)
    felt.mkdir(exist_ok=True)
    make = functools.partial(world_for, variant, condition, felt, seeds)
    how = DelayedRollout(scheduler, Delays.fixed(DELAY), every)

    def one(checkpoint: Path, seeds: range) -> Evaluation:
        return evaluate(checkpoint, make, seeds, workers=workers, envs_per_worker=20, rollout=how)

    found = by_turns(folder, seeds, one)
    return {
        "family": FAMILY,
        "variant": variant,
        "condition": condition,
        "seed": seed,
        "episodes": episodes,
        "success": found.success_rate,
        "success_interval": list(found.success_interval),
        "score": found.score,
        "seconds": float(np.mean([result.length for result in found.results])) / 20,
        "train_cpu_s": train_cpu_s(folder),
        "commit": commit(),
    }


def world_for(variant: str, condition: str, felt: Path, seeds: range) -> Any:
    from robolearn_sim.worlds import make_world

    world: Any = make_world(WORLDS[condition])
    if variant == "method":
        return Noted(world, felt)
    return Swapped(world, felt, seeds) if variant == "control-force-swapped" else world


def write(runs: Path) -> None:
    print(add_rows("families", saved(list(runs.glob("row-*.json"))), family_order))


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/reactive"))
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--workers", type=int, default=0)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare")
    one = commands.add_parser("run")
    one.add_argument("variant", choices=list(VARIANTS))
    one.add_argument("seed", type=int)
    commands.add_parser("all").add_argument("--seeds", type=int, default=3)
    commands.add_parser("write")
    options = parser.parse_args()
    how = {"episodes": options.episodes, "workers": options.workers}
    options.runs.mkdir(parents=True, exist_ok=True)
    if options.command == "prepare":
        prepare(options.runs)
    elif options.command == "run":
        run(options.runs, options.variant, options.seed, **how)
    elif options.command == "all":
        prepare(options.runs)
        same = ["--runs", str(options.runs), "--episodes", str(options.episodes), "--workers", str(options.workers)]
        for seed in range(options.seeds):
            for variant in VARIANTS:  # in a process each, which leaves no memory behind
                subprocess.run([sys.executable, __file__, *same, "run", variant, str(seed)], check=True)
    else:
        write(options.runs)


if __name__ == "__main__":
    main()
