"""Reads the rings beside the control path: counts what happened, and records it as a dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from robolearn_data.schema import Observation, Schema, Stream
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.channels import Channels, observation_of
from robolearn_deploy.chunks import DRIVEN, ControlState
from robolearn_deploy.smoothness import Smoothness
from robolearn_hardware.clock import period_ns


@dataclass(frozen=True)
class EpisodeResult:
    seed: int
    steps: int
    score: float
    """Maximum over the steps."""
    success: bool
    complete: bool
    """The world said it was over; otherwise the run was stopped."""


@dataclass
class Measurements:
    """Everything counted in a run. Times in ns."""

    lateness: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    inference: list[int] = field(default_factory=list)
    delay: list[int] = field(default_factory=list)
    """From an observation's capture to the first action carried out of the chunk made from it."""
    delay_steps: Counter[int] = field(default_factory=Counter)
    """The same in whole control periods, and how often."""
    later_than_expected: int = 0
    """Chunks whose delay was longer than the scheduler had expected."""
    arrival: list[int] = field(default_factory=list)
    """From an observation's capture to the moment when the chunk made from it, or its first part, was there."""
    failed: int = 0
    """Requests that the policy did not answer."""
    smoothness: list[Smoothness] = field(default_factory=list)
    """Of each episode."""
    ticks_in: dict[ControlState, int] = field(default_factory=lambda: dict.fromkeys(ControlState, 0))
    paced_ns: int = 0
    """Time spent in episodes, resets left out."""
    beginnings: int = 0
    """Episodes of which a tick was seen."""
    missed: int = 0
    chunks: int = 0
    used: int = 0
    refusals: tuple[int, ...] = ()
    episodes: list[EpisodeResult] = field(default_factory=list)
    lost_ticks: int = 0
    """Ticks that the log came too late for. Their episodes are not recorded: a row is never shifted."""
    state: ControlState | None = None
    """The newest tick's."""


def recording_schema(schema: Schema) -> Schema:
    """The streams of a world and its instructions, and what the runtime knows besides; "intervention" is 1 where a
    person had taken over. Ticks at which nothing is done are not recorded."""
    action = schema.stream("action")
    extra = {
        "action_sent": replace(action, kind="info"),
        "control_state": Stream((), "uint8", "info"),  # chunks.ControlState
        "intervention": Stream((), "uint8", "info"),
        "chunk": Stream((), "int64", "info", unit="sequence"),
        "chunk_age": Stream((), "int64", "info", unit="ns"),
        "lateness": Stream((), "int64", "info", unit="ns"),
    }
    return Schema(schema.rate_hz, {**schema.streams, **extra})


