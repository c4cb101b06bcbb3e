"""Runs a policy, or a person alone, on a rig: starts the processes, joins them by rings, watches them, and ends them in
order.

    cameras (a process each) --+--> policy --chunks--+--> [fast policy] --short chunks--> servo --> arms
    servo: state, force -------+                     |                                      ^
    force sensors (a process each)                   |                                      |
    teleoperator (a process each), page --intents----|--------------------------------------+
    recorder <-- everything

Without a policy nobody thinks: a person drives from the first RESUME on. ``rig_collect`` holds sessions that way.

This process is the supervisor: it says which episode it is, hears people, and is on no control path. If it stalls, its
heartbeat does, and the servo process brings the arms to rest; so it does when the recorder or a camera falls silent.
"""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.dataset import DatasetError
from robolearn_data.schema import read_text
from robolearn_deploy.channels import chunk_fields
from robolearn_deploy.collect_ring import COLLECT_FIELDS
from robolearn_deploy.dashboard.access import address, listen
from robolearn_deploy.dashboard.rings import NOTE_FIELDS, PROGRESS_FIELDS, PageArm, Phase, RigRings, units_of
from robolearn_deploy.dashboard.server import run_page
from robolearn_deploy.fast import STEPS, short_fields
from robolearn_deploy.inference import Inference
from robolearn_deploy.instructions import InstructionCheck
from robolearn_deploy.operator import BEAT_FIELDS, COMMAND_FIELDS, Command, Commands, Operator, beat
from robolearn_deploy.policy_process import PolicyOptions, policy_process
from robolearn_deploy.recorder import RecorderProcess, sample_fields, step_fields
from robolearn_deploy.rig_devices import RigDevices, open_devices
from robolearn_deploy.rig_fit import prepare_dataset, teleoperator_pairs
from robolearn_deploy.rig_log import RigLog, RigMeasured, RigReport
from robolearn_deploy.rig_options import RigOptions, RigWatcher
from robolearn_deploy.rig_processes import fast_process, force_process, teleop_process
from robolearn_deploy.rig_senses import SESSION_FIELDS, RigHandles, RigSenses
from robolearn_deploy.rig_session import POLL_S, REST_S, Session, lives
from robolearn_deploy.runtime import signals_noted
from robolearn_deploy.schedulers import find
from robolearn_deploy.servo_process import ServoHandles, tick_fields
from robolearn_deploy.stall import CAMERA_NS, RECORDER_NS, SUPERVISOR_NS, Watch
from robolearn_deploy.starting import START_S, Starting
from robolearn_deploy.takeover import intent_fields
from robolearn_deploy.worker import Worker, wait_ready
from robolearn_hardware.clock import now_ns, period_ns
from robolearn_hardware.rig import Rig
from robolearn_hardware.ring import Field, Ring, RingHandle

STOP_TIMEOUT_S = 10.0
SLOTS_S = 4.0
"""How long whoever reads states and ticks may be busy elsewhere."""


class _Nobody:
    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None: ...

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None: ...

    def message(self, text: str) -> None: ...


def run_rig(
    rig: Rig,
    policy: Callable[[], Inference] | None,
    policy_spec: PolicySpec | None,
    options: RigOptions,
    watcher: RigWatcher | None = None,
) -> RigReport:
    """Run until the time or the episodes are over, END, SIGINT or SIGTERM comes, or a process fails.

    Args:
        rig: with every twin already started (``rig.with_twins``).
        policy: picklable, called in its own process; what it makes has the spec given. None: a person alone drives,
            and RESUME means TAKE_OVER.

    Raises:
        DeviceError: a device cannot be opened, as its driver says.
        SpecError: policy and rig do not fit.
        StartError: a process failed before the run began.
        DatasetError, RecordingError: the recording cannot be made.
    """
    watcher = watcher or _Nobody()
    with opened(rig, policy, policy_spec, options, watcher.message) as (run, stop_asked):
        log = run.begin(watcher)
        session = Session(run, log, stop_asked, watcher)
        failure = session.run()
        return run.report(log, failure, session.episodes, session.successes)


