"""Demonstrations are cut where the tool's relation to objects changes, and carried over relative to these objects."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn_sim.generate_segments import (
    Segment,
    Trace,
    Traits,
    choose,
    fit,
    matrix,
    mirrored,
    segments_of,
    sources_of,
    way_between,
)


def quaternion(axis: np.ndarray, angle: float) -> np.ndarray:
    return np.array([math.cos(angle / 2), *(math.sin(angle / 2) * axis / np.linalg.norm(axis))])


def pose(x: float, y: float, z: float, yaw: float = 0.0) -> np.ndarray:
    return np.array([x, y, z, *quaternion(np.array([0, 0, 1.0]), yaw)])


@st.composite
def poses(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return np.concatenate([rng.uniform(-1, 1, 3), quaternion(rng.standard_normal(3), rng.uniform(-3, 3))])


def homogeneous(p: np.ndarray) -> np.ndarray:
    """Written out from the quaternion product q v q*: columns are the images of the axes."""
    w, v = p[3], p[4:]
    columns = []
    for axis in np.eye(3):
        t = 2 * np.cross(v, axis)
        columns.append(axis + w * t + np.cross(v, t))
    full = np.eye(4)
    full[:3, :3], full[:3, 3] = np.stack(columns, axis=1), p[:3]
    return full


def pick_and_place(*, goal: bool = True, release: bool = True) -> Trace:
    """A tool goes to a cup at x = 0.3, closes, carries it to x = 0.6, and opens; 10 steps for each."""
    tool = [pose(0.03 * t, 0, 0.1) for t in range(10)]  # reach
    tool += [pose(0.3, 0, 0.1)] * 10  # close, and wait
    tool += [pose(0.3 + 0.03 * t, 0, 0.1) for t in range(1, 11)]  # carry
    tool += [pose(0.6, 0, 0.1 + 0.02 * t) for t in range(10)]  # open and retreat
    cup = [pose(0.3, 0, 0.1)] * 20 + tool[20:30] + [pose(0.6, 0, 0.1)] * 10
    gripper = np.array([-1.0] * 10 + [1.0] * 20 + [-1.0 if release else 1.0] * 10)
    objects = {"cup": np.stack(cup)}
    if goal:
        objects["plate"] = np.stack([pose(0.6, 0.01, 0.05)] * 40)
    return Trace(np.stack(tool), np.stack(tool), gripper, gripper > 0, objects)


def test_reaching_is_relative_to_what_is_grasped_and_carrying_to_where_it_is_put() -> None:
    trace = pick_and_place()
    reach, carry = segments_of(trace)
    assert (reach.reference, carry.reference) == ("cup", "plate")
    assert len(reach.target) == 20  # until the cup has moved by more than 1 cm, which the first step of carrying does
    assert len(reach.target) + len(carry.target) == 40
    np.testing.assert_array_equal(np.concatenate([reach.target, carry.target]), trace.target)
    np.testing.assert_array_equal(np.concatenate([reach.gripper, carry.gripper]), trace.gripper)
    np.testing.assert_array_equal(carry.pose, trace.objects["plate"][20])


def test_carrying_what_has_no_place_is_relative_to_where_it_was_itself() -> None:
    _, carry = segments_of(pick_and_place(goal=False, release=False))
    assert carry.reference == "cup"
    np.testing.assert_allclose(carry.pose, pose(0.33, 0, 0.1))


def test_a_second_grasp_begins_where_the_tool_has_left_the_first_place() -> None:
    first, second = pick_and_place(), pick_and_place()
    aside = np.array([0, 1, 0, 0, 0, 0, 0])
    objects = {
        "cup": np.concatenate([first.objects["cup"], np.stack([pose(0.6, 0, 0.1)] * 40)]),
        "plate": np.stack([pose(0.6, 0.01, 0.05)] * 80),
        "ball": np.concatenate([np.stack([pose(0.3, 1, 0.1)] * 40), second.objects["cup"] + aside]),
        "tray": np.stack([pose(0.6, 1.01, 0.05)] * 80),
    }
    tool = np.concatenate([first.tool, second.tool + aside])
    gripper = np.concatenate([first.gripper, second.gripper])
    trace = Trace(tool, tool, gripper, gripper > 0, objects)
    segments = segments_of(trace)
    assert [segment.reference for segment in segments] == ["cup", "plate", "ball", "tray"]
    assert sum(len(segment.target) for segment in segments) == 80
    assert np.linalg.norm(segments[2].target[0][:3] - segments[1].target[10][:3]) > 0.05


def test_a_grasp_that_slips_belongs_to_the_reach_that_succeeds() -> None:
    trace = pick_and_place()
    gripper = trace.gripper.copy()
    gripper[3:6] = 1.0  # closed on nothing, and opened again
    segments = segments_of(Trace(trace.tool, trace.target, gripper, gripper > 0, trace.objects))
    assert [len(segment.target) for segment in segments] == [20, 20]


def test_without_any_grasp_the_whole_is_relative_to_what_the_tool_ended_at() -> None:
    trace = pick_and_place()
    (only,) = segments_of(
        Trace(
            trace.tool[:10],
            trace.target[:10],
            -np.ones(10),
            np.zeros(10, bool),
            {k: v[:10] for k, v in trace.objects.items()},
        )
    )
    assert only.reference == "cup"
    assert len(only.target) == 10


NONE = Traits()


def angle(turn: np.ndarray) -> float:
    return math.acos(np.clip((np.trace(turn) - 1) / 2, -1, 1))


@settings(deadline=None)
@given(poses(), poses(), poses(), poses())
def test_a_tool_that_reaches_keeps_its_pose_relative_to_the_object(
    before: np.ndarray, now: np.ndarray, target: np.ndarray, tool: np.ndarray
) -> None:
    segment = Segment("cup", before, target[None], np.ones(1))
    (carried,) = fit(segment, {"cup": now}, tool, NONE).poses(segment.target)
    np.testing.assert_allclose(
        np.linalg.inv(homogeneous(now)) @ homogeneous(carried),
        np.linalg.inv(homogeneous(before)) @ homogeneous(target),
        atol=1e-9,
    )


@settings(deadline=None)
@given(poses(), poses(), poses(), poses(), poses(), poses())
def test_what_is_carried_keeps_its_pose_relative_to_its_place_however_it_lies_in_the_hand(
    plate: np.ndarray, plate_now: np.ndarray, target: np.ndarray, in_hand: np.ndarray, tool: np.ndarray, cup: np.ndarray
) -> None:
    held = homogeneous(in_hand)
    segment = Segment("plate", plate, target[None], np.ones(1), "cup", held)
    (carried,) = fit(segment, {"plate": plate_now, "cup": cup}, tool, NONE).poses(segment.target)
    held_now = np.linalg.inv(homogeneous(tool)) @ homogeneous(cup)
    np.testing.assert_allclose(
        np.linalg.inv(homogeneous(plate_now)) @ homogeneous(carried) @ held_now,
        np.linalg.inv(homogeneous(plate)) @ homogeneous(target) @ held,
        atol=1e-9,
    )


@settings(deadline=None)
@given(poses(), poses(), poses(), poses(), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2]))
def test_of_all_turns_that_look_the_same_the_one_with_the_least_motion_is_taken(
    before: np.ndarray, now: np.ndarray, target: np.ndarray, tool: np.ndarray, turns: int, of_tool: int
) -> None:
    def turned(n: int, k: int) -> np.ndarray:
        return homogeneous(pose(0, 0, 0, 2 * math.pi * k / n))

    def cost(full: np.ndarray) -> float:
        """The way to the segment's first pose and the rotation to its last, which are one here; 0.1 m for 1 rad."""
        turn = angle(full[:3, :3] @ homogeneous(tool)[:3, :3].T)
        return float(np.linalg.norm(full[:3, 3] - tool[:3])) + 0.2 * turn

    relative = np.linalg.inv(homogeneous(before)) @ homogeneous(target)
    equal = [
        homogeneous(now) @ turned(turns, k) @ relative @ turned(of_tool, j)
        for k in range(turns)
        for j in range(of_tool)
    ]
    segment = Segment("cube", before, target[None], np.ones(1))
    (found,) = fit(segment, {"cube": now}, tool, Traits({"cube": turns}, tool=of_tool)).poses(segment.target)
    assert min(np.abs(homogeneous(found) - each).max() for each in equal) < 1e-7
    assert cost(homogeneous(found)) == pytest.approx(min(map(cost, equal)), abs=1e-5)


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(-1, 1), st.floats(-1, 1))
def test_a_round_thing_that_was_moved_and_turned_is_approached_as_if_it_had_only_been_moved(
    yaw: float, turned: float, x: float, y: float
) -> None:
    """Carrying it, any turn in the hand is free: the tool ends as it did."""
    tool = pose(0.3, 0.1, 0.5, 0.4)
    in_hand = np.linalg.inv(homogeneous(tool)) @ homogeneous(pose(0.3, 0.1, 0.45, yaw))
    segment = Segment("plate", pose(0, 0, 0), pose(x, y, 0.5, 0.4)[None], np.ones(1), "can", in_hand)
    now = {"plate": pose(0, 0, 0), "can": pose(0.3, 0.1, 0.45, turned)}
    found = fit(segment, now, tool, Traits({"can": 0})).poses(segment.target)
    np.testing.assert_allclose(homogeneous(found[0]), homogeneous(pose(x, y, 0.5, 0.4)), atol=1e-9)


