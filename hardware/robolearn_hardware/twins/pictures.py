"""What the cameras of twins see, and when: pictures at a steady rate, with the faults that pictures can have."""

from __future__ import annotations

import queue
import random
import threading
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from robolearn_hardware.clock import SECOND_NS, now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import DeviceError
from robolearn_hardware.twins.faults import Faults

SPIKE_NS = 50_000_000


@dataclass(frozen=True)
class PictureSpec:
    """What a camera's twin asks of its pictures."""

    name: str
    """Of the camera in the rig."""
    width: int
    height: int
    focal_px: float
    """Of both pictures; the optical axis is in the middle."""
    depth_offset_m: float = 0.0
    """The depth camera stands so far to the left (-x) of the colour camera."""


class Pictures(Protocol):
    def at(self, time_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Colour (H, W, 3) uint8 RGB and depth (H, W) uint16 in mm, 0 = not known, at an instant of CLOCK_MONOTONIC.
        The arrays are the caller's own."""
        ...

    def close(self) -> None:
        """By the thread that made it."""
        ...


def make_pictures(kind: str, spec: PictureSpec) -> Pictures:
    """Pictures of ``kind``: "pattern", or one that a package offers under the entry point group "robolearn.pictures" as
    a function of a PictureSpec.

    Raises:
        DeviceError: no such kind.
    """
    if kind == "pattern":
        return Pattern(spec)
    found = {entry.name: entry for entry in entry_points(group="robolearn.pictures")}
    if kind not in found:
        raise DeviceError(f"no pictures {kind!r}; valid: {', '.join(['pattern', *sorted(found)])}")
    return found[kind].load()(spec)


class Pattern:
    """A test picture: its own time in black and white blocks above and below (``read_time``), and between them a red
    bar that swings once in ``PERIOD_S`` (``read_bar``), 0.5 m before a grey wall at 1 m."""

    PERIOD_S = 2.0
    SWING = 0.35
    """Of the picture's width, to either side."""
    _COLUMNS, _ROWS = 16, 5
    """Of blocks, 80 in all: 64 bits of time and 16 of a checksum."""

    def __init__(self, spec: PictureSpec) -> None:
        self._spec = spec
        w, h = spec.width, spec.height
        if w < 64 or h < 64:
            raise DeviceError(f"the pattern needs pictures of 64x64 at least, not {w}x{h}")
        ramp = np.linspace(60, 180, w, dtype=np.uint8)
        self._colour = np.ascontiguousarray(np.broadcast_to(ramp[None, :, None], (h, w, 3)))
        self._depth = np.full((h, w), 1000, np.uint16)

    def at(self, time_ns: int) -> tuple[np.ndarray, np.ndarray]:
        w, h = self._spec.width, self._spec.height
        colour, depth = self._colour.copy(), self._depth.copy()
        code = _blocks(time_ns, w, h)
        colour[: len(code)] = code[..., None]
        colour[-len(code) :] = code[..., None]
        middle, half = bar_at(time_ns) * w, w / 20
        rows = slice(h // 4, h - h // 4)
        colour[rows, _columns(middle, half)] = (220, 20, 20)
        shift = self._spec.focal_px * self._spec.depth_offset_m / 0.5
        depth[rows, _columns(middle + shift, half)] = 500
        return colour, depth

    def close(self) -> None:
        pass


def bar_at(time_ns: int) -> float:
    """Where the bar of ``Pattern`` is: its middle, as a share of the picture's width."""
    turns = (time_ns / SECOND_NS) / Pattern.PERIOD_S
    return 0.5 + Pattern.SWING * float(np.sin(2 * np.pi * turns))


def read_bar(colour: np.ndarray) -> float:
    """Where the bar is in a picture (H, W, 3) of ``Pattern``, as ``bar_at``; NaN where there is none."""
    row = colour[colour.shape[0] // 2].astype(np.int16)
    red = np.flatnonzero((row[:, 0] > 150) & (row[:, 1] < 90) & (row[:, 2] < 90))
    return float(red.mean() + 0.5) / colour.shape[1] if red.size else float("nan")


def read_time(colour: np.ndarray) -> int:
    """The instant (ns) written in a picture (H, W, 3) of ``Pattern``.

    Raises:
        ValueError: it cannot be read, or the top says another instant than the bottom: the picture is of two.
    """
    height = _code_height(len(colour))
    above, below = (_decode(part) for part in (colour[:height], colour[-height:]))
    if above != below:
        raise ValueError(f"the top was drawn at {above}, the bottom at {below}")
    return above


def _code_height(height: int) -> int:
    return height // 5 // Pattern._ROWS * Pattern._ROWS


def _blocks(time_ns: int, width: int, height: int) -> np.ndarray:
    value = time_ns.to_bytes(8, "big")
    bits = np.unpackbits(np.frombuffer(value + (zlib.crc32(value) & 0xFFFF).to_bytes(2, "big"), np.uint8))
    grid = np.where(bits, 235, 16).astype(np.uint8).reshape(Pattern._ROWS, Pattern._COLUMNS)
    columns = np.arange(width) * Pattern._COLUMNS // width
    return np.repeat(grid[:, columns], _code_height(height) // Pattern._ROWS, axis=0)


def _decode(part: np.ndarray) -> int:
    height, width = part.shape[:2]
    y = ((np.arange(Pattern._ROWS) + 0.5) * height / Pattern._ROWS).astype(int)
    x = ((np.arange(Pattern._COLUMNS) + 0.5) * width / Pattern._COLUMNS).astype(int)
    raw = np.packbits(part[np.ix_(y, x)].mean(-1).ravel() > 128).tobytes()
    if zlib.crc32(raw[:8]) & 0xFFFF != int.from_bytes(raw[8:], "big"):
        raise ValueError("the picture holds no time that can be read")
    return int.from_bytes(raw[:8], "big")


def _columns(middle: float, half: float) -> slice:
    return slice(max(0, round(middle - half)), max(0, round(middle + half)))


@dataclass(frozen=True, eq=False)
class TwinFrame:
    """One picture that a twin's camera took."""

    number: int
    capture_ns: int
    colour: np.ndarray
    depth: np.ndarray


class Feed:
    """Takes pictures on a fixed grid of time in a thread and hands each to ``emit``, with the faults "frozen", "lose",
    "latency_s" and "spikes"."""

    FAULTS = frozenset({"frozen", "lose", "latency_s", "spikes"})

    def __init__(self, make: Callable[[], Pictures], rate_hz: float, emit: Callable[[TwinFrame], None]) -> None:
        self.faults = Faults()
        self._delays_ns: deque[int] = deque(maxlen=1000)
        self._emitted = 0
        self._make, self._emit = make, emit
        self._period_ns = period_ns(rate_hz)
        self._end = threading.Event()
        self._ready: queue.SimpleQueue[DeviceError | None] = queue.SimpleQueue()
        self._random = random.Random(0)
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def observe(self) -> dict[str, Any]:
        """For tests: "frames", how many it took and did not lose; "delays_ns" of the last of them (n,), what drawing
        them and the faults took."""
        return {"positions": np.zeros(0), "frames": self._emitted, "delays_ns": np.array(self._delays_ns)}

    def start(self) -> None:
        """Raises DeviceError: there is nothing to take pictures of."""
        self._thread.start()
        if (problem := self._ready.get()) is not None:
            raise problem

    def close(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            made = self._make()  # here, because a renderer belongs to one thread
        except DeviceError as error:
            self._ready.put(error)
            return
        self._ready.put(None)
        with closing(made) as pictures:
            self._take(pictures)

    def _take(self, pictures: Pictures) -> None:
        start_ns, number = now_ns(), 0
        colour, depth = pictures.at(start_ns)
        waiting: deque[tuple[int, TwinFrame]] = deque()
        while not self._end.is_set():
            number = max(number + 1, (now_ns() - start_ns) // self._period_ns)
            capture_ns = start_ns + number * self._period_ns
            while waiting and waiting[0][0] < capture_ns:
                self._send(*waiting.popleft())
            wait_until_ns(capture_ns)
            faults = self.faults
            if not faults.frozen:
                colour, depth = pictures.at(capture_ns)
            if self._random.random() >= faults.lose:
                spike_ns = SPIKE_NS if self._random.random() < faults.spikes else 0
                late_ns = round(faults.latency_s * SECOND_NS) + spike_ns
                due_ns = max(capture_ns + late_ns, waiting[-1][0] if waiting else 0)
                waiting.append((due_ns, TwinFrame(number, capture_ns, colour, depth)))
            while waiting and waiting[0][0] <= now_ns():
                self._send(*waiting.popleft())

    def _send(self, due_ns: int, frame: TwinFrame) -> None:
        wait_until_ns(due_ns)
        self._delays_ns.append(now_ns() - frame.capture_ns)
        self._emitted += 1
        self._emit(frame)