@contextmanager
def opened(
    rig: Rig,
    policy: Callable[[], Inference] | None,
    policy_spec: PolicySpec | None,
    options: RigOptions,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[RigRun, Callable[[], bool]]]:
    """The devices, connected, and the processes, started; and whether a signal asked to stop. At the end the arms rest
    and the processes are gone. ``say`` is told what takes long. Raises as ``run_rig``, and KeyboardInterrupt."""
    thinker = None
    if policy is not None:
        assert policy_spec is not None
        execute = find(options.scheduler).execute_steps(policy_spec, options.replan_steps)
        thinker = _Policy(policy, policy_spec, execute)
    if options.out is not None and options.out.exists() and not options.resume:
        raise DatasetError(f"{options.out} exists; choose another path for the recording")
    InstructionCheck(policy_spec.observation if policy_spec else {}, options.check_instruction)(options.instruction)
    with ExitStack() as stack:
        stop_asked = stack.enter_context(signals_noted())
        listening = stack.enter_context(listen(options.page)) if options.page is not None else None
        starting = Starting(stop_asked, say)
        devices = open_devices(stack, rig, thinker.spec if thinker else None, options, starting)
        yield RigRun(stack, devices, thinker, options, listening, starting), stop_asked


@dataclass(frozen=True)
class _Policy:
    """The policy of a run."""

    make: Callable[[], Inference]
    spec: PolicySpec
    execute: int


