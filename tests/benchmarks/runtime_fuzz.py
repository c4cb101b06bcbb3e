"""Feeds the wire's readers a million damaged and random messages: `python tests/benchmarks/runtime_fuzz.py [COUNT]`.

Two fifths of the inputs are well-formed messages of every sort in which values were exchanged for wrong ones; a fifth
are valid messages with bytes changed, cut, inserted, copied or taken from another; a fifth are msgpack headers that
claim more than follows; the rest are random bytes. What the codec lets through goes on to every reader of messages.
Anything but ``WireError`` is a crash and is printed with its input. It fails as well if an input takes longer than a
second, or if memory grows.
"""

from __future__ import annotations

import contextlib
import copy
import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream
from robolearn_deploy.inference import Committed, Request
from robolearn_deploy.wire.codec import WireError, pack, unpack
from robolearn_deploy.wire.messages import (
    EXTENSION,
    Clock,
    failure_message,
    metadata_message,
    plain_request_message,
    pong_message,
    read_answer,
    read_metadata,
    read_ping,
    read_plain_answer,
    read_pong,
    read_request,
    request_message,
)
from robolearn_hardware.clock import now_ns

SPEC = PolicySpec(
    {
        "state": Stream((3,)),
        "camera": Stream((4, 5, 3), "uint8", "image"),
        "instruction": Stream((16,), "uint8", "text"),
    },
    Stream((2,), kind="action"),
    20.0,
    obs_horizon=1,
    horizon=8,
    action_horizon=4,
)
CHUNK = np.linspace(0, 1, 16, dtype=np.float32).reshape(8, 2)
REQUEST = Request(
    7,
    123_456_789_000,
    {
        "state": np.ones((1, 3), np.float32),
        "camera": np.ones((1, 4, 5, 3), np.uint8),
        "instruction": np.zeros((1, 16), np.uint8),
    },
    Committed(CHUNK, 2, 3),
    223_456_789_000,
)
MESSAGES: list[dict[Any, Any]] = [
    metadata_message(SPEC, name="fuzz", scheduler="rtc"),
    request_message(REQUEST, 4, Clock(5, 6)),
    plain_request_message(REQUEST, SPEC, {}),
    {
        "actions": CHUNK,
        "server_timing": {"infer_ms": 1.0},
        EXTENSION: {"id": 4, "final": 8, "timing_ms": {"a": 1.0}},
    },
    failure_message(4, "an error"),
    pong_message(1, 2, 3),
    {"number": np.float32(1), "list": [1, 2.5, None, True, "x", b"y"], b"bytes": {"deep": {"deeper": [[]]}}},
]
SEEDS = [pack(message) for message in MESSAGES]
WRONG: list[Any] = [
    None, True, 0, -1, 1, 7, 8, 9, 2**31, 2**63, 2**64 - 1, -(2**63), 0.0, 1e300, float("nan"), float("inf"),
    "", "x", "x" * 400, "a\0b", "\u2028", b"", b"x", [], [1, 2.5], [[1]], ["x"], [2**64 - 1] * 3, [1, 2, 3], {},
    {"id": 1}, {b"x": 1}, {"streams": {}}, {"shape": [2**40]}, {"shape": [-1]}, {"shape": [3], "dtype": "O"},
    {"dtype": "<f4,<i4"}, np.zeros(0, np.float32), np.zeros((), np.float64),
    np.zeros((0, 3)), np.zeros((8, 2)), np.full((8, 2), np.nan),
    np.full((1, 3), 1e300), np.full((8, 2), np.inf, np.float32), np.zeros((1, 3), bool), np.zeros((1, 16), np.int8),
    np.zeros((1, 3), np.uint64), np.float16(1), np.int64(-1), np.bool_(True),
]  # fmt: skip
"""What stands in the place of a value; much of it is valid somewhere else."""
READERS: list[Callable[[Any], Any]] = [
    read_metadata,
    read_ping,
    read_pong,
    lambda message: read_request(message, SPEC, 1),
    lambda message: read_answer(message, SPEC),
    lambda message: read_plain_answer(message, SPEC),
]
MAX_SECONDS = 1.0
MAX_GROWTH_KB = 200_000


