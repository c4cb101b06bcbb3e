"""The instruction is recorded with the steps that it was in force at, also where it changes in mid-episode."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_fakes import TEXT_SPEC, FakePolicy, FakeWorld, world_spec
from rig_fakes import SinePolicy, spec_of
from servo_bench import simulated_rig

from robolearn_data.dataset import Dataset
from robolearn_data.schema import read_text
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.log import Measurements
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_log import RigMeasured
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.rig_runtime import run_rig
from robolearn_deploy.runtime import Running, RunOptions, run
from robolearn_deploy.stall import State

FIRST, SECOND = "the red cube", "le cube à côté"


def runs_of(texts: list[str]) -> list[str]:
    """Without repetitions one after the other."""
    return [text for text, _ in itertools.groupby(texts)]


class Person:
    """In the first of two episodes gives another instruction; ends both after a while."""

    def started(self, operator: Operator, instruct: Callable[[str], None], pids: Any, rings: Any) -> None:
        self.operator, self.instruct = operator, instruct
        self.changed, self.ended = False, 0

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
        ran = measured.ticks_in[State.RUNNING]
        if not self.changed and ran > 60:
            self.instruct(SECOND)
            self.changed = True
        if measured.state is State.RUNNING and self.ended == episode and ran > 140 * (episode + 1):
            self.ended += 1
            self.operator.tell(Command.SUCCESS)

    def message(self, text: str) -> None: ...


@pytest.mark.slow
def test_on_a_rig_every_step_has_its_instruction_and_the_next_episode_the_newest(tmp_path: Path) -> None:
    pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")
    spec, out = spec_of(("joint1", "joint2", "joint3", "joint4", "joint5", "gripper")), tmp_path / "run.zarr"
    options = RigOptions(
        120.0, out=out, instruction=FIRST, episodes=2, reset_s=0.1, servo=ServoOptions(fifo=False), episode_s=60.0
    )
    report = run_rig(simulated_rig(tmp_path), functools.partial(SinePolicy, spec), spec, options, Person())
    assert report.failure == ""
    data = Dataset.open(out)
    assert [data.episode_info(i)["task"] for i in range(2)] == [FIRST, SECOND]
    ends = np.asarray(data.episode_ends)
    texts = [read_text(value) for value in data.read("instruction")]
    assert runs_of(texts[: ends[0]]) == [FIRST, SECOND]
    assert runs_of(texts[ends[0] :]) == [SECOND]


def test_in_a_world_the_last_steps_of_a_run_that_is_ended_have_their_instruction_too(tmp_path: Path) -> None:
    class Speaker:
        def started(self, running: Running) -> None:
            self.running, self.changed = running, False

        def progress(self, elapsed_s: float, measured: Measurements) -> None:
            if elapsed_s > 0.5 and not self.changed:
                self.running.instruct(SECOND)
                self.changed = True

        def message(self, text: str) -> None: ...

    out = tmp_path / "run.zarr"
    options = RunOptions(seconds=1.5, instruction=FIRST, relative=(0,), out=out)
    world = functools.partial(FakeWorld, tmp_path / "diary", max_steps=1000)
    policy = functools.partial(FakePolicy, instructed=True)
    run(world, world_spec(1000), policy, TEXT_SPEC, options, Speaker())
    texts = [read_text(value) for value in Dataset.open(out).read("task")]
    assert runs_of(texts) == [FIRST, SECOND]
