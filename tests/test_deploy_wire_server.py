"""A policy server and its clients over real sockets: several at once, slow, broken and hostile ones among them."""

from __future__ import annotations

import contextlib
import functools
import http.client
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from wire_fakes import HORIZON, SPEC, BatchingPolicy, CountingPolicy, chunk, packb, request

from robolearn_deploy.inference import Committed, Inference, Reply
from robolearn_deploy.wire.client import PeerError, RemotePolicy, RemotePolicyError
from robolearn_deploy.wire.codec import pack, unpack
from robolearn_deploy.wire.inference_worker import InferenceWorker, Job
from robolearn_deploy.wire.messages import EXTENSION, request_message
from robolearn_deploy.wire.security import (
    SecurityError,
    make_token,
    read_token,
    self_signed,
    server_tls,
    token_matches,
)
from robolearn_deploy.wire.server import QUEUE, PolicyServer, ServerError, ServerOptions, serving

DEADLINE_S = 20.0
"""Of everything that is expected to happen: these tests share a machine with others."""

Make = Callable[[], Inference]


@contextlib.contextmanager
def served(make: Make = CountingPolicy, **options: Any) -> Iterator[PolicyServer]:
    with serving(make, ServerOptions(port=0, **options)) as server:
        yield server


@contextlib.contextmanager
def remote(server: PolicyServer, **options: Any) -> Iterator[RemotePolicy]:
    policy = RemotePolicy(f"ws://127.0.0.1:{server.port}", **options)
    try:
        yield policy
    finally:
        policy.close()


def ask(policy: RemotePolicy, number: int, **options: Any) -> list[Reply]:
    return list(policy.infer(request(number, deadline_s=DEADLINE_S, **options)))


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.005)


@contextlib.contextmanager
def raw(server: PolicyServer, **options: Any) -> Iterator[ClientConnection]:
    """A bare websocket, past the metadata."""
    with connect(f"ws://127.0.0.1:{server.port}", compression=None, proxy=None, **options) as connection:
        connection.recv(DEADLINE_S)
        yield connection


def open_by_hand(server: PolicyServer) -> socket.socket:
    """A websocket that no library looks after: it says and reads what the test makes it."""
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S)
    opened.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    return opened


def mask(message: bytes) -> bytes:
    """A client's frame around a short ``message`` (RFC 6455, section 5.2), masked with zeros."""
    return bytes((0x82, 0x80 | len(message))) + bytes(4) + message


def test_a_remote_policy_has_the_spec_and_gives_the_chunks_of_the_one_that_is_served() -> None:
    policy = CountingPolicy()
    with served(lambda: policy) as server, remote(server) as client:
        assert client.spec.to_json() == SPEC.to_json()
        for number in range(20, 40):
            (reply,) = ask(client, number)
            np.testing.assert_array_equal(reply.actions, chunk(number))
            assert reply.final == HORIZON
            assert reply.timing_ms.keys() == {"total", "network"}
        assert [r.sequence for r in policy.seen] == list(range(20, 40))
    assert policy.closed.is_set()


def test_what_is_committed_arrives_at_the_policy() -> None:
    policy = CountingPolicy()
    actions = chunk(5)
    actions[3:] = np.nan
    with served(lambda: policy) as server, remote(server) as client:
        ask(client, 20, committed=Committed(actions, delay=2, execute=4))
    (seen,) = policy.seen
    assert seen.committed is not None
    np.testing.assert_array_equal(seen.committed.actions, actions)
    assert (seen.committed.delay, seen.committed.execute) == (2, 4)


def test_parts_of_a_chunk_come_before_it_is_whole() -> None:
    with served(functools.partial(CountingPolicy, parts=(2, 5, HORIZON))) as server, remote(server) as client:
        replies = ask(client, 20)
        assert [r.final for r in replies] == [2, 5, HORIZON]
        for reply in replies:
            np.testing.assert_array_equal(reply.actions[: reply.final], chunk(20)[: reply.final])


def test_one_process_has_one_clock_and_the_estimate_says_so() -> None:
    policy = CountingPolicy()
    with served(lambda: policy) as server, remote(server) as client:
        asked = request(20, deadline_s=DEADLINE_S)
        list(client.infer(asked))
        clock = client.clock()
    assert clock is not None
    assert abs(clock.offset_ns) <= clock.uncertainty_ns
    assert abs(policy.seen[0].capture_ns - asked.capture_ns) < 1e9
    assert policy.seen[0].deadline_ns >= asked.deadline_ns - 1e6


