"""What the codecs of this package share: the seam between zarr's asynchronous calls and plain functions on arrays."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON, parse_named_configuration

from robolearn_data.schema import UserError


class CodecError(UserError):
    """A chunk is damaged, or a codec cannot hold what it is given."""


@dataclass(frozen=True)
class ChunkCodec(ArrayBytesCodec):
    """Turns a chunk (n, H, W, C) into bytes and back. The fields of a subclass are its configuration in zarr.json."""

    is_fixed_size = False
    name: ClassVar[str]
    """How zarr.json names the codec."""

    @abstractmethod
    def check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """
        Raises:
            CodecError: chunks of this shape and dtype cannot be encoded; the message says which can.
        """

    @abstractmethod
    def encode_chunk(self, chunk: np.ndarray) -> bytes:
        """A chunk (n, H, W, C), C-contiguous, as bytes."""

    @abstractmethod
    def decode_into(self, data: bytes, out: np.ndarray, start: int, rows: int) -> None:
        """Fill ``out`` (k, H, W, C) with rows [start, start + k) of the ``rows`` rows of a chunk.

        Rows that the chunk does not hold are left as they are. ``data`` is not trusted: nothing larger than
        ``out`` and a few pictures of its size is allocated, whatever a header says.

        Raises:
            CodecError: ``data`` is damaged, or holds pictures of another size.
        """

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        _, configuration = parse_named_configuration(data, cls.name, require_configuration=False)
        return cls(**(configuration or {}))

    def to_dict(self) -> dict[str, JSON]:
        return {"name": self.name, "configuration": asdict(self)}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        self.check(array_spec.shape, array_spec.dtype.to_native_dtype())
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise NotImplementedError

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        chunk = np.ascontiguousarray(chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(await asyncio.to_thread(self.encode_chunk, chunk))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        out = np.full(chunk_spec.shape, chunk_spec.fill_value, chunk_spec.dtype.to_native_dtype())
        await asyncio.to_thread(self.decode_into, chunk_data.to_bytes(), out, 0, len(out))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(out)


def check_frames(
    what: str, shape: tuple[int, ...], dtype: np.dtype[Any], channels: tuple[int, ...], *, longest: int
) -> None:
    """
    Raises:
        CodecError: not uint8 pictures (n, H, W, C) with one of ``channels`` and sides up to ``longest`` pixels.
    """
    fits = dtype == np.uint8 and len(shape) == 4 and shape[3] in channels and max(shape[1:3]) <= longest
    if not fits:
        raise CodecError(
            f"{what} takes uint8 images (height, width, {' or '.join(map(str, channels))}) of at most {longest} pixels "
            f"a side, not {dtype} {tuple(shape[1:])}"
        )


def check_whole(what: str, value: Any, low: int, high: int) -> None:
    """
    Raises:
        CodecError: ``value`` is not a whole number from ``low`` to ``high``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CodecError(f"{what} must be a whole number from {low} to {high}, not {value!r}")
