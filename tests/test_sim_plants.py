"""MuJoCo behind twins: arms follow, sag, fall, push and grasp as arms do, and cameras in other processes see it."""

from __future__ import annotations

import importlib
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from robolearn_hardware.devices import Condition, DeviceError, DeviceGoneError, LimitError, NotReadyError
from robolearn_hardware.kinematics import DifferentialIK, Kinematics, Pose
from robolearn_hardware.limits import limits_of
from robolearn_hardware.models import ROBOSUITE
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.simulated import READY, SimulatedConfig
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.pictures import PictureSpec
from robolearn_hardware.twins.plant import Motor, PlantSpec
from robolearn_hardware.twins.process import Twin

mujoco: Any = pytest.importorskip("mujoco")
pytest.importorskip("robosuite")

from robolearn_sim.plants import MujocoPlant, mujoco_plant  # noqa: E402
from robolearn_sim.scene import ARMS, build_scene  # noqa: E402
from robolearn_sim.scene_renderer import SceneRenderer, mujoco_pictures  # noqa: E402

arms = pytest.mark.parametrize("model", list(ARMS))
MILLISECOND = 1_000_000


def spec_of(model: str, *, has_gripper: bool = True, start: tuple[float, ...] = ()) -> PlantSpec:
    limits = limits_of(model)
    return PlantSpec(
        model,
        np.array([*(start or READY[model]), *([1.0] if has_gripper else [])]),
        np.append(limits.low, [0.0] if has_gripper else []),
        np.append(limits.high, [1.0] if has_gripper else []),
        has_gripper,
        Motor(time_constant_s=0.04, speed=3.0, acceleration=40.0),
    )


@pytest.fixture
def make() -> Iterator[Callable[..., MujocoPlant]]:
    plants = []

    def start(model: str, **settings: Any) -> MujocoPlant:
        plants.append(mujoco_plant(spec_of(model, **settings)))
        plants[-1].advance(0)
        return plants[-1]

    yield start
    for plant in plants:
        plant.close()


class Run:
    """Time for a plant."""

    def __init__(self, plant: MujocoPlant) -> None:
        self.plant, self.now_ns = plant, 0

    def until(self, seconds: float, target: np.ndarray | None = None) -> MujocoPlant:
        if target is not None:
            self.plant.target(np.append(target, [np.nan] * (len(self.plant.positions) - len(target))))
        end_ns = self.now_ns + round(seconds * 1e9)
        while self.now_ns < end_ns:
            self.now_ns += 4 * MILLISECOND
            self.plant.advance(self.now_ns)
        return self.plant


@arms
def test_follows_a_sine_late_by_the_time_constant_of_its_servos(model: str, make: Callable[..., MujocoPlant]) -> None:
    plant, start, errors = make(model), np.array(READY[model]), []
    run, amplitude, rate = Run(plant), 0.2, np.pi
    for i in range(750):
        t = i * 0.004
        run.until(0.004, start + amplitude * np.sin(rate * t))
        late = start + amplitude * np.sin(rate * (t + 0.004 - 0.04))
        errors.append(np.abs(plant.positions[: plant.joints] - late).max())
    assert max(errors[100:]) < (0.01 if ARMS[model].compensated else 0.03)
    assert (np.abs(plant.efforts) <= 1).all()


@arms
def test_an_arm_with_compensation_stands_still_and_one_without_sags(
    model: str, make: Callable[..., MujocoPlant]
) -> None:
    plant = Run(make(model)).until(1.0)
    sag = np.abs(plant.positions[: plant.joints] - READY[model]).max()
    assert sag < 1e-3 if ARMS[model].compensated else 0.002 < sag < 0.03
    assert np.abs(plant.velocities).max() < 1e-2
    assert np.abs(plant.efforts).max() > 0.05  # it carries its own weight
    np.testing.assert_array_equal(plant.wrench, 0)  # and touches nothing


@arms
def test_the_flange_is_where_the_published_kinematics_have_it(model: str) -> None:
    kinematics, random = Kinematics(model), np.random.default_rng(0)
    scene = build_scene(model, has_gripper=False, pictures=False)
    data, limits = mujoco.MjData(scene), limits_of(model)
    for _ in range(10):
        q = random.uniform(limits.low, limits.high)
        data.qpos[: kinematics.joints] = q
        mujoco.mj_kinematics(scene, data)
        tolerance = 0.003 if ROBOSUITE.get(model) in ("panda", "ur5e") else 1e-6  # robosuite rounds lengths
        np.testing.assert_allclose(data.site("flange").xpos, kinematics.forward(q).position, atol=tolerance)


@arms
def test_mechanical_stops_hold_and_a_target_beyond_them_is_one_at_them(
    model: str, make: Callable[..., MujocoPlant]
) -> None:
    target = np.array(READY[model])
    target[0] = 99.0
    plant = Run(make(model)).until(4.0, target)
    assert plant.positions[0] == pytest.approx(limits_of(model).high[0], abs=0.01)


