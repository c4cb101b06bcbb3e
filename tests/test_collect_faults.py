"""What goes wrong in the middle of a demonstration: the arm rests, the session goes on or says why it ends, and saved
episodes stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collect_fakes import Demonstrator, WavingLeaderConfig, collecting_rig
from servo_bench import servo_bench, simulated_rig

from robolearn_data.dataset import Dataset
from robolearn_data.recorder import Recorder
from robolearn_data.recover import recover
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.validate import validate
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.collect_session import CollectSession, SessionOptions, Stage
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.operator import Command
from robolearn_deploy.rig_collect import CollectReport, collect_on_rig
from robolearn_deploy.rig_options import RigOptions
from robolearn_hardware.clock import now_ns
from robolearn_hardware.rig import Rig, load_rig, with_twins
from robolearn_hardware.twins.process import Twin

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")


def collect(rig: Rig, out: Path, person: Demonstrator, **session: Any) -> CollectReport:
    options = RigOptions(
        float("inf"), out=out, teleoperators={"hand": "left"}, servo=ServoOptions(fifo=False, rate_hz=50)
    )
    course = SessionOptions(("wave",), **{"episodes": 2, "countdown_s": 0.0, **session})
    return collect_on_rig(rig, options, course, person)


class Hinders(Demonstrator):
    """Does ``harm`` in the episode after ``saved`` are saved; ``mends`` when it has been stopped."""

    def __init__(
        self, harm: Callable[[Hinders], None], mends: Callable[[Hinders], None] | None = None, *, saved: int = 0
    ) -> None:
        super().__init__()
        self._harm: Callable[[Hinders], None] | None = harm
        self._mends, self._saved = mends, saved
        self.at_rest_when_judged: bool | None = None

    def decide(self, session: CollectSession) -> None:
        if session.stage is Stage.EPISODE and session.saved == self._saved and self._harm is not None:
            if self._drove - self._moved > 20:
                harm, self._harm = self._harm, None
                harm(self)
            else:
                self._said_ns = 0
        elif session.stage is Stage.EPISODE and self.at_rest_when_judged is None and session.saved == self._saved:
            pass  # it goes on until the fault is noticed
        elif session.stage is Stage.JUDGING and self.at_rest_when_judged is None:
            found = self.newest_tick()
            self.at_rest_when_judged = bool(found["at_rest"])
            if self._mends is not None:
                self._mends(self)
        else:
            super().decide(session)

    def newest_tick(self) -> np.void:
        from robolearn_hardware.ring import Ring

        assert self.rings is not None
        ring = Ring.attach(self.rings.ticks)
        found = ring.newest()
        ring.close()
        assert found is not None
        return found[1]


@pytest.mark.slow
def test_a_camera_that_is_unplugged_stops_the_episode_and_the_session_goes_on_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "rig.yaml").write_text(
        "arms:\n  left: {kind: simulated, model: so101, plant: first_order, rate_hz: 100}\n"
        "cameras:\n  front: {kind: mjpeg, url: twin, width: 96, height: 64, rate_hz: 30}\n"
    )
    with with_twins(load_rig(tmp_path / "rig.yaml")) as (rig, twins):
        rig = dataclasses.replace(rig, teleoperators={"hand": WavingLeaderConfig()})
        front: Twin = twins["front"]
        person = Hinders(lambda _: front.fault(unplugged=True), lambda _: front.fault())
        report = collect(rig, tmp_path / "out.zarr", person)
    assert report.rig.failure == ""
    assert any("camera front gives no pictures" in note for note in person.notes)
    assert person.at_rest_when_judged
    assert (report.saved, report.discarded) == (2, 1)
    assert validate(tmp_path / "out.zarr") == []


@pytest.mark.slow
def test_an_e_stop_ends_the_episode_and_only_a_release_lets_the_next_one_begin(tmp_path: Path) -> None:
    class Released(Hinders):
        refused = False

        def decide(self, session: CollectSession) -> None:
            if session.stage is Stage.READY and "release it" in session.note:
                if self.refused:
                    self.operator.tell(Command.RELEASE)
                    self.refused = False
                self.operator.tell(Command.START)
                self.refused = session.cue.name == "FAULT"
            else:
                super().decide(session)

    person = Released(lambda p: p.operator.tell(Command.E_STOP), saved=1)
    report = collect(collecting_rig(tmp_path), tmp_path / "out.zarr", person)
    assert report.rig.failure == ""
    assert person.at_rest_when_judged
    assert any("e-stop pressed; release it" in note for note in person.notes)
    assert (report.saved, report.discarded) == (2, 1)


@pytest.mark.slow
def test_a_full_disk_ends_the_session_in_one_line_and_saved_episodes_stay(
    small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    disk = small_disk(16)
    out = disk / "out.zarr"

    def fill(person: Hinders) -> None:
        filler = (disk / "filler").open("wb", buffering=0)
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            filler.close()

    person = Hinders(fill, saved=1)
    report = collect(collecting_rig(tmp_path), out, person, episode_s=20.0)
    assert "the disk is full; make room" in report.rig.failure
    assert "\n" not in report.rig.failure
    (disk / "filler").unlink()
    assert Dataset.open(out).episodes == 1
    assert validate(out) == []
    assert len(recover(out).saved) == 1, "the episode in flight, as far as it had been written"


@pytest.mark.slow
def test_a_pause_stops_the_way_to_the_reset_pose(tmp_path: Path) -> None:
    with servo_bench(simulated_rig(tmp_path), rate_hz=100, reset=(0.8, -0.2, 0.2, 0.2, 0.8, 1.0)) as bench:
        bench.until(lambda tick: True)
        bench.operator.tell(Command.RESET)
        moving = bench.until(lambda tick: not tick["at_rest"])
        bench.operator.tell(Command.PAUSE)
        rests = bench.until(lambda tick: bool(tick["at_rest"]))
        later = now_ns() + 500_000_000
        after = bench.until(lambda tick: tick["due_ns"] > later)
        np.testing.assert_array_equal(after["sent"], rests["sent"])
        assert np.abs(rests["sent"] - [0.8, -0.2, 0.2, 0.2, 0.8, 1.0])[:5].max() > 0.1
        assert (moving["sent"] != after["sent"]).any()


class Given:
    """A source of control steps that the test gives out."""

    def __init__(self) -> None:
        self.waiting: list[int] = []

    def give(self, count: int) -> None:
        start = now_ns()
        self.waiting += [start + k * 1000 for k in range(count)]

    def drain(self) -> tuple[np.ndarray, int]:
        records = np.zeros(len(self.waiting), [("time_ns", "i8"), ("a", "f4", (1,))])
        records["time_ns"] = self.waiting
        self.waiting.clear()
        return records, 0


def test_what_comes_while_an_episode_is_judged_is_not_part_of_it(tmp_path: Path) -> None:
    steps = Given()
    with DatasetWriter.create(tmp_path / "d", Schema(1e6, {"a": Stream((1,))})) as writer:
        recorder = Recorder(writer, steps, {})
        with pytest.raises(SchemaError, match="no episode is being recorded"):
            recorder.hold()
        recorder.start()
        steps.give(5)
        recorder.hold()
        for _ in range(3):
            steps.give(7)
            recorder.poll()
        steps.give(7)
        recorder.save(success=True)
        recorder.start()
        steps.give(2)
        recorder.save(success=True)
    dataset = Dataset.open(tmp_path / "d")
    assert np.diff(dataset.episode_ends, prepend=0).tolist() == [5, 2]
    assert dataset.episode_info(0)["recorded"]["steps"]["taken"] == 5
