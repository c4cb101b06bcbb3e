"""The fast half on a real rig: reads the arms, follows the plan within their limits, and never waits for anybody.

At every tick, in this order: read the arms and publish their state; take in what chunks, people and heartbeats say;
decide what the robot does (``stall``); ask each arm's trajectory where to be when the command takes effect; let the
limiter have the last word; send; publish what was done. Nothing in it takes a lock, opens a file, or talks to the
network; drivers whose SDK might block run in processes of their own (``robolearn_hardware.network``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from robolearn_data.recorder import ACTION_STAGES
from robolearn_deploy import realtime
from robolearn_deploy.channels import chunk_of
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.combination import combination
from robolearn_deploy.driven_arm import DrivenArm, ServoOptions
from robolearn_deploy.operator import Command, Commands
from robolearn_deploy.rig_streams import RigLayout
from robolearn_deploy.stall import Command as Asked
from robolearn_deploy.stall import Duty, Inputs, StallContract, State, Watch
from robolearn_deploy.ticker import Tick, Ticker
from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns
from robolearn_hardware.devices import Arm, Condition, DeviceError
from robolearn_hardware.kinematics import Workspace
from robolearn_hardware.rig import Rig
from robolearn_hardware.ring import Field, Ring, RingHandle

CAUSE_BYTES = 280
END_S = 3.0
"""An arm that is told to end has so long to come to rest."""


@dataclass(frozen=True)
class ServoHandles:
    """What the servo process attaches to, once the arms are known."""

    chunks: RingHandle
    """Of the policy, or of the fast policy where there is one."""
    horizon: int
    """The most actions of a chunk there."""
    period_ns: int
    """Between two actions that the policy learned, and two steps that are recorded."""
    start: int
    """Index in a chunk of the action that belongs to the capture of its observation."""
    streams: Mapping[str, RingHandle]
    """"state", "wrench": records of "capture_ns", "received_ns", "value"."""
    steps: RingHandle
    ticks: RingHandle
    beats: Mapping[str, RingHandle]
    """In the order of ``watches``: any ring whose records have "at_ns"."""
    watches: tuple[Watch, ...]
    commands: Mapping[str, RingHandle]
    intents: Mapping[str, RingHandle] = dataclasses.field(default_factory=dict)
    """Arm -> what a person wants of it."""
    scheduler: str = "naive"
    """See ``schedulers``: how chunks become one plan."""
    execute: int = 1
    """Actions of a chunk that are carried out where the robot waits for the next one."""


def tick_fields(size: int) -> dict[str, Field]:
    """What was done at a tick; ``size``: N, components of the rig's vector."""
    vector: Field = ("f4", (size,))
    return {
        "due_ns": ("i8", ()),
        "woke_ns": ("i8", ()),
        "done_ns": ("i8", ()),
        "missed": ("i8", ()),  # deadlines passed unserved, see ticker.Tick
        "state": ("u1", ()),  # stall.State
        "cause": (f"S{CAUSE_BYTES}", ()),
        "paused": ("u1", ()),  # see stall.StallContract.paused
        "condition": ("u1", ()),  # devices.Condition, of the arm that is worst
        "person": ("u1", ()),  # a person holds the deadman
        "at_rest": ("u1", ()),
        "verdict": ("u1", ()),  # limiter.Verdict, of the arm that is worst
        "reason": ("u1", ()),  # limiter.Reason
        "episode": ("i8", ()),
        "chunk": ("i8", ()),  # sequence of the chunk in force, -1 without
        "chunk_capture_ns": ("i8", ()),
        "refused": ("i8", ()),  # chunks so far
        "requested": vector,  # of the trajectory or the person, before the limits
        "sent": vector,
        "measured": vector,
        "target": vector,  # of the plan now, for whoever draws it
    }


def run_servo(rig: Rig, options: ServoOptions, pipe: Connection) -> None:
    """The body of the process: says which arms there are, is told the rings, and runs until it is told END, or the
    process that started it is gone; then it brings the arms to rest and lets go of them.

    Sends ("arms", (layout, rate, first positions (N,), whether forces are measured)); is sent ``ServoHandles``; sends
    ("ready", ``Realtime``). ("error", line) in place of each.
    """
    arms: list[Arm] = []
    try:
        for name in rig.arms:
            arm = rig.open_arm(name)
            arm.connect()
            arms.append(arm)
        rate_hz = options.rate_hz or min(arm.info.rate_hz for arm in arms)
        driven = [
            DrivenArm(arm, _workspace(rig, name), round(rig.where(name).latency_ms * 1e6), options, rate_hz)
            for name, arm in zip(rig.arms, arms, strict=True)
        ]
        layout = RigLayout(tuple(arm.info for arm in arms))
        start = layout.join([one.state for one in driven])
        forces = all(one.state.wrench is not None for one in driven)
        pipe.send(("arms", (layout, rate_hz, start, forces)))
        handles: ServoHandles = pipe.recv()
        granted = realtime.ask(fifo=options.fifo, lock=options.fifo, core=options.core)
        servo = _Servo(driven, layout, handles, options, rate_hz)
        pipe.send(("ready", granted))
        realtime.freeze_garbage()
        servo.run()
    except DeviceError as error:
        with contextlib.suppress(OSError):
            pipe.send(("error", str(error)))
    except (EOFError, OSError):  # the parent has ended, or waits no more
        pass
    finally:
        for arm in arms:
            arm.close()


