"""Pieces of an HTML report in one file: no script, no network, videos and plots inside.

Each function returns HTML; what it is given is text and gets escaped, except arguments named ``*parts``, which are
results of other pieces.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

STYLE = """
:root { --ink: #1c2430; --soft: #5d6776; --line: #e1e5ea; --fill: #f6f8fa; --accent: #3566a8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 4rem; color: var(--ink); background: white;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
.lead, figcaption, .note { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem; margin: 1.6rem 0; }
.tile { background: var(--fill); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1.1rem; }
.tile .label { font-size: .85rem; color: var(--soft); }
.tile .value { font-size: 1.9rem; line-height: 1.3; font-weight: 650; color: var(--accent); }
.tile .note { font-size: .85rem; }
pre { background: var(--fill); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; margin: .7rem 0;
      overflow-x: auto; font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.4rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .88rem; }
figure { margin: 1rem 0; }
figure img { width: 100%; height: auto; }
figcaption { font-size: .9rem; }
.films { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.films figure { flex: 1 1 14rem; max-width: 19rem; margin: .6rem 0; }
video { width: 100%; border-radius: 8px; background: var(--fill); }
"""


def page(title: str, lead: str, *parts: str) -> str:
    """A whole document."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f'<body>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Headline figures as (label, value, note)."""
    boxes = "".join(
        f'<div class="tile"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for label, value, note in items
    )
    return f'<div class="tiles">{boxes}</div>'


def commands(lines: Iterable[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def table(rows: Sequence[Sequence[str]], headings: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def picture(figure: Figure, caption: str) -> str:
    """A matplotlib figure as scalable graphics."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg")
    source = _data("image/svg+xml", buffer.getvalue())
    return f'<figure><img src="{source}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def films(items: Iterable[tuple[Path, str]]) -> str:
    """MP4 files side by side, each with a caption."""
    how = "controls loop muted autoplay playsinline"
    figures = [
        f'<figure><video src="{_data("video/mp4", path.read_bytes())}" {how}></video>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for path, caption in items
    ]
    return f'<div class="films">{"".join(figures)}</div>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
