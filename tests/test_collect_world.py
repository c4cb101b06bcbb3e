"""A person records demonstrations in a simulated world, in real time, with the processes of a real session."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from world_hands import pusht_session

from robolearn_data.dataset import Dataset
from robolearn_data.world import Step
from robolearn_deploy.collect_session import Stage
from robolearn_deploy.operator import Command
from robolearn_deploy.stall import State
from robolearn_deploy.world_collect import recorded_schema
from robolearn_deploy.world_process import DONE_FIELDS
from robolearn_deploy.world_report import WorldMeasured
from robolearn_hardware.ring import Field
from robolearn_sim.demonstrations import demonstration_schema
from robolearn_sim.worlds import make_world, world_spec


@pytest.mark.parametrize("options", [{}, {"images": True}])
def test_a_session_records_the_schema_of_scripted_demonstrations(options: dict[str, bool]) -> None:
    for world in ("pusht", "lift"):
        assert recorded_schema(world_spec(world, **options)) == demonstration_schema(world, options)


@pytest.mark.slow
def test_episodes_begin_with_the_deadman_and_replay_bit_for_bit_from_their_seeds(tmp_path: Path) -> None:
    with pusht_session(tmp_path, seed=7) as (held, deadman):
        held.tell(Command.START)
        held.until_stage(Stage.EPISODE)
        held.until(lambda: held.measured.state is State.TELEOP, "the world is driven")
        assert not held.measured.step, "the world moved without a deadman"
        assert held.waiting
        deadman.touch()
        held.until(lambda: not held.waiting, "recording begins")
        held.until_stage(Stage.JUDGING)  # the world's steps are over and it is not solved
        held.tell(Command.SUCCESS)  # which only the world can say
        held.until(lambda: "does not count it as solved" in held.note, "the success is refused")
        held.tell(Command.REDO)
        held.until_stage(Stage.EPISODE)
        held.until_stage(Stage.JUDGING)
        held.tell(Command.FAILURE)
        held.until_stage(Stage.READY)
        held.tell(Command.START)
        held.until_stage(Stage.JUDGING)
        held.tell(Command.FAILURE)
        held.until_stage(Stage.READY)
        report = held.end()
        assert (report.saved, report.discarded, report.successes, report.failure) == (2, 1, 0, "")

        dataset = Dataset.open(tmp_path / "out.zarr")
        assert [dataset.episode_info(i)["seed"] for i in range(2)] == [7, 8]
        assert all(dataset.episode_info(i)["success"] is False for i in range(2))
        world = make_world("pusht", max_steps=15)
        for i, seed in enumerate((7, 8)):
            rows = dataset.episode(i)
            assert len(rows["action"]) == 15
            observation = world.reset(seed)
            for t in range(15):
                assert np.array_equal(rows["state"][t], observation["state"]), f"episode {i}, step {t}"
                observation = world.step(rows["action"][t]).observation
            # A circle of 100 px in 2 s: the pointer was followed.
            assert np.allclose(np.linalg.norm(rows["action"][2:] - 256, axis=1), 100, atol=1.0)


@pytest.mark.slow
def test_without_its_deadman_the_world_stands_still_and_a_pause_stops_its_time(tmp_path: Path) -> None:
    with pusht_session(tmp_path, episode_s=60.0) as (held, deadman):
        held.tell(Command.START)
        deadman.touch()
        held.until(lambda: len(held.measured.step) > 5, "the world moves")
        deadman.unlink()
        held.until(lambda: not held.measured.person, "the deadman is let go")
        at = len(held.measured.step)
        held.until(lambda: len(held.measured.step) > at + 10, "the world's time goes on")
        held.tell(Command.PAUSE)
        held.until(lambda: held.measured.state is State.STOPPED, "the pause")
        steps, ticks = len(held.measured.step), len(held.measured.lateness)
        held.until(lambda: len(held.measured.lateness) > ticks + 10, "a second passes")
        assert len(held.measured.step) == steps
        held.tell(Command.RESUME)
        held.until(lambda: len(held.measured.step) > steps, "the world goes on")
        held.tell(Command.FAILURE)
        held.until_stage(Stage.READY)
        held.end()
        rows = Dataset.open(tmp_path / "out.zarr").episode(0)
        assert len(rows["action"]) >= steps
        released = rows["action"][at + 2 : at + 9]
        assert np.ptp(released, axis=0).max() == 0, "the target moved without a deadman"


def test_a_stop_of_the_supervisor_stops_the_world_and_a_killed_world_ends_the_session_with_what_was_saved(
    tmp_path: Path,
) -> None:
    with pusht_session(tmp_path) as (held, deadman):
        deadman.touch()
        held.tell(Command.START)
        held.until_stage(Stage.JUDGING)
        held.tell(Command.FAILURE)
        held.until_stage(Stage.READY)
        held.tell(Command.START)
        held.until(lambda: held.stage is Stage.EPISODE and held.measured.person, "an episode is in flight")
        os.kill(held.pids["world"], signal.SIGKILL)
        held.until(lambda: held.report is not None, "the session ends")
        assert held.report is not None
        assert "world process was killed" in held.report.failure
        assert Dataset.open(tmp_path / "out.zarr").episodes == 1


def test_a_killed_teleoperator_leaves_the_world_still_and_the_session_going(tmp_path: Path) -> None:
    with pusht_session(tmp_path, episode_s=60.0) as (held, deadman):
        deadman.touch()
        held.tell(Command.START)
        held.until(lambda: held.measured.person and len(held.measured.step) > 3, "the world moves")
        os.kill(held.pids["sweep"], signal.SIGKILL)
        held.until(lambda: not held.measured.person, "nobody holds the deadman")
        assert held.stage is Stage.EPISODE
        held.until(lambda: any("goes on without it" in text for text in held.messages), "it is told")
        held.tell(Command.FAILURE)
        held.until_stage(Stage.READY)
        assert held.end().saved == 1


class Slow:
    """A world whose steps take longer than they may."""

    def __init__(self, steps: int, step_s: float) -> None:
        self._world, self._step_s = make_world("pusht", max_steps=steps), step_s
        self.spec = self._world.spec

    def step(self, action: np.ndarray) -> Step:
        time.sleep(self._step_s)
        return self._world.step(action)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)


@pytest.mark.slow
def test_a_world_that_is_slower_than_real_time_is_said_to_be_with_the_rate_it_kept(tmp_path: Path) -> None:
    make: Any = functools.partial(Slow, 10, 0.15)  # of 0.1 s
    with pusht_session(tmp_path, episode_s=1.0, make=make) as (held, deadman):
        deadman.touch()
        held.tell(Command.START)
        held.until_stage(Stage.JUDGING)
        held.tell(Command.FAILURE)
        held.until(lambda: held.saved == 1, "it is saved")
        report = held.end()
    assert report.rate_reached_hz is not None
    assert 1 < report.rate_reached_hz < 8
    assert any("steps a second of 10, slower than real time" in line for line in held.messages)
    assert f"{report.rate_reached_hz:.1f} of 10 Hz kept" in str(report)


def test_the_rate_of_an_episode_counts_what_was_stepped_without_its_pauses() -> None:
    measured, record = WorldMeasured(), np.zeros(1, _dtype(DONE_FIELDS))[0]
    measured.begin()
    for due_ms, steps in [(0, 0), (100, 1), (200, 2), (400, 3), (500, 3), (9000, 4), (9100, 5)]:
        moved = steps > measured.steps
        for name, value in {"due_ns": due_ms * 10**6, "steps": steps, "step_ns": moved}.items():
            record[name] = value
        measured.take(record, mine=True)
    assert measured.rate_hz == pytest.approx(3 / 0.4)  # 100 to 200, 200 to 400, 9000 to 9100


def _dtype(fields: Mapping[str, Field]) -> list[tuple[str, str]]:
    return [(name, kind) for name, (kind, _) in fields.items()]
