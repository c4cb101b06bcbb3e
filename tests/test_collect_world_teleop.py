"""What a person wants becomes a world's action: never without a deadman, never faster than stated, nothing lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robolearn.cli.collect_world import TOOL_M_S, TOOL_RAD_S, teleop_of
from robolearn_data.schema import SchemaError
from robolearn_deploy.takeover import JUMP_M, STALE_NS, intent_record
from robolearn_deploy.world_teleop import PlanarTarget, ToolDelta
from robolearn_hardware.devices import Intent
from robolearn_sim.worlds import WORLDS, make_world, world_spec

NOW = 10**12
PUSHT, LIFT = world_spec("pusht"), world_spec("lift")
PLANE = PlanarTarget((0.0, 0.0), (512.0, 512.0), speed=500.0, per_metre=1000.0)  # 50 px in a period of 100 ms


def record(joints: int = 2, *, at_ns: int = NOW, enabled: bool = True, **wanted: Any) -> Any:
    """What the ring of intents gives."""
    lists = {name: np.array(v, float) for name, v in wanted.items() if name in ("positions", "twist", "displacement")}
    return intent_record(Intent(at_ns, enabled, **{**wanted, **lists}), joints)


def at(x: float, y: float) -> dict[str, np.ndarray]:
    return {"state": np.array([x, y, 100, 100, 0], np.float32)}


# ---- a plane


def test_a_pointer_is_followed_no_faster_than_the_speed_and_not_beyond_the_edge() -> None:
    driver = PLANE.driver(PUSHT)
    driver.begin(at(100, 100))
    places = [driver.action(record(positions=(100, 900)), NOW, at(100, 100))[0].tolist() for _ in range(10)]
    assert places[:3] == [[100, 150], [100, 200], [100, 250]]
    assert places[-1] == [100, 512]
    assert driver.action(record(positions=(101.5, 500)), NOW, at(100, 300))[0].tolist() == [101.5, 500]


@pytest.mark.parametrize("gone", ["let go", "silent", "never there"])
def test_without_a_deadman_a_plane_s_tool_stays_where_it_is_then(gone: str) -> None:
    driver = PLANE.driver(PUSHT)
    driver.begin(at(100, 100))
    if gone != "never there":
        assert driver.action(record(positions=(200, 100)), NOW, at(100, 100))[1]
    found = {"let go": record(enabled=False), "silent": record(positions=(300, 100)), "never there": None}[gone]
    now = NOW + STALE_NS + 1 if gone == "silent" else NOW
    where = at(100, 100) if gone == "never there" else at(120, 100)
    for drifted in (0, 5, 10):  # it is told the same place all the time
        action, person = driver.action(found, now, at(where["state"][0] + drifted, 100))
        assert action.tolist() == [where["state"][0], 100]
        assert not person


def test_who_takes_the_deadman_again_begins_where_the_tool_is() -> None:
    driver = PLANE.driver(PUSHT)
    driver.begin(at(100, 100))
    driver.action(record(positions=(150, 100)), NOW, at(100, 100))
    driver.action(record(enabled=False), NOW, at(140, 100))
    assert driver.action(record(positions=(400, 100)), NOW, at(300, 100))[0].tolist() == [350, 100]


def test_forward_is_up_in_the_picture_and_left_is_left() -> None:
    wanted: Any
    for wanted in ({"twist": (0.2, 0.1, 0, 0, 0, 0)}, {"displacement": (0.02, 0.01, 0, 0, 0, 0), "clutch": 1}):
        driver = PLANE.driver(PUSHT)
        driver.begin(at(256, 256))
        if "displacement" in wanted:
            driver.action(record(displacement=np.zeros(6), clutch=1), NOW, at(256, 256))
        np.testing.assert_allclose(driver.action(record(**wanted), NOW, at(256, 256))[0], [246, 236], atol=1e-4)


def test_a_hand_that_is_too_fast_is_caught_up_with_and_one_that_jumps_is_not_followed() -> None:
    driver = PLANE.driver(PUSHT)
    driver.begin(at(256, 256))
    for moved in (0.0, 0.04, 0.08, 0.12):  # 40 px a period, the last of it while 50 are allowed
        driver.action(record(displacement=(0, -moved, 0, 0, 0, 0), clutch=1), NOW, at(256, 256))
    last = driver.action(record(displacement=(0, -0.12, 0, 0, 0, 0), clutch=1), NOW, at(256, 256))[0]
    np.testing.assert_allclose(last, [376, 256], atol=1e-3)
    jumped = 0.12 + JUMP_M + 0.01
    for back in (jumped, 0.12):
        found = driver.action(record(displacement=(0, -back, 0, 0, 0, 0), clutch=1), NOW, at(256, 256))[0]
        np.testing.assert_allclose(found, last)


# ---- a tool that is moved by displacements


@given(st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_a_twist_that_is_too_fast_keeps_its_direction_and_every_action_is_in_its_range(twist: list[float]) -> None:
    driver = ToolDelta(0.25, 2.0).driver(LIFT)
    driver.begin({})
    action = driver.action(record(1, twist=twist), NOW, {})[0].astype(float)
    for part, full in ((slice(0, 3), 0.25), (slice(3, 6), 2.0)):
        wanted = np.array(twist[part]) / full
        np.testing.assert_allclose(action[part], wanted / max(1.0, np.linalg.norm(wanted)), atol=1e-6)
    assert action[6] == -1


def test_a_hands_displacement_is_asked_for_in_full_however_fast_it_was() -> None:
    driver = ToolDelta(0.25, 2.0).driver(LIFT)
    driver.begin({})
    asked = np.zeros(6)
    path = [np.array([0.0, 0, 0, 0, 0, 0])] + [np.array([0.09, 0.0, 0.03, 0, 0, 0.4])] * 12
    for displacement in path:
        action = driver.action(record(1, displacement=displacement, clutch=3), NOW, {})[0].astype(float)
        assert np.linalg.norm(action[:3]) < 1 + 1e-6
        asked += action[:6] * np.repeat([0.25, 2.0], 3) / 20
    np.testing.assert_allclose(asked, path[-1], atol=1e-6)  # turns about one axis add up
    assert not driver.action(record(1, displacement=path[-1], clutch=3), NOW, {})[0][:6].any()


def test_the_gripper_stays_until_it_is_told_and_through_a_release() -> None:
    driver = ToolDelta(0.25, 2.0).driver(LIFT)
    driver.begin({})
    told = [(0.1, 1), (np.nan, 1), (0.9, -1), (0.2, 1)]
    for gripper, expected in told:
        assert driver.action(record(1, gripper=gripper, twist=np.zeros(6)), NOW, {})[0][6] == expected
    action, person = driver.action(record(1, enabled=False, gripper=0.9), NOW, {})
    assert action.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert not person
    driver.begin({}, np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert driver.action(None, NOW, {})[0][6] == 1, "who takes over a closed gripper does not open it"


@pytest.mark.parametrize("axis", [0, 1, 2, 5])
def test_in_lift_a_twist_moves_the_tool_as_fast_as_it_says(axis: int) -> None:
    world = make_world("lift")
    driver = ToolDelta(TOOL_M_S, TOOL_RAD_S).driver(world.spec)
    speed = 0.1 if axis < 3 else 0.5
    twist = np.zeros(6)
    twist[axis] = speed
    observation = world.reset(3)
    driver.begin(observation)
    track = []
    for _ in range(20):
        observation = world.step(driver.action(record(1, twist=twist), NOW, observation)[0]).observation
        track.append(observation["state"][axis])
    assert (track[-1] - track[4]) / (15 / 20) == pytest.approx(speed, rel=0.15)
    world.close()


def test_in_lift_a_drag_of_ten_centimetres_is_ten_centimetres() -> None:
    world = make_world("lift")
    driver = ToolDelta(TOOL_M_S, TOOL_RAD_S).driver(world.spec)
    observation = world.reset(3)
    driver.begin(observation)
    start = observation["state"][:3]
    for k in range(40):
        share = min(1.0, k / 20)
        wanted = record(1, displacement=(0.05 * share, 0.1 * share, 0.02 * share, 0, 0, 0), clutch=1)
        observation = world.step(driver.action(wanted, NOW, observation)[0]).observation
    np.testing.assert_allclose(observation["state"][:3] - start, [0.05, 0.1, 0.02], atol=0.01)
    world.close()


# ---- which world is moved how


@pytest.mark.parametrize("world", [name for name in WORLDS if name not in ("metaworld", "wipe")])
def test_every_world_but_those_for_programs_can_be_moved_by_a_person(world: str) -> None:
    spec = world_spec(world)
    teleop_of(spec).driver(spec)


def test_a_world_of_another_kind_is_refused_with_its_name() -> None:
    with pytest.raises(SchemaError, match="'lift' does not say where the tool is"):
        PLANE.driver(LIFT)
    with pytest.raises(SchemaError, match="'pusht' is not moved by displacements"):
        ToolDelta(0.25, 2.0).driver(PUSHT)