def exchanged(chance: random.Random) -> bytes:
    """A well-formed message with one to three values, fields or names of fields exchanged, added or left out."""
    message = copy.deepcopy(chance.choice(MESSAGES))
    for _ in range(chance.randint(1, 3)):
        place: Any = message
        while True:
            inner = [
                v for v in (place.values() if isinstance(place, dict) else place) if isinstance(v, dict | list) and v
            ]
            if not inner or chance.random() < 0.3:
                break
            place = chance.choice(inner)
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            continue
        key, value = chance.choice(keys), copy.deepcopy(chance.choice(WRONG))
        kind = chance.randrange(4)
        if kind == 0 and isinstance(place, dict):
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[chance.choice(("id", "ping", "error", "robolearn", "actions", "x", b"__ndarray__", b"dtype"))] = value
        else:
            place[key] = value
    return pack(message)


def damaged(chance: random.Random) -> bytes:
    """A valid message with one to four changes."""
    message = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(message) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            message[at : at + 1] = chance.randbytes(1)
        elif kind == 1:
            del message[at : at + chance.randint(1, 8)]
        elif kind == 2:
            message[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 3:
            message[at:at] = message[at : at + chance.randint(1, 40)]
        elif kind == 4:
            other = chance.choice(SEEDS)
            start = chance.randrange(len(other))
            message[at : at + chance.randint(0, 40)] = other[start : start + chance.randint(1, 40)]
        else:  # one bit, as a length or a type is changed least noticeably
            at = min(at, len(message) - 1)
            if message:
                message[at] ^= 1 << chance.randrange(8)
    return bytes(message)


def headers(chance: random.Random) -> bytes:
    """Headers of maps, lists, texts, arrays and numbers, nested at random, with lengths that mostly lie."""
    parts = []
    for _ in range(chance.randint(1, 12)):
        head = chance.choice(
            (0x80, 0x81, 0x82, 0x90, 0x91, 0x93, 0xA1, 0xC4, 0xC6, 0xC7, 0xC9, 0xD4, 0xDB, 0xDC, 0xDD, 0xDF)
        )
        size = {0xC4: 1, 0xC7: 1, 0xDC: 2}.get(head, 4 if head in (0xC6, 0xC9, 0xDB, 0xDD, 0xDF) else 0)
        parts.append(bytes((head,)) + chance.choice((bytes(size), b"\xff" * size, chance.randbytes(size))))
        if chance.random() < 0.3:
            parts.append(
                chance.choice((b"\xc4\x0b__ndarray__\xc3", b"\xc4\x05dtype\xa3<f4", b"\xa9robolearn", b"\xa1x"))
            )
    return b"".join(parts)


def make(number: int) -> bytes:
    """Input ``number``: a function of it alone, so that a crash can be looked at again."""
    chance = random.Random(number)
    kind = number % 5
    if kind < 2:
        return exchanged(chance)
    if kind == 2:
        return damaged(chance)
    return headers(chance) if kind == 3 else chance.randbytes(chance.randrange(300))


def feed(message: bytes, outcomes: Counter[str]) -> None:
    """Raises what is not a ``WireError``."""
    try:
        value = unpack(message)
    except WireError:
        outcomes["refused by the codec"] += 1
        return
    understood = False
    for read in READERS:
        with contextlib.suppress(WireError):
            understood = read(value) not in (None, (None, "")) or understood
    outcomes["understood by a reader" if understood else "refused by every reader"] += 1


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    outcomes: Counter[str] = Counter()
    crashes = slow = 0
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_ns = now_ns()
    for number in range(count):
        message = make(number)
        started_ns = now_ns()
        try:
            feed(message, outcomes)
        except Exception as error:
            crashes += 1
            print(f"input {number}: {type(error).__name__}: {error}: {message.hex()}", file=sys.stderr)
        if now_ns() - started_ns > MAX_SECONDS * 1e9:
            slow += 1
            print(f"input {number} took {(now_ns() - started_ns) / 1e9:.1f} s: {message.hex()}", file=sys.stderr)
    seconds = (now_ns() - began_ns) / 1e9
    growth_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    row = {
        "inputs": count,
        "crashes": crashes,
        "slow": slow,
        "inputs_per_s": round(count / seconds),
        "growth_mb": round(growth_kb / 1e3, 1),
        **{name.replace(" ", "_"): n for name, n in sorted(outcomes.items())},
    }
    table = Table("", "", title="damaged and random messages", show_header=False)
    for name, value in row.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    Console().print(table)
    write_results("runtime_fuzz", [row])
    sys.exit(bool(crashes or slow or growth_kb > MAX_GROWTH_KB))


if __name__ == "__main__":
    main()
