"""JPEG, one frame per chunk: a tenth of the size and about one CPU-ms to encode or decode 640x480."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn_data.codecs.chunk import ChunkCodec, CodecError, check_frames, check_whole

_LONGEST = 65500
"""Pixels a side that libjpeg encodes."""


@dataclass(frozen=True)
class JpegCodec(ChunkCodec):
    """uint8 frames (H, W, 3) with colour at half resolution (4:2:0), or (H, W, 1), through libjpeg-turbo."""

    name = "robolearn.jpeg"
    quality: int = 95

    def __post_init__(self) -> None:
        check_whole("JPEG quality", self.quality, 1, 100)

    def check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        check_frames("JPEG", shape, dtype, (1, 3), longest=_LONGEST)
        if shape[0] != 1:
            raise CodecError(f"JPEG takes chunks of one frame, not {shape[0]}")

    def encode_chunk(self, chunk: np.ndarray) -> bytes:
        import simplejpeg

        if chunk.shape[3] == 1:
            return simplejpeg.encode_jpeg(chunk[0], self.quality, "GRAY", "Gray")
        return simplejpeg.encode_jpeg(chunk[0], self.quality, "RGB", "420")

    def decode_into(self, data: bytes, out: np.ndarray, start: int, rows: int) -> None:
        import simplejpeg

        _, height, width, channels = out.shape
        try:
            # libjpeg would allocate what the header says before anything else is looked at.
            found = simplejpeg.decode_jpeg_header(data)[:2]
            if found != (height, width):
                raise CodecError(f"JPEG of {found[0]}x{found[1]} where {height}x{width} belongs")
            simplejpeg.decode_jpeg(data, "GRAY" if channels == 1 else "RGB", buffer=out[0])
        except CodecError:
            raise
        except ValueError as error:
            raise CodecError(f"not a whole JPEG: {error}") from None
