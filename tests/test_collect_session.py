"""The course of a session: what is recorded, kept and moved, and when, whatever people say and whatever breaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn_deploy.collect_ring import COLLECT_FIELDS, collect_record
from robolearn_deploy.collect_session import (
    Act,
    CollectSession,
    Cue,
    Inputs,
    SessionError,
    SessionOptions,
    Stage,
    Tally,
)
from robolearn_deploy.operator import Command
from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.ring import Ring

TICK_NS = SECOND_NS // 50


class Play:
    """A session with a robot that does at once what it is told, unless the test says otherwise."""

    def __init__(self, **options: Any) -> None:
        options = {"tasks": ("push",), "episodes": 3, "countdown_s": 1.0, **options}
        self.session = CollectSession(SessionOptions(**options))
        self.now_ns = 10**12
        self.saves: list[tuple[str, bool | None]] = []
        self.acts: list[Act] = []
        self.fails = ""

    def tick(self, *commands: Command, **known: Any) -> list[Act]:
        self.now_ns += TICK_NS
        task = self.session.task
        acts = self.session.tick(Inputs(self.now_ns, commands, **known))
        self.acts += acts
        for act in acts:
            if act in (Act.SAVE, Act.DISCARD):
                if self.fails:
                    self.session.not_kept(self.fails, self.now_ns)
                    continue
                if act is Act.SAVE:
                    self.saves.append((task, self.session.success))
                self.session.kept(self.now_ns)
        return acts

    def until(self, stage: Stage, seconds: float = 100.0, **known: Any) -> None:
        for _ in range(int(seconds * 50)):
            if self.session.stage is stage:
                return
            self.tick(**known)
        raise AssertionError(f"{self.session.stage.name}, not {stage.name}, after {seconds:g} s")

    def episode(self, verdict: Command, ticks: int = 10) -> None:
        self.tick(Command.START)
        self.until(Stage.EPISODE)
        for _ in range(ticks):
            self.tick()
        self.tick(verdict)
        for _ in range(10):
            self.tick()


def test_episodes_are_saved_with_their_verdicts_and_the_session_ends_with_the_last() -> None:
    play = Play()
    play.episode(Command.SUCCESS)
    play.episode(Command.FAILURE)
    play.episode(Command.DISCARD)
    assert play.session.stage is Stage.READY
    play.episode(Command.SUCCESS)
    assert play.saves == [("push", True), ("push", False), ("push", True)]
    assert play.session.stage is Stage.OVER
    assert (play.session.total, play.session.successes, play.session.discarded) == (3, 2, 1)


def test_nothing_is_recorded_and_nobody_drives_before_the_countdown_is_over() -> None:
    play = Play(countdown_s=3.0)
    play.tick(Command.START)
    began = play.now_ns
    cues = set()
    while play.session.stage is not Stage.EPISODE:
        assert Act.RECORD not in play.acts
        assert Act.DRIVE not in play.acts
        play.tick()
        if play.session.cue is Cue.COUNT:
            cues.add(play.session.note)
    assert play.acts == [Act.RETURN, Act.RECORD, Act.DRIVE]
    assert 3.0 <= (play.now_ns - began) / SECOND_NS < 3.2
    assert cues == {"3", "2", "1"}


def test_the_countdown_waits_for_the_start_pose() -> None:
    play = Play()
    play.tick(Command.START)
    for _ in range(200):
        play.tick(at_start=False)
    assert play.session.stage is Stage.RETURNING
    play.until(Stage.COUNTDOWN, 1)


def test_a_start_pose_that_is_not_reached_ends_in_a_note_instead_of_an_episode() -> None:
    play = Play()
    play.tick(Command.START)
    play.until(Stage.READY, 70, at_start=False)
    assert "start pose was not reached" in play.session.note
    assert play.acts[-1] is Act.STOP


def test_what_was_stopped_waits_for_its_verdict_and_records_nothing_meanwhile() -> None:
    play = Play()
    play.tick(Command.START)
    play.until(Stage.EPISODE)
    play.tick(Command.STOP)
    assert play.acts[-1] is Act.STOP
    for _ in range(20):
        play.tick(at_rest=False)
    assert Act.HOLD not in play.acts, "coming to rest is part of the episode"
    play.until(Stage.JUDGING, 1)
    assert play.acts[-1] is Act.HOLD
    assert play.saves == []
    play.tick(Command.FAILURE)
    assert play.saves == [("push", False)]


def test_an_episode_that_is_too_long_is_stopped_and_judged_by_a_person() -> None:
    play = Play(episode_s=5.0)
    play.tick(Command.START)
    play.until(Stage.EPISODE)
    began = play.now_ns
    play.until(Stage.JUDGING, 10)
    assert 5.0 <= (play.now_ns - began) / SECOND_NS < 5.2
    assert "5 s are over" in play.session.note


def test_a_redone_episode_is_thrown_away_and_begins_again_with_the_same_task_without_being_asked() -> None:
    play = Play(tasks=("push", "pull"))
    play.episode(Command.REDO)
    assert play.saves == []
    assert play.session.discarded == 1
    play.until(Stage.EPISODE, 2)
    assert play.session.task == "push"


def test_tasks_take_turns_and_those_of_yesterday_count() -> None:
    play = Play(tasks=("push", "pull", "lift"), episodes=8)
    play.session = CollectSession(play.session.options, {"push": Tally(2, 1)})
    while play.session.stage is not Stage.OVER:
        play.episode(Command.SUCCESS)
    assert [task for task, _ in play.saves] == ["pull", "lift", "pull", "lift", "push", "pull"]
    assert play.session.total == 8
    assert play.session.successes == 7


def test_another_task_can_be_chosen_between_episodes_and_not_within_one() -> None:
    play = Play(tasks=("push", "pull"))
    play.tick(Command.NEXT_TASK)
    assert play.session.task == "pull"
    play.tick(Command.START)
    play.until(Stage.EPISODE)
    play.tick(Command.NEXT_TASK)
    assert play.session.task == "pull"


def test_with_a_reset_time_the_next_episode_begins_by_itself_and_a_pause_prevents_it() -> None:
    play = Play(reset_s=2.0, episodes=9)
    for _ in range(500):
        play.tick()
    assert play.session.stage is Stage.READY, "the first one waits for a person"
    play.episode(Command.SUCCESS)
    play.until(Stage.READY, 1)
    play.until(Stage.EPISODE, 5)
    play.tick(Command.SUCCESS)
    play.until(Stage.READY, 1)
    play.tick(Command.PAUSE)
    for _ in range(500):
        play.tick()
    assert play.session.stage is Stage.READY


def test_a_fault_in_an_episode_stops_it_for_a_person_to_judge() -> None:
    play = Play()
    play.tick(Command.START)
    play.until(Stage.EPISODE)
    play.tick(fault="camera front is gone")
    assert play.acts[-1] is Act.STOP
    play.until(Stage.JUDGING, 1, fault="camera front is gone")
    assert play.session.note == "camera front is gone"
    assert play.session.cue is Cue.FAULT
    play.tick(Command.DISCARD, fault="camera front is gone")
    play.until(Stage.READY, 1, fault="camera front is gone")
    play.tick(Command.START, fault="camera front is gone")
    assert play.session.stage is Stage.READY
    assert play.session.cue is Cue.REFUSED
    assert play.acts[-1] is Act.RECOVER
    play.tick(Command.START)
    play.until(Stage.EPISODE, 5)


@pytest.mark.parametrize("stage", [Stage.RETURNING, Stage.COUNTDOWN])
@pytest.mark.parametrize("how", ["fault", "pause"])
def test_before_an_episode_a_fault_or_a_pause_leads_back_to_ready_and_stops_the_robot(stage: Stage, how: str) -> None:
    play = Play(reset_s=1.0)
    play.tick(Command.START)
    play.until(stage)
    play.tick(*([Command.PAUSE] if how == "pause" else []), fault="e-stop pressed" if how == "fault" else "")
    assert play.session.stage is Stage.READY
    assert play.acts[-1] is Act.STOP
    for _ in range(200):
        play.tick()
    assert play.session.stage is Stage.READY, "nothing begins by itself after that"


def test_a_robot_that_does_not_follow_the_person_is_told_again_unless_it_is_paused() -> None:
    play = Play()
    play.tick(Command.START)
    play.until(Stage.EPISODE)
    told = play.acts.count(Act.DRIVE)
    for _ in range(60):
        play.tick(driving=False)
    assert play.acts.count(Act.DRIVE) == told + 2
    play.tick(Command.PAUSE)
    told = play.acts.count(Act.DRIVE)
    for _ in range(200):
        play.tick(driving=False)
    assert play.acts.count(Act.DRIVE) == told
    play.tick(Command.RESUME, driving=False)
    assert play.acts[-1] is Act.DRIVE


def test_what_cannot_be_saved_stays_to_be_judged_again() -> None:
    play = Play()
    play.fails = "the disk is full"
    play.episode(Command.SUCCESS)
    assert play.session.stage is Stage.JUDGING
    assert play.session.note == "the disk is full"
    assert play.session.total == 0
    play.fails = ""
    play.tick(Command.SUCCESS)
    assert play.saves == [("push", True)]


def test_the_end_comes_at_once_but_after_a_verdict_only_when_the_episode_is_kept() -> None:
    play = Play()
    play.tick(Command.START)
    play.until(Stage.EPISODE)
    play.tick(Command.SUCCESS, at_rest=False)
    play.tick(Command.END, at_rest=False)
    assert play.session.stage is Stage.STOPPING
    play.until(Stage.OVER, 1)
    assert play.saves == [("push", True)]

    play = Play()
    play.tick(Command.START)
    play.until(Stage.EPISODE)
    play.tick(Command.END)
    assert play.session.stage is Stage.OVER
    assert play.session.note == "the episode in flight is not saved"


def test_the_time_that_is_left_follows_the_pace_so_far() -> None:
    play = Play(episodes=10)
    assert play.session.left_ns(play.now_ns) is None
    began = play.now_ns + TICK_NS
    for _ in range(2):
        play.episode(Command.SUCCESS)
    left = play.session.left_ns(play.now_ns)
    assert left == 8 * (play.now_ns - began) // 2


COMMANDS = st.sampled_from(list(Command))
KNOWN = st.fixed_dictionaries(
    {
        "at_rest": st.booleans(),
        "at_start": st.booleans(),
        "driving": st.booleans(),
        "fault": st.sampled_from(["", "", "", "e-stop pressed"]),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.lists(COMMANDS, max_size=3), KNOWN, st.integers(1, 60), st.booleans()), max_size=60),
    st.sampled_from([None, 0.5]),
)
def test_whatever_is_said_and_known_each_recording_ends_once_and_nobody_drives_without_one(
    script: list[Any], reset_s: float | None
) -> None:
    play = Play(tasks=("push", "pull"), episodes=4, episode_s=2.0, countdown_s=0.2, reset_s=reset_s)
    recording = False
    for commands, known, ticks, fails in script:
        play.fails = "the disk is full" if fails else ""
        for k in range(ticks):
            total = play.session.total
            acts = play.tick(*(commands if not k else []), **known)
            for act in acts:
                if act is Act.RECORD:
                    assert not recording
                    recording = True
                elif act is Act.DRIVE:
                    assert recording
                elif act is Act.RETURN:
                    assert not recording
                elif act in (Act.SAVE, Act.DISCARD):
                    assert recording
                    recording = bool(play.fails)
            assert play.session.total - total == (Act.SAVE in acts and not play.fails)
            stage = play.session.stage
            if stage is not Stage.OVER:
                assert recording == (stage in (Stage.EPISODE, Stage.STOPPING, Stage.JUDGING))
    assert play.session.total == len(play.saves) <= 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ()}, "say what the person does"),
        ({"tasks": ("a", "a")}, "named twice"),
        ({"tasks": ("x" * 300,)}, "longer than 256 bytes"),
        ({"episodes": 0}, "--episodes 0 is not possible; give 1 or more"),
        ({"episode_s": float("nan")}, "--episode-s nan"),
        ({"reset_s": -1.0}, "--reset-s -1"),
    ],
)
def test_impossible_sessions_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SessionError, match=said):
        SessionOptions(**{"tasks": ("push",), "episodes": 1, **options})


def test_the_session_is_told_through_a_ring() -> None:
    play = Play(tasks=("öffne die Schublade",))
    play.episode(Command.SUCCESS)
    with Ring.create(COLLECT_FIELDS, 4) as ring:
        ring.publish(collect_record(play.session, play.now_ns))
        found = ring.newest()
        assert found is not None
        record = found[1]
        assert bytes(record["task"]).decode() == "öffne die Schublade"
        assert (record["episodes"], record["goal"], record["successes"]) == (1, 3, 1)
        assert record["recorded_ns"] > 0