def test_a_target_of_nan_leaves_a_joint_where_it_was_told_to_be(make: Callable[..., MujocoPlant]) -> None:
    run = Run(make("ur5e"))
    start = np.array(READY["ur5e"])
    run.until(1.0, np.array([np.nan, np.nan, np.nan, np.nan, np.nan, 0.5]))
    np.testing.assert_allclose(run.plant.positions[:6], [*start[:5], 0.5], atol=0.002)


def test_no_more_than_a_tenth_of_a_second_is_made_up_for(make: Callable[..., MujocoPlant]) -> None:
    late, steady = make("ur5e"), make("ur5e")
    for plant in (late, steady):
        plant.target(np.append(np.array(READY["ur5e"]) + 0.5, 1.0))
    late.advance(3600 * 1000 * MILLISECOND)
    Run(steady).until(0.1)
    np.testing.assert_allclose(late.positions, steady.positions, atol=1e-9)
    assert 0.02 < late.positions[0] < 0.3


def test_without_torque_an_so101_falls_and_holds_again_where_it_is_when_switched_on(
    make: Callable[..., MujocoPlant],
) -> None:
    run = Run(make("so101"))
    plant = run.until(0.5)
    height = plant.positions.copy()
    plant.limp(np.ones(6, bool))
    run.until(1.0)
    assert np.abs(plant.positions - height)[:5].max() > 0.3
    np.testing.assert_array_equal(plant.efforts, 0)
    fallen = plant.positions.copy()
    plant.limp(np.zeros(6, bool))
    run.until(0.5)
    np.testing.assert_allclose(plant.positions[:5], fallen[:5], atol=0.05)


@pytest.mark.parametrize("model", ["fer", "ur5e", "xarm7"])
def test_brakes_hold_an_arm_whose_motors_are_off_whatever_it_is_told(
    model: str, make: Callable[..., MujocoPlant]
) -> None:
    plant = make(model, has_gripper=False)
    plant.limp(np.ones(plant.joints, bool))
    Run(plant).until(1.0, np.array(READY[model]) + 0.2)
    np.testing.assert_allclose(plant.positions, READY[model], atol=0.002)


def pose_above(kinematics: Kinematics, cube: tuple[float, float], height: float) -> Pose:
    """Looks down at a cube, with the fingers left and right of it."""
    return Pose(np.array([*cube, height]), np.array([0.0, 1.0, 0.0, 0.0]))


def test_what_the_table_does_to_the_hand_is_the_wrench(make: Callable[..., MujocoPlant]) -> None:
    kinematics = Kinematics("fer", tool=Pose(np.array([0, 0, 0.135]), np.array([1.0, 0, 0, 0])))  # fingertips
    ik, q = DifferentialIK(kinematics), np.array(READY["fer"])
    above = ik.reach(q, pose_above(kinematics, (0.4, 0.0), 0.05))
    pressed = ik.reach(above, pose_above(kinematics, (0.4, 0.0), -0.003))
    run = Run(make("fer", start=tuple(above)))
    np.testing.assert_array_equal(run.until(0.3, above).wrench, 0)
    run.until(1.0, pressed)
    force, torque = run.plant.wrench[:3], run.plant.wrench[3:]
    assert 5 < force[2] < 500  # the table pushes up
    assert np.abs(force[:2]).max() < 0.5 * force[2]
    assert np.abs(torque).max() < 0.1 * force[2]  # about the flange, which is right above
    np.testing.assert_array_equal(run.until(1.0, above).wrench, 0)


@pytest.mark.parametrize("model", ["fer", "xarm7"])
def test_a_cube_between_the_fingers_is_lifted_and_falls_when_let_go(
    model: str, make: Callable[..., MujocoPlant]
) -> None:
    size = ARMS[model].size
    kinematics = Kinematics(model, tool=Pose(np.array([0, 0, 0.12]), np.array([1.0, 0, 0, 0])))
    ik, where = DifferentialIK(kinematics), (0.62 * size, 0.0)
    above = ik.reach(np.array(READY[model]), pose_above(kinematics, where, 0.15))
    down = ik.reach(above, pose_above(kinematics, where, 0.035))
    run = Run(make(model, start=tuple(above)))
    plant = run.plant
    run.until(1.0, down)
    plant.target(np.append(np.full(7, np.nan), 0.0))
    run.until(1.0)
    half = 0.035 * size
    assert plant.positions[-1] == pytest.approx(half / 0.04, abs=0.1)  # the cube stops them
    assert abs(plant.efforts[-1]) > 0.3
    run.until(1.5, above)
    assert height(plant) > 0.1
    plant.target(np.append(np.full(7, np.nan), 1.0))
    run.until(1.0)
    assert height(plant) == pytest.approx(half, abs=0.005)
    assert plant.positions[-1] == pytest.approx(1.0, abs=0.02)


