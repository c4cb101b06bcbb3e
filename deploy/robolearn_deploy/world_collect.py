"""A person records demonstrations in a simulated world: the supervisor of such a session.

    page (a process) ------------+--intents--> world (a process) --steps--> recorder (a process) --> dataset
    teleoperator (a process) ----+                  |
    page <-----------------------------ticks, pictures

The course of the session is ``collect_session``'s, as on a rig; only the world is judged by itself: it says when its
task is solved. This process is on no control path: if it stalls, its heartbeat does, and the world stands still.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from robolearn_data.schema import Schema
from robolearn_data.world import World, WorldSpec
from robolearn_deploy import warmup
from robolearn_deploy.channels import chunk_fields
from robolearn_deploy.collect_ring import COLLECT_FIELDS, collect_record
from robolearn_deploy.collect_session import (
    Act,
    CollectSession,
    Inputs,
    SessionOptions,
    Stage,
    Tally,
)
from robolearn_deploy.dashboard.rings import Phase, RigRings
from robolearn_deploy.operator import BEAT_FIELDS, Command, Operator, beat
from robolearn_deploy.recorder import RecorderProcess, RecordingError, step_fields
from robolearn_deploy.report import Spread
from robolearn_deploy.rig_runtime import RECORDER_NS, SUPERVISOR_NS
from robolearn_deploy.rig_session import lives
from robolearn_deploy.runtime import signals_noted
from robolearn_deploy.stall import State, Watch
from robolearn_deploy.starting import START_S
from robolearn_deploy.worker import Worker, wait_ready
from robolearn_deploy.world_people import SLOTS_S, People, PeopleOptions
from robolearn_deploy.world_process import DONE_FIELDS, START_FIELDS, WorldHandles, run_world
from robolearn_deploy.world_report import SessionReport, WorldMeasured
from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns
from robolearn_hardware.machine import Check
from robolearn_hardware.ring import Field, Ring

POLL_S = 0.02
WARM_UP_S = 1.0
"""The world is looked at for so long before the session begins."""
STOP_TIMEOUT_S = 10.0
MARGIN_NS = SECOND_NS // 3
"""The world says that an episode is over; the session would, so long after that."""
SLOW = 0.9
"""A world that makes less than this share of its steps a second is said to be slow."""
RECORDING = (Stage.EPISODE, Stage.STOPPING, Stage.JUDGING)
"""An episode is recorded, or waits for its verdict."""
UNSOLVED = "the world does not count it as solved: failure, discard or redo"


@dataclass(frozen=True)
class WorldSession:
    """What a session in a world is told."""

    session: SessionOptions
    people: PeopleOptions
    out: Path
    """The dataset; it exists, with the schema that is recorded."""
    seed: int = 0
    """Of the first start. Each episode takes the next one; REDO begins the same again."""
    tallies: Mapping[str, Tally] = field(default_factory=dict)
    """Task -> what the dataset holds already."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for every episode."""


class SessionWatcher(Protocol):
    """Whoever wants to know what happens; as ``rig_collect.CollectWatcher``, of a world."""

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        """Everything is ready. ``operator`` is for the same thread; there is nobody to instruct."""
        ...

    def checked(self, checks: Sequence[Check]) -> None:
        """The warm-up checks, once, before the session begins."""
        ...

    def progress(self, elapsed_s: float, measured: WorldMeasured, episode: int) -> None:
        """About fifty times a second."""
        ...

    def session(self, session: CollectSession, now_ns: int) -> None:
        """As often, after ``progress``."""
        ...

    def message(self, text: str) -> None:
        """Something a person should know, in one line."""
        ...


def collect_in_world(
    make: Callable[[], World], spec: WorldSpec, options: WorldSession, watcher: SessionWatcher
) -> SessionReport:
    """Hold the session until its episodes are recorded, END, SIGINT or SIGTERM comes, or a process fails.

    Args:
        make: picklable, called in its own process; the world that it makes has the spec given.

    Raises:
        StartError: a process failed before the session began.
        PageError, RecordingError, DeviceError: the page, the recorder or a teleoperator cannot be had.
    """
    with ExitStack() as stack:
        stop_asked = stack.enter_context(signals_noted())
        return _Session(stack, make, spec, options, watcher).run(stop_asked)


def recorded_schema(spec: WorldSpec) -> Schema:
    """What a session records: the streams of the world, and "action_sent", as scripted demonstrations have it."""
    schema = spec.schema
    return Schema(schema.rate_hz, {**schema.streams, "action_sent": replace(schema.stream("action"), kind="info")})


