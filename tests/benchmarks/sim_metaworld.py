"""How often Meta-World's scripted experts solve its fifty tasks in our worlds, and how fast those are.

`python tests/benchmarks/sim_metaworld.py [EPISODES]` prints the table and writes results/sim_metaworld.json: episodes
of each task from seed 0, with the noise of `robolearn collect` (0.2); control steps per second of CPU without expert
and without resets, which run 250 physics steps.
"""

from __future__ import annotations

import sys
import time
from contextlib import closing
from typing import Any

import numpy as np
from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn_sim.demonstrations import demonstrate
from robolearn_sim.experts import make_expert
from robolearn_sim.metaworld_tasks import TASKS
from robolearn_sim.worlds import make_world

NOISE = 0.2


def main() -> None:
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    table = Table("task", "solved", "mean steps", "steps/s")
    rows: list[dict[str, Any]] = []
    for task in TASKS:
        name = f"metaworld/{task}"
        expert = make_expert(name)
        with closing(make_world(name)) as world:
            found = [demonstrate(world, expert, seed, NOISE) for seed in range(episodes)]
            actions = found[0].streams["action_sent"]
            spent, steps = 0.0, 0
            while spent < 0.3:
                world.reset(0)
                begun = time.process_time()
                for action in actions:
                    world.step(action)
                spent, steps = spent + time.process_time() - begun, steps + len(actions)
        solved = sum(one.success for one in found)
        length = float(np.mean([len(one.streams["action"]) for one in found if one.success] or [0]))
        rows.append({"task": task, "episodes": episodes, "noise": NOISE, "success": solved / episodes})
        rows[-1] |= {"mean_steps": round(length), "steps_per_s": round(steps / spent)}
        table.add_row(task, f"{solved} of {episodes}", str(rows[-1]["mean_steps"]), str(rows[-1]["steps_per_s"]))
        print(rows[-1], flush=True)
    Console().print(table)
    success = float(np.mean([row["success"] for row in rows]))
    speeds = np.percentile([row["steps_per_s"] for row in rows], [0, 50, 100]).round().tolist()
    print(f"solved {100 * success:.1f} %, steps/s least, median, most: {speeds}")
    print(f"written: {write_results('sim_metaworld', rows, success=success, steps_per_s=speeds)}")


if __name__ == "__main__":
    main()
