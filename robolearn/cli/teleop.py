"""`robolearn teleop RIG.yaml`: arms do what a person does with leader arms, a SpaceMouse, a gamepad, a keyboard."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from robolearn.cli.parse import UsageError

if TYPE_CHECKING:
    from robolearn_deploy.guided import Guided, GuidedTick
    from robolearn_hardware.devices import Arm, Teleoperator
    from robolearn_hardware.mirror import Mirror, MirrorTick
    from robolearn_hardware.rig import Rig

_SHOW_S = 0.2


@dataclass(frozen=True)
class Teleop:
    """Move arms by hand: through leader arms of the same joints, or relative to where they are.

    A follower first joins its leader slowly. A SpaceMouse, a gamepad or a keyboard moves the tool while its deadman is
    held. Ctrl-C brings the arms to rest, where they stay, held by their motors.
    """

    rig: Positional[Path]
    """A rig file, see hardware/rigs."""
    pairs: tuple[str, ...] = ()
    """TELEOPERATOR:ARM for each pair, by their names in the rig. Not needed where there is one of each."""
    rate_hz: float | None = None
    """Ticks a second; by default what the slowest follower can do, at most 100 for all pairs together."""
    join_speed: float = 0.25
    """Share of its velocity limit at which a follower joins its leader."""
    seconds: float | None = None
    """Stop after so long; by default at Ctrl-C."""


def run(options: Teleop) -> int:
    """arms do what a person does with a leader arm, a SpaceMouse, a gamepad or a keyboard"""
    if not 0 < options.join_speed <= 1:
        raise UsageError(f"--join-speed must lie above 0 and up to 1, got {options.join_speed}")
    from robolearn_hardware.rig import load_rig, with_twins

    rig = load_rig(options.rig)
    pairs = _pairs(rig, options.pairs)
    with with_twins(rig) as (reachable, _), contextlib.ExitStack() as stack:
        followers: list[Arm] = []
        moved: dict[str, Mirror | Guided] = {}
        opened = []
        for leader_name, follower_name in pairs:
            leader = reachable.teleoperators[leader_name].open(leader_name)
            stack.callback(leader.close)
            follower = reachable.open_arm(follower_name)
            stack.callback(follower.close)
            leader.connect()
            follower.connect()
            followers.append(follower)
            opened.append((leader, follower))
        rate_hz = options.rate_hz or min([100.0 / len(pairs), *(follower.info.rate_hz for follower in followers)])
        for leader, follower in opened:
            moved[follower.info.name] = _moved_by(leader, follower, reachable, rate_hz, options.join_speed)
        print(f"{', '.join(f'{a} moves {b}' for a, b in pairs)} at {rate_hz:g} Hz; Ctrl-C ends it", flush=True)
        _loop(moved, rate_hz, options.seconds)
    return 0


def _moved_by(hand: Teleoperator, arm: Arm, rig: Rig, rate_hz: float, join_speed: float) -> Mirror | Guided:
    from robolearn_deploy.guided import Guided
    from robolearn_hardware.mirror import Mirror

    if hand.read().positions is not None:
        return Mirror(hand, arm, rate_hz, join_speed=join_speed)
    bounds = rig.limits.get(arm.info.name)
    return Guided(hand, arm, rate_hz, bounds.workspace if bounds else None)


def _loop(moved: Mapping[str, Mirror | Guided], rate_hz: float, seconds: float | None) -> None:
    from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns

    period, begun = period_ns(rate_hz), now_ns()
    due, shown = begun, begun
    took: list[int] = []
    late = 0
    try:
        while seconds is None or now_ns() - begun < seconds * 1e9:
            due += period
            if now_ns() > due:  # keep to the clock: leave out what is lost
                late += 1
                due = now_ns()
            wait_until_ns(due)
            ticks = {name: one.tick() for name, one in moved.items()}
            took.append(sum(tick.took_ns for tick in ticks.values()))
            if sys.stderr.isatty() and now_ns() - shown > _SHOW_S * 1e9:
                shown = now_ns()
                print(
                    "\r" + "   ".join(_said(name, tick) for name, tick in ticks.items()), end="\033[K", file=sys.stderr
                )
    except KeyboardInterrupt:
        pass
    finally:
        _bring_to_rest(moved, period)
        _summary(took, late, (now_ns() - begun) / 1e9)


def _bring_to_rest(moved: Mapping[str, Mirror | Guided], period: int) -> None:
    """Within a second; an arm that is gone cannot be told."""
    from robolearn_hardware.clock import SECOND_NS, now_ns, wait_until_ns
    from robolearn_hardware.devices import DeviceError

    moving = dict(moved)
    due = now_ns()
    end = due + SECOND_NS
    while moving and due < end:
        for name, one in list(moving.items()):
            try:
                rests = one.stop()
            except DeviceError:
                rests = True
            if rests:
                del moving[name]
        due += period
        wait_until_ns(due)


def _said(name: str, tick: MirrorTick | GuidedTick) -> str:
    import numpy as np

    positions = np.degrees(tick.measured.positions).round().astype(int).tolist()
    behind = float(np.degrees(np.abs(tick.requested - tick.measured.positions).max()))
    return f"{name}: {tick.said}, {positions} deg, {behind:.0f} deg behind"


def _summary(took: list[int], late: int, seconds: float) -> None:
    import numpy as np

    if took:
        p50, p99 = np.percentile(took, [50, 99]) / 1e6
        times = f"reading and writing took {p50:.1f} ms, p99 {p99:.1f} ms"
        print(f"\n{len(took)} ticks in {seconds:.1f} s, {late} of them late; {times}")


def _pairs(rig: Rig, named: tuple[str, ...]) -> list[tuple[str, str]]:
    leaders, arms = list(rig.teleoperators), list(rig.arms)
    if not named:
        if len(leaders) != 1 or len(arms) != 1:
            raise UsageError(
                f"rig {rig.name} has teleoperators {', '.join(leaders) or 'none'} and arms "
                f"{', '.join(arms) or 'none'}; say who moves whom: --pairs TELEOPERATOR:ARM"
            )
        return [(leaders[0], arms[0])]
    pairs = []
    for text in named:
        leader, colon, follower = text.partition(":")
        if not colon or leader not in leaders or follower not in arms:
            raise UsageError(
                f"--pairs {text}: valid are TELEOPERATOR:ARM of {', '.join(leaders) or 'none'} and "
                f"{', '.join(arms) or 'none'}"
            )
        pairs.append((leader, follower))
    return pairs


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Teleop, run)}
