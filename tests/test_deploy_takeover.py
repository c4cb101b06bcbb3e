"""A person's intents become targets of the arm: nothing jumps, nothing goes on by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from robolearn_deploy import rotations
from robolearn_deploy.takeover import JUMP_M, STALE_NS, TakeOver, intent_fields, intent_record
from robolearn_hardware.devices import ArmInfo, DeviceError, Intent
from robolearn_hardware.kinematics import Kinematics, pose_error
from robolearn_hardware.simulated import SimulatedConfig

START = np.array([0.1, -0.5, 0.2, -2.0, 0.1, 1.8, 0.4])
TICK_NS = 5_000_000


class Hand:
    """Intents, one every tick, and what the arm makes of them."""

    def __init__(self) -> None:
        self.info: ArmInfo = SimulatedConfig(model="fr3").open("arm").info
        self.kinematics = Kinematics("fr3")
        self.over = TakeOver(self.info)
        self.over.prepare()
        self.over.begin(START, 0.5)
        self.now_ns = 10**12
        self._fields = intent_fields(7)

    def say(self, ticks: int = 1, *, age_ns: int = 0, **intent: Any) -> tuple[np.ndarray, float, bool]:
        found = (START, 0.5, False)
        for _ in range(ticks):
            self.now_ns += TICK_NS
            said = Intent(self.now_ns - age_ns, **intent)
            record = np.zeros(1, dtype=[(n, t, s) for n, (t, s) in self._fields.items()])
            for name, value in intent_record(said, 7).items():
                record[name] = value
            found = self.over.target(record[0], self.now_ns)
        return found

    def tool(self, positions: np.ndarray):
        return self.kinematics.forward(positions)


def displaced(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def test_a_displacement_moves_the_tool_by_as_much_in_the_base_frame_and_about_the_tools_own_place():
    hand = Hand()
    before = hand.tool(START)
    turn = np.array([0.0, 0.0, 0.3])
    hand.say(enabled=True, clutch=1, displacement=np.zeros(6))
    for share in np.linspace(0.1, 1, 40):
        hand.say(enabled=True, clutch=1, displacement=share * displaced(0.05, -0.03, 0.04, *turn))
    positions, _, enabled = hand.say(60, enabled=True, clutch=1, displacement=displaced(0.05, -0.03, 0.04, *turn))
    after = hand.tool(positions)
    assert enabled
    np.testing.assert_allclose(after.position - before.position, [0.05, -0.03, 0.04], atol=2e-3)
    wanted = type(after)(after.position, rotations.product(rotations.exp(turn), before.quaternion))
    assert pose_error(after, wanted)[1] < 0.02


def test_a_lost_reading_loses_no_motion():
    one, other = Hand(), Hand()
    for hand in (one, other):
        hand.say(enabled=True, clutch=1, displacement=np.zeros(6))
    for i in range(1, 41):
        moved = displaced(0.001 * i, 0, 0, 0, 0, 0)
        one.say(enabled=True, clutch=1, displacement=moved)
        if i % 4 == 0:  # of the other, three of four are lost
            other.say(enabled=True, clutch=1, displacement=moved)
    rest = {"enabled": True, "clutch": 1, "displacement": displaced(0.04, 0, 0, 0, 0, 0)}
    np.testing.assert_allclose(one.say(80, **rest)[0], other.say(80, **rest)[0], atol=1e-3)


def test_a_new_clutch_begins_where_the_tool_is_even_if_its_release_was_not_seen():
    hand = Hand()
    hand.say(enabled=True, clutch=1, displacement=np.zeros(6))
    before = hand.say(60, enabled=True, clutch=1, displacement=displaced(0.05, 0, 0, 0, 0, 0))[0]
    after = hand.say(60, enabled=True, clutch=2, displacement=displaced(0, 0, 0, 0, 0, 0))[0]
    np.testing.assert_allclose(after, before, atol=2e-3)


def test_a_hand_that_jumps_is_not_followed_until_the_clutch_is_taken_again():
    hand = Hand()
    hand.say(enabled=True, clutch=1, displacement=np.zeros(6))
    before = hand.say(20, enabled=True, clutch=1, displacement=displaced(0.02, 0, 0, 0, 0, 0))[0]
    jumped = displaced(0.02 + 10 * JUMP_M, 0, 0, 0, 0, 0)
    positions, _, enabled = hand.say(50, enabled=True, clutch=1, displacement=jumped)
    assert not enabled
    np.testing.assert_array_equal(positions, before)
    back = hand.say(5, enabled=True, clutch=1, displacement=displaced(0.02, 0, 0, 0, 0, 0))
    assert not back[2], "it is back, and the person does not know what was done meanwhile"
    hand.say(enabled=True, clutch=2, displacement=jumped)
    assert hand.say(40, enabled=True, clutch=2, displacement=jumped - [0.03, 0, 0, 0, 0, 0])[2]


def test_a_twist_moves_the_tool_by_its_speed_times_the_time_it_was_held() -> None:
    hand = Hand()
    before = hand.tool(START)
    hand.say(40, enabled=False, twist=np.zeros(6))
    hand.say(20, enabled=True, twist=displaced(0.1, 0, 0, 0, 0, 0))  # of 5 ms each
    positions = hand.say(40, enabled=True, twist=np.zeros(6))[0]
    np.testing.assert_allclose(hand.tool(positions).position - before.position, [0.01, 0, 0], atol=1e-4)


def test_a_deadman_that_is_held_with_the_stick_in_its_middle_moves_nothing() -> None:
    hand = Hand()
    hand.say(20, enabled=True, twist=displaced(0.1, 0, 0, 0, 0, 0))
    before = hand.say(1, enabled=True, twist=np.zeros(6))[0].copy()
    np.testing.assert_array_equal(hand.say(400, enabled=True, twist=np.zeros(6))[0], before)


def test_a_twist_after_a_silence_does_not_make_up_for_it() -> None:
    hand = Hand()
    twist = displaced(0.1, 0, 0, 0, 0, 0)
    hand.say(10, enabled=True, twist=twist)
    before = hand.tool(hand.say(1, enabled=True, twist=twist)[0])
    hand.say(1, enabled=True, twist=twist, age_ns=STALE_NS + 1)
    hand.now_ns += 10**9
    after = hand.tool(hand.say(1, enabled=True, twist=twist)[0])
    np.testing.assert_allclose(after.position, before.position, atol=1e-9)


def test_a_twist_along_the_tools_axes_goes_where_the_tool_points() -> None:
    hand = Hand()
    before = hand.tool(START)
    hand.say(41, enabled=True, twist=displaced(0, 0, 0.1, 0, 0, 0), tool_axes=True)
    positions = hand.say(40, enabled=True, twist=np.zeros(6))[0]
    moved = hand.tool(positions).position - before.position
    np.testing.assert_allclose(moved, 0.02 * before.matrix[:3, 2], atol=1e-3)


@pytest.mark.parametrize("lacks", ["deadman", "freshness", "numbers"])
def test_nothing_moves_without(lacks: str):
    hand = Hand()
    hand.say(enabled=True, clutch=1, displacement=np.zeros(6))
    moved = displaced(0.05, 0, 0, 0, 0, 0)
    if lacks == "numbers":
        moved[1] = np.nan
    positions, gripper, _ = hand.say(
        50, enabled=lacks != "deadman", clutch=1, displacement=moved, age_ns=STALE_NS + 1 if lacks == "freshness" else 0
    )
    np.testing.assert_array_equal(positions, START)
    assert gripper == 0.5


def test_a_leader_of_other_joints_is_refused():
    with pytest.raises(DeviceError, match="6 joints"):
        intent_record(Intent(0, True, np.zeros(6)), 7)
