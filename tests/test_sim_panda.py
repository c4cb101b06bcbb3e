"""The worlds of robosuite with a Panda arm: its tasks, its physics, its idea of success; experts that solve them."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import numpy as np
import pytest

from robolearn_data.schema import SchemaError
from robolearn_sim.demonstrations import Demonstration, demonstrate
from robolearn_sim.experts import make_expert
from robolearn_sim.manipulation import pose_of, rotation, rotation_of, rotation_vector
from robolearn_sim.meshes import cluster
from robolearn_sim.worlds import WorldError, make_world, world_spec

pytestmark = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")

NAMES = ("lift", "can", "square", "stack", "door")
worlds = pytest.mark.parametrize("name", NAMES)


@functools.cache
def the(name: str, **options: Any) -> Any:
    """One world of each kind for all tests of a process; every test begins with a reset."""
    return make_world(name, **options)


@functools.cache
def demonstration(name: str) -> Demonstration:
    """Of seed 0, disturbed."""
    return demonstrate(the(name), make_expert(name), 0, 0.2)


def robosuite_qpos(world: Any) -> np.ndarray:
    """The positions in robosuite's own simulation, in the order of ours."""
    return world._env.sim.data._data.qpos[world._same._qpos]


@worlds
def test_at_500_hz_everything_moves_as_in_the_environment_of_robosuite(name: str) -> None:
    """For as long as the arm is free: things that touch amplify rounding errors."""
    world = the(name, controller_hz=500)
    sent = np.clip(demonstration(name).streams["action_sent"], -1, 1).astype(np.float32).astype(np.float64)
    world.reset(0)
    for action in sent[:12]:
        world.step(action)
        world._env.step(action)
        np.testing.assert_allclose(robosuite_qpos(world), world._data.qpos, atol=1e-5)


@worlds
def test_at_100_hz_the_tool_strays_by_no_more_than_a_few_millimetres_from_where_it_is_at_500(name: str) -> None:
    """After the same 15 disturbed actions, whose deviations add up."""
    actions = demonstration(name).streams["action_sent"][:15]

    def tool(world: Any) -> np.ndarray:
        world.reset(0)
        for action in actions:
            world.step(action)
        return world.tool_pose()[:3]

    strayed = np.linalg.norm(tool(the(name)) - tool(the(name, controller_hz=500)))
    assert strayed < (0.006 if name == "door" else 0.001)  # to the door it turns by 90 degrees


@worlds
def test_a_start_is_the_one_that_robosuite_draws(name: str) -> None:
    world = the(name)
    world.reset(7)
    seven = world._data.qpos.copy()
    assert np.array_equal(robosuite_qpos(world), seven)
    assert not np.array_equal(the(name).reset(8)["state"], the(name).reset(7)["state"])


def test_in_the_wide_variant_the_cube_lies_where_robosuite_never_puts_it() -> None:
    def cubes(name: str) -> np.ndarray:
        world = the(name)
        states = (world.reset(seed)["state"] for seed in range(20))
        return np.abs([state[:2] + state[7:9] for state in states])

    assert cubes("lift").max() < 0.031
    assert 0.09 < cubes("lift/wide").max() < 0.121
    assert the("lift/wide").spec == world_spec("lift/wide")
    assert the("lift/wide").spec.name == "lift/wide"
    with pytest.raises(WorldError, match="'can' has no wider starts"):
        world_spec("can", wide=True)


@worlds
def test_success_is_what_robosuite_counts_held_for_five_steps(name: str) -> None:
    """The state of each step is put into robosuite's simulation, and its own predicate asked."""
    world, sent = the(name), demonstration(name).streams["action_sent"]
    world.reset(0)
    env = world._env
    theirs = env.sim.data._data
    held = 0
    for i, action in enumerate(sent):
        step = world.step(action)
        theirs.qpos[world._same._qpos] = world._data.qpos
        env.sim.forward()
        counts = bool(env._check_success())
        held = held + 1 if counts else 0
        if name != "stack":  # whose predicate asks for touch, which comes and goes at the edge of a step
            assert step.success == (held >= 5)
            assert (step.score >= 1) == counts or name == "lift"
        assert 0 <= step.score <= 1
        assert step.done == (i == len(sent) - 1)
        assert (step.success and counts) or not step.done


