"""One episode as one self-contained HTML page: pictures along time, curves, latency, holes; no scripts, no files."""

from __future__ import annotations

import base64
import html
import json
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from robolearn_data import storage
from robolearn_data.dataset import Dataset
from robolearn_data.statistics import component_name

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 1000, 170, 62, 18
_THUMBNAILS, _THUMBNAIL_PX = 12, 80
_POINTS = 2000
_STYLE = (
    "body{font:14px sans-serif;margin:24px;max-width:1080px;color:#222}h2{font-size:16px;margin:22px 0 4px}"
    "table{border-collapse:collapse}td{padding:1px 14px 1px 0;vertical-align:top}svg{display:block}"
    ".strip img{width:80px;image-rendering:pixelated;margin-right:3px}.key{margin-right:14px;white-space:nowrap}"
)


def episode_page(dataset: Dataset, episode: int) -> str:
    """The page's HTML. Everything that the dataset says about itself is escaped.

    Raises:
        SchemaError: no such episode.
    """
    rows = dataset.rows(episode)
    episode %= dataset.episodes
    count = rows.stop - rows.start
    ticks = dataset.times()
    known = ticks is not None and bool((ticks[rows] != 0).all())
    time_s = (ticks[rows] - ticks[rows.start]) / 1e9 if known and ticks is not None else None
    if time_s is None:
        time_s = np.arange(count) / dataset.schema.rate_hz
    title = f"{dataset.location.name}, episode {episode}"
    parts = [f"<h1>{html.escape(title)}</h1>", _info(dataset, episode, time_s)]
    for name, stream in dataset.schema.streams.items():
        holes = ~dataset.valid(name)[rows]
        heading = ", ".join(filter(None, (name, stream.kind, stream.unit, stream.frame and f"frame {stream.frame}")))
        missing = f" ({int(holes.sum())} of {count} steps are holes)" if holes.any() else ""
        parts.append(f"<h2>{html.escape(heading + missing)}</h2>")
        if stream.kind == "image":
            parts.append(_strip(dataset, name, rows, time_s))
            if holes.any():
                parts.append(_curves(time_s, np.zeros((count, 0)), (), holes, height=46))
        elif storage.is_framed(stream):
            parts.append("<p>too large to draw</p>")
        else:
            values = dataset.read(name, rows).reshape(count, -1).astype(np.float64)
            labels = [
                component_name(name, stream, index).removeprefix(f"{name}.") for index in np.ndindex(stream.shape)
            ]
            last = stream.shape[-1] if stream.shape else 1
            units = stream.unit.split(",")
            units = units if len(units) == last else [stream.unit] * last
            for unit in dict.fromkeys(units):  # metres and radians share no axis
                chosen = [c for c in range(values.shape[1]) if units[c % last] == unit]
                parts.append(_curves(time_s, values[:, chosen], [labels[c] for c in chosen], holes))
    parts += _latencies(dataset, rows, time_s)
    page = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n{page}\n</body></html>\n"


def _info(dataset: Dataset, episode: int, time_s: np.ndarray) -> str:
    facts = {"steps": len(time_s), "duration": f"{time_s[-1] + 1 / dataset.schema.rate_hz:.2f} s"}
    facts |= dataset.episode_info(episode)
    lines = (
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(value if isinstance(value, str) else json.dumps(value))}"
        for key, value in facts.items()
    )
    return f"<table>{''.join(line + '</td></tr>' for line in lines)}</table>"


def _strip(dataset: Dataset, name: str, rows: slice, time_s: np.ndarray) -> str:
    steps = np.unique(np.linspace(0, len(time_s) - 1, min(_THUMBNAILS, len(time_s))).round().astype(int))
    pictures = []
    for step in steps.tolist():
        picture = dataset.read(name, slice(rows.start + step, rows.start + step + 1))[0]
        every = max(min(picture.shape[:2]) // _THUMBNAIL_PX, 1)
        png = base64.b64encode(_png(_as_bytes(picture[::every, ::every]))).decode()
        label = f"{time_s[step]:.2f} s"
        pictures.append(f'<img src="data:image/png;base64,{png}" alt="{label}" title="{label}">')
    span = f"{time_s[steps[0]]:.2f} s to {time_s[steps[-1]]:.2f} s, evenly"
    return f'<div class="strip">{"".join(pictures)}</div><small>{span}</small>'


def _latencies(dataset: Dataset, rows: slice, time_s: np.ndarray) -> list[str]:
    ticks = dataset.times()
    if ticks is None:
        return []
    labels, columns = [], []
    for name, stream in dataset.schema.streams.items():
        captured = None if stream.is_native else dataset.times(name)
        if captured is not None and (captured[rows] != 0).any():
            known = (captured[rows] != 0) & (ticks[rows] != 0)
            columns.append(np.where(known, (ticks[rows] - captured[rows]) / 1e6, np.nan))
            labels.append(name)
    if not labels:
        return []
    curves = _curves(time_s, np.stack(columns, axis=1), labels, np.zeros(len(time_s), bool))
    return ["<h2>age of each sample at its control step, ms (step - capture)</h2>", curves]


def _curves(
    time_s: np.ndarray, values: np.ndarray, labels: Sequence[str], holes: np.ndarray, height: int = _HEIGHT
) -> str:
    """Curves (T, C) over time as inline SVG, with holes shaded and a key of the components."""
    end = max(float(time_s[-1]), 1e-9)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    right, bottom = _WIDTH - 8, height - _BOTTOM

    def x(t: np.ndarray | float) -> np.ndarray | float:
        return _LEFT + t / end * (right - _LEFT)

    def y(v: np.ndarray | float) -> np.ndarray | float:
        return bottom - 6 - (v - low) / (high - low) * (bottom - 12)

    shapes = [f'<rect x="{_LEFT}" y="0" width="{right - _LEFT}" height="{bottom}" fill="#f7f7f7"/>']
    step = end / max(len(time_s) - 1, 1)
    for i in np.flatnonzero(holes).tolist():
        width = step / end * (right - _LEFT)
        shapes.append(
            f'<rect x="{x(float(time_s[i])):.1f}" y="0" width="{width:.1f}" height="{bottom}" fill="#d62728" '
            'fill-opacity="0.25"/>'
        )
    for share in np.linspace(0, 1, 6):
        at = x(float(share * end))
        shapes.append(f'<line x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{bottom}" stroke="#ddd"/>')
        anchor = "end" if share == 1 else "middle"
        shapes.append(f'<text x="{at:.1f}" y="{height - 4}" text-anchor="{anchor}">{share * end:.2f} s</text>')
    for value in (low, high) if values.shape[1] else ():
        shapes.append(f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    every = -(-len(time_s) // _POINTS)
    for c in range(values.shape[1]):
        good = np.flatnonzero(np.isfinite(values[:, c]))[::every]
        points = " ".join(
            f"{px:.1f},{py:.1f}"
            for px, py in zip(x(time_s[good]), y(values[good, c]), strict=True)  # pyright: ignore
        )
        colour = COLOURS[c % len(COLOURS)]
        shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    key = " ".join(
        f'<span class="key" style="color:{COLOURS[c % len(COLOURS)]}">&#9632; {html.escape(label)}</span>'
        for c, label in enumerate(labels)
    )
    size = f'width="{_WIDTH}" height="{height}" font-size="11" fill="#444"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(shapes)}</svg><div>{key}</div>'


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
