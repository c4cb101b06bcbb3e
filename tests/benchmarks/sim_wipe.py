"""What the world "wipe" asks for: reacting to force, and how quickly.

`python tests/benchmarks/sim_wipe.py [EPISODES]` prints the table and writes results/sim_wipe.json. The scripted expert

- reacts at every control step (20 Hz), as it demonstrates;
- speaks in chunks of 4, 8 or 16 steps, in which the tool goes on along the line at the height where it was: what a
  policy does that cannot feel within a chunk;
- reacts at every fast period (100 Hz) between chunks of 16 steps, through ``Wipe.advance``: what a fast policy does;
- is numb: its force is zero.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn.evaluation.intervals import wilson_interval
from robolearn_data.schema import Observation
from robolearn_data.world import Step
from robolearn_sim.wipe import BAND_N, FAST_STEPS, TOOL_STIFFNESS, Wipe
from robolearn_sim.wipe_expert import GAIN, TOUCH_N, WANTED_N, WipeExpert

NOISE = 0.2
Drive = Callable[[Wipe, WipeExpert, Observation, np.random.Generator], Iterator[Step]]


def in_chunks(steps: int, *, fast: bool = False) -> Drive:
    """See the module's text. What is seen at a chunk's first step holds for the whole of it, but where the next spot
    of dirt is, so that the tool goes on."""

    def drive(world: Wipe, expert: WipeExpert, seen: Observation, rng: np.random.Generator) -> Iterator[Step]:
        line = world.line
        while True:
            plan: list[np.ndarray] = []
            held = dict(seen)
            following = line[np.flatnonzero(world._dirty)[0]]  # which the observation tells when it is near
            for _ in range(steps):
                action = expert.act(held)
                if plan and expert.touched:
                    action[2] = plan[0][2]
                    expert.height = action[2]
                plan.append(action)
                nearest = int(np.argmin(np.linalg.norm(line - action[:2], axis=1)))
                state = held["state"].copy()
                state[:2] = action[:2]
                if expert.touched and BAND_N[0] <= held["wrench"][-5:, 2].mean() <= BAND_N[1]:
                    following = line[min(nearest + 1, len(line) - 1)]
                state[3:5] = following - action[:2]
                held["state"] = state
            for action in plan:
                tremor = NOISE * expert.noise_shape * rng.standard_normal(3)
                step = fast_step(world, expert, action, tremor) if fast else world.step(action + tremor)
                yield step
                seen = step.observation

    return drive


def fast_step(world: Wipe, expert: WipeExpert, action: np.ndarray, tremor: np.ndarray) -> Step:
    """Along the chunk sideways; up and down as the force says, once the board is felt."""
    start = world.commanded
    for k in range(FAST_STEPS):
        target = start + (action + tremor - start) * (k + 1) / FAST_STEPS
        if expert.touched and expert.height is not None:
            target[2] = expert.height + tremor[2]
        felt = float(world.advance(target).readings["wrench"][:, 2].mean())
        if felt > TOUCH_N and not expert.touched:
            expert.touched, expert.height = True, float(world.commanded[2])
        if expert.touched and expert.height is not None:
            way = GAIN / 2 * (felt - WANTED_N) / TOOL_STIFFNESS
            expert.height += float(np.clip(way, -0.001, 0.002))
    return world.finish()


def stepwise(world: Wipe, expert: WipeExpert, seen: Observation, rng: np.random.Generator) -> Iterator[Step]:
    while True:
        step = world.step(expert.act(seen) + NOISE * expert.noise_shape * rng.standard_normal(3))
        yield step
        seen = step.observation


def numb(world: Wipe, expert: WipeExpert, seen: Observation, rng: np.random.Generator) -> Iterator[Step]:
    while True:
        action = expert.act({**seen, "wrench": np.zeros_like(seen["wrench"])})
        step = world.step(action + NOISE * expert.noise_shape * rng.standard_normal(3))
        yield step
        seen = step.observation


WAYS: dict[str, Drive] = {
    "every step": stepwise,
    "chunks of 4": in_chunks(4),
    "chunks of 8": in_chunks(8),
    "chunks of 16": in_chunks(16),
    "chunks of 16, fast at 100 Hz": in_chunks(16, fast=True),
    "numb": numb,
}


def main() -> None:
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    table = Table("condition", "way", "solved", "95 % interval", "damaged", "in the band", "seconds")
    rows: list[dict[str, Any]] = []
    for condition in ("calm", "perturbed"):
        with closing(Wipe(perturbed=condition == "perturbed")) as world:
            for way, drive in WAYS.items():
                found = [run(world, drive, seed) for seed in range(episodes)]
                solved = sum(success for success, *_ in found)
                interval = wilson_interval(solved, episodes)
                _, steps, damaged, band = np.mean(np.array(found, float), axis=0)
                rows.append({"condition": condition, "way": way, "episodes": episodes, "noise": NOISE})
                rows[-1] |= {"success": solved / episodes, "success_interval": list(interval)}
                rows[-1] |= {"damaged": damaged, "in_band": round(band, 3), "seconds": round(steps / 20, 2)}
                span = f"{interval[0]:.2f} to {interval[1]:.2f}"
                table.add_row(
                    condition,
                    way,
                    f"{solved} of {episodes}",
                    span,
                    f"{damaged:.2f}",
                    f"{band:.2f}",
                    f"{steps / 20:.1f}",
                )
                print(rows[-1], flush=True)
    Console().print(table)
    speeds: dict[str, Any] = {"steps_per_s": steps_per_s()}
    print(speeds)
    print(f"written: {write_results('sim_wipe', rows, **speeds)}")


def run(world: Wipe, drive: Drive, seed: int) -> tuple[bool, int, bool, float]:
    """Success, control steps, whether the board was damaged, share of the contact in which the force was right."""
    rng, expert = np.random.default_rng([seed, 1]), WipeExpert()
    observation = world.reset(seed)
    expert.reset(rng)
    for steps, step in enumerate(drive(world, expert, observation, rng), 1):
        if step.done:
            return step.success, steps, world.damaged, world.in_band_steps / max(1, world.contact_steps)
    raise AssertionError("an episode ends")


def steps_per_s() -> int:
    """Control steps per second of CPU, along an expert's."""
    with closing(Wipe()) as world:
        steps, begun = 0, time.process_time()
        for seed in range(8):
            steps += run(world, stepwise, seed)[1]
        return round(steps / (time.process_time() - begun))


if __name__ == "__main__":
    main()
