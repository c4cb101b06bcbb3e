"""Writes what a benchmark measured, with the machine, the date and the commit it was measured on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robolearn.evaluation.machine import machine

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[2]
CONDITIONS = (
    *("seen", "held-out", "held-out-reworded", "held-out-synonyms", "held-out-pairs", "switched"),
    *("calm", "perturbed"),
)
"""Of families.json, in the order of its tables."""


def write_results(name: str, rows: Sequence[dict[str, Any]], folder: Path = RESULTS, **figures: Any) -> Path:
    """Write ``<name>.json`` as {figures..., "machine":, "date":, "commit":, "rows": [...]} and return its path."""
    content = {
        **figures,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "rows": list(rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def read_rows(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Rows of ``<name>.json``; none where it is missing."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def add_rows(
    name: str, rows: Sequence[dict[str, Any]], order: Callable[[dict[str, Any]], Any], folder: Path = RESULTS
) -> Path:
    """Write ``<name>.json`` with its rows of before and ``rows``, sorted by ``order``.

    What is equal in ``order`` is the same row, of which the new one stays. Each has the "commit" it was measured on.
    """
    joined = {order(row): row for row in [*read_rows(name, folder), *rows]}
    return write_results(name, [joined[key] for key in sorted(joined)], folder)


def has_row(name: str, folder: Path = RESULTS, **values: Any) -> bool:
    """Whether a row of ``<name>.json`` has these values."""
    return any(all(row.get(key) == value for key, value in values.items()) for row in read_rows(name, folder))


def family_order(row: dict[str, Any]) -> tuple[Any, ...]:
    """Order of the rows of families.json: the method before its controls."""
    method = not row["variant"].startswith("method")
    return row["family"], method, row["variant"], CONDITIONS.index(row["condition"]), row["seed"], row["episodes"]


def commit() -> str:
    """Of the checkout, with "-dirty" when tracked files but for the results differ from it; "unknown" outside one."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", f":!{RESULTS.relative_to(ROOT)}")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("-dirty" if changed else "")
