"""How often the scripted experts solve their worlds while their actions are disturbed.

`python tests/benchmarks/sim_experts.py` prints the table and writes results/sim_experts.json: 100 episodes of each
world, seeds 0 to 99, with the noise of `robolearn collect` (0.2), which would leave the failures out.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn.evaluation.intervals import wilson_interval
from robolearn_sim.demonstrations import demonstrate
from robolearn_sim.experts import EXPERTS, make_expert
from robolearn_sim.worlds import make_world

EPISODES, NOISE = 100, 0.2


def main() -> None:
    table = Table("world", "solved", "95 % interval", "mean seconds")
    rows = []
    for name in EXPERTS:
        expert = make_expert(name)
        with closing(make_world(name)) as world:
            episodes = [demonstrate(world, expert, seed, NOISE) for seed in range(EPISODES)]
            rate_hz = world.spec.schema.rate_hz
        solved = sum(episode.success for episode in episodes)
        interval = wilson_interval(solved, EPISODES)
        seconds = float(np.mean([len(episode.streams["action"]) / rate_hz for episode in episodes]))
        rows.append(
            {
                "world": name,
                "noise": NOISE,
                "episodes": EPISODES,
                "success": solved / EPISODES,
                "success_interval": list(interval),
                "mean_seconds": round(seconds, 2),
                "failed_seeds": [episode.seed for episode in episodes if not episode.success],
            }
        )
        table.add_row(name, f"{solved} of {EPISODES}", f"{interval[0]:.3f} to {interval[1]:.3f}", f"{seconds:.1f}")
        print(rows[-1], flush=True)
    Console().print(table)
    print(f"written: {write_results('sim_experts', rows)}")


if __name__ == "__main__":
    main()
