"""The episodes of a run on a rig: from the reset pose to a person's verdict, as seen by the supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from robolearn_deploy.dashboard.rings import Phase
from robolearn_deploy.operator import Command
from robolearn_deploy.recorder import RecorderProcess, RecordingError
from robolearn_deploy.rig_log import RigLog
from robolearn_deploy.rig_options import RigOptions, RigWatcher
from robolearn_deploy.stall import State
from robolearn_hardware.ring import Ring

POLL_S = 0.02
REST_S = 5.0
"""An arm that was told to stop is waited for so long before the run ends."""
RESET_TIMEOUT_S = 30.0


class Run(Protocol):
    """The running processes, as ``rig_runtime`` joins them."""

    options: RigOptions
    go: Command
    """What makes the arms move at the beginning of an episode: RESUME the policy, or TAKE_OVER where there is none."""
    recorder: RecorderProcess | None
    ticks: Ring
    """Of ``servo_process.tick_fields``."""

    def begin_episode(self) -> int: ...

    def tell(self, command: Command) -> None: ...

    def heard(self) -> Iterator[Command]:
        """What people said since the last call."""
        ...

    def beat(self) -> None:
        """The supervisor lives."""
        ...

    def noted(self) -> Iterator[str]:
        """For the log."""
        ...

    def report_progress(self, phase: Phase, episodes: int, successes: int) -> None:
        """For the page."""
        ...

    def failure(self) -> str:
        """Why a process is no more, in one line; empty while all run."""
        ...


class Session:
    """Episodes, one after the other."""

    def __init__(self, run: Run, log: RigLog, stop_asked: Callable[[], bool], watcher: RigWatcher) -> None:
        self._run, self._log, self._stop_asked, self._watcher = run, log, stop_asked, watcher
        self._began = time.monotonic()
        self.episodes = self.successes = 0
        self._failure = ""
        self._phase = Phase.STARTING

    def run(self) -> str:
        """Until the run is over; why it failed, or an empty string."""
        options = self._run.options
        if self._run.recorder is not None:  # which may take long to publish an episode
            self._run.recorder.idle = self._attend
        while not self._over() and (options.episodes is None or self.episodes < options.episodes):
            if self.episodes and not self._reset():
                break
            verdict = self._episode()
            if options.episodes is None or verdict is None:
                break
        return self._failure

    def _episode(self) -> Command | None:
        """One episode; how it ended, None where the run did."""
        options = self._run.options
        self._phase = Phase.EPISODE
        self._run.begin_episode()
        self._run.tell(self._run.go)
        end = time.monotonic() + options.episode_s if options.episodes is not None else float("inf")
        verdict: Command | None = None
        ended = False
        while not ended and not self._over() and time.monotonic() < end:
            for command in self._poll():
                if command in (Command.SUCCESS, Command.FAILURE, Command.DISCARD):
                    verdict = command
                    ended = options.episodes is not None
                ended |= command is Command.END
                if command is Command.RESUME and self._run.go is not Command.RESUME:
                    self._run.tell(self._run.go)
        timed_out = time.monotonic() >= end
        self._rest()
        self._keep(verdict)
        return verdict if verdict else (Command.FAILURE if timed_out else None)

    def _keep(self, verdict: Command | None) -> None:
        recorder = self._run.recorder
        self.episodes += 1
        self.successes += verdict is Command.SUCCESS
        if recorder is None or not lives(recorder.pid):
            return
        try:
            if verdict is Command.DISCARD:
                recorder.discard()
            else:
                success = None if verdict is None else verdict is Command.SUCCESS
                recorder.save(success=success)
        except RecordingError as error:
            self._failure = self._failure or str(error)

    def _reset(self) -> bool:
        """Go to the reset pose, wait for the person; whether the run goes on."""
        self._phase = Phase.RESET
        self._run.tell(Command.RESET)
        end = time.monotonic() + RESET_TIMEOUT_S
        time.sleep(5 * POLL_S)
        while not self._over() and time.monotonic() < end and not self._rests():
            list(self._poll())
        end = time.monotonic() + self._run.options.reset_s
        while not self._over() and time.monotonic() < end:
            if any(command is Command.RESUME for command in self._poll()):
                break
        return not self._over()

    def _rest(self) -> None:
        """Bring the arms to rest and wait for it."""
        self._phase = Phase.ENDING
        self._run.tell(Command.PAUSE)
        end = time.monotonic() + REST_S
        time.sleep(2 * POLL_S)
        while time.monotonic() < end and not self._rests() and self._alive():
            list(self._poll())

    def _rests(self) -> bool:
        found = self._run.ticks.newest()
        return found is not None and bool(found[1]["at_rest"]) and found[1]["state"] in (State.STOPPED, State.E_STOPPED)

    def _over(self) -> bool:
        if not self._failure:
            self._failure = self._run.failure()
            if self._failure:
                self._watcher.message(f"{self._failure}; the arms come to rest")
        return bool(self._failure) or self._stop_asked() or time.monotonic() - self._began > self._run.options.seconds

    def _alive(self) -> bool:
        return "servo" not in self._failure

    def _poll(self) -> Iterator[Command]:
        """One look at everything; what people said."""
        time.sleep(POLL_S)
        self._attend()
        yield from self._run.heard()

    def _attend(self) -> None:
        """What must go on at all times: to live, to hear the keys of whoever watches, to pass on what happens."""
        self._run.beat()
        self._log.drain()
        self._watcher.progress(time.monotonic() - self._began, self._log.measured, self.episodes)
        for line in self._run.noted():
            self._watcher.message(line)
        self._run.report_progress(self._phase, self.episodes, self.successes)


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
