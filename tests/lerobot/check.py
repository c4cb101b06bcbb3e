"""Loads our exports with LeRobot itself and compares every row. Runs in LeRobot's own environment: `make test-lerobot`.

    check.py FOLDER        FOLDER/<case>/ is a LeRobot dataset, FOLDER/<case>.npz what it must hold (see export.py)

LeRobot must give for every row: the numbers bit for bit, timestamps of frame_index / fps, the task's text, and the
pictures, exactly for PNG and nearly for video. Windows of delta_timestamps end at the edges of episodes, and the
statistics are those of the rows. Datasets of version 2.1 go through LeRobot's own converter first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from lerobot import __version__
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

LEAST_PSNR = 25.0
"""Decibel between a picture and what its video shows: a wrong frame of these videos is far below."""


def check(root: Path) -> str:
    expected = np.load(f"{root}.npz", allow_pickle=False)
    if json.loads((root / "meta/info.json").read_text())["codebase_version"] == "v2.1":
        convert_dataset(f"robolearn/{root.name}", root=root, push_to_hub=False)
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
    check_stats(dataset, expected)
    check_windows(root, dataset, expected)
    return (
        f"{len(ends)} episodes, {ends[-1]} rows, keys {', '.join(dataset.features)}; pictures {worst:.1f} dB or better"
    )


def check_stats(dataset: LeRobotDataset, expected: Mapping[str, np.ndarray]) -> None:
    """Exact for numbers; the pictures' are of a sample of them."""
    for key, stats in dataset.meta.stats.items():
        if key in dataset.meta.camera_keys:
            assert stats["mean"].shape == stats["std"].shape == (3, 1, 1)
            pictures = expected[key].reshape(-1, 3) / 255
            assert np.abs(stats["mean"].ravel() - pictures.mean(axis=0)).max() < 0.02, key
            assert np.abs(stats["std"].ravel() - pictures.std(axis=0)).max() < 0.02, key
        elif key in expected:
            values = expected[key].astype(np.float64)
            for name, wanted in (("min", values.min(0)), ("max", values.max(0)), ("mean", values.mean(0))):
                np.testing.assert_allclose(stats[name], wanted, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(stats["std"], values.std(axis=0), rtol=1e-6, atol=1e-7)


def check_windows(root: Path, dataset: LeRobotDataset, expected: Mapping[str, np.ndarray]) -> None:
    """Actions of the step before, of now and of two steps ahead, and pictures of the step before and of now."""
    steps = {"action": (-1, 0, 2)} | dict.fromkeys(dataset.meta.camera_keys, (-1, 0))
    deltas = {key: [n / dataset.fps for n in around] for key, around in steps.items()}
    windows = LeRobotDataset(dataset.repo_id, root=root, video_backend="pyav", delta_timestamps=deltas)
    ends = expected["episode_ends"].tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        for row in {start, min(start + 1, end - 1), (start + end) // 2, end - 1}:
            item = windows[row]
            for key, around in steps.items():
                wanted = [min(max(row + n, start), end - 1) for n in around]
                assert item[f"{key}_is_pad"].tolist() == [not start <= row + n < end for n in around]
                found = item[key].numpy()
                if key == "action":
                    assert found.tobytes() == expected[key][wanted].astype(found.dtype).tobytes()
                    continue
                pictures = (found * 255).round().transpose(0, 2, 3, 1)
                error = np.mean((pictures - expected[key][wanted]) ** 2)
                assert 10 * np.log10(255**2 / max(error, 1e-9)) > LEAST_PSNR, (key, row)


def main() -> int:
    roots = sorted(
        path for path in Path(sys.argv[1]).iterdir() if path.is_dir() and path.with_name(f"{path.name}.npz").exists()
    )
    print(f"LeRobot {__version__}")
    for root in roots:
        print(f"{root.name}: {check(root)}")
    return 0 if roots else 1


if __name__ == "__main__":
    sys.exit(main())