class _Servo:
    def __init__(
        self,
        arms: Sequence[DrivenArm],
        layout: RigLayout,
        handles: ServoHandles,
        options: ServoOptions,
        rate_hz: float,
    ) -> None:
        self._arms, self._layout, self._period = arms, layout, period_ns(rate_hz)
        self._names = [one.info.name for one in arms]
        self._step_ns, self._start = handles.period_ns, handles.start
        self._scheduler, self._execute = handles.scheduler, handles.execute
        for one in arms:
            one.plan(handles.horizon, handles.period_ns)
        attach = Ring.attach
        self._chunks, self._steps, self._ticks = attach(handles.chunks), attach(handles.steps), attach(handles.ticks)
        self._streams = {name: attach(handle) for name, handle in handles.streams.items()}
        self._beats = [attach(handle) for handle in handles.beats.values()]
        self._commands = Commands({name: attach(handle) for name, handle in handles.commands.items()})
        self._intents = {name: attach(handle) for name, handle in handles.intents.items()}
        for one in arms:
            if one.info.name in self._intents:
                one.takeover.prepare()
        self._stall = StallContract(handles.watches, hold_s=options.hold_s, approach=options.approach)
        self._next_chunk = self._chunks.count
        self._episode, self._captures = -1, {-1: 0}
        reset = layout.join([one.state for one in arms]) if options.reset is None else np.array(options.reset)
        self._reset_parts = [reset[part] for part in layout.slices]
        self._resetting = self._ending = self._e_stop = False
        self._duty = Duty.STAY
        self._captured_ns = 0
        self._parent = os.getppid()

    def run(self) -> None:
        for one in self._arms:
            one.settle()
        ticker = Ticker(now_ns() + self._period, self._period)
        next_step_ns, ending_ns = 0, 0
        while True:
            tick = ticker.wait()
            for one in self._arms:
                one.read()
            self._publish_state()
            self._take_chunks(tick.woke_ns)
            asked = self._obey()
            order = self._stall.tick(self._inputs(tick, asked))
            anew, self._duty = order.duty is not self._duty, order.duty
            self._resetting &= order.state is State.STOPPED or order.state is State.DECELERATING
            intents = {name: found[1] for name, ring in self._intents.items() if (found := ring.newest())}
            for one, reset, name in zip(self._arms, self._reset_parts, self._names, strict=True):
                at_ns = tick.due_ns + one.latency_ns
                one.drive(order.duty, anew, at_ns, intents.get(name), reset if self._resetting else None)
            self._publish_tick(tick, order.cause, order.state)
            if tick.due_ns >= next_step_ns:
                next_step_ns = max(next_step_ns + self._step_ns, tick.due_ns - self._step_ns)
                self._publish_step(tick, order.state)
            if self._ending or os.getppid() != self._parent:
                ending_ns = ending_ns or tick.due_ns
                if self._at_rest() or tick.due_ns - ending_ns > END_S * SECOND_NS:
                    return

    def _inputs(self, tick: Tick, asked: Asked) -> Inputs:
        at_ns = tick.due_ns + max(one.latency_ns for one in self._arms)
        beats = [int(found[1]["at_ns"]) if (found := ring.newest()) else 0 for ring in self._beats]
        return Inputs(
            now_ns=tick.woke_ns,
            expiry_ns=min(one.trajectory.expiry_ns for one in self._arms),
            # While it follows nobody asks, and to find out takes a twentieth of the tick's work.
            near=self._stall.state in (State.RUNNING, State.HOLDING) or all(one.near(at_ns) for one in self._arms),
            at_rest=self._at_rest() or (self._resetting and self._stall.state is State.STOPPED),
            condition=self._condition(),
            fault=next((one.state.fault for one in self._arms if one.state.fault), ""),
            beats_ns=beats,
            e_stop=self._e_stop,
            command=asked,
        )

    def _condition(self) -> Condition:
        """Of the arm that is worst: what is not READY or DEGRADED counts before these, and DEGRADED before READY."""
        order = [Condition.READY, Condition.DEGRADED]
        return max(
            (one.state.condition for one in self._arms), key=lambda c: order.index(c) if c in order else 2 + int(c)
        )

    def _at_rest(self) -> bool:
        return all(one.limiter.at_rest for one in self._arms)

    def _obey(self) -> Asked:
        """What people said since the last tick. An e-stop is pressed until RELEASE."""
        asked = Asked.NONE
        for _, command in self._commands.new():
            match command:
                case Command.E_STOP:
                    self._e_stop = True
                case Command.RELEASE:
                    self._e_stop, asked = False, Asked.RELEASE
                case Command.RESUME:
                    self._recover()
                    self._resetting, asked = False, Asked.RESUME
                case Command.RESET:
                    self._resetting, asked = True, Asked.PAUSE
                case Command.END:
                    self._ending, asked = True, Asked.PAUSE
                case Command.PAUSE | Command.TAKE_OVER | Command.HAND_BACK:
                    self._resetting, asked = False, Asked[command.name]
                case _:  # of the episode: the supervisor's
                    pass
        return asked

    def _recover(self) -> None:
        """A person says that arms which have stopped may move again. Nothing moves while this takes its seconds."""
        for one in self._arms:
            if one.state.condition in (Condition.READY, Condition.DEGRADED):
                continue
            try:
                if one.state.condition is Condition.DISCONNECTED:
                    one.arm.connect()
                else:
                    one.arm.recover()
                one.read()
                one.begin()
            except DeviceError:  # its condition says so
                pass

    def _take_chunks(self, at_ns: int) -> None:
        if self._chunks.count == self._next_chunk:
            return
        for index, record in self._chunks.since(self._next_chunk):
            self._next_chunk = index + 1
            chunk = chunk_of(record)
            if not len(chunk.actions):  # the policy has not answered in time
                continue
            if chunk.episode > self._episode:
                self._episode = chunk.episode
                self._captures = {-1: 0}
                self._combine = combination(self._scheduler, self._execute, self._start, self._step_ns)
                for one in self._arms:
                    one.trajectory.begin(self._episode, one.sent)
            if self._offer(self._combine(chunk, at_ns), at_ns):
                self._captures[chunk.sequence] = chunk.capture_ns
                if len(self._captures) > 16:
                    del self._captures[min(self._captures)]

    def _offer(self, chunk: Chunk, at_ns: int) -> bool:
        taken = True
        for one, part in zip(self._arms, self._layout.slices, strict=True):
            taken &= one.trajectory.offer(dataclasses.replace(chunk, actions=chunk.actions[:, part]), at_ns)
        return taken

    def _publish_state(self) -> None:
        states = [one.state for one in self._arms]
        times = {
            "capture_ns": min(state.capture_ns for state in states),
            "received_ns": max(state.received_ns for state in states),
        }
        self._captured_ns = times["capture_ns"]
        self._streams["state"].publish({**times, "value": self._layout.join(states)})
        if "wrench" in self._streams:
            wrench = np.concatenate([np.zeros(6) if s.wrench is None else s.wrench for s in states])
            self._streams["wrench"].publish({**times, "value": wrench})

    def _publish_tick(self, tick: Tick, cause: str, state: State) -> None:
        arms, sequence = self._arms, self._arms[0].trajectory.sequence
        at_ns = tick.due_ns
        self._ticks.publish(
            {
                "due_ns": tick.due_ns,
                "woke_ns": tick.woke_ns,
                "done_ns": now_ns(),
                "missed": tick.missed,
                "state": int(state),
                "cause": cause.encode()[:CAUSE_BYTES],
                "paused": self._stall.paused,
                "condition": int(self._condition()),
                "person": any(one.person for one in arms),
                "at_rest": self._at_rest(),
                "verdict": max(int(one.verdict) for one in arms),
                "reason": max(int(one.reason) for one in arms),
                "episode": self._episode,
                "chunk": sequence,
                "chunk_capture_ns": self._captures.get(sequence, 0),
                "refused": sum(vars(arms[0].trajectory.refusals).values()),
                "requested": np.concatenate([one.requested for one in arms]),
                "sent": np.concatenate([one.sent for one in arms]),
                "measured": self._layout.join([one.state for one in arms]),
                "target": np.concatenate([one.trajectory.pose(at_ns + one.latency_ns) for one in arms]),
            }
        )

    def _publish_step(self, tick: Tick, state: State) -> None:
        parts = zip(*(one.in_effect(tick.due_ns) for one in self._arms), strict=True)
        values = [*map(np.concatenate, parts), self._layout.join([one.state for one in self._arms])]
        self._steps.publish(
            {
                # Not before the state of this tick: training shows a policy the newest state at a step, and the policy
                # process asks at a state's capture.
                "time_ns": max(tick.due_ns, self._captured_ns),
                **dict(zip(ACTION_STAGES, values, strict=True)),
                "control_state": int(state),
                "intervention": state is State.TELEOP,
            }
        )


def _workspace(rig: Rig, name: str) -> Workspace | None:
    return rig.limits[name].workspace if name in rig.limits else None
