"""The shared-memory ring under a writer in another process that never rests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pytest

from robolearn_hardware.ring import Ring, RingHandle

FIELDS = {"number": ("i8", ()), "body": ("f4", (4096,)), "odd": ("u1", (3,)), "last": ("i8", ())}


def values(number: int) -> dict:
    return {
        "number": number,
        "body": np.full(4096, number % 65536, np.float32),
        "odd": np.full(3, number % 256, np.uint8),
        "last": number,
    }


def is_whole(record: np.void) -> bool:
    n = int(record["number"])
    return bool((record["body"] == n % 65536).all() and (record["odd"] == n % 256).all() and int(record["last"]) == n)


def write_for_ever(handle: RingHandle) -> None:
    ring = Ring.attach(handle)
    number = 0
    while True:
        ring.publish(values(number))
        number += 1


@pytest.fixture
def start_writer():
    started = []

    def start(ring: Ring) -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(ring.handle,))
        process.start()
        started.append(process)
        end = time.monotonic() + 30
        while ring.count == 0:
            assert time.monotonic() < end
            time.sleep(0.001)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("checked", [False, True])
def test_no_read_is_torn_while_a_writer_laps_the_ring(start_writer: Callable, checked: bool) -> None:
    with Ring.create(FIELDS, slots=2, checked=checked) as ring:
        start_writer(ring)
        end = time.monotonic() + 1.5
        whole = caught = 0
        newest = -1
        while time.monotonic() < end:
            index = ring.count - 1
            record = ring.read(index)
            if record is None:
                caught += 1
                continue
            assert is_whole(record)
            assert int(record["number"]) == index >= newest
            newest = index
            whole += 1
        assert whole > 100
        assert caught > 0, "the writer never got in the way, so that nothing was proved"


def test_without_the_sequence_number_the_same_reads_are_torn(start_writer: Callable) -> None:
    """The test above can fail: the memory under the ring does hold mixed records."""
    with Ring.create(FIELDS, slots=2) as ring:
        start_writer(ring)
        end = time.monotonic() + 20
        while is_whole(ring._records[:1].copy()[0]):
            assert time.monotonic() < end


def test_a_writer_killed_inside_a_record_leaves_the_last_whole_one(start_writer: Callable) -> None:
    for _ in range(3):
        with Ring.create(FIELDS, slots=4) as ring:
            writer = start_writer(ring)
            time.sleep(0.02)
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
            newest = ring.newest()
            assert newest is not None
            assert is_whole(newest[1])


def test_since_gives_what_is_left_in_order_and_read_refuses_the_overwritten() -> None:
    with Ring.create(FIELDS, slots=4) as ring:
        assert ring.newest() is None
        assert list(ring.since(0)) == []
        for number in range(10):
            assert ring.publish(values(number)) == number
        assert [i for i, _ in ring.since(0)] == [6, 7, 8, 9]
        assert [int(r["number"]) for _, r in ring.since(8)] == [8, 9]
        assert ring.read(5) is None
        assert ring.read(10) is None
        newest = ring.newest()
        assert newest is not None
        assert newest[0] == 9


def test_drain_gives_the_same_records_as_since_and_says_where_to_go_on() -> None:
    for checked in (False, True):
        with Ring.create(FIELDS, slots=4, checked=checked) as ring:
            assert (len(ring.drain(0)[0]), ring.drain(0)[1]) == (0, 0)
            for number in range(10):
                ring.publish(values(number))
            for start in (0, 7, 10):
                records, end = ring.drain(start)
                assert end == 10
                assert list(records) == [record for _, record in ring.since(start)]


@pytest.mark.parametrize("checked", [False, True])
def test_no_drained_record_is_torn_while_a_writer_laps_the_ring(start_writer: Callable, checked: bool) -> None:
    with Ring.create(FIELDS, slots=4, checked=checked) as ring:
        start_writer(ring)
        begun = time.monotonic()
        index = whole = 0
        while time.monotonic() < begun + (1.0 if 100 < whole < index else 30.0):  # a busy machine takes longer
            records, end = ring.drain(index)
            assert all(is_whole(record) for record in records)
            numbers = records["number"].tolist()
            assert numbers == sorted(set(numbers))
            assert all(index <= number < end for number in numbers)
            whole, index = whole + len(records), end
        assert whole > 100
        assert whole < index, "the writer never got in the way, so that nothing was proved"


def test_a_record_that_was_read_does_not_change_afterwards() -> None:
    with Ring.create(FIELDS, slots=2) as ring:
        ring.publish(values(1))
        record = ring.read(0)
        assert record is not None
        for number in range(2, 6):
            ring.publish(values(number))
        assert is_whole(record)
        assert int(record["number"]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": 1},
        {**values(1), "extra": 0},
        {**values(1), "body": np.zeros(4095, np.float32)},
        {**values(1), "body": np.float32(0)},
    ],
)
def test_a_wrong_record_is_refused_and_the_one_before_stays(wrong: dict) -> None:
    with Ring.create(FIELDS, slots=2) as ring:
        ring.publish(values(7))
        with pytest.raises(ValueError, match=r"field|shape"):
            ring.publish(wrong)
        assert ring.count == 1
        record = ring.read(0)
        assert record is not None
        assert is_whole(record)


def test_a_closed_ring_leaves_no_shared_memory() -> None:
    ring = Ring.create(FIELDS, slots=2)
    path = Path("/dev/shm") / ring.handle.name
    assert path.exists()
    ring.close()
    ring.close()
    assert not path.exists()
