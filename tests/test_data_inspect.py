"""`validate` warns of content that looks wrong, where it is, and of nothing in data that is good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.inspect import Finding, inspect
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter

SCHEMA = Schema(
    20.0,
    {
        "camera": Stream((8, 8, 3), "uint8", "image"),
        "joints": Stream((3,), names=("a", "b", "angle"), unit="rad", wraps=(2,)),
        "action": Stream((2,), kind="action"),
    },
)
Episode = dict[str, np.ndarray]


def good() -> list[Episode]:
    rng = np.random.default_rng(0)
    episodes = []
    for steps in (100, 140, 120, 90, 130):
        time = np.arange(steps) / 20.0
        waves = np.stack([np.sin(time * rng.uniform(1, 2) + rng.uniform(0, 6)) for _ in range(4)], axis=1)
        angle = (1.5 * time + rng.uniform(0, 6)) % (2 * np.pi)
        episodes.append(
            {
                "camera": rng.integers(0, 256, (steps, 8, 8, 3), dtype=np.uint8),
                "joints": np.column_stack([waves[:, :2], angle]).astype("f4"),
                "action": waves[:, 2:].astype("f4"),
                "tick": 10**9 + np.arange(steps) * 50_000_000,
                "valid": np.arange(steps) % 9 != 8,
            }
        )
    return episodes


def found_in(path: Path, episodes: list[Episode]) -> list[Finding]:
    with DatasetWriter.create(path, SCHEMA, durable=False) as writer:
        for episode in episodes:
            rows = {name: episode[name] for name in SCHEMA.streams}
            writer.extend(rows, time_ns=episode["tick"], valid={"camera": episode["valid"]})
            writer.save_episode()
    return inspect(Dataset.open(path))


def test_good_data_gives_no_warning(tmp_path: Path) -> None:
    assert found_in(tmp_path / "d", good()) == []


def freeze(episodes: list[Episode]) -> None:
    episodes[1]["camera"][30:60] = episodes[1]["camera"][30]
    episodes[1]["valid"][:] = True


def jump(episodes: list[Episode]) -> None:
    episodes[2]["joints"][50, 0] += 30


def clip(episodes: list[Episode]) -> None:
    for episode in episodes:
        episode["action"][:, 1] = np.clip(episode["action"][:, 1], -0.5, 0.5)


def hold(episodes: list[Episode]) -> None:
    for episode in episodes:
        episode["joints"][:, 1] = 0.25


def repeat(episodes: list[Episode]) -> None:
    episodes.append(episodes[0])


def pause(episodes: list[Episode]) -> None:
    episodes[3]["tick"][40:] += 10**9


def lose(episodes: list[Episode]) -> None:
    episodes[4]["valid"][10:50] = False


def stop(episodes: list[Episode]) -> None:
    episodes.append({name: value[:2].copy() for name, value in episodes[0].items()})


@pytest.mark.parametrize(
    ("plant", "kind", "words"),
    [
        (freeze, "frozen", "camera, episode 1, steps 30 to 59: the same picture 30 times"),
        (jump, "jump", "joints, episode 2, steps 50 to 51: joints.a jumps by"),
        (clip, "saturated", "action[1] is at its highest value 0.5"),
        (hold, "constant", "joints: joints.b never changed"),
        (repeat, "duplicate", "episode 5: has the same content as episode 0"),
        (pause, "gap", "tick, episode 3, steps 39 to 40: 1 gaps in time, the longest 1.05 s"),
        (lose, "hole", "camera, episode 4, steps 10 to 49: no sample for 2 s"),
        (stop, "short", "episode 5: has only 2 steps"),
    ],
)
def test_each_planted_fault_is_found_where_it_is(
    tmp_path: Path, plant: Callable[[list[Episode]], None], kind: str, words: str
) -> None:
    episodes = good()
    plant(episodes)
    found = found_in(tmp_path / "d", episodes)
    assert {finding.kind for finding in found} == {kind}
    assert any(words in str(finding) for finding in found), [str(finding) for finding in found]


def test_a_camera_may_stand_still_while_nothing_moves(tmp_path: Path) -> None:
    episodes = good()
    for name in ("camera", "joints"):
        episodes[1][name][30:60] = episodes[1][name][30]
    assert not [f for f in found_in(tmp_path / "d", episodes) if f.kind == "frozen"]


NATIVE = Schema(
    20.0,
    {
        "camera": Stream((8, 8, 3), "uint8", "image", rate_hz=30.0),
        "wrench": Stream((2,), rate_hz=500.0, interpolation="linear"),
        "joints": Stream((1,)),
    },
)


@pytest.mark.parametrize("fault", ["none", "frozen", "dropped"])
def test_streams_with_a_rate_of_their_own_are_looked_at_sample_by_sample(tmp_path: Path, fault: str) -> None:
    rng = np.random.default_rng(0)
    with DatasetWriter.create(tmp_path / "d", NATIVE, durable=False) as writer:
        for episode in range(3):
            ticks = 10**9 + np.arange(100) * 50_000_000
            seen = 10**9 + np.arange(150) * 10**9 // 30
            felt = 10**9 + np.arange(2500) * 2_000_000
            pictures = rng.integers(0, 256, (150, 8, 8, 3), dtype=np.uint8)
            if fault == "frozen" and episode == 1:
                pictures[60:90] = pictures[60]
            if fault == "dropped" and episode == 2:
                felt = np.delete(felt, slice(1000, 1250))
            writer.add_samples("camera", pictures, seen)
            writer.add_samples("wrench", np.sin(felt[:, None] / 3e8 + [episode, 1]).astype("f4"), felt)
            writer.extend({"joints": np.sin(ticks[:, None] / 5e8 + episode).astype("f4")}, time_ns=ticks)
            writer.save_episode()
    expected = {
        "none": [],
        "frozen": ["camera, episode 1, steps 40 to 59: the same picture 30 times"],
        "dropped": ["wrench, episode 2: about 250 of 2500 samples are missing, at most 0.502 s between two, 2 s after"],
    }
    found = [str(finding) for finding in inspect(Dataset.open(tmp_path / "d"))]
    assert len(found) == len(expected[fault])
    for shown, words in zip(found, expected[fault], strict=True):
        assert words in shown


def test_motion_over_several_steps_and_trembling_are_no_jumps(tmp_path: Path) -> None:
    episodes = good()
    for episode in episodes:
        episode["joints"][:, 1] = 0.1
        episode["joints"][::50, 1] += 1e-6  # a joint that rests, but for its encoder's last bit
    episodes[0]["joints"][40:45, 1] += 0.001
    episodes[1]["joints"][60:, 0] += np.minimum(np.arange(80) * 8, 40)
    assert [f for f in found_in(tmp_path / "d", episodes) if f.kind == "jump"] == []


def test_warnings_change_the_exit_code_only_when_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = good()
    pause(episodes)
    found_in(tmp_path / "d", episodes)
    assert main(["data", "validate", str(tmp_path / "d")]) == 0
    shown = capsys.readouterr().out
    assert "warning: tick, episode 3" in shown
    assert "whole, 1 warning\n" in shown
    assert main(["data", "validate", str(tmp_path / "d"), "--strict"]) == 1