@worlds
def test_restoring_a_state_leads_through_the_same_states_to_the_bit(name: str) -> None:
    world, sent = the(name), demonstration(name).streams["action_sent"]
    middle = len(sent) // 2
    observation = world.reset(0)
    for action in sent[:middle]:
        observation = world.step(action).observation
    kept = world.state()
    first = [world.step(action) for action in sent[middle:]]
    world.reset(5)
    again = world.restore(kept)
    assert np.array_equal(again["state"], observation["state"])
    assert np.array_equal(world.state(), kept)
    for action, before in zip(sent[middle:], first, strict=True):
        step = world.step(action)
        assert np.array_equal(step.observation["state"], before.observation["state"])
        assert (step.score, step.success, step.done) == (before.score, before.success, before.done)
    assert first[-1].success


@worlds
def test_a_state_of_another_world_is_refused(name: str) -> None:
    world = the(name)
    for bad in (world.state()[:-1], np.full_like(world.state(), np.nan)):
        with pytest.raises(WorldError, match="finite numbers"):
            world.restore(bad)


@worlds
def test_an_action_towards_a_pose_brings_the_tool_there(name: str) -> None:
    world = the(name)
    world.reset(1)
    start = world.tool_pose()
    goal = pose_of(start[:3] + np.array([0.03, 0.04, 0.02]), rotation(np.array([0.1, -0.2, 0.3])) @ rotation_of(start))
    for _ in range(60):
        world.step(world.action_towards(goal, -1.0))
    reached = world.tool_pose()
    assert np.linalg.norm(reached[:3] - goal[:3]) < 0.01  # friction in the joints holds it some millimetres short
    assert np.linalg.norm(rotation_vector(rotation_of(goal) @ rotation_of(reached).T)) < 0.06


@worlds
def test_the_target_of_an_action_is_what_the_action_goes_towards(name: str) -> None:
    world, rng = the(name), np.random.default_rng(0)
    world.reset(2)
    for _ in range(10):
        action = rng.uniform(-0.9, 0.9, 7)
        np.testing.assert_allclose(world.action_towards(world.target_of(action), action[6]), action, atol=1e-6)
        world.step(action)
    far = world.action_towards(world.tool_pose() + np.array([1.0, 0.5, 0, 0, 0, 0, 0]), 1.0)
    np.testing.assert_allclose(far, [1, 0.5, 0, 0, 0, 0, 1], atol=1e-6)  # as far as it may, straight


@worlds
def test_objects_are_where_the_physics_has_them(name: str) -> None:
    world = the(name)
    world.reset(3)
    model, data = world._env.sim.model._model, world._env.sim.data._data
    bodies = {
        "cube": "cube_main", "can": "Can_main", "nut": "SquareNut_main", "red": "cubeA_main", "green": "cubeB_main",
        "handle": "Door_latch", "frame": "Door_frame",
    }  # fmt: skip
    objects = world.objects()
    for thing, pose in objects.items():
        assert pose.shape == (7,)
        if thing in bodies:
            body = model.body(bodies[thing]).id
            np.testing.assert_allclose(pose[:3], data.xpos[body], atol=1e-9)
            np.testing.assert_allclose(rotation_of(pose).ravel(), data.xmat[body], atol=1e-6)
    assert set(objects) - set(bodies) <= {"goal", "peg"}
    if name == "can":
        np.testing.assert_allclose(objects["goal"][:3], world._env.target_bin_placements[3], atol=1e-9)
    if name == "square":
        np.testing.assert_allclose(objects["peg"][:2], data.xpos[model.body("peg1").id][:2], atol=1e-9)


def test_the_names_of_a_state_say_what_it_holds() -> None:
    for name, part, thing in (("can", "can", "can"), ("square", "nut", "nut"), ("stack", "red", "red")):
        world = the(name)
        values = dict(zip(world.spec.schema.streams["state"].names, world.reset(4)["state"].tolist(), strict=True))
        tool, position = world.tool_pose(), world.objects()[thing][:3]
        np.testing.assert_allclose([values[f"eef_{a}"] for a in "xyz"], tool[:3], atol=1e-6)
        np.testing.assert_allclose([values[f"{part}_{a}_from_eef"] for a in "xyz"], position - tool[:3], atol=1e-6)
        np.testing.assert_allclose([values[f"approach_{a}"] for a in "xyz"], rotation_of(tool)[:, 2], atol=1e-6)
        np.testing.assert_allclose([values[f"closing_{a}"] for a in "xyz"], rotation_of(tool)[:, 0], atol=1e-6)
    world = the("door")
    values = dict(zip(world.spec.schema.streams["state"].names, world.reset(4)["state"].tolist(), strict=True))
    assert values["out_x"] ** 2 + values["out_y"] ** 2 == pytest.approx(1)
    assert values["out_y"] > 0.9  # towards the robot's middle
    assert values["hinge"] == values["latch"] == 0


