"""Bad episodes planted among good ones rank worst, each for the reason it was planted for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.quality import QualityError, quality
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(10.0, {"state": Stream((2,)), "action": Stream((2,), kind="action")})


def write(path: Path, schema: Schema, episodes: list[dict[str, np.ndarray]]) -> Dataset:
    with DatasetWriter.create(path, schema, durable=False) as writer:
        for episode in episodes:
            writer.extend(episode)
            writer.save_episode({"success": True})
    return Dataset.open(path)


def plant(episodes: list[dict[str, np.ndarray]], noise: float) -> list[dict[str, np.ndarray]]:
    """The episodes and three bad ones: reversed in time, with shaken actions, standing still half the time."""
    first, second, third = episodes[10], episodes[20], episodes[30]
    shaken = second["action"] + noise * np.random.default_rng(0).normal(size=second["action"].shape)
    half = len(third["action"]) // 2
    stands = {
        k: np.concatenate([v[:half], np.repeat(v[half : half + 1], len(v), axis=0), v[half:]]) for k, v in third.items()
    }
    backwards = {k: v[::-1].copy() for k, v in first.items()}
    return [*episodes, backwards, {**second, "action": shaken.astype("f4")}, stands]


def assert_planted_stand_out(dataset: Dataset) -> None:
    found = quality(dataset)
    planted = list(range(dataset.episodes - 3, dataset.episodes))
    assert sorted(e.episode for e in found.episodes[:3]) == planted
    reasons = {e.episode: " ".join(e.reasons) for e in found.episodes}
    assert "do not follow from its actions" in reasons[planted[0]]
    assert "shaky actions" in reasons[planted[1]]
    assert "stands still" in reasons[planted[2]]
    assert sum(bool(reasons[e]) for e in reasons if e not in planted) <= 0.05 * dataset.episodes  # no crying wolf


def reaching(count: int) -> list[dict[str, np.ndarray]]:
    """Points driven to the origin along curves, each its own way."""
    rng = np.random.default_rng(1)
    episodes = []
    for _ in range(count):
        at = rng.uniform(-1, 1, 2)
        turn = np.array([[1, 0.3], [-0.3, 1]])
        states, actions = [], []
        for _ in range(int(rng.integers(30, 45))):
            target = at - 0.15 * turn @ at + rng.normal(size=2) * 0.01
            states.append(at)
            actions.append(target)
            at = at + 0.8 * (target - at)
        episodes.append({"state": np.array(states, "f4"), "action": np.array(actions, "f4")})
    return episodes


def test_planted_bad_episodes_rank_worst(tmp_path: Path) -> None:
    assert_planted_stand_out(write(tmp_path / "d", SCHEMA, plant(reaching(40), 0.3)))


def test_planted_bad_episodes_rank_worst_among_human_demonstrations(human_pusht: Path, tmp_path: Path) -> None:
    source = zarr.open_group(str(human_pusht), mode="r")
    arrays = {name: np.asarray(source[f"data/{name}"][:]) for name in ("state", "keypoint", "action")}  # pyright: ignore
    ends = np.asarray(source["meta/episode_ends"][:]).tolist()  # pyright: ignore
    episodes = [{k: v[a:b] for k, v in arrays.items()} for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    streams = {
        "state": Stream((5,), wraps=(4,)),
        "keypoint": Stream((9, 2)),
        "action": Stream((2,), kind="action"),
    }
    assert_planted_stand_out(write(tmp_path / "d", Schema(10.0, streams), plant(episodes, 30.0)))


def test_too_few_episodes_are_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write(tmp_path / "d", SCHEMA, reaching(2))
    with pytest.raises(QualityError, match="three episodes"):
        quality(dataset)
    assert main(["data", "quality", str(dataset.path)]) == 2


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write(tmp_path / "d", SCHEMA, plant(reaching(40), 0.3))
    assert main(["data", "quality", str(dataset.path)]) == 0
    assert "robolearn data delete" in capsys.readouterr().out
