"""From a stick to a twist: no deadman no motion, frames, scales, and a gripper that does not drop what it holds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robolearn_hardware.devices import DeviceError, Intent
from robolearn_hardware.teleop.relative import AXES, Deflection, Gripper, RateConfig, RateMotion, shaped

TICK_NS = 10_000_000
axes_in_range = arrays(np.float64, 6, elements=st.floats(-1, 1))
anything = arrays(np.float64, 6, elements=st.floats(allow_nan=True, allow_infinity=True))
configs = st.builds(
    RateConfig,
    speed_m_s=st.floats(0.01, 2),
    speed_rad_s=st.floats(0.01, 6),
    frame=st.just("view"),
    view_yaw_deg=st.floats(-360, 360),
    axes=st.lists(st.sampled_from(AXES), unique=True).map(tuple),
    dead_zone=st.floats(0, 0.9),
    curve=st.floats(0.5, 5),
    rise_s=st.floats(0, 5),
)


class Stick:
    """Readings one after another, 10 ms apart."""

    def __init__(self, config: RateConfig | None = None) -> None:
        self.motion = RateMotion(config or RateConfig())
        self.now_ns = 10**12

    def say(
        self, axes: Any = (0,) * 6, *, held: bool = True, gripper: bool = False, trigger: float = math.nan
    ) -> Intent:
        self.now_ns += TICK_NS
        return self.motion.intent(Deflection(self.now_ns, np.array(axes, np.float64), held, gripper, trigger))


def twist(intent: Intent) -> np.ndarray:
    assert intent.twist is not None
    return intent.twist


@given(configs, st.lists(st.tuples(anything, st.booleans()), min_size=1, max_size=20))
def test_without_the_deadman_or_with_nonsense_nothing_moves_and_nothing_is_ever_faster_than_stated(
    config: RateConfig, readings: list[tuple[np.ndarray, bool]]
) -> None:
    stick = Stick(config)
    for axes, held in readings:
        intent = stick.say(axes, held=held)
        moved = twist(intent)
        assert intent.enabled == (held and bool(np.isfinite(axes).all()))
        assert np.isfinite(moved).all()
        if not intent.enabled:
            assert not moved.any()
        assert np.linalg.norm(moved[:3]) <= config.speed_m_s * (1 + 1e-9)
        assert np.linalg.norm(moved[3:]) <= config.speed_rad_s * (1 + 1e-9)


@given(axes_in_range, st.floats(0, 0.9), st.floats(0.5, 5))
def test_a_deflection_is_shaped_as_its_formula_says(axes: np.ndarray, dead_zone: float, curve: float) -> None:
    found = shaped(axes, dead_zone, curve)
    for value, share in zip(axes.tolist(), found.tolist(), strict=True):
        if abs(value) <= dead_zone:
            assert share == 0
        else:
            wanted = math.copysign(((abs(value) - dead_zone) / (1 - dead_zone)) ** curve, value)
            assert share == pytest.approx(wanted, rel=1e-9)
    assert shaped(np.ones(6), dead_zone, curve) == pytest.approx(np.ones(6))


@given(axes_in_range, st.floats(-360, 360))
def test_the_view_is_the_base_turned_about_the_vertical(axes: np.ndarray, yaw: float) -> None:
    base = twist(Stick(RateConfig()).say(axes))
    view = twist(Stick(RateConfig(frame="view", view_yaw_deg=yaw)).say(axes))
    complex_base, complex_view = (v[[0, 3]] + 1j * v[[1, 4]] for v in (base, view))
    np.testing.assert_allclose(complex_view, complex_base * np.exp(1j * math.radians(yaw)), atol=1e-12)
    np.testing.assert_allclose(view[[2, 5]], base[[2, 5]], atol=1e-12)


def test_who_faces_the_arm_pushes_away_from_themselves_towards_its_base() -> None:
    away = twist(Stick(RateConfig(frame="view", view_yaw_deg=180)).say((1, 0, 0, 0, 0, 0)))
    np.testing.assert_allclose(away, [-0.15, 0, 0, 0, 0, 0], atol=1e-12)


def test_along_a_diagonal_it_is_no_faster_and_an_axis_that_is_left_out_stays() -> None:
    full = twist(Stick().say((1, 1, 1, 0, 0, 0)))
    assert np.linalg.norm(full) == pytest.approx(0.15)
    flat = twist(Stick(RateConfig(axes=("x", "yaw"))).say((1, 1, 1, 1, 1, 1)))
    np.testing.assert_allclose(flat, [0.15, 0, 0, 0, 0, 0.8])


def test_the_tools_axes_are_left_to_who_knows_the_tool() -> None:
    assert Stick(RateConfig(frame="tool")).say((1, 0, 0, 0, 0, 0)).tool_axes
    assert not Stick().say((1, 0, 0, 0, 0, 0)).tool_axes


def test_speed_builds_up_over_its_rise_ends_at_once_and_turns_round_through_rest() -> None:
    stick = Stick(RateConfig(rise_s=0.2, curve=1))
    stick.say(held=False)
    speeds = [twist(stick.say((1, 0, 0, 0, 0, 0)))[0] for _ in range(30)]
    np.testing.assert_allclose(speeds, 0.15 * np.minimum(np.arange(1, 31) * 0.01 / 0.2, 1), rtol=1e-9)
    assert twist(stick.say((0, 0, 0, 0, 0, 0)))[0] == 0
    for _ in range(30):
        stick.say((1, 0, 0, 0, 0, 0))
    assert twist(stick.say((-1, 0, 0, 0, 0, 0)))[0] == pytest.approx(-0.15 * 0.01 / 0.2)


def test_after_a_long_silence_it_is_no_faster() -> None:
    stick = Stick(RateConfig(rise_s=1.0, curve=1))
    stick.say((1, 0, 0, 0, 0, 0))
    stick.now_ns += 10**10
    assert twist(stick.say((1, 0, 0, 0, 0, 0)))[0] <= 0.15 * 0.2 + 1e-9


def test_a_press_closes_and_the_next_one_opens_and_what_is_held_down_is_one_press() -> None:
    stick = Stick()
    presses = [False, True, True, True, False, False, True, False]
    said = [stick.say(gripper=pressed).gripper for pressed in presses]
    np.testing.assert_array_equal(said, [np.nan, 0, 0, 0, 0, 0, 1, 1])


def test_the_gripper_stays_as_it_is_until_asked_each_time_the_deadman_is_taken() -> None:
    stick = Stick()
    stick.say()
    assert stick.say(gripper=True).gripper == 0
    stick.say(held=False)
    assert math.isnan(stick.say().gripper), "a policy may have gripped something meanwhile"
    assert stick.say(gripper=True).gripper == 1
    stick.say(held=False, gripper=True)
    assert math.isnan(stick.say(gripper=True).gripper), "it was pressed without the deadman"


def test_held_the_gripper_is_closed_while_the_button_is_down() -> None:
    stick = Stick(RateConfig(gripper="hold"))
    said = [stick.say(gripper=pressed).gripper for pressed in (False, True, True, False, True)]
    np.testing.assert_array_equal(said, [np.nan, 0, 0, 1, 0])


@given(st.lists(st.tuples(st.booleans(), st.floats(-0.5, 1.5)), min_size=1, max_size=30))
def test_a_trigger_moves_the_gripper_only_once_it_has_been_moved_itself(readings: list[tuple[bool, float]]) -> None:
    gripper = Gripper("axis")
    first = None
    for held, trigger in readings:
        if not held:
            gripper.let_go()
            first = None
            continue
        said = gripper.wanted(pressed=False, trigger=trigger)
        first = trigger if first is None else first
        if math.isnan(said):
            assert abs(trigger - first) <= 0.1
        else:
            assert said == pytest.approx(1 - min(max(trigger, 0), 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed_m_s": 0}, "speed_m_s is 0; valid: above 0"),
        ({"dead_zone": 1.0}, "dead_zone is 1.0"),
        ({"curve": float("nan")}, "curve is nan"),
        ({"rise_s": -1}, "rise_s is -1"),
        ({"view_yaw_deg": 90}, "counts in frame: view"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_what_is_valid(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        RateConfig(**settings)
