"""The limits of a rig file hold whatever is told to the arm, and an arm outside of them can come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robolearn_hardware.devices import DeviceError, LimitError
from robolearn_hardware.kinematics import Kinematics
from robolearn_hardware.limits import limits_of
from robolearn_hardware.rig import load_rig

Opened = Callable[..., Any]

START = (0.0, 0.0, 0.3, 0.8, 0.0)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """A first-order SO-101 from a rig with these limits."""

    def make(limits: str, start: tuple[float, ...] = START, model: str = "so101") -> Any:
        arm = f"{{kind: simulated, model: {model}, plant: first_order, gripper: false, start: {list(start)}}}"
        path = tmp_path / "rig.yaml"
        path.write_text(f"arms:\n  arm: {arm}\nlimits:\n  arm: {limits}\n")
        return load_rig(path).open_arm("arm")

    return make


def test_a_joint_keeps_the_range_and_speed_of_the_rig_and_the_others_the_published_ones(opened: Opened) -> None:
    arm, published = opened("{joints: {joint2: [-0.5, 0.4]}, speed: 0.25}"), limits_of("so101")
    arm.connect()
    limits = arm.info.limits
    assert (limits.low[1], limits.high[1]) == (-0.5, 0.4)
    np.testing.assert_array_equal(np.delete(limits.low, 1), np.delete(published.low, 1))
    np.testing.assert_allclose(limits.velocity, published.velocity / 4)
    arm.command(np.array([0, 0.4, 0.3, 0.8, 0]))
    with pytest.raises(LimitError, match=r"joint 1 is told to go to 0.450 rad, its limits are -0.500 to 0.400"):
        arm.command(np.array([0, 0.45, 0.3, 0.8, 0]))
    arm.close()


def test_a_rig_cannot_widen_what_is_published(opened: Opened) -> None:
    arm, published = opened("{joints: {joint1: [-9, 9]}}"), limits_of("so101")
    assert (arm.info.limits.low[0], arm.info.limits.high[0]) == (published.low[0], published.high[0])


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ("{joints: {shoulder: [0, 1]}}", r"limits 'shoulder', no joint of it; valid: joint1, joint2"),
        ("{joints: {joint1: [8, 9]}}", r"arm, limits in the rig: joint 0 would have no range left"),
        ("{joints: {joint1: [1]}}", r"limits of arm: joints.joint1.*"),
        ("{speed: 0}", r"limits of arm: .*speed must lie above 0"),
        ("{speed: 2}", r"limits of arm: .*speed must lie above 0"),
        ("{workspace_low: [0, 0, 1], workspace_high: [1, 1, 1]}", r"limits of arm: .*is empty"),
        ("{ceiling: 1}", r"limits of arm: unknown 'ceiling'; valid: joints, speed"),
    ],
)
def test_limits_that_make_no_sense_are_one_line(opened: Opened, limits: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as raised:
        opened(limits)
    assert "\n" not in str(raised.value)


def test_limits_of_an_arm_that_is_not_in_the_rig_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rig.yaml"
    path.write_text("arms: {arm: {kind: simulated, model: so101}}\nlimits: {leg: {speed: 0.5}}\n")
    with pytest.raises(DeviceError, match="limits of 'leg', which is no arm"):
        load_rig(path)


def test_a_workspace_needs_a_kinematic_model(opened: Opened) -> None:
    with pytest.raises(DeviceError, match="koch"):
        opened("{floor: 0}", model="koch")


def test_an_arm_that_stands_outside_at_connect_is_refused_and_let_go(opened: Opened) -> None:
    arm = opened("{joints: {joint3: [0.5, 1.0]}}")
    with pytest.raises(DeviceError, match=r"where it stands.*limits of the rig file.*move it back by hand"):
        arm.connect()
    with pytest.raises(DeviceError, match="not connected"):
        arm.state()


def test_no_command_leaves_the_workspace_and_one_outside_can_come_back(opened: Opened) -> None:
    kinematics, start = Kinematics("so101"), np.array(START)
    tool = kinematics.forward(start).position
    ceiling = float(tool[2]) + 0.02
    arm = opened(f"{{workspace_high: [.inf, .inf, {ceiling}]}}")
    generator, taken, refused = np.random.default_rng(0), 0, 0
    with arm:
        for _ in range(300):
            wanted = start + generator.uniform(-0.4, 0.4, 5)
            inside = kinematics.forward(wanted).position[2] <= ceiling
            if inside:
                arm.command(wanted)
                taken += 1
            else:
                with pytest.raises(LimitError, match="outside the workspace of the rig file"):
                    arm.command(wanted)
                refused += 1
    assert min(taken, refused) > 50

    low = float(tool[2]) - 0.05
    outside = opened(f"{{workspace_high: [.inf, .inf, {low}]}}")
    shoulder = np.array([0, 0.1, 0, 0, 0])
    down = min(shoulder, -shoulder, key=lambda change: kinematics.forward(start + change).position[2])
    with outside:
        outside.command(start + 0.2 * down)
        outside.command(start + 0.5 * down)
        with pytest.raises(LimitError, match="outside the workspace"):
            outside.command(start)


def test_a_floor_holds_for_the_joints_behind_the_tool_as_well(opened: Opened) -> None:
    kinematics, start, bowed = Kinematics("so101"), np.array(START), np.array([0, 1.7, -1.2, -1.6, 0])
    tool = kinematics.forward(bowed).position[2]
    lowest = kinematics.mj_data.xpos[kinematics.bodies, 2].min()
    assert lowest < tool, "a joint hangs lower than the tool"
    with opened(f"{{floor: {(tool + lowest) / 2}}}") as arm:
        arm.command(start)
        with pytest.raises(LimitError, match="a joint below its floor"):
            arm.command(bowed)
