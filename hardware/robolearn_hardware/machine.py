"""Is this machine fit to run a robot: its clock, its rights, its memory, its ports and its SDKs?"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np

from robolearn_hardware.clock import now_ns, wait_until_ns
from robolearn_hardware.teleop.find import list_teleoperators

Verdict = Literal["ok", "warning", "failure"]

SDKS = {
    "cameras": ("opencv-python",),
    "dynamixel": ("dynamixel-sdk",),
    "feetech": ("feetech-servo-sdk",),
    "franka": ("franky-control", "pylibfranka"),
    "kinematics": ("mink", "ruckig"),
    "realsense": ("pyrealsense2",),
    "ur": ("ur-rtde",),
    "xarm": ("xarm-python-sdk",),
}
"""Extra of robolearn -> the packages that drive those devices."""

_RULES = Path("/etc/udev/rules.d/70-robolearn.rules")
_LATENCY_TIMERS = Path("/sys/bus/usb-serial/devices")
_RATE_HZ, _TICKS = 500, 250
_LATE_MS = 1.0
_SHARED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""
    """What to do where it is not well."""


def check_machine() -> Iterator[Check]:
    """Everything that does not need a rig, in about two seconds."""
    yield from _clock()
    yield _priority()
    yield _memory()
    yield from _governor()
    yield _shared_memory()
    yield from _latency_timers()
    yield _rules()
    yield from _teleoperators()
    yield from _sdks()


def _clock() -> Iterator[Check]:
    lateness = measure_lateness()
    p50, p99 = np.percentile(lateness, [50, 99]) / 1e6
    found = f"{_RATE_HZ} Hz: p50 {p50:.2f} ms late, p99 {p99:.2f} ms ({os.cpu_count()} cores)"
    if p99 > _LATE_MS:
        yield Check(
            "clock", "warning", found, "something else uses the processor: close it, or give real-time priority"
        )
    else:
        yield Check("clock", "ok", found)


def measure_lateness() -> np.ndarray:
    """By how many ns a loop of 500 Hz woke too late, for each of 250 ticks."""
    late = np.empty(_TICKS)
    at = now_ns() + 10_000_000
    for i in range(_TICKS):
        wait_until_ns(at)
        late[i] = now_ns() - at
        at += 1_000_000_000 // _RATE_HZ
    return late


def _priority() -> Check:
    try:
        before = os.sched_getscheduler(0)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        os.sched_setscheduler(0, before, os.sched_param(0))
    except (AttributeError, OSError):
        advice = "add to /etc/security/limits.d/robolearn.conf: `@dialout - rtprio 80`, and log in again"
        return Check("real-time priority", "warning", "SCHED_FIFO is not permitted: loops wake late under load", advice)
    return Check("real-time priority", "ok", "SCHED_FIFO is permitted")


def _memory() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= 2**30 or os.geteuid() == 0:
        return Check("locked memory", "ok", "may be locked")
    advice = "add to /etc/security/limits.d/robolearn.conf: `@dialout - memlock unlimited`, and log in again"
    return Check("locked memory", "warning", f"at most {soft // 1024} KiB: a control loop may be paged out", advice)


def _governor() -> Iterator[Check]:
    names = {path.read_text().strip() for path in Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")}
    if names and names != {"performance"}:
        found = f"governor {', '.join(sorted(names))}: the processor slows down between ticks"
        yield Check("processor", "warning", found, "sudo cpupower frequency-set -g performance")


def _shared_memory() -> Check:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Check(
            "shared memory", "failure", "there is no /dev/shm, in which processes share frames", "mount tmpfs there"
        )
    found = f"{free / 2**20:.0f} MiB free in /dev/shm"
    if free < _SHARED_BYTES:
        return Check(
            "shared memory", "warning", found, "cameras need about 100 MiB each; in a container: --shm-size=2g"
        )
    return Check("shared memory", "ok", found)


def _latency_timers() -> Iterator[Check]:
    for path in sorted(_LATENCY_TIMERS.glob("*/latency_timer")) if _LATENCY_TIMERS.exists() else ():
        value = int(path.read_text())
        if value > 1:
            found = f"answers of /dev/{path.parent.name} wait {value} ms in the adapter"
            yield Check("USB latency", "warning", found, f"echo 1 | sudo tee {path}, or install the udev rules")


def _rules() -> Check:
    if _RULES.exists() or os.geteuid() == 0:
        return Check("permissions", "ok", "udev rules are installed" if _RULES.exists() else "this is root")
    advice = (
        f"sudo cp hardware/udev/{_RULES.name} {_RULES.parent}/ && sudo udevadm control --reload && sudo udevadm trigger"
    )
    return Check("permissions", "warning", "udev rules are not installed: devices may refuse to open", advice)


def _teleoperators() -> Iterator[Check]:
    for one in list_teleoperators():
        if one.kind != "keyboard":  # those of the machine are not for robots, and a terminal's need no rights
            verdict = "warning" if one.problem else "ok"
            yield Check(f"{one.kind} {one.name}", verdict, one.problem or "can be used", "see hardware/udev")


def _sdks() -> Iterator[Check]:
    found, missing = [], []
    for extra, packages in SDKS.items():
        try:
            found += [f"{package} {version(package)}" for package in packages]
        except PackageNotFoundError:
            missing.append(extra)
    yield Check("SDKs", "ok", ", ".join(found) or "none")
    if missing:
        extras = ",".join(missing)
        yield Check("SDKs missing", "ok", ", ".join(missing), f"where needed: pip install 'robolearn[{extras}]'")
