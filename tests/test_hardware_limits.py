"""Published limits of arms: complete, consistent, and the tighter one wherever two are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robolearn_hardware.devices import DeviceError, JointLimits
from robolearn_hardware.limits import LIMITS, limits_of, narrowed, tool_limits_of, velocity_range

JOINTS = {"so100": 5, "so101": 5, "koch": 5, "fer": 7, "fr3": 7, "xarm5": 5, "xarm7": 7}
PAIRS = [(model, firmware) for model, known in LIMITS.items() for firmware in known]
SIDES = [("high", 1), ("low", -1), ("velocity", 1), ("acceleration", 1), ("jerk", 1)]


@pytest.mark.parametrize(("model", "firmware"), PAIRS)
def test_every_arm_has_a_range_a_speed_and_a_source(model: str, firmware: str) -> None:
    limits = limits_of(model, firmware)
    assert limits.joints == JOINTS.get(model, 6)
    assert np.isfinite([limits.low, limits.high, limits.velocity]).all()
    assert (limits.low < limits.high).all()
    assert (limits.velocity > 0).all()
    assert (limits.acceleration > 0).all()
    assert (limits.jerk > 0).all()
    assert LIMITS[model][firmware].source


@given(st.sampled_from(PAIRS), st.text(max_size=8))
def test_an_unknown_firmware_gets_limits_no_looser_than_any_known_one(pair: tuple[str, str], firmware: str) -> None:
    model, known = pair
    if firmware in LIMITS[model]:
        return
    tight, other = limits_of(model, firmware), limits_of(model, known)
    for name, sign in SIDES:
        assert (sign * getattr(tight, name) <= sign * getattr(other, name)).all()


def test_the_two_documents_of_the_fr3_differ_and_no_firmware_means_the_tighter_one() -> None:
    assert limits_of("fr3", "2025").high[0] == 2.9007
    assert limits_of("fr3").high[0] == limits_of("fr3", "2023").high[0] == 2.7437


@given(st.sampled_from(sorted(LIMITS)), st.floats(0, 1))
def test_velocity_range_never_exceeds_the_velocity_limit_and_always_holds_zero(model: str, share: float) -> None:
    limits = limits_of(model)
    lowest, highest = velocity_range(model, limits.low + share * (limits.high - limits.low))
    assert ((-limits.velocity <= lowest) & (lowest <= 0) & (highest >= 0) & (highest <= limits.velocity)).all()


def test_the_fr3_must_slow_down_towards_the_end_of_a_range_and_may_leave_it_fast() -> None:
    limits = limits_of("fr3")
    lowest, highest = velocity_range("fr3", limits.high)
    assert (highest < 0.35).all()
    np.testing.assert_array_equal(lowest, -limits.velocity)
    middle = (limits.low + limits.high) / 2
    np.testing.assert_array_equal(velocity_range("fr3", middle)[1], limits.velocity)
    # The documentation's formula, by hand, for joint 4 (index 3): sqrt(8.00 (-0.1458 - q)) - 0.30
    q = middle.copy()
    q[3] = -0.3
    assert velocity_range("fr3", q)[1][3] == pytest.approx(np.sqrt(8.0 * (-0.1458 + 0.3)) - 0.30)


def test_tool_limits_are_those_of_the_documentation_and_infinite_where_there_are_none() -> None:
    assert tool_limits_of("fer").speed == 1.7
    assert tool_limits_of("fr3").angular_jerk == 8500
    assert tool_limits_of("so101").speed == np.inf


def test_an_unknown_arm_is_an_error_that_lists_the_valid_ones() -> None:
    with pytest.raises(DeviceError, match=r"panda2.*valid: fer, fr3, koch"):
        limits_of("panda2")


def test_a_rig_narrows_limits_and_cannot_widen_or_empty_them() -> None:
    limits = limits_of("ur5e")
    one = np.ones(6)
    small = narrowed(limits, JointLimits(-one, one, 99 * one, 5 * one, one * np.inf))
    np.testing.assert_array_equal(small.high, one)
    np.testing.assert_array_equal(small.velocity, limits.velocity)
    np.testing.assert_array_equal(small.acceleration, 5 * one)
    with pytest.raises(DeviceError, match="joint 0 would have no range left"):
        narrowed(limits, JointLimits(7 * one, 8 * one, one, one, one))
    with pytest.raises(DeviceError, match="7 joints do not fit an arm of 6"):
        narrowed(limits, limits_of("fer"))
