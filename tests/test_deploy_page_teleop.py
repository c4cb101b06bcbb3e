"""What a viewer's hands say, as intents: the mathematics, the clocks, what is refused, and who is in control."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from robolearn_deploy.dashboard.control import ANSWER_S, Control
from robolearn_deploy.dashboard.rings import PageArm, Plane
from robolearn_deploy.dashboard.teleop import (
    PICTURE_M,
    SPEED_M_S,
    SPEED_RAD_S,
    BrowserClock,
    PageTeleop,
    RefusedIntentError,
    base_from_view,
    phone_heading,
    phone_rotation,
    read_intent,
)
from robolearn_deploy.takeover import JUMP_M, STALE_NS, intent_fields
from robolearn_hardware.kinematics import Kinematics
from robolearn_hardware.ring import Ring

MS = 1_000_000
HOME = np.array([0.0, -0.5, 0.6, 0.4, 0.1, 0.5])  # of an SO-101, with its gripper


def spun(q: Any) -> Rotation:
    """scipy's rotation from (w, x, y, z)."""
    return Rotation.from_quat(np.roll(q, -1))


class Viewer:
    """A browser whose clock is ``ahead_ms`` ahead of ours, and the page that it talks to."""

    def __init__(
        self, stack: ExitStack, *, ahead_ms: float = 5e6, plane: Plane | None = None, model: str = "so101"
    ) -> None:
        self.ring = stack.enter_context(Ring.create(intent_fields(2 if plane else 5), 256))
        arm = PageArm(self.ring.handle, 2 if plane else 5, "" if plane else model, plane=plane)
        self.page = PageTeleop({"arm": arm})
        stack.callback(self.page.close)
        self.clock, self.ahead_ms, self.now_ns = BrowserClock(), ahead_ms, 10**12

    def say(self, *, wait_ms: float = 16, late_ms: float = 0, **what: Any) -> None:
        """A message that is on its way for ``late_ms``."""
        self.now_ns += round(wait_ms * MS)
        made_ms = self.now_ns / MS - late_ms + self.ahead_ms
        message = {"t": made_ms, "heard": [self.now_ns / MS - late_ms - 20, made_ms - 20], "arm": "arm", **what}
        self.page.take("someone", self.clock, json.loads(json.dumps(message)), 0, self.now_ns, HOME)

    def newest(self) -> np.void:
        found = self.ring.newest()
        assert found is not None
        return found[1]

    def enabled(self) -> bool:
        return bool(self.newest()["enabled"])


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    with ExitStack() as stack:
        yield Viewer(stack)


# ---- frames


@pytest.mark.parametrize("yaw", [0.0, 0.4, np.pi / 2, np.pi])
def test_a_key_moves_the_tool_as_the_person_sees_it_from_where_they_stand(viewer: Viewer, yaw: float) -> None:
    right, up, away = [1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, -1, 0, 0, 0]
    looks = np.array([np.cos(yaw), np.sin(yaw), 0])  # counter-clockwise from the arm's own x
    for axes, expected in ((right, np.cross(looks, [0, 0, 1])), (up, [0, 0, 1]), (away, looks)):
        viewer.say(clutch=1, rate=axes, yaw=yaw, scale=2.0)
        np.testing.assert_allclose(
            viewer.newest()["twist"], [*(np.array(expected) * 2 * SPEED_M_S), 0, 0, 0], atol=1e-9
        )
    viewer.say(clutch=1, rate=[0, 0, 0, 0, 1, 0], turn=0.5)
    np.testing.assert_allclose(viewer.newest()["twist"], [0, 0, 0, 0, 0, 0.5 * SPEED_RAD_S], atol=1e-9)


def test_in_the_tools_frame_away_from_the_person_is_along_the_tool(viewer: Viewer) -> None:
    viewer.say(clutch=1, rate=[0, 0, -1, 0, 0, 0], tool=True)
    along = Kinematics("so101").forward(HOME[:5]).matrix[:3, :3] @ [0, 0, SPEED_M_S]
    np.testing.assert_allclose(viewer.newest()["twist"][:3], along, atol=1e-6)


