"""The people at a simulated world: those at the page, those with a teleoperator, and the one at the terminal.

They are heard by the world's process itself (``PeopleHandles``), as people are by a rig's servo process; the supervisor
starts their processes, hears them too, and hands on what is for the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from robolearn_data.schema import SchemaError, Stream, read_text
from robolearn_data.world import WorldSpec
from robolearn_deploy.dashboard.access import PageOptions, address, listen
from robolearn_deploy.dashboard.rings import NOTE_FIELDS, PROGRESS_FIELDS, PageArm, Phase, Plane, RigRings, units_of
from robolearn_deploy.dashboard.server import run_page
from robolearn_deploy.operator import COMMAND_FIELDS, Command, Commands, Operator
from robolearn_deploy.recorder import sample_fields
from robolearn_deploy.rig_processes import teleop_process
from robolearn_deploy.rig_senses import SESSION_FIELDS
from robolearn_deploy.rig_streams import INSTRUCTION_BYTES
from robolearn_deploy.servo_process import tick_fields
from robolearn_deploy.takeover import intent_fields
from robolearn_deploy.worker import Worker
from robolearn_deploy.world_takeover import SUPERVISOR, PeopleHandles
from robolearn_deploy.world_teleop import WorldTeleop
from robolearn_deploy.world_view import VIEW, picture_fields
from robolearn_hardware.clock import now_ns
from robolearn_hardware.registry import TeleoperatorConfig
from robolearn_hardware.ring import Field, Ring, RingHandle

TOOL = "tool"
"""What a person moves in a world, where a rig has arms with names."""
SLOTS_S = 10.0
"""How long whoever reads a ring of ticks or steps may be busy elsewhere."""
STOP_TIMEOUT_S = 10.0
_TEXT = Stream((INSTRUCTION_BYTES,), "uint8", "text")


@dataclass(frozen=True)
class PeopleOptions:
    """Who may move a world, and how."""

    teleop: WorldTeleop
    view: tuple[int, int, int]
    """(H, W, 3) of what ``World.render`` gives."""
    devices: Mapping[str, TeleoperatorConfig] = field(default_factory=dict)
    """Teleoperators at this machine."""
    page: PageOptions | None = None


class People:
    """The supervisor's end."""

    def __init__(
        self,
        stack: ExitStack,
        spec: WorldSpec,
        options: PeopleOptions,
        *,
        chunks: RingHandle,
        collect: RingHandle | None = None,
        dataset: Path | None = None,
    ) -> None:
        """Starts the processes, which end with ``stack``; ``workers`` are to be waited for, then ``begin`` be called.

        Args:
            chunks: of ``channels.chunk_fields``, empty where nobody thinks.
            collect: of ``collect_ring.COLLECT_FIELDS``.

        Raises:
            PageError: the page cannot be shown as asked.
        """

        def ring(fields: Mapping[str, Field], slots: int) -> Ring:
            return stack.enter_context(Ring.create(fields, slots))

        action, rate_hz = spec.schema.stream("action"), spec.schema.rate_hz
        deep, joints = max(64, round(SLOTS_S * rate_hz)), options.teleop.positions
        self._commands = {n: ring(COMMAND_FIELDS, 64) for n in (SUPERVISOR, "person", "page", *options.devices)}
        self.intents = {n: ring(intent_fields(joints), 16) for n in ("page", *options.devices)}
        self._session, self._progress = ring(SESSION_FIELDS, 4), ring(PROGRESS_FIELDS, 4)
        self._notes, self._next_note = ring(NOTE_FIELDS, 64), 0
        self._instruction = ring(sample_fields(_TEXT), 4)
        pictures = {n: ring(fields, 8) for n, fields in picture_fields(spec, options.view).items()}
        self.handles = PeopleHandles(
            options.teleop,
            {n: one.handle for n, one in self._commands.items()},
            {n: one.handle for n, one in self.intents.items()},
            ring(tick_fields(action.shape[0]), deep).handle,
            {n: one.handle for n, one in pictures.items()},
            self._session.handle,
        )
        self._heard = Commands({n: one for n, one in self._commands.items() if n != SUPERVISOR})
        self.supervisor, self.person = Operator(self._commands[SUPERVISOR]), Operator(self._commands["person"])
        self.address = ""
        """Of the page."""
        self.workers: dict[str, Worker] = {}
        stack.callback(self._end)
        for name, config in options.devices.items():
            handles = self.intents[name].handle, joints, self._commands[name].handle
            self.workers[name] = Worker(name, teleop_process, name, config, *handles, {}, self._session.handle)
        corners = options.teleop.corners
        self.rings = RigRings(
            rig=spec.name,
            names=action.names or tuple(str(i) for i in range(action.shape[0])),
            units=units_of(action),
            rate_hz=rate_hz,
            cameras=self.handles.pictures,
            ticks=self.handles.ticks,
            chunks=chunks,
            instruction=self._instruction.handle,
            commands=self._commands["page"].handle,
            notes=self._notes.handle,
            progress=self._progress.handle,
            session=self._session.handle,
            teleoperators=True,
            arms={TOOL: PageArm(self.intents["page"].handle, joints, plane=Plane(VIEW, *corners) if corners else None)},
            dataset=dataset,
            collect=collect,
        )
        """What the page reads."""
        if options.page is not None:
            with listen(options.page) as listening:
                self.workers["page"] = Worker("page", run_page, self.rings, options.page, listening)
                self.address = address(listening, options.page)

    def begin(self) -> None:
        """Let the processes go, which are ready."""
        self._session.publish({"episode": 0, "stop": 0})
        for worker in self.workers.values():
            worker.release()

    def heard(self) -> Iterator[Command]:
        """What people said since the last call."""
        for _, command in self._heard.new():
            yield command

    def noted(self, instruct: Callable[[str], None] | None = None) -> Iterator[str]:
        """What viewers of the page did since the last call, and which processes have ended, for the log.

        Args:
            instruct: follows an instruction of a viewer; None: nobody does.
        """
        for index, note in self._notes.since(self._next_note):
            self._next_note = index + 1
            viewer, command = bytes(note["viewer"]).decode(), int(note["command"])
            text = read_text(note["instruction"])
            if not command and instruct is not None:
                instruct(text)
            yield f"{viewer}: {Command(command).name if command else f'instruction {text!r}'}"
        for name, worker in list(self.workers.items()):
            if not worker.running:
                del self.workers[name]
                yield f"{worker.failure() or f'the {name} process has ended'}; the rest goes on without it"

    def show(self, phase: Phase, episodes: int, successes: int, instruction: str) -> None:
        """Tell the page where the run is."""
        counts = {"episodes": episodes, "successes": successes, "heard": self._next_note}
        self._progress.publish({"at_ns": now_ns(), "phase": int(phase), **counts})
        newest = self._instruction.newest()
        if newest is None or read_text(newest[1]["value"]) != instruction:
            try:
                value = _TEXT.check("instruction", instruction)
            except SchemaError:  # longer than a page shows
                return
            now = now_ns()
            self._instruction.publish({"capture_ns": now, "received_ns": now, "value": value})

    def stop(self) -> None:
        """Tell all processes that the run is over."""
        self._session.publish({"episode": 0, "stop": 1})

    def _end(self) -> None:
        self.stop()
        while self.workers:
            self.workers.popitem()[1].stop(STOP_TIMEOUT_S)
