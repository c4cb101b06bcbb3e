"""One episode as one self-contained HTML page: pictures along time, curves, latency, holes; no scripts, no files."""

from __future__ import annotations

import base64
import html
import json
import struct
import zlib

import numpy as np

from robolearn_data import storage
from robolearn_data.curves import Curve, chart
from robolearn_data.dataset import Dataset
from robolearn_data.recorder import ACTION_STAGES
from robolearn_data.schema import Stream, read_text
from robolearn_data.statistics import component_name

_THUMBNAILS, _THUMBNAIL_PX = 12, 80
_STYLE = (
    "body{font:15px/1.4 sans-serif;margin:16px auto;padding:0 16px;max-width:1080px;color:#1a1a1a;background:#fff}"
    "h1{font-size:22px;overflow-wrap:anywhere}h2{font-size:17px;margin:26px 0 6px;overflow-wrap:anywhere}"
    "h2 small{font-weight:normal;color:#555}td{padding:1px 14px 1px 0;vertical-align:top;overflow-wrap:anywhere}"
    ".chart{overflow-x:auto}svg{display:block;width:100%;min-width:720px;font:14px sans-serif;fill:#333}"
    ".strip{display:flex;flex-wrap:wrap;gap:3px}.strip figure{margin:0;text-align:center;font-size:12px;color:#444}"
    ".strip img{width:84px;display:block;image-rendering:pixelated}.key{margin-right:14px;white-space:nowrap}"
    ".keys{margin-bottom:10px}h3{font-size:15px;margin:10px 0 2px}"
    ".key i{display:inline-block;width:11px;height:11px;margin-right:5px}.hole{background:#f3b7b7;padding:0 4px}"
)


def episode_page(dataset: Dataset, episode: int) -> str:
    """The page's HTML. Everything that the dataset says about itself is escaped.

    Raises:
        SchemaError: no such episode.
    """
    page = _Page(dataset, episode)
    stages = [n for n in ACTION_STAGES if n in dataset.schema.streams]
    parts = [f"<h1>{html.escape(page.title)}</h1>", page.info()]
    for name, stream in dataset.schema.streams.items():
        if name in stages and len(stages) > 1:
            parts += page.actions(stages) if name == stages[0] else []
        else:
            parts += page.stream(name, stream)
    parts += page.latencies()
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(page.title)}</title><style>{_STYLE}</style>"
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