def test_an_exception_of_the_policy_is_one_line_without_its_text_and_the_next_request_is_answered() -> None:
    with served() as server, remote(server) as client:
        with pytest.raises(PeerError) as caught:
            ask(client, 13)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (ask(client, 20)[0].actions == chunk(20)).all()
        assert server.statistics.failed == 1


def test_a_policy_that_cannot_be_opened_is_an_error_where_it_is_served() -> None:
    def fail() -> Inference:
        raise FileNotFoundError("no such checkpoint")

    with pytest.raises(FileNotFoundError, match="no such checkpoint"), served(fail):
        pass


def test_a_policy_slower_than_the_deadline_is_a_timeout_and_its_late_answer_is_never_taken_for_another() -> None:
    policy = CountingPolicy(seconds=0.5)
    with served(lambda: policy) as server, remote(server) as client:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            list(client.infer(request(20, deadline_s=0.1)))
        assert time.monotonic() - started < DEADLINE_S
        assert (ask(client, 21)[0].actions == chunk(21)).all()
        assert client.counters.late >= 1


def test_requests_whose_deadline_has_passed_are_not_computed() -> None:
    policy = CountingPolicy(seconds=0.6)
    with served(lambda: policy) as server, remote(server) as first, remote(server) as second:
        busy = threading.Thread(target=ask, args=(first, 20))
        busy.start()
        wait_for(lambda: len(policy.seen) == 1)
        with pytest.raises(TimeoutError):
            list(second.infer(request(21, deadline_s=0.1)))
        busy.join()
        wait_for(lambda: server.statistics.failed == 1)
        assert [r.sequence for r in policy.seen] == [20]


def test_of_the_requests_of_one_client_only_the_newest_waits() -> None:
    policy = CountingPolicy(seconds=0.5)
    with served(lambda: policy) as server, raw(server) as connection:
        for number in range(20, 26):
            connection.send(pack(request_message(request(number), number, None)))
            if number == 20:
                wait_for(lambda: len(policy.seen) == 1)
        answers = [unpack(connection.recv(DEADLINE_S, decode=False)) for _ in range(6)]
    assert [r.observation["state"][0, 0] for r in policy.seen] == [20, 25]
    assert [a[EXTENSION]["id"] for a in answers if "actions" in a] == [20, 25]
    assert {a[EXTENSION]["id"] for a in answers if "error" in a[EXTENSION]} == {21, 22, 23, 24}


def test_several_clients_at_once_get_their_own_chunks() -> None:
    with served(functools.partial(CountingPolicy, seconds=0.002)) as server:
        wrong: list[int] = []

        def work(base: int) -> None:
            with remote(server) as client:
                for number in range(base, base + 40):
                    if not (ask(client, number)[0].actions == chunk(number)).all():
                        wrong.append(number)

        threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(1, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert server.statistics.answered == 200


def test_waiting_requests_of_several_clients_are_inferred_together_and_each_gets_its_own() -> None:
    policy = BatchingPolicy(seconds=0.1)
    with served(lambda: policy, batch_window_s=0.02) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(remote(server)) for _ in range(4)]
        barrier = threading.Barrier(4)

        def work(index: int) -> None:
            for round_ in range(5):
                barrier.wait(DEADLINE_S)
                number = 100 * index + round_
                replies.append((ask(clients[index], number)[0].actions == chunk(number)).all())

        replies: list[bool] = []
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert replies == [True] * 20
        assert max(policy.sizes) > 1
        assert max(server.batches) <= 4


def test_a_request_that_the_policy_fails_on_does_not_fail_those_inferred_with_it() -> None:
    policy = BatchingPolicy(seconds=0.3)
    outcomes: dict[int, str] = {}

    def work(client: RemotePolicy, number: int) -> None:
        try:
            outcomes[number] = str((ask(client, number)[0].actions == chunk(number)).all())
        except PeerError as error:
            outcomes[number] = str(error)

    with served(lambda: policy) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(remote(server)) for _ in range(4)]
        threads = [threading.Thread(target=work, args=(c, n)) for c, n in zip(clients, (20, 13, 21, 22), strict=True)]
        for thread in threads:
            thread.start()
            wait_for(lambda: len(policy.sizes) > 0)  # the first is being inferred while the others come
        for thread in threads:
            thread.join()
    assert max(policy.sizes) > 1
    assert "RuntimeError" in outcomes.pop(13)
    assert outcomes == {20: "True", 21: "True", 22: "True"}


