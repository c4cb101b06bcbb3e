"""What a dataset, a world and a policy agree on: named streams of fixed shape at one control rate.

This module depends on numpy alone, so that drivers, worlds and policies can all import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np

Kind = Literal["state", "image", "points", "action", "info", "text"]
"""state: a vector a policy may observe; image: (H, W, C) pixels; points: a point cloud (P, C), each point x, y, z in
metres and what else is known of it, such as its colour; action: what the robot is told; text: up to N bytes of UTF-8
(an instruction, a remark) as uint8 (N,), zeros after its end, see ``read_text``; info: the rest."""

Interpolation = Literal["previous", "nearest", "linear", "quaternion", "rotation_vector"]
"""How a stream is read between its samples. previous: the newest one captured by then, all that a controller could
have had; quaternion, rotation_vector: along the shortest rotation (slerp), for (w, x, y, z) and for axis * angle."""

Observation = dict[str, np.ndarray]
"""One instant: stream name -> array of the stream's shape."""


class UserError(ValueError):
    """A mistake that a person can mend. The message is one line: what is wrong, what is valid, what to do.

    The command line prints it and exits with code 2; every package raises subclasses of it.
    """


class SchemaError(UserError):
    """Data does not have the form that was declared."""


STALE_PERIODS = 1.5
"""Age at which the newest sample of a stream with a rate of its own counts as a hole, in its nominal periods."""


@dataclass(frozen=True)
class Stream:
    """One named signal. Shapes are those of a single sample, without time."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: Kind = "state"
    names: tuple[str, ...] = ()
    """A name for each component of the last axis, or empty."""
    unit: str = ""
    """Unit of the values ("m", "rad", "px"), one for all or one for each component separated by commas."""
    frame: str = ""
    """Coordinate frame the values are expressed in ("base", "world"), where that has a meaning."""
    wraps: tuple[int, ...] = ()
    """Components that are angles in radians which wrap at a full turn. A policy sees their cosine and sine."""
    relative: tuple[int, ...] = ()
    """Action components that are changes per control period: zero stops them. The others are held by repeating them."""
    rate_hz: float = 0.0
    """Nominal rate of a stream that is recorded whenever a sample comes. 0: one sample for each control step. A text
    that comes whenever somebody speaks may state any rate: it holds until the next."""
    interpolation: Interpolation = "previous"
    """How samples of a stream with a rate of its own are brought to control steps and other instants."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise SchemaError(f"stream kind {self.kind!r} is unknown; valid: {', '.join(get_args(Kind))}")
        if any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise SchemaError(f"stream shape {self.shape!r} must hold positive integers")
        try:
            dtype = np.dtype(self.dtype)
        except TypeError as error:
            raise SchemaError(f"stream dtype {self.dtype!r} is not a numpy dtype") from error
        if dtype.kind not in "fiub":
            raise SchemaError(f"stream dtype {self.dtype!r} is not numeric; valid: floats, integers, bool")
        if self.kind == "image" and len(self.shape) != 3:
            raise SchemaError(f"image stream needs shape (height, width, channels), got {self.shape!r}")
        if self.kind == "points" and (len(self.shape) != 2 or self.shape[1] < 3 or dtype.kind != "f"):
            raise SchemaError(
                f"points stream needs shape (points, 3 or more) and floats, got {self.shape!r} and {self.dtype!r}"
            )
        if self.kind == "text" and (len(self.shape) != 1 or dtype != np.uint8):
            raise SchemaError(f"text stream needs shape (bytes,) and uint8, got {self.shape!r} and {self.dtype!r}")
        if not (np.isfinite(self.rate_hz) and self.rate_hz >= 0):
            raise SchemaError(
                f"stream rate_hz must be positive, or 0 for one sample per control step; got {self.rate_hz!r}"
            )
        self._check_interpolation(dtype)
        last = self.shape[-1] if self.shape else 1
        if self.names and len(self.names) != last:
            raise SchemaError(f"{len(self.names)} names for {last} components")
        for name, indices in (("wraps", self.wraps), ("relative", self.relative)):
            if any(not 0 <= i < last for i in indices) or (indices and len(self.shape) != 1):
                raise SchemaError(f"{name} {indices!r} must index a vector of {last} components")

    def _check_interpolation(self, dtype: np.dtype) -> None:
        if self.interpolation not in get_args(Interpolation):
            valid = ", ".join(get_args(Interpolation))
            raise SchemaError(f"stream interpolation {self.interpolation!r} is unknown; valid: {valid}")
        if self.interpolation not in ("previous", "nearest") and dtype.kind != "f":
            raise SchemaError(f"interpolation {self.interpolation!r} needs a float dtype, got {self.dtype!r}")
        needed = {"quaternion": 4, "rotation_vector": 3}.get(self.interpolation)
        if needed and self.shape[-1:] != (needed,):
            raise SchemaError(f"interpolation {self.interpolation!r} needs shape (..., {needed}), got {self.shape!r}")

    @property
    def is_native(self) -> bool:
        """Whether it is recorded at a rate of its own."""
        return self.rate_hz > 0

    @property
    def stale_ns(self) -> float:
        """Age at which the newest sample of a stream with a rate of its own counts as a hole, ns."""
        return np.inf if self.kind == "text" else STALE_PERIODS * 1e9 / self.rate_hz

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def check(self, name: str, value: Any, *, batch: tuple[int, ...] = ()) -> np.ndarray:
        """Return ``value`` as an array of shape ``batch + self.shape`` and this dtype; a text may be str.

        Raises:
            SchemaError: wrong shape, a dtype that would lose information, NaN or infinity, a text that is too long.
        """
        array = np.asarray(value)
        if self.kind == "text" and array.dtype.kind == "U":
            array = _text_array(name, array, self.shape[0])
        expected = batch + self.shape
        if array.shape != expected:
            raise SchemaError(f"stream {name!r} has shape {array.shape}, expected {expected}")
        if not np.can_cast(array.dtype, self.dtype, casting="same_kind"):
            raise SchemaError(f"stream {name!r} has dtype {array.dtype}, expected {self.dtype}")
        with np.errstate(over="ignore"):
            array = array.astype(self.dtype, copy=False)
        if array.dtype.kind == "f" and not np.isfinite(array).all():  # also what is too large for the dtype
            raise SchemaError(f"stream {name!r} holds NaN or infinity; drop the sample or mark it invalid")
        return array


