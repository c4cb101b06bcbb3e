"""A person, a leader arm and a force sensor for sessions on simulated rigs; importable by the processes of a rig."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from servo_bench import simulated_rig

from robolearn_deploy.collect_session import CollectSession, Stage
from robolearn_deploy.dashboard.rings import RigRings
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_log import RigMeasured
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import DeviceGoneError, Forces, Intent
from robolearn_hardware.machine import Check
from robolearn_hardware.rig import Rig


@dataclass(frozen=True)
class WavingLeaderConfig:
    """A leader arm that somebody waves."""

    joints: int = 5
    amplitude: float = 0.2
    unplugged: Path | None = None
    """It is gone while this file exists."""
    button: Path | None = None
    """The button "green" is pressed while this file exists."""

    def open(self, name: str) -> WavingLeader:
        return WavingLeader(self)

    def with_twin(self, name: str, twins: Any) -> Self:
        return self


class WavingLeader:
    def __init__(self, config: WavingLeaderConfig) -> None:
        self._config = config

    def connect(self) -> None:
        self._look()

    def read(self) -> Intent:
        self._look()
        config, now = self._config, now_ns()
        angle = config.amplitude * np.sin(2 * np.pi * 0.4 * now / SECOND_NS)
        pressed = config.button is not None and config.button.exists()
        return Intent(now, True, np.full(config.joints, angle), gripper=0.5, buttons={"green": pressed})

    def close(self) -> None: ...

    def _look(self) -> None:
        if self._config.unplugged is not None and self._config.unplugged.exists():
            raise DeviceGoneError("the leader is unplugged")


@dataclass(frozen=True)
class CountingForceConfig:
    """A force sensor whose sample k, due at k periods of CLOCK_MONOTONIC, measures k in x."""

    rate_hz: float = 500.0

    def open(self, name: str) -> CountingForce:
        return CountingForce(self.rate_hz)

    def with_twin(self, name: str, twins: Any) -> Self:
        return self


class CountingForce:
    def __init__(self, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self._period = round(SECOND_NS / rate_hz)
        self._next = 0

    def connect(self) -> None:
        self._next = now_ns() // self._period

    def read(self) -> Forces:
        now = now_ns()
        numbers = np.arange(self._next, now // self._period, dtype=np.int64)
        self._next += len(numbers)
        wrench = np.zeros((len(numbers), 6))
        wrench[:, 0] = numbers % 1000
        return Forces(numbers * self._period, np.full(len(numbers), now), wrench)

    def tare(self) -> None: ...

    def close(self) -> None: ...


class Demonstrator:
    """Starts every episode and judges it after ``ticks`` of motion; what ``acts`` says is done in each stage first."""

    def __init__(
        self,
        verdicts: Sequence[Command] = (),
        *,
        ticks: int = 40,
        acts: Mapping[Stage, Callable[[Demonstrator], None]] | None = None,
    ) -> None:
        self.verdicts, self._ticks = list(verdicts), ticks
        self._acts = dict(acts or {})
        self.operator: Operator
        self.pids: dict[str, int] = {}
        self.rings: RigRings | None = None
        self.checks: list[Check] = []
        self.messages: list[str] = []
        self.notes: list[str] = []
        self.stages: list[Stage] = []
        self.seen: CollectSession | None = None
        self._moved = 0
        self._said_ns = self._drove = 0

    def started(self, operator: Operator, instruct: Any, pids: Mapping[str, int], rings: RigRings) -> None:
        self.operator, self.pids = operator, dict(pids)
        self.rings = rings

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
        from robolearn_deploy.stall import State

        self._drove = measured.ticks_in[State.TELEOP]

    def message(self, text: str) -> None:
        self.messages.append(text)

    def checked(self, checks: Sequence[Check]) -> None:
        self.checks = list(checks)

    def session(self, session: CollectSession, now_ns: int) -> None:
        self.seen = session
        if session.note and (not self.notes or self.notes[-1] != session.note):
            self.notes.append(session.note)
        if not self.stages or self.stages[-1] is not session.stage:
            self.stages.append(session.stage)
            self._moved = self._drove
            self._said_ns = 0
            act = self._acts.pop(session.stage, None)
            if act is not None:
                act(self)
        if now_ns - self._said_ns < SECOND_NS:  # a person does not press a key fifty times a second
            return
        self._said_ns = now_ns
        self.decide(session)

    def decide(self, session: CollectSession) -> None:
        """What this person says now, if anything."""
        match session.stage:
            case Stage.READY:
                self.operator.tell(Command.START)
            case Stage.EPISODE if self._drove - self._moved >= self._ticks:
                self.operator.tell(self.verdicts.pop(0) if self.verdicts else Command.SUCCESS)
            case Stage.JUDGING:
                self.operator.tell(Command.DISCARD)
            case _:
                self._said_ns = 0


def collecting_rig(folder: Path, **leader: Any) -> Rig:
    """A simulated arm, its waving leader "hand", a force sensor "tip"."""
    rig = simulated_rig(folder)
    return dataclasses.replace(
        rig, teleoperators={"hand": WavingLeaderConfig(**leader)}, force_sensors={"tip": CountingForceConfig()}
    )