def test_a_drag_across_a_picture_is_a_displacement_since_the_button_was_pressed(viewer: Viewer) -> None:
    viewer.say(clutch=1, drag=[5.0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(viewer.newest()["displacement"], np.zeros(6))
    for share in (0.1, 0.2, 0.3):
        viewer.say(clutch=1, drag=[5.0 + share, 0, -share, 0, share, 0], scale=0.5)
    expected = [0.15 * PICTURE_M, -0.15 * PICTURE_M, 0, 0, 0, 0.3]
    np.testing.assert_allclose(viewer.newest()["displacement"], expected, atol=1e-9)


def test_a_controller_moves_the_tool_as_the_hand_moves_in_the_room(viewer: Viewer) -> None:
    start, turn = Rotation.from_rotvec([0.2, 1.0, -0.3]), Rotation.from_rotvec([0.0, 0.3, 0.0])
    yaw, place = 0.7, np.array([0.1, 1.3, -0.4])
    viewer.say(clutch=1, hand=[*place, *np.roll(start.as_quat(), 1)], yaw=yaw)
    moved = np.array([0.05, 0.02, -0.03])
    viewer.say(clutch=1, hand=[*(place + moved), *np.roll((turn * start).as_quat(), 1)], yaw=yaw, scale=1.5)
    base = np.array([-moved[2], -moved[0], moved[1]]) * 1.5
    found = viewer.newest()["displacement"]
    np.testing.assert_allclose(found[:3], Rotation.from_rotvec([0, 0, yaw]).apply(base), atol=1e-9)
    np.testing.assert_allclose(found[3:], [0, 0, 0.3], atol=1e-9)


@given(st.floats(0, 360), st.floats(-180, 180), st.floats(-90, 90))
def test_a_phones_angles_are_the_w3cs_matrix(alpha: float, beta: float, gamma: float) -> None:
    (a, b, g) = np.radians((alpha, beta, gamma))
    c, s = np.cos, np.sin
    w3c = [  # appendix A.1 of "DeviceOrientation Event Specification"
        [c(a) * c(g) - s(a) * s(b) * s(g), -c(b) * s(a), c(g) * s(a) * s(b) + c(a) * s(g)],
        [c(g) * s(a) + c(a) * s(b) * s(g), c(a) * c(b), s(a) * s(g) - c(a) * c(g) * s(b)],
        [-c(b) * s(g), s(b), c(b) * c(g)],
    ]
    np.testing.assert_allclose(spun(phone_rotation(alpha, beta, gamma)).as_matrix(), w3c, atol=1e-12)


@pytest.mark.parametrize("heading", [0.0, 1.0, -2.0])
@pytest.mark.parametrize("tilt", [0, 45, 90])
def test_a_phone_is_turned_about_the_persons_axes_wherever_they_look(
    viewer: Viewer, heading: float, tilt: float
) -> None:
    alpha = math.degrees(heading)
    assert phone_heading(phone_rotation(alpha, tilt, 0)) == pytest.approx(heading)
    viewer.say(clutch=1, phone=[0, 0, 0, alpha, tilt, 0])
    viewer.say(clutch=1, phone=[0.1, 0, 0, alpha, tilt + 10, 0])  # its top comes up: about the person's right
    np.testing.assert_allclose(
        viewer.newest()["displacement"], [0, -0.1 * PICTURE_M, 0, 0, -np.radians(10), 0], atol=1e-9
    )
    viewer.say(clutch=1, phone=[0.1, 0, 0, alpha + 10, tilt, 0])  # to the left: about what is up
    np.testing.assert_allclose(viewer.newest()["displacement"][3:], [0, 0, np.radians(10)], atol=1e-9)


def test_the_persons_axes_are_right_handed_and_up_is_up() -> None:
    for yaw in (0.0, 1.0):
        matrix = spun(base_from_view(yaw)).as_matrix()
        assert np.linalg.det(matrix) == pytest.approx(1)
        np.testing.assert_allclose(matrix[:, 1], [0, 0, 1], atol=1e-12)


def test_a_pointer_in_a_picture_of_a_plane_is_a_position_there() -> None:
    with ExitStack() as stack:
        viewer = Viewer(stack, plane=Plane("top", (0, 0), (512, 512)))
        for place, expected in (([0.25, 0.5], [128, 256]), ([1.2, -3], [512, 0])):
            viewer.say(clutch=1, point=place)
            np.testing.assert_allclose(viewer.newest()["positions"], expected)
            assert np.isnan(viewer.newest()["twist"]).all()


def test_keys_and_a_hand_move_in_a_plane_as_they_do_in_space() -> None:
    with ExitStack() as stack:
        viewer = Viewer(stack, plane=Plane("top", (0, 0), (512, 512)))
        viewer.say(clutch=1, rate=[1, 0, 0, 0, 0, 0], scale=2)
        np.testing.assert_allclose(viewer.newest()["twist"], [0, -2 * SPEED_M_S, 0, 0, 0, 0], atol=1e-12)
        assert viewer.enabled()
        for x in (0.0, 0.1):
            viewer.say(clutch=2, hand=[x, 0, 0, 1, 0, 0, 0])
        np.testing.assert_allclose(viewer.newest()["displacement"], [0, -0.1, 0, 0, 0, 0], atol=1e-12)
        assert not viewer.page.refused


def test_a_pointer_moves_nothing_that_is_in_no_plane(viewer: Viewer) -> None:
    viewer.say(clutch=1, point=[0.25, 0.5])
    assert viewer.page.refused == {"no plane": 1}
    assert viewer.ring.count == 0


# ---- deadman, clutch, jumps


def test_no_deadman_no_motion_and_each_clutch_begins_anew(viewer: Viewer) -> None:
    viewer.say(clutch=1, drag=[0.0] * 6)
    viewer.say(clutch=1, drag=[0.1, 0, 0, 0, 0, 0])
    first = int(viewer.newest()["clutch"])
    assert viewer.enabled()
    assert viewer.page.moving
    viewer.say(clutch=0)
    assert not viewer.enabled()
    assert not viewer.page.moving
    assert np.isnan(viewer.newest()["displacement"]).all()
    viewer.say(clutch=2, drag=[0.4, 0, 0, 0, 0, 0])
    assert int(viewer.newest()["clutch"]) > first
    np.testing.assert_array_equal(viewer.newest()["displacement"], np.zeros(6))


def test_a_headset_that_jumps_a_metre_lets_go_until_the_clutch_is_taken_again(viewer: Viewer) -> None:
    level = [1.0, 0, 0, 0]
    viewer.say(clutch=1, hand=[0, 1, 0, *level])
    viewer.say(clutch=1, hand=[1, 1, 0, *level])
    assert not viewer.enabled()
    viewer.say(clutch=1, hand=[0, 1, 0, *level])
    assert not viewer.enabled(), "it is back, and nobody knows where it was"
    assert viewer.page.refused == {"jump": 2}
    viewer.say(clutch=2, hand=[0, 1, 0, *level])
    viewer.say(clutch=2, hand=[0.5 * JUMP_M, 1, 0, *level])
    assert viewer.enabled()


def test_a_flipped_quaternion_is_the_same_rotation(viewer: Viewer) -> None:
    viewer.say(clutch=1, hand=[0, 1, 0, 0.6, 0.8, 0, 0])
    viewer.say(clutch=1, hand=[0, 1, 0, -0.6, -0.8, 0, 0])
    assert viewer.enabled()
    np.testing.assert_allclose(viewer.newest()["displacement"], np.zeros(6), atol=1e-9)


def test_who_falls_silent_is_let_go_of(viewer: Viewer) -> None:
    viewer.say(clutch=1, rate=[1.0, 0, 0, 0, 0, 0])
    viewer.page.poll(viewer.now_ns + STALE_NS - 1)
    assert viewer.page.moving
    viewer.page.poll(viewer.now_ns + STALE_NS + 1)
    assert not viewer.page.moving
    assert not viewer.enabled()


# ---- clocks


@given(
    st.floats(0, 1e9),
    st.lists(st.tuples(st.floats(0, 80), st.floats(0, 80)), min_size=1, max_size=30),
    st.floats(-100e-6, 100e-6),
)
def test_the_bounds_hold_whatever_the_offset_delays_and_drift(
    ahead_ms: float, delays: list[tuple[float, float]], drift: float
) -> None:
    clock, at_ms = BrowserClock(), 1e6
    for down, up in delays:
        at_ms += 50
        made = at_ms + down  # at once when ours was there
        theirs = made * (1 + drift) + ahead_ms
        capture, earliest = clock.capture_ns(theirs, (round(at_ms * MS), theirs), round((made + up) * MS))
        assert earliest <= made * MS + 0.02 * MS, "the earliest is not too late"
        assert abs(capture - made * MS) <= (down + up) / 2 * MS + 0.02 * MS


def test_an_old_message_is_refused_and_what_a_sleeping_phone_had_queued_too(viewer: Viewer) -> None:
    for _ in range(5):
        viewer.say(clutch=1, rate=[1.0, 0, 0, 0, 0, 0], late_ms=3)
    assert viewer.enabled()
    count = viewer.ring.count
    for queued in range(10):
        viewer.say(clutch=1, rate=[1.0, 0, 0, 0, 0, 0], late_ms=5000 - 16 * queued, wait_ms=0.1)
    assert viewer.page.refused == {"too old": 10}
    assert viewer.ring.count == count, "the arm holds by the age of the last reading that was in time"
    viewer.say(clutch=1, rate=[1.0, 0, 0, 0, 0, 0], late_ms=3)
    assert viewer.ring.count == count + 1
    viewer.say(clutch=0, late_ms=5000)
    assert not viewer.enabled(), "letting go is never too late"


def test_a_browser_whose_clock_stood_still_is_followed_again(viewer: Viewer) -> None:
    viewer.say(clutch=1, rate=[1.0, 0, 0, 0, 0, 0])
    viewer.ahead_ms -= 60_000  # it slept for a minute
    viewer.say(clutch=2, rate=[1.0, 0, 0, 0, 0, 0], wait_ms=60_000)
    assert viewer.enabled()
    assert abs(int(viewer.newest()["capture_ns"]) - viewer.now_ns) < STALE_NS


# ---- what is refused

MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
GOOD: dict[str, Any] = {"t": 1e6, "heard": [0.0, 1e6], "arm": "arm", "clutch": 1, "rate": [0.0] * 6}


FIELDS = [*GOOD, "hand", "drag", "phone", "point", "gripper", "yaw", "tool", "scale"]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), MESSAGES, max_size=3))
def test_whatever_is_sent_is_followed_within_bounds_or_refused(changed: dict[str, Any]) -> None:
    now_ns = 10**12
    good = {**GOOD, "t": now_ns / MS + 77, "heard": [now_ns / MS - 5, now_ns / MS + 72]}
    with ExitStack() as stack:
        viewer = Viewer(stack, model="")
        viewer.page.take("someone", viewer.clock, {**good, **changed}, 0, now_ns, HOME)
        found = viewer.ring.newest()
        if found is not None and found[1]["enabled"]:
            values = np.concatenate([found[1]["twist"], found[1]["displacement"]])
            assert np.isfinite(values).sum() == 6
            assert not viewer.page.refused