@settings(deadline=None)
@given(poses(), poses())
def test_the_way_between_two_poses_is_even_and_keeps_to_the_speeds(start: np.ndarray, end: np.ndarray) -> None:
    way = np.stack([start, *way_between(start, end, move_m=0.05, turn_rad=0.1), end])
    moves = np.diff(way[:, :3], axis=0)
    np.testing.assert_allclose(moves, np.broadcast_to(moves[0], moves.shape), atol=1e-9)
    assert np.linalg.norm(moves[0]) <= 0.05 + 1e-9
    turns = [homogeneous(a)[:3, :3].T @ homogeneous(b)[:3, :3] for a, b in itertools.pairwise(way)]
    np.testing.assert_allclose(turns, np.broadcast_to(turns[0], (len(turns), 3, 3)), atol=1e-6)
    assert math.acos(np.clip((np.trace(turns[0]) - 1) / 2, -1, 1)) <= 0.1 + 1e-6


def test_there_is_no_way_between_neighbours() -> None:
    assert way_between(pose(0, 0, 0), pose(0.01, 0, 0), move_m=0.02, turn_rad=0.1).shape == (0, 7)
    assert way_between(pose(0, 0, 0), pose(0, 0, 0), move_m=0.02, turn_rad=0.1).shape == (0, 7)


