"""Curves over time as inline SVG, which any browser draws without a script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#e07b00", "#9467bd", "#8c564b", "#c2479f", "#0e8f9c")
_WIDTH, _LEFT, _RIGHT, _BOTTOM = 1000, 78, 12, 24
_BINS = 800
"""Columns in which the lowest and the highest value of a long curve are kept, so that no spike is lost."""


@dataclass(frozen=True, eq=False)
class Curve:
    label: str
    time_s: np.ndarray
    """(n,)"""
    values: np.ndarray
    """(n,); NaN where there is none, and the curve is interrupted there."""


def chart(
    curves: Sequence[Curve],
    end_s: float,
    *,
    unit: str = "",
    gaps: Sequence[tuple[float, float]] = (),
    height: int = 180,
) -> str:
    """Curves on one pair of axes from 0 to ``end_s``, with ``gaps`` (from, to) in seconds shaded, and a key."""
    end = max(end_s, 1e-9)
    right, bottom = _WIDTH - _RIGHT, height - _BOTTOM
    finite = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in curves] or [np.empty(0)])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        margin = max(abs(low) * 0.01, 1e-3)
        low, high = low - margin, high + margin
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)

    def x(t: np.ndarray) -> np.ndarray:
        return _LEFT + np.clip(t / end, 0, 1) * (right - _LEFT)

    def y(v: np.ndarray) -> np.ndarray:
        return bottom - (v - low) / (high - low) * bottom

    shapes = [f'<rect x="{_LEFT}" y="0" width="{right - _LEFT}" height="{bottom}" fill="#f6f6f6"/>']
    for first, last in gaps:
        start, stop = x(np.array([first, last])).tolist()
        width = max(stop - start, 1.5)
        shapes.append(f'<rect class="gap" x="{start:.1f}" y="0" width="{width:.1f}" height="{bottom}" fill="#f3b7b7"/>')
    for at in _ticks(0.0, end, 8):
        px = float(x(np.array(at)))
        shapes.append(f'<line x1="{px:.1f}" y1="0" x2="{px:.1f}" y2="{bottom}" stroke="#ddd"/>')
        shapes.append(f'<text x="{px:.1f}" y="{height - 7}" text-anchor="{_anchor(px, right)}">{at:g} s</text>')
    if curves:
        for value in _ticks(low, high, 4):
            py = float(y(np.array(value)))
            shapes.append(f'<line x1="{_LEFT}" y1="{py:.1f}" x2="{right}" y2="{py:.1f}" stroke="#ddd"/>')
            text_y = min(max(py + 5, 13), bottom)
            shapes.append(f'<text x="{_LEFT - 6}" y="{text_y:.1f}" text-anchor="end">{value:g}</text>')
        if unit:
            middle = bottom / 2
            turn = f'transform="rotate(-90 14 {middle:.0f})"'
            shapes.append(f'<text x="14" y="{middle:.0f}" text-anchor="middle" {turn}>{html.escape(unit)}</text>')
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        for part in _pieces(curve):
            points = " ".join(f"{px:.1f},{py:.1f}" for px, py in zip(x(part[0]), y(part[1]), strict=True))
            dash = f' stroke-dasharray="{4 * (number // len(COLOURS))} 3"' if number >= len(COLOURS) else ""
            shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
    key = "".join(
        f'<span class="key"><i style="background:{COLOURS[n % len(COLOURS)]}"></i>{html.escape(curve.label)}</span>'
        for n, curve in enumerate(curves)
        if curve.label
    )
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}">{"".join(shapes)}</svg>'
    return f'<div class="chart">{svg}</div><div class="keys">{key}</div>'


def _anchor(px: float, right: float) -> str:
    return "end" if px > right - 25 else "middle"


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most`` steps apart by 1, 2 or 5 times a power of ten."""
    size = (high - low) / most
    power = 10.0 ** np.floor(np.log10(size))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * 0.999)
    return [round(float(n * step), 12) + 0.0 for n in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def _pieces(curve: Curve) -> list[tuple[np.ndarray, np.ndarray]]:
    """The curve where it is known, in stretches, thinned to its envelope where it has many samples."""
    known = np.isfinite(curve.values)
    cuts = np.flatnonzero(np.diff(known.astype(np.int8))) + 1
    found = []
    for part in np.split(np.arange(len(known)), cuts):
        if not len(part) or not known[part[0]]:
            continue
        bins = max(round(_BINS * len(part) / len(known)), 1)
        if len(part) > 4 * bins:
            part = np.unique(
                np.concatenate(
                    [
                        [b[0], b[int(np.argmin(curve.values[b]))], b[int(np.argmax(curve.values[b]))]]
                        for b in np.array_split(part, bins)
                    ]
                )
            )
        found.append((curve.time_s[part], curve.values[part]))
    return found
