"""Camera pictures of LeRobot datasets through PyAV: mp4 files of many frames, and single PNG or JPEG files.

Pictures are (height, width, channels) uint8 with 1 or 3 channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType, VideoFrame

from robolearn_data.formats.transfer import ImportFormatError, one_line

CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"g": "2", "crf": "23", "preset": "veryfast", "bf": "0"}),
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
}
"""Codec -> encoder of FFmpeg and its settings. Those of av1, and two frames per key frame, are LeRobot's own."""

_PIX_FMT = "yuv420p"


def _limit(shape: tuple[int, ...]) -> dict[str, str]:
    """Stops files that declare pictures to fill the memory. Decoders round sizes up, hence the margin."""
    return {"max_pixels": str((shape[0] + 256) * (shape[1] + 256))}


class VideoReader:
    """Frames of one video at instants that mostly increase: each frame is decoded once, and two are held at a time."""

    def __init__(self, path: Path, shape: tuple[int, ...], *, tolerance_s: float) -> None:
        """``shape`` is what frames must have; an instant without a frame within ``tolerance_s`` is an error."""
        self.path = path
        self.shape = shape
        self.tolerance_s = tolerance_s
        self._frames: Iterator[tuple[float, VideoFrame]] | None = None
        self._before: tuple[float, VideoFrame] | None = None
        self._after: tuple[float, VideoFrame] | None = None

    def at(self, time_s: float) -> np.ndarray:
        """The frame nearest to an instant of the video.

        Raises:
            ImportFormatError: none is near enough, the file is damaged, or frames have another shape.
        """
        try:
            nearest = self._nearest(time_s)
            if nearest is None or abs(nearest[0] - time_s) > self.tolerance_s:
                last = "no frame" if self._before is None else f"its frame before that is at {self._before[0]:.3f} s"
                raise ImportFormatError(f"{self.path} has no frame at {time_s:.3f} s; {last}: it is too short or gappy")
            pixels = nearest[1].to_ndarray(format="rgb24" if self.shape[2] == 3 else "gray")
        except (FFmpegError, ValueError, IndexError, MemoryError) as error:
            self.close()
            if isinstance(error, ImportFormatError):
                raise
            raise ImportFormatError(f"{self.path} cannot be decoded near {time_s:.3f} s: {one_line(error)}") from None
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if pixels.shape != self.shape:
            raise ImportFormatError(f"{self.path} has frames of shape {pixels.shape}, info.json says {self.shape}")
        return pixels

    def close(self) -> None:
        self._frames = self._before = self._after = None

    def _nearest(self, time_s: float) -> tuple[float, VideoFrame] | None:
        if self._frames is None or (self._before is not None and time_s < self._before[0] - self.tolerance_s):
            self.close()
            self._frames = self._decode(time_s)
            self._after = next(self._frames, None)
        while self._after is not None and self._after[0] < time_s:
            self._before, self._after = self._after, next(self._frames, None)
        found = [frame for frame in (self._before, self._after) if frame is not None]
        return min(found, key=lambda frame: abs(frame[0] - time_s)) if found else None

    def _decode(self, start_s: float) -> Iterator[tuple[float, VideoFrame]]:
        """(instant, frame) from the last key frame before an instant on."""
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:  # the typing of PyAV knows nothing of it
                raise ValueError("no decoder for what it says it holds")
            stream.codec_context.options = _limit(self.shape)
            if start_s > 0 and stream.time_base:
                container.seek(max(int(start_s / stream.time_base) - 1, 0), backward=True, stream=stream)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.time_base:
                    yield float(frame.pts * frame.time_base), frame


def frame_count(path: Path) -> int:
    """Frames that the header of a video promises; 0 where it says nothing.

    Raises:
        ImportFormatError: no video.
    """
    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].frames
    except (FFmpegError, ValueError, IndexError) as error:
        raise ImportFormatError(f"{path} is not a readable video: {one_line(error)}") from None


class VideoWriter:
    """One mp4 file, to which episodes are added one after the other; each begins with a key frame."""

    def __init__(self, path: Path, shape: tuple[int, ...], fps: float, codec: str) -> None:
        self.frames = 0
        encoder, options = CODECS[codec]
        self._container = av.open(str(path), "w", options={"movflags": "faststart"})
        rate = Fraction(fps).limit_denominator(100_000)
        self._stream: Any = self._container.add_stream(encoder, rate=rate, options=options)
        self._stream.height, self._stream.width = shape[:2]
        self._stream.pix_fmt = _PIX_FMT
        self._time_base = 1 / rate

    def write(self, pictures: np.ndarray, *, begins: bool) -> None:
        """Add pictures (n, H, W, 3). ``begins``: the first of them is the first of an episode."""
        with _same_priority():
            for number, picture in enumerate(pictures):
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = self.frames, self._time_base
                if begins and number == 0:
                    frame.pict_type = PictureType.I
                self._container.mux(self._stream.encode(frame))
                self.frames += 1

    def close(self) -> None:
        with _same_priority():
            self._container.mux(self._stream.encode())
            self._container.close()


@contextmanager
def _same_priority() -> Iterator[None]:
    """SVT-AV1 gives whoever calls it the highest real-time priority, if it may: as root."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)


def encoding_info(shape: tuple[int, ...], fps: float, codec: str) -> dict[str, Any]:
    """What info.json tells about a video that ``VideoWriter`` wrote."""
    options = CODECS[codec][1]
    preset = options["preset"]
    return {
        "video.height": shape[0],
        "video.width": shape[1],
        "video.codec": codec,
        "video.pix_fmt": _PIX_FMT,
        "video.fps": int(fps),
        "video.channels": 3,
        "has_audio": False,
        "video.g": int(options["g"]),
        "video.crf": int(options["crf"]),
        "video.preset": int(preset) if preset.isdigit() else preset,
        "video.fast_decode": 0,
        "video.video_backend": "pyav",
        "video.extra_options": {},
        "is_depth_map": False,
    }


def encode_png(picture: np.ndarray) -> bytes:
    """The PNG file of one picture (H, W, 3)."""
    context: Any = av.CodecContext.create("png", "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base = "rgb24", Fraction(1)
    packets = context.encode(VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))
    return b"".join(bytes(packet) for packet in [*packets, *context.encode()])


def decode_picture(data: Any, shape: tuple[int, ...], place: str) -> np.ndarray:
    """The picture of a PNG or JPEG file.

    Raises:
        ImportFormatError: another kind of file, damaged, or of another shape; the message names the place.
    """
    codec = "png" if isinstance(data, bytes) and data.startswith(b"\x89PNG") else "mjpeg"
    if not isinstance(data, bytes) or not data.startswith((b"\x89PNG", b"\xff\xd8")):
        raise ImportFormatError(f"{place} holds no PNG or JPEG file")
    try:
        context: Any = av.CodecContext.create(codec, "r")
        context.options = _limit(shape)
        frames = [*context.decode(av.Packet(data)), *context.decode()]
        pixels = frames[0].to_ndarray(format="rgb24" if shape[2] == 3 else "gray")
    except (FFmpegError, ValueError, IndexError, MemoryError) as error:
        raise ImportFormatError(f"{place} holds a picture that cannot be decoded: {one_line(error)}") from None
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape != shape:
        raise ImportFormatError(f"{place} holds a picture of shape {pixels.shape}, info.json says {shape}")
    return pixels