def test_a_client_that_goes_while_its_request_waits_for_company_does_not_end_the_service() -> None:
    worker = InferenceWorker(BatchingPolicy, max_batch=4, batch_window_s=0.2)
    worker.start()
    worker.set_clients(2)
    answered = threading.Event()
    job = Job(request(20), deliver=lambda reply: answered.set(), fail=lambda error: None, memory={})
    worker.submit("first", job)
    time.sleep(0.05)  # it has been seen, and waits
    worker.forget("first")
    time.sleep(0.3)
    answered.clear()  # a machine that is slow enough has answered all the same
    worker.submit("second", job)
    assert answered.wait(DEADLINE_S)
    assert worker.stop(DEADLINE_S)


def test_a_chunk_with_infinity_leaves_the_server_as_an_error() -> None:
    with served() as server, remote(server) as client:
        with pytest.raises(PeerError, match="gave NaN or infinity"):
            ask(client, 14)
        assert (ask(client, 20)[0].actions == chunk(20)).all()


def test_what_a_policy_remembers_of_one_robot_is_kept_from_the_others_and_ends_with_the_episode() -> None:
    policy = BatchingPolicy()
    with served(lambda: policy) as server, remote(server) as first, remote(server) as second:
        plan = Committed(chunk(1), delay=1, execute=1)
        ask(first, 20)
        ask(second, 30)
        ask(first, 21, committed=plan)
        ask(second, 31, committed=plan)
        assert policy.remembered == [[20, 21], [30, 31], [20, 21], [30, 31]]
        ask(first, 22)
        assert policy.remembered[-1] == [22]


def test_requests_of_openpi_clients_are_numbered_by_the_server() -> None:
    policy = CountingPolicy()
    with served(lambda: policy) as server, raw(server) as connection:
        for _ in range(3):
            connection.send(pack({"state": np.full((2, 3), 20.0), "prompt": "fold"}))
            connection.recv(DEADLINE_S)
    assert [r.sequence for r in policy.seen] == [0, 1, 2]


def test_a_port_that_is_taken_is_a_mistake_of_the_user() -> None:
    with (
        served() as server,
        pytest.raises(ServerError, match=r"cannot listen on 127\.0\.0\.1 port"),
        serving(CountingPolicy, ServerOptions(port=server.port)),
    ):
        pass


def test_a_client_that_never_reads_is_dropped_and_holds_up_nobody() -> None:
    with served(keepalive_s=1.0) as server, remote(server) as client:
        deaf = open_by_hand(server)
        # The answers to pings fill the buffers between the two, and then the client's queue.
        pings = mask(pack({EXTENSION: {"ping": 1}})) * 1000
        deaf.settimeout(0.2)
        until = time.monotonic() + DEADLINE_S
        with contextlib.suppress(TimeoutError, ConnectionError):
            while time.monotonic() < until:
                deaf.sendall(pings)
        assert time.monotonic() < until, "the server went on reading"
        for number in range(20, 60):
            assert (ask(client, number)[0].actions == chunk(number)).all()
        wait_for(lambda: server.statistics.clients == 1)
        assert (ask(client, 60)[0].actions == chunk(60)).all()
        deaf.close()


def test_a_burst_of_requests_is_no_reason_to_drop_a_client() -> None:
    with served() as server, raw(server) as connection:
        for number in range(20, 120):
            connection.send(pack(request_message(request(number), number, None)))
        answers = [unpack(connection.recv(DEADLINE_S, decode=False)) for _ in range(100)]
        assert {a[EXTENSION]["id"] for a in answers} == set(range(20, 120))
        assert server.statistics.dropped == 0


def test_a_half_open_connection_is_closed_and_holds_up_nobody() -> None:
    with served(keepalive_s=0.5) as server, remote(server) as client:
        dead = open_by_hand(server)
        wait_for(lambda: server.statistics.clients == 2)  # and from here on it says nothing
        assert (ask(client, 20)[0].actions == chunk(20)).all()
        wait_for(lambda: server.statistics.clients == 1)
        assert (ask(client, 21)[0].actions == chunk(21)).all()
        dead.close()


def test_health_is_told_to_everybody() -> None:
    with served(token="secret") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"OK\n")


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "", "secret", "Basic secret", "Bearer secret x"])
def test_without_the_right_token_nobody_gets_in(header: str | None) -> None:
    with served(token="secret") as server:
        headers = {"Authorization": header} if header is not None else None
        with pytest.raises(InvalidStatus) as caught, raw(server, additional_headers=headers):
            pass
        assert caught.value.response.status_code == 401
        assert server.statistics.refused == 1


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "Api-Key secret"])
def test_with_the_right_token_our_clients_and_those_of_openpi_get_in(header: str) -> None:
    with served(token="secret") as server, raw(server, additional_headers={"Authorization": header}):
        pass