class _Page:
    """The parts of a page about one episode. Times are seconds since its first control step."""

    def __init__(self, dataset: Dataset, episode: int) -> None:
        self.dataset = dataset
        self.rows = dataset.rows(episode)
        self.episode = episode % dataset.episodes
        self.title = f"{dataset.location.name}, episode {self.episode}"
        ticks = dataset.times()
        self.ticks = None if ticks is None or not (ticks[self.rows] != 0).all() else ticks[self.rows]
        count = self.rows.stop - self.rows.start
        rate = dataset.schema.rate_hz
        self.time_s = np.arange(count) / rate if self.ticks is None else (self.ticks - self.ticks[0]) / 1e9
        self.end_s = float(self.time_s[-1]) + 1 / rate

    def info(self) -> str:
        facts = {
            "steps": f"{len(self.time_s)} at {self.dataset.schema.rate_hz:g} Hz",
            "duration": f"{self.end_s:.2f} s",
        }
        facts |= self.dataset.episode_info(self.episode)
        lines = (
            f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(v if isinstance(v, str) else json.dumps(v))}"
            for key, v in facts.items()
        )
        return f"<table>{''.join(line + '</td></tr>' for line in lines)}</table>"

    def stream(self, name: str, stream: Stream) -> list[str]:
        """Pictures or curves of one stream, at its own samples where it has a rate of its own."""
        time_s, rows = self.time_s, self.rows
        notes = [stream.kind, stream.frame and f"frame {stream.frame}"]
        if stream.is_native:
            samples = self.dataset.samples(name, self.episode)
            time_s, rows = self._since_start(samples.time), samples.rows
            notes.append(f"{len(time_s)} samples at a nominal {stream.rate_hz:g} Hz")
            gaps = _pauses(time_s, stream.stale_ns / 1e9)
            missing = f"{len(gaps)} {'gap' if len(gaps) == 1 else 'gaps'} between samples" if gaps else ""
        else:
            holes = ~self.dataset.valid(name)[rows]
            gaps = self._spans(holes)
            missing = f"{int(holes.sum())} of {len(holes)} steps are holes" if holes.any() else ""
        parts = [_heading(name, ", ".join(filter(None, notes)), missing)]
        if not len(time_s):
            return [*parts, "<p>no sample in this episode</p>"]
        if stream.kind == "image":
            parts.append(self._strip(name, rows, time_s))
            return [*parts, chart([], self.end_s, gaps=gaps, height=44)] if gaps else parts
        if stream.kind == "text":
            return [*parts, self._texts(name, rows, time_s)]
        if storage.is_framed(stream) or stream.kind == "points":
            return [*parts, "<p>too large to draw</p>"]
        values = self._values(name, rows)
        labels, units = _components(name, stream)
        for unit in dict.fromkeys(units):  # metres and radians share no axis
            curves = [Curve(labels[c], time_s, values[:, c]) for c in range(len(labels)) if units[c] == unit]
            parts.append(chart(curves, self.end_s, unit=unit, gaps=gaps))
        return parts

    def actions(self, stages: list[str]) -> list[str]:
        """Each component of the action, as asked for, limited, sent and measured, on one pair of axes."""
        streams = self.dataset.schema.streams
        labels, units = _components(stages[0], streams[stages[0]])
        by_stage: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in stages:
            if streams[name].is_native:
                samples = self.dataset.samples(name, self.episode)
                by_stage[name] = self._since_start(samples.time), self._values(name, samples.rows)
            else:
                values = self._values(name, self.rows)
                values[~self.dataset.valid(name)[self.rows]] = np.nan
                by_stage[name] = self.time_s, values
        parts = [_heading("action", "; ".join(f"{n}: {ACTION_STAGES[n]}" for n in stages), "")]
        for c, (label, unit) in enumerate(zip(labels, units, strict=True)):
            parts.append(f"<h3>{html.escape(label)}</h3>" if label else "")
            curves = [Curve(n, t, v[:, c]) for n, (t, v) in by_stage.items() if v.shape[1] == len(labels)]
            parts.append(chart(curves, self.end_s, unit=unit, height=140))
        return parts

    def latencies(self) -> list[str]:
        """How long samples took from their capture to the recorder, and how old they were at the control steps."""
        on_the_way, at_step = [], []
        for name, stream in self.dataset.schema.streams.items():
            if stream.is_native:
                samples = self.dataset.samples(name, self.episode)
                time_s, captured, received = self._since_start(samples.time), samples.time, samples.received
            else:
                times, arrived = self.dataset.times(name), self.dataset.received(name)
                if times is None:
                    continue
                time_s, captured = self.time_s, times[self.rows]
                received = np.zeros_like(captured) if arrived is None else arrived[self.rows]
            known = (captured != 0) & (received != 0)
            if known.any():
                on_the_way.append(Curve(name, time_s, np.where(known, (received - captured) / 1e6, np.nan)))
            if self.ticks is None or not len(captured):
                continue
            newest = np.arange(len(self.ticks))
            if stream.is_native:
                newest = np.searchsorted(captured, self.ticks, side="right") - 1
            there = (newest >= 0) & (captured[newest] != 0)
            if there.any():
                age = np.where(there, (self.ticks - captured[newest]) / 1e6, np.nan)
                at_step.append(Curve(name, self.time_s, age))
        parts = []
        if on_the_way:
            parts += [_heading("latency", "from capture to the recorder", ""), chart(on_the_way, self.end_s, unit="ms")]
        if at_step:
            note = "of the newest sample at each control step, since its capture"
            parts += [_heading("age", note, ""), chart(at_step, self.end_s, unit="ms")]
        return parts

    def _values(self, name: str, rows: slice) -> np.ndarray:
        """(n, components) float64, as they are stored."""
        taken = self.dataset.take(name, np.arange(rows.start, rows.stop))
        return taken.reshape(len(taken), -1).astype(np.float64)

    def _since_start(self, instants: np.ndarray) -> np.ndarray:
        start = self.ticks[0] if self.ticks is not None else instants[0] if len(instants) else 0
        return (instants - start) / 1e9

    def _spans(self, holes: np.ndarray) -> list[tuple[float, float]]:
        edges = np.flatnonzero(np.diff(np.concatenate(([False], holes, [False])).astype(np.int8)))
        ends = np.append(self.time_s, self.end_s)
        return [(float(ends[a]), float(ends[b])) for a, b in zip(edges[::2], edges[1::2], strict=True)]

    def _strip(self, name: str, rows: slice, time_s: np.ndarray) -> str:
        chosen = np.unique(np.linspace(0, len(time_s) - 1, min(_THUMBNAILS, len(time_s))).round().astype(int))
        figures = []
        for i in chosen.tolist():
            picture = _smaller(self.dataset.take(name, np.array([rows.start + i]))[0])
            png = base64.b64encode(_png(_as_bytes(picture))).decode()
            label = f"{time_s[i]:.2f} s"
            caption = f"<figcaption>{label}</figcaption>"
            figures.append(f'<figure><img src="data:image/png;base64,{png}" alt="at {label}">{caption}</figure>')
        return f'<div class="strip">{"".join(figures)}</div>'

    def _texts(self, name: str, rows: slice, time_s: np.ndarray) -> str:
        """When the text became what."""
        said = [read_text(value) for value in self.dataset.take(name, np.arange(rows.start, rows.stop))]
        lines = [
            f"<tr><td>{time_s[i]:.2f} s</td><td>{html.escape(text)}</td></tr>"
            for i, text in enumerate(said)
            if i == 0 or text != said[i - 1]
        ]
        return f"<table>{''.join(lines)}</table>"


