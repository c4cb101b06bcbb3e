"""A dashboard for tests: of a real run on a simulated rig, or of rings that the test fills."""

from __future__ import annotations

import dataclasses
import functools
import http.client
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rig_fakes import SinePolicy, spec_of

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_deploy.channels import chunk_fields
from robolearn_deploy.collect_ring import COLLECT_FIELDS, collect_record
from robolearn_deploy.collect_session import CollectSession, SessionOptions
from robolearn_deploy.dashboard.access import PageOptions, address, listen
from robolearn_deploy.dashboard.rings import NOTE_FIELDS, PROGRESS_FIELDS, PageArm, Plane, RigRings
from robolearn_deploy.dashboard.server import run_page
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.inference import Reply, Request
from robolearn_deploy.operator import COMMAND_FIELDS, Command, Operator
from robolearn_deploy.recorder import sample_fields
from robolearn_deploy.rig_collect import CollectReport, collect_on_rig
from robolearn_deploy.rig_log import RigMeasured, RigReport
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.rig_runtime import run_rig
from robolearn_deploy.rig_senses import SESSION_FIELDS
from robolearn_deploy.rig_streams import INSTRUCTION_BYTES, RigLayout
from robolearn_deploy.servo_process import tick_fields
from robolearn_deploy.stall import State
from robolearn_deploy.takeover import intent_fields
from robolearn_deploy.worker import Worker, wait_ready
from robolearn_hardware.clock import now_ns
from robolearn_hardware.rig import Rig, load_rig, with_twins
from robolearn_hardware.ring import Field, Ring

ARM_ALONE = "arms: {arm: {kind: simulated, model: so101, plant: first_order, rate_hz: 100}}\n"
SIMULATED = ARM_ALONE + "cameras: {front: {kind: mjpeg, url: twin, width: 320, height: 240, rate_hz: 20}}\n"


