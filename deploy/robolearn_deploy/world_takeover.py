"""People as the process of a simulated world hears them, and who drives it: the policy, a person, or nobody."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from robolearn_data.schema import Observation
from robolearn_data.world import World
from robolearn_deploy.chunks import ControlState
from robolearn_deploy.operator import Command, Commands
from robolearn_deploy.plan import Planned
from robolearn_deploy.stall import State
from robolearn_deploy.ticker import Tick
from robolearn_deploy.world_teleop import WorldTeleop, held
from robolearn_deploy.world_view import PageTicks, Pictures
from robolearn_hardware.ring import Ring, RingHandle

SUPERVISOR = "supervisor"
"""Whose commands begin and end an episode."""


@dataclass(frozen=True)
class PeopleHandles:
    """What the world's process attaches to. It can be pickled."""

    teleop: WorldTeleop
    commands: Mapping[str, RingHandle]
    intents: Mapping[str, RingHandle]
    """Teleoperator -> what a person wants by it."""
    ticks: RingHandle
    """Of ``servo_process.tick_fields``, for the page."""
    pictures: Mapping[str, RingHandle]
    session: RingHandle
    """Of ``rig_senses.SESSION_FIELDS``: says when the run is over."""


class Hands:
    """The end of the world's process: what people say, and want."""

    def __init__(self, stack: ExitStack, handles: PeopleHandles) -> None:
        def attach(those: Mapping[str, RingHandle]) -> dict[str, Ring]:
            return {name: stack.enter_context(Ring.attach(handle)) for name, handle in those.items()}

        self.commands, self._intents = Commands(attach(handles.commands)), attach(handles.intents)

    def intent(self) -> np.void | None:
        """The newest whose deadman is held; without one, the newest."""
        found = [newest[1] for ring in self._intents.values() if (newest := ring.newest())]
        return max(found, key=lambda record: (bool(record["enabled"]), int(record["capture_ns"])), default=None)


_SHOWN = {
    ControlState.WAITING: State.STOPPED,
    ControlState.RUNNING: State.RUNNING,
    ControlState.HOLDING: State.HOLDING,
    ControlState.TELEOP: State.TELEOP,
    ControlState.PAUSED: State.STOPPED,
}
"""As a page has it, which shows rigs too."""
_CAUSES = {
    ControlState.WAITING: "no plan has come",
    ControlState.RUNNING: "the policy drives",
    ControlState.HOLDING: "the plan has expired",
    ControlState.TELEOP: "a person has taken over",
    ControlState.PAUSED: "paused by a person; resume when ready",
}


class TakeOver:
    """A person takes over a world that a policy drives, stops it, and hands it back.

    While it is stopped, or the e-stop is pressed, the world's time stands still. A new episode is the policy's.
    """

    def __init__(self, stack: ExitStack, handles: PeopleHandles, world: World) -> None:
        self._hands, self._driver = Hands(stack, handles), handles.teleop.driver(world.spec)
        self._ticks = PageTicks(stack.enter_context(Ring.attach(handles.ticks)), world.spec.schema)
        rings = {name: stack.enter_context(Ring.attach(handle)) for name, handle in handles.pictures.items()}
        self._pictures = Pictures(world, rings)
        self._held = False
        self.e_stop = self.paused = self.person = False
        """``person``: one is in charge, whether the deadman is held or not."""

    def begin(self) -> None:
        """An episode begins."""
        self.person = False

    def hear(self, observation: Observation, sent: np.ndarray | None) -> None:
        """What people said since the last tick. ``sent``: the action that was carried out last, if any was."""
        for _, command in self._hands.commands.new():
            match command:
                case Command.E_STOP:
                    self.e_stop = self.paused = True
                case Command.RELEASE:
                    self.e_stop = False
                case Command.PAUSE | Command.RESET:
                    self.paused = True
                case Command.RESUME | Command.TAKE_OVER | Command.HAND_BACK if not self.e_stop:
                    self.paused = False
                    if command is Command.TAKE_OVER and not self.person:
                        self._driver.begin(observation, sent)
                    self.person = command is Command.TAKE_OVER or (command is Command.RESUME and self.person)
                case _:  # of the run: the supervisor's
                    pass

    def action(self, now_ns: int, observation: Observation) -> np.ndarray:
        """What the person wants; without a deadman, to stay."""
        intent = self._hands.intent()
        self._held = held(intent, now_ns)
        return self._driver.action(intent, now_ns, observation)[0]

    def show(
        self,
        tick: Tick,
        state: ControlState,
        episode: int,
        observation: Observation,
        action: np.ndarray,
        planned: Planned | None,
        refused: int,
        until_ns: int,
    ) -> None:
        """Tell the page what was done, and draw the world if there is time until ``until_ns``."""
        stopped = self.e_stop and state is ControlState.PAUSED
        self._ticks.publish(
            tick,
            State.E_STOPPED if stopped else _SHOWN[state],
            "the e-stop is pressed" if stopped else _CAUSES[state],
            paused=self.paused,
            person=self._held and state is ControlState.TELEOP,
            episode=episode,
            observation=observation,
            action=action,
            chunk=planned.chunk.sequence if planned else -1,
            chunk_capture_ns=planned.chunk.capture_ns if planned else 0,
            refused=refused,
        )
        self._pictures.publish(observation, until_ns)
