"""The process that serves the page: files over HTTP, and one websocket for each viewer.

It reads rings and writes two of its own, so that nothing here can hold up the robot. Each viewer has tasks of its own
and is sent the newest there is whenever it has taken in what came before: who is slow sees less often, and nobody else
does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources import files
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.http11 import Request, Response

from robolearn_data.schema import Stream, UserError
from robolearn_deploy.dashboard.access import Door, PageOptions
from robolearn_deploy.dashboard.control import Control
from robolearn_deploy.dashboard.episodes import EpisodeLibrary
from robolearn_deploy.dashboard.marks import MarkError
from robolearn_deploy.dashboard.rings import VIEWER_BYTES, RigRings
from robolearn_deploy.dashboard.teleop import BrowserClock, PageTeleop
from robolearn_deploy.dashboard.view import RigView
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_senses import stop_check
from robolearn_deploy.rig_streams import INSTRUCTION_BYTES
from robolearn_deploy.wire.security import server_tls
from robolearn_deploy.wire.strangers import Doorstep
from robolearn_deploy.worker import Rendezvous
from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.ring import Ring

STATE_S, PICTURE_S, FIGURES_S = 1 / 20, 0.06, 1 / 2
"""Between two messages to a viewer, at the least: of a camera with 30 pictures a second it gets every other one."""
LOOK_S = 0.01
"""A picture is sent so soon after it came, where it is sent at all."""
AHEAD = 10
"""Messages of state that a viewer may not have confirmed; then it is skipped until it has."""
MESSAGES_PER_S = 300
"""From one viewer; who sends more is hung up on. A page that shows four cameras sends 80."""
MESSAGE_BYTES = 2048
_EVERYBODYS = (Command.E_STOP, Command.PAUSE)
"""Commands of viewers who are not in control, too: they bring the arms to rest."""
HANDSHAKE_S = 5.0
"""Who has not connected in full by then is hung up on."""
PATIENCE_S = 10.0
"""A viewer whose connection takes in nothing for this long is hung up on."""
POLICY_VIOLATION, INVALID_DATA, TRY_LATER = 1008, 1007, 1013  # RFC 6455, section 7.4.1, and IANA

_MODULES = ("teleop", "phone", "vr", "collect", "forces", "episodes")
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in _MODULES},
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LOG = logging.getLogger(__name__)
# Whoever sends what is no HTTP shall not fill the operator's terminal.
_LOG.addFilter(lambda record: "handshake failed" not in record.getMessage())
_INSTRUCTION = Stream((INSTRUCTION_BYTES,), "uint8", "text")
_SIGN_IN = (
    '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    '<title>robolearn</title><form><p><label for="token">{}</label></p>'
    '<input id="token" name="token" type="password" autocomplete="current-password"> <button>Open</button></form>'
)


class _BadMessageError(ValueError):
    """A viewer sent what the page never does."""


@dataclasses.dataclass(eq=False)
class _Viewer:
    connection: ServerConnection
    name: str
    looks: frozenset[str] = frozenset()
    """Cameras whose picture is on its screen."""
    sent: int = 0
    seen: int = 0
    """Messages of state, and those that it has confirmed."""
    sample: int = 0
    event: int = 0
    touch: int = 0
    plan: tuple[int, int] | None = None
    figures_at: float = 0.0
    pictures: dict[str, int] = dataclasses.field(default_factory=dict)
    """Camera -> index of the newest that was sent."""
    owes: set[str] = dataclasses.field(default_factory=set)
    """Cameras whose newest picture it has not confirmed."""
    clock: BrowserClock = dataclasses.field(default_factory=BrowserClock)
    hints: asyncio.Task[None] | None = None
    saying: asyncio.Task[None] | None = None
    """What checks its instruction."""

    async def send(self, message: dict[str, Any] | bytes) -> None:
        """Raises ConnectionClosed, also where nothing has been taken in for ``PATIENCE_S``."""
        packed = message if isinstance(message, bytes) else json.dumps(message, allow_nan=False)
        try:
            # websockets' own keepalive waits behind what is being sent, and would wait for ever.
            async with asyncio.timeout(PATIENCE_S):
                await self.connection.send(packed)
        except TimeoutError:
            self.connection.transport.abort()
            await self.connection.wait_closed()
            raise ConnectionClosedError(None, None) from None


class PageServer:
    """One page for several viewers. ``run`` it in an event loop."""

    def __init__(self, rings: RigRings, options: PageOptions) -> None:
        """Raises SecurityError: the files for TLS cannot be used."""
        self._view = RigView(rings)
        self._door = Door(options)
        self._options = options
        self._tls = server_tls(*options.tls) if options.tls else None
        self._notes = Ring.attach(rings.notes)
        self._operator = Operator(Ring.attach(rings.commands))
        self._teleop, self._control = PageTeleop(rings.arms), Control()
        self._episodes = None if rings.dataset is None else EpisodeLibrary(rings.dataset)
        folder = files("robolearn_deploy.dashboard")
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}
        self._viewers: set[_Viewer] = set()
        self._numbered = 0

    async def run(self, listening: socket.socket, stopped: Callable[[], bool]) -> None:
        """Serve until ``stopped``."""
        tls: dict[str, Any] = {}
        if self._tls is not None:
            tls = {"ssl": self._tls, "ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": 1}
        self._doorstep = Doorstep(listening)
        server = serve(
            self._serve_viewer,
            sock=self._doorstep,
            process_request=self._admit,
            compression=None,
            max_size=MESSAGE_BYTES,
            max_queue=16,
            open_timeout=HANDSHAKE_S,
            ping_interval=PATIENCE_S,
            ping_timeout=PATIENCE_S,
            close_timeout=1,
            server_header=None,
            logger=_LOG,
            **tls,
        )
        async with server:
            async for _ in _every(STATE_S):
                self._view.poll()
                self._teleop.poll(now_ns())
                with self._hand_over():
                    self._control.poll(now_ns() / SECOND_NS, moving=self._teleop.moving)
                if stopped():
                    break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    sends = (v.send({"kind": "over"}) for v in list(self._viewers))
                    await asyncio.gather(*sends, return_exceptions=True)

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """The answer to a request; None: the websocket may be opened."""
        if not self._door.knows_host(request.headers):
            return _respond(
                http.HTTPStatus.MISDIRECTED_REQUEST,
                b"use this machine's address or host name\n",
            )
        path, _, query = request.path.partition("?")
        if path == "/" and "token=" in query:
            cookie = self._door.cookie_for(request.path)
            if cookie is not None:
                return _respond(http.HTTPStatus.SEE_OTHER, b"", Location="/", Set_Cookie=cookie)
            return _respond(http.HTTPStatus.UNAUTHORIZED, _SIGN_IN.format("That was not the token.").encode(), _HTML)
        if not self._door.lets_in(request.headers):
            asks = "The token of this robot's page:"
            return _respond(http.HTTPStatus.UNAUTHORIZED, _SIGN_IN.format(asks).encode(), _HTML)
        self._doorstep.let_in(connection)
        if path == "/socket":
            if not self._door.same_origin(request.headers):
                return _respond(http.HTTPStatus.FORBIDDEN, b"only the page itself may connect\n")
            return None
        if self._episodes is not None and (path == "/episodes" or path.startswith("/episodes/")):
            found = await self._episodes.ask(path)
            if found is not None:
                return _respond(http.HTTPStatus.OK, *found)
        if path not in self._files:
            return _respond(http.HTTPStatus.NOT_FOUND, b"there is nothing here\n")
        return _respond(http.HTTPStatus.OK, *self._files[path])

    async def _serve_viewer(self, connection: ServerConnection) -> None:
        if len(self._viewers) >= self._options.max_viewers:
            await connection.close(TRY_LATER, "too many viewers")
            return
        self._numbered += 1
        where = connection.remote_address[0] if connection.remote_address else "?"
        viewer = _Viewer(connection, f"viewer {self._numbered} ({where})"[:VIEWER_BYTES])
        self._viewers.add(viewer)
        try:
            await viewer.send(
                {
                    **self._view.hello(),
                    **self._teleop.hello(),
                    "viewer": viewer.name,
                    "records": self._episodes is not None,
                }
            )
            async with asyncio.TaskGroup() as tasks:
                sending = [tasks.create_task(send(viewer)) for send in (self._send_states, self._send_pictures)]
                await self._listen(viewer)
                for task in sending:
                    task.cancel()
        except* _BadMessageError as errors:
            await connection.close(INVALID_DATA, str(errors.exceptions[0]))
        except* ConnectionClosed:
            pass
        finally:
            self._viewers.discard(viewer)
            for task in (viewer.hints, viewer.saying):
                if task is not None:
                    task.cancel()
            with self._hand_over():
                self._control.leave(viewer.name)

    async def _send_states(self, viewer: _Viewer) -> None:
        view = self._view
        async for now in _every(STATE_S):
            if viewer.sent - viewer.seen > AHEAD:
                continue
            viewer.sent += 1
            message = {"kind": "state", "n": viewer.sent, **view.state(), "samples": view.samples(viewer.sample)}
            message |= {"teleop": self._teleop.state(), "control": self._control_state()}
            if self._episodes is not None:
                message["marks"] = self._episodes.changes
            viewer.sample = view.sampled
            if (collecting := view.collecting()) is not None:
                message["collect"] = collecting
            if view.touched > viewer.touch:
                message["forces"], viewer.touch = view.forces(viewer.touch), view.touched
            if view.plan_key() != viewer.plan:
                viewer.plan, message["plan"] = view.plan_key(), view.plan()
            if view.happened > viewer.event:
                message["events"] = [dataclasses.asdict(event) for event in view.events(viewer.event)]
                viewer.event = view.happened
            if now - viewer.figures_at >= FIGURES_S:
                viewer.figures_at, message["figures"] = now, view.figures()
            await viewer.send(message)

    async def _send_pictures(self, viewer: _Viewer) -> None:
        due = dict.fromkeys(self._view.rings.cameras, 0.0)
        async for now in _every(LOOK_S):
            for camera in viewer.looks - viewer.owes:
                newer = self._view.picture(camera, viewer.pictures.get(camera, -1)) if now >= due[camera] else None
                if newer is not None:
                    viewer.pictures[camera], message = newer
                    viewer.owes.add(camera)
                    due[camera] = now + PICTURE_S
                    await viewer.send(message)

    async def _listen(self, viewer: _Viewer) -> None:
        clock = asyncio.get_running_loop().time
        since, count = clock(), 0
        async for message in viewer.connection:
            if clock() - since > 1:
                since, count = clock(), 0
            count += 1
            if count > MESSAGES_PER_S:
                await viewer.connection.close(POLICY_VIOLATION, "too many messages")
                return
            key, value = _read(message)
            match key, value:
                case "do", str() if value in Command.__members__:
                    await self._obey(viewer, Command[value])
                case "instruct", str():
                    if viewer.saying is None and await self._in_charge(viewer):
                        viewer.saying = asyncio.create_task(self._instruct(viewer, " ".join(value.split())))
                case "seen", int():
                    viewer.seen = min(value, viewer.sent)
                case "got", str():
                    viewer.owes.discard(value)
                case "look", list():
                    viewer.looks = frozenset(c for c in self._view.rings.cameras if c in value)
                case "intent", dict():
                    self._follow(viewer, value)
                case "control", "ask" | "give" | "grant" | "refuse":
                    await self._pass_control(viewer, value)
                case "mark", {"uuid": str(uuid), **changes}:
                    await self._mark(viewer, uuid, changes)
                case "hints", True:
                    if self._episodes is not None and viewer.hints is None:
                        viewer.hints = asyncio.create_task(self._hint(viewer, self._episodes))
                case _:
                    raise _BadMessageError("not a message of this page")

    def _follow(self, viewer: _Viewer, intent: dict[str, Any]) -> None:
        if self._control.holder != viewer.name:
            self._teleop.refused["not in control"] += 1
            return
        self._teleop.take(viewer.name, viewer.clock, intent, self._view.origin_ns, now_ns(), self._view.measured())

    async def _pass_control(self, viewer: _Viewer, how: str) -> None:
        control = self._control
        with self._hand_over():
            if how == "ask" and not control.ask(viewer.name, now_ns() / SECOND_NS):
                await viewer.send({"kind": "refused", "why": f"{control.asker} asks for the control already"})
            elif how == "give":
                control.leave(viewer.name)
            elif how in ("grant", "refuse"):
                control.answer(viewer.name, grant=how == "grant")

    @contextlib.contextmanager
    def _hand_over(self) -> Iterator[None]:
        """Where another viewer is in control afterwards, the arms are let go of, and everybody is told."""
        before = self._control.holder
        yield
        if self._control.holder != before:
            self._teleop.let_go(now_ns())
            self._view.note(f"{self._control.holder or 'nobody'} is in control")

    async def _mark(self, viewer: _Viewer, uuid: str, changes: dict[str, Any]) -> None:
        if self._episodes is None or not await self._in_charge(viewer):
            return
        try:
            mark = await self._episodes.mark(uuid, changes)
        except MarkError as error:
            await viewer.send({"kind": "refused", "why": str(error)})
        else:
            self._view.note(f"{viewer.name}: episode {uuid[:8]}: {mark}")

    async def _hint(self, viewer: _Viewer, episodes: EpisodeLibrary) -> None:
        with contextlib.suppress(ConnectionClosed):
            await viewer.send({"kind": "hints", **await episodes.hints()})
        viewer.hints = None

    async def _in_charge(self, viewer: _Viewer, **about: str) -> bool:
        """Nobody else is in control; otherwise the viewer is told so."""
        if not (allowed := self._control.allows(viewer.name)):
            why = f"{self._control.holder} is in control; ask for it first"
            await viewer.send({"kind": "refused", "why": why, **about})
        return allowed

    def _control_state(self) -> dict[str, Any]:
        control = self._control
        waits = round(control.waits_s(now_ns() / SECOND_NS), 1) if control.asker else None
        return {"holder": control.holder, "asker": control.asker, "waits_s": waits}

    async def _obey(self, viewer: _Viewer, command: Command) -> None:
        if command not in _EVERYBODYS and not await self._in_charge(viewer, command=command.name):
            return
        self._operator.tell(command)  # first of all: it may be the e-stop
        note = self._note(viewer, command)
        self._view.note(f"{viewer.name}: {command.name.lower().replace('_', ' ')}")
        await viewer.send({"kind": "noted", "command": command.name, "note": note})

    async def _instruct(self, viewer: _Viewer, text: str) -> None:
        """In a task of its own: who checks may be on another machine, and the viewer's e-stop waits for nobody."""
        with contextlib.suppress(ConnectionClosed):
            try:
                value = _INSTRUCTION.check("instruction", text)
                await asyncio.to_thread(self._options.check_instruction, text)
            except (UserError, UnicodeEncodeError) as error:
                await viewer.send({"kind": "refused", "why": str(error)})
            else:
                self._note(viewer, 0, value)
                self._view.note(f"{viewer.name}: instruction {text!r}")
        viewer.saying = None

    def _note(self, viewer: _Viewer, command: int, instruction: np.ndarray | None = None) -> int:
        text = np.zeros(INSTRUCTION_BYTES, np.uint8) if instruction is None else instruction
        record = {"at_ns": now_ns(), "viewer": viewer.name.encode(), "command": int(command), "instruction": text}
        return self._notes.publish(record)


def run_page(rendezvous: Rendezvous, rings: RigRings, options: PageOptions, listening: socket.socket) -> None:
    """The body of the process; until the run is over, or the process that started it is gone."""
    server, stopped = PageServer(rings, options), stop_check(Ring.attach(rings.session))
    rendezvous()
    asyncio.run(server.run(listening, stopped))


_HTML = "text/html; charset=utf-8"


def _respond(status: http.HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8", **more: str) -> Response:
    extra = {name.replace("_", "-"): value for name, value in more.items()}
    fixed = {"Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
    return Response(status.value, status.phrase, Headers({**fixed, **_HEADERS, **extra}), body)


def _read(message: str | bytes) -> tuple[str, Any]:
    """The one entry of the object that a viewer sends."""
    try:
        found = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or len(found) != 1:
        raise _BadMessageError("not a message of this page")
    return next(iter(found.items()))


async def _every(seconds: float) -> AsyncIterator[float]:
    """The loop's time, at instants that far apart; those that were missed are left out."""
    clock = asyncio.get_running_loop().time
    due = clock()
    while True:
        yield clock()
        due = max(due + seconds, clock())
        await asyncio.sleep(due - clock())
