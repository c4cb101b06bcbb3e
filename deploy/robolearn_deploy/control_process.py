"""The fast half: drives the world at its control rate and never waits for the policy.

At every tick, in this order: publish the observation, take in what chunks have come, choose the action of this instant
(the plan's, or a person's who has taken over), have the world carry it out, publish what was done. Nothing here takes a
lock, opens a file or talks to the network.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace

import numpy as np

from robolearn_data.instructed import InstructedWorld
from robolearn_data.schema import Observation, SchemaError, Stream
from robolearn_data.world import Step, World, WorldSpec
from robolearn_deploy.channels import OBSERVED, Channels, Handles, chunk_of, stream_field
from robolearn_deploy.chunks import ControlState, Refusals, hold_action
from robolearn_deploy.plan import Planned, PlanTiming
from robolearn_deploy.schedulers import find
from robolearn_deploy.ticker import Tick, Ticker
from robolearn_deploy.worker import Rendezvous
from robolearn_deploy.world_fast import FastHandles, FastSteps
from robolearn_deploy.world_takeover import PeopleHandles, TakeOver
from robolearn_hardware.clock import now_ns, period_ns


@dataclass(frozen=True)
class ControlOptions:
    spec: WorldSpec
    """What the parent was told the world is."""
    seed: int
    """Start of the first episode; the next ones follow."""
    episodes: int | None
    """How many; without a limit by default."""
    relative: tuple[int, ...]
    """Components of the action that are changes per control period, see ``chunks.hold_action``."""
    scheduler: str
    """Says how chunks become actions, see schedulers.py."""
    timing: PlanTiming
    texts: Mapping[str, Stream]
    """What the policy is told, whether the world says it or a person."""
    people: PeopleHandles | None = None
    """Those who may take over."""
    fast: FastHandles | None = None
    """The fast half of a slow-fast policy, which then says what is done."""


def control_process(
    rendezvous: Rendezvous, handles: Handles, make: Callable[[], World], options: ControlOptions
) -> None:
    """The body of the process, until the run or its episodes end."""
    with Channels.attach(handles) as channels:
        world = make()
        try:
            if world.spec != options.spec:
                raise SchemaError("the world that was started is not the one announced; start again")
            rendezvous()
            with ExitStack() as stack:
                people = TakeOver(stack, options.people, world) if options.people else None
                refusals = Refusals()
                fast = FastSteps(stack, options.fast, world, refusals) if options.fast else None
                told = InstructedWorld(world, options.texts, channels.instruction, understood=False)
                _Control(told, channels, options, refusals, people, fast).run()
        finally:
            world.close()


class _Control:
    def __init__(
        self,
        world: InstructedWorld,
        channels: Channels,
        options: ControlOptions,
        refusals: Refusals,
        people: TakeOver | None = None,
        fast: FastSteps | None = None,
    ) -> None:
        self._world = world
        self._people, self._fast = people, fast
        self._channels = channels
        self._options = options
        self._stopped = channels.stop_check()
        self._action = world.spec.schema.stream("action")
        self._observed = tuple(world.spec.schema.of_kind(*OBSERVED))
        self._text = next(iter(world.spec.schema.of_kind("text")), None)
        self._said = b""
        self._refusals = refusals
        self._plan = fast.plan if fast else find(options.scheduler).plan(refusals, options.timing)
        self._next_chunk = 0

    def run(self) -> None:
        limit = self._options.episodes
        for episode in itertools.count() if limit is None else range(limit):
            if self._stopped():
                return
            observation = self._world.reset(self._options.seed + episode)
            # The collector must not stop a tick: it runs here, and leaves alone what outlives the episode.
            gc.collect()
            gc.freeze()
            gc.disable()
            try:
                self._episode(episode, observation)
            finally:
                gc.enable()

    def _episode(self, episode: int, observation: Observation) -> None:
        if self._fast is None:
            self._plan.begin(episode)
        else:
            self._fast.begin(episode, observation)
        if self._people is not None:
            self._people.begin()
        period = period_ns(self._world.spec.schema.rate_hz)
        ticker = Ticker(now_ns() + period, period)
        sent: np.ndarray | None = None
        while not self._stopped():
            tick = ticker.wait()
            observation = self._world.told(observation)
            index = self._observe(tick, episode, observation)
            self._receive(tick.woke_ns)
            state, planned, requested = self._choose(tick, observation, sent)
            if requested is None:
                self._log(tick, episode, index, state)
                self._show(tick, state, episode, observation, sent, planned)
                continue
            sent = requested.astype(self._action.dtype)
            step, made, took_ns = self._step(tick, sent, state)
            if made is not None and state is ControlState.RUNNING:
                requested = sent = made.astype(self._action.dtype)
            self._log(tick, episode, index, state, planned, requested, sent, step, took_ns)
            self._show(tick, state, episode, step.observation, sent, planned)
            if step.done:
                return
            observation = step.observation

    def _step(self, tick: Tick, action: np.ndarray, state: ControlState) -> tuple[Step, np.ndarray | None, int]:
        """What a control step led to, the action that a fast half made of it, and the time (ns) it took the world."""
        if self._fast is not None:
            step, made, took_ns = self._fast.step(tick.due_ns, action, follow=state is ControlState.RUNNING)
            return replace(step, observation=self._world.told(step.observation)), made, took_ns
        began_ns = now_ns()
        step = self._world.step(action)
        return step, None, now_ns() - began_ns

    def _choose(
        self, tick: Tick, observation: Observation, sent: np.ndarray | None
    ) -> tuple[ControlState, Planned | None, np.ndarray | None]:
        """Who acts at this tick, by which plan, and the action; None: nothing is done."""
        if self._people is not None:
            self._people.hear(observation, sent)
            if self._people.paused:
                return ControlState.PAUSED, None, None
            if self._people.person:
                return ControlState.TELEOP, None, self._people.action(tick.woke_ns, observation)
        planned = self._plan.at(tick.due_ns)
        if planned is not None:
            return ControlState.RUNNING, planned, planned.action
        if sent is None:
            return ControlState.WAITING, None, None
        return ControlState.HOLDING, None, hold_action(sent, self._options.relative)

    def _show(
        self,
        tick: Tick,
        state: ControlState,
        episode: int,
        observation: Observation,
        sent: np.ndarray | None,
        planned: Planned | None,
    ) -> None:
        if self._people is not None:
            action = np.full(self._action.shape, np.nan, np.float32) if sent is None else sent
            until_ns = tick.due_ns + period_ns(self._world.spec.schema.rate_hz)
            refused = sum(astuple(self._refusals))
            self._people.show(tick, state, episode, observation, action, planned, refused, until_ns)

    def _observe(self, tick: Tick, episode: int, observation: Observation) -> int:
        if self._fast is not None:
            self._fast.felt(tick.due_ns)
        streams = {stream_field(name): observation[name] for name in self._observed}
        if self._text is not None and (said := observation[self._text].tobytes()) != self._said:
            self._said = said
            self._channels.said.publish({"text": observation[self._text]})
        return self._channels.observations.publish({"capture_ns": tick.due_ns, "episode": episode, **streams})

    def _receive(self, at_ns: int) -> None:
        if self._fast is not None:
            self._fast.receive(at_ns)
            return
        for index, record in self._channels.chunks.since(self._next_chunk):
            self._next_chunk = index + 1
            if record["final"]:
                self._plan.offer(chunk_of(record), at_ns)

    def _log(
        self,
        tick: Tick,
        episode: int,
        observation: int,
        state: ControlState,
        planned: Planned | None = None,
        requested: np.ndarray | None = None,
        sent: np.ndarray | None = None,
        step: Step | None = None,
        step_ns: int = 0,
    ) -> None:
        nothing = np.zeros(self._action.shape, self._action.dtype)
        chunk, capture_ns = -1, 0
        if planned is not None:
            slow = (planned.chunk.sequence, planned.chunk.capture_ns)
            chunk, capture_ns = self._fast.slow(planned) if self._fast else slow
        self._channels.ticks.publish(
            {
                "episode": episode,
                "observation": observation,
                "due_ns": tick.due_ns,
                "woke_ns": tick.woke_ns,
                "missed": tick.missed,
                "state": state,
                "chunk": chunk,
                "chunk_capture_ns": capture_ns,
                "requested": nothing if requested is None else requested,
                "sent": nothing if sent is None else sent,
                "step_ns": step_ns,
                "score": step.score if step else 0.0,
                "success": step.success if step else False,
                "done": step.done if step else False,
                "refusals": astuple(self._refusals),
            }
        )