BAD = [
    *(
        {"rate": [math.nan] * 6},
        {"rate": [math.inf, 0, 0, 0, 0, 0]},
        {"rate": [2.0, 0, 0, 0, 0, 0]},
        {"rate": [0.0] * 5},
    ),
    *({"t": math.nan}, {"heard": [0]}, {"heard": None}, {"clutch": True}, {"clutch": -1}, {"clutch": 1.5}, {"arm": 3}),
    *({"gripper": math.nan}, {"scale": "1"}, {"yaw": 1e300}, {"drag": [0.0] * 6}, {"t": 10**400}, {"clutch": 0}),
]


@pytest.mark.parametrize("bad", BAD)
def test_malformed_and_nan_messages_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(RefusedIntentError):
        read_intent({**GOOD, **bad})
    read_intent(GOOD)


def test_a_refused_message_lets_go_and_is_counted(viewer: Viewer) -> None:
    viewer.say(clutch=1, rate=[1.0, 0, 0, 0, 0, 0])
    viewer.say(clutch=1, rate=["x"] * 6)
    assert not viewer.enabled()
    viewer.say(clutch=1, arm="other", rate=[0.0] * 6)
    viewer.say(clutch=1, hand=[0, 0, 0, 2, 0, 0, 0])
    assert viewer.page.refused == {"malformed": 1, "no such arm": 1, "no rotation": 1}


