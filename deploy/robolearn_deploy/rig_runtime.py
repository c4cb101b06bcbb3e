"""Runs a policy on a rig: starts the processes, joins them by rings, watches them, and ends them in order.

    cameras (a process each) --+--> policy --chunks--+--> [fast policy] --short chunks--> servo --> arms
    servo: state, force -------+                     |                                      ^
    teleoperator (a process each) --intents----------|--------------------------------------+
    recorder <-- everything

This process is the supervisor: it says which episode it is, hears people, and is on no control path. If it stalls, its
heartbeat does, and the servo process brings the arms to rest; so it does when the recorder or a camera falls silent.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.dataset import DatasetError
from robolearn_data.schema import Schema, UserError, read_text
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.channels import chunk_fields
from robolearn_deploy.dashboard.access import address, listen
from robolearn_deploy.dashboard.rings import NOTE_FIELDS, PROGRESS_FIELDS, Phase, RigRings
from robolearn_deploy.dashboard.server import run_page
from robolearn_deploy.fast import STEPS, FastPolicy, FastRings, run_fast
from robolearn_deploy.inference import Inference
from robolearn_deploy.operator import BEAT_FIELDS, COMMAND_FIELDS, Command, Commands, Operator, beat
from robolearn_deploy.policy_process import PolicyOptions, policy_process
from robolearn_deploy.recorder import RecorderProcess, sample_fields, step_fields
from robolearn_deploy.rig_log import RigLog, RigMeasured, RigReport
from robolearn_deploy.rig_options import RigOptions, RigWatcher
from robolearn_deploy.rig_senses import SESSION_FIELDS, RigHandles, RigSenses
from robolearn_deploy.rig_session import POLL_S, REST_S, Session, lives
from robolearn_deploy.runtime import signals_noted
from robolearn_deploy.schedulers import find
from robolearn_deploy.servo import ServoProcess
from robolearn_deploy.servo_process import ServoHandles, tick_fields
from robolearn_deploy.stall import Watch
from robolearn_deploy.takeover import intent_fields
from robolearn_deploy.teleop_process import run_teleop
from robolearn_deploy.worker import Rendezvous, Worker, wait_ready
from robolearn_hardware.cameras.process import CameraProcess, open_cameras
from robolearn_hardware.clock import now_ns, period_ns
from robolearn_hardware.registry import TeleoperatorConfig
from robolearn_hardware.rig import Rig
from robolearn_hardware.ring import Field, Ring, RingHandle

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 10.0
SLOTS_S = 4.0
"""How long whoever reads states and ticks may be busy elsewhere."""

SUPERVISOR_NS = 500_000_000
CAMERA_NS = 1_500_000_000
"""A camera's process beats every half second. That no picture comes is seen by the policy, which then makes no plan."""
RECORDER_NS = 3_000_000_000


class _Nobody:
    def started(self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int]) -> None: ...

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None: ...

    def message(self, text: str) -> None: ...


def run_rig(
    rig: Rig,
    policy: Callable[[], Inference],
    policy_spec: PolicySpec,
    options: RigOptions,
    watcher: RigWatcher | None = None,
) -> RigReport:
    """Run until the time or the episodes are over, END, SIGINT or SIGTERM comes, or a process fails.

    Args:
        rig: with every twin already started (``rig.with_twins``).
        policy: picklable, called in its own process; what it makes has the spec given.

    Raises:
        DeviceError: a device cannot be opened, as its driver says.
        SpecError: policy and rig do not fit.
        StartError: a process failed before the run began.
        DatasetError, RecordingError: the recording cannot be made.
    """
    scheduler = find(options.scheduler)
    execute = scheduler.execute_steps(policy_spec, options.replan_steps)
    if options.out is not None and options.out.exists():
        raise DatasetError(f"{options.out} exists; choose another path for the recording")
    wanted = {n: c for n, c in rig.cameras.items() if options.out is not None or n in policy_spec.observation}
    with ExitStack() as stack:
        stop_asked = stack.enter_context(signals_noted())
        latency = {name: rig.where(name).latency_ms for name in wanted}
        cameras = stack.enter_context(open_cameras(wanted, latency))
        servo = stack.enter_context(ServoProcess(rig, options.servo))
        infos = {name: camera.info for name, camera in cameras.items()}
        schema = servo.layout.schema(policy_spec.rate_hz, servo.rate_hz, infos, wrench=servo.measures_force)
        _check_fits(policy_spec, schema, rig.name)
        run = _RigRun(stack, rig, servo, cameras, schema, policy, policy_spec, options, execute)
        return run.go(stop_asked, watcher or _Nobody())


