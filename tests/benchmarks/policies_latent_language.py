"""What the instruction says of a change, and what it does not: which part of a latent-action model has which.

    python tests/benchmarks/policies_latent_language.py                # every model; five minutes of CPU time
    python tests/benchmarks/policies_latent_language.py --models 1 2   # some of MODELS, by number

Two squares in 80 episodes of 20 steps: the red one moves by up to 3 pixels as it is said at each step, the blue one at
random. Prints R^2 of linear probes of how each of them moved, over all episodes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from robolearn.cli.tables import new_table, show_table
from robolearn.evaluation.latents import measure
from robolearn.policies.latent.config import LatentModelConfig
from robolearn.training.config import LatentTrainConfig, OptimiserConfig
from robolearn.training.latent import train_latent_model
from robolearn.training.processes import processes
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

SIDE, EPISODES, LENGTH = 32, 80, 20
COLOURS = np.array([[255, 40, 40], [40, 40, 255]])
MODELS: tuple[tuple[dict[str, Any], int | None, int], ...] = (
    ({"size": 4, "kl": 1e-4}, None, 1_600),
    ({"size": 4, "kl": 1e-4, "language": "words"}, 1_200, 400),
    ({"bottleneck": "vq", "size": 8, "tokens": 4, "codes": 16, "language": "words"}, 1_200, 600),
    ({"size": 4, "kl": 1e-3, "language": "words"}, 1_200, 400),
    ({"size": 4, "kl": 1e-4, "language": "words"}, 400, 400),
)
"""Options of the model, steps of the first stage, and of the second or only one."""


def write(path: Path) -> None:
    rng = np.random.default_rng(0)
    move = Stream((2,), kind="action", names=("x", "y"))
    image, text = Stream((SIDE, SIDE, 3), "uint8", kind="image"), Stream((64,), "uint8", kind="text")
    streams = {"img": image, "red": move, "blue": move, "instruction": text}
    grid = np.arange(SIDE) + 0.5
    with DatasetWriter.create(path, Schema(10.0, streams), compression={"img": "zstd-1"}, durable=False) as writer:
        for _ in range(EPISODES):
            background = rng.integers(0, 60, (1, 1, 3))
            places = rng.uniform(8, SIDE - 8, (2, 2))
            for _ in range(LENGTH):
                moves = np.stack([rng.integers(-3, 4, 2), rng.uniform(-3, 3, 2)])
                moves = np.where((places + moves < 5) | (places + moves > SIDE - 5), -moves, moves)
                picture = np.broadcast_to(background, image.shape).astype(float)
                for colour, (x, y) in zip(COLOURS, places, strict=True):
                    along, down = (np.clip(4 - np.abs(grid - middle), 0, 1) for middle in (x, y))
                    cover = (down[:, None] * along)[..., None]
                    picture = picture * (1 - cover) + colour * cover
                red, blue = moves.astype(np.float32)
                words = ("right" if red[0] > 0 else "left", "down" if red[1] > 0 else "up")
                said = f"push the red one {words[0]} {abs(int(red[0]))} {words[1]} {abs(int(red[1]))}"
                writer.add({"img": picture.astype(np.uint8), "red": red, "blue": blue, "instruction": said})
                places = places + moves
            writer.save_episode({})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=range(len(MODELS)))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sources = ("z", "unsaid")
    titles = [f"{name} from {source}" for source in sources for name in ("red", "blue")]
    table = new_table("model", "steps", *titles, numbers=("steps", *titles))
    with tempfile.TemporaryDirectory() as folder, processes("cpu") as group:
        data = Path(folder) / "squares.zarr"
        write(data)
        dataset = Dataset.open(data)
        for number in options.models:
            model, first, steps = MODELS[number]
            config = LatentTrainConfig(
                model=LatentModelConfig(image_size=SIDE, width=16, ahead=1, **model),
                optimiser=OptimiserConfig(lr=2e-3, warmup=20),
                first_steps=first,
                steps=steps,
                batch_size=32,
                seed=options.seed,
                checkpoint_every=10_000,
            )
            learned = train_latent_model(config, [data], Path(folder) / str(number), group)
            probes = measure(learned, [(dataset, range(EPISODES))], most=1_000)["probes"]
            found = [probes[name].get(source) for source in sources for name in ("red", "blue")]
            values = ["-" if value is None else f"{np.mean(value):.2f}" for value in found]
            table.add_row(str(model), str(steps) if first is None else f"{first} + {steps}", *values)
    show_table(table)


if __name__ == "__main__":
    main()
