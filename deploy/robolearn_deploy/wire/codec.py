"""msgpack with numpy arrays, as openpi-client's ``msgpack_numpy`` writes it, read from peers that are not trusted.

An array is the map ``{b"__ndarray__": True, b"data": bytes, b"dtype": "<f4", b"shape": [...]}``, a numpy number
``{b"__npgeneric__": True, b"data": number, b"dtype": "<f4"}``. The msgpack library reserves room for as many elements
as a header claims, nested as deep as it likes: a few kilobytes can claim gigabytes. This reader believes no length that
the bytes at hand do not bear out, knows no extension types, and raises nothing but ``WireError``.

Format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

MAX_BYTES = 32 << 20
"""Of one message, unless told otherwise: ten uncompressed 640 x 480 pictures and more."""
MAX_DEPTH = 16
MAX_ITEMS = 10_000
"""Values in one message, an array counting as ten or so: whoever has more numbers than that sends arrays."""
MAX_DIMENSIONS = 8

DTYPES = {np.dtype(c).newbyteorder("<").str: np.dtype(c).newbyteorder("<") for c in "?bBhHiIqQefd"}
"""The only ones that are read or written: bool, integers, floats of 2 to 8 bytes, little-endian."""


class WireError(ValueError):
    """A message is not what the protocol allows. The text is one line, fit to be sent back to the peer."""


def pack(value: Any) -> bytes:
    """``value`` as msgpack: None, bool, int, float, str, bytes, list, tuple, dict, numpy arrays and numbers.

    Raises:
        WireError: it holds anything else, or is nested deeper than ``MAX_DEPTH``.
    """
    parts: list[bytes] = []
    _pack(value, parts, MAX_DEPTH)
    return b"".join(parts)


def unpack(message: bytes, *, max_bytes: int = MAX_BYTES) -> Any:
    """What ``pack`` or openpi-client's packer wrote. Arrays are copies, aligned and writable.

    Raises:
        WireError: damaged, too large, too deep, too many values, or something that is not allowed.
    """
    if len(message) > max_bytes:
        raise WireError(f"the message has {len(message)} bytes, more than the {max_bytes} that are allowed")
    reader = _Reader(message)
    value = reader.value(MAX_DEPTH)
    if reader.at != len(message):
        raise WireError(f"{len(message) - reader.at} bytes follow the end of the message")
    return value


def _pack(value: Any, parts: list[bytes], depth: int) -> None:
    if depth == 0:
        raise WireError(f"values are nested deeper than {MAX_DEPTH}")
    match value:
        case None:
            parts.append(b"\xc0")
        case bool():
            parts.append(b"\xc3" if value else b"\xc2")
        case np.ndarray() | np.generic():
            _pack_numpy(value, parts, depth)
        case int():
            parts.append(_pack_int(value))
        case float():
            parts.append(struct.pack(">Bd", 0xCB, value))
        case str():
            text = _utf8(value)
            parts += (_head(len(text), (0xA0, 31), (0xD9, 0xDA, 0xDB)), text)
        case bytes():
            parts += (_head(len(value), None, (0xC4, 0xC5, 0xC6)), value)
        case list() | tuple():
            parts.append(_head(len(value), (0x90, 15), (None, 0xDC, 0xDD)))
            for item in value:
                _pack(item, parts, depth - 1)
        case dict():
            parts.append(_head(len(value), (0x80, 15), (None, 0xDE, 0xDF)))
            for key, item in value.items():
                if not isinstance(key, str | bytes):
                    raise WireError(f"a map has a {type(key).__name__} for a key; valid: str, bytes")
                _pack(key, parts, depth - 1)
                _pack(item, parts, depth - 1)
        case _:
            raise WireError(f"a {type(value).__name__} cannot be sent")


def _pack_numpy(value: np.ndarray | np.generic, parts: list[bytes], depth: int) -> None:
    dtype = value.dtype.newbyteorder("<")
    if dtype.str not in DTYPES:
        raise WireError(f"dtype {value.dtype} cannot be sent; valid: bool, integers, floats of 2 to 8 bytes")
    if isinstance(value, np.ndarray):
        data = value.astype(dtype, copy=False).tobytes()
        array = {b"__ndarray__": True, b"data": data, b"dtype": dtype.str, b"shape": list(value.shape)}
        _pack(array, parts, depth)
    else:
        _pack({b"__npgeneric__": True, b"data": value.item(), b"dtype": dtype.str}, parts, depth)


def _pack_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack("B", value & 0xFF)
    for head, code in ((0xCC, "B"), (0xCD, "H"), (0xCE, "I"), (0xCF, "Q"), (0xD0, "b"), (0xD1, "h"), (0xD2, "i")):
        info = np.iinfo(code)
        if info.min <= value <= info.max:
            return struct.pack(f">B{code}", head, value)
    if -(1 << 63) <= value < 0:
        return struct.pack(">Bq", 0xD3, value)
    raise WireError(f"the number {value} does not fit into 64 bits")


def _head(length: int, short: tuple[int, int] | None, heads: tuple[int | None, int, int]) -> bytes:
    """First bytes of a str, bin, array or map: length within the first byte, or in 1, 2 or 4 bytes after it."""
    if short is not None and length <= short[1]:
        return bytes((short[0] | length,))
    for head, code, limit in zip(heads, "BHI", (1 << 8, 1 << 16, 1 << 32), strict=True):
        if head is not None and length < limit:
            return struct.pack(f">B{code}", head, length)
    raise WireError(f"a value of length {length} cannot be sent")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise WireError("a text holds half a surrogate pair, which is not UTF-8") from error


_NUMBERS = {
    head: struct.Struct(f">{code}") for head, code in zip((0xCA, 0xCB, *range(0xCC, 0xD4)), "fdBHIQbhiq", strict=True)
}
_LENGTHS = {
    0xC4: ("bin", struct.Struct(">B")),
    0xC5: ("bin", struct.Struct(">H")),
    0xC6: ("bin", struct.Struct(">I")),
    0xD9: ("str", struct.Struct(">B")),
    0xDA: ("str", struct.Struct(">H")),
    0xDB: ("str", struct.Struct(">I")),
    0xDC: ("array", struct.Struct(">H")),
    0xDD: ("array", struct.Struct(">I")),
    0xDE: ("map", struct.Struct(">H")),
    0xDF: ("map", struct.Struct(">I")),
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class _Reader:
    """Reads one value after the other from ``message``."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self.at = 0
        self._items = 0

    def value(self, depth: int) -> Any:
        self._items += 1
        if self._items > MAX_ITEMS:
            raise WireError(f"more than {MAX_ITEMS} values in one message; send arrays")
        head = self._take(1)[0]
        if head < 0x80:
            return head
        if head >= 0xE0:
            return head - 0x100
        if head in _CONSTANTS:
            return _CONSTANTS[head]
        if head in _NUMBERS:
            return self._number(_NUMBERS[head])
        if head < 0x90:
            kind, length = "map", head & 0x0F
        elif head < 0xA0:
            kind, length = "array", head & 0x0F
        elif head < 0xC0:
            kind, length = "str", head & 0x1F
        elif head in _LENGTHS:
            kind, layout = _LENGTHS[head]
            length = self._number(layout)
        else:
            raise WireError(f"a value begins with byte 0x{head:02x}: extension types are not allowed")
        if kind == "bin":
            return self._take(length)
        if kind == "str":
            return self._text(length)
        if depth == 1:
            raise WireError(f"values are nested deeper than {MAX_DEPTH}")
        if kind == "array":
            self._expect(length)
            return [self.value(depth - 1) for _ in range(length)]
        return self._map(length, depth - 1)

    def _map(self, length: int, depth: int) -> Any:
        self._expect(2 * length)
        found: dict[str | bytes, Any] = {}
        for _ in range(length):
            key = self.value(1)  # at depth 1 neither a list nor a map is read
            if not isinstance(key, str | bytes):
                raise WireError(f"a map has a {type(key).__name__} for a key; valid: str, bytes")
            if key in found:
                raise WireError("a map holds the same key twice")
            found[key] = self.value(depth)
        if b"__ndarray__" in found:
            return _array(found)
        if b"__npgeneric__" in found:
            return _numpy_number(found)
        return found

    def _expect(self, values: int) -> None:
        """Each value takes a byte at least: what claims more than there are is refused before room is made for it."""
        if values > len(self._message) - self.at:
            raise WireError(f"a list or map of {values} values is longer than the message")

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self._message):
            raise WireError(f"the message ends {end - len(self._message)} bytes too early")
        taken = self._message[self.at : end]
        self.at = end
        return taken

    def _number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self._take(layout.size))[0]

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise WireError("a text is not UTF-8") from error