def test_a_remote_policy_shows_its_token_and_says_when_it_is_refused() -> None:
    with served(token="secret") as server:
        with remote(server, token="secret") as client:
            ask(client, 20)
        with pytest.raises(RemotePolicyError, match="refuses the token"):
            RemotePolicy(f"ws://127.0.0.1:{server.port}", token="wrong")


def test_a_host_that_others_can_reach_demands_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "robot.local"):
        with pytest.raises(SecurityError, match="--token-file"):
            PolicyServer(CountingPolicy, ServerOptions(host=host))
    PolicyServer(CountingPolicy, ServerOptions(host="0.0.0.0", token="x"))
    PolicyServer(CountingPolicy, ServerOptions(host="::1"))


def test_a_web_page_cannot_use_a_policy_on_this_machine() -> None:
    with served() as server, pytest.raises(InvalidStatus), raw(server, origin="http://evil.example"):
        pass


def test_no_more_clients_than_allowed_get_in_and_a_place_becomes_free_again() -> None:
    with served(max_clients=1) as server:
        with raw(server), pytest.raises(InvalidStatus) as caught, raw(server):
            pass
        assert caught.value.response.status_code == 503
        wait_for(lambda: server.statistics.clients == 0)
        with raw(server):
            pass


@pytest.mark.parametrize(
    "message",
    [
        "text",
        b"",
        b"\xc1\xff\x00",
        packb([1, 2]),
        packb({"state": msgpack.ExtType(1, b"run me")}),
        packb({"state": {b"__ndarray__": True, b"data": bytes(8), b"dtype": "|O", b"shape": [1]}}),
        packb({EXTENSION: {"ping": "x"}}),
        b"\xdd\xff\xff\xff\xff",
    ],
    ids=repr,
)
def test_garbage_is_refused_in_one_line_and_the_others_go_on(message: bytes | str) -> None:
    with served() as server, remote(server) as client:
        with raw(server) as connection:
            connection.send(message)
            answer = connection.recv(DEADLINE_S)
            assert isinstance(answer, str)
            assert "\n" not in answer
            assert "Traceback" not in answer
            with pytest.raises(ConnectionClosed):
                connection.recv(DEADLINE_S)
        assert (ask(client, 20)[0].actions == chunk(20)).all()


def test_an_observation_that_does_not_fit_is_refused_by_name_and_the_connection_stays() -> None:
    with served() as server, raw(server) as connection:
        connection.send(packb({"instruction": "fold"}))
        assert "'state' is missing" in str(connection.recv(DEADLINE_S))
        connection.send(pack({"state": np.full((2, 3), 20.0), "prompt": "fold"}))
        answer = unpack(connection.recv(DEADLINE_S, decode=False))
        np.testing.assert_array_equal(answer["actions"], chunk(20)[SPEC.start :])


def test_a_frame_that_claims_a_gigabyte_is_refused_before_it_is_read() -> None:
    with served(max_bytes=1000) as server, remote(server) as client:
        with raw(server) as connection:
            connection.socket.sendall(struct.pack(">BBQ", 0x82, 0x80 | 127, 1 << 30) + bytes(4) + bytes(100))
            with pytest.raises(ConnectionClosed) as caught:
                connection.recv(DEADLINE_S)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
        assert (ask(client, 20)[0].actions == chunk(20)).all()


def test_a_message_in_many_small_frames_is_refused_when_it_grows_too_large() -> None:
    with served(max_bytes=1000) as server, raw(server) as connection:
        with contextlib.suppress(ConnectionClosed):
            connection.send(bytes(100) for _ in range(10_000))
        with pytest.raises(ConnectionClosed):
            connection.recv(DEADLINE_S)


def test_endless_headers_are_not_kept_and_the_others_go_on() -> None:
    with served(handshake_s=2.0) as server, remote(server) as client:
        hostile = socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S)
        hung_up = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                hostile.sendall(b"GET / HTTP/1.1\r\n")
                while True:
                    hostile.sendall(b"X-Pad: " + b"a" * 1_000_000 + b"\r\n")
            hung_up.set()

        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        threading.Thread(target=flood, daemon=True).start()
        for number in range(20, 40):
            assert (ask(client, number)[0].actions == chunk(number)).all()
        assert hung_up.wait(DEADLINE_S)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000
        assert (ask(client, 40)[0].actions == chunk(40)).all()
        hostile.close()


