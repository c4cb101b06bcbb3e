"""Renders the tables of README.md and of the packages' README.md from tests/benchmarks/results/*.json.

    python tests/benchmarks/render_tables.py            # rewrite them
    python tests/benchmarks/render_tables.py --check    # exit 1 when one is not what the files say

A table stands between `<!-- table: NAME -->` and `<!-- /table -->` and shows NAME.json; one with too many rows is shown
across, as CROSSED says.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PAGES = tuple(
    ROOT / page
    for page in (
        "README.md",
        "data/README.md",
        "hardware/README.md",
        "sim/README.md",
        "deploy/README.md",
        "deploy/COLLECTING.md",
        "robolearn/policies/README.md",
        "robolearn/policies/latent/README.md",
        "robolearn/policies/reactive/README.md",
        "robolearn/policies/vla/README.md",
    )
)
TABLE = re.compile(
    r"(<!-- table: (?P<name>[\w-]+)(?: where (?P<key>\w+) = (?P<value>[\w-]+))? -->\n).*?(?P<end><!-- /table -->)",
    re.DOTALL,
)
"""`<!-- table: NAME -->` or `<!-- table: NAME where KEY = VALUE -->`, for some of its rows."""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _percent_interval(value: Sequence[float]) -> str:
    return f"{100 * value[0]:.1f} to {100 * value[1]:.1f} %"


def _millions(value: float) -> str:
    return f"{value / 1e6:.2f} M"


def _minutes(value: float) -> str:
    return f"{value / 60:.0f} min"


def _score(value: float) -> str:
    return f"{value:.3f}"


def _milliseconds(value: float) -> str:
    return f"{value:.1f}"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "score_last5": ("score, mean of last 5", _score),
    "score_best": ("score, best", _score),
    "success_last5": ("success, mean of last 5", _percent),
    "success_interval": ("95 % interval", _percent_interval),
    "success_best": ("success, best", _percent),
    "success": ("success", _percent),
    "parameters": ("parameters", _millions),
    "train_cpu_s": ("train", _minutes),
    "chunk_ms": ("chunk, ms", _milliseconds),
    "denoiser_ms": ("denoiser, ms", _milliseconds),
    "ms_per_chunk_p50": ("ms per chunk, p50", _milliseconds),
    "ms_per_chunk_p99": ("p99", _milliseconds),
    "steps_per_cpu_s": ("steps per CPU second", lambda value: f"{value:.3g}"),
    "cpu_ms_per_step": ("CPU ms per step", lambda value: f"{value:.0f}"),
    "flow_10_ms": ("chunk: flow-10, ms", _milliseconds),
    "ddim_10_ms": ("ddim-10, ms", _milliseconds),
    "hz": ("Hz", lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.1f}"),
    "chunks_per_s": ("chunks per s", lambda value: f"{value:,.0f}"),
    "ddpm_100_ms": ("ddpm-100, ms", lambda value: f"{value:.0f}"),
}
"""Key of a row -> heading and how to write a value. Other keys stand under their own name, numbers to 4 digits."""

CROSSED: dict[str, tuple[tuple[str, ...], str, Callable[[dict[str, Any]], str]]] = {
    "runtime_engines": (("network", "sampler"), "engine", lambda row: _milliseconds(row["p50_ms"])),
    "runtime_delay": (("task", "scheduler"), "delay", lambda row: f"{100 * row['success']:.0f} %"),
    "families": (("variant", "seed"), "condition", lambda row: f"{100 * row['success']:.1f} %"),
    "collect_latency": (("teleoperator",), "stage", lambda row: f"{row['p50_ms']:.0f} / {row['p99_ms']:.0f}"),
    "sim_wipe": (
        ("way",),
        "condition",
        lambda row: " / ".join(f"{100 * row[key]:.0f} %" for key in ("success", "damaged", "in_band")),
    ),
    "sim_speed": (("backend",), "world", lambda row: f"{row['steps_per_s']:,} / {row['frames_per_s']:,}"),
}
"""Table -> the keys whose values stand at the left, the key whose values stand at the top, what is shown of a row."""


def render_crossed(content: dict[str, Any], table: str) -> str:
    """A Markdown table with a line for each group of rows that differ in one key only."""
    left, top, write = CROSSED[table]
    return "\n".join([*_across(content["rows"], left, top, write), "", _provenance(content), ""])


def render_overhead(content: dict[str, Any]) -> str:
    """Markdown tables of runtime_overhead: CPU time by parts, e-stops, take-overs. All rows of each have one unit."""
    rows = content["rows"]
    cpu = [row for row in rows if row["unit"] == "CPU ms"]
    stops = [row for row in rows if row["unit"] == "ms"]
    moves = [row for row in rows if row not in cpu and row not in stops]
    stated = [{"figure": row["figure"], "part": "stated", "max": row["limit"]} for row in stops if "limit" in row]
    missed = [
        {"figure": row["figure"], "part": "deadlines missed", "max": row["missed"]} for row in stops if "limit" in row
    ]
    limits = {
        row["part"]: {"figure": "the arm's limits", "part": row["part"], "unit": row["unit"], "max": row["limit"]}
        for row in moves
    }
    return "\n".join(
        [
            "CPU ms, p50 / p99:",
            "",
            *_across(cpu, ("part",), "figure", lambda row: f"{row['p50']:.2g} / {row['p99']:.2g}"),
            "",
            "ms, p50 / p99 / max:",
            "",
            *_across([*stops, *stated, *missed], ("figure",), "part", _spread),
            "",
            "The greatest of a trial, p50 / max of the trials:",
            "",
            *_across(
                [{**row, "part": f"{row['part']}, {row['unit']}"} for row in [*moves, *limits.values()]],
                ("figure",),
                "part",
                lambda row: " / ".join(f"{row[key]:.3g}" for key in ("p50", "max") if key in row),
            ),
            "",
            _provenance(content),
            "",
        ]
    )


def _spread(row: dict[str, Any]) -> str:
    return " / ".join(f"{row[key]:.0f}" for key in ("p50", "p99", "max") if key in row)


def _across(
    rows: Sequence[dict[str, Any]], left: tuple[str, ...], top: str, write: Callable[[dict[str, Any]], str]
) -> list[str]:
    """The lines of a table with one for all rows that are equal in ``left``, and a column for each value of ``top``."""
    heads = list(dict.fromkeys(row[top] for row in rows))
    lines: dict[tuple[Any, ...], dict[Any, str]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in left), {})[row[top]] = write(row)
    text = ["| " + " | ".join([*left, *map(str, heads)]) + " |"]
    text.append("| " + " | ".join(["---"] * len(left) + ["---:"] * len(heads)) + " |")
    for key, cells in lines.items():
        text.append("| " + " | ".join([*map(str, key), *(cells.get(head, "") for head in heads)]) + " |")
    return text


def render(content: dict[str, Any]) -> str:
    """A Markdown table of ``rows``, sorted by policy and seed where they have them, with its provenance below."""
    rows = content["rows"]
    keys = list(dict.fromkeys(key for row in rows for key in row if key != "commit"))
    if {"policy", "seed"} <= set(keys):
        rows = sorted(rows, key=lambda row: (row["policy"], row["seed"]))
    numeric = {k: all(isinstance(row.get(k, 0), int | float | list) for row in rows) for k in keys}
    lines = [
        "| " + " | ".join(COLUMNS[k][0] if k in COLUMNS else k.replace("_", " ") for k in keys) + " |",
        "| " + " | ".join("---:" if numeric[k] else "---" for k in keys) + " |",
    ]
    lines += ["| " + " | ".join(_cell(k, row.get(k)) for k in keys) + " |" for row in rows]
    return "\n".join([*lines, "", _provenance(content)]) + "\n"


def _provenance(content: dict[str, Any]) -> str:
    """Where a table has rows of several commits, they have one each."""
    commits = sorted({row["commit"] for row in content["rows"] if "commit" in row}) or [content["commit"]]
    return f"{content['machine']}; {content['date']}; commit {', '.join(commits)}."


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in COLUMNS:
        return COLUMNS[key][1](value)
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def render_page(text: str, results: Path) -> str:
    """``text`` with every table replaced by what the files in ``results`` say.

    Raises:
        FileNotFoundError: a table names a file that is not there.
    """

    def table(match: re.Match[str]) -> str:
        content = json.loads((results / f"{match['name']}.json").read_text())
        if key := match["key"]:
            rows = [row for row in content["rows"] if str(row.get(key)) == match["value"]]
            content["rows"] = [{name: value for name, value in row.items() if name != key} for row in rows]
        if match["name"] in CROSSED:
            text = render_crossed(content, match["name"])
        else:
            text = render_overhead(content) if match["name"] == "runtime_overhead" else render(content)
        return f"{match[1]}{text}{match['end']}"

    return TABLE.sub(table, text)


def main(words: Sequence[str], pages: Sequence[Path] = PAGES, results: Path = RESULTS) -> int:
    if any(word != "--check" for word in words):
        print(f"valid option: --check; got {' '.join(words)}", file=sys.stderr)
        return 2
    for page in pages:
        old = page.read_text()
        try:
            new = render_page(old, results)
        except FileNotFoundError as error:
            print(f"{page} has a table of {error.filename}, which is not there; run its benchmark", file=sys.stderr)
            return 1
        if "--check" not in words:
            page.write_text(new)
        elif new != old:
            print(f"{page} differs from tests/benchmarks/results; run `python {Path(__file__).name}`", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
