"""What the SO-101's table with instructions is to its scripted expert, and how fast it is.

`python tests/benchmarks/sim_language.py [EPISODES]` prints the tables and writes results/sim_language.json: episodes of
each variant (seeds from 0, noise 0.2 of `robolearn collect`) by verb. In "shuffled" the expert follows words that do
not count, which is what a policy that cannot tell them apart would get by chance. Steps and pictures per second of CPU.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import closing
from typing import Any

from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn.evaluation.intervals import wilson_interval
from robolearn_sim.demonstrations import demonstrate
from robolearn_sim.experts import make_expert
from robolearn_sim.instructions import VERBS
from robolearn_sim.worlds import make_world, variants_of

NAME, NOISE, SECONDS = "so101_language", 0.2, 2.0


def main() -> None:
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    table = Table("world", *VERBS, "all", "95 % interval")
    rows: list[dict[str, Any]] = []
    for name in (NAME, *variants_of(NAME)):
        expert, solved, asked = make_expert(name), Counter[str](), Counter[str]()
        with closing(make_world(name)) as world:
            for seed in range(episodes):
                found = demonstrate(world, expert, seed, NOISE)
                verb = world.goal.verb  # type: ignore[attr-defined]
                asked[verb] += 1
                solved[verb] += found.success
        low, high = wilson_interval(solved.total(), episodes)
        counts = {verb: f"{solved[verb]} of {asked[verb]}" for verb in VERBS}
        rows.append({"world": name, **counts, "noise": NOISE, "episodes": episodes})
        rows[-1] |= {"success": solved.total() / episodes, "success_interval": [low, high]}
        table.add_row(name, *counts.values(), f"{solved.total()} of {episodes}", f"{low:.3f} to {high:.3f}")
        print(rows[-1], flush=True)
    Console().print(table)
    speeds: dict[str, Any] = {"steps_per_s": steps_per_s(images=False)}
    speeds["steps_with_two_pictures_per_s"] = steps_per_s(images=True)
    print(speeds)
    print(f"written: {write_results('sim_language', rows, **speeds)}")


def steps_per_s(*, images: bool) -> int:
    """Along an expert's actions, per second of CPU."""
    with closing(make_world(NAME, images=images)) as world:
        actions = demonstrate(world, make_expert(NAME), 0, NOISE).streams["action_sent"]
        steps, spent = 0, 0.0
        while spent < SECONDS:
            world.reset(0)
            begun = time.process_time()
            for action in actions:
                world.step(action)
            spent += time.process_time() - begun
            steps += len(actions)
    return round(steps / spent)


if __name__ == "__main__":
    main()
