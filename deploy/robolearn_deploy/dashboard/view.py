"""What a page shows of a running rig, read out of its rings.

Whatever is shown is as old as its record says, and nobody who writes a ring is asked or held up for it. Instants on
the page are ms since this view began; on the control path they stay ns.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn_data.schema import read_text
from robolearn_deploy.channels import chunk_of
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.collect_session import Cue, Stage
from robolearn_deploy.dashboard.rings import Phase, RigRings
from robolearn_deploy.limiter import Reason, Verdict
from robolearn_deploy.operator import Command
from robolearn_deploy.stall import State
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import Condition
from robolearn_hardware.ring import Ring

SAMPLE_NS = 20_000_000
"""Between two points of a curve."""
HISTORY = 500
"""Points that a viewer who comes gets at once: 10 s."""
WINDOW_NS = 10 * SECOND_NS
"""Over which lateness is counted."""
DELAYS = 200
"""Chunks whose delay is shown."""
LATENESS_MS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Between the bins of the histogram; what is beyond them is in the first and the last bin."""
DELAY_BINS = 16
EVENTS = 100
WIDE = 12
"""Values of a force stream from which it is an array of touch, of which fewer samples are shown."""
TOUCH_NS = 100_000_000
WIDEST_PX = 640
"""Wider pictures are shown with every second, third ... pixel."""
JPEG_QUALITY = 75

_VECTORS = ("requested", "sent", "measured")
_FOLLOWS = (Condition.READY, Condition.DEGRADED)
_OFFERED = {
    Stage.READY: {Command.START, Command.NEXT_TASK},
    Stage.RETURNING: {Command.STOP, Command.NEXT_TASK},
    Stage.COUNTDOWN: {Command.STOP, Command.NEXT_TASK},
    Stage.EPISODE: {Command.STOP, Command.SUCCESS, Command.FAILURE, Command.DISCARD, Command.REDO},
    Stage.STOPPING: {Command.SUCCESS, Command.FAILURE, Command.DISCARD, Command.REDO},
    Stage.JUDGING: {Command.SUCCESS, Command.FAILURE, Command.DISCARD, Command.REDO},
}
"""What a person can say at each stage of a collecting session."""
_MOVING = (State.MOVING, State.RUNNING, State.HOLDING, State.DECELERATING, State.TELEOP)


@dataclass(frozen=True)
class Event:
    """What happened, in words."""

    at_ms: float
    text: str


