"""Lossless JPEG XL, one frame per chunk: a quarter to a third of the size, encoded in about 1.4 CPU-ms at 640x480.

Effort 1 is the only one quick enough to record with, and no worse than the next ones on camera frames. Decoding is
slow, 6 to 9 ms: for archives, and for what must be exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn_data.codecs.chunk import ChunkCodec, CodecError, check_frames

_LONGEST = 65500


@dataclass(frozen=True)
class JpegXlCodec(ChunkCodec):
    """uint8 frames (H, W, 1), (H, W, 3) or (H, W, 4) without loss, through libjxl."""

    name = "robolearn.jpegxl"

    def check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        check_frames("lossless JPEG XL", shape, dtype, (1, 3, 4), longest=_LONGEST)
        if shape[0] != 1:
            raise CodecError(f"JPEG XL takes chunks of one frame, not {shape[0]}")

    def encode_chunk(self, chunk: np.ndarray) -> bytes:
        import imagecodecs

        return bytes(imagecodecs.jpegxl_encode(_picture(chunk), lossless=True, effort=1, numthreads=1))

    def decode_into(self, data: bytes, out: np.ndarray, start: int, rows: int) -> None:
        import imagecodecs

        try:  # the size is compared with that of ``out`` before anything is allocated
            imagecodecs.jpegxl_decode(data, out=_picture(out), numthreads=1)
        except (ValueError, RuntimeError) as error:  # libjxl's own error is a RuntimeError
            raise CodecError(f"not a whole JPEG XL picture of {out.shape[1]}x{out.shape[2]}: {error}") from None


def _picture(chunk: np.ndarray) -> np.ndarray:
    """The frame as the library wants it: a single channel has no axis of its own."""
    return chunk[0, :, :, 0] if chunk.shape[3] == 1 else chunk[0]
