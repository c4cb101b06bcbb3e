"""msgpack with numpy arrays: the same bytes as the libraries of others, and nothing but WireError for garbage."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from wire_fakes import packb

from robolearn_deploy.wire.codec import MAX_DEPTH, MAX_ITEMS, WireError, pack, unpack

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=40),
    st.binary(max_size=300),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner, max_size=20)
    ),
    max_leaves=30,
)
ARRAYS = stn.arrays(
    st.sampled_from("?bBhHiIqQefd"), stn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5), fill=st.nothing()
)


def array_message(**fields: Any) -> bytes:
    """An array as openpi-client packs it, with some fields replaced."""
    array = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    array |= {key.encode(): value for key, value in fields.items()}
    return packb({"x": array})


@given(VALUES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_values_are_packed_as_the_msgpack_library_packs_them_and_read_back(value: Any) -> None:
    assert pack(value) == packb(value)
    assert unpack(pack(value)) == value


@given(ARRAYS)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_arrays_come_back_bit_for_bit_and_can_be_written_to(array: np.ndarray) -> None:
    back = unpack(pack({"x": array}))["x"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable
    assert back.flags.aligned


def test_an_array_has_the_bytes_that_openpi_documents() -> None:
    array = np.array([[1.0, 2.0]], np.float32)
    written = (
        b"\x81\xa1x\x84"
        + (b"\xc4\x0b__ndarray__" + b"\xc3")
        + (b"\xc4\x04data" + b"\xc4\x08" + struct.pack("<2f", 1, 2))
        + (b"\xc4\x05dtype" + b"\xa3<f4")
        + (b"\xc4\x05shape" + b"\x92\x01\x02")
    )
    assert pack({"x": array}) == written
    assert (unpack(written)["x"] == array).all()


def test_a_numpy_number_has_the_bytes_that_openpi_documents() -> None:
    written = packb({b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"})
    assert pack(np.float32(1.5)) == written
    back = unpack(written)
    assert back == 1.5
    assert type(back) is np.float32


def test_a_bool_is_true_or_false_whatever_byte_was_sent() -> None:
    found = unpack(array_message(data=bytes([0, 1, 2, 255]), dtype="|b1", shape=[2, 2]))["x"]
    np.testing.assert_array_equal(found.view(np.uint8), [[0, 1], [1, 1]])


def test_arrays_of_other_layouts_are_sent_little_endian_and_contiguous() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4).T
    back = unpack(pack(array))
    assert back.dtype.str == "<i4"
    assert (back == array).all()


@pytest.mark.parametrize("dtype", ["|O", "O", ">f4", "<c8", "<U4", "|S4", "|V8", "<M8[s]", "f4", "float32", "<f4,<i4"])
def test_a_dtype_outside_the_list_is_refused(dtype: str) -> None:
    with pytest.raises(WireError, match="is not allowed"):
        unpack(array_message(dtype=dtype))


@pytest.mark.parametrize("dtype", [None, 4, b"<f4", ["<f4"], [["a", "<f4"]], {"names": ["a"]}])
def test_a_dtype_that_is_no_name_is_refused(dtype: Any) -> None:
    with pytest.raises(WireError, match="is not allowed"):
        unpack(array_message(dtype=dtype))


@pytest.mark.parametrize(
    "shape",
    [[3], [1], [], [2, 0], [-2], [-1, -2], [2.0], [True, 2], 2, None, "2", [1] * 9, [0, 2**62], [2**62, 0, 2**62]],
)
def test_a_shape_that_does_not_have_exactly_these_bytes_is_refused(shape: Any) -> None:
    with pytest.raises(WireError):
        unpack(array_message(shape=shape))


@pytest.mark.parametrize(
    "fields",
    [
        {"data": "text"},
        {"data": [1, 2]},
        {"data": bytes(7)},
        {"__ndarray__": False},
        {"__ndarray__": 1},
        {"extra": 1},
    ],
)
def test_an_array_with_other_fields_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        unpack(array_message(**fields))


@pytest.mark.parametrize(
    ("data", "dtype"), [(300, "|u1"), (-1, "<u8"), (1.5, "<i4"), (True, "<i4"), ("1", "<f4"), (1, "|b1"), (1, "|O")]
)
def test_a_numpy_number_that_its_dtype_cannot_hold_is_refused(data: Any, dtype: str) -> None:
    with pytest.raises(WireError):
        unpack(packb({b"__npgeneric__": True, b"data": data, b"dtype": dtype}))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        packb(msgpack.ExtType(1, b"run me")),
        packb(msgpack.Timestamp(1)),
        b"\xc9" + struct.pack(">I", 2**32 - 1) + b"\x01",
        packb(1) + b"\x00",
        packb({1: 2}),
        packb({None: 2}),
        b"\x81\x90\x01",
        b"\x82\xa1a\x01\xa1a\x02",
        b"\xa2\xff\xfe",
        b"\x91" * MAX_DEPTH + b"\x01",
        b"\x81\xa1a" * MAX_DEPTH + b"\x01",
        b"\x91" * 100_000,
        packb([0] * (MAX_ITEMS + 1)),
        b"\xdd\xff\xff\xff\xff" * 10,
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xcb\x00",
    ],
    ids=lambda message: message[:12].hex(),
)
def test_damaged_and_hostile_messages_are_refused_in_one_line(message: bytes) -> None:
    with pytest.raises(WireError) as caught:
        unpack(message)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def _peak(message: bytes) -> int:
    """Most memory at a time that refusing it takes; threads of other tests may take some as well."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(WireError):
        unpack(message)
    return tracemalloc.get_traced_memory()[1] - before