class RigView:
    """Follows the rings. ``poll`` it more often than every few seconds; everything else says what was found then."""

    def __init__(self, rings: RigRings) -> None:
        self.rings = rings
        self._cameras = {name: Ring.attach(handle) for name, handle in rings.cameras.items()}
        self._ticks, self._chunks = Ring.attach(rings.ticks), Ring.attach(rings.chunks)
        self._instruction, self._progress = Ring.attach(rings.instruction), Ring.attach(rings.progress)
        self._forces = {name: Ring.attach(handle) for name, handle in rings.forces.items()}
        self._collect = None if rings.collect is None else Ring.attach(rings.collect)
        self._origin_ns = now_ns()
        self._next_force = dict.fromkeys(self._forces, 0)
        self._touched: deque[list[Any]] = deque(maxlen=HISTORY)
        self.touched = 0
        self._next_tick = self._next_chunk = 0
        self._tick: np.void | None = None
        self._entered_ns = self._used = 0
        self._last_bucket = -1
        self._samples: deque[list[Any]] = deque(maxlen=HISTORY)
        self._events: deque[Event] = deque(maxlen=EVENTS)
        self.sampled = self.happened = 0
        """Points and events so far."""
        self._lateness: deque[tuple[int, np.ndarray]] = deque()
        self._delays: deque[float] = deque(maxlen=DELAYS)
        self._limited: Counter[str] = Counter()
        self._missed = 0
        self._recent: dict[int, Chunk] = {}
        self._pictures: dict[str, tuple[int, bytes]] = {}

    def hello(self) -> dict[str, Any]:
        """What does not change."""
        rings = self.rings
        return {
            "kind": "hello",
            "rig": rings.rig,
            "names": rings.names,
            "units": rings.units,
            "rate_hz": rings.rate_hz,
            "cameras": list(rings.cameras),
            "forces": {name: list(ring.dtype["value"].shape) for name, ring in self._forces.items()},
        }

    def poll(self) -> None:
        """Take in what has come."""
        for index, record in self._chunks.since(self._next_chunk):
            self._next_chunk = index + 1
            if int(record["final"]):
                self._recent[int(record["sequence"])] = chunk_of(record)
        while len(self._recent) > 64:
            del self._recent[min(self._recent)]
        ticks, self._next_tick = self._ticks.drain(self._next_tick)
        if len(ticks):
            self._take(ticks)
        for number, (name, ring) in enumerate(self._forces.items()):
            samples, self._next_force[name] = ring.drain(self._next_force[name])
            if len(samples):
                self._feel(number, samples)
        edge = now_ns() - WINDOW_NS
        while self._lateness and self._lateness[0][0] < edge:
            self._lateness.popleft()

    def state(self) -> dict[str, Any]:
        """What the robot does now."""
        tick, progress = self._tick, self._progress.newest()
        where = progress[1] if progress else None
        phase = Phase(int(where["phase"])) if where is not None else Phase.STARTING
        found: dict[str, Any] = {
            "now": self.ms(now_ns()),
            "phase": phase.name,
            "episodes": int(where["episodes"]) if where is not None else 0,
            "successes": int(where["successes"]) if where is not None else 0,
            "heard": int(where["heard"]) if where is not None else 0,
            "instruction": self._instruction_text(),
            "can": sorted(c.name for c in self._allowed(phase)),
        }
        if tick is None:
            return {**found, "state": None}
        return found | {
            "state": State(int(tick["state"])).name,
            "cause": _text(tick["cause"]),
            "paused": _paused(tick),
            "entered": self.ms(self._entered_ns),
            "tick": self.ms(int(tick["woke_ns"])),
            "condition": Condition(int(tick["condition"])).name,
            "person": bool(tick["person"]),
            "at_rest": bool(tick["at_rest"]),
            "episode": int(tick["episode"]),
            "chunk": int(tick["chunk"]),
            "limit": Reason(int(tick["reason"])).name if tick["verdict"] != Verdict.OK else "",
        }

    def collecting(self) -> dict[str, Any] | None:
        """Where a collecting session is; None where none is held."""
        found = None if self._collect is None else self._collect.newest()
        if found is None:
            return None
        now = found[1]
        left_s = float(now["left_ns"]) / SECOND_NS
        return {
            "stage": Stage(int(now["stage"])).name,
            "waiting": bool(now["waiting"]),
            "ends": self.ms(int(now["ends_ns"])) if now["ends_ns"] else None,
            "since": self.ms(int(now["since_ns"])),
            "task": _text(now["task"]),
            "note": _text(now["note"]),
            **{
                name: int(now[name])
                for name in ("episodes", "goal", "tasks", "successes", "discarded", "saved", "cues")
            },
            "recorded_s": float(now["recorded_ns"]) / SECOND_NS,
            "elapsed_s": float(now["elapsed_ns"]) / SECOND_NS,
            "left_s": None if left_s < 0 else left_s,
            "cue": Cue(int(now["cue"])).name,
        }

    def forces(self, since: int) -> list[list[Any]]:
        """Samples of force streams from number ``since`` on: number of the stream, ms, values. Of each 20 ms (arrays of
        touch: 100 ms) the greatest, so that no contact is missed."""
        return _tail(self._touched, self.touched - since)

    def figures(self) -> dict[str, Any]:
        """How well the loops keep time, and what the limits changed."""
        late = np.concatenate([part for _, part in self._lateness]) if self._lateness else np.empty(0)
        counts = np.bincount(np.searchsorted(LATENESS_MS, late), minlength=len(LATENESS_MS) + 1)
        delays = np.array(self._delays)
        step = _round_step(delays.max(initial=0.0) / DELAY_BINS)
        return {
            "lateness": _spread(late),
            "late_counts": counts.tolist(),
            "late_edges": LATENESS_MS,
            "delay": _spread(delays),
            "delay_counts": np.bincount((delays / step).astype(int), minlength=DELAY_BINS).tolist(),
            "delay_step": step,
            "missed": self._missed,
            "refused": int(self._tick["refused"]) if self._tick is not None else 0,
            "limited": dict(self._limited),
        }

    def samples(self, since: int) -> list[list[Any]]:
        """Points of the curves from number ``since`` on: ms, then requested, sent and measured (N,) each."""
        return _tail(self._samples, self.sampled - since)

    def events(self, since: int) -> list[Event]:
        return _tail(self._events, self.happened - since)

    def note(self, text: str) -> None:
        """Add an event of now."""
        self._event(now_ns(), text)

    def plan_key(self) -> tuple[int, int]:
        """Changes when the chunk in force does: (sequence, actions)."""
        chunk = self._in_force()
        return (chunk.sequence, len(chunk.actions)) if chunk else (-1, 0)

    def plan(self) -> dict[str, Any]:
        """The chunk in force: "times" (T,) ms and "actions" (T, N); empty where none is."""
        chunk = self._in_force()
        if chunk is None:
            return {"times": [], "actions": []}
        return {"times": [self.ms(int(t)) for t in chunk.times_ns], "actions": _rows(chunk.actions)}

    def picture(self, camera: str, after: int) -> tuple[int, bytes] | None:
        """Index and message of the newest picture if its index is above ``after``: number of the camera (u1), ms of
        capture (little-endian f8), JPEG. Encoded once for all viewers."""
        ring = self._cameras[camera]
        kept = self._pictures.get(camera)
        if ring.count - 1 <= after:
            return None
        if kept is None or kept[0] < ring.count - 1:
            newest = ring.newest()
            if newest is None:
                return None
            index, frame = newest
            head = struct.pack("<Bd", list(self._cameras).index(camera), self.ms(int(frame["capture_ns"])))
            kept = self._pictures[camera] = (index, head + _jpeg(frame["value"]))
        return kept if kept[0] > after else None

    @property
    def origin_ns(self) -> int:
        """Of the ms on the page."""
        return self._origin_ns

    def measured(self) -> np.ndarray:
        """(N,) of the rig's vector now; NaN where nothing is known yet."""
        return np.full(len(self.rings.names), np.nan) if self._tick is None else self._tick["measured"]

    def ms(self, at_ns: int) -> float:
        return round((at_ns - self._origin_ns) / 1e6, 2)

    def close(self) -> None:
        more = [self._collect] if self._collect else []
        for ring in (
            *more,
            *self._forces.values(),
            *self._cameras.values(),
            self._ticks,
            self._chunks,
            self._instruction,
            self._progress,
        ):
            ring.close()

    def _take(self, ticks: np.ndarray) -> None:
        """Ticks (n,), n > 0."""
        first, before = self._tick is None, self._tick
        self._tick = ticks[-1]
        self._missed += int(ticks["missed"].sum())
        self._lateness.append((int(ticks["woke_ns"][-1]), (ticks["woke_ns"] - ticks["due_ns"]) / 1e6))
        for reason, count in Counter(ticks["reason"][ticks["verdict"] != Verdict.OK].tolist()).items():
            self._limited[Reason(reason).name.lower().replace("_", " ")] += count

        states = np.concatenate([[255 if first or before is None else before["state"]], ticks["state"]])
        for i in np.flatnonzero(np.diff(states)):
            self._entered_ns = int(ticks["woke_ns"][i])
            name = State(int(ticks["state"][i])).name
            self._event(self._entered_ns, f"{name}: {_text(ticks['cause'][i])}")

        running = ticks[(ticks["state"] == State.RUNNING) & (ticks["chunk"] >= self._used)]
        for sequence, i in zip(*np.unique(running["chunk"], return_index=True), strict=True):
            self._used = int(sequence) + 1
            self._delays.append(float(running["woke_ns"][i] - running["chunk_capture_ns"][i]) / 1e6)

        buckets = ticks["due_ns"] // SAMPLE_NS
        chosen = ticks[np.diff(np.concatenate([[self._last_bucket], buckets])) != 0]
        self._last_bucket = int(buckets[-1])
        rows = [_rows(chosen[name]) for name in _VECTORS]
        for at_ns, *vectors in zip(chosen["woke_ns"], *rows, strict=True):
            self._samples.append([self.ms(int(at_ns)), *vectors])
        self.sampled += len(chosen)

    def _feel(self, number: int, samples: np.ndarray) -> None:
        """Samples (n,) of the force stream with that number, n > 0."""
        values = samples["value"].reshape(len(samples), -1).astype(np.float64)
        size = np.linalg.norm(np.nan_to_num(values), axis=1)
        buckets = samples["capture_ns"] // (TOUCH_NS if values.shape[1] > WIDE else SAMPLE_NS)
        for bucket in np.unique(buckets):
            inside = np.flatnonzero(buckets == bucket)
            i = int(inside[np.argmax(size[inside])])
            self._touched.append([number, self.ms(int(samples["capture_ns"][i])), *_rows(values[i : i + 1])])
            self.touched += 1

    def _event(self, at_ns: int, text: str) -> None:
        self._events.append(Event(self.ms(at_ns), text))
        self.happened += 1

    def _in_force(self) -> Chunk | None:
        return self._recent.get(int(self._tick["chunk"])) if self._tick is not None else None

    def _instruction_text(self) -> str:
        found = self._instruction.newest()
        return read_text(found[1]["value"]) if found else ""

    def _allowed(self, phase: Phase) -> set[Command]:
        """What makes sense now. Everything else is carried out too, or does nothing: this is for the buttons."""
        allowed = {Command.E_STOP, Command.END}
        collecting = None if self._collect is None else self._collect.newest()
        if collecting is not None:
            allowed |= _OFFERED.get(Stage(int(collecting[1]["stage"])), set())
        elif phase is Phase.EPISODE:
            allowed |= {Command.SUCCESS, Command.FAILURE, Command.DISCARD}
        if self._tick is None:
            return allowed
        state = State(int(self._tick["state"]))
        if state is State.E_STOPPED:
            still = bool(self._tick["at_rest"]) or int(self._tick["condition"]) not in _FOLLOWS
            return allowed | {Command.RELEASE} if still else allowed
        if state is State.STOPPED:
            allowed.add(Command.RESUME)
        if state in _MOVING or not self._tick["paused"]:
            allowed.add(Command.PAUSE)
        if state is State.TELEOP:
            return allowed | {Command.HAND_BACK}
        allowed.add(Command.RESET)
        return allowed | {Command.TAKE_OVER} if self.rings.teleoperators or self.rings.arms else allowed


