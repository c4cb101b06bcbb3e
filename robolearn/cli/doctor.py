"""`robolearn doctor [--rig RIG.yaml]`: is the machine fit, and does every device answer?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robolearn_hardware.machine import Check

_MARKS = {"ok": "ok", "warning": "WARN", "failure": "FAIL"}


@dataclass(frozen=True)
class Doctor:
    """Look at this machine, and at every device of a rig, and say what to do about what is not well.

    Nothing moves. Exit code 0 when everything on the rig answers, 1 when not; warnings do not count.
    """

    rig: Path | None = None
    """A rig file, see hardware/rigs. Without it only the machine is looked at."""


def run(options: Doctor) -> int:
    """look at this machine and at every device of a rig"""
    from robolearn_hardware.doctor import check_rig
    from robolearn_hardware.machine import check_machine
    from robolearn_hardware.rig import load_rig, with_twins

    rig = load_rig(options.rig) if options.rig else None
    print("this machine")
    failed = _show(check_machine())
    if rig:
        print(f"\nrig {rig.name} ({options.rig})")
        with with_twins(rig) as (reachable, _):
            failed += _show(check_rig(reachable))
    return 1 if failed else 0


def _show(checks: Iterable[Check]) -> int:
    """Print each as it comes; returns the number of failures."""
    failures = 0
    for check in checks:
        print(f"  {_MARKS[check.verdict]:5s}{check.subject}: {check.found}", flush=True)
        if check.advice and check.verdict != "ok":
            print(f"       -> {check.advice}")
        elif check.advice:
            print(f"       ({check.advice})")
        failures += check.verdict == "failure"
    return failures


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Doctor, run)}
