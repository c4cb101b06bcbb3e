"""The course of a session in which a person records demonstrations, on a rig or in a simulated world.

             START              at the start pose            counted down
    READY ---------> RETURNING ------------------> COUNTDOWN -------------> EPISODE
      ^                  |  ^                                                 |  SUCCESS, FAILURE, DISCARD, REDO;
      |  at the start    |  |  kept or thrown away                            |  STOP, time over, a fault
      +------------------+  +--------------- JUDGING <--- STOPPING <----------+
                            |                (verdict)    (to rest)
                            +---------------------------------+  the verdict is known

    END: any -> OVER; so does the last episode. A fault (e-stop, an arm, a camera): RETURNING, COUNTDOWN -> READY,
    EPISODE -> STOPPING -> JUDGING, and READY does not begin until it is mended. REDO goes on to COUNTDOWN by itself.

No clock is read here and nothing is moved or recorded: ``CollectSession.tick`` takes what is known and answers what to
do. Instants are CLOCK_MONOTONIC ns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from robolearn_data.schema import UserError
from robolearn_deploy.operator import Command
from robolearn_hardware.clock import SECOND_NS

TEXT_BYTES = 256
STOPPING_NS = 5 * SECOND_NS
"""A robot that is told to stop is waited for so long before the episode is judged nevertheless."""
RETURNING_NS = 60 * SECOND_NS
"""The same on its way to the start pose."""


class SessionError(UserError):
    """A session cannot be held as asked."""


class Stage(IntEnum):
    READY = 0
    """A person sets the scene; START goes on, and so does the end of the reset time where there is one."""
    RETURNING = 1
    """The robot goes to its start pose, slowly."""
    COUNTDOWN = 2
    EPISODE = 3
    """The person moves the robot, and it is recorded."""
    STOPPING = 4
    """The robot comes to rest."""
    JUDGING = 5
    """The episode is over, and a person says how it was."""
    OVER = 6


class Act(IntEnum):
    """What whoever runs the session does next, in the order given."""

    RETURN = 1
    """Bring the robot to its start pose (a world: begin it anew)."""
    RECORD = 2
    """Begin to record an episode of the session's ``task``."""
    DRIVE = 3
    """From here on the robot does what the person does."""
    STOP = 4
    """Bring it to rest."""
    HOLD = 5
    """Record no more; the episode waits for its verdict."""
    SAVE = 6
    """Publish the episode, with the session's ``success``; then call ``kept`` or ``not_kept``."""
    DISCARD = 7
    """Forget the episode; then call ``kept`` or ``not_kept``."""
    RECOVER = 8
    """A person wants to begin in spite of a fault: try to mend it (an arm that has stopped). Nothing moves."""


class Cue(IntEnum):
    """What a person hears and sees, wherever they look."""

    NONE = 0
    COUNT = 1
    """Another second of the countdown."""
    GO = 2
    """Recording."""
    STOPPED = 3
    """The episode is over; say how it was."""
    SAVED = 4
    DISCARDED = 5
    REFUSED = 6
    """What was asked for is not possible; the note says why."""
    FAULT = 7
    """Something went wrong; the note says what."""
    OVER = 8


@dataclass(frozen=True)
class SessionOptions:
    tasks: tuple[str, ...]
    """What the person does, in words; the task with the fewest episodes is next."""
    episodes: int
    """That the dataset shall hold in the end."""
    episode_s: float = 60.0
    """The longest that one takes."""
    countdown_s: float = 3.0
    reset_s: float | None = None
    """From the return to the start pose until the next episode begins by itself; None: a person says START."""

    def __post_init__(self) -> None:
        if not self.tasks or not all(task.strip() for task in self.tasks):
            raise SessionError('say what the person does: --task "put the banana on the plate"')
        twice = [task for task in self.tasks if self.tasks.count(task) > 1]
        if twice:
            raise SessionError(f"the task {twice[0]!r} is named twice; name each once")
        long = [task for task in self.tasks if len(task.encode()) > TEXT_BYTES]
        if long:
            raise SessionError(f"the task {long[0][:30]!r}... is longer than {TEXT_BYTES} bytes; say it shorter")
        for name, value, least in (
            ("episodes", self.episodes, 1),
            ("episode-s", self.episode_s, 0.1),
            ("countdown-s", self.countdown_s, 0),
            ("reset-s", self.reset_s or 0, 0),
        ):
            if not least <= value < float("inf"):
                raise SessionError(f"--{name} {value:g} is not possible; give {least:g} or more")


@dataclass
class Tally:
    """Of one task: the episodes in the dataset."""

    saved: int = 0
    successes: int = 0


class Inputs(NamedTuple):
    """What is known at a tick."""

    now_ns: int
    commands: Sequence[Command] = ()
    """What people said since the last tick."""
    at_rest: bool = True
    """The robot stands still."""
    at_start: bool = True
    """It stands at its start pose."""
    driving: bool = True
    """It does what the person does. Where not, in an episode that is not paused, it is told again."""
    fault: str = ""
    """Why no demonstration can be made now (an e-stop, a camera that is gone), in words; empty if it can."""