class _RigRun:
    """The processes and rings of one run."""

    def __init__(
        self,
        stack: ExitStack,
        rig: Rig,
        servo: ServoProcess,
        cameras: Mapping[str, CameraProcess],
        schema: Schema,
        policy: Callable[[], Inference],
        spec: PolicySpec,
        options: RigOptions,
        execute: int,
    ) -> None:
        self._rig, self._servo, self._cameras, self.options = rig, servo, cameras, options
        deep = max(64, round(SLOTS_S * servo.rate_hz))

        def ring(fields: Mapping[str, Field], slots: int) -> Ring:
            return stack.enter_context(Ring.create(fields, slots))

        layout, action = servo.layout, servo.layout.action()
        self.chunks = ring(chunk_fields(action, spec.horizon), 256)
        self.short = ring(chunk_fields(action, STEPS), 256) if options.fast else None
        self.ticks = ring(tick_fields(len(layout.names)), deep)
        self.steps = ring(step_fields(schema), max(64, round(SLOTS_S * spec.rate_hz)))
        self.session = ring(SESSION_FIELDS, 4)
        self.instruction = ring(sample_fields(schema.streams["instruction"]), 16)
        self.heart = ring(BEAT_FIELDS, 4)
        self.commands = {name: ring(COMMAND_FIELDS, 64) for name in ("supervisor", "person", "page")}
        self.notes, self.progress = ring(NOTE_FIELDS, 64), ring(PROGRESS_FIELDS, 4)
        streams = {
            name: ring(sample_fields(schema.streams[name]), deep)
            for name in ("state", "wrench")
            if name in schema.streams
        }
        handles = {name: one.handle for name, one in streams.items()}
        seen = {name: camera.ring.handle for name, camera in cameras.items()}
        everything = {**handles, **seen, "instruction": self.instruction.handle}
        self._operator = Operator(self.commands["supervisor"])
        self._heard = Commands({name: one for name, one in self.commands.items() if name != "supervisor"})
        self.page_address = ""
        self._next_note = 0
        self._schema = schema
        self._text = schema.streams["instruction"]
        self._episode = -1

        watches = [Watch("supervisor", SUPERVISOR_NS, teleop=True)]
        beats: dict[str, RingHandle] = {"supervisor": self.heart.handle}
        for name, camera in cameras.items():
            if name in spec.observation:
                watches.append(Watch(f"camera {name}", CAMERA_NS))
                beats[f"camera {name}"] = camera.health_ring.handle
        self.recorder: RecorderProcess | None = None
        if options.out is not None:
            recorder_heart = ring(BEAT_FIELDS, 4)
            with DatasetWriter.create(options.out, schema, metadata=self._metadata()):
                pass
            self.recorder = stack.enter_context(
                RecorderProcess(options.out, self.steps.handle, everything, recorder_heart.handle)
            )
            watches.append(Watch("recorder", RECORDER_NS))
            beats["recorder"] = recorder_heart.handle

        self.workers: dict[str, Worker] = {}
        stack.callback(self._end_workers)
        attach = functools.partial(
            RigSenses, RigHandles({**everything}, self.chunks.handle, self.ticks.handle, self.session.handle)
        )
        thinking = PolicyOptions(spec, options.scheduler, execute)
        self.workers["policy"] = Worker("policy", policy_process, attach, policy, thinking)
        if self.short is not None:
            fast = (options.fast, self.chunks.handle, self.short.handle, handles, self.session.handle)
            self.workers["fast policy"] = Worker("fast policy", _fast, *fast)
        intents: dict[str, RingHandle] = {}
        for name, arm in self._pairs().items():
            joints = next(info.joints for info in layout.arms if info.name == arm)
            intents[arm] = ring(intent_fields(joints), 16).handle
            teleop = (name, rig.teleoperators[name], intents[arm], joints, self.session.handle)
            self.workers[name] = Worker(name, _teleop, *teleop)
        if options.page is not None:
            with listen(options.page) as listening:
                self.page_address = address(listening, options.page)
                self.workers["page"] = Worker("page", run_page, self.rings(), options.page, listening)
        stack.callback(self._bring_to_rest)

        self._servo_handles = ServoHandles(
            chunks=(self.short or self.chunks).handle,
            horizon=STEPS if self.short else spec.horizon,
            period_ns=period_ns(spec.rate_hz),
            start=0 if self.short else spec.start,
            streams=handles,
            steps=self.steps.handle,
            ticks=self.ticks.handle,
            beats=beats,
            watches=tuple(watches),
            commands={name: one.handle for name, one in self.commands.items()},
            intents=intents,
            scheduler="naive" if self.short else options.scheduler,
            execute=execute,
        )

    def rings(self) -> RigRings:
        """For a page that shows the run."""
        return RigRings(
            rig=self._rig.name,
            names=self._servo.layout.names,
            rate_hz=self._servo.rate_hz,
            cameras={name: camera.ring.handle for name, camera in self._cameras.items()},
            ticks=self.ticks.handle,
            chunks=(self.short or self.chunks).handle,
            instruction=self.instruction.handle,
            commands=self.commands["page"].handle,
            notes=self.notes.handle,
            progress=self.progress.handle,
            session=self.session.handle,
            teleoperators=bool(self._pairs()),
        )

    def go(self, stop_asked: Callable[[], bool], watcher: RigWatcher) -> RigReport:
        def starting() -> None:
            if stop_asked():
                raise KeyboardInterrupt

        wait_ready(list(self.workers.values()), START_TIMEOUT_S, starting)
        self.beat()
        self._servo.begin(self._servo_handles)
        for note in self._servo.granted.missing:
            watcher.message(note)
        log = RigLog(self.ticks, self.chunks)
        self.instruct(self.options.instruction)
        for worker in self.workers.values():
            worker.release()
        if self.page_address:
            watcher.message(f"dashboard: {self.page_address}")
        watcher.started(Operator(self.commands["person"]), self.instruct, self.pids())
        session = Session(self, log, stop_asked, watcher)
        failure = session.run()
        return RigReport.of(
            log.measured,
            rig=self._rig.name,
            scheduler=self.options.scheduler,
            failure=failure,
            granted=self._servo.granted,
            rate_hz=self._servo.rate_hz,
            episodes=session.episodes,
            successes=session.successes,
        )

    def pids(self) -> dict[str, int]:
        """Of all children, by name."""
        found = {name: worker.pid for name, worker in self.workers.items()}
        found["servo"] = self._servo.pid
        found |= {f"camera {name}": camera.pid for name, camera in self._cameras.items()}
        return found | ({"recorder": self.recorder.pid} if self.recorder else {})

    def instruct(self, text: str) -> None:
        """Tell the policy what to do, from the next observation on. Raises SchemaError where it is too long."""
        value, now = self._text.check("instruction", text), now_ns()
        self.instruction.publish({"capture_ns": now, "received_ns": now, "value": value})

    def begin_episode(self, task: str) -> int:
        self._episode += 1
        self.session.publish({"episode": self._episode, "stop": 0})
        if self.recorder is not None:
            self.recorder.start(task=task, operator="policy")
        return self._episode

    def beat(self) -> None:
        """The supervisor lives."""
        beat(self.heart)

    def tell(self, command: Command) -> None:
        self._operator.tell(command)

    def heard(self) -> Iterator[Command]:
        """What people said since the last call."""
        for _, command in self._heard.new():
            yield command

    def noted(self) -> Iterator[str]:
        """What viewers of the page did since the last call, for the log; their instructions are passed on."""
        for index, note in self.notes.since(self._next_note):
            self._next_note = index + 1
            viewer, command = bytes(note["viewer"]).decode(), int(note["command"])
            text = read_text(note["instruction"])
            if not command:
                self.instruct(text)
            yield f"{viewer}: {Command(command).name if command else f'instruction {text!r}'}"
        page = self.workers.get("page")
        if page is not None and not page.running:
            del self.workers["page"]
            yield f"{page.failure() or 'the page process has ended'}; the robot goes on without the page"

    def report_progress(self, phase: Phase, episodes: int, successes: int) -> None:
        counts = {"episodes": episodes, "successes": successes, "heard": self._next_note}
        self.progress.publish({"at_ns": now_ns(), "phase": int(phase), **counts})

    def failure(self) -> str:
        """Why a process that the run cannot do without is no more, in one line; empty while all run."""
        if not self._servo.running:
            return self._servo.failure() or "the servo process has ended"
        for name, worker in self.workers.items():
            if name != "page" and not worker.running:
                return worker.failure() or f"the {worker.name} process has ended"
        for name, camera in self._cameras.items():
            if not lives(camera.pid):
                return f"the process of camera {name} has ended"
        if self.recorder is not None and not lives(self.recorder.pid):
            return "the recorder process has ended; what was saved is whole"
        return ""

    def _pairs(self) -> dict[str, str]:
        named, rig = dict(self.options.teleoperators), self._rig
        for teleoperator, arm in named.items():
            if teleoperator not in rig.teleoperators or arm not in rig.arms:
                valid = f"{', '.join(rig.teleoperators) or 'none'}; arms: {', '.join(rig.arms)}"
                raise UserError(f"{teleoperator}:{arm} is not in rig {rig.name}; its teleoperators: {valid}")
        return named

    def _metadata(self) -> dict[str, Any]:
        return {"rig": self._rig.name, "rig_fingerprint": self._rig.fingerprint, **self.options.metadata}

    def _bring_to_rest(self) -> None:
        """The servo process ends when its arms rest; whoever it hears must live until then."""
        self.tell(Command.END)
        end = time.monotonic() + REST_S
        while self._servo.running and time.monotonic() < end:
            self.beat()
            time.sleep(POLL_S)

    def _end_workers(self) -> None:
        self.session.publish({"episode": self._episode, "stop": 1})
        for worker in self.workers.values():
            worker.stop(STOP_TIMEOUT_S)


