"""A bad network between a policy and whoever asks it: no wrong chunk, no call past its deadline, and then it goes on.

The proxy in between spoils whole messages of real connections; chunks say which observation they belong to.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from wire_fakes import HORIZON, SPEC, CountingPolicy, chunk, request

from robolearn_data.schema import Stream
from robolearn_deploy.wire import client as wire_client
from robolearn_deploy.wire.client import RemotePolicy
from robolearn_deploy.wire.fault_proxy import FaultProxy, NetworkFaults, proxying
from robolearn_deploy.wire.server import PolicyServer, ServerOptions, serving
from robolearn_hardware.clock import now_ns

OVERTIME_S = 3.0
"""How late a call may return on a machine that does other things: what hangs takes far longer."""
RECOVERY_S = 30.0
CLEAR = NetworkFaults()


@dataclass
class Path:
    server: PolicyServer
    proxy: FaultProxy
    client: RemotePolicy


@contextlib.contextmanager
def path(*, faults: NetworkFaults = CLEAR, parts: tuple[int, ...] = (HORIZON,)) -> Iterator[Path]:
    """Server, proxy and a client that is connected; then the faults begin."""
    make = functools.partial(CountingPolicy, seconds=0.002, parts=parts)
    with serving(make, ServerOptions(port=0)) as server, proxying("127.0.0.1", server.port) as proxy:
        client = RemotePolicy(f"ws://127.0.0.1:{proxy.port}", connect_s=1.0 if faults.drop else 5.0)
        proxy.faults = faults
        try:
            yield Path(server, proxy, client)
        finally:
            client.close()


def ask(client: RemotePolicy, number: int, deadline_s: float) -> str:
    """Ask, and check whatever comes. Returns "answered" or the name of the error."""
    asked = request(number, deadline_s=deadline_s)
    finals = []
    try:
        for reply in client.infer(asked):
            np.testing.assert_array_equal(reply.actions[: reply.final], chunk(number)[: reply.final])
            finals.append(reply.final)
        assert finals[-1] == HORIZON
        outcome = "answered"
    except (TimeoutError, ConnectionError) as error:
        outcome = type(error).__name__
    assert finals == sorted(set(finals)), "parts go forward"
    assert now_ns() < asked.deadline_ns + OVERTIME_S * 1e9
    return outcome


def ask_often(client: RemotePolicy, count: int, deadline_s: float, first: int = 100) -> list[str]:
    return [ask(client, number, deadline_s) for number in range(first, first + count)]


def until_answered(client: RemotePolicy, first: int = 10_000) -> None:
    until = time.monotonic() + RECOVERY_S
    number = first
    while ask(client, number, 0.5) != "answered":
        assert time.monotonic() < until, "no answer long after the fault was over"
        number += 1
        time.sleep(0.01)  # while it is not connected, asking fails at once


FAULTS = {
    "drop": NetworkFaults(drop=0.2),
    "duplicate": NetworkFaults(duplicate=0.5),
    "reorder": NetworkFaults(reorder=0.3, reorder_s=0.05),
    "delay": NetworkFaults(delay_s=0.02),
    "jitter": NetworkFaults(delay_s=0.005, jitter_s=0.08),
    "cut": NetworkFaults(cut=0.05),
    "all": NetworkFaults(drop=0.05, duplicate=0.2, reorder=0.2, reorder_s=0.05, delay_s=0.005, jitter_s=0.03, cut=0.01),
}


@pytest.mark.parametrize("name", FAULTS)
def test_under_a_fault_no_wrong_chunk_is_delivered_nor_a_deadline_exceeded_and_work_resumes(name: str) -> None:
    with path(faults=FAULTS[name]) as p:
        outcomes = ask_often(p.client, 60, deadline_s=0.06)
        counts = p.proxy.counts
        p.proxy.faults = CLEAR
        until_answered(p.client)
        happened = {
            "drop": counts.dropped,
            "duplicate": counts.duplicated,
            "reorder": counts.reordered,
            "cut": counts.cut,
        }
        assert happened.get(name, counts.passed) > 0
        assert set(outcomes) <= {"answered", "TimeoutError", "ConnectionError", "PeerError"}


@pytest.mark.parametrize("name", ["drop", "duplicate", "reorder", "all"])
def test_the_parts_of_a_chunk_are_never_mixed_up(name: str) -> None:
    with path(faults=FAULTS[name], parts=(2, 4, 6, HORIZON)) as p:
        ask_often(p.client, 40, deadline_s=0.08)
        p.proxy.faults = CLEAR
        until_answered(p.client)


def test_answers_that_come_after_their_request_was_given_up_are_dropped() -> None:
    with path() as p:
        p.proxy.faults = NetworkFaults(delay_s=0.15)
        assert ask_often(p.client, 10, deadline_s=0.05).count("answered") == 0
        p.proxy.faults = CLEAR
        until_answered(p.client)
        until = time.monotonic() + RECOVERY_S
        while p.client.counters.late < 1:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_repeated_answers_are_dropped() -> None:
    """Copies of parts too: `ask` looks at every reply."""
    with path(faults=NetworkFaults(duplicate=1.0), parts=(2, 4, HORIZON)) as p:
        assert ask_often(p.client, 20, deadline_s=10.0).count("answered") == 20
        assert p.client.counters.late >= 19  # a copy comes before the next answer; of the last, perhaps not yet


def test_a_cut_connection_is_made_anew() -> None:
    with path() as p:
        for cuts in range(1, 4):
            p.proxy.cut_all()
            until_answered(p.client)
            assert p.client.counters.connections > cuts


def test_a_stalled_network_holds_up_no_call_and_is_left_when_it_moves_again() -> None:
    with path() as p:
        assert ask(p.client, 100, 10.0) == "answered"
        p.proxy.faults = NetworkFaults(stall=True)
        assert "answered" not in ask_often(p.client, 5, deadline_s=0.1)
        p.proxy.faults = CLEAR
        until_answered(p.client)


@pytest.mark.slow
def test_a_connection_that_stays_silent_for_ever_is_given_up_and_made_anew() -> None:
    with path() as p:
        p.proxy.faults = NetworkFaults(stall=True)
        until = time.monotonic() + RECOVERY_S
        while p.client.clock() is not None:
            ask(p.client, 100, 0.2)
            assert time.monotonic() < until, "it still believes in a dead connection"
        p.proxy.faults = CLEAR
        until_answered(p.client)
        assert p.client.counters.connections == 2


def test_a_network_that_takes_in_nothing_more_is_given_up_though_a_request_is_still_being_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire_client, "SILENCE_S", 1.0)
    spec = replace(SPEC, observation={"state": Stream((500_000,))})  # more than the buffers in between take
    make = functools.partial(CountingPolicy, spec=spec)
    big = replace(request(100), observation={"state": np.full((2, 500_000), 100, np.float32)})
    with serving(make, ServerOptions(port=0)) as server, proxying("127.0.0.1", server.port) as proxy:
        client = RemotePolicy(f"ws://127.0.0.1:{proxy.port}")
        proxy.faults = NetworkFaults(stall=True)
        until = time.monotonic() + RECOVERY_S
        while client.clock() is not None:
            with contextlib.suppress(TimeoutError, ConnectionError):
                list(client.infer(replace(big, deadline_ns=now_ns() + 200_000_000)))
            assert time.monotonic() < until, "it still believes in a dead connection"
        client.close()


def test_a_server_that_was_started_again_is_found() -> None:
    with serving(CountingPolicy, ServerOptions(port=0)) as server:
        port = server.port
        client = RemotePolicy(f"ws://127.0.0.1:{port}")
        assert ask(client, 100, 10.0) == "answered"
    assert ask(client, 101, 0.2) == "ConnectionError"
    with serving(CountingPolicy, ServerOptions(port=port)):
        until_answered(client)
    client.close()


def test_another_policy_behind_the_same_url_is_refused_until_the_former_is_back() -> None:
    with serving(CountingPolicy, ServerOptions(port=0)) as server:
        port = server.port
        client = RemotePolicy(f"ws://127.0.0.1:{port}")
    other = functools.partial(CountingPolicy, spec=replace(SPEC, rate_hz=10.0))
    for make, options, expected in (
        (other, ServerOptions(port=port), "another spec"),
        (CountingPolicy, ServerOptions(port=port, scheduler="rtc"), "for the scheduler 'rtc' now"),
    ):
        with serving(make, options):
            until = time.monotonic() + RECOVERY_S
            said = ""
            while expected not in said:
                assert time.monotonic() < until, said
                with pytest.raises(ConnectionError) as caught:
                    list(client.infer(request(100, deadline_s=1.0)))
                said = str(caught.value)
    with serving(CountingPolicy, ServerOptions(port=port)):
        until_answered(client)
    client.close()


def test_the_clock_is_estimated_within_its_uncertainty_through_a_network_that_is_slower_one_way() -> None:
    with path(faults=NetworkFaults(delay_s=0.01, jitter_s=0.02)) as p:
        ask_often(p.client, 10, deadline_s=1.0)
        clock = p.client.clock()
        assert clock is not None
        assert abs(clock.offset_ns) <= clock.uncertainty_ns
