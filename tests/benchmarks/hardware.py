"""Loops, latencies and tracking of every device against its twin: one table of each, and both result files.

    python tests/benchmarks/hardware.py [--only servo network cameras kinematics] [--seconds 5]   # about 8 minutes

Writes results/hardware_loops.json and results/hardware_tracking.json when all parts ran. What the rows of a part mean
heads its module, ``hardware_<part>.py``.
"""

from __future__ import annotations

import argparse
from typing import Any

import hardware_cameras
import hardware_kinematics
import hardware_network
import hardware_servo
from results import RESULTS, write_results
from rich.console import Console
from rich.table import Table

PARTS = {
    "servo": hardware_servo,
    "network": hardware_network,
    "cameras": hardware_cameras,
    "kinematics": hardware_kinematics,
}


def show(title: str, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(*(str(row.get(name, "")) for name in names))
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row")
    options = parser.parse_args()
    loops: list[dict[str, Any]] = []
    tracking: list[dict[str, Any]] = []
    for name in options.only:
        part = PARTS[name]
        found = part.rows(options.seconds)
        show(f"{name}: loops", found)
        loops += found
        if part is not hardware_cameras:
            found = part.tracking_rows(options.seconds + 3)
            show(f"{name}: following a sine of 0.5 Hz", found)
            tracking += found
    if len(options.only) == len(PARTS):
        print(write_results("hardware_loops", loops, RESULTS))
        print(write_results("hardware_tracking", tracking, RESULTS))


if __name__ == "__main__":
    main()
