"""People for tests of sessions in simulated worlds: hands that hold a teleoperator, and a supervisor's watcher."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.world import World, WorldSpec
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.collect_session import CollectSession, SessionOptions, Stage
from robolearn_deploy.dashboard.access import PageOptions
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.world_collect import WorldSession, collect_in_world, recorded_schema
from robolearn_deploy.world_people import PeopleOptions
from robolearn_deploy.world_report import SessionReport, WorldMeasured
from robolearn_deploy.world_teleop import PlanarTarget
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Intent, Teleoperator
from robolearn_hardware.machine import Check
from robolearn_sim.worlds import make_world, world_spec

PLANE = PlanarTarget((0.0, 0.0), (512.0, 512.0), speed=2000.0, per_metre=1000.0)


@dataclass(frozen=True)
class Sweep:
    """A teleoperator's settings: a pointer that circles while a file says that the deadman is held."""

    deadman: Path

    def open(self, name: str) -> Teleoperator:
        return _Sweeping(self.deadman)


class _Sweeping:
    def __init__(self, deadman: Path) -> None:
        self._deadman = deadman

    def connect(self) -> None: ...

    def read(self) -> Intent:
        now = now_ns()
        angle = 2 * np.pi * (now % 2_000_000_000) / 2e9
        place = 256 + 100 * np.array([np.cos(angle), np.sin(angle)])
        held = self._deadman.exists()
        return Intent(now, held, positions=place) if held else Intent(now, held, twist=np.zeros(6))

    def close(self) -> None: ...


class Held:
    """A session in a thread of the test; fulfils ``SessionWatcher``."""

    def __init__(
        self, world: str, options: WorldSession, spec: WorldSpec, make: Callable[[], World] | None = None
    ) -> None:
        """``make``: makes another world than the name does."""
        self.messages: list[str] = []
        self.report: SessionReport | None = None
        self.pids: dict[str, int] = {}
        self.stage, self.note, self.saved, self.measured = Stage.READY, "", 0, WorldMeasured()
        self.waiting = False
        self.step_at = (0, 0)
        """Steps of the episode so far, and the instant (ns) of the newest tick."""
        self.failed: BaseException | None = None
        self._operator: Operator | None = None
        self._asked: list[Command] = []
        images = {"images": True} if spec.schema.of_kind("image") else {}
        make = make or functools.partial(make_world, world, max_steps=spec.max_steps, **images)
        self._thread = threading.Thread(target=self._run, args=(make, spec, options), daemon=True)
        self._thread.start()
        self.until(lambda: self._operator is not None, "the session begins")

    def _run(self, make: Callable[[], Any], spec: WorldSpec, options: WorldSession) -> None:
        try:
            self.report = collect_in_world(make, spec, options, self)
        except BaseException as error:
            self.failed = error

    def started(self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: Any) -> None:
        self.pids = dict(pids)
        self._starts = operator

    def checked(self, checks: Sequence[Check]) -> None:
        self.checks = list(checks)
        self._operator = self._starts

    def session(self, session: CollectSession, now_ns: int) -> None:
        self.stage, self.note, self.saved = session.stage, session.note, session.saved
        self.waiting = session.waiting

    def progress(self, elapsed_s: float, measured: WorldMeasured, episode: int) -> None:
        self.measured, self.step_at = measured, (measured.steps, measured.due_ns)
        while self._asked and self._operator is not None:
            self._operator.tell(self._asked.pop(0))

    def message(self, text: str) -> None:
        self.messages.append(text)

    def tell(self, *commands: Command) -> None:
        self._asked += commands

    def until(self, holds: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            if self.failed is not None:
                raise AssertionError(f"the session failed before {what}") from self.failed
            assert self.report is None or holds(), f"the session was over before {what}: {self.report}"
            where = f"stage {self.stage.name}, {self.measured.state!r}, step {self.measured.steps}"
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}; {where}"
            time.sleep(0.01)

    def until_stage(self, *stages: Stage) -> None:
        self.until(lambda: self.stage in stages, " or ".join(stage.name for stage in stages))

    def join(self) -> None:
        self._thread.join(60)

    def end(self) -> SessionReport:
        self.tell(Command.END)
        self.join()
        if self.failed is not None:
            raise AssertionError("the session failed") from self.failed
        assert self.report is not None, "the session did not end"
        return self.report


@contextmanager
def pusht_session(
    folder: Path,
    *,
    episodes: int = 10,
    episode_s: float = 1.5,
    reset_s: float | None = None,
    seed: int = 0,
    page: PageOptions | None = None,
    make: Callable[[], World] | None = None,
) -> Iterator[tuple[Held, Path]]:
    """A session in PushT whose deadman is held while the file that is given exists; with a ``page``, held there."""
    spec = world_spec("pusht", max_steps=round(episode_s * 10))
    who = "page" if page else "sweep"
    out, deadman = folder / "out.zarr", folder / "held"
    devices: Any = {} if page else {"sweep": Sweep(deadman)}
    with DatasetWriter.create(out, recorded_schema(spec), metadata={"world": "pusht", "teleop": who}):
        pass
    options = WorldSession(
        session=SessionOptions(("push the T",), episodes, 600.0, 0.0, reset_s),
        people=PeopleOptions(PLANE, (512, 512, 3), devices, page),
        out=out,
        info={"world": "pusht", "teleop": who},
        seed=seed,
    )
    held = Held("pusht", options, spec, make)
    try:
        yield held, deadman
    finally:
        held.tell(Command.END)
        held.join()
