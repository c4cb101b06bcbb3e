"""Writes what a benchmark measured, with the machine, the date and the commit it was measured on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robolearn.evaluation.machine import machine

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[2]


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


def write_family(family: str, rows: Sequence[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Replace the rows of one family in families.json, and leave those of the others as they are.

    Each row has "family". The date and commit of each family stand under "families".
    """
    path = folder / "families.json"
    old = json.loads(path.read_text()) if path.exists() else {"rows": [], "families": {}}
    kept = [row for row in old["rows"] if row["family"] != family]
    measured = {"date": datetime.now(UTC).date().isoformat(), "commit": commit()}
    families = {**old["families"], family: measured}
    joined = sorted([*kept, *({"family": family, **row} for row in rows)], key=lambda row: row["family"])
    return write_results("families", joined, folder, families=dict(sorted(families.items())))


def commit() -> str:
    """Of the checkout, with "-dirty" when tracked files differ from it; "unknown" outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