class _Session:
    """The processes and rings of one session."""

    def __init__(
        self,
        stack: ExitStack,
        make: Callable[[], World],
        spec: WorldSpec,
        options: WorldSession,
        watcher: SessionWatcher,
    ) -> None:
        self._spec, self._options, self._watcher = spec, options, watcher
        schema, action = recorded_schema(spec), spec.schema.stream("action")
        deep = max(64, round(SLOTS_S * schema.rate_hz))

        def ring(fields: Mapping[str, Field], slots: int) -> Ring:
            return stack.enter_context(Ring.create(fields, slots))

        self._starts, self._done = ring(START_FIELDS, 4), ring(DONE_FIELDS, deep)
        self._heart, recorder_heart = ring(BEAT_FIELDS, 4), ring(BEAT_FIELDS, 4)
        self._collect, steps = ring(COLLECT_FIELDS, 4), ring(step_fields(schema), deep)
        chunks = ring(chunk_fields(action, 1), 2)  # nobody thinks here
        self._recorder = stack.enter_context(RecorderProcess(options.out, steps.handle, {}, recorder_heart.handle))
        people = self._people = People(
            stack, spec, options.people, chunks=chunks.handle, collect=self._collect.handle, dataset=options.out
        )
        handles = WorldHandles(
            people=people.handles,
            starts=self._starts.handle,
            steps=steps.handle,
            done=self._done.handle,
            beats={"supervisor": self._heart.handle, "recorder": recorder_heart.handle},
            watches=(Watch("supervisor", SUPERVISOR_NS, teleop=True), Watch("recorder", RECORDER_NS, teleop=True)),
        )
        self._world = Worker("world", run_world, handles, make, spec)
        stack.callback(self._world.stop, STOP_TIMEOUT_S)
        stack.callback(people.stop)

        self.session = CollectSession(options.session, dict(options.tallies))
        self._measured, self._broken = WorldMeasured(), ""
        self._began = time.monotonic()
        self._next_done = 0
        self._episode, self._seed = -1, options.seed - 1
        self._there, self._judged = False, -1
        self._solved = self._again = self._fresh = self._unsolved = False
        self._period_ns = period_ns(spec.schema.rate_hz)
        self._slowest_hz: float | None = None

    def run(self, stop_asked: Callable[[], bool]) -> SessionReport:
        def starting() -> None:
            if stop_asked():
                raise KeyboardInterrupt

        people, world = self._people, self._world
        wait_ready([world, *people.workers.values()], START_S, starting)
        beat(self._heart)
        people.begin()
        world.release()
        if people.address:
            self._watcher.message(f"page: {people.address}")
        pids = {name: worker.pid for name, worker in people.workers.items()}
        pids |= {"world": world.pid, "recorder": self._recorder.pid}
        self._watcher.started(people.person, lambda text: None, pids, people.rings)
        self._recorder.idle = self._attend  # publishing an episode may take long
        self._return()
        failure = self._warm_up()
        while self.session.stage is not Stage.OVER and not failure:
            commands = [*self._look(), *self._world_says(), *([Command.END] if stop_asked() else [])]
            self._decide(commands)
            self._show()
            failure = self._failure()
        if self.session.stage is not Stage.OVER:
            self.session.tick(Inputs(now_ns(), (Command.END,)))
        self._show()
        return self._report(failure)

    def _warm_up(self) -> str:
        """Look on for a moment, and tell what was found; why the session cannot begin, empty where it can."""
        end, failure = time.monotonic() + WARM_UP_S, ""
        while time.monotonic() < end and not failure:
            self._look()
            failure = self._failure()
        options, m, out = self._options, self._measured, self._options.out
        rate = warmup.bytes_per_s(recorded_schema(self._spec), {})
        left, free = options.session.episodes - self.session.total, float(shutil.disk_usage(out).free)
        checks = [warmup.check_disk(out, free, rate, left, self._spec.max_steps / self._spec.schema.rate_hz)]
        for name in options.people.devices:
            intents = [intent for _, intent in self._people.intents[name].since(0)]
            checks.append(warmup.check_teleoperator(name, intents, now_ns()))
        drawn = Spread.of(m.drawing)
        advice = "close what else uses the processor" if m.missed else ""
        found = f"{m.missed} of {len(m.lateness)} ticks missed; a picture takes {drawn.p50_ms} ms"
        checks.append(Check("world", "warning" if m.missed else "ok", found, advice))
        self._watcher.checked(checks)
        return failure or warmup.failures(checks)

    def _look(self) -> list[Command]:
        """At everything; what people said."""
        time.sleep(POLL_S)
        self._attend()
        return list(self._person_says())

    def _attend(self) -> None:
        """What must go on at all times: to live, to hear the keys of whoever watches."""
        beat(self._heart)
        self._drain()
        self._watcher.progress(time.monotonic() - self._began, self._measured, self.session.saved)

    def _decide(self, commands: Sequence[Command]) -> None:
        if self.session.stage is Stage.EPISODE:  # it ends by the world's time, which stands still while nobody moves it
            left = self._spec.max_steps - self._measured.steps
            self.session.ends_ns = now_ns() + left * self._period_ns + MARGIN_NS
        inputs = Inputs(
            now_ns=now_ns(),
            commands=commands,
            at_rest=self._measured.state in (State.STOPPED, State.E_STOPPED),
            at_start=self._there,
            driving=self._measured.state is State.TELEOP,
            fault="the e-stop is pressed; release it" if self._measured.state is State.E_STOPPED else "",
        )
        acts = self.session.tick(inputs)
        self.session.waiting = self.session.stage is Stage.EPISODE and not self._measured.steps
        if Command.STOP in commands and self._unsolved:
            self.session.note, self._unsolved = UNSOLVED, False
        for act in acts:
            try:
                self._do(act)
            except RecordingError as error:
                if act in (Act.SAVE, Act.DISCARD) and lives(self._recorder.pid):
                    self.session.not_kept(str(error), now_ns())
                else:
                    self._broken = self._broken or str(error)

    def _do(self, act: Act) -> None:
        match act:
            case Act.RETURN:
                self._return()
            case Act.RECORD:
                self._recorder.start(task=self.session.task, **self._options.info, seed=self._seed)
            case Act.DRIVE:
                self._fresh = False
                self._people.supervisor.tell(Command.TAKE_OVER)
            case Act.STOP:
                self._people.supervisor.tell(Command.PAUSE)
            case Act.HOLD:
                self._recorder.hold()
            case Act.SAVE:
                self._recorder.save(success=self.session.success, score=self._measured.score)
                self.session.kept(now_ns())
                self._tell_pace()
            case Act.DISCARD:
                self._recorder.discard()
                self.session.kept(now_ns())

    def _return(self) -> None:
        """Begin the world anew, unless nothing has moved in it yet."""
        if self._fresh:
            return
        if not self._again:
            self._seed += 1
        self._again, self._fresh = False, True
        self._episode += 1
        self._solved, self._there = False, False
        self._measured.begin()
        self._starts.publish({"episode": self._episode, "seed": self._seed})

    def _tell_pace(self) -> None:
        """Where the episode was slower than real time: what the person did was faster than it will look."""
        reached, asked = self._measured.rate_hz, self._spec.schema.rate_hz
        if reached is None:
            return
        self._slowest_hz = min(reached, self._slowest_hz or reached)
        if reached < SLOW * asked:
            self._watcher.message(
                f"the world made {reached:.1f} steps a second of {asked:g}, slower than real time: record without "
                "--images, or close what else uses the processor"
            )

    def _person_says(self) -> Iterator[Command]:
        stage = self.session.stage
        for command in self._people.heard():
            if stage in RECORDING:
                self._again = command is Command.REDO
                if command is Command.SUCCESS and not self._solved:
                    command, self._unsolved = Command.STOP, True
            yield command

    def _world_says(self) -> Iterator[Command]:
        """Once, when it is over."""
        found = self._done.newest()
        if found is None or found[1]["episode"] != self._episode or not found[1]["done"]:
            return
        if self._judged != self._episode and self.session.stage is Stage.EPISODE:
            self._judged = self._episode
            yield Command.SUCCESS if self._solved else Command.STOP

    def _drain(self) -> None:
        m = self._measured
        for index, done in self._done.since(self._next_done):
            self._next_done = index + 1
            mine = int(done["episode"]) == self._episode
            m.take(done, mine=mine)
            if mine:
                self._there = True
                self._solved |= bool(done["success"])

    def _show(self) -> None:
        session = self.session
        self._watcher.session(session, now_ns())
        self._collect.publish(collect_record(session, now_ns()))
        phases = dict.fromkeys(RECORDING, Phase.EPISODE) | {Stage.OVER: Phase.ENDING}
        self._people.show(phases.get(session.stage, Phase.RESET), session.total, session.successes, session.task)
        for line in self._people.noted():
            self._watcher.message(line)

    def _failure(self) -> str:
        """Why the session cannot go on, empty where it can."""
        if not self._world.running:
            return self._world.failure() or "the world process has ended"
        gone = "" if lives(self._recorder.pid) else "the recorder process has ended; what was saved is whole"
        return self._broken or gone

    def _report(self, failure: str) -> SessionReport:
        m, session = self._measured, self.session
        return SessionReport(
            saved=session.saved,
            discarded=session.discarded,
            episodes=session.total,
            successes=session.successes,
            rate_hz=self._spec.schema.rate_hz,
            rate_reached_hz=self._slowest_hz,
            ticks=len(m.lateness),
            missed=m.missed,
            lateness=Spread.of(m.lateness),
            world_step=Spread.of(m.step),
            drawing=Spread.of(m.drawing),
            failure=failure,
        )