def _array(fields: dict[str | bytes, Any]) -> np.ndarray:
    if fields.keys() != {b"__ndarray__", b"data", b"dtype", b"shape"} or fields[b"__ndarray__"] is not True:
        raise WireError("an array must have the keys __ndarray__ (true), data, dtype and shape")
    data, dtype, shape = fields[b"data"], _dtype(fields[b"dtype"]), fields[b"shape"]
    if not isinstance(data, bytes):
        raise WireError("the data of an array must be bytes")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError(f"the shape of an array must be a list of up to {MAX_DIMENSIONS} whole numbers")
    # Zeros aside, so that no shape with a zero in it hides numbers that overflow.
    if math.prod(n for n in shape if n) * dtype.itemsize > max(len(data), 1 << 31):
        raise WireError("the shape of an array is impossible")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WireError(f"an array of shape {shape} and dtype {dtype.str} cannot have {len(data)} bytes")
    # A bool is 0 or 1, whatever was sent.
    values = np.frombuffer(data, np.uint8) != 0 if dtype.kind == "b" else np.frombuffer(data, dtype).copy()
    return values.reshape(shape)


def _numpy_number(fields: dict[str | bytes, Any]) -> np.generic:
    if fields.keys() != {b"__npgeneric__", b"data", b"dtype"} or fields[b"__npgeneric__"] is not True:
        raise WireError("a numpy number must have the keys __npgeneric__ (true), data and dtype")
    value, dtype = fields[b"data"], _dtype(fields[b"dtype"])
    if dtype.kind == "b":
        fits = isinstance(value, bool)
    elif dtype.kind == "f":
        fits = type(value) in (int, float)
    else:
        fits = type(value) is int and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    if not fits:
        raise WireError(f"a number of dtype {dtype.str} cannot be what was sent")
    with np.errstate(over="ignore"):  # too large for a short float is infinity
        return dtype.type(value)


def _dtype(name: Any) -> np.dtype:
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        shown = repr(name)[:20] if isinstance(name, str) else type(name).__name__
        raise WireError(f"dtype {shown} is not allowed; valid: {' '.join(DTYPES)}")
    return dtype
