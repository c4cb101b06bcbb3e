"""A policy server and its clients over real sockets: several at once, slow, broken and hostile ones among them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from wire_bench import DEADLINE_S, ask, mask, open_by_hand, raw, remote, served, wait_for
from wire_fakes import HORIZON, SPEC, BatchingPolicy, CountingPolicy, chunk, packb, request

from robolearn_deploy.inference import Committed, Inference, Reply
from robolearn_deploy.wire.client import PeerError, RemotePolicy
from robolearn_deploy.wire.codec import pack, unpack
from robolearn_deploy.wire.inference_worker import FAILURES, InferenceWorker, Job
from robolearn_deploy.wire.messages import EXTENSION, request_message
from robolearn_deploy.wire.server import PolicyServer, ServerError, ServerOptions, serving
from robolearn_deploy.wire.server_client import QUEUE


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


def test_a_port_that_is_taken_is_said_before_the_policy_is_opened() -> None:
    opened: list[bool] = []

    def make() -> Inference:
        opened.append(True)
        return CountingPolicy()

    with (
        served() as server,
        pytest.raises(ServerError, match=r"cannot listen on 127\.0\.0\.1 port"),
        serving(make, ServerOptions(port=server.port)),
    ):
        pass
    assert opened == []


def test_a_server_that_is_still_opening_its_policy_can_be_stopped() -> None:
    began, release = threading.Event(), threading.Event()

    def make() -> Inference:
        began.set()
        release.wait()
        return CountingPolicy()

    server = PolicyServer(make, ServerOptions(port=0))
    running = threading.Thread(target=lambda: asyncio.run(server.run()))
    running.start()
    assert began.wait(DEADLINE_S)
    server.stop()
    running.join(DEADLINE_S)
    assert not running.is_alive()
    release.set()


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


def healthz(server: PolicyServer) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
    connection.request("GET", "/healthz")
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_health_is_told_to_everybody() -> None:
    with served(token="secret") as server:
        assert healthz(server) == (200, "OK\n")


def test_a_server_whose_policy_hangs_says_so_until_it_goes_on() -> None:
    release = threading.Event()

    class Hanging(CountingPolicy):
        def infer(self, request: Any) -> Iterator[Reply]:
            release.wait()
            return super().infer(request)

    with served(Hanging, hang_s=0.05) as server, raw(server) as connection:
        assert healthz(server)[0] == 200
        connection.send(pack(request_message(request(20), 20, None)))
        wait_for(lambda: healthz(server)[0] == 503)
        assert "an inference has been going on for" in healthz(server)[1]
        release.set()
        wait_for(lambda: healthz(server) == (200, "OK\n"))


def test_a_server_whose_policy_fails_again_and_again_says_so_until_it_succeeds() -> None:
    with served() as server, remote(server) as client:
        for _ in range(FAILURES):
            assert healthz(server)[0] == 200
            with pytest.raises(PeerError):
                ask(client, 13)
        wait_for(lambda: healthz(server) == (503, f"the last {FAILURES} inferences failed\n"))
        ask(client, 20)
        wait_for(lambda: healthz(server)[0] == 200)


def test_a_policy_that_calls_exit_does_not_end_the_service() -> None:
    class Exiting(CountingPolicy):
        def infer(self, request: Any) -> Iterator[Reply]:
            if request.sequence == 20:
                raise SystemExit(1)
            return super().infer(request)

    with served(Exiting) as server, remote(server) as client:
        with pytest.raises(PeerError, match="SystemExit"):
            ask(client, 20)
        assert (ask(client, 21)[0].actions == chunk(21)).all()


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


def test_queue_is_long_enough_for_a_chunk_in_parts() -> None:
    assert QUEUE >= HORIZON