@pytest.mark.slow
@worlds
def test_the_expert_solves_the_world_although_it_is_disturbed(name: str) -> None:
    episodes = [demonstrate(the(name), make_expert(name), seed, 0.2) for seed in range(100, 110)]
    assert sum(episode.success for episode in episodes) >= 9


@worlds
def test_a_bad_action_is_refused_and_a_large_one_is_clipped(name: str) -> None:
    world = the(name)
    world.reset(0)
    for bad in (np.full(7, np.nan), np.zeros(6)):
        with pytest.raises(SchemaError):
            world.step(bad)
    reference = world.step(np.ones(7)).observation["state"]
    world.reset(0)
    assert np.array_equal(world.step(np.full(7, 50.0)).observation["state"], reference)


def test_a_rate_that_the_physics_does_not_divide_into_is_refused() -> None:
    for rate in (0, 30, 250, 1000, -100):
        with pytest.raises(WorldError, match="controller_hz"):
            world_spec("can", controller_hz=rate)


def test_rotation_vectors_and_matrices_are_each_other_again() -> None:
    rng = np.random.default_rng(0)
    axes = rng.standard_normal((200, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    for axis, angle in zip(
        axes, [*rng.uniform(0, np.pi, 195), 0.0, 1e-9, np.pi - 1e-9, np.pi - 1e-5, np.pi], strict=True
    ):
        matrix = rotation(angle * axis)
        np.testing.assert_allclose(rotation(rotation_vector(matrix)), matrix, atol=1e-8)
        pose = pose_of(np.arange(3.0), matrix)
        np.testing.assert_allclose(rotation_of(pose), matrix, atol=1e-8)
        assert np.linalg.norm(pose[3:]) == pytest.approx(1)
        assert pose[3] >= 0


@worlds
def test_what_is_simulated_has_the_masses_and_contacts_of_robosuite_and_a_tenth_of_its_triangles(name: str) -> None:
    world = the(name)
    ours, theirs = world._model, world._env.sim.model._model
    bodies = world._same._bodies
    np.testing.assert_allclose(ours.body_mass, theirs.body_mass[bodies], rtol=1e-9)
    np.testing.assert_allclose(ours.body_inertia, theirs.body_inertia[bodies], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours.body_ipos, theirs.body_ipos[bodies], atol=1e-12)
    geoms = np.flatnonzero(np.isin(theirs.geom_bodyid, bodies))
    solid = [i for i in range(ours.ngeom) if ours.geom_contype[i] and ours.geom(i).name]
    assert len(solid) >= 14
    for field in ("geom_friction", "geom_solref", "geom_solimp", "geom_size", "geom_pos", "geom_quat"):
        for i in solid:
            their = theirs.geom(ours.geom(i).name).id
            np.testing.assert_allclose(getattr(ours, field)[i], getattr(theirs, field)[their], atol=1e-12)

    def triangles(model: Any, looked_at: Any) -> int:
        meshes = [model.geom_dataid[i] for i in looked_at if model.geom_type[i] == 7 and model.geom_group[i] == 1]
        return sum(int(model.mesh_facenum[i]) for i in meshes)

    assert triangles(ours, range(ours.ngeom)) < 0.15 * triangles(theirs, geoms)


def test_clustered_vertices_stay_within_a_cell_and_no_triangle_is_degenerate() -> None:
    rng = np.random.default_rng(0)
    # A sphere of 20,000 triangles.
    angles = np.stack(np.meshgrid(np.linspace(0, np.pi, 101), np.linspace(0, 2 * np.pi, 101)), -1)
    theta, phi = angles[..., 0], angles[..., 1]
    points = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1).reshape(-1, 3)
    corner = (np.arange(100)[:, None] * 101 + np.arange(100)).ravel()
    faces = np.concatenate(
        [np.stack([corner, corner + 1, corner + 101], 1), np.stack([corner + 1, corner + 102, corner + 101], 1)]
    )
    vertices, fewer = cluster(points + rng.normal(0, 1e-4, points.shape), faces, 0.2)
    assert 100 < len(fewer) < 2000
    assert np.abs(np.linalg.norm(vertices, axis=1) - 1).max() < 0.05
    assert all(len(set(face)) == 3 for face in fewer.tolist())
    assert len({tuple(sorted(face)) for face in fewer.tolist()}) == len(fewer)
    assert set(fewer.ravel().tolist()) == set(range(len(vertices)))
