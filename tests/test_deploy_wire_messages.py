"""What the messages of server and client say, that they survive the way, and that malformed ones are refused."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_fakes import HORIZON, SPEC, chunk, request

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_deploy.inference import Committed, Reply, Request
from robolearn_deploy.wire.clock_offset import GROUP_NS, MAX_DRIFT, ClockOffset
from robolearn_deploy.wire.codec import WireError, pack, unpack
from robolearn_deploy.wire.messages import (
    EXTENSION,
    VERSION,
    Clock,
    failure_message,
    metadata_message,
    ping_message,
    plain_request_message,
    pong_message,
    read_answer,
    read_metadata,
    read_ping,
    read_plain_answer,
    read_pong,
    read_request,
    reply_message,
    request_message,
)

SINGLE = PolicySpec(
    {"state": Stream((3,)), "camera": Stream((4, 5, 3), "uint8", "image"), "text": Stream((16,), "uint8", "text")},
    Stream((2,), kind="action"),
    20.0,
    obs_horizon=1,
    horizon=6,
    action_horizon=4,
)


def way(message: dict[str, Any]) -> Any:
    return unpack(pack(message))


def committed() -> Committed:
    actions = chunk(3)
    actions[-3:] = np.nan
    return Committed(actions, delay=2, execute=3)


def test_metadata_carry_the_spec_and_the_scheduler() -> None:
    spec, scheduler = read_metadata(way(metadata_message(SPEC, scheduler="rtc")))
    assert spec is not None
    assert spec.to_json() == SPEC.to_json()
    assert scheduler == "rtc"


def test_metadata_of_openpi_have_no_spec() -> None:
    assert read_metadata(way({"robot": "aloha", "reset_pose": np.zeros(7)})) == (None, "")


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {EXTENSION: 3},
        {EXTENSION: {}},
        {EXTENSION: {"version": VERSION + 1}},
        {EXTENSION: {"version": np.ones(3)}},
        {EXTENSION: {"version": VERSION}},
        {EXTENSION: {"version": VERSION, "spec": None}},
        {EXTENSION: {"version": VERSION, "spec": {"streams": 3}}},
        {EXTENSION: {"version": VERSION, "spec": {**SPEC.to_json(), "horizon": 10**12}}},
        {EXTENSION: {"version": VERSION, "spec": {**SPEC.to_json(), "obs_horizon": 10**12, "horizon": 10**13}}},
        {EXTENSION: {"version": VERSION, "spec": {**SPEC.to_json(), "rate_hz": float("nan")}}},
        {EXTENSION: {"version": VERSION, "spec": SPEC.to_json(), "scheduler": 3}},
    ],
)
def test_metadata_that_cannot_be_are_refused(message: Any) -> None:
    with pytest.raises(WireError):
        read_metadata(message)


def test_a_request_arrives_in_the_clock_of_the_server() -> None:
    asked = request(7, deadline_s=1.0, committed=committed())
    clock = Clock(offset_ns=5_000_000_000, uncertainty_ns=300)
    question = read_request(way(request_message(asked, 4, clock)), SPEC, received_ns=1)
    got = question.request
    assert (question.id, question.partial, got.sequence) == (4, True, 7)
    assert got.capture_ns == asked.capture_ns + 5_000_000_000
    assert got.deadline_ns == asked.deadline_ns + 5_000_000_300, "not given up while it may still be in time"
    for name, value in asked.observation.items():
        assert got.observation[name].dtype == value.dtype
        assert (got.observation[name] == value).all()
    assert got.committed is not None
    np.testing.assert_array_equal(got.committed.actions, committed().actions)
    assert (got.committed.delay, got.committed.execute) == (2, 3)


def test_without_a_known_offset_the_server_is_told_no_instants() -> None:
    got = read_request(way(request_message(request(7, deadline_s=1.0), 4, None)), SPEC, received_ns=99).request
    assert (got.capture_ns, got.deadline_ns, got.committed) == (99, 0, None)


def test_a_request_without_a_deadline_has_none_at_the_server() -> None:
    message = request_message(request(7), 4, Clock(10**12, 5))
    assert read_request(way(message), SPEC, received_ns=99).request.deadline_ns == 0


def test_openpi_clients_send_single_samples_other_dtypes_and_a_prompt() -> None:
    message = way({"state": np.arange(3.0), "camera": np.ones((4, 5, 3), np.uint8), "prompt": "fold", "other": 1})
    question = read_request(message, SINGLE, received_ns=5)
    assert question.id is None
    observation = question.request.observation
    assert observation["state"].shape == (1, 3)
    assert observation["state"].dtype == np.float32
    assert observation["camera"].shape == (1, 4, 5, 3)
    assert observation["text"].tobytes() == b"fold".ljust(16, b"\0")


def test_openpi_clients_may_send_lists_of_numbers_and_a_text_for_every_sample() -> None:
    message = {"state": np.zeros((2, 3)), "instruction": "fold"}
    assert read_request(way(message), SPEC, 5).request.observation["instruction"].shape == (2, 16)
    listed = {"state": [1, 2.5, 3], "camera": np.ones((4, 5, 3), np.uint8), "text": "fold"}
    assert read_request(way(listed), SINGLE, 5).request.observation["state"].tolist() == [[1, 2.5, 3]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": None}, "'state' is missing; the policy needs: state, instruction"),
        ({"state": np.zeros((1, 3))}, r"shape \(1, 3\), expected \(2, 3\)"),
        ({"state": np.full((2, 3), np.nan)}, "NaN or infinity"),
        ({"state": np.full((2, 3), 1e300)}, "NaN or infinity"),
        ({"state": "text"}, "must be an array, not str"),
        ({"state": [[1]]}, "must be an array, not list"),
        ({"instruction": np.zeros((2, 16), np.float32)}, "dtype float32, expected uint8"),
        ({"instruction": "x" * 17}, "takes texts of 16 bytes"),
        ({"instruction": "a\0b"}, "holds a zero"),
        ({EXTENSION: 3}, "must be a dict"),
        ({EXTENSION: {}}, "'id' in a message must be a whole number"),
        ({EXTENSION: {"id": 1.5}}, "'id' in a message must be a whole number"),
        ({EXTENSION: {"id": 1, "offset_ns": "x"}}, "'offset_ns'"),
        ({EXTENSION: {"id": 1, "sequence": -1}}, "must be 0 or more"),
        ({EXTENSION: {"id": 1, "committed": 3}}, "not a dict"),
        ({EXTENSION: {"id": 1, "committed": {"actions": np.zeros((3, 2))}}}, r"floats of shape \(8, 2\)"),
        (
            {EXTENSION: {"id": 1, "committed": {"actions": np.full((8, 2), np.inf), "delay": 1, "execute": 1}}},
            "infinity",
        ),
        (
            {EXTENSION: {"id": 1, "committed": {"actions": np.zeros((8, 2)), "delay": 9, "execute": 1}}},
            "between 0 and the horizon",
        ),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_what_is_wrong(change: dict[str, Any], said: str) -> None:
    message = {"state": np.zeros((2, 3), np.float32), "instruction": "fold", **change}
    with pytest.raises(WireError, match=said):
        read_request(way(message), SPEC, received_ns=1)


def test_a_reply_comes_back_with_its_number_and_its_timing() -> None:
    question = read_request(way(request_message(request(7), 4, None)), SPEC, 1)
    message = way(reply_message(question, Reply(chunk(7), 3, {"total": 2.5}), SPEC, server_ns=3_000_000))
    answer = read_answer(message, SPEC)
    assert (answer.id, answer.server_ns) == (4, 3_000_000)
    assert answer.reply is not None
    assert answer.reply.final == 3
    assert answer.reply.timing_ms == {"total": 2.5}
    assert message["server_timing"]["infer_ms"] == 2.5, "as openpi's server says it"
    assert (answer.reply.actions == chunk(7)).all()


def test_a_reply_to_openpi_begins_with_the_present_and_has_no_extension() -> None:
    question = read_request(way({"state": np.zeros((2, 3)), "prompt": "fold"}), SPEC, 1)
    message = way(reply_message(question, Reply(chunk(7), HORIZON), SPEC, server_ns=3_000_000))
    assert message.keys() == {"actions", "server_timing"}
    assert (message["actions"] == chunk(7)[SPEC.start :]).all()
    assert message["server_timing"] == {"infer_ms": 3.0}


def test_a_failure_comes_back_with_its_number() -> None:
    answer = read_answer(way(failure_message(4, "no\nsuch thing")), SPEC)
    assert (answer.id, answer.reply, answer.error) == (4, None, "no such thing")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_with_nan_or_infinity_in_its_final_part_is_refused(bad: float) -> None:
    actions = chunk(7)
    actions[4, 0] = bad
    extension = {"id": 1, "final": 4}
    partial = read_answer(way({"actions": actions, EXTENSION: extension}), SPEC)
    assert partial.reply is not None, "what is not certain yet may be anything"
    with pytest.raises(WireError, match="NaN"):
        read_answer(way({"actions": actions, EXTENSION: {**extension, "final": 5}}), SPEC)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"actions": chunk(1)},
        {EXTENSION: {"id": 1, "final": 8}},
        {"actions": chunk(1).tolist(), EXTENSION: {"id": 1, "final": 8}},
        {"actions": chunk(1)[:-1], EXTENSION: {"id": 1, "final": 8}},
        {"actions": chunk(1)[None], EXTENSION: {"id": 1, "final": 8}},
        {"actions": np.float32(1) * np.ones(()), EXTENSION: {"id": 1, "final": 8}},
        {"actions": chunk(1).astype("<f8") * 1e300, EXTENSION: {"id": 1, "final": 8}},
        {"actions": chunk(1), EXTENSION: {"id": 1, "final": 9}},
        {"actions": chunk(1), EXTENSION: {"id": 1, "final": -1}},
        {"actions": chunk(1), EXTENSION: {"id": 1, "final": 8, "timing_ms": {"a": "b"}}},
        {"actions": chunk(1), EXTENSION: {"id": 1, "final": 8, "timing_ms": [1]}},
        {EXTENSION: {"id": 1, "error": 5}},
    ],
)
def test_an_answer_that_does_not_fit_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        read_answer(way(message), SPEC)


def test_a_server_of_openpi_gets_single_samples_and_texts_under_its_names() -> None:
    observation = {
        "state": np.ones((1, 3), np.float32),
        "camera": np.ones((1, 4, 5, 3), np.uint8),
        "text": np.frombuffer(b"fold".ljust(16, b"\0"), np.uint8)[None],
    }
    message = plain_request_message(Request(0, 0, observation), SINGLE, {"state": "observation/state"})
    assert message.keys() == {"observation/state", "camera", "prompt"}
    assert message["observation/state"].shape == (3,)
    assert message["camera"].shape == (4, 5, 3)
    assert message["prompt"] == "fold"


def test_the_chunk_of_a_server_of_openpi_begins_at_the_present() -> None:
    answer = read_plain_answer(way({"actions": np.arange(20.0).reshape(10, 2), "server_timing": {"infer_ms": 3}}), SPEC)
    assert answer.reply is not None
    assert answer.reply.actions.shape == (HORIZON, 2)
    assert answer.reply.actions[SPEC.start].tolist() == [0, 1]
    assert answer.reply.actions[-1].tolist() == [12, 13]
    assert answer.reply.timing_ms == {"total": 3.0}


@pytest.mark.parametrize(
    "actions", [np.zeros((3, 2)), np.zeros((8, 3)), np.full((8, 2), np.nan), np.zeros(8), "x", None]
)
def test_the_chunk_of_a_server_of_openpi_is_checked(actions: Any) -> None:
    with pytest.raises(WireError):
        read_plain_answer(way({"actions": actions}), SPEC)


def test_pings_and_pongs_are_told_from_everything_else() -> None:
    assert read_ping(way(ping_message(5))) == 5
    assert read_pong(way(pong_message(5, 6, 7))) == (5, 6, 7)
    for message in (request_message(request(1), 4, None), {"state": 1}, failure_message(1, "x")):
        assert read_ping(way(message)) is None
        assert read_pong(way(message)) is None


MESSAGES: list[dict[str, Any]] = [
    metadata_message(SPEC),
    request_message(request(1, committed=committed()), 4, Clock(1, 2)),
    {
        "actions": chunk(1),
        "server_timing": {"infer_ms": 1.0},
        EXTENSION: {"id": 1, "final": 8, "timing_ms": {"a": 1.0}},
    },
    failure_message(3, "x"),
    pong_message(1, 2, 3),
]


@given(st.integers(0, 2**32), st.sampled_from(range(len(MESSAGES))), st.integers(1, 4))
@settings(max_examples=1500, deadline=None)
def test_damaged_messages_raise_nothing_but_wire_errors(seed: int, which: int, changes: int) -> None:
    chance = random.Random(seed)
    message = bytearray(pack(MESSAGES[which]))
    for _ in range(changes):
        message[chance.randrange(len(message))] = chance.randrange(256)
    try:
        frame = unpack(bytes(message))
    except WireError:
        return
    for read in (
        read_metadata,
        read_ping,
        read_pong,
        lambda m: read_request(m, SPEC, 1),
        lambda m: read_answer(m, SPEC),
        lambda m: read_plain_answer(m, SPEC),
    ):
        with contextlib.suppress(WireError):
            read(frame)


class TwoClocks:
    """Machines whose clocks differ by ``offset_ns`` and drift apart, joined by a network of random delays."""

    def __init__(self, seed: int, *, drift: float) -> None:
        self._random = random.Random(seed)
        self._drift = drift
        self._offset_ns = self._random.randrange(-(10**18), 10**18)
        self.now = 10**15

    def other(self, at: int) -> int:
        return at + self._offset_ns + int(self._drift * (at - 10**15))

    def exchange(self) -> tuple[int, int, int, int]:
        t0 = self.now
        arrives = t0 + int(self._random.expovariate(1 / 2e6)) + 50_000
        answers = arrives + self._random.randrange(100_000)
        t3 = answers + int(self._random.expovariate(1 / 8e6)) + 50_000
        self.now = t3
        return t0, self.other(arrives), self.other(answers), t3


@given(st.integers(0, 2**32), st.floats(-MAX_DRIFT * 0.99, MAX_DRIFT * 0.99), st.integers(1, 200))
@settings(max_examples=150, deadline=None)
def test_the_true_offset_lies_within_the_stated_uncertainty_whatever_the_delays(
    seed: int, drift: float, count: int
) -> None:
    clocks, offset = TwoClocks(seed, drift=drift), ClockOffset()
    for _ in range(count):
        clocks.now += 10**9
        assert offset.add(*clocks.exchange())
    for later_s in (0, 1, 60):
        at = clocks.now + later_s * 10**9
        estimate = offset.at(at)
        assert estimate is not None
        # What the simulated clock rounds to whole nanoseconds is not the estimator's.
        assert abs(estimate.offset_ns - (clocks.other(at) - at)) <= estimate.uncertainty_ns + 2


def test_the_uncertainty_shrinks_with_more_exchanges_and_the_drift_is_found() -> None:
    clocks, offset = TwoClocks(1, drift=50e-6), ClockOffset()
    offset.add(*clocks.exchange())
    first = offset.at(clocks.now)
    for _ in range(250):
        clocks.now += 10**9
        offset.add(*clocks.exchange())
    last = offset.at(clocks.now)
    assert first is not None
    assert last is not None
    assert last.uncertainty_ns < first.uncertainty_ns / 2
    low, high = offset.drift()
    assert low <= 50e-6 <= high
    assert high - low < 20e-6


def test_impossible_exchanges_are_left_out() -> None:
    offset = ClockOffset()
    assert not offset.add(100, 50, 60, 90)
    assert not offset.add(100, 60, 50, 200)
    assert not offset.add(100, 0, 500, 200)
    assert not offset.add(100, 2**64 - 1, 2**64 - 1, 200)
    assert offset.at(100) is None


def test_answers_out_of_order_leave_an_estimate_that_can_be_asked_for() -> None:
    offset = ClockOffset()
    assert offset.add(GROUP_NS, 50, 60, 3 * GROUP_NS)
    assert not offset.add(0, 50, 60, 4 * GROUP_NS), "its middle is that of the one before: no rate lies between them"
    assert offset.at(5 * GROUP_NS) is not None


def test_a_clock_whose_rate_jumps_is_followed() -> None:
    offset = ClockOffset()
    for i in range(10):
        offset.add(i * GROUP_NS, i * GROUP_NS + 10, i * GROUP_NS + 11, i * GROUP_NS + 20)
    jump = 10**9  # as after a suspend that one of the machines slept through
    at = 10 * GROUP_NS
    offset.add(at, at + jump + 10, at + jump + 11, at + 20)
    estimate = offset.at(at + 20)
    assert estimate is not None
    assert abs(estimate.offset_ns - jump) <= 20