def test_an_so101_grasps_a_cube_and_lifts_it(make: Callable[..., MujocoPlant]) -> None:
    ik, cube = DifferentialIK(Kinematics("so101"), orientation_weight=0.1), 0.62 * ARMS["so101"].size
    down = np.array([0.0, 0.7071068, 0.7071068, 0.0])  # fingers down, the jaw opens forward
    # The point between the fingertips is at the fixed finger; the cube is 25 mm wide.
    above = ik.reach(np.array(READY["so101"]), Pose(np.array([cube - 0.016, 0, 0.07]), down))
    at = ik.reach(above, Pose(np.array([cube - 0.016, 0, 0.012]), down))
    run = Run(make("so101", start=tuple(above)))
    run.plant.target(np.append(np.full(5, np.nan), 0.5))
    run.until(0.5)
    run.until(1.0, at)
    run.plant.target(np.append(np.full(5, np.nan), 0.0))
    run.until(1.0)
    run.until(1.5, above)
    assert height(run.plant) > 0.04
    assert run.plant.positions[-1] > 0.1  # the cube is in between
    assert run.plant.efforts[-1] < -0.3


@arms
def test_a_gripper_closes_and_opens_all_the_way_and_rests_there(model: str, make: Callable[..., MujocoPlant]) -> None:
    run = Run(make(model))
    for share in (0.0, 1.0, 0.3):
        run.plant.target(np.append(np.full(run.plant.joints, np.nan), share))
        run.until(1.5)
        assert run.plant.positions[-1] == pytest.approx(share, abs=0.03)
        assert abs(run.plant.velocities[-1]) < 0.01


def height(plant: MujocoPlant) -> float:
    """Of the green cube, as published."""
    scene = build_scene(plant.scene.model, has_gripper=plant.has_gripper, pictures=False)
    data = mujoco.MjData(scene)
    newest = plant.ring.newest()
    assert newest is not None
    data.qpos[:] = newest[1]["qpos"]
    mujoco.mj_kinematics(scene, data)
    return float(data.body("green").xpos[2])


def test_a_drawn_picture_shows_what_moved(make: Callable[..., MujocoPlant]) -> None:
    run = Run(make("so101"))
    run.until(0.2)
    renderer = SceneRenderer(run.plant.scene, "front", 160, 120)
    before, depth = renderer.draw(depth=True)
    assert renderer.time_ns == run.now_ns
    assert depth is not None
    assert before.shape == (120, 160, 3)
    assert 0.3 < depth.min() < 0.7  # the front camera is 0.6 m from the middle of the scene
    again, _ = renderer.draw()
    np.testing.assert_array_equal(again, before)
    run.until(1.0, np.array([1.0, -1.0, 0.8, 0.6, 0.0]))
    after, _ = renderer.draw()
    renderer.close()
    changed = (np.abs(after.astype(int) - before).max(-1) > 30).mean()
    assert 0.005 < changed < 0.5


class ArmServer:
    """A twin that is nothing but a plant."""

    address = "none"

    def start(self) -> None:
        self._plant = mujoco_plant(spec_of("so101"))
        self._run = Run(self._plant)

    def fault(self, faults: Faults) -> None:
        self._run.until(1.0, np.array([faults.latency_s, -1.0, 0.8, 0.6, 0.0]))

    def observe(self) -> dict[str, Any]:
        return {"positions": self._plant.positions}

    def close(self) -> None:
        self._plant.close()


class CameraServer:
    """A twin that is nothing but a picture."""

    address = "none"

    def __init__(self, name: str) -> None:
        self._pictures = mujoco_pictures(PictureSpec(name, 160, 120, 140.0, 0.015))

    def start(self) -> None:
        pass

    def fault(self, faults: Faults) -> None:
        pass

    def observe(self) -> dict[str, Any]:
        colour, depth = self._pictures.at(0)
        return {"colour": colour, "depth": depth}

    def close(self) -> None:
        self._pictures.close()


def test_the_twin_of_a_camera_sees_the_arm_that_another_process_simulates() -> None:
    with pytest.raises(DeviceError, match="finds no simulated arm"):
        Twin(partial(CameraServer, "front"))
    with Twin(ArmServer) as arm, Twin(partial(CameraServer, "front")) as camera:
        before = camera.observe()
        arm.fault(latency_s=1.0)  # turns it to 1 rad
        assert arm.observe()["positions"][0] == pytest.approx(1.0, abs=0.02)
        after = camera.observe()
        assert (np.abs(after["colour"].astype(int) - before["colour"]).max(-1) > 30).mean() > 0.005
        assert after["depth"].dtype == np.uint16
        assert 300 < after["depth"][after["depth"] > 0].min() < 900
        with pytest.raises(DeviceError, match="no camera 'left'; valid: front, top, wrist"):
            Twin(partial(CameraServer, "left"))


