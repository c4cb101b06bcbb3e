"""Runs a policy against a world in real time: starts the processes, watches them, and ends them in order.

This process starts a policy process and a control process, joined by the rings of channels.py, and is the third place
where what happens is recorded. It is on no control path: if it stalls, the robot goes on; if it is killed, the others
end by themselves.
"""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.dataset import DatasetError
from robolearn_data.instructed import with_texts
from robolearn_data.world import World, WorldSpec
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.channels import Channels
from robolearn_deploy.chunks import ControlState
from robolearn_deploy.control_process import ControlOptions, control_process
from robolearn_deploy.dashboard.rings import Phase
from robolearn_deploy.fast import FastPolicy
from robolearn_deploy.inference import Inference
from robolearn_deploy.instructions import Check, InstructionCheck, accept
from robolearn_deploy.log import Log, Measurements, recording_schema
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.plan import PlanTiming
from robolearn_deploy.policy_process import PolicyOptions, policy_process
from robolearn_deploy.report import Report
from robolearn_deploy.schedulers import find
from robolearn_deploy.senses import WorldSenses
from robolearn_deploy.starting import START_S, Starting
from robolearn_deploy.worker import Worker, wait_ready
from robolearn_deploy.world_fast import FastHandles, fast_world_process
from robolearn_hardware.clock import period_ns
from robolearn_hardware.ring import RingHandle

if TYPE_CHECKING:
    from robolearn_deploy.world_people import People, PeopleOptions

POLL_S = 0.02
STOP_TIMEOUT_S = 10.0
HOLD_AFTER_FAILURE_S = 1.0
"""How long a run whose policy has failed goes on holding before it ends."""


@dataclass(frozen=True)
class RunOptions:
    seconds: float
    """The run ends after this time, counted from the moment when both processes are ready."""
    episodes: int | None = None
    """It ends after this many episodes too."""
    seed: int = 0
    """Start of the first episode; the next ones follow."""
    scheduler: str = "naive"
    """How the time that inference takes is bridged, see schedulers.py."""
    replan_steps: int | None = None
    """Control periods between the observations of two chunks, at least; by default the scheduler's choice."""
    instruction: str = ""
    """What to do, for a policy that observes a text; empty: what the world says. ``Running.instruct`` changes it."""
    check_instruction: Check = accept
    """The policy's own."""
    relative: tuple[int, ...] = ()
    """Components of the action that are changes per control period, see ``chunks.hold_action``."""
    people: PeopleOptions | None = None
    """Who may take over."""
    fast: FastPolicy | None = None
    """The fast half of a slow-fast policy. It can be pickled."""
    out: Path | None = None
    """Record a dataset here."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for that dataset."""


@dataclass(frozen=True)
class Running:
    """A run in progress, for whoever watches: process identifiers of the children, and how to instruct the policy."""

    policy: int
    control: int
    instruct: Callable[[str], None]
    """Changes the instruction; the next observation has it. Raises UserError where it is too long."""
    operator: Operator | None = None
    """Takes the commands of a person at the terminal, where the run has people."""


class Watcher(Protocol):
    """Whoever wants to know what happens while a run goes on."""

    def started(self, running: Running) -> None:
        """Both processes are ready and the run begins."""
        ...

    def progress(self, elapsed_s: float, measured: Measurements) -> None:
        """Called about fifty times a second. elapsed_s is 0 until the run begins."""
        ...

    def message(self, text: str) -> None:
        """Something a person should know, in one line."""
        ...


class _Nobody:
    """A watcher who looks away."""

    def started(self, running: Running) -> None: ...

    def progress(self, elapsed_s: float, measured: Measurements) -> None: ...

    def message(self, text: str) -> None: ...