def _check_fits(spec: PolicySpec, schema: Schema, rig: str) -> None:
    texts = {name: stream for name, stream in spec.observation.items() if stream.kind == "text"}
    spec.check_fits(Schema(schema.rate_hz, {**schema.streams, **texts}), f"the rig {rig!r}")
    names, wanted = schema.streams["action"].names, spec.action.names
    if wanted and names != wanted:
        raise SpecError(f"the policy moves {', '.join(wanted)}; the rig {rig!r} has {', '.join(names)}")


def _stopped(session: Ring) -> Callable[[], bool]:
    parent = os.getppid()

    def stopped() -> bool:
        found = session.newest()
        return (found is not None and bool(found[1]["stop"])) or os.getppid() != parent

    return stopped


def _fast(
    rendezvous: Rendezvous,
    policy: FastPolicy,
    chunks: RingHandle,
    short: RingHandle,
    streams: Mapping[str, RingHandle],
    session: RingHandle,
) -> None:
    attached = {name: Ring.attach(handle) for name, handle in streams.items()}
    rings = FastRings(Ring.attach(chunks), Ring.attach(short), attached)
    rendezvous()
    run_fast(policy, rings, _stopped(Ring.attach(session)))


def _teleop(
    rendezvous: Rendezvous,
    name: str,
    config: TeleoperatorConfig,
    intents: RingHandle,
    joints: int,
    session: RingHandle,
) -> None:
    ring, stopped = Ring.attach(intents), _stopped(Ring.attach(session))
    run_teleop(name, config, ring, joints, stopped, rendezvous)