@pytest.fixture
def entry_points(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pyproject offers to other packages, also where it was installed before those lines were written."""
    groups = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    folder = tmp_path / "plants_of_this_checkout-0.dist-info"
    folder.mkdir()
    lines = [f"[{name}]\nmujoco = {groups[name]['mujoco']}" for name in ("robolearn.plants", "robolearn.pictures")]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: plants-of-this-checkout\nVersion: 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("entry_points")
def test_the_production_drivers_move_and_see_the_simulated_so101(root: Path) -> None:
    pytest.importorskip("scservo_sdk")
    rig = load_rig(root / "hardware" / "rigs" / "so101_scene_twin.yaml")
    slow: Any = {name: replace(cast(Any, camera), rate_hz=5.0) for name, camera in rig.cameras.items()}
    with with_twins(replace(rig, cameras=slow)) as (rig, twins):  # drawing leaves the others some of the processor
        arm, front, wrist = rig.arms["follower"].open("follower"), *(rig.cameras[n].open(n) for n in ("front", "wrist"))
        try:
            for device in (arm, front, wrist):
                device.connect()
            before = {camera: camera.read().colour for camera in (front, wrist)}
            state, turned = arm.state(), np.array([0.8, -0.8, 0.8, 0.6, 0.0])
            for share in np.linspace(0, 1, 60):
                arm.command(state.positions + share * (turned - state.positions), gripper=float(share))
                arm.state()
                time.sleep(0.02)
            for _ in range(30):
                state = arm.state()
                time.sleep(0.02)
            np.testing.assert_allclose(state.positions, turned, atol=0.05)  # it sags
            truth = twins["follower"].observe()["positions"]
            np.testing.assert_allclose(state.positions, truth[:5], atol=0.01)
            assert state.gripper == pytest.approx(1.0, abs=0.1)
            for camera, picture in before.items():
                assert (np.abs(camera.read().colour.astype(int) - picture).max(-1) > 40).mean() > 0.01
        finally:
            for device in (arm, front, wrist):
                device.close()


@pytest.mark.usefixtures("entry_points")
def test_a_simulated_arm_is_an_arm_without_a_wire(tmp_path: Path) -> None:
    path = tmp_path / "fr3.yaml"
    path.write_text("arms: {arm: {kind: simulated, model: fr3}}")
    arm = load_rig(path).arms["arm"].open("arm")
    with pytest.raises(DeviceGoneError, match="connect it"):
        arm.state()
    with closing(arm):
        arm.connect()
        state = arm.state()
        assert (arm.info.joints, state.condition) == (7, Condition.READY)
        for bad in (np.full(7, np.nan), np.full(7, 9.0), np.zeros(6)):
            with pytest.raises(LimitError):
                arm.command(bad)
        until(lambda: arm.command(state.positions + 0.1, 0.0), lambda: arm.state().gripper < 0.05)
        until(lambda: None, lambda: np.abs(arm.state().positions - state.positions - 0.1).max() < 0.01)
        arm.release()
        assert arm.state().condition is Condition.RELEASED
        with pytest.raises(NotReadyError, match="hold it first"):
            arm.command(state.positions)
        arm.hold()
        arm.command(state.positions)
    with pytest.raises(DeviceError, match="no plant 'magic'; valid: first_order"):
        SimulatedConfig("ur3e", plant="magic").open("arm").connect()
    with SimulatedConfig("ur3e", plant="first_order", gripper=False).open("arm") as arm:
        assert np.isnan(arm.state().gripper)


def until(act: Callable[[], None], done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end
        act()
        time.sleep(0.01)


def test_equal_arguments_and_targets_give_equal_motion(make: Callable[..., MujocoPlant]) -> None:
    one, other = (Run(make("xarm7")).until(0.5, np.array(READY["xarm7"]) + 0.3) for _ in range(2))
    np.testing.assert_array_equal(one.positions, other.positions)


def test_mistakes_are_errors_that_say_what_is_valid() -> None:
    with pytest.raises(DeviceError, match="no scene with an arm 'koch'; valid: so101, widowx, viperx, ur3e"):
        build_scene("koch", has_gripper=False)
    spec = spec_of("ur5e", has_gripper=False)
    with pytest.raises(DeviceError, match="needs 7 finite starts"):
        mujoco_plant(PlantSpec("ur5e", spec.start, spec.low, spec.high, has_gripper=True))


def test_the_entry_points_in_pyproject_name_what_is_there(root: Path) -> None:
    groups = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    for group in ("robolearn.plants", "robolearn.pictures"):
        module, _, name = groups[group]["mujoco"].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
