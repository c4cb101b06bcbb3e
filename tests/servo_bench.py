"""A servo process on a rig, and whoever feeds it: the test plays policy, supervisor and person."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from robolearn_deploy.channels import chunk_fields, chunk_record
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.operator import BEAT_FIELDS, COMMAND_FIELDS, Command, Operator, beat
from robolearn_deploy.recorder import sample_fields, step_fields
from robolearn_deploy.servo import ServoProcess
from robolearn_deploy.servo_process import ServoHandles, tick_fields
from robolearn_deploy.stall import State, Watch
from robolearn_deploy.takeover import intent_fields
from robolearn_hardware.clock import now_ns
from robolearn_hardware.rig import Rig, load_rig
from robolearn_hardware.ring import Field, Ring

HORIZON = 20
PERIOD_NS = 50_000_000
ALLOWED_NS = 500_000_000


class ServoBench:
    def __init__(self, rig: Rig, options: ServoOptions, stack: ExitStack) -> None:
        self.servo = stack.enter_context(ServoProcess(rig, options))
        self.layout = self.servo.layout
        size = len(self.layout.names)

        def ring(fields: dict[str, Field], slots: int) -> Ring:
            return stack.enter_context(Ring.create(fields, slots))

        schema = self.layout.schema(1e9 / PERIOD_NS, self.servo.rate_hz, {}, wrench=self.servo.measures_force)
        self.chunks = ring(chunk_fields(self.layout.action(), HORIZON), 64)
        self.state = ring(sample_fields(schema.streams["state"]), 512)
        streams = {"state": self.state.handle}
        if self.servo.measures_force:
            self.wrench = ring(sample_fields(schema.streams["wrench"]), 512)
            streams["wrench"] = self.wrench.handle
        self.steps = ring(step_fields(schema), 512)
        self.ticks = ring(tick_fields(size), 4096)
        self.beats = ring(BEAT_FIELDS, 4)
        self.commands = ring(COMMAND_FIELDS, 16)
        self.intent = ring(intent_fields(self.layout.arms[0].joints), 16)
        self.operator = Operator(self.commands)
        stack.callback(self.operator.tell, Command.END)
        self._sequence = 0
        self.keep_beating()
        self.servo.begin(
            ServoHandles(
                chunks=self.chunks.handle,
                horizon=HORIZON,
                period_ns=PERIOD_NS,
                start=0,
                streams=streams,
                steps=self.steps.handle,
                ticks=self.ticks.handle,
                beats={"supervisor": self.beats.handle},
                watches=(Watch("supervisor", ALLOWED_NS, teleop=True),),
                commands={"test": self.commands.handle},
                intents={self.layout.arms[0].name: self.intent.handle},
            )
        )

    def keep_beating(self) -> None:
        beat(self.beats)

    def newest(self) -> np.void:
        found = self.ticks.newest()
        assert found is not None
        return found[1]

    def offer(self, actions: np.ndarray, *, begins_ns: int | None = None, episode: int = 0) -> Chunk:
        """A chunk of ``actions`` (n, N), the first of which belongs to now."""
        begins = begins_ns or now_ns()
        times = begins + np.arange(len(actions), dtype=np.int64) * PERIOD_NS
        chunk = Chunk(self._sequence, episode, begins, times, actions.astype(np.float32), int(times[-1]) + PERIOD_NS)
        self._sequence += 1
        self.chunks.publish({**chunk_record(chunk, HORIZON), **self.begun()})
        return chunk

    def begun(self) -> dict[str, int]:
        blank = set(self.chunks.handle.fields) - set(
            chunk_record(Chunk(0, 0, 0, np.zeros(1, np.int64), np.zeros((1, len(self.layout.names))), 0), HORIZON)
        )
        return dict.fromkeys(blank, 0)

    def until(self, holds: Callable[[np.void], bool], seconds: float = 20.0, feed: Callable[[], None] | None = None):
        """Wait, beating and feeding; the first tick that ``holds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.keep_beating()
            if feed:
                feed()
            if self.ticks.count and holds(self.newest()):
                return self.newest()
            time.sleep(0.01)
        tick = self.newest()
        raise AssertionError(f"not within {seconds:g} s: {State(tick['state']).name}, {bytes(tick['cause']).decode()}")


class Sine:
    """Chunks of a slow sine about where the arm stood, one every tenth of a second, as a policy would give them."""

    def __init__(self, bench: ServoBench, amplitude: float = 0.2, episode: int = 0) -> None:
        self._bench, self._amplitude, self.episode = bench, amplitude, episode
        self._middle = bench.servo.start.copy()
        self._began_ns = self._next_ns = now_ns()

    def at(self, times_ns: np.ndarray) -> np.ndarray:
        phase = 2 * np.pi * 0.4 * (times_ns - self._began_ns) / 1e9
        joints = np.ones(len(self._middle), bool)
        joints[list(self._bench.layout.grippers)] = False
        return self._middle + np.where(joints, self._amplitude, 0.0) * np.sin(phase)[:, None]

    def __call__(self) -> None:
        now = now_ns()
        if now >= self._next_ns:
            self._next_ns = now + 100_000_000
            times = now + np.arange(HORIZON, dtype=np.int64) * PERIOD_NS
            self._bench.offer(self.at(times), begins_ns=now, episode=self.episode)


@contextmanager
def servo_bench(rig: Rig, **options: object) -> Iterator[ServoBench]:
    options = {"fifo": False, **options}
    with ExitStack() as stack:
        yield ServoBench(rig, ServoOptions(**options), stack)  # type: ignore[arg-type]


def simulated_rig(folder: Path, *, arms: int = 1, model: str = "so101", limits: str = "") -> Rig:
    path = folder / "rig.yaml"
    names = ["left", "right"][:arms]
    kinds = "\n".join(f"  {n}: {{kind: simulated, model: {model}, plant: first_order, rate_hz: 100}}" for n in names)
    path.write_text(f"arms:\n{kinds}\n{limits}")
    return load_rig(path)