def _text_array(name: str, texts: np.ndarray, size: int) -> np.ndarray:
    """Texts (...,) as UTF-8 (..., size) uint8."""
    encoded = [text.encode() for text in texts.ravel().tolist()]
    longest = max(map(len, encoded), default=0)
    if longest > size:
        raise SchemaError(f"stream {name!r} takes texts of {size} bytes, got one of {longest}")
    return np.frombuffer(b"".join(e.ljust(size, b"\0") for e in encoded), np.uint8).reshape(*texts.shape, size)


def read_text(value: np.ndarray) -> str:
    """The text in a sample (bytes,) of a text stream."""
    return value.tobytes().rstrip(b"\0").decode(errors="replace")


@dataclass(frozen=True)
class Schema:
    """The streams of a dataset or world, sampled together at the control rate."""

    rate_hz: float
    streams: Mapping[str, Stream] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise SchemaError(f"rate_hz must be a positive number, got {self.rate_hz!r}")
        object.__setattr__(self, "rate_hz", float(self.rate_hz))
        for name in self.streams:
            if not name or not all(c.isalnum() or c in "_-" for c in name):
                raise SchemaError(f"stream name {name!r} is not valid; use letters, digits, '_' and '-'")

    def of_kind(self, *kinds: Kind) -> dict[str, Stream]:
        return {name: s for name, s in self.streams.items() if s.kind in kinds}

    def stream(self, name: str) -> Stream:
        try:
            return self.streams[name]
        except KeyError:
            raise SchemaError(f"no stream {name!r}; valid: {', '.join(sorted(self.streams))}") from None

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict that ``from_json`` turns back into an equal schema, without fields at their default."""
        default = Stream(shape=())
        streams = {}
        for name, s in self.streams.items():
            values = {
                k: list(v) if isinstance(v, tuple) else v for k, v in asdict(s).items() if v != getattr(default, k)
            }
            streams[name] = {"shape": list(s.shape), **values}
        return {"rate_hz": self.rate_hz, "streams": streams}

    @classmethod
    def from_json(cls, value: Any) -> Schema:
        """Read what ``to_json`` wrote.

        Raises:
            SchemaError: anything missing, unknown or of a wrong type.
        """
        try:
            unknown = set(value) - {"rate_hz", "streams"}
            if unknown:
                raise SchemaError(f"schema has unknown keys {sorted(unknown)}; valid: rate_hz, streams")
            streams = {str(name): _stream_from_json(name, s) for name, s in value["streams"].items()}
            return cls(rate_hz=float(value["rate_hz"]), streams=streams)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, SchemaError):
                raise
            raise SchemaError(f"schema cannot be read: {error!r}") from error


def _stream_from_json(name: str, value: Mapping[str, Any]) -> Stream:
    valid = {f.name for f in fields(Stream)}
    unknown = set(value) - valid
    if unknown:
        raise SchemaError(f"stream {name!r} has unknown keys {sorted(unknown)}; valid: {', '.join(sorted(valid))}")
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return Stream(**arguments)