def until(holds: Callable[[], Any], what: str, seconds: float = 40.0) -> Any:
    """Wait for something true and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds:g} s: {what}")


class RaisedSine(SinePolicy):
    """Sines about a pose clear of the table, ``raised`` (N,) from where the arm was."""

    def __init__(self, spec: PolicySpec, raised: tuple[float, ...], **how: Any) -> None:
        super().__init__(spec, **how)
        self._raised = np.array(raised, np.float32)

    def infer(self, request: Request) -> Iterator[Reply]:
        for reply in super().infer(request):
            yield dataclasses.replace(reply, actions=reply.actions + self._raised)


class Running:
    """A run on a rig in a thread of the test; a ``RigWatcher``."""

    def __init__(self, rig_file: Path, *, fifo: bool = False, raised: tuple[float, ...] = ()) -> None:
        self.messages: list[str] = []
        self.report: RigReport | None = None
        self._failed: BaseException | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(rig_file, fifo, raised), daemon=True)
        self._thread.start()
        until(lambda: self._begun.is_set() or not self._thread.is_alive(), "the run begins", 120)
        if not self._begun.is_set():
            raise AssertionError("the run did not begin") from self._failed
        self.url = next(m for m in self.messages if m.startswith("page: ")).removeprefix("page: ")

    def _run(self, rig_file: Path, fifo: bool, raised: tuple[float, ...]) -> None:
        try:
            with with_twins(load_rig(rig_file)) as (rig, _):
                names = vector_names(rig)
                options = RigOptions(
                    600.0,
                    servo=ServoOptions(fifo=fifo),
                    instruction="wave",
                    out=rig_file.parent / "run.zarr" if rig.cameras else None,
                    page=PageOptions(port=0),
                )
                spec = spec_of(names)
                self.report = run_rig(
                    rig, functools.partial(RaisedSine, spec, raised or (0.0,) * len(names)), spec, options, self
                )
        except BaseException as error:
            self._failed = error
            raise

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        self._operator, self.pids = operator, dict(pids)
        self.ticks, self.instruction = Ring.attach(rings.ticks), Ring.attach(rings.instruction)
        self._begun.set()

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None: ...

    def message(self, text: str) -> None:
        self.messages.append(text)

    def state(self) -> State:
        found = self.ticks.newest()
        return State(int(found[1]["state"])) if found else State.STOPPED

    def until_state(self, *states: State) -> None:
        until(lambda: self.state() in states, f"{states}; it is {self.state()!r}")

    def set_going(self) -> None:
        """Whatever the test before left: it runs."""

        def runs() -> bool:
            if self.state() is not State.RUNNING:
                self._operator.tell(Command.RELEASE if self.state() is State.E_STOPPED else Command.RESUME)
                time.sleep(0.5)
            return self.state() is State.RUNNING

        until(runs, f"it runs; it is {self.state()!r}")

    def e_stop(self) -> None:
        self._operator.tell(Command.E_STOP)
        self.until_state(State.E_STOPPED)

    def end(self) -> None:
        self._operator.tell(Command.END)
        self._thread.join(60)
        for ring in (self.ticks, self.instruction):
            ring.close()


class CollectRun:
    """A session on a rig whose arm is moved from the page, in a thread of the test; a ``CollectWatcher``."""

    def __init__(self, rig_file: Path, out: Path, *, fifo: bool = False, **session: Any) -> None:
        self.out, self.messages = out, []
        self.report: CollectReport | None = None
        self._failed: BaseException | None = None
        self._session = SessionOptions(**{"tasks": ("push the block",), "episodes": 3, "countdown_s": 0.5, **session})
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(rig_file, fifo), daemon=True)
        self._thread.start()
        until(lambda: self._begun.is_set() or not self._thread.is_alive(), "the session begins", 120)
        if not self._begun.is_set():
            raise AssertionError("the session did not begin") from self._failed
        self.url = next(m for m in self.messages if m.startswith("page: ")).removeprefix("page: ")

    def _run(self, rig_file: Path, fifo: bool) -> None:
        try:
            with with_twins(load_rig(rig_file)) as (rig, _):
                (arm,) = rig.arms
                servo, page = ServoOptions(fifo=fifo), PageOptions(port=0)
                options = RigOptions(3600.0, teleoperators={"page": arm}, servo=servo, out=self.out, page=page)
                self.report = collect_on_rig(rig, options, self._session, self, check=False)
        except BaseException as error:
            self._failed = error
            raise

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        self._operator, self.pids = operator, dict(pids)
        self.ticks = Ring.attach(rings.ticks)
        self.intents = Ring.attach(next(iter(rings.arms.values())).intents)

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None: ...

    def message(self, text: str) -> None:
        self.messages.append(text)

    def checked(self, checks: Any) -> None: ...

    def session(self, session: CollectSession, now_ns: int) -> None:
        self.stage = session.stage.name
        self._begun.set()

    def tick(self) -> np.void:
        """The newest."""
        found = self.ticks.newest()
        assert found is not None
        return found[1]

    def end(self) -> None:
        self._operator.tell(Command.END)
        self._thread.join(60)
        for ring in (self.ticks, self.intents):
            ring.close()


@contextmanager
def collecting_run(folder: Path, rig: str = SIMULATED, **how: Any) -> Iterator[CollectRun]:
    (folder / "rig.yaml").write_text(rig)
    run = CollectRun(folder / "rig.yaml", folder / "out.zarr", **how)
    try:
        yield run
    finally:
        run.end()


def vector_names(rig: Rig) -> tuple[str, ...]:
    """Of the components of the vector of a rig with one arm."""
    (name,) = rig.arms
    return RigLayout((rig.open_arm(name).info,)).names


@contextmanager
def simulated_run(folder: Path, rig: str = SIMULATED, *, name: str = "rig", **how: Any) -> Iterator[Running]:
    (folder / f"{name}.yaml").write_text(rig)
    run = Running(folder / f"{name}.yaml", **how)
    try:
        yield run
    finally:
        run.end()


class FilledByHand:
    """The rings of a rig that is not there, and the page of it."""

    SIZE, HORIZON, PICTURE = 3, 8, (48, 64, 3)

    def __init__(
        self,
        stack: ExitStack,
        *,
        teleoperators: bool = False,
        driven: bool = False,
        plane: Plane | None = None,
        collecting: bool = False,
        dataset: Path | None = None,
    ) -> None:
        """``driven``: its arm is moved from the page. ``collecting``: there are a session and forces."""

        def ring(fields: Mapping[str, Field], slots: int = 64) -> Ring:
            return stack.enter_context(Ring.create(fields, slots))

        names = ("pan", "lift", "gripper")
        self.action = Stream((3,), "float32", "action", names=names)
        self.camera = ring(sample_fields(Stream(self.PICTURE, "uint8", "image", rate_hz=30.0)))
        self.ticks, self.chunks = ring(tick_fields(3), 4096), ring(chunk_fields(self.action, self.HORIZON))
        self.instruction = ring(sample_fields(Stream((INSTRUCTION_BYTES,), "uint8", "text", rate_hz=1.0)))
        self.commands, self.notes = ring(COMMAND_FIELDS), ring(NOTE_FIELDS)
        self.progress, self.session = ring(PROGRESS_FIELDS), ring(SESSION_FIELDS)
        self.intents, self.collect = ring(intent_fields(2), 1024), ring(COLLECT_FIELDS)
        wrench, touch = Stream((6,), rate_hz=1000.0, unit="N"), Stream((4, 4), rate_hz=100.0)
        self.wrench, self.touch = ring(sample_fields(wrench), 4096), ring(sample_fields(touch), 4096)
        self.rings = RigRings(
            "by hand",
            names,
            ("rad",) * len(names),
            100.0,
            {"front": self.camera.handle},
            self.ticks.handle,
            self.chunks.handle,
            self.instruction.handle,
            self.commands.handle,
            self.notes.handle,
            self.progress.handle,
            self.session.handle,
            teleoperators,
            {"arm": PageArm(self.intents.handle, 2, plane=plane)} if driven or plane else {},
            {"wrench": self.wrench.handle, "touch": self.touch.handle} if collecting else {},
            dataset,
            self.collect.handle if collecting else None,
        )

    def tick(self, **values: Any) -> None:
        now = now_ns()
        zero = np.zeros(self.SIZE, np.float32)
        blank: dict[str, Any] = {name: zero if shape else 0 for name, (_, shape) in tick_fields(self.SIZE).items()}
        blank |= {"cause": b"because", "condition": 1, "chunk": -1, "due_ns": now, "woke_ns": now, "done_ns": now}
        self.ticks.publish(blank | values)

    def frame(self, value: int = 0) -> None:
        now = now_ns()
        picture = np.full(self.PICTURE, value, np.uint8)
        self.camera.publish({"capture_ns": now, "received_ns": now, "value": picture})

    def session_is(self, session: CollectSession) -> None:
        self.collect.publish(collect_record(session, now_ns()))

    def intent(self) -> np.void:
        """The newest that came from the page."""
        found = self.intents.newest()
        assert found is not None
        return found[1]

    def enabled(self) -> bool:
        """Somebody moves the arm."""
        return self.intents.count > 0 and bool(self.intent()["enabled"])

    def told(self) -> list[Command]:
        """The commands that came from the page."""
        return [Command(int(record["command"])) for _, record in self.commands.since(0)]


@contextmanager
def page_by_hand(
    *,
    driven: bool = False,
    plane: Plane | None = None,
    collecting: bool = False,
    dataset: Path | None = None,
    **options: Any,
) -> Iterator[tuple[FilledByHand, str, Worker]]:
    """(rings, address of the page, its process)"""
    chosen = PageOptions(**{"port": 0, **options})
    with ExitStack() as stack:
        filled = FilledByHand(stack, driven=driven, plane=plane, collecting=collecting, dataset=dataset)
        with listen(chosen) as listening:
            url = address(listening, chosen)
            worker = Worker("page", run_page, filled.rings, chosen, listening)

        def stop() -> None:
            filled.session.publish({"episode": 0, "stop": 1})
            worker.stop(10)

        stack.callback(stop)
        wait_ready([worker], 60, lambda: None)
        worker.release()
        yield filled, url, worker


def get(url: str, path: str = "/", **headers: str) -> http.client.HTTPResponse:
    """The answer to a request with these headers ("Host" and others replaced where given), read."""
    host = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    answer.body = answer.read()  # type: ignore[attr-defined]
    connection.close()
    return answer


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no chromium here")
    return found
