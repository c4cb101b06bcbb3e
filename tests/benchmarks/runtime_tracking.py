"""How an arm follows a person between two readings of their hand: lag, overshoot and jerk.

    python tests/benchmarks/runtime_tracking.py                        # about 15 s

Motions that people make (sines, reaching to and fro, a zigzag that turns round within 60 ms) are read at 30, 60 and
100 Hz, unevenly, with the resolution of an SO-101's encoder; the setpoints are those that the limiter of an SO-101
lets through at 100 Hz. ``tracked`` is ``robolearn_deploy.tracking``; beside it stands the plain way, which takes each
reading for a place to rest at.

- lag: the shift at which setpoints and hand agree best (root mean square); what a reading takes to get here is 0.
- overshoot: the most that a setpoint is beyond everything that the hand was at in the quarter of a second before.
- jerk: of the setpoints, differentiated; the hand's own stands beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from robolearn_deploy.limiter import Limiter
from robolearn_deploy.tracking import Tracker
from robolearn_hardware.simulated import SimulatedConfig

Motion = Callable[[Any], Any]
"""Times (n,) s -> (n,) rad."""
RATE_HZ = 100.0
SECONDS, FIRST_S = 6.0, 1.5
"""Of each motion, and what is not counted of it."""
COUNT_RAD = 2 * np.pi / 4096
RECENT_S = 0.25
LAGS_S = np.arange(-0.02, 0.15, 0.001)


def sine(amplitude_rad: float, hz: float) -> Motion:
    def swing(t: Any) -> Any:
        x = np.clip(t, 0, 1)
        return amplitude_rad * np.sin(2 * np.pi * hz * t) * x**2 * (3 - 2 * x)

    return swing


def reaching(distance_rad: float, duration_s: float, rest_s: float = 0.4) -> Motion:
    """To and fro with least jerk (Flash and Hogan, 1985)."""

    def least_jerk(x: Any) -> Any:
        x = np.clip(x, 0, 1)
        return x**3 * (10 - 15 * x + 6 * x**2)

    def reach(t: Any) -> Any:
        x = np.mod(t, 2 * (duration_s + rest_s))
        return distance_rad * (least_jerk(x / duration_s) - least_jerk((x - duration_s - rest_s) / duration_s))

    return reach


def zigzag(speed_rad_s: float, period_s: float, turn_s: float = 0.06) -> Motion:
    times = np.arange(0, 2 * SECONDS, 0.001)
    straight = speed_rad_s * (np.abs(np.mod(times, period_s) - period_s / 2) - period_s / 4)
    turn = np.ones(round(turn_s / 0.001))
    smooth = np.convolve(straight, turn / len(turn), "same")
    return lambda t: np.interp(t, times, smooth)


MOTIONS = {
    "sine, 0.4 rad at 0.7 Hz": sine(0.4, 0.7),
    "sine, 0.3 rad at 1.2 Hz": sine(0.3, 1.2),
    "sine, 0.1 rad at 2.5 Hz": sine(0.1, 2.5),
    "reaching, 0.5 rad in 0.5 s": reaching(0.5, 0.5),
    "reaching, 0.3 rad in 0.3 s": reaching(0.3, 0.3),
    "zigzag, 1.5 rad/s": zigzag(1.5, 0.8),
}


def followed(motion: Motion, readings_hz: float, *, tracked: bool) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,) s and setpoints (n,) rad of an SO-101's base."""
    info = SimulatedConfig(model="so101", plant="first_order").open("arm").info
    limiter, tracker = Limiter(info, RATE_HZ), Tracker(info.limits)
    every_s = 1 / readings_hz
    read_s = 0.004 + every_s * np.arange(round(SECONDS * readings_hz))
    read_s += np.random.default_rng(0).uniform(0, 0.3 * every_s, len(read_s))
    angles = np.round(motion(read_s) / COUNT_RAD) * COUNT_RAD
    pending = list(zip(read_s, angles, strict=True))
    target = np.zeros(info.joints)
    target[0] = angles[0]
    limiter.begin(target)
    tracker.begin(target)
    times, setpoints = np.arange(2, round(SECONDS * RATE_HZ)) / RATE_HZ, []
    for time_s in times:
        at_ns = round(time_s * 1e9)
        while pending and pending[0][0] < time_s:
            at_s, target[0] = pending.pop(0)
            tracker.measure(round(at_s * 1e9), target, round(at_s * 1e9))
        if tracked:
            towards = tracker.follow(at_ns, limiter.sent, limiter.dt_s)
            assert towards is not None
            limiter.follow(*towards)
        else:
            limiter.follow(target)
        setpoints.append(limiter.sent.positions[0])
    return times, np.array(setpoints)


def measured(motion: Motion, times: np.ndarray, setpoints: np.ndarray) -> dict[str, float]:
    counted = times > FIRST_S
    errors = [np.mean((setpoints - motion(times - lag))[counted] ** 2) for lag in LAGS_S]
    beyond = 0.0
    for time_s, setpoint in zip(times[counted], setpoints[counted], strict=True):
        recent = motion(np.arange(time_s - RECENT_S, time_s, 0.001))
        beyond = max(beyond, setpoint - recent.max(), recent.min() - setpoint)
    jerk = np.abs(np.diff(setpoints, 3))[counted[3:]] * RATE_HZ**3
    return {
        "lag_ms": round(1000 * float(LAGS_S[int(np.argmin(errors))])),
        "overshoot_rad": round(float(beyond), 4),
        "jerk_p95": round(float(np.percentile(jerk, 95))),
        "jerk_max": round(float(jerk.max())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runtime_tracking", help="name of the result file; none: only print")
    out = parser.parse_args().out
    rows = []
    for name, motion in MOTIONS.items():
        times = np.arange(2, round(SECONDS * RATE_HZ)) / RATE_HZ
        hand = measured(motion, times, motion(times))
        for hz in (30, 60, 100):
            for tracked in (True, False):
                found = measured(motion, *followed(motion, hz, tracked=tracked))
                rows.append(
                    {"motion": name, "readings_hz": hz, "tracked": tracked, **found, "hand_jerk_p95": hand["jerk_p95"]}
                )
    columns = ("motion", "readings_hz", "tracked", "lag_ms", "overshoot_rad", "jerk_p95", "jerk_max", "hand_jerk_p95")
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console(width=120).print(table)
    if out != "none":
        from results import write_results

        print(write_results(out, rows))


if __name__ == "__main__":
    main()