def _paused(tick: np.void) -> bool:
    """It has stopped, and only a person makes it go on."""
    return int(tick["state"]) == State.STOPPED and bool(tick["paused"])


def _tail(items: deque[Any], count: int) -> list[Any]:
    return list(items)[-count:] if count > 0 else []


def _rows(values: np.ndarray) -> list[Any]:
    """(n, N) as JSON can have it: NaN (a gripper that says nothing) is null."""
    rounded = np.round(values.astype(np.float64), 4)
    if np.isfinite(rounded).all():
        return rounded.tolist()
    return [[v if np.isfinite(v) else None for v in row] for row in rounded.tolist()]


def _text(value: Any) -> str:
    return bytes(value).decode(errors="replace")


def _spread(values_ms: np.ndarray) -> list[float] | None:
    """p50, p99 and the greatest; None where nothing was measured."""
    return [round(float(v), 3) for v in np.percentile(values_ms, [50, 99, 100])] if len(values_ms) else None


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50 ... that is above ``least``: every delay falls into a bin."""
    steps: Sequence[float] = [base * 10**power for power in range(6) for base in (1, 2, 5)]
    return next((step for step in steps if step > least), max(steps[-1], least * 1.01))


def _jpeg(picture: np.ndarray) -> bytes:
    import simplejpeg

    stride = -(-picture.shape[1] // WIDEST_PX)
    small = np.ascontiguousarray(picture[::stride, ::stride])
    return simplejpeg.encode_jpeg(small, JPEG_QUALITY, "RGB", "420")
