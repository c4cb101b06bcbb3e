"""Loop rates of the arms behind a network and how well their twins follow a sine, through the vendors' SDKs.

    python tests/benchmarks/hardware.py --only network

The SDK runs in a process of its own, the link, at the rate that the rig states. hz: readings per second that are new,
with a caller that reads and commands at that rate. p50_ms and p99_ms: what `state` and `command` take the caller, which
is shared memory. age_ms: how old the newest reading is when the caller has it, in the middle. cpu: share of one core,
of caller and link together. The twin is a process of its own at a loopback address, without any network latency.

A sine of 0.5 Hz and 0.2 rad on every joint is sent at that rate; its error is the commanded angle less the measured one
at the time of its capture, and its delay is the one at which the two agree best. Most of it is the plant's own: a
motor that approaches its target with 30 ms (UR) or 20 ms (xArm), and the controller of franky-sim, which is softer than
a robot's (the reference that reaches it is 10 ms behind the commands).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from sine_tracking import follow_sine

from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns
from robolearn_hardware.network.fer import FerConfig
from robolearn_hardware.network.fr3 import Fr3Config
from robolearn_hardware.network.link import LinkedArm
from robolearn_hardware.network.ur import Ur5eConfig
from robolearn_hardware.network.xarm import Lite6Config, Xarm7Config
from robolearn_hardware.twins.franka import sim_python
from robolearn_hardware.twins.host import Twins

ARMS = {
    "UR5e, ur_rtde": Ur5eConfig("twin"),
    "xArm 7, xarm-python-sdk": Xarm7Config("twin"),
    "xArm 7, xarm-python-sdk, 250 Hz": Xarm7Config("twin", rate_hz=250.0),
    "Lite 6, xarm-python-sdk": Lite6Config("twin"),
    "FR3, pylibfranka on franky-sim": Fr3Config("twin", gripper="none"),
    "FER, franky on franky-sim": FerConfig("twin", gripper="none"),
}
SINE_RAD = 0.2


@contextmanager
def connected(config: Any) -> Iterator[LinkedArm]:
    with Twins() as twins, config.with_twin("arm", twins).open("arm") as arm:
        yield arm


def arms() -> dict[str, Any]:
    if sim_python() is not None:
        return ARMS
    print("no franky-sim here (make franka-sim): Franka left out")
    return {name: config for name, config in ARMS.items() if "franky-sim" not in name}


def rows(seconds: float = 5.0) -> list[dict[str, Any]]:
    """Of ``hardware_loops.json``."""
    found = []
    for name, config in arms().items():
        with connected(config) as arm:
            link = arm._link
            assert link is not None
            goal = arm.state().positions
            period = period_ns(config.rate_hz)
            times, ages, captures, lost = [], [], set(), 0
            busy, begun, start = cpu_s(link.process.pid), time.monotonic(), now_ns()
            for tick in range(round(seconds * config.rate_hz)):
                wait_until_ns(start + tick * period)
                before = time.perf_counter()
                state = arm.state()
                arm.command(goal)
                times.append(time.perf_counter() - before)
                ages.append(now_ns() - state.received_ns)
                lost += state.capture_ns in captures
                captures.add(state.capture_ns)
            took = time.monotonic() - begun
            p50, p99 = np.percentile(times, [50, 99]) * 1e3
            found.append(
                {
                    "device": name,
                    "hz": round(len(captures) / took, 1),
                    "p50_ms": round(p50, 3),
                    "p99_ms": round(p99, 3),
                    "age_ms": round(float(np.median(ages)) / 1e6, 2),
                    "cpu": round((cpu_s(link.process.pid) - busy) / took, 3),
                    "seen_twice": lost,
                }
            )
    return found


def tracking_rows(seconds: float = 8.0) -> list[dict[str, Any]]:
    """Of ``hardware_tracking.json``."""
    found = []
    for name, config in arms().items():
        with connected(config) as arm:
            found.append(follow_sine(name, arm, config.rate_hz, SINE_RAD, seconds))
    return found


def cpu_s(pid: int) -> float:
    """Of this process and of ``pid``, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
