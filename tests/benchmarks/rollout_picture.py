"""Draws the README's picture: one episode of a trained policy in PushT and one in Lift, six moments of each.

python tests/benchmarks/rollout_picture.py PUSHT_CHECKPOINT LIFT_CHECKPOINT
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from robolearn.evaluation.lockstep import Episode, infer
from robolearn.policies.checkpoint import load_policy
from robolearn_data.world import Step, World
from robolearn_sim.worlds import make_world

MOMENTS, SIDE = 6, 200
PICTURE = Path(__file__).parents[2] / "sim" / "assets" / "rollout.png"


def moments(checkpoint: str, world: World, seed: int) -> np.ndarray:
    """(SIDE, MOMENTS * SIDE, 3) uint8: an episode from its start to its end."""
    policy = load_policy(checkpoint)
    episode = Episode(world, policy, seed)
    frames, step = [world.render()], world.step

    def filmed(action: np.ndarray) -> Step:
        outcome = step(action)
        frames.append(world.render())
        return outcome

    world.step = filmed
    while episode.carry_out(infer(policy, [episode], steps=None)[0]) is None:
        pass
    chosen = [frames[i] for i in np.linspace(0, len(frames) - 1, MOMENTS).round().astype(int)]
    return np.hstack([np.asarray(Image.fromarray(f).resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for f in chosen])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    rows = []
    for checkpoint, name in zip(sys.argv[1:], ("pusht", "lift"), strict=True):
        with closing(make_world(name)) as world:
            rows.append(moments(checkpoint, world, seed=100_000))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(PICTURE, optimize=True)
    print(PICTURE)