def run(
    world: Callable[[], World],
    world_spec: WorldSpec,
    policy: Callable[[], Inference],
    policy_spec: PolicySpec,
    options: RunOptions,
    watcher: Watcher | None = None,
) -> Report:
    """Run until the time or the episodes are over, SIGINT or SIGTERM comes, or a process fails.

    Args:
        world, policy: picklable, called in their own processes; what they make has to have the specs given.

    Raises:
        SpecError: policy and world do not fit, or one half of a slow-fast policy is missing.
        UserError: the instruction is too long.
        StartError: a process failed before the run began.
        DatasetError, OSError: the recording cannot be written; the processes are ended, saved episodes are whole.
    """
    watcher = watcher or _Nobody()
    # Text may come from whoever instructs, everything else is the world's.
    texts = {name: s for name, s in policy_spec.observation.items() if s.kind == "text"}
    schema = with_texts(world_spec, texts).schema
    policy_spec.check_fits(schema, f"the world {world_spec.name!r}")
    if (policy_spec.fast is None) != (options.fast is None):
        raise SpecError("a slow-fast policy needs both its halves, and another one has no fast half")
    execute = find(options.scheduler).execute_steps(policy_spec, options.replan_steps)
    if options.out is not None and options.out.exists():
        raise DatasetError(f"{options.out} exists; choose another path for the recording")
    check = InstructionCheck(schema.of_kind("text"), options.check_instruction)
    check(options.instruction)
    with ExitStack() as stack:
        stop_asked = stack.enter_context(signals_noted())
        channels = stack.enter_context(
            Channels.create(schema, policy_spec.action, policy_spec.horizon, chunk=policy_spec.chunk)
        )
        fast = FastHandles.create(stack, policy_spec, policy_spec.fast) if policy_spec.fast else None
        workers: list[Worker] = []
        stack.callback(_end, channels, workers)  # before the rings are closed, whatever happens

        thinking = PolicyOptions(policy_spec, options.scheduler, execute)
        attach = functools.partial(WorldSenses, channels.handles)
        thinker = Worker("policy", policy_process, attach, policy, thinking)
        workers.append(thinker)
        thinkers = [thinker]
        timing = PlanTiming(period_ns(policy_spec.rate_hz), policy_spec.start, execute)
        chunks = fast.short if fast else channels.chunks.handle
        people = _people(stack, world_spec, options, chunks, check) if options.people else None
        acting = ControlOptions(
            world_spec,
            options.seed,
            options.episodes,
            options.relative,
            options.scheduler,
            timing,
            texts,
            people.handles if people else None,
            fast,
        )
        if fast:
            quick = (options.fast, channels.handles, fast)
            thinkers.append(Worker("fast policy", fast_world_process, *quick))
            workers.append(thinkers[-1])
        actor = Worker("control", control_process, channels.handles, world, acting)
        workers.append(actor)

        patience = Starting(stop_asked, watcher.message)
        patience.begin("policy and world")

        def starting() -> None:
            watcher.progress(0.0, Measurements())
            patience()

        wait_ready([*workers, *(people.workers.values() if people else ())], START_S, starting)
        writer = None
        if options.out is not None:
            made = DatasetWriter.create(options.out, recording_schema(schema), metadata=options.metadata)
            writer = stack.enter_context(made)
        log = Log(channels, schema, options.seed, writer, latent=fast is not None)
        if options.instruction:
            channels.instruct(options.instruction)
        for worker in workers:
            worker.release()
        if people:
            people.begin()
            if people.address:
                watcher.message(f"page: {people.address}")

        def instruct(text: str) -> None:
            check(text)
            channels.instruct(text)

        watcher.started(Running(thinker.pid, actor.pid, instruct, people.person if people else None))
        told = ""

        def over() -> bool:
            nonlocal told
            if (said := channels.in_force()) != told:
                told = said
                if said != channels.instruction():  # what a person says has been heard already
                    watcher.message(f"the world says: {said}")
            return stop_asked() or (people is not None and _hear(people, channels, log, watcher))

        failure = _watch(thinkers, actor, log, options.seconds, over, watcher)
        _end(channels, workers)
        log.finish()
        failures = [failure, actor.failure(), *(thinker.failure() for thinker in thinkers)]
        failure = next(filter(None, failures), "")
        return Report.of(log.measured, world_spec.name, schema.rate_hz, options.scheduler, failure)


def _watch(
    thinkers: Sequence[Worker],
    actor: Worker,
    log: Log,
    seconds: float,
    stop_asked: Callable[[], bool],
    watcher: Watcher,
) -> str:
    """Until the run is over. Returns why it failed, or an empty string. ``thinkers``: the policy, and its fast half."""
    began = time.monotonic()
    failure = ""
    holding_since = None
    while True:
        now = time.monotonic()
        log.drain()
        watcher.progress(now - began, log.measured)
        if not actor.running or stop_asked() or now - began > seconds:
            return actor.failure() or failure
        gone = next((thinker for thinker in thinkers if not thinker.running), None)
        if gone is not None:
            if not failure:
                failure = gone.failure() or f"the {gone.name} process has ended"
                watcher.message(f"{failure}; the robot holds when its last chunk has expired")
            if log.measured.state is ControlState.RUNNING:
                holding_since = None
            else:
                holding_since = holding_since or now
                if now - holding_since > HOLD_AFTER_FAILURE_S:
                    return failure
        time.sleep(POLL_S)


def _people(stack: ExitStack, spec: WorldSpec, options: RunOptions, chunks: RingHandle, check: Check) -> People:
    from robolearn_deploy.world_people import People

    who = options.people
    assert who is not None
    if who.page is not None:
        who = replace(who, page=replace(who.page, check_instruction=check))
    return People(stack, spec, who, chunks=chunks, dataset=options.out)


def _hear(people: People, channels: Channels, log: Log, watcher: Watcher) -> bool:
    """Hand on what people say, and tell the page where the run is; whether they end it."""
    episodes = log.measured.episodes
    people.show(Phase.EPISODE, len(episodes), sum(e.success for e in episodes), channels.in_force())
    for line in people.noted(channels.instruct):
        watcher.message(line)
    return Command.END in list(people.heard())


def _end(channels: Channels, workers: list[Worker]) -> None:
    """Tell the children to end, wait a bounded time, kill what is left. A second call does nothing."""
    if workers:
        channels.stop()
    # Control first: it must not see the policy go.
    while workers:
        workers.pop().stop(STOP_TIMEOUT_S)


@contextmanager
def signals_noted() -> Iterator[Callable[[], bool]]:
    """Within, SIGINT and SIGTERM only set what the yielded function returns. A no-op outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()
    previous = {s: signal.signal(s, lambda *_: asked.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
