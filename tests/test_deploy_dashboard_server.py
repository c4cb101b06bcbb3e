"""The dashboard's server without a browser: who gets in, what is refused, who waits for whom, what the figures are."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import math
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http import HTTPStatus
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dashboard_bench import ARM_ALONE, FilledByHand, get, page_by_hand, until
from rig_fakes import SinePolicy, spec_of
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from robolearn.cli.deploy_rig import _Terminal
from robolearn_data.schema import read_text
from robolearn_deploy.channels import chunk_record
from robolearn_deploy.chunks import Chunk
from robolearn_deploy.dashboard import server as page_server
from robolearn_deploy.dashboard.access import COOKIE, Door, PageError, PageOptions, address, listen
from robolearn_deploy.dashboard.server import AHEAD, MESSAGE_BYTES, MESSAGES_PER_S
from robolearn_deploy.dashboard.view import LATENESS_MS, RigView
from robolearn_deploy.limiter import Reason, Verdict
from robolearn_deploy.operator import Command
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.rig_runtime import run_rig
from robolearn_deploy.stall import State
from robolearn_deploy.wire.certificates import machine_addresses
from robolearn_deploy.wire.security import SecurityError
from robolearn_deploy.wire.strangers import MOST
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Condition
from robolearn_hardware.rig import load_rig

TOKEN = "correct-horse"


@pytest.fixture(scope="module")
def page() -> Iterator[tuple[FilledByHand, str]]:
    with page_by_hand() as (filled, url, _):
        yield filled, url


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with page_by_hand(token=TOKEN) as (_, url, _):
        yield url


@pytest.fixture
def rings() -> Iterator[FilledByHand]:
    with ExitStack() as stack:
        yield FilledByHand(stack)


@pytest.fixture
def view(rings: FilledByHand) -> Iterator[RigView]:
    view = RigView(rings.rings)
    yield view
    view.close()


def viewer(url: str, *, origin: str | None = "", **headers: str) -> ClientConnection:
    """A websocket as the page opens it; ``origin``: another than the page's own."""
    own = url.rstrip("/")
    return connect(
        own.replace("http", "ws", 1) + "/socket",
        origin=own if origin == "" else origin,  # type: ignore[arg-type]
        additional_headers=headers,
        compression=None,
        open_timeout=20,
        close_timeout=1,
        proxy=None,
    )


def next_state(connection: ClientConnection) -> dict[str, Any]:
    """The next message of state, confirmed."""
    while True:
        message = connection.recv(timeout=20)
        if isinstance(message, str) and (found := json.loads(message))["kind"] == "state":
            connection.send(json.dumps({"seen": found["n"]}))
            return found


