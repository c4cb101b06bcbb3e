"""A person takes over a world that a policy drives, stops it and hands it back; what they do is labelled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from world_hands import PLANE, Sweep

from robolearn.policies.spec import PolicySpec
from robolearn_data.dataset import Dataset
from robolearn_deploy.chunks import ControlState
from robolearn_deploy.inference import Reply, Request
from robolearn_deploy.log import Measurements
from robolearn_deploy.operator import Command
from robolearn_deploy.report import Report
from robolearn_deploy.runtime import Running, RunOptions
from robolearn_deploy.runtime import run as run_in_world
from robolearn_deploy.world_people import PeopleOptions
from robolearn_sim.pusht import ACTION, STATE
from robolearn_sim.worlds import make_world, world_spec

pytestmark = pytest.mark.slow
CORNER = np.array([100.0, 120.0], np.float32)
SPEC = PolicySpec({"state": STATE}, ACTION, 10.0, obs_horizon=2, horizon=16, action_horizon=8)


class ToTheCorner:
    """A policy."""

    spec = SPEC

    def infer(self, request: Request) -> Iterator[Reply]:
        yield Reply(np.tile(CORNER, (SPEC.horizon, 1)), SPEC.horizon)

    def close(self) -> None: ...


class Person:
    """A watcher who goes through ``script``: once its condition holds, the action is done."""

    def __init__(self, script: list[tuple[Callable[[Measurements], Any], Command | Callable[[], None]]]) -> None:
        self.script, self.operator = script, None
        self.messages: list[str] = []

    def started(self, running: Running) -> None:
        self.operator = running.operator

    def progress(self, elapsed_s: float, measured: Measurements) -> None:
        if self.operator is not None and self.script and self.script[0][0](measured):
            _, what = self.script.pop(0)
            if isinstance(what, Command):
                self.operator.tell(what)
            else:
                what()

    def message(self, text: str) -> None:
        self.messages.append(text)


def ticks(state: ControlState, at_least: int) -> Callable[[Measurements], bool]:
    return lambda m: m.state is state and m.ticks_in[state] >= at_least


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, dict[str, np.ndarray], Person]:
    folder = tmp_path_factory.mktemp("takeover")
    deadman, out = folder / "held", folder / "out.zarr"
    spec = world_spec("pusht", max_steps=10_000)
    person = Person(
        [
            (ticks(ControlState.RUNNING, 10), Command.TAKE_OVER),
            (ticks(ControlState.TELEOP, 5), deadman.touch),
            (ticks(ControlState.TELEOP, 20), deadman.unlink),
            (ticks(ControlState.TELEOP, 30), Command.PAUSE),
            (ticks(ControlState.PAUSED, 10), Command.E_STOP),
            (ticks(ControlState.PAUSED, 15), Command.RESUME),  # not while the e-stop is pressed
            (ticks(ControlState.PAUSED, 20), Command.RELEASE),
            (ticks(ControlState.PAUSED, 25), Command.RESUME),
            (ticks(ControlState.TELEOP, 35), Command.HAND_BACK),
            (ticks(ControlState.RUNNING, 20), Command.END),
        ]
    )
    options = RunOptions(
        seconds=240.0,
        out=out,
        seed=3,
        people=PeopleOptions(PLANE, (512, 512, 3), devices={"sweep": Sweep(deadman)}),  # type: ignore[dict-item]
    )
    make = functools.partial(make_world, "pusht", max_steps=10_000)
    report = run_in_world(make, spec, ToTheCorner, SPEC, options, person)
    return report, Dataset.open(out).episode(0), person


def test_the_run_goes_through_every_state_and_ends_well(run) -> None:
    report, _, person = run
    assert report.failure == ""
    assert not person.script, f"it came as far as {person.script}"
    assert all(report.seconds_in[name] > 0 for name in ("RUNNING", "TELEOP", "PAUSED"))


def test_what_the_person_did_is_labelled_and_what_the_policy_did_is_not(run) -> None:
    _, rows, _ = run
    by_person = rows["intervention"] == 1
    assert np.array_equal(by_person, rows["control_state"] == ControlState.TELEOP)
    assert 30 <= by_person.sum() <= 60
    assert (rows["action"][rows["control_state"] == ControlState.RUNNING] == CORNER).all()
    assert np.array_equal(rows["action"][by_person], rows["action_sent"][by_person])
    # The person's steps are one stretch: a pause has no rows.
    assert (np.diff(np.flatnonzero(by_person)) == 1).all()


def test_without_the_deadman_the_tool_stays_and_with_it_the_pointer_is_followed(run) -> None:
    _, rows, _ = run
    first = int(np.flatnonzero(rows["intervention"] == 1)[0])
    stays = rows["action"][first : first + 4]
    assert (stays == stays[0]).all()
    np.testing.assert_allclose(stays[0], rows["state"][first][:2], atol=0.01)
    radius = np.linalg.norm(rows["action"][rows["intervention"] == 1] - 256, axis=1)
    assert (np.abs(radius - 100) < 1).sum() >= 8


def test_the_recording_replays_bit_for_bit_through_pause_and_take_over(run) -> None:
    _, rows, _ = run
    world = make_world("pusht", max_steps=10_000)
    observation = world.reset(3)
    for state, action in zip(rows["state"], rows["action_sent"], strict=True):
        assert np.array_equal(state, observation["state"])
        observation = world.step(action).observation