@settings(deadline=None)
@given(poses(), poses())
def test_a_mirror_image_keeps_distances_and_is_its_own_inverse(tool: np.ndarray, cube: np.ndarray) -> None:
    trace = Trace(tool[None], tool[None], np.ones(1), np.ones(1, bool), {"cube": cube[None]})
    image = mirrored(trace)
    t, c = image.tool[0], image.objects["cube"][0]
    np.testing.assert_allclose(t[:3], tool[:3] * [1, -1, 1])
    assert np.linalg.norm(t[:3] - c[:3]) == pytest.approx(np.linalg.norm(tool[:3] - cube[:3]))
    before, after = homogeneous(tool)[:3, :3], homogeneous(t)[:3, :3]
    assert np.linalg.det(after) == pytest.approx(1)
    np.testing.assert_allclose(after[:, 2], before[:, 2] * [1, -1, 1], atol=1e-9)  # where it points
    np.testing.assert_allclose(after[:, 0], -before[:, 0] * [1, -1, 1], atol=1e-9)  # fingers swapped: they are alike
    again = mirrored(image)
    np.testing.assert_allclose(homogeneous(again.tool[0]), homogeneous(tool), atol=1e-9)
    np.testing.assert_allclose(homogeneous(again.objects["cube"][0]), homogeneous(cube), atol=1e-9)


def test_a_gripper_whose_fingers_close_sideways_is_its_own_mirror_image() -> None:
    """So the wrist, which cannot turn far from there, need not."""
    down_and_sideways = np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, -1]])
    tool = np.array([0.1, 0.2, 0.9, 0, math.sqrt(0.5), math.sqrt(0.5), 0])
    np.testing.assert_allclose(homogeneous(tool)[:3, :3], down_and_sideways, atol=1e-12)
    image = mirrored(Trace(tool[None], tool[None], np.ones(1), np.ones(1, bool), {})).tool[0]
    np.testing.assert_allclose(homogeneous(image)[:3, :3], down_and_sideways, atol=1e-12)


def test_a_demonstration_and_its_mirror_image_are_two_sources_of_the_same_course() -> None:
    plain, image = sources_of(7, pick_and_place(), mirror=True)
    assert (plain.mirrored, image.mirrored) == (False, True)
    assert (plain.episode, image.episode) == (7, 7)
    assert plain.course == image.course == ("cup", "plate")
    assert [source.mirrored for source in sources_of(7, pick_and_place(), mirror=False)] == [False]


def test_a_segment_is_drawn_from_those_that_need_the_least_change() -> None:
    rng = np.random.default_rng(0)
    ways = [0.5, 0.1, 0.9, 0.3, 0.2]
    assert {choose(ways, 3, rng) for _ in range(100)} == {1, 4, 3}
    assert {choose(ways, 0, rng) for _ in range(200)} == set(range(5))
    assert {choose(ways, 9, rng) for _ in range(200)} == set(range(5))


def test_the_change_of_a_segment_is_the_way_of_the_object_and_of_the_tool_with_a_rotation_of_1_rad_as_10_cm() -> None:
    segment = Segment("cup", pose(0.5, 0, 0), pose(0.5, 0, 0.3)[None], np.ones(1))
    moved = fit(segment, {"cup": pose(0.5, 0.1, 0)}, pose(0.5, 0.1, 0.3), NONE)
    assert moved.way == pytest.approx(0.1)
    assert fit(segment, {"cup": pose(0.5, 0, 0)}, pose(0.5, 0, 0.1), NONE).way == pytest.approx(0.2)
    assert fit(segment, {"cup": pose(0.5, 0, 0)}, pose(0.5, 0, 0.3, 1.0), NONE).way == pytest.approx(0.1)


@settings(deadline=None)
@given(poses())
def test_matrix_is_the_rotation_and_the_position(p: np.ndarray) -> None:
    np.testing.assert_allclose(matrix(p), homogeneous(p), atol=1e-12)