def closing_code(connection: ClientConnection) -> int:
    """Read on until the server hangs up."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            connection.recv(timeout=20)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 0
    raise AssertionError("the server has not hung up")


# ---- who gets in


def test_a_page_for_others_demands_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "robot.example"):
        with pytest.raises(PageError, match="give a token"):
            listen(PageOptions(host=host, port=0))
    with listen(PageOptions(host="0.0.0.0", port=0, token=TOKEN)) as open_to_all:
        assert open_to_all.getsockname()[1] > 0
    assert TOKEN not in repr(PageOptions(token=TOKEN))


def test_a_port_that_is_taken_is_one_line() -> None:
    with listen(PageOptions(port=0)) as taken, pytest.raises(PageError, match="another --page-port"):
        listen(PageOptions(port=taken.getsockname()[1]))


def test_the_port_of_the_page_is_looked_at_before_any_device_is(tmp_path: Path) -> None:
    camera = "cameras: {front: {kind: mjpeg, url: 'http://127.0.0.1:1/', width: 64, height: 48, rate_hz: 20}}\n"
    (tmp_path / "rig.yaml").write_text(ARM_ALONE + camera)
    rig, spec = load_rig(tmp_path / "rig.yaml"), spec_of(("joint1",))
    with listen(PageOptions(port=0)) as taken:
        options = RigOptions(1.0, out=tmp_path / "run.zarr", page=PageOptions(port=taken.getsockname()[1]))
        with pytest.raises(PageError, match="another --page-port"):
            run_rig(rig, functools.partial(SinePolicy, spec), spec, options)
    options = RigOptions(1.0, page=PageOptions(port=0, tls=(tmp_path / "none.pem", tmp_path / "none.pem")))
    with pytest.raises(SecurityError, match="cannot be used for TLS"):
        run_rig(rig, functools.partial(SinePolicy, spec), spec, options)


def test_the_address_can_be_opened_from_elsewhere_and_holds_the_token_only_if_that_is_asked_for() -> None:
    options = PageOptions(host="0.0.0.0", port=0, token="a+b/c")
    with listen(options) as listening:
        port = listening.getsockname()[1]
        host = (machine_addresses() or ["localhost"])[0]
        assert address(listening, options) == f"http://{host}:{port}/"
        shown = dataclasses.replace(options, show_token=True, tls=(Path("certificate"), Path("key")))
        assert address(listening, shown) == f"https://{host}:{port}/?token=a%2Bb%2Fc"


def test_what_viewers_write_is_no_markup_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    said = "viewer 1 (::1): instruction 'put [/red] into [bold]the box[/bold] " + 100 * "and wait " + "'"
    _Terminal(1.0).message(said)
    assert capsys.readouterr().err == f"robolearn: {said}\n"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8040",
        "127.0.0.1.evil.example",
        "192.168.0.9",
        "",
        "[::1",
        "localhost.evil.example",
    ],
)
def test_a_foreign_host_gets_nothing(page: tuple[FilledByHand, str], host: str) -> None:
    for path in ("/", "/page.js", "/socket"):
        answer = get(page[1], path, Host=host)
        assert answer.status == HTTPStatus.MISDIRECTED_REQUEST
        assert b"script" not in answer.body  # type: ignore[attr-defined]


@pytest.mark.parametrize("host", ["localhost:8040", "127.0.0.1:9", "[::1]:8040"])
def test_a_tunnel_from_another_port_of_this_machine_is_let_in(page: tuple[FilledByHand, str], host: str) -> None:
    assert get(page[1], Host=host).status == HTTPStatus.OK


def test_a_page_for_others_is_known_by_the_name_of_its_machine() -> None:
    own = socket.gethostname()
    door = Door(PageOptions(host="0.0.0.0", token=TOKEN))
    for host in (own, f"{own}:8040", f"{own}.local", f"{own.upper()}.lan:1", "192.168.1.5:8040", "[fd00::5]"):
        assert door.knows_host(Headers(Host=host)), host
    for host in ("evil.example", f"x{own}", f"{own}x.local", ""):
        assert not door.knows_host(Headers(Host=host)), host
    assert not Door(PageOptions()).knows_host(Headers(Host=own))
    assert not door.knows_host(Headers())


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1", None])
def test_a_foreign_origin_gets_no_websocket(page: tuple[FilledByHand, str], origin: str | None) -> None:
    with pytest.raises(InvalidStatus) as refused:
        viewer(page[1], origin=origin)
    assert refused.value.response.status_code == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/?token=wrong", "/?token=", "/?x=1", "/nothing"])
@pytest.mark.parametrize("cookie", [None, f"{COOKIE}=wrong", f"{COOKIE}={TOKEN}", "=;;=", "x" * 4000])
def test_a_wrong_token_gets_nothing(guarded: str, path: str, cookie: str | None) -> None:
    answer = get(guarded, path, **({"Cookie": cookie} if cookie else {}))
    assert answer.status == HTTPStatus.UNAUTHORIZED
    assert answer.getheader("Set-Cookie") is None
    assert b"<script" not in answer.body  # type: ignore[attr-defined]


def test_no_websocket_without_the_cookie_and_one_with_it(guarded: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        viewer(guarded)
    assert refused.value.response.status_code == HTTPStatus.UNAUTHORIZED
    with pytest.raises(InvalidStatus):
        viewer(guarded, Authorization=f"Bearer {TOKEN}")
    answer = get(guarded, f"/?token={TOKEN}")
    assert answer.status == HTTPStatus.SEE_OTHER
    assert answer.getheader("Location") == "/"
    cookie = answer.getheader("Set-Cookie") or ""
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    (name_value, *_) = cookie.split(";")
    for cookies in (name_value, f'of another page[0]={{"x": 1, é}}; {name_value}; more'):
        assert get(guarded, Cookie=cookies).status == HTTPStatus.OK
    with viewer(guarded, Cookie=name_value) as connection:
        assert json.loads(connection.recv(timeout=20))["kind"] == "hello"
    with pytest.raises(InvalidStatus) as refused:
        viewer(guarded, origin="http://evil.example", Cookie=name_value)
    assert refused.value.response.status_code == HTTPStatus.FORBIDDEN


def test_the_page_may_load_nothing_from_elsewhere_and_be_framed_by_nobody(page: tuple[FilledByHand, str]) -> None:
    answer = get(page[1])
    policy = answer.getheader("Content-Security-Policy") or ""
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    for path in ("/", "/page.js", "/page.css"):
        assert not re.search(rb"https?://|url\(", get(page[1], path).body)  # type: ignore[attr-defined]
    assert get(page[1], "/../server.py").status == HTTPStatus.NOT_FOUND


# ---- what viewers say


def test_commands_and_instructions_arrive_with_the_name_of_their_viewer(page: tuple[FilledByHand, str]) -> None:
    filled, url = page
    before, noted = len(filled.told()), filled.notes.count
    with viewer(url) as one, viewer(url) as other:
        names = [json.loads(c.recv(timeout=20))["viewer"] for c in (one, other)]
        one.send(json.dumps({"do": "E_STOP"}))
        until(lambda: len(filled.told()) == before + 1, "the e-stop")
        other.send(json.dumps({"do": "RELEASE"}))
        until(lambda: len(filled.told()) == before + 2, "the release")
        other.send(json.dumps({"instruct": "  pick\tup \n the Würfel "}))
        until(lambda: filled.notes.count == noted + 3, "the instruction")
    assert names[0] != names[1]
    assert filled.told()[before:] == [Command.E_STOP, Command.RELEASE]
    notes = [r for _, r in filled.notes.since(noted)]
    assert [bytes(n["viewer"]).decode() for n in notes] == [names[0], names[1], names[1]]
    assert [int(n["command"]) for n in notes] == [Command.E_STOP, Command.RELEASE, 0]
    assert read_text(notes[2]["instruction"]) == "pick up the Würfel"


NEVER_SAID = [
    *("", "x", "[]", "{}", "1", "null", '{"do": "DANCE"}', '{"do": 6}', '{"do": ["E_STOP"]}', '{"instruct": 5}'),
    *('{"do": "RESUME", "seen": 1}', '{"seen": "1"}', '{"look": "front"}', '{"shutdown": true}', "[" * 2000),
    *(b"\x00\x01", b'{"do": "RESUME"}'),
]


@pytest.mark.parametrize("message", NEVER_SAID)
def test_what_the_page_never_says_is_hung_up_on_and_does_nothing(
    page: tuple[FilledByHand, str], message: str | bytes
) -> None:
    filled, url = page
    before = filled.commands.count
    with viewer(url) as connection, viewer(url) as bystander:
        connection.send(message)
        assert closing_code(connection) == 1007
        assert next_state(bystander)["kind"] == "state"
    assert filled.commands.count == before


def test_long_messages_and_floods_are_hung_up_on(page: tuple[FilledByHand, str]) -> None:
    for flood, code in (
        ([json.dumps({"instruct": "x" * MESSAGE_BYTES})], 1009),
        (['{"seen": 0}'] * 20 * MESSAGES_PER_S, 1008),
    ):
        with viewer(page[1]) as connection:
            with contextlib.suppress(ConnectionClosed):
                for message in flood:
                    connection.send(message)
            assert closing_code(connection) == code


def test_one_viewer_too_many_is_told_so() -> None:
    with page_by_hand(max_viewers=1) as (_, url, _), viewer(url) as first:
        next_state(first)
        with viewer(url) as second:
            assert closing_code(second) == 1013
        next_state(first)


def test_hundreds_who_connect_and_say_nothing_hold_few_places_and_keep_no_viewer_out() -> None:
    with page_by_hand() as (_, url, _), ExitStack() as stack, viewer(url) as first:
        where = ("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))
        silent = [stack.enter_context(socket.create_connection(where, 20)) for _ in range(300)]
        with viewer(url) as second:
            next_state(second)
        next_state(first)
        open_at_once = 0
        for connection in silent:
            connection.setblocking(False)
            try:
                connection.recv(1)
            except BlockingIOError:
                open_at_once += 1
            except ConnectionError:
                pass
        assert open_at_once <= MOST


# ---- who waits for whom


def never_reads(url: str, *said: bytes) -> socket.socket:
    """A viewer by hand, who says this and then leaves what he is sent where it is."""
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect((host, int(port)))
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    upgrade = f"Host: {host}:{port}\r\nOrigin: {url.rstrip('/')}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}"
    deaf.sendall(f"GET /socket HTTP/1.1\r\n{upgrade}\r\n\r\n".encode())
    for payload in said:
        deaf.sendall(bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
    return deaf


def test_a_viewer_that_confirms_what_it_never_reads_is_hung_up_on(
    rings: FilledByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_server, "PATIENCE_S", 2.0)
    monkeypatch.setattr(page_server, "STATE_S", 0.002)  # the connection is full before the first ping
    options, stop = PageOptions(port=0), threading.Event()
    with listen(options) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what is sent and not read soon fills it
        server, url = page_server.PageServer(rings.rings, options), address(listening, options)
        serving = threading.Thread(target=lambda: asyncio.run(server.run(listening, stop.is_set)), daemon=True)
        serving.start()
        deaf = never_reads(url, b'{"seen":1000000}')
        try:
            until(lambda: server._viewers, "it is a viewer")
            (viewer,) = server._viewers
            viewer.seen = 1 << 60  # it goes on confirming
            until(lambda: not server._viewers, "it is hung up on")
        finally:
            stop.set()
            serving.join(20)
            deaf.close()


def test_a_viewer_that_never_reads_does_not_stop_another(page: tuple[FilledByHand, str]) -> None:
    filled, url = page
    deaf = never_reads(url, b'{"look":["front"]}')
    done = threading.Event()

    def act() -> None:
        while not done.wait(0.01):
            filled.tick(state=int(State.RUNNING))
            filled.frame()

    threading.Thread(target=act).start()
    try:
        with viewer(url) as reading:
            reading.send(json.dumps({"look": ["front", "nowhere"]}))
            pictures = states = 0
            end = time.monotonic() + 60
            while (pictures < 40 or states < 60) and time.monotonic() < end:
                message = reading.recv(timeout=20)
                if isinstance(message, bytes):
                    pictures += 1
                    reading.send(json.dumps({"got": "front"}))
                elif (found := json.loads(message))["kind"] == "state":
                    states += 1
                    reading.send(json.dumps({"seen": found["n"]}))
            assert pictures >= 40
            assert states >= 60
    finally:
        done.set()
        deaf.close()


def test_a_viewer_is_sent_no_more_than_it_takes_in(page: tuple[FilledByHand, str]) -> None:
    filled, url = page
    with viewer(url) as connection:
        connection.send(json.dumps({"look": ["front"]}))
        for _ in range(60):
            filled.frame()
            time.sleep(0.05)
        got: list[Any] = []
        while sum(isinstance(m, str) for m in got) < AHEAD + 2:  # with hello
            got.append(connection.recv(timeout=20))
        with contextlib.suppress(TimeoutError):
            got.append(connection.recv(timeout=1))
            got.append(connection.recv(timeout=1))
        assert sum(isinstance(m, bytes) for m in got) == 1, "the next picture waits until this one was taken in"
        assert sum(isinstance(m, str) for m in got) == AHEAD + 2
        newest = json.loads(next(m for m in reversed(got) if isinstance(m, str)))["n"]
        connection.send(json.dumps({"seen": newest}))
        assert next_state(connection)["n"] == newest + 1


def test_cameras_that_nobody_looks_at_are_not_sent(page: tuple[FilledByHand, str]) -> None:
    filled, url = page
    with viewer(url) as connection:
        for _ in range(AHEAD):
            filled.frame()
            assert isinstance(connection.recv(timeout=20), str)


# ---- what is shown


def test_lateness_and_delay_are_what_their_definitions_say(rings: FilledByHand, view: RigView) -> None:
    rng = np.random.default_rng(3)
    late_ms, now = rng.exponential(0.5, 200), now_ns()
    for i, late in enumerate(late_ms):
        due = now - 1_000_000_000 + i * 1_000_000
        woke = due + int(late * 1e6)
        rings.tick(
            state=int(State.RUNNING),
            due_ns=due,
            woke_ns=woke,
            missed=i % 2,
            chunk=i // 50,
            chunk_capture_ns=due - 10**8,
        )
        if i % 37 == 0:
            view.poll()
    view.poll()
    found = view.figures()
    late_sorted = sorted(int(late * 1e6) / 1e6 for late in late_ms)

    def percentile(share: float) -> float:  # linear between order statistics
        at = share * (len(late_sorted) - 1)
        low = math.floor(at)
        high = min(low + 1, len(late_sorted) - 1)
        return late_sorted[low] + (at - low) * (late_sorted[high] - late_sorted[low])

    assert found["lateness"] == pytest.approx([percentile(0.5), percentile(0.99), late_sorted[-1]], abs=1e-3)
    edges = [-math.inf, *LATENESS_MS, math.inf]
    counts = [sum(low < v <= high for v in late_sorted) for low, high in pairwise(edges)]
    assert found["late_counts"] == counts
    assert found["missed"] == 100
    expected = [100 + late_ms[i] for i in (0, 50, 100, 150)]  # from capture to the first tick of each chunk
    assert found["delay"][2] == pytest.approx(max(expected), abs=0.01)
    assert sum(found["delay_counts"]) == 4
    assert found["delay_counts"][int(min(expected) // found["delay_step"])] > 0


def test_the_state_says_since_when_and_why_and_the_limits_what_they_changed(rings: FilledByHand, view: RigView) -> None:
    began = now_ns()
    rings.tick(state=int(State.RUNNING), cause=b"a", woke_ns=began)
    rings.tick(state=int(State.HOLDING), cause=b"the plan has expired", woke_ns=began + 5_000_000)
    for _ in range(3):
        rings.tick(
            state=int(State.HOLDING),
            cause=b"the plan has expired",
            verdict=int(Verdict.LIMITED),
            reason=int(Reason.MOTION),
        )
    view.poll()
    found = view.state()
    assert (found["state"], found["cause"], found["limit"]) == ("HOLDING", "the plan has expired", "MOTION")
    assert found["entered"] == view.ms(began + 5_000_000)
    assert view.figures()["limited"] == {"motion": 3}
    assert [event.text for event in view.events(0)] == ["RUNNING: a", "HOLDING: the plan has expired"]
    assert view.events(1)[0].text.startswith("HOLDING")
    assert view.events(2) == []


def test_points_of_the_curves_come_every_20_ms_whatever_the_rate_and_nan_is_null(
    rings: FilledByHand, view: RigView
) -> None:
    start = (now_ns() // 20_000_000) * 20_000_000
    for i in range(100):
        gripper = np.nan if i >= 50 else 0.5
        value = np.array([i, -i, gripper], np.float32)
        rings.tick(
            due_ns=start + i * 2_000_000,
            woke_ns=start + i * 2_000_000,
            requested=value,
            sent=value + 1,
            measured=value + 2,
        )
        if i % 7 == 0:
            view.poll()
    view.poll()
    points = view.samples(0)
    assert [p[1][0] for p in points] == [float(i) for i in range(0, 100, 10)]
    assert [p[2][0] - p[1][0] for p in points] == [1.0] * 10
    assert [p[3][0] - p[1][0] for p in points] == [2.0] * 10
    assert [p[1][2] for p in points] == [0.5] * 5 + [None] * 5
    json.dumps(points, allow_nan=False)
    assert view.samples(8) == points[8:]


def test_the_chunk_in_force_is_the_one_that_the_newest_tick_names(rings: FilledByHand, view: RigView) -> None:
    rest = {"started_ns": 0, "ended_ns": 0, "expected_delay": 0, "execute": 1}
    for sequence, parts in ((4, (3, 5)), (5, (2,))):
        for final in parts:  # a chunk that came in parts
            times = now_ns() + np.arange(final, dtype=np.int64) * 50_000_000
            actions = np.full((final, 3), sequence, np.float32)
            chunk = Chunk(sequence, 0, int(times[0]), times, actions, int(times[-1]))
            rings.chunks.publish({**chunk_record(chunk, rings.HORIZON), **rest})
    rings.tick(chunk=4)
    view.poll()
    assert view.plan_key() == (4, 5)
    assert view.plan()["actions"] == [[4.0] * 3] * 5
    assert np.diff(view.plan()["times"]) == pytest.approx([50] * 4)
    rings.tick(chunk=5)
    view.poll()
    assert view.plan_key() == (5, 2)
    rings.tick(chunk=-1)
    view.poll()
    assert view.plan() == {"times": [], "actions": []}


BUTTONS = {
    State.E_STOPPED: {"RELEASE"},
    State.STOPPED: {"RESUME", "PAUSE", "RESET", "TAKE_OVER"},
    State.RUNNING: {"PAUSE", "RESET", "TAKE_OVER"},
    State.TELEOP: {"PAUSE", "HAND_BACK"},
}


@pytest.mark.parametrize("teleoperators", [False, True])
@pytest.mark.parametrize("state", BUTTONS)
def test_the_buttons_offer_what_makes_sense(state: State, teleoperators: bool) -> None:
    with ExitStack() as stack:
        rings = FilledByHand(stack, teleoperators=teleoperators)
        view = RigView(rings.rings)
        stack.callback(view.close)
        rings.tick(state=int(state), at_rest=True)
        view.poll()
        expected = {"E_STOP", "END"} | BUTTONS[state] - (set() if teleoperators else {"TAKE_OVER"})
        assert set(view.state()["can"]) == expected
        rings.progress.publish({"at_ns": now_ns(), "phase": 1, "episodes": 2, "successes": 1, "heard": 7})
        found = view.state()
        assert set(found["can"]) == expected | {"SUCCESS", "FAILURE", "DISCARD"}
        assert (found["phase"], found["episodes"], found["successes"], found["heard"]) == ("EPISODE", 2, 1, 7)


def test_whether_only_a_person_can_make_it_go_on_is_told_by_the_servo_and_not_by_words(
    rings: FilledByHand, view: RigView
) -> None:
    for state, paused, said in ((State.STOPPED, 1, True), (State.STOPPED, 0, False), (State.DECELERATING, 1, False)):
        rings.tick(state=int(state), paused=paused, cause=b"whatever")
        view.poll()
        assert view.state()["paused"] is said
    rings.tick(state=int(State.STOPPED), paused=1)
    view.poll()
    assert "PAUSE" not in view.state()["can"]


def test_an_e_stop_can_be_released_when_the_arm_has_come_to_rest(rings: FilledByHand, view: RigView) -> None:
    stopped = {"state": int(State.E_STOPPED)}
    for more, offered in (({}, False), ({"at_rest": True}, True), ({"condition": int(Condition.EMERGENCY_STOP)}, True)):
        rings.tick(**stopped, **more)
        view.poll()
        assert ("RELEASE" in view.state()["can"]) is offered


def test_a_picture_is_a_jpeg_of_the_newest_frame_and_large_ones_are_made_smaller(
    view: RigView, rings: FilledByHand
) -> None:
    from PIL import Image

    from robolearn_deploy.dashboard.view import _jpeg

    assert view.picture("front", -1) is None
    for value in (10, 200):
        rings.frame(value)
    found = view.picture("front", -1)
    assert found is not None
    index, message = found
    assert index == 1
    camera, at_ms = struct.unpack("<Bd", message[:9])
    assert camera == 0
    assert 0 <= at_ms <= view.ms(now_ns())
    shown = np.asarray(Image.open(BytesIO(message[9:])))
    assert shown.shape == (48, 64, 3)
    assert abs(shown.astype(int) - 200).max() <= 2
    assert view.picture("front", index) is None
    assert Image.open(BytesIO(_jpeg(np.zeros((1080, 1920, 3), np.uint8)))).size == (640, 360)
