"""A session of demonstrations on a rig: runs ``collect_session`` with real processes, devices and a recorder.

Nobody thinks: the processes are those of ``rig_runtime`` without a policy. This is the supervisor's loop, on no control
path: if it stalls, the servo process brings the arms to rest; if it is killed, every other process ends by itself.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from robolearn_data.dataset import Dataset, DatasetError
from robolearn_data.selection import episode_infos
from robolearn_data.writer import DatasetWriter
from robolearn_deploy import warmup
from robolearn_deploy.collect_ring import collect_record
from robolearn_deploy.collect_session import (
    Act,
    CollectSession,
    Inputs,
    SessionError,
    SessionOptions,
    Stage,
    Tally,
)
from robolearn_deploy.dashboard.rings import Phase
from robolearn_deploy.operator import Command
from robolearn_deploy.recorder import RecordingError
from robolearn_deploy.rig_log import RigLog, RigReport
from robolearn_deploy.rig_options import RigOptions, RigWatcher
from robolearn_deploy.rig_runtime import RigRun, opened
from robolearn_deploy.rig_session import POLL_S, lives
from robolearn_deploy.stall import State
from robolearn_hardware.cameras.health import CameraCondition
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import Condition
from robolearn_hardware.machine import Check
from robolearn_hardware.rig import Rig
from robolearn_hardware.ring import Ring

WARM_UP_S = 2.0
"""How long cameras and the servo loop run before they are judged."""
SILENT_NS = 2 * SECOND_NS
"""A device that has given nothing for so long has failed."""
NEAR = 0.02
"""Every component of the vector within this of the start pose (rad, and share of a gripper's opening): it is there."""
_LOOK_S = 1.0


class CollectWatcher(RigWatcher, Protocol):
    """Whoever wants to know what happens in a session."""

    def checked(self, checks: Sequence[Check]) -> None:
        """The warm-up checks, once, before the session begins."""
        ...

    def session(self, session: CollectSession, now_ns: int) -> None:
        """About fifty times a second, after ``progress``."""
        ...


@dataclass(frozen=True)
class CollectReport:
    """What a session came to."""

    rig: RigReport
    """Its ``failure`` says why the session ended early, in one line."""
    saved: int
    """In this session, as ``discarded``."""
    discarded: int
    tallies: Mapping[str, Tally]
    """Task -> what the dataset holds of it."""
    recorded_s: float
    """Length of the episodes that were saved."""
    elapsed_s: float
    note: str


def collect_on_rig(
    rig: Rig, options: RigOptions, session: SessionOptions, watcher: CollectWatcher, *, check: bool = True
) -> CollectReport:
    """Record demonstrations until there are ``session.episodes``, END, SIGINT or SIGTERM comes, or a process fails.

    Args:
        rig: with every twin already started (``rig.with_twins``).
        options: with ``out`` and ``teleoperators``.
        check: refuse to begin where a warm-up check fails.

    Raises:
        SessionError: a check failed, or the dataset was begun with another rig or other tasks.
        DeviceError: a device cannot be opened, as its driver says.
        DatasetError, RecordingError: the recording cannot be made, or another process is writing to the dataset.
    """
    assert options.out is not None
    tallies, options, continued = _continue(options, rig, session)
    began = time.monotonic()
    with opened(rig, None, None, options, watcher.message) as (run, stop_asked):
        log = run.begin(watcher)
        course = CollectSession(session, tallies)
        collecting = _Collecting(run, course, log, stop_asked, watcher)
        checks = collecting.warm_up(rig, continued)
        watcher.checked(checks)
        if check and (bad := warmup.failures(checks)):
            raise SessionError(f"{bad}; mend that, or leave the checks out (--no-check)")
        failure = collecting.run()
        report = run.report(log, failure, course.saved, course.successes)
    return CollectReport(
        report,
        course.saved,
        course.discarded,
        course.tallies,
        course.recorded_ns / SECOND_NS,
        time.monotonic() - began,
        course.note,
    )


def _continue(
    options: RigOptions, rig: Rig, session: SessionOptions
) -> tuple[dict[str, Tally], RigOptions, str | None]:
    """What the dataset holds of each task; the options, with its start pose; the fingerprint of the rig it is of."""
    assert options.out is not None
    metadata = {**options.metadata, "tasks": list(session.tasks)}
    if not options.resume:
        return {}, dataclasses.replace(options, metadata=metadata), None
    with DatasetWriter.append(options.out):  # nobody else writes to it; and what was in flight is set aside
        pass
    dataset = Dataset.open(options.out)
    there = dataset.metadata
    begun = there.get("rig_fingerprint")
    if begun != rig.fingerprint:
        raise DatasetError(
            f"{options.out} was begun with the rig {there.get('rig')!r} as its file and calibration were then "
            f"(fingerprint {begun}, now {rig.fingerprint}); take these again, or record to another path"
        )
    if there.get("tasks") != list(session.tasks):
        begun = ", ".join(map(repr, there.get("tasks", []))) or "none"
        raise SessionError(f"{options.out} was begun with the tasks {begun}; give the same, or leave --task out")
    tallies: dict[str, Tally] = {}
    for info in episode_infos(dataset):
        tally = tallies.setdefault(str(info.get("task")), Tally())
        tally.saved += 1
        tally.successes += info.get("success") is True
    if sum(tallies.get(task, Tally()).saved for task in session.tasks) >= session.episodes:
        raise SessionError(f"{options.out} has its {session.episodes} episodes; give more --episodes to go on")
    servo = options.servo
    if servo.reset is None and "start_pose" in there:
        servo = dataclasses.replace(servo, reset=tuple(there["start_pose"]))
    return tallies, dataclasses.replace(options, servo=servo, metadata=metadata), str(begun)


class _Collecting:
    """The supervisor's loop."""

    def __init__(
        self,
        run: RigRun,
        session: CollectSession,
        log: RigLog,
        stop_asked: Callable[[], bool],
        watcher: CollectWatcher,
    ) -> None:
        assert run.recorder is not None
        assert run.options.out is not None
        self._run, self._session, self._log, self._watcher = run, session, log, watcher
        self._stop_asked = stop_asked
        self._recorder, self._out = run.recorder, run.options.out
        self._recorder.idle = self._attend  # publishing an episode may take long
        self._began = time.monotonic()
        self._failure = ""
        self._rate = 0.0
        self._looked_s, self._full = 0.0, ""
        # What the limits let through of the start pose.
        self._start = run.start_pose.copy()
        for info, part in zip(run.layout.arms, run.layout.slices, strict=True):
            low, high = info.limits.low, info.limits.high
            self._start[part][: info.joints] = np.clip(self._start[part][: info.joints], low, high)

    def warm_up(self, rig: Rig, continued: str | None) -> list[Check]:
        """Let everything run for a moment and look at it."""
        run, options = self._run, self._session.options
        before = {name: camera.health().frames for name, camera in run.cameras.items()}
        intents: dict[str, list[np.void]] = {arm: [] for arm in run.intents}
        seen = {arm: ring.count for arm, ring in run.intents.items()}
        began = time.monotonic()
        while time.monotonic() - began < WARM_UP_S and not self._over():
            self._poll()
            for arm, ring in run.intents.items():
                intents[arm] += [record for _, record in ring.since(seen[arm])]
                seen[arm] = ring.count
        elapsed = time.monotonic() - began
        checks, pictures = [warmup.check_fingerprint(rig.fingerprint, continued)], {}
        for name, camera in run.cameras.items():
            health, newest = camera.health(), camera.ring.newest()
            picture = None if newest is None else newest[1]["value"]
            if picture is not None:
                pictures[name] = picture
            rate_hz = (health.frames - before[name]) / elapsed
            checks.append(warmup.check_camera(name, camera.info, health, rate_hz, picture))
        tick = run.ticks.newest()
        if tick is not None:
            checks += [warmup.check_arm(info, rig, tick[1]) for info in run.layout.arms]
        for name, arm in run.options.teleoperators.items():
            checks.append(warmup.check_teleoperator(name, intents[arm], now_ns()))
        for name in run.forces:
            quiet = _age_ns(run.forces[name]) > SILENT_NS
            found = "says nothing" if quiet else f"{run.schema.streams[name].rate_hz:g} Hz"
            checks.append(Check(name, "failure" if quiet else "ok", found, "is it plugged in?"))
        checks.append(warmup.check_latencies(rig))
        self._rate = warmup.bytes_per_s(run.schema, pictures)
        free, left = self._free(), options.episodes - self._session.total
        checks.append(warmup.check_disk(self._out, free, self._rate, left, options.episode_s))
        measured = self._log.measured
        checks.append(warmup.check_clock(measured.lateness, measured.missed, run.rate_hz))
        return checks

    def run(self) -> str:
        """Until the session is over; why it failed, or an empty string."""
        session = self._session
        while session.stage is not Stage.OVER and not self._over():
            commands = self._poll()
            if self._stop_asked():
                commands.append(Command.END)
            for act in session.tick(self._inputs(commands)):
                self._do(act)
            self._tell()
        if session.stage is not Stage.OVER:
            session.tick(Inputs(now_ns(), (Command.END,)))
        self._tell()
        return self._failure

    def _do(self, act: Act) -> None:
        run, session = self._run, self._session
        try:
            match act:
                case Act.RETURN:
                    run.tell(Command.RESET)
                case Act.RECORD:
                    run.instruct(session.task)
                    run.begin_episode()
                case Act.DRIVE:
                    run.tell(Command.TAKE_OVER)
                case Act.STOP:
                    run.tell(Command.PAUSE)
                case Act.RECOVER:
                    run.tell(Command.RESUME)  # without a plan it leads nowhere
                case Act.HOLD:
                    self._recorder.hold()
                case Act.SAVE:
                    self._recorder.save(success=session.success)
                    session.kept(now_ns())
                case Act.DISCARD:
                    self._recorder.discard()
                    session.kept(now_ns())
        except RecordingError as error:
            if act in (Act.SAVE, Act.DISCARD) and lives(self._recorder.pid) and not self._stopped():
                session.not_kept(str(error), now_ns())
            else:
                self._failure = self._failure or str(error)

    def _poll(self) -> list[Command]:
        """One look at everything; what people said."""
        time.sleep(POLL_S)
        self._attend()
        return list(self._run.heard())

    def _attend(self) -> None:
        """What must go on at all times: to live, to hear the keys of whoever watches, to pass on what happens."""
        self._run.beat()
        self._log.drain()
        self._watcher.progress(time.monotonic() - self._began, self._log.measured, self._session.saved)
        for line in self._run.noted():
            self._watcher.message(line)

    def _tell(self) -> None:
        session, now = self._session, now_ns()
        self._run.collect.publish(collect_record(session, now))
        phase = {Stage.EPISODE: Phase.EPISODE, Stage.OVER: Phase.ENDING}.get(session.stage, Phase.RESET)
        self._run.report_progress(phase, session.saved, session.successes)
        self._watcher.session(session, now)

    def _inputs(self, commands: Sequence[Command]) -> Inputs:
        now, newest = now_ns(), self._run.ticks.newest()
        if newest is None:
            return Inputs(now, commands, fault="the servo loop has not begun")
        tick = newest[1]
        state = State(int(tick["state"]))
        away = np.abs(tick["sent"] - self._start)
        return Inputs(
            now,
            commands,
            at_rest=bool(tick["at_rest"]) and state in (State.STOPPED, State.E_STOPPED),
            at_start=bool((away[np.isfinite(away)] < NEAR).all()),
            driving=state is State.TELEOP,
            fault=self._fault(tick, state, now),
        )

    def _fault(self, tick: np.void, state: State, now: int) -> str:
        """Why no demonstration can be made now, in words."""
        cause = bytes(tick["cause"]).decode(errors="replace")
        if state is State.E_STOPPED:
            return f"{cause}; release it, then start"
        if Condition(int(tick["condition"])) not in (Condition.READY, Condition.DEGRADED):
            return f"{cause.removesuffix('; recover it, then resume')}; start tries to recover it"
        if now - int(tick["woke_ns"]) > SECOND_NS:
            return "the servo loop stands still; is the machine overloaded?"
        for name, camera in self._run.cameras.items():
            health = camera.health()
            if health.condition is CameraCondition.GONE or health.age_s > SILENT_NS / SECOND_NS:
                return f"camera {name} gives no pictures: {health.message or 'none comes'}"
        for name, ring in self._run.forces.items():
            if _age_ns(ring) > SILENT_NS:
                return f"{name} gives no samples; is it plugged in?"
        for name, arm in self._run.options.teleoperators.items():
            if name != "page" and _age_ns(self._run.intents[arm]) > SILENT_NS:
                return f"the teleoperator {name} says nothing; is it plugged in?"
        return self._disk_is_full()

    def _disk_is_full(self) -> str:
        """Between episodes: whether another one finds room."""
        if self._session.stage is Stage.READY and time.monotonic() - self._looked_s > _LOOK_S:
            self._looked_s = time.monotonic()
            needed = self._rate * self._session.options.episode_s
            full = self._free() < needed
            self._full = f"the disk has no room for an episode ({needed / 1e6:.0f} MB); make room" if full else ""
        return self._full if self._session.stage is Stage.READY else ""

    def _over(self) -> bool:
        if not self._failure:
            self._failure = self._run.failure() or self._stopped()
            if self._failure:
                self._watcher.message(f"{self._failure}; the arms come to rest")
        return bool(self._failure)

    def _stopped(self) -> str:
        """Why the recorder records no more; empty while it does. Its heart says whether to ask."""
        heart = self._run.recorder_heart
        assert heart is not None
        if _age_ns(heart, "at_ns") < SILENT_NS or not heart.count:
            return ""
        try:
            self._recorder.status()
        except RecordingError as error:
            return str(error)
        return ""

    def _free(self) -> float:
        return float(shutil.disk_usage(self._out).free)


def _age_ns(ring: Ring, stamp: str = "capture_ns") -> int:
    """Of its newest record; very old where there is none."""
    found = ring.newest()
    return now_ns() - (int(found[1][stamp]) if found is not None else 0)
