"""Draws the picture in sim/README.md: every world with an expert, at the start of an episode, on the way, and solved.

`python tests/benchmarks/worlds_picture.py` writes sim/assets/worlds.png.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from results import ROOT

from robolearn_sim.experts import EXPERTS, make_expert
from robolearn_sim.worlds import make_world

SHARES = (0.0, 0.55, 1.0)
"""Of the episode, at which it is drawn."""


def film(name: str, seed: int = 1) -> list[np.ndarray]:
    """Pictures (H, W, 3) of an episode of the expert."""
    expert, pictures = make_expert(name), []
    with closing(make_world(name)) as world:
        observation = world.reset(seed)
        expert.reset(np.random.default_rng(seed))
        while True:
            pictures.append(world.render())
            step = world.step(expert.act(observation))
            observation = step.observation
            if step.done:
                pictures.append(world.render())
                break
    if not step.success:
        raise SystemExit(f"the expert did not solve {name!r} from seed {seed}")
    return [pictures[round(share * (len(pictures) - 1))] for share in SHARES]


def main() -> None:
    films = {name: film(name) for name in EXPERTS}
    figure = Figure(figsize=(1.6 * len(films), 1.65 * len(SHARES)), dpi=100)
    axes = figure.subplots(len(SHARES), len(films), squeeze=False)
    for column, (name, pictures) in zip(axes.T, films.items(), strict=True):
        column[0].set_title(name, fontsize=9)
        for axis, picture in zip(column, pictures, strict=True):
            axis.imshow(picture)
            axis.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 0.95, 0.01, 0.01)
    path = ROOT / "sim" / "assets" / "worlds.png"
    figure.savefig(path)
    Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