# ---- who is in control


def test_control_is_asked_for_and_granted_or_refused() -> None:
    control = Control()
    assert control.allows("a"), "nobody is in control"
    assert control.ask("a", 0)
    assert not control.allows("b")
    assert control.ask("b", 1)
    assert not control.ask("c", 2), "b asks already"
    control.answer("b", grant=True)
    assert control.holder == "a", "only the holder answers"
    control.answer("a", grant=False)
    assert (control.holder, control.asker) == ("a", None)
    control.ask("c", 3)
    control.answer("a", grant=True)
    assert (control.holder, control.asker) == ("c", None)


def test_control_passes_after_a_time_without_answer_but_not_while_the_arm_is_moved() -> None:
    control = Control("a")
    control.ask("b", 5)
    control.poll(5 + ANSWER_S - 0.01, moving=False)
    assert control.holder == "a"
    control.poll(5 + 2 * ANSWER_S, moving=True)
    assert control.holder == "a"
    control.poll(5 + 2 * ANSWER_S, moving=False)
    assert (control.holder, control.asker) == ("b", None)


@given(st.lists(st.tuples(st.sampled_from("agrlp"), st.sampled_from("xyz"), st.booleans()), max_size=40))
def test_there_is_never_more_than_one_in_control_and_nobody_waits_for_a_free_one(
    steps: list[tuple[str, str, bool]],
) -> None:
    control, gone_s = Control(), 0.0
    for what, who, moving in steps:
        gone_s += 3
        match what:
            case "a":
                control.ask(who, gone_s)
            case "g" | "r":
                control.answer(who, grant=what == "g")
            case "l":
                control.leave(who)
            case _:
                control.poll(gone_s, moving=moving)
        assert control.asker is None or control.holder not in (None, control.asker)
        assert sum(control.allows(one) for one in "xyz") in ((1,) if control.holder else (3,))