def test_stopping_finishes_what_is_being_inferred_and_tells_the_clients() -> None:
    policy = CountingPolicy(seconds=0.5)
    results: list[list[Reply]] = []
    with served(lambda: policy) as server:
        client = RemotePolicy(f"ws://127.0.0.1:{server.port}")
        worker = threading.Thread(target=lambda: results.append(ask(client, 20)))
        worker.start()
        wait_for(lambda: len(policy.seen) == 1)
    worker.join()
    assert (results[0][-1].actions == chunk(20)).all()
    with pytest.raises(ConnectionError):
        list(client.infer(request(21, deadline_s=0.2)))
    client.close()
    assert policy.closed.is_set()


def test_a_client_that_does_not_read_does_not_keep_the_server_from_stopping() -> None:
    with served(drain_s=0.2) as server:
        deaf = open_by_hand(server)
        deaf.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                deaf.sendall(mask(pack({EXTENSION: {"ping": 1}})) * 1000)
        began = time.monotonic()
    assert time.monotonic() - began < DEADLINE_S, "it waits for its patience with the client, or for ever"
    deaf.close()


def test_a_policy_that_hangs_does_not_keep_the_server_from_stopping() -> None:
    release = threading.Event()

    class Hanging(CountingPolicy):
        def infer(self, request: Any) -> Iterator[Reply]:
            release.wait()
            return super().infer(request)

    with served(Hanging, drain_s=0.2) as server:
        plain = open_by_hand(server)
        plain.sendall(mask(pack({"state": np.zeros((2, 3), np.float32), "prompt": "x"})))
        wait_for(lambda: not server._worker.idle)
    release.set()
    plain.close()


def test_tls_with_a_certificate_of_our_own_making_is_trusted_by_whoever_has_it(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path / "tls", "127.0.0.1")
    assert key.stat().st_mode & 0o077 == 0
    with served(tls=server_tls(certificate, key), token="secret") as server:
        url = f"wss://localhost:{server.port}"
        client = RemotePolicy(url, token="secret", certificate=certificate)
        assert (ask(client, 20)[0].actions == chunk(20)).all()
        client.close()
        with pytest.raises(RemotePolicyError, match="not trusted"):
            RemotePolicy(url, token="secret")
        other, _ = self_signed(tmp_path / "other", "127.0.0.1")
        with pytest.raises(RemotePolicyError, match="not trusted"):
            RemotePolicy(url, token="secret", certificate=other)
        with pytest.raises(RemotePolicyError, match="no policy can be used"):
            RemotePolicy(f"ws://localhost:{server.port}", token="secret", connect_s=2.0)


def test_a_certificate_is_made_once(tmp_path: Path) -> None:
    first = self_signed(tmp_path, "robot.local")
    before = first[0].read_bytes()
    assert self_signed(tmp_path, "robot.local") == first
    assert first[0].read_bytes() == before
    ssl.create_default_context(cafile=str(first[0]))


def test_files_that_are_no_certificate_are_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("nothing")
    with pytest.raises(SecurityError, match="cannot be used for TLS"):
        server_tls(tmp_path / "a.pem", tmp_path / "b.pem")
    with pytest.raises(SecurityError, match="is not a certificate"):
        RemotePolicy("wss://127.0.0.1:1", certificate=tmp_path / "a.pem")


def test_a_token_is_made_once_and_read_by_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = make_token(tmp_path / "new" / "token")
    assert (tmp_path / "new" / "token").stat().st_mode & 0o077 == 0
    assert make_token(tmp_path / "new" / "token") == token
    assert read_token(tmp_path / "new" / "token") == token
    assert len(token) >= 40
    assert token_matches(f"Bearer {token}", token)
    monkeypatch.setenv("ROBOLEARN_TOKEN", "other")
    assert read_token(None) == "other"
    monkeypatch.delenv("ROBOLEARN_TOKEN")
    assert read_token(None) is None
    for bad in ("", "a b", "\x07"):
        (tmp_path / "bad").write_text(bad)
        with pytest.raises(SecurityError):
            read_token(tmp_path / "bad")


@pytest.mark.parametrize("url", ["http://x:1", "127.0.0.1:8000", "ws://", ""])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RemotePolicyError, match=r"ws://HOST:PORT"):
        RemotePolicy(url)


def test_no_server_is_an_error_that_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(RemotePolicyError, match=r"no policy can be used at ws://.*"):
            RemotePolicy(f"ws://127.0.0.1:{unused.getsockname()[1]}", connect_s=0.3)


def test_queue_is_long_enough_for_a_chunk_in_parts() -> None:
    assert QUEUE >= HORIZON