class Log:
    """Follows the ticks of a run. ``drain`` must be called more often than every ``channels.LOG_SECONDS``."""

    def __init__(
        self, channels: Channels, schema: Schema, seed: int, writer: DatasetWriter | None, *, latent: bool = False
    ) -> None:
        """``latent``: chunks hold no actions, but what a fast half makes actions of."""
        self.measured = Measurements()
        self._channels = channels
        self._schema = schema
        self._seed = seed
        self._writer = writer
        self._latent = latent
        self._next_tick = self._next_chunk = 0
        self._episode = -1
        self._last_used = self._last_arrived = -1
        self._coming: dict[int, tuple[int, np.ndarray]] = {}  # chunks not yet used: expected delay, actions
        self._begin()

    def drain(self) -> None:
        """Take in all that was published since the last call.

        Raises:
            OSError: an episode cannot be written. Those before it are whole.
        """
        m = self.measured
        for index, record in self._channels.chunks.since(self._next_chunk):
            self._next_chunk = index + 1
            self._chunk(record)
        for index, tick in self._channels.ticks.since(self._next_tick):
            if index > self._next_tick:
                m.lost_ticks += index - self._next_tick
                self._whole = False
            self._next_tick = index + 1
            self._tick(tick)

    def _chunk(self, record: np.void) -> None:
        m = self.measured
        sequence, final = int(record["sequence"]), int(record["final"])
        if final == 0:
            m.failed += 1
            return
        ended_ns = int(record["ended_ns"])
        if sequence > self._last_arrived:  # its first part, or the whole at once
            self._last_arrived = sequence
            m.arrival.append(ended_ns - int(record["capture_ns"]))
        if final == len(record["actions"]):
            m.chunks += 1
            m.inference.append(ended_ns - int(record["started_ns"]))
        ahead = record["times_ns"][:final] >= record["capture_ns"]
        self._coming[sequence] = (int(record["expected_delay"]), record["actions"][:final][ahead])

    def finish(self) -> None:
        """Take in the rest, and save the episode that the end of the run has cut off."""
        self.drain()
        self._close(complete=False)

    def _tick(self, tick: np.void) -> None:
        m = self.measured
        if tick["episode"] != self._episode:
            self._close(complete=False)  # its end was among lost ticks
            self._episode = int(tick["episode"])
        state = ControlState(tick["state"])
        due_ns, woke_ns, chunk = int(tick["due_ns"]), int(tick["woke_ns"]), int(tick["chunk"])
        if self._last_due_ns is None:
            m.beginnings += 1
        else:
            m.paced_ns += due_ns - self._last_due_ns
        self._last_due_ns = due_ns
        m.state = state
        m.ticks_in[state] += 1
        m.lateness.append(woke_ns - due_ns)
        m.missed += int(tick["missed"])
        m.refusals = tuple(int(n) for n in tick["refusals"])
        if chunk > self._last_used:
            self._used(chunk, tick)
        if state not in DRIVEN:
            return
        self._smoothness.sent(tick["sent"], chunk if state is ControlState.RUNNING else None)
        m.step.append(int(tick["step_ns"]))
        self._steps += 1
        self._score = max(self._score, float(tick["score"]))
        self._success |= bool(tick["success"])
        if self._writer:
            self._record(self._writer, tick)
        if tick["done"]:
            self._close(complete=True)

    def _used(self, chunk: int, tick: np.void) -> None:
        """The first action of a chunk was carried out."""
        m = self.measured
        self._last_used = chunk
        m.used += 1
        m.delay.append(int(tick["woke_ns"] - tick["chunk_capture_ns"]))
        steps = int(tick["due_ns"] - tick["chunk_capture_ns"]) // period_ns(self._schema.rate_hz)
        m.delay_steps[steps] += 1
        if chunk in self._coming:
            expected, actions = self._coming[chunk]
            m.later_than_expected += steps > expected
            if not self._latent:
                self._smoothness.chunk(actions)
        self._coming = {sequence: value for sequence, value in self._coming.items() if sequence > chunk}

    def _record(self, writer: DatasetWriter, tick: np.void) -> None:
        record = self._channels.observations.read(int(tick["observation"]))
        if record is None:
            self.measured.lost_ticks += 1
            self._whole = False
        if not self._whole or record is None:
            return
        streams = observation_of(record, self._schema)
        # NaN is how a sensor says that it has nothing.
        observation: Observation = {name: value for name, value in streams.items() if np.isfinite(value).all()}
        capture_ns = int(record["capture_ns"])
        state, due_ns = int(tick["state"]), int(tick["due_ns"])
        planned = state == ControlState.RUNNING
        row = {
            **observation,
            "action_sent": tick["sent"],
            "control_state": np.uint8(state),
            "intervention": np.uint8(state == ControlState.TELEOP),
            "chunk": np.int64(tick["chunk"]),
            "chunk_age": np.int64(due_ns - tick["chunk_capture_ns"] if planned else -1),
            "lateness": np.int64(tick["woke_ns"] - due_ns),
        }
        if planned or state == ControlState.TELEOP:
            row["action"] = tick["requested"]
        # What is not known at this step is a hole, never an invented value.
        holes = [name for name in writer.schema.streams if name not in row]
        writer.add(row, capture_ns=dict.fromkeys(observation, capture_ns), time_ns=due_ns, holes=holes)

    def _close(self, *, complete: bool) -> None:
        if self._steps:
            result = EpisodeResult(
                seed=self._seed + self._episode,
                steps=self._steps,
                score=self._score,
                success=self._success,
                complete=complete,
            )
            self.measured.episodes.append(result)
            self.measured.smoothness.append(self._smoothness)
            if self._writer and self._whole and self._writer.pending:
                self._writer.save_episode({"operator": "policy", **vars(result)})
            elif self._writer:
                self._writer.discard_episode()
        self._begin()

    def _begin(self) -> None:
        self._steps = 0
        self._score = 0.0
        self._success = False
        self._whole = True
        self._last_due_ns: int | None = None
        self._smoothness = Smoothness(self._schema.stream("action"), self._schema.rate_hz)
