"""H.264, consecutive frames in one chunk: the smallest files by far; reading a row decodes those before it, too.

A chunk holds one or more segments, each a closed group of pictures that some write has put there. A write that touches
part of a chunk keeps the segments beside it as they are: the frames of an earlier episode are not decoded and encoded
again, which would change them, when the next one begins in the same chunk. A segment is::

    4 x uint32, little-endian    first row in the chunk, rows, frames to skip before them, bytes that follow
    H.264 in Annex B format
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from zarr.abc.codec import ArrayBytesCodecPartialEncodeMixin
from zarr.abc.store import ByteSetter
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer
from zarr.core.indexing import SelectorTuple

from robolearn_data.codecs.chunk import ChunkCodec, CodecError, check_frames, check_whole

_LONGEST = 8192
_HEADER = struct.Struct("<4I")


class _Segment(NamedTuple):
    first: int
    rows: int
    skip: int
    """Frames of the video before those rows, which another segment has replaced."""
    video: bytes

    @property
    def stop(self) -> int:
        return self.first + self.rows

    def part(self, start: int, stop: int) -> _Segment:
        """The same video, standing for fewer rows."""
        return _Segment(start, stop - start, self.skip + start - self.first, self.video)


@dataclass(frozen=True)
class H264Codec(ChunkCodec, ArrayBytesCodecPartialEncodeMixin):
    """uint8 frames (H, W, 3) through libx264; the rows of the array's chunk are the longest group of pictures."""

    name = "robolearn.h264"
    crf: int = 23
    """Constant rate factor, 0 (best) to 51."""

    def __post_init__(self) -> None:
        check_whole("H.264 crf", self.crf, 0, 51)

    def check(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        check_frames("H.264", shape, dtype, (3,), longest=_LONGEST)

    def encode_chunk(self, chunk: np.ndarray) -> bytes:
        return _join([_Segment(0, len(chunk), 0, _encode(chunk, self.crf))])

    def decode_into(self, data: bytes, out: np.ndarray, start: int, rows: int) -> None:
        stop = start + len(out)
        for segment in _split(data, rows):
            low, high = max(segment.first, start), min(segment.stop, stop)
            if low < high:
                _decode(segment.part(low, high), out[low - start : high - start])

    async def _encode_partial_single(
        self, byte_setter: ByteSetter, chunk_array: NDBuffer, selection: SelectorTuple, chunk_spec: ArraySpec
    ) -> None:
        stored = await byte_setter.get(prototype=chunk_spec.prototype)
        data = b"" if stored is None else stored.to_bytes()
        values = chunk_array.as_numpy_array()
        changed = await asyncio.to_thread(self._write, data, values, selection, chunk_spec)
        await byte_setter.set(chunk_spec.prototype.buffer.from_bytes(changed))

    def _write(self, data: bytes, values: np.ndarray, selection: SelectorTuple, spec: ArraySpec) -> bytes:
        """The chunk ``data`` with ``values`` at ``selection``."""
        place = selection if isinstance(selection, tuple) else (selection,)
        first, *inside = place or (slice(None),)
        whole_frames = all(
            isinstance(s, slice) and s.indices(n) == (0, n, 1) for s, n in zip(inside, spec.shape[1:], strict=False)
        )
        start, stop, step = first.indices(spec.shape[0]) if isinstance(first, slice) else (0, 0, 0)
        if not (whole_frames and step == 1 and start < stop):  # single pixels, or rows that are not neighbours
            start, stop = 0, spec.shape[0]
            chunk = np.full(spec.shape, spec.fill_value, np.uint8)
            self.decode_into(data, chunk, 0, stop)
            chunk[selection] = values
            values = chunk
        frames = np.ascontiguousarray(np.broadcast_to(values, (stop - start, *spec.shape[1:])))
        kept = []
        for segment in _split(data, spec.shape[0]):
            if segment.first < start:
                kept.append(segment.part(segment.first, min(segment.stop, start)))
            if segment.stop > stop:
                kept.append(segment.part(max(segment.first, stop), segment.stop))
        return _join(sorted([*kept, _Segment(start, stop - start, 0, _encode(frames, self.crf))]))


def _join(segments: list[_Segment]) -> bytes:
    parts = [_HEADER.pack(s.first, s.rows, s.skip, len(s.video)) + s.video for s in segments]
    return b"".join(parts)


def _split(data: bytes, rows: int) -> Iterator[_Segment]:
    """The segments of a chunk of ``rows`` rows.

    Raises:
        CodecError: they do not follow each other within the chunk, or are cut off.
    """
    at = row = 0
    while at < len(data):
        if at + _HEADER.size > len(data):
            raise CodecError("H.264 chunk is cut off")
        first, count, skip, size = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if first < row or not count or first + count > rows or skip + count > rows or at + size > len(data):
            raise CodecError("H.264 chunk is damaged or cut off: its segments do not fit")
        yield _Segment(first, count, skip, data[at : at + size])
        at += size
        row = first + count


def _encode(frames: np.ndarray, crf: int) -> bytes:
    """Frames (n, H, W, 3) as one closed group of pictures; odd sides are padded by repeating the last pixels."""
    import av

    n, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder = av.VideoCodecContext.create("libx264", "w")
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, 30)  # needed, and of no meaning here
    encoder.thread_count = 1
    keys = f"keyint={n}:min-keyint={n}:scenecut=0:open-gop=0"
    encoder.options = {"crf": str(crf), "preset": "veryfast", "x264-params": keys}
    packets = []
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts = number
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    return b"".join(map(bytes, packets))


def _decode(segment: _Segment, out: np.ndarray) -> None:
    """Fill ``out`` (segment.rows, H, W, 3)."""
    import av
    from av.error import FFmpegError

    _, height, width, _ = out.shape
    decoder = av.VideoCodecContext.create("h264", "r")
    decoder.thread_count = 1
    # A picture that claims to be larger is refused before it is allocated. The library rounds sides up to 64.
    pixels = (height + 63) // 64 * 64 * ((width + 63) // 64 * 64)
    decoder.options = {"max_pixels": str(pixels), "err_detect": "explode"}
    number = 0
    try:
        for packet in (*decoder.parse(segment.video), *decoder.parse(), None):
            for picture in decoder.decode(packet):
                if (picture.height, picture.width) != (height + height % 2, width + width % 2):
                    found = f"{picture.height}x{picture.width}"
                    raise CodecError(f"H.264 picture of {found} where {height}x{width} belongs")
                if number >= segment.skip:
                    out[number - segment.skip] = picture.to_ndarray(format="rgb24")[:height, :width]
                number += 1
                if number == segment.skip + segment.rows:
                    return
    except FFmpegError as error:
        raise CodecError(f"H.264 cannot be decoded: {error.strerror}") from None
    raise CodecError(f"H.264 ends after {number} of {segment.skip + segment.rows} frames")
