"""Writes the datasets that check.py loads with LeRobot: small ones of every kind, and PushT where it is at hand.

export.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.formats.lerobot_layout import keys_of
from robolearn_data.formats.lerobot_read import import_lerobot
from robolearn_data.formats.lerobot_write import export_lerobot
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

PUSHT = Path(__file__).resolve().parents[3] / "shared" / "datasets" / "pusht12_lerobot_v30"


def mixed(path: Path) -> None:
    """Episodes of every dtype that streams have, two cameras, several tasks, one that changes within an episode."""
    schema = Schema(
        20.0,
        {
            "camera": Stream((48, 64, 3), "uint8", "image"),
            "wrist": Stream((32, 32, 3), "float32", "image"),
            "depth": Stream((8, 8, 1), "uint16", "image"),
            "state": Stream((3,), "float64", "state", names=("x", "y", "z"), unit="m"),
            "keypoint": Stream((4, 2), "float32", "state"),
            "counter": Stream((), "int64", "info"),
            "contact": Stream((2,), "bool", "info"),
            "action": Stream((7,), "float32", "action"),
        },
    )
    rng = np.random.default_rng(0)
    with DatasetWriter.create(path, schema, durable=False) as writer:
        for episode, steps in enumerate((1, 2, 130, 45)):
            shade = (np.arange(steps) * 5 % 256)[:, None, None, None] + np.zeros((1, 48, 64, 3))
            writer.extend(
                {
                    "camera": shade.astype("uint8"),
                    "wrist": (255 - shade[:, :32, :32]).astype("float32"),
                    "depth": rng.integers(0, 2**16, (steps, 8, 8, 1), dtype=np.uint16),
                    "state": rng.normal(size=(steps, 3)),
                    "keypoint": rng.normal(size=(steps, 4, 2)).astype("float32"),
                    "counter": rng.integers(-(2**60), 2**60, steps),
                    "contact": rng.random((steps, 2)) < 0.5,
                    "action": rng.normal(size=(steps, 7)).astype("float32"),
                }
            )
            info = {"task": f"task {episode % 2}", "success": episode > 0}
            writer.save_episode(info | ({"task_segments": [[0, "reach"], [20, "place"]]} if episode == 3 else {}))


def expected(path: Path) -> dict[str, np.ndarray]:
    """What LeRobot must give for the dataset at ``path``: feature key -> (N, ...)."""
    dataset = Dataset.open(path)
    found = {"episode_ends": dataset.episode_ends, "fps": np.array(dataset.schema.rate_hz)}
    for name, key in keys_of(dataset.schema, dataset.metadata).items():
        values = dataset.read(name)
        camera = dataset.schema.streams[name].kind == "image" and values.shape[-1] == 3
        found[key] = values if camera else values.reshape(len(values), -1)
    tasks: list[str] = []
    for episode in range(dataset.episodes):
        info, rows = dataset.episode_info(episode), dataset.rows(episode)
        changes = info.get("task_segments") or [[0, info["task"]]]
        stops = [start for start, _ in changes[1:]] + [rows.stop - rows.start]
        for (start, task), stop in zip(changes, stops, strict=True):
            tasks += [task] * (stop - start)
    return {**found, "task": np.array(tasks)}


def main() -> None:
    folder = Path(sys.argv[1])
    mixed(folder / ".mixed")
    cases = [(folder / ".mixed", "mixed")]
    if PUSHT.is_dir():
        import_lerobot(PUSHT, folder / ".pusht")
        cases.append((folder / ".pusht", "pusht"))
    for path, name in cases:
        for version in ("v3.0", "v2.1"):
            for images in ("h264", "av1", "png"):
                case = folder / f"{name}_{version}_{images}"
                export_lerobot(path, case, version=version, images=images)
                np.savez(f"{case}.npz", allow_pickle=False, **expected(path))


if __name__ == "__main__":
    main()
