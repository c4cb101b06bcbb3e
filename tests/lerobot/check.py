"""Loads our exports with LeRobot itself and compares every row. Runs in LeRobot's own environment: `make test-lerobot`.

    check.py FOLDER        FOLDER/<case>/ is a LeRobot v3.0 dataset, FOLDER/<case>.npz what it must hold (see export.py)

LeRobot must give for every row: the numbers bit for bit, timestamps of frame_index / fps, the task's text, and the
pictures, exactly for PNG and nearly for video.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from lerobot import __version__
from lerobot.datasets.lerobot_dataset import LeRobotDataset

LEAST_PSNR = 25.0
"""Decibel between a picture and what its video shows: a wrong frame of these videos is far below."""


def check(root: Path) -> str:
    expected = np.load(root.with_suffix(".npz"), allow_pickle=False)
    dataset = LeRobotDataset(f"robolearn/{root.name}", root=root, video_backend="pyav")
    ends = expected["episode_ends"]
    assert (dataset.num_episodes, dataset.num_frames) == (len(ends), ends[-1])
    assert dataset.fps == expected["fps"]
    assert dataset.meta.stats is not None
    starts = np.concatenate([[0], ends[:-1]])
    worst = np.inf
    for episode, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        assert dataset.meta.episodes[episode]["length"] == end - start
        for row in range(start, end):
            item = dataset[row]
            assert item["episode_index"].item() == episode
            assert item["frame_index"].item() == row - start
            assert item["index"].item() == row
            assert abs(item["timestamp"].item() - (row - start) / dataset.fps) < 1e-4
            assert item["task"] == str(expected["task"][row])
            for key in dataset.features:
                if key in dataset.meta.camera_keys:
                    found = (item[key].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
                    error = np.mean((found.astype(float) - expected[key][row]) ** 2)
                    worst = min(worst, 10 * np.log10(255**2 / max(error, 1e-9)))
                    assert key not in dataset.meta.image_keys or error == 0
                elif key in expected:
                    value = item[key].numpy().reshape(-1)  # LeRobot gives float64 as float32, uint16 as int64
                    assert value.tobytes() == expected[key][row].astype(value.dtype).tobytes(), (key, row)
    assert worst > LEAST_PSNR, f"pictures differ: {worst:.1f} dB"
    for key in dataset.meta.camera_keys:
        assert dataset.meta.stats[key]["mean"].shape == (3, 1, 1)
    return (
        f"{len(ends)} episodes, {ends[-1]} rows, keys {', '.join(dataset.features)}; pictures {worst:.1f} dB or better"
    )


def main() -> int:
    roots = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir() and not path.name.startswith("."))
    print(f"LeRobot {__version__}")
    for root in roots:
        print(f"{root.name}: {check(root)}")
    return 0 if roots else 1


if __name__ == "__main__":
    sys.exit(main())
