"""How fast the simulated worlds are on one core, beside robosuite's own environments of the same tasks.

`python tests/benchmarks/sim_speed.py` prints the table and writes results/sim_speed.json. Every world is a
process of its own, which measures ours and then robosuite's; three rounds, of which the median counts. Per second of
CPU time:

- steps_per_s: control steps with the state observed, along the actions of a disturbed expert (the same for both);
- frames_per_s: pictures of 84 x 84 pixels from one camera, without steps between them, drawn on the CPU.

Both as they are by default: robosuite's with multisampling, shadows and reflections, ours without, with coarser meshes.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from results import write_results
from rich.console import Console
from rich.table import Table

ENVIRONMENTS = {
    "lift": "Lift",
    "can": "PickPlaceCan",
    "square": "NutAssemblySquare",
    "stack": "Stack",
    "door": "Door",
    "so101_tabletop": "",
}
"""World -> robosuite's name for it, if it has one."""
ROUNDS, SECONDS = 3, 1.5
SIZE = 84

Speeds = dict[str, dict[str, float]]
"""Backend -> figure -> value."""


def main() -> None:
    found: dict[str, list[Speeds]] = {world: [] for world in ENVIRONMENTS}
    for _ in range(ROUNDS):
        for world, rounds in found.items():
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
            command = [sys.executable, __file__, world]
            answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            rounds.append(json.loads(answer.stdout.splitlines()[-1]))
            print(world, rounds[-1], flush=True)
        report(found)


def report(found: dict[str, list[Speeds]]) -> None:
    """The medians of the rounds so far, printed and written."""
    rows: list[dict[str, Any]] = []
    table = Table("world", "backend", "steps/s", "frames/s", "rounds")
    for world, rounds in found.items():
        for backend in rounds[0]:
            rows.append({"world": world, "backend": backend})
            for figure in ("steps_per_s", "frames_per_s"):
                rows[-1][figure] = round(median(once[backend][figure] for once in rounds))
            rows[-1]["rounds"] = len(rounds)
            table.add_row(*(str(value) for value in rows[-1].values()))
    Console().print(table)
    load = round(os.getloadavg()[1], 1)
    print(f"written: {write_results('sim_speed', rows, size=SIZE, load_5_min=load)}", flush=True)


def measure(world: str) -> Speeds:
    if ENVIRONMENTS[world]:
        importlib.import_module("robosuite")  # first: our worlds import it with its compiled functions switched off

    from robolearn_sim.demonstrations import demonstrate
    from robolearn_sim.experts import make_expert
    from robolearn_sim.worlds import make_world

    ours: Any = make_world(world)
    actions = demonstrate(ours, make_expert(world), 0, 0.2).streams["action_sent"].astype(np.float64)
    camera = "front" if world == "so101_tabletop" else "agentview"
    speeds = {
        "robolearn": {
            "steps_per_s": steps_per_s(lambda: ours.reset(0), ours.step, actions),
            "frames_per_s": frames_per_s(lambda: ours._camera.draw(ours._data, camera, SIZE)),
        }
    }
    ours.close()
    if ENVIRONMENTS[world]:
        theirs: Any = importlib.import_module("robosuite").make(
            ENVIRONMENTS[world],
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            control_freq=20,
            ignore_done=True,
            hard_reset=False,
            seed=0,
        )
        speeds["robosuite"] = {
            "steps_per_s": steps_per_s(theirs.reset, theirs.step, np.clip(actions, -1, 1)),
            "frames_per_s": frames_per_s(lambda: theirs.sim.render(camera_name=camera, width=SIZE, height=SIZE)),
        }
    return speeds


def steps_per_s(reset: Callable[[], Any], step: Callable[[np.ndarray], Any], actions: np.ndarray) -> float:
    """Resets are left out, and so is an episode in which robosuite compiles."""
    reset()
    for action in actions:
        step(action)
    done, spent = 0, 0.0
    while spent < SECONDS:
        reset()
        for action in actions[:5]:  # warm
            step(action)
        begun = time.process_time()
        for action in actions[5:]:
            step(action)
        spent += time.process_time() - begun
        done += len(actions) - 5
    return done / spent


def frames_per_s(draw: Callable[[], Any]) -> float:
    for _ in range(5):
        draw()
    done, begun = 0, time.process_time()
    while time.process_time() - begun < SECONDS:
        draw()
        done += 1
    return done / (time.process_time() - begun)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