class RigRun:
    """The processes and rings of one run."""

    def __init__(
        self,
        stack: ExitStack,
        devices: RigDevices,
        thinker: _Policy | None,
        options: RigOptions,
        listening: socket.socket | None,
        starting: Starting,
    ) -> None:
        """``listening``: where the page is to be."""
        self._starting = starting
        self._rig, self._servo, self.cameras, self.schema = rig, servo, cameras, schema = devices
        self.options = options
        self.go = Command.RESUME if thinker else Command.TAKE_OVER
        self.start_pose = servo.start if options.servo.reset is None else np.array(options.servo.reset)
        """(N,) where RESET goes."""
        self.layout, self.rate_hz = servo.layout, servo.rate_hz
        deep = max(64, round(SLOTS_S * servo.rate_hz))

        def ring(fields: Mapping[str, Field], slots: int) -> Ring:
            return stack.enter_context(Ring.create(fields, slots))

        layout, action = servo.layout, servo.layout.action()
        horizon = thinker.spec.horizon if thinker else 1
        self.chunks = ring(chunk_fields(thinker.spec.chunk if thinker else action, horizon), 256)
        self.short = ring(short_fields(action), 256) if options.fast else None
        self.ticks = ring(tick_fields(len(layout.names)), deep)
        self.steps = ring(step_fields(schema), max(64, round(SLOTS_S * schema.rate_hz)))
        self.session = ring(SESSION_FIELDS, 4)
        self.instruction = ring(sample_fields(schema.streams["instruction"]), 16)
        self.heart = ring(BEAT_FIELDS, 4)
        self._pairs = pairs = teleoperator_pairs(rig, options)
        self.commands = {name: ring(COMMAND_FIELDS, 64) for name in ("supervisor", "person", *{"page": 0, **pairs})}
        self.notes, self.progress = ring(NOTE_FIELDS, 64), ring(PROGRESS_FIELDS, 4)
        self.collect = ring(COLLECT_FIELDS, 16)
        """Where a session is; empty without one."""
        streams = {
            name: ring(sample_fields(schema.streams[name]), deep)
            for name in ("state", "wrench")
            if name in schema.streams
        }
        handles = {name: one.handle for name, one in streams.items()}
        seen = {name: camera.ring.handle for name, camera in cameras.items()}
        self.forces = {
            f"wrench_{name}": ring(sample_fields(stream), max(64, round(SLOTS_S * stream.rate_hz)))
            for name, stream in ((n, schema.streams[f"wrench_{n}"]) for n in rig.force_sensors)
        }
        """Of the force sensors; the arms' own are in the stream "wrench"."""
        measured = {name: one.handle for name, one in self.forces.items()}
        self._forces = measured | {n: h for n, h in handles.items() if n == "wrench"}
        everything = {**handles, **seen, **measured, "instruction": self.instruction.handle}
        self._operator = Operator(self.commands["supervisor"])
        self._heard = Commands({name: one for name, one in self.commands.items() if name != "supervisor"})
        self.page_address = ""
        self._next_note = 0
        self._text = schema.streams["instruction"]
        texts = thinker.spec.observation if thinker else {}
        self._check = InstructionCheck({**texts, "instruction": self._text}, options.check_instruction)
        self._episode = -1

        watches = [Watch("supervisor", SUPERVISOR_NS, teleop=True)]
        beats: dict[str, RingHandle] = {"supervisor": self.heart.handle}
        for name, camera in cameras.items():
            if thinker and name in thinker.spec.observation:
                watches.append(Watch(f"camera {name}", CAMERA_NS))
                beats[f"camera {name}"] = camera.health_ring.handle
        self.recorder: RecorderProcess | None = None
        self.recorder_heart: Ring | None = None
        if options.out is not None:
            self.recorder_heart = ring(BEAT_FIELDS, 4)
            prepare_dataset(options, rig, schema, self.start_pose)
            starting.begin("the recorder")
            self.recorder = stack.enter_context(
                RecorderProcess(options.out, self.steps.handle, everything, self.recorder_heart.handle, starting)
            )
            watches.append(Watch("recorder", RECORDER_NS, teleop=thinker is None))
            beats["recorder"] = self.recorder_heart.handle

        self.workers: dict[str, Worker] = {}
        stack.callback(self._end_workers)
        if thinker:
            attach = functools.partial(
                RigSenses, RigHandles(everything, self.chunks.handle, self.ticks.handle, self.session.handle)
            )
            thinking = PolicyOptions(thinker.spec, options.scheduler, thinker.execute)
            self.workers["policy"] = Worker("policy", policy_process, attach, thinker.make, thinking)
        if self.short is not None:
            sensed = {**handles, **measured}
            fast = (options.fast, self.chunks.handle, self.short.handle, sensed, self.session.handle)
            self.workers["fast policy"] = Worker("fast policy", fast_process, *fast)
        for name, one in self.forces.items():
            sensor = name.removeprefix("wrench_")
            delay_ns = round(rig.where(sensor).latency_ms * 1e6)
            force = (sensor, rig.force_sensors[sensor], one.handle, delay_ns, self.session.handle)
            self.workers[sensor] = Worker(sensor, force_process, *force)
        self.intents: dict[str, Ring] = {}
        """Arm -> what a person wants of it."""
        for name, arm in pairs.items():
            place = next(i for i, info in enumerate(layout.arms) if info.name == arm)
            joints = layout.arms[place].joints
            self.intents[arm] = ring(intent_fields(joints), 16)
            if name != "page":
                told = (self.commands[name].handle, options.buttons, self.session.handle)
                felt = (self.ticks.handle, layout.slices[place].start)
                teleop = (name, rig.teleoperators[name], self.intents[arm].handle, joints, *told, *felt)
                self.workers[name] = Worker(name, teleop_process, *teleop)
        if options.page is not None and listening is not None:
            self.page_address = address(listening, options.page)
            page = replace(options.page, check_instruction=self._check)
            self.workers["page"] = Worker("page", run_page, self.rings(), page, listening)
            listening.close()  # the page's process has it: when that goes, so does the port
        stack.callback(self._bring_to_rest)

        self._servo_handles = ServoHandles(
            chunks=(self.short or self.chunks).handle,
            horizon=STEPS if self.short else horizon,
            period_ns=period_ns(schema.rate_hz),
            start=thinker.spec.start if thinker and not self.short else 0,
            streams=handles,
            steps=self.steps.handle,
            ticks=self.ticks.handle,
            beats=beats,
            watches=tuple(watches),
            commands={name: one.handle for name, one in self.commands.items()},
            intents={arm: one.handle for arm, one in self.intents.items()},
            scheduler="naive" if self.short else options.scheduler,
            execute=thinker.execute if thinker else 1,
        )

    def rings(self) -> RigRings:
        """For a page that shows the run."""
        return RigRings(
            rig=self._rig.name,
            names=self._servo.layout.names,
            units=units_of(self._servo.layout.action()),
            rate_hz=self._servo.rate_hz,
            cameras={name: camera.ring.handle for name, camera in self.cameras.items()},
            ticks=self.ticks.handle,
            chunks=(self.short or self.chunks).handle,
            instruction=self.instruction.handle,
            commands=self.commands["page"].handle,
            notes=self.notes.handle,
            progress=self.progress.handle,
            session=self.session.handle,
            teleoperators=bool(self._pairs),
            arms=self._page_arms(),
            forces=self._forces,
            dataset=self.options.out,
            collect=self.collect.handle,
        )

    def _page_arms(self) -> dict[str, PageArm]:
        """Those that viewers of the page move."""
        layout = self._servo.layout
        named = {info.name: (info, part.start) for info, part in zip(layout.arms, layout.slices, strict=True)}
        moved = [arm for name, arm in self._pairs.items() if name == "page"]
        return {
            arm: PageArm(self.intents[arm].handle, named[arm][0].joints, named[arm][0].model, named[arm][1])
            for arm in moved
        }

    def begin(self, watcher: RigWatcher) -> RigLog:
        """Wait for every process and let all go; from here on the servo loop runs."""
        self._starting.begin("the processes " + ", ".join(self.workers))
        wait_ready(list(self.workers.values()), START_S, self._starting)
        self.beat()
        self._starting.begin("the servo loop")
        self._servo.begin(self._servo_handles)
        for note in self._servo.granted.missing:
            watcher.message(note)
        log = RigLog(self.ticks, self.chunks)
        self.instruct(self.options.instruction)
        for worker in self.workers.values():
            worker.release()
        if self.page_address:
            watcher.message(f"page: {self.page_address}")
        watcher.started(Operator(self.commands["person"]), self.instruct, self.pids(), self.rings())
        return log

    def report(self, log: RigLog, failure: str, episodes: int, successes: int) -> RigReport:
        return RigReport.of(
            log.measured,
            rig=self._rig.name,
            scheduler=self.options.scheduler,
            failure=failure,
            granted=self._servo.granted,
            rate_hz=self._servo.rate_hz,
            episodes=episodes,
            successes=successes,
        )

    def pids(self) -> dict[str, int]:
        """Of all children, by name."""
        found = {name: worker.pid for name, worker in self.workers.items()}
        found["servo"] = self._servo.pid
        found |= {f"camera {name}": camera.pid for name, camera in self.cameras.items()}
        return found | ({"recorder": self.recorder.pid} if self.recorder else {})

    def instruct(self, text: str) -> None:
        """Tell the policy what to do, from the next observation on. Raises UserError where it is too long."""
        self._check(text)
        self._say(text)

    def _say(self, text: str) -> None:
        value, now = self._text.check("instruction", text), now_ns()
        self.instruction.publish({"capture_ns": now, "received_ns": now, "value": value})

    def begin_episode(self) -> int:
        """Its task is the instruction at its beginning; the stream "instruction" says when that changes."""
        self._episode += 1
        self.session.publish({"episode": self._episode, "stop": 0})
        if self.recorder is not None:
            found = self.instruction.newest()
            self.recorder.start(task=read_text(found[1]["value"]) if found else "", operator=self.options.operator)
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
                self._say(text)  # the page has checked it
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
        for name, camera in self.cameras.items():
            if not lives(camera.pid):
                return f"the process of camera {name} has ended"
        if self.recorder is not None and not lives(self.recorder.pid):
            return "the recorder process has ended; what was saved is whole"
        return ""

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