def _heading(name: str, notes: str, missing: str) -> str:
    hole = f' <span class="hole">{html.escape(missing)}</span>' if missing else ""
    return f"<h2>{html.escape(name)} <small>{html.escape(notes)}</small>{hole}</h2>"


def _components(name: str, stream: Stream) -> tuple[list[str], list[str]]:
    """Label and unit of each component."""
    labels = [component_name(name, stream, i).removeprefix(name).lstrip(".") for i in np.ndindex(stream.shape)]
    last = stream.shape[-1] if stream.shape else 1
    units = [unit.strip() for unit in stream.unit.split(",")]
    units = units if len(units) == last else [stream.unit] * last
    return labels, [units[i % last] for i in range(len(labels))]


def _pauses(time_s: np.ndarray, longest: float) -> list[tuple[float, float]]:
    wide = np.flatnonzero(np.diff(time_s) > longest)
    return [(float(time_s[i]), float(time_s[i + 1])) for i in wide]


def _smaller(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, C) whose shorter side is less than twice a thumbnail's."""
    every = max(min(picture.shape[:2]) // _THUMBNAIL_PX, 1)
    return picture[::every, ::every]


def _as_bytes(picture: np.ndarray) -> np.ndarray:
    """Any picture (H, W, C) as (H, W, 1 or 3) uint8; what is not 0..255 is stretched to it."""
    picture = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1]
    if picture.dtype == np.uint8:
        return picture
    values = picture.astype(np.float64)
    low, high = values.min(), values.max()
    if low < 0 or high > 255 or high <= 1:
        values = (values - low) / max(high - low, 1e-12) * 255
    return values.astype(np.uint8)


def _png(picture: np.ndarray) -> bytes:
    """(H, W, 1 or 3) uint8 as PNG (ISO/IEC 15948)."""
    height, width, channels = picture.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)])  # filter type 0 before each row

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )
