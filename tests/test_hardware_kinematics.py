"""Kinematics: published zero poses, derivatives, and inverse steps that keep every limit."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn_hardware.devices import DeviceError, LimitError
from robolearn_hardware.kinematics import DifferentialIK, Kinematics, Pose, Twist, Workspace, pose_error
from robolearn_hardware.limits import limits_of, velocity_range
from robolearn_hardware.models import MODELS, ROBOSUITE

mujoco: Any = pytest.importorskip("mujoco")
pytest.importorskip("mink")

BOX = Workspace((-0.3, -0.3, 0.05), (0.3, 0.3, 0.5), floor=0.0)


@cache
def arm(model: str) -> Kinematics:
    return Kinematics(model)


@cache
def bounded(model: str) -> DifferentialIK:
    return DifferentialIK(arm(model), workspace=BOX)


def somewhere(model: str, random: np.random.Generator, share: float = 1.0) -> np.ndarray:
    """Joint positions within the middle ``share`` of each range."""
    limits = limits_of(model)
    return (limits.low + limits.high) / 2 + share * random.uniform(-0.5, 0.5, limits.joints) * (
        limits.high - limits.low
    )


@pytest.mark.parametrize(
    ("model", "position"),
    [
        ("fer", (0.088, 0, 0.926)),  # of the flange, drawn in the documentation: 0.333 + 0.316 + 0.384 - 0.107 high
        ("xarm5", (0.207, 0, 0.112)),  # of xArms: what the controller shows with every joint at zero
        ("xarm6", (0.207, 0, 0.112)),
        ("xarm7", (0.206, 0, 0.1205)),
        ("lite6", (0.087, 0, 0.1542)),
        ("so101", (0.3525, 0, 0.2265)),
        ("widowx", (0.44125, 0, 0.36065)),
    ],
)
def test_with_every_joint_at_zero_the_tool_is_where_the_maker_says(model: str, position: tuple[float, ...]) -> None:
    pose = arm(model).forward(np.zeros(arm(model).joints))
    np.testing.assert_allclose(pose.position, position, atol=5e-5)
    if model not in ("so101", "widowx"):
        np.testing.assert_allclose(np.abs(pose.quaternion), (0, 1, 0, 0), atol=1e-6)  # looks down


def test_ur5e_is_the_product_of_its_published_classical_dh_matrices() -> None:
    d, a = (0.1625, 0, 0, 0.1333, 0.0997, 0.0996), (0, -0.425, -0.3922, 0, 0, 0)
    alpha = (np.pi / 2, 0, 0, np.pi / 2, -np.pi / 2, 0)
    q = somewhere("ur5e", np.random.default_rng(0))
    whole = np.eye(4)
    for i in range(6):
        c, s, ca, sa = np.cos(q[i]), np.sin(q[i]), np.cos(alpha[i]), np.sin(alpha[i])
        whole = whole @ np.array(
            [[c, -s * ca, s * sa, a[i] * c], [s, c * ca, -c * sa, a[i] * s], [0, sa, ca, d[i]], [0, 0, 0, 1]]
        )
    pose, rotation = arm("ur5e").forward(q), np.zeros(9)
    mujoco.mju_quat2Mat(rotation, pose.quaternion)
    np.testing.assert_allclose(pose.position, whole[:3, 3], atol=1e-9)
    np.testing.assert_allclose(rotation.reshape(3, 3), whole[:3, :3], atol=1e-9)


@pytest.mark.parametrize(("model", "tolerance_m"), [("fer", 0.0006), ("fr3", 0.0006), ("ur5e", 0.003), ("xarm7", 1e-6)])
def test_agrees_with_the_model_in_robosuites_wheel_which_rounds_some_lengths(model: str, tolerance_m: float) -> None:
    found = find_spec("robosuite")
    if found is None or found.origin is None:
        pytest.skip("robosuite is not installed")
    folder = Path(found.origin).parent / "models" / "assets" / "robots" / ROBOSUITE[model]
    other = mujoco.MjModel.from_xml_path(str(folder / "robot.xml"))
    data, random = mujoco.MjData(other), np.random.default_rng(0)
    end = "link7" if model == "xarm7" else "right_hand"
    turned = np.diag([-1, -1, 1]) if model == "ur5e" else np.eye(3)  # robosuite's UR base looks the other way
    for _ in range(20):
        data.qpos[:] = q = somewhere(model, random)
        mujoco.mj_kinematics(other, data)
        np.testing.assert_allclose(
            arm(model).forward(q).position, turned @ data.body(end).xpos, atol=tolerance_m, rtol=0
        )


@pytest.mark.parametrize("model", MODELS)
def test_jacobian_is_the_derivative_of_forward_kinematics(model: str) -> None:
    kinematics, random, h = arm(model), np.random.default_rng(1), 1e-6
    for _ in range(5):
        q = somewhere(model, random)
        jacobian = kinematics.jacobian(q)
        for j in range(kinematics.joints):
            step = np.eye(kinematics.joints)[j] * h
            before, after = kinematics.forward(q - step), kinematics.forward(q + step)
            np.testing.assert_allclose(jacobian[:3, j], (after.position - before.position) / (2 * h), atol=1e-7)
            turn, local = np.zeros(3), np.zeros(3)
            mujoco.mju_subQuat(local, after.quaternion, before.quaternion)
            mujoco.mju_rotVecQuat(turn, local, before.quaternion)
            np.testing.assert_allclose(jacobian[3:, j], turn / (2 * h), atol=1e-7)


def test_a_tool_stands_where_it_is_said_to_stand_from_the_flange() -> None:
    half = np.sqrt(0.5)
    hand = Kinematics("fer", tool=Pose(np.array([0, 0, 0.1034]), np.array([half, 0, 0, -half])))
    q = somewhere("fer", np.random.default_rng(2))
    flange, tool = arm("fer").forward(q), hand.forward(q)
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, flange.quaternion)
    np.testing.assert_allclose(tool.position, flange.position + 0.1034 * rotation.reshape(3, 3)[:, 2], atol=1e-9)
    assert pose_error(flange, tool)[1] == pytest.approx(np.pi / 2)


@pytest.mark.parametrize("model", MODELS)
def test_reaches_poses_that_some_joint_positions_near_by_have(model: str) -> None:
    random, ik, reached = np.random.default_rng(3), DifferentialIK(arm(model)), 0
    for _ in range(20):
        goal = somewhere(model, random, 0.8)
        start = np.clip(goal + random.uniform(-0.3, 0.3, len(goal)), ik.limits.low, ik.limits.high)
        try:
            found = ik.reach(start, target := arm(model).forward(goal))
        except LimitError:  # a local method may be stopped by a joint's end
            continue
        distance, angle = pose_error(arm(model).forward(found), target)
        reached += bool(distance <= 1e-4 and angle <= 1e-3)
    assert reached >= 19


def test_a_pose_out_of_reach_is_an_error_that_says_how_much_is_left() -> None:
    ik = DifferentialIK(arm("ur5e"))
    far = Pose(np.array([2.0, 0, 0.5]), np.array([1.0, 0, 0, 0]))
    with pytest.raises(LimitError, match=r"not reached .* mm and"):
        ik.reach(np.array([0, -1.5, 1.5, 0, 1.5, 0]), far)


@pytest.mark.parametrize("model", ["so101", "fer", "ur5e", "xarm7"])
def test_a_target_out_of_reach_stretches_the_arm_and_then_it_rests(model: str) -> None:
    ik, q = DifferentialIK(arm(model)), somewhere(model, np.random.default_rng(4), 0.3)
    far = Pose(np.array([3.0, 0.5, 0.3]), arm(model).forward(q).quaternion)
    steps = []
    for _ in range(600):
        new = ik.step(q, far, 0.02)
        steps.append(np.abs(new - q).max())
        q = new
    assert max(steps[-50:]) < 2e-3  # rad in 20 ms, where its velocity limits allow 0.04 and more


def test_a_twist_is_followed_in_direction_and_speed() -> None:
    ik, dt = DifferentialIK(arm("fer")), 0.01
    q = np.array([0, -0.5, 0, -2.0, 0, 1.6, 0.7])
    twist = Twist(np.array([0.05, -0.1, 0.02]), np.array([0.2, 0, -0.3]))
    start = arm("fer").forward(q)
    for _ in range(50):
        q = ik.step(q, twist, dt)
    moved, turn, local = arm("fer").forward(q), np.zeros(3), np.zeros(3)
    mujoco.mju_subQuat(local, moved.quaternion, start.quaternion)
    mujoco.mju_rotVecQuat(turn, local, start.quaternion)
    np.testing.assert_allclose(moved.position - start.position, 0.5 * twist.linear, atol=5e-4)
    np.testing.assert_allclose(turn, 0.5 * twist.angular, atol=2e-3)


def test_the_tool_goes_to_a_far_pose_in_a_straight_line_at_its_speed() -> None:
    ik = DifferentialIK(arm("fer"), tool_speed=0.2)
    q = np.array([0, -0.5, 0, -2.0, 0, 1.6, 0.7])
    start = arm("fer").forward(q)
    target = Pose(start.position + np.array([0.05, 0.3, -0.1]), start.quaternion)
    way = (target.position - start.position) / np.linalg.norm(target.position - start.position)
    for _ in range(100):
        new = ik.step(q, target, 0.01)
        speed = np.linalg.norm(arm("fer").forward(new).position - arm("fer").forward(q).position) / 0.01
        assert speed <= 0.201
        q = new
        off = arm("fer").forward(q).position - start.position
        assert np.linalg.norm(off - (off @ way) * way) < 1e-3
    assert np.linalg.norm(arm("fer").forward(q).position - start.position) == pytest.approx(0.2, abs=0.005)


@pytest.mark.parametrize(
    ("model", "ready"),
    [
        ("so101", (0.0, -0.6, 0.7, 0.9, 0.0)),  # five joints: it cannot keep the orientation, and gets the place right
        ("xarm5", (0.0, -0.3, -0.8, 1.1, 0.0)),
        ("xarm6", (0.0, -0.3, -0.8, 0.0, 1.1, 0.0)),
        ("lite6", (0.0, 0.3, 1.4, 0.0, 1.1, 0.0)),
        ("widowx", (0.0, -0.6, 0.9, 0.0, 1.2, 0.0)),
        ("ur5e", (0.0, -1.5, 1.5, -1.57, -1.57, 0.0)),
        ("fer", (0.0, -0.5, 0.0, -2.2, 0.0, 1.7, 0.78)),
    ],
)
def test_the_tool_follows_a_sine_of_5_cm_to_a_third_of_a_millimetre(model: str, ready: tuple[float, ...]) -> None:
    ik, q, start = DifferentialIK(arm(model)), np.array(ready), arm(model).forward(np.array(ready))
    for tick in range(200):
        target = Pose(start.position + np.array([0, 0.05 * np.sin(np.pi * tick / 100), 0]), start.quaternion)
        q = ik.step(q, target, 0.01)
        distance, angle = pose_error(arm(model).forward(q), target)
        assert distance < 3.3e-4
        assert angle < (0.3 if arm(model).joints < 6 else 3e-3)


hostile = st.one_of(st.floats(-5, 5), st.sampled_from([0.0, 1e6, -1e6, 1e-12]))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["so101", "fer", "fr3", "ur5e", "xarm7"]),
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(hostile, hostile, hostile), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([0.002, 0.02, 0.1]),
)
def test_no_target_makes_a_step_leave_joint_velocity_or_workspace_limits(
    model: str, seed: int, targets: list[tuple[float, float, float]], twist: bool, dt: float
) -> None:
    random, ik = np.random.default_rng(seed), bounded(model)
    limits, kinematics = ik.limits, arm(model)
    q = somewhere(model, random)
    for target in targets:
        quaternion = random.normal(size=4)
        point = np.array(target)
        aim = Twist(point, point[::-1]) if twist else Pose(point, quaternion / np.linalg.norm(quaternion))
        for _ in range(8):
            before, lowest_before = outside(kinematics, q)
            new = ik.step(q, aim, dt)
            slowest, fastest = velocity_range(model, q)
            assert ((new >= limits.low) & (new <= limits.high)).all()
            assert ((new - q <= fastest * dt + 1e-9) & (new - q >= slowest * dt - 1e-9)).all()
            after, lowest_after = outside(kinematics, new)
            assert (after <= before + 1e-8).all()
            assert lowest_after >= min(lowest_before, BOX.floor) - 1e-8
            q = new


def outside(kinematics: Kinematics, q: np.ndarray) -> tuple[np.ndarray, float]:
    """How far the tool is beyond each side of BOX, and the height of the lowest joint from the third on."""
    tool = kinematics.forward(q).position
    heights = [kinematics.mj_data.xpos[body, 2] for body in kinematics.mj_model.jnt_bodyid[2:]]
    return np.maximum(np.concatenate([tool - BOX.high, np.array(BOX.low) - tool]), 0), min(heights)


def test_an_arm_that_stands_outside_its_workspace_is_led_back_in() -> None:
    ik = bounded("fer")
    q = np.array([0, 0.2, 0, -1.5, 0, 1.7, 0.7])
    assert arm("fer").forward(q).position[0] > 0.5
    target = Pose(np.array([0.29, 0, 0.4]), arm("fer").forward(q).quaternion)
    for _ in range(300):
        q = ik.step(q, target, 0.02)
    assert arm("fer").forward(q).position[0] <= 0.3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_refused_and_the_next_good_step_is_as_if_it_had_not_been(bad: float) -> None:
    ik, q = DifferentialIK(arm("ur5e")), np.array([0, -1.5, 1.5, 0, 1.5, 0])
    pose = arm("ur5e").forward(q)
    target = Pose(pose.position + np.array([0, 0.01, 0]), pose.quaternion)
    good = ik.step(q, target, 0.01)
    for positions, aim, dt in (
        (q + np.array([bad, 0, 0, 0, 0, 0]), target, 0.01),
        (q, Pose(pose.position + np.array([0, bad, 0]), pose.quaternion), 0.01),
        (q, Pose(pose.position, np.array([bad, 0, 0, 0])), 0.01),
        (q, Twist(np.array([0, bad, 0]), np.zeros(3)), 0.01),
        (q, target, bad),
    ):
        with pytest.raises(LimitError):
            ik.step(positions, aim, dt)
    np.testing.assert_array_equal(ik.step(q, target, 0.01), good)


def test_mistakes_are_errors_that_say_what_is_valid() -> None:
    with pytest.raises(DeviceError, match=r"no kinematic model of an arm 'koch'; valid: fer, fr3, lite6, so101"):
        Kinematics("koch")
    with pytest.raises(LimitError, match="must have length 1"):
        Kinematics("fer", tool=Pose(np.zeros(3), np.ones(4)))
    with pytest.raises(LimitError, match="6 finite numbers"):
        arm("ur5e").forward(np.zeros(7))
    with pytest.raises(DeviceError, match="is empty"):
        DifferentialIK(arm("ur5e"), workspace=Workspace((0, 0, 0), (1, 0, 1)))
    with pytest.raises(LimitError, match=r"joint 1 is told to go to 2.900 rad"):
        DifferentialIK(arm("fer")).step(np.array([0, 2.9, 0, -1.5, 0, 1.7, 0.7]), arm("fer").forward(np.zeros(7)), 0.1)


def test_without_mink_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(DeviceError, match=r"pip install 'robolearn\[kinematics\]'"):
        Kinematics("ur5e")