_AGAIN_NS = SECOND_NS // 2
_HEARD_NS = SECOND_NS // 10
"""By then the robot has heard that it shall stop: that it stood still before says nothing."""
_VERDICTS = (Command.SUCCESS, Command.FAILURE, Command.DISCARD, Command.REDO)


@dataclass
class CollectSession:
    """``tick`` about fifty times a second, and do what it answers."""

    options: SessionOptions
    tallies: dict[str, Tally] = field(default_factory=dict)
    """Task -> what the dataset holds of it; filled from the dataset that is continued."""
    stage: Stage = Stage.READY
    task: str = ""
    note: str = ""
    """What a person should know now."""
    success: bool | None = None
    """Of the episode to be saved."""
    waiting: bool = False
    """In an episode whose time begins with the person's first motion, before it: nothing is recorded yet."""
    discarded: int = 0
    since_ns: int = 0
    """The stage began."""
    ends_ns: int = 0
    """The stage ends by itself; 0: it does not."""
    began_ns: int = 0
    """The session began."""
    recorded_ns: int = 0
    """Length of all episodes that were saved in this session."""
    saved: int = 0
    """In this session."""
    cue: Cue = Cue.NONE
    cues: int = 0
    """So far: a cue is new when this has changed."""

    def __post_init__(self) -> None:
        for task in self.options.tasks:
            self.tallies.setdefault(task, Tally())
        self.task = self.task or self._rarest()
        self._verdict: Command | None = None
        self._again = False  # the next episode begins without being asked for
        self._paused = self._told = self._ending = False
        self._counted = 0
        self._driven_ns = self._episode_ns = self._length_ns = 0

    @property
    def total(self) -> int:
        """Episodes in the dataset, of the tasks of this session."""
        return sum(self.tallies[task].saved for task in self.options.tasks)

    @property
    def successes(self) -> int:
        return sum(self.tallies[task].successes for task in self.options.tasks)

    def left_ns(self, now_ns: int) -> int | None:
        """How much longer it takes at the pace so far; None before an episode was saved."""
        left = max(0, self.options.episodes - self.total)
        return left * (now_ns - self.began_ns) // self.saved if self.saved else None

    def tick(self, i: Inputs) -> list[Act]:
        """What to do now. After SAVE and DISCARD, ``kept`` or ``not_kept`` must follow before the next tick."""
        self.began_ns = self.began_ns or i.now_ns
        self.since_ns = self.since_ns or i.now_ns
        acts: list[Act] = []
        for command in i.commands:
            acts += self._hear(command, i)
        return acts + _NEXT[self.stage](self, i)

    def kept(self, now_ns: int) -> None:
        """The episode was saved, or forgotten, as asked."""
        if self._verdict in (Command.SUCCESS, Command.FAILURE):
            tally = self.tallies[self.task]
            tally.saved += 1
            tally.successes += self._verdict is Command.SUCCESS
            self.saved += 1
            self.recorded_ns += self._length_ns
            self.task = self._rarest()
            self._say(Cue.SAVED, "")
        else:
            self.discarded += 1
            self._say(Cue.DISCARDED, "")
        self._again = self._verdict is Command.REDO
        self._verdict = None
        if self._ending or self.total >= self.options.episodes:
            self._say(Cue.OVER, "")
            self._enter(Stage.OVER, now_ns)

    def not_kept(self, why: str, now_ns: int) -> None:
        """That failed. The episode is still held, and a person decides again."""
        self._verdict = None
        self._say(Cue.FAULT, why)
        self._enter(Stage.JUDGING, now_ns)

    def _hear(self, command: Command, i: Inputs) -> list[Act]:
        stage, recording = self.stage, self.stage in (Stage.EPISODE, Stage.STOPPING, Stage.JUDGING)
        if stage is Stage.OVER:
            return []
        if command is Command.END and stage is Stage.STOPPING and self._verdict:
            self._ending = True  # once the episode is kept
        elif command is Command.END:
            self._say(Cue.OVER, "the episode in flight is not saved" if recording else "")
            self._enter(Stage.OVER, i.now_ns)
            return [Act.STOP]
        elif command is Command.START and stage is Stage.READY:
            return self._begin(i)
        elif command is Command.NEXT_TASK and stage in (Stage.READY, Stage.RETURNING, Stage.COUNTDOWN):
            tasks = self.options.tasks
            self.task = tasks[(tasks.index(self.task) + 1) % len(tasks)]
        elif command is Command.STOP and stage is Stage.EPISODE:
            return self._end(None, "", i)
        elif command in _VERDICTS and recording:
            if stage is Stage.EPISODE:
                return self._end(command, "", i)
            self._verdict = command
        elif command in (Command.PAUSE, Command.STOP, Command.DISCARD) and stage in (Stage.RETURNING, Stage.COUNTDOWN):
            self._say(Cue.STOPPED, "stopped by a person; start when ready")
            self._again = False
            self._enter(Stage.READY, i.now_ns, by_itself=False)
            return [Act.STOP]
        elif stage is Stage.EPISODE and command in (Command.PAUSE, Command.RESUME, Command.TAKE_OVER):
            self._paused, self._driven_ns = command is Command.PAUSE, 0
        elif stage is Stage.READY and self.options.reset_s is not None and command is Command.PAUSE:
            self.ends_ns = 0
        return []

    def _ready(self, i: Inputs) -> list[Act]:
        if self.ends_ns and i.now_ns >= self.ends_ns:
            self.ends_ns = 0
            return self._begin(i)
        return []

    def _returning(self, i: Inputs) -> list[Act]:
        if i.fault:
            return self._give_up(i)
        if not self._told:
            self._told = True
            return [Act.RETURN]
        if i.at_start and i.at_rest:
            self._enter(Stage.COUNTDOWN if self._again else Stage.READY, i.now_ns)
        elif i.now_ns >= self.ends_ns:
            self._say(Cue.FAULT, "the start pose was not reached in time; is something in the way? start tries again")
            self._again = False
            self._enter(Stage.READY, i.now_ns, by_itself=False)
            return [Act.STOP]
        return []

    def _countdown(self, i: Inputs) -> list[Act]:
        if i.fault:
            return self._give_up(i)
        left = -(-(self.ends_ns - i.now_ns) // SECOND_NS)
        if left > 0:
            if left != self._counted:
                self._counted = left
                self._say(Cue.COUNT, str(left))
            return []
        self._verdict, self._again, self._paused = None, False, False
        self._driven_ns = self._episode_ns = i.now_ns
        self._say(Cue.GO, "")
        self._enter(Stage.EPISODE, i.now_ns)
        return [Act.RECORD, Act.DRIVE]

    def _episode(self, i: Inputs) -> list[Act]:
        if i.fault:
            return self._end(None, i.fault, i)
        if i.now_ns >= self.ends_ns:
            return self._end(None, f"{self.options.episode_s:g} s are over", i)
        if i.driving or self._paused or i.now_ns - self._driven_ns < _AGAIN_NS:
            return []
        self._driven_ns = i.now_ns
        return [Act.DRIVE]

    def _stopping(self, i: Inputs) -> list[Act]:
        told_ns = i.now_ns - self.since_ns
        if told_ns < _HEARD_NS or (not i.at_rest and i.now_ns < self.ends_ns):
            return []
        self._length_ns = i.now_ns - self._episode_ns
        if self._verdict is None:
            self._enter(Stage.JUDGING, i.now_ns)
            self._say(Cue.FAULT if i.fault else Cue.STOPPED, self.note)
            return [Act.HOLD]
        return self._keep(i)

    def _judging(self, i: Inputs) -> list[Act]:
        return self._keep(i) if self._verdict else []

    def _over(self, i: Inputs) -> list[Act]:
        return []

    def _begin(self, i: Inputs) -> list[Act]:
        if i.fault:
            self._say(Cue.REFUSED, i.fault)
            return [Act.RECOVER] if Command.START in i.commands else []
        self._again, self.note = True, ""
        self._enter(Stage.RETURNING, i.now_ns)
        return []

    def _end(self, verdict: Command | None, note: str, i: Inputs) -> list[Act]:
        self._verdict, self.note = verdict, note
        self._enter(Stage.STOPPING, i.now_ns)
        return [Act.STOP]

    def _keep(self, i: Inputs) -> list[Act]:
        """As its verdict says, and on to the start pose."""
        assert self._verdict is not None
        self.success = {Command.SUCCESS: True, Command.FAILURE: False}.get(self._verdict)
        self._enter(Stage.RETURNING, i.now_ns)
        return [Act.DISCARD if self.success is None else Act.SAVE]

    def _give_up(self, i: Inputs) -> list[Act]:
        self._say(Cue.FAULT, i.fault)
        self._again = False
        self._enter(Stage.READY, i.now_ns, by_itself=False)
        return [Act.STOP]

    def _enter(self, stage: Stage, now_ns: int, *, by_itself: bool = True) -> None:
        """``by_itself``: READY ends after the reset time."""
        lasts_s = {
            Stage.READY: self.options.reset_s if by_itself and self.saved + self.discarded else None,
            Stage.RETURNING: RETURNING_NS / SECOND_NS,
            Stage.COUNTDOWN: self.options.countdown_s,
            Stage.EPISODE: self.options.episode_s,
            Stage.STOPPING: STOPPING_NS / SECOND_NS,
        }.get(stage)
        self.stage, self.since_ns, self._counted, self._told = stage, now_ns, 0, False
        self.ends_ns = 0 if lasts_s is None else now_ns + round(lasts_s * SECOND_NS)

    def _say(self, cue: Cue, note: str) -> None:
        self.cue, self.note = cue, note
        self.cues += 1

    def _rarest(self) -> str:
        return min(self.options.tasks, key=lambda task: self.tallies[task].saved)


_NEXT = {
    Stage.READY: CollectSession._ready,
    Stage.RETURNING: CollectSession._returning,
    Stage.COUNTDOWN: CollectSession._countdown,
    Stage.EPISODE: CollectSession._episode,
    Stage.STOPPING: CollectSession._stopping,
    Stage.JUDGING: CollectSession._judging,
    Stage.OVER: CollectSession._over,
}
