"""Sessions on simulated rigs with real processes: what a person records, and what is kept when something breaks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collect_fakes import CountingForceConfig, Demonstrator, collecting_rig

from robolearn_data.dataset import Dataset, DatasetError
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.collect_session import CollectSession, SessionError, SessionOptions, Stage
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.operator import Command
from robolearn_deploy.rig_collect import CollectReport, collect_on_rig
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.stall import State
from robolearn_hardware.rig import Rig

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")


def collect(rig: Rig, out: Path, person: Demonstrator, **how: Any) -> CollectReport:
    session = {"tasks": ("wave",), "episodes": 2, "countdown_s": 0.0, **how.pop("session", {})}
    options = {
        "servo": ServoOptions(fifo=False, rate_hz=50),
        "teleoperators": {"hand": "left"},
        "operator": "me",
        **how,
    }
    return collect_on_rig(rig, RigOptions(float("inf"), out=out, **options), SessionOptions(**session), person)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[CollectReport, Demonstrator, Path, Rig]:
    """A session of two tasks: success, redone, failure."""
    folder = tmp_path_factory.mktemp("session")
    rig, out = collecting_rig(folder), folder / "out.zarr"
    person = Demonstrator([Command.SUCCESS, Command.REDO, Command.FAILURE])
    report = collect(rig, out, person, session={"tasks": ("wave", "wave back")})
    return report, person, out, rig


Held = tuple[CollectReport, Demonstrator, Path, Rig]


def test_a_session_saves_what_was_judged_with_task_operator_and_verdict(held: Held) -> None:
    report, _, out, _ = held
    assert report.rig.failure == ""
    dataset = Dataset.open(out)
    infos = [dataset.episode_info(i) for i in range(dataset.episodes)]
    assert [(i["task"], i["success"], i["operator"]) for i in infos] == [
        ("wave", True, "me"),
        ("wave back", False, "me"),
    ]
    assert (report.saved, report.discarded) == (2, 1)
    assert list(dataset.metadata["tasks"]) == ["wave", "wave back"]
    assert validate(out) == []


def test_every_episode_begins_at_the_start_pose_and_holds_what_the_person_did(held: Held) -> None:
    _, _, out, _ = held
    dataset = Dataset.open(out)
    start = np.array(dataset.metadata["start_pose"])
    for i in range(dataset.episodes):
        episode = dataset.episode(i)
        np.testing.assert_allclose(episode["action_sent"][0][:5], start[:5], atol=0.05)
        assert np.ptp(episode["action"][:, :5]) > 0.05, "the leader was followed"
        drove = episode["control_state"] == State.TELEOP
        assert drove.mean() > 0.5
        np.testing.assert_array_equal(episode["intervention"] == 1, drove)


def test_a_force_sensor_is_recorded_sample_by_sample_at_its_own_rate_and_time(held: Held) -> None:
    _, _, out, _ = held
    dataset = Dataset.open(out)
    period = round(1e9 / CountingForceConfig().rate_hz)
    times, values = dataset.samples("wrench_tip", 0).time, np.asarray(dataset.array("wrench_tip")[:])
    assert dataset.episode_info(0)["recorded"]["wrench_tip"]["refused"] == 0
    steps = np.diff(times)
    lost = dataset.episode_info(0)["recorded"]["wrench_tip"]["lost"]
    assert (steps // period - 1).sum() == lost, "each sample has the time that was meant for it"
    np.testing.assert_array_equal(values[: len(times), 0], times // period % 1000)


def test_the_checks_look_at_everything_before_and_nothing_is_wrong(held: Held) -> None:
    _, person, _, _ = held
    found = {check.subject: check.verdict for check in person.checks}
    assert {"rig", "arm left", "teleoperator hand", "wrench_tip", "disk", "clock", "latencies"} <= found.keys()
    assert "failure" not in found.values()
    assert found["latencies"] == "warning", "a rig file that states none has not been calibrated"


def test_a_session_goes_on_tomorrow_where_it_stopped(held: Held) -> None:
    _, _, out, rig = held
    before = Dataset.open(out).read("action")
    tasks = ("wave", "wave back")
    with pytest.raises(SessionError, match="has its 2 episodes"):
        collect(rig, out, Demonstrator(), resume=True, session={"tasks": tasks})
    with pytest.raises(SessionError, match="begun with the tasks 'wave', 'wave back'"):
        collect(rig, out, Demonstrator(), resume=True)
    report = collect(rig, out, Demonstrator(), resume=True, session={"tasks": tasks, "episodes": 3})
    assert report.rig.failure == ""
    assert [tally.saved for tally in report.tallies.values()] == [2, 1]
    after = Dataset.open(out).read("action")
    np.testing.assert_array_equal(after[: len(before)], before)
    assert len(after) > len(before)


def test_another_rig_and_a_second_writer_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    rig, out = collecting_rig(tmp_path), tmp_path / "out.zarr"
    metadata = {"rig": "rig", "rig_fingerprint": "another", "tasks": ["wave"]}
    schema = Schema(30.0, {"a": Stream((1,))})
    with DatasetWriter.create(out, schema, metadata=metadata), pytest.raises(DatasetError, match="writ"):
        collect(rig, out, Demonstrator(), resume=True)
    with pytest.raises(DatasetError, match="fingerprint another"):
        collect(rig, out, Demonstrator(), resume=True)
    with pytest.raises(DatasetError, match="exists"):
        collect(rig, out, Demonstrator())


class Unplugs(Demonstrator):
    """Unplugs the leader in the first episode, and plugs it in again when the episode has been stopped."""

    def __init__(self, file: Path) -> None:
        super().__init__(acts={Stage.JUDGING: lambda _: file.unlink()})
        self._file = file

    def decide(self, session: CollectSession) -> None:
        if session.stage is Stage.EPISODE and not self.said:
            self.said = True
            self._file.touch()
        elif session.stage is not Stage.EPISODE or Stage.JUDGING in self.stages:
            super().decide(session)

    said = False


@pytest.mark.slow
def test_a_teleoperator_that_is_unplugged_stops_the_episode_and_the_session_goes_on_when_it_is_back(
    tmp_path: Path,
) -> None:
    rig = collecting_rig(tmp_path, unplugged=tmp_path / "unplugged")
    person = Unplugs(tmp_path / "unplugged")
    report = collect(rig, tmp_path / "out.zarr", person, session={"episodes": 1})
    assert report.rig.failure == ""
    assert any("the teleoperator hand says nothing" in note for note in person.notes)
    assert (report.saved, report.discarded) == (1, 1)


def kill(name: str) -> Callable[[Demonstrator], None]:
    return lambda person: os.kill(person.pids[name], signal.SIGKILL)


class KillsInTheSecond(Demonstrator):
    def __init__(self, name: str) -> None:
        super().__init__()
        self._name: str | None = name

    def decide(self, session: CollectSession) -> None:
        if session.stage is Stage.EPISODE and session.saved and self._name and self._drove - self._moved > 20:
            kill(self._name)(self)
            self._name = None
        else:
            super().decide(session)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [("servo", "servo process"), ("recorder", "recorder process"), ("hand", "hand process"), ("tip", "tip process")],
)
def test_whichever_process_is_killed_saved_episodes_stay_and_recover_salvages_the_one_in_flight(
    tmp_path: Path, name: str, said: str
) -> None:
    rig, out = collecting_rig(tmp_path), tmp_path / "out.zarr"
    report = collect(rig, out, KillsInTheSecond(name))
    assert said in report.rig.failure
    assert Dataset.open(out).episodes == 1
    assert validate(out) == []
    found = recover(out)
    assert len(found.saved) == 1
    assert found.saved[0][1] > 5
    assert Dataset.open(out).episodes == 2


@pytest.mark.slow
def test_buttons_of_the_teleoperator_start_and_judge_episodes(tmp_path: Path) -> None:
    button = tmp_path / "button"

    class Presses(Demonstrator):
        def decide(self, session: CollectSession) -> None:
            if button.exists():
                button.unlink()
            elif session.stage is Stage.READY or self._drove - self._moved > 40:
                button.touch()

    rig = collecting_rig(tmp_path, button=button)
    options = {"buttons": {"green": (Command.START, Command.SUCCESS)}, "session": {"episodes": 1}}
    report = collect(rig, tmp_path / "out.zarr", Presses(), **options)
    assert report.rig.failure == ""
    assert report.saved == 1


@pytest.mark.slow
def test_an_arm_that_the_page_moves_stays_where_it_is_while_nobody_holds_a_deadman_there(tmp_path: Path) -> None:
    from robolearn_deploy.dashboard.access import PageOptions

    rig, out, person = collecting_rig(tmp_path), tmp_path / "out.zarr", Demonstrator()
    options = {"teleoperators": {"page": "left"}, "page": PageOptions(port=0)}
    report = collect(rig, out, person, session={"episodes": 1}, **options)
    assert report.rig.failure == ""
    assert person.rings is not None
    assert {name: arm.joints for name, arm in person.rings.arms.items()} == {"left": 5}
    assert person.rings.forces.keys() == {"wrench", "wrench_tip"}
    assert person.rings.collect is not None
    assert "page" in person.pids
    dataset = Dataset.open(out)
    assert (dataset.read("control_state") == State.TELEOP).any()
    assert np.ptp(dataset.read("action_sent"), axis=0).max() < 1e-6
