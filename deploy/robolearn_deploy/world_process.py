"""A simulated world that a person drives, in real time: what the servo process is to a rig.

At every tick, in this order: hear people, take the newest intent, have the world carry out the action of this instant,
publish what was done, and draw in what is left of the period. Nothing here waits for whoever reads or writes a ring.

The world's own time begins when the deadman is first held in an episode, and stands still while it is stopped or
paused. Steps are recorded in that time, one period apart, whatever the clock did: the same world with the same actions
gives them again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from robolearn_data.schema import Observation, SchemaError
from robolearn_data.world import Step, World, WorldSpec
from robolearn_deploy import realtime
from robolearn_deploy.channels import OBSERVED
from robolearn_deploy.operator import Command
from robolearn_deploy.stall import Command as Asked
from robolearn_deploy.stall import Inputs, StallContract, State, Watch
from robolearn_deploy.ticker import Tick, Ticker
from robolearn_deploy.worker import Rendezvous
from robolearn_deploy.world_takeover import SUPERVISOR, Hands, PeopleHandles
from robolearn_deploy.world_teleop import held
from robolearn_deploy.world_view import PageTicks, Pictures
from robolearn_hardware.clock import now_ns, period_ns
from robolearn_hardware.devices import Condition
from robolearn_hardware.ring import Field, Ring, RingHandle

START_FIELDS: dict[str, Field] = {"episode": ("i8", ()), "seed": ("i8", ())}
"""Of the ring in which the supervisor says where the world begins anew. Records count up ``episode``."""

DONE_FIELDS: dict[str, Field] = {
    "episode": ("i8", ()),
    "due_ns": ("i8", ()),
    "woke_ns": ("i8", ()),
    "missed": ("i8", ()),
    "state": ("u1", ()),  # stall.State
    "person": ("u1", ()),
    "steps": ("i8", ()),  # of the episode so far
    "step_ns": ("i8", ()),  # what the world took for this one; 0: it stands still
    "drawn_ns": ("i8", ()),  # and to draw it; 0: not drawn
    "score": ("f8", ()),  # the most so far in the episode
    "success": ("u1", ()),
    "done": ("u1", ()),
}
"""What a tick did, for the supervisor."""


@dataclass(frozen=True)
class WorldHandles:
    """What the process attaches to. It can be pickled."""

    people: PeopleHandles
    starts: RingHandle
    steps: RingHandle
    """Of ``recorder.step_fields``, for the recorder."""
    done: RingHandle
    beats: Mapping[str, RingHandle]
    """In the order of ``watches``."""
    watches: tuple[Watch, ...]


def run_world(rendezvous: Rendezvous, handles: WorldHandles, make: Callable[[], World], spec: WorldSpec) -> None:
    """The body of the process, until the session is over or the process that started it is gone.

    Raises:
        SchemaError: the world is another one than ``spec`` says.
    """
    world = make()
    try:
        if world.spec != spec:
            raise SchemaError("the world that was started is not the one announced; start again")
        with ExitStack() as stack:
            driven = _DrivenWorld(stack, world, handles)
            rendezvous()
            driven.run()
    finally:
        world.close()


class _DrivenWorld:
    def __init__(self, stack: ExitStack, world: World, handles: WorldHandles) -> None:
        def attach(handle: RingHandle) -> Ring:
            return stack.enter_context(Ring.attach(handle))

        self._world, self._period = world, period_ns(world.spec.schema.rate_hz)
        self._hands = Hands(stack, handles.people)
        self._ticks = PageTicks(attach(handles.people.ticks), world.spec.schema)
        self._pictures = Pictures(world, {name: attach(h) for name, h in handles.people.pictures.items()})
        self._driver = handles.people.teleop.driver(world.spec)
        self._starts, self._session = attach(handles.starts), attach(handles.people.session)
        self._steps, self._done = attach(handles.steps), attach(handles.done)
        self._beats = [attach(handle) for handle in handles.beats.values()]
        self._stall = StallContract(handles.watches)
        self._e_stop = self._begun = False
        self._why = ""
        self._parent = os.getppid()
        self._episode = -1
        self._begin(-1, 0)

    def run(self) -> None:
        ticker = Ticker(now_ns() + self._period, self._period)
        while not self._over():
            tick = ticker.wait()
            newest = self._starts.newest()
            if newest is not None and newest[1]["episode"] > self._episode:
                self._begin(int(newest[1]["episode"]), int(newest[1]["seed"]))
                ticker = Ticker(now_ns() + self._period, self._period)
                continue
            self._tick(tick)

    def _begin(self, episode: int, seed: int) -> None:
        self._episode, self._observation = episode, self._world.reset(seed)
        self._count, self._first_ns = 0, 0
        self._score, self._last = 0.0, Step(self._observation, 0.0, False, False)
        self._driver.begin(self._observation)
        realtime.freeze_garbage()

    def _tick(self, tick: Tick) -> None:
        state = self._state(tick)
        drives = state is State.TELEOP and not self._last.done
        intent = self._hands.intent()
        action, person = self._driver.action(intent if drives else None, tick.woke_ns, self._observation)
        began_ns = now_ns()
        steps = drives and (person or self._count > 0)
        if steps:
            self._step(tick, self._observation, action)
        stepped_ns = now_ns()
        self._ticks.publish(
            tick,
            state,
            self._cause(state, person),
            paused=self._stall.paused,
            person=held(intent, tick.woke_ns),
            episode=self._episode,
            observation=self._observation,
            action=action,
        )
        drawn_ns = self._pictures.publish(self._observation, tick.due_ns + self._period)
        self._done.publish(
            {
                "episode": self._episode,
                "due_ns": tick.due_ns,
                "woke_ns": tick.woke_ns,
                "missed": tick.missed,
                "state": int(state),
                "person": person,
                "steps": self._count,
                "step_ns": stepped_ns - began_ns if steps else 0,
                "drawn_ns": drawn_ns,
                "score": self._score,
                "success": self._last.success,
                "done": self._last.done,
            }
        )

    def _step(self, tick: Tick, before: Observation, action: np.ndarray) -> None:
        self._first_ns = self._first_ns or tick.due_ns
        self._last = self._world.step(action)
        self._observation = self._last.observation
        self._score = max(self._score, self._last.score)
        streams = {name: before[name] for name in self._world.spec.schema.of_kind(*OBSERVED)}
        time_ns = self._first_ns + self._count * self._period
        self._steps.publish({"time_ns": time_ns, **streams, "action": action, "action_sent": action})
        self._count += 1

    def _state(self, tick: Tick) -> State:
        beats = [int(found[1]["at_ns"]) if (found := ring.newest()) else 0 for ring in self._beats]
        before = self._stall.state
        order = self._stall.tick(
            Inputs(
                now_ns=tick.woke_ns,
                expiry_ns=0,
                near=False,
                at_rest=True,
                condition=Condition.READY,
                beats_ns=beats,
                e_stop=self._e_stop,
                command=self._obey(),
            )
        )
        if order.entered:
            self._why = order.cause  # as it waits on, the contract says that it lacks a plan, which nobody makes here
        if order.state is State.TELEOP and before is not State.TELEOP:
            self._driver.begin(self._observation)
        return order.state

    def _obey(self) -> Asked:
        asked = Asked.NONE
        for source, command in self._hands.commands.new():
            match command:
                case Command.E_STOP:
                    self._e_stop = True
                case Command.RELEASE:
                    self._e_stop, asked = False, Asked.RELEASE
                case Command.TAKE_OVER | Command.RESUME:
                    self._begun |= source == SUPERVISOR
                    # Before the episode is recorded nobody moves the world out of its start.
                    asked = Asked.TAKE_OVER if self._begun else asked
                case Command.PAUSE | Command.RESET:
                    self._begun &= source != SUPERVISOR
                    asked = Asked.PAUSE
                case _:  # of the episode: the supervisor's
                    pass
        return asked

    def _cause(self, state: State, person: bool) -> str:
        if state is State.STOPPED and not self._begun:
            return "between episodes"
        if state is not State.TELEOP or person:
            return self._why
        return "nobody holds the deadman" if self._count else "the world begins to move when the deadman is held"

    def _over(self) -> bool:
        found = self._session.newest()
        return (found is not None and bool(found[1]["stop"])) or os.getppid() != self._parent
