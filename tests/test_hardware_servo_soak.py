"""Faults, commands and reconnects in any order: an arm says how it is, reads the truth, and always comes back."""

from __future__ import annotations

import contextlib
import random
import time

import numpy as np
import pytest
from servo_twins import KINDS, Bench, bench, read_until, ready

from robolearn_hardware.devices import Condition, DeviceError
from robolearn_hardware.servo.arm import ServoArm

FAULTS = (
    {},
    {"lose": 0.2},
    {"corrupt": 0.2},
    {"truncate": 0.2},
    {"lose": 1.0},
    {"latency_s": 0.03},
    {"spikes": 0.2},
    {"silent": (2,)},
    {"silent": (1, 6)},
    {"hot": (3,)},
    {"unplugged": True},
    {"reboot": True},
)


def act(it: Bench, arm: ServoArm, chance: random.Random) -> None:
    """Something that a program or a person may do; only a DeviceError may come of it."""
    what = chance.choice(["fault", "command", "command", "read", "read", "hold", "release", "recover", "connect"])
    if what == "fault":
        it.fault(**chance.choice(FAULTS))
    elif what == "command":
        limits = arm.info.limits
        arm.command(np.array([chance.uniform(*pair) for pair in zip(limits.low, limits.high, strict=True)]), 0.5)
    elif what == "read":
        end = time.monotonic() + chance.uniform(0, 0.3)
        while time.monotonic() < end:
            before = it.twin.observe()["positions"][:5]
            state = arm.state()
            after = it.twin.observe()["positions"][:5]
            if state.condition is Condition.READY:
                # Between where the arm was before and after the reading, and what it may overshoot meanwhile.
                low, high = np.minimum(before, after) - 0.25, np.maximum(before, after) + 0.25
                assert ((low <= state.positions) & (state.positions <= high)).all()
    else:
        {"hold": arm.hold, "release": arm.release, "recover": arm.recover, "connect": arm.connect}[what]()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_an_arm_reads_the_truth_and_comes_back(kind: str, seed: int) -> None:
    chance = random.Random(seed)
    with bench(kind) as it:
        arm = it.arm()
        end = time.monotonic() + 8
        while time.monotonic() < end:
            begun = time.monotonic()
            with contextlib.suppress(DeviceError):
                act(it, arm, chance)
            assert time.monotonic() - begun < 12
        it.fault()
        time.sleep(0.5)
        arm.close()
        try:
            arm.connect()
        except DeviceError:
            arm.recover()
        assert ready(read_until(arm, ready))
        goal = arm.state().positions * 0.5
        arm.command(goal)
        state = read_until(arm, lambda s: np.abs(s.positions - goal).max() < 0.03)
        assert np.allclose(state.positions, goal, atol=0.03)
        arm.close()