def test_what_claims_to_be_large_costs_no_more_memory_than_it_is_large() -> None:
    hostile = [
        b"\xdd\x00\x01\x86\x9f" * 20 + bytes(100_000),
        b"\xdc\x27\x0f" * 15 + bytes(20_000),
        array_message(shape=[2**31], data=bytes(64)),
        b"\xc6\xff\xff\xff\xff" + bytes(1000),
    ]
    tracemalloc.start()
    try:
        for message in hostile:
            assert min(_peak(message) for _ in range(5)) < 50_000 + 10 * len(message)
    finally:
        tracemalloc.stop()


def test_a_message_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(WireError, match="11 bytes, more than the 10"):
        unpack(bytes(11), max_bytes=10)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1: 2},
        {"x": {3.0: 1}},
        2**64,
        -(2**63) - 1,
        "\ud800",
        np.array([object()]),
        np.zeros(2, complex),
        np.array(["a"]),
        {1, 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_sent_is_refused(value: Any) -> None:
    with pytest.raises(WireError):
        pack(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(WireError, match="nested"):
        pack(value)


@given(st.binary(max_size=200))
@settings(max_examples=2000, deadline=None)
def test_random_bytes_raise_nothing_but_wire_errors(message: bytes) -> None:
    try:
        value = unpack(message)
    except WireError:
        return
    if isinstance(value, int | str | list):  # what is read is what msgpack reads
        assert msgpack.unpackb(message, strict_map_key=False) == value or b"__np" in message or b"__nd" in message


@given(st.integers(0, 2**32))
@settings(max_examples=1500, deadline=None)
def test_damaged_valid_messages_raise_nothing_but_wire_errors(seed: int) -> None:
    chance = random.Random(seed)
    message = bytearray(pack({"a": np.zeros((2, 3), np.float32), "b": [1, "x", None, 2.5], "c": {"d": np.int64(3)}}))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(message))
        match chance.choice(("set", "cut", "insert")):
            case "set":
                message[at] = chance.randrange(256)
            case "cut" if at > 0:
                del message[at : at + chance.randint(1, 9)]
            case _:
                message[at:at] = chance.randbytes(chance.randint(1, 9))
    with contextlib.suppress(WireError):
        unpack(bytes(message))
