"""The SO-101 tabletop: the twin's own scene and motors, exact states, tasks that the expert solves, a rig's streams."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from robolearn_data.schema import SchemaError
from robolearn_deploy.rig_streams import RigLayout
from robolearn_hardware.devices import ArmInfo
from robolearn_hardware.limits import limits_of
from robolearn_hardware.models import arm_xml
from robolearn_hardware.twins.plant import PlantSpec
from robolearn_sim.demonstrations import demonstrate, demonstration_schema, demonstrations
from robolearn_sim.experts import make_expert
from robolearn_sim.manipulation import pose_of, rotation, rotation_of, rotation_vector
from robolearn_sim.worlds import WorldError, make_world, world_spec

mujoco: Any = pytest.importorskip("mujoco")

from robolearn_sim.plants import mujoco_plant  # noqa: E402
from robolearn_sim.reach import Reach, between  # noqa: E402
from robolearn_sim.so101_tabletop import ACTION, CUBES, HALF_CUBE_M, JOINTS, PLACES, START, STATE, TASKS  # noqa: E402

NAME = "so101_tabletop"


@functools.cache
def the(task: str = "put the red cube on the plate") -> Any:
    """One world for all tests of a process; every test begins with a reset."""
    return make_world(NAME, task=task)


def test_the_same_seed_gives_the_same_episode_whatever_came_before() -> None:
    actions = START + np.random.default_rng(0).normal(0, 0.2, (15, 6))

    def episode(world: Any) -> list[np.ndarray]:
        observations = [world.reset(3), *(world.step(action).observation for action in actions)]
        return [np.concatenate([o["state"], o["tool"], o["things"]]) for o in observations]

    first = episode(the())
    demonstrate(the(), make_expert(NAME), 4, 0.2)
    assert np.array_equal(episode(the()), first)
    assert np.array_equal(episode(make_world(NAME)), first)
    assert not np.array_equal(the().reset(4)["things"], the().reset(3)["things"])


def test_cubes_start_apart_at_rest_and_where_the_arm_can_point_down_at_them() -> None:
    reach, world = Reach(), the()
    for seed in range(30):
        world.reset(seed)
        cubes = [world.objects()[cube] for cube in CUBES]
        for i, cube in enumerate(cubes):
            assert cube[2] == pytest.approx(HALF_CUBE_M)
            assert all(np.linalg.norm(cube[:2] - other[:2]) >= 0.06 for other in cubes[:i])
            out = np.array([*cube[:2], 0]) / np.linalg.norm(cube[:2])
            down = np.array([0.0, 0.0, -1.0])
            pose = pose_of(cube[:3], np.column_stack([np.cross(out, down), out, down]))
            reached = reach.pose(reach.joints(START[:5], pose))
            assert np.linalg.norm(reached[:3] - cube[:3]) < 0.002
            assert rotation_of(reached)[2, 2] < -0.95


def test_the_motors_and_the_scene_are_those_of_the_twin() -> None:
    """The same targets move the plant behind the twin through the same positions."""
    world = the()
    world.reset(0)
    limits = limits_of("so101")
    low, high = np.append(limits.low, 0.0), np.append(limits.high, 1.0)
    start = world._command.copy()
    plant = mujoco_plant(PlantSpec("so101", start, low, high, True))
    try:
        names = [plant._model.body(i).name for i in range(plant._model.nbody)]
        assert names == [world._model.body(i).name for i in range(world._model.nbody)]
        rng = np.random.default_rng(0)
        plant.advance(0)
        for i in range(1, 21):  # high above the things, which lie elsewhere
            target = start + rng.normal(0, 0.1, 6) * [1, 1, 1, 1, 1, 0]
            plant.target(target)
            plant.advance(i * 40_000_000)
            state = world.step(target).observation["state"]
            np.testing.assert_allclose(state, plant.positions, atol=1e-5)
        plate = plant._model.body("plate").pos
        np.testing.assert_allclose(world.objects()["plate"][:3], plate, atol=1e-9)
    finally:
        plant.close()


def test_state_and_action_are_the_streams_of_a_rig_with_this_arm() -> None:
    spec = mujoco.MjSpec.from_string(arm_xml("so101"))
    joints = tuple(joint.name for joint in spec.joints)
    assert joints == JOINTS
    layout = RigLayout((ArmInfo("follower", "so101", joints[:5], limits_of("so101"), True, 100.0),))
    rig = layout.schema(25.0, 100.0, {}).streams
    for name, ours in (("state", STATE), ("action", ACTION)):
        for field in ("shape", "dtype", "kind", "names", "unit"):
            assert getattr(rig[name], field) == getattr(ours, field), (name, field)


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_does_each_task_although_it_is_disturbed(task: str) -> None:
    cube, place = TASKS[task]
    world = the(task)
    for seed in (0, 1):
        assert demonstrate(world, make_expert(NAME, task=task), seed, 0.2).success
        objects = world.objects()
        inside = {other for other in CUBES if np.linalg.norm((objects[other] - objects[place])[:2]) < 0.04}
        assert inside == {cube}


def test_success_needs_the_cube_to_be_let_go_in_its_place_for_five_steps() -> None:
    world = the()
    world.reset(0)
    state = world._data.qpos.copy()
    first = world._cube_qpos["red"]

    def put(cube: str, place: str, height: float) -> bool:
        world.reset(0)
        start = world._cube_qpos[cube]
        world._data.qpos[:] = state
        world._data.qpos[start : start + 3] = world.objects()[place][:3] + np.array([0.01, 0, height])
        world._data.qvel[:] = 0
        mujoco.mj_forward(world._model, world._data)
        return [world.step(START).success for _ in range(8)][-1]

    assert put("red", "plate", HALF_CUBE_M + 0.002)
    assert not put("green", "plate", HALF_CUBE_M + 0.002)
    assert not put("red", "bin", HALF_CUBE_M + 0.002)
    world.reset(0)
    assert not world.step(START).success
    # On the edge of the plate, half over it.
    world._data.qpos[first : first + 3] = world.objects()["plate"][:3] + np.array([0.044, 0, HALF_CUBE_M + 0.002])
    mujoco.mj_forward(world._model, world._data)
    assert not any(world.step(START).success for _ in range(8))


def test_a_cube_in_the_gripper_over_the_plate_does_not_count() -> None:
    world, expert = the(), make_expert(NAME)
    observation = world.reset(2)
    expert.reset(np.random.default_rng(2))
    scores = []
    for _ in range(200):
        step = world.step(expert.act(observation))
        observation = step.observation
        if world.holds("red"):
            scores.append(step.score)
        if step.done:
            assert step.success
            break
    assert len(scores) > 20
    assert max(scores) <= 0.9


def test_restoring_a_state_leads_through_the_same_states_to_the_bit() -> None:
    world = the()
    sent = demonstrate(world, make_expert(NAME), 0, 0.2).streams["action_sent"]
    middle = len(sent) // 2
    observation = world.reset(0)
    for action in sent[:middle]:
        observation = world.step(action).observation
    kept = world.state()
    first = [world.step(action) for action in sent[middle:]]
    world.reset(5)
    again = world.restore(kept)
    assert all(np.array_equal(again[name], observation[name]) for name in observation)
    assert np.array_equal(world.state(), kept)
    for action, before in zip(sent[middle:], first, strict=True):
        step = world.step(action)
        assert all(np.array_equal(step.observation[name], before.observation[name]) for name in observation)
        assert (step.score, step.success, step.done) == (before.score, before.success, before.done)
    assert first[-1].success
    with pytest.raises(WorldError, match="finite numbers"):
        world.restore(kept[1:])


def test_an_action_towards_a_pose_brings_the_tool_there_and_its_target_is_that_pose() -> None:
    world = the()
    world.reset(1)
    goal = world.tool_pose()
    goal[:3] += [0.02, 0.04, 0.02]
    turned = rotation(np.array([0, 0, 0.22])) @ rotation_of(goal)  # as the arm turns to get there
    goal = pose_of(goal[:3], turned)
    for _ in range(40):
        world.step(world.action_towards(goal, 0.3))
    action = world.action_towards(goal, 0.3)
    assert action[5] == 0.3
    assert np.linalg.norm(world.target_of(action)[:3] - goal[:3]) < 0.002
    assert np.linalg.norm(world.tool_pose()[:3] - goal[:3]) < 0.012  # it sags
    far = goal.copy()
    far[:3] += 1.0
    step = np.linalg.norm(world.target_of(world.action_towards(far, 0.3))[:3] - goal[:3])
    assert step < 0.025


def test_inverse_kinematics_is_the_inverse_of_forward_kinematics() -> None:
    reach, rng = Reach(), np.random.default_rng(0)
    limits = limits_of("so101")
    for _ in range(50):
        joints = rng.uniform(0.7 * limits.low, 0.7 * limits.high)
        pose = reach.pose(joints)
        found = reach.joints(joints + rng.normal(0, 0.05, 5), pose)
        np.testing.assert_allclose(reach.pose(found)[:3], pose[:3], atol=1e-4)
        assert (found >= limits.low).all()
        assert (found <= limits.high).all()


def test_the_way_between_two_poses_is_straight_and_no_longer_than_asked() -> None:
    start = np.array([0.0, 0, 0, 1, 0, 0, 0])
    end = pose_of(np.array([0.3, 0.4, 0.0]), rotation(np.array([0, 0, 1.0])))
    part = between(start, end, move_m=0.1, turn_rad=0.25)
    np.testing.assert_allclose(part[:3], [0.06, 0.08, 0])
    np.testing.assert_allclose(rotation_vector(rotation_of(part)), [0, 0, 0.25], atol=1e-9)
    np.testing.assert_allclose(between(part, end, move_m=9, turn_rad=9), end, atol=1e-9)


def test_a_bad_action_is_refused_and_one_beyond_the_stops_is_clipped() -> None:
    world = the()
    world.reset(0)
    for bad in (np.full(6, np.nan), np.zeros(7)):
        with pytest.raises(SchemaError):
            world.step(bad)
    high = np.append(limits_of("so101").high, 1.0)
    reference = world.step(high).observation["state"]
    world.reset(0)
    assert np.array_equal(world.step(high + 5).observation["state"], reference)


def test_an_unknown_task_is_refused_with_the_tasks_there_are() -> None:
    with pytest.raises(WorldError, match="put the blue cube into the bin"):
        world_spec(NAME, task="dance")
    assert len(TASKS) == len(CUBES) * len(PLACES)


def test_demonstrations_are_of_the_task_that_is_asked_for() -> None:
    options = {"task": "put the blue cube into the bin"}
    attempts = demonstrations(NAME, options, first_seed=0, noise=0.2, workers=1)
    try:
        episode = next(attempts)
    finally:
        attempts.close()
    assert episode.success
    assert set(episode.streams) == set(demonstration_schema(NAME, options).streams)


@pytest.mark.slow
def test_both_cameras_see_the_arm_move_and_the_process_ends_without_a_word() -> None:
    code = """
import numpy as np
from robolearn_sim.worlds import make_world
world = make_world("so101_tabletop", images=True, max_steps=6)
streams = world.spec.schema.streams
first = world.reset(0)
for name, value in first.items():
    streams[name].check(name, value)
assert set(first) == set(streams) - {"action"}
assert world.render().shape == (256, 256, 3)
moved = [world.step(first["state"] + np.array([0.3, 0.5, 0, 0, 0, 0], np.float32)) for _ in range(6)]
assert [s.done for s in moved] == [False] * 5 + [True]
for camera in ("front", "wrist"):
    assert np.abs(moved[-1].observation[camera].astype(int) - first[camera]).max() > 50
    assert first[camera].std() > 20
again = world.reset(0)
assert all(np.array_equal(again[name], first[name]) for name in first)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
