"""Rig files: what they say is what comes, what they say wrongly is one line that names the place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from robolearn_hardware import registry
from robolearn_hardware.devices import Arm, DeviceError, JointLimits, LimitError
from robolearn_hardware.doctor import check_rig
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.plant import FirstOrderPlant, Motor, PlantSpec, make_plant

RIGS = sorted((Path(__file__).resolve().parent.parent / "hardware" / "rigs").glob("*.yaml"))


class Echo:
    """A twin with no wire: its address is what it was given, and it counts its faults."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._faults = Faults()

    def start(self) -> None:
        if self.address == "broken":
            raise DeviceError("it is broken")

    def fault(self, faults: Faults) -> None:
        faults.check("echo", frozenset({"lose", "unplugged"}))
        self._faults = faults

    def observe(self) -> dict[str, Any]:
        return {"lose": self._faults.lose}

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class EchoArm:
    """A kind of arm for these tests."""

    port: str
    rate_hz: float = 50.0
    calibration: Path | None = None

    def open(self, name: str) -> Arm:
        raise DeviceError(f"{name} at {self.port} is not there")

    def with_twin(self, name: str, twins: Twins) -> Self:
        return self if self.port != "twin" else replace(self, port=twins.start(name, partial(Echo, "here")).address)


@pytest.fixture
def rig_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(registry.ARMS, "echo", EchoArm)
    (tmp_path / "arm.yaml").write_text("a: 1\n")
    return tmp_path / "rig.yaml"


def test_a_rig_file_becomes_typed_devices_and_names_its_files_from_where_it_lies(rig_file: Path) -> None:
    text = """
arms:
  left: {kind: echo, port: /dev/ttyACM0, calibration: arm.yaml}
  right: {kind: echo, port: twin, rate_hz: 30}
placement:
  left: {position: [0, 0.2, 0], latency_ms: 12}
"""
    rig_file.write_text(text)
    rig = load_rig(rig_file)
    assert rig.name == "rig"
    assert rig.arms["left"] == EchoArm("/dev/ttyACM0", 50.0, rig_file.parent / "arm.yaml")
    assert rig.where("left").latency_ms == 12
    assert rig.where("right").parent == "world"
    (rig_file.parent / "arm.yaml").write_text("a: 2\n")
    changed = load_rig(rig_file)
    assert changed.fingerprint != rig.fingerprint, "a calibration that changed is another rig"
    with with_twins(rig) as (reachable, twins):
        assert reachable.arms["left"] is rig.arms["left"]
        assert reachable.arms["right"] == EchoArm("here", 30.0)
        twins["right"].fault(lose=0.5)
        assert twins["right"].observe() == {"lose": 0.5}
        with pytest.raises(DeviceError, match=r"no fault 'hot'; valid: lose, unplugged"):
            twins["right"].fault(hot=(1,))
        with pytest.raises(DeviceError, match="'left' has no twin; twins: right"):
            twins["left"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must be a mapping with arms, cameras"),
        ("arms: [", "is not YAML"),
        ("robots: {}", r"unknown keys \['robots'\]; valid: arms"),
        ("arms: [1]", "arms must map a name to its settings"),
        ("arms: {a: {port: x}}", "arms, a: needs a kind; valid: .*echo"),
        ("arms: {a: {kind: ur99}}", "arms, a: no kind 'ur99' of arms; valid: .*echo"),
        ("arms: {a: {kind: echo, prot: x}}", "arms, a: unknown 'prot'; valid: port, rate_hz"),
        ("arms: {a: {kind: echo}}", "arms, a: port: Field required"),
        ("arms: {a: {kind: echo, port: x, rate_hz: fast}}", "arms, a: rate_hz: Input should be a valid number"),
        ("arms: {a: {kind: echo, port: x}}\nplacement: {b: {}}", "placement of 'b' names no device"),
        ("arms: {a: {kind: echo, port: x}}\nplacement: {a: {parent: z}}", "a parent that is no arm"),
    ],
)
def test_what_is_wrong_in_a_rig_file_is_named_with_its_place(rig_file: Path, text: str, message: str) -> None:
    rig_file.write_text(text)
    with pytest.raises(DeviceError, match=message) as raised:
        load_rig(rig_file)
    assert "\n" not in str(raised.value)
    assert str(rig_file) in str(raised.value)


def test_two_devices_of_one_name_and_a_missing_file_are_refused(
    rig_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.TELEOPERATORS, "echo", EchoArm)
    rig_file.write_text("arms: {a: {kind: echo, port: x}}\nteleoperators: {a: {kind: echo, port: y}}")
    with pytest.raises(DeviceError, match="two devices named 'a'"):
        load_rig(rig_file)
    with pytest.raises(DeviceError, match=r"no rig .*none\.yaml"):
        load_rig(rig_file.with_name("none.yaml"))


def test_a_twin_that_cannot_start_says_why() -> None:
    with Twins() as twins, pytest.raises(DeviceError, match="the twin cannot start: it is broken"):
        twins.start("a", partial(Echo, "broken"))


@pytest.mark.parametrize("path", RIGS, ids=lambda path: path.stem)
def test_every_rig_that_we_ship_can_be_read(path: Path) -> None:
    rig = load_rig(path)
    assert rig.devices()
    assert path.stem.endswith("_twin") or (path.with_name(f"{path.stem}_twin.yaml")).exists(), (
        "it has no twin beside it"
    )


def test_joint_limits_refuse_what_is_no_position() -> None:
    one = np.ones(2)
    limits = JointLimits(-one, one, one, one, one)
    assert limits.check("arm", np.array([1.0, -1.0])).tolist() == [1.0, -1.0]
    for bad, message in (
        ([0.0, np.nan], "NaN"),
        ([0.0], r"shape \(1,\), the arm \(2,\)"),
        ([0.0, 1.1], r"joint 1 is told to go to 1.100 rad, its limits are -1.000 to 1.000"),
    ):
        with pytest.raises(LimitError, match=message):
            limits.check("arm", np.array(bad))


def test_a_first_order_plant_keeps_its_motors_limits_its_stops_and_its_backlash() -> None:
    motor = Motor(time_constant_s=0.05, speed=2.0, acceleration=40.0, backlash=0.02)
    spec = PlantSpec("so101", np.zeros(2), np.full(2, -1.0), np.full(2, 1.0), has_gripper=True, motor=motor)
    plant = make_plant("first_order", spec)
    assert isinstance(plant, FirstOrderPlant)
    assert (plant.joints, plant.has_gripper) == (1, True)
    plant.advance(10**9)
    plant.target(np.array([5.0, np.nan]))
    places, speeds = [], []
    for tick in range(1, 2001):
        plant.advance(10**9 + tick * 1_000_000)
        places.append(plant.positions[0])
        speeds.append(plant.velocities[0])
    assert np.all(np.diff(places) >= 0)
    assert places[-1] == pytest.approx(1.0 - 0.01, abs=1e-3), "it ends at the stop, less half of the play"
    assert max(speeds) == pytest.approx(2.0)
    assert np.abs(np.diff(speeds)).max() <= 40.0 * 0.001 + 1e-12
    assert plant.positions[1] == 0.0, "NaN leaves a target alone"
    plant.limp(np.array([True, False]))
    plant.target(np.array([-1.0, 0.5]))
    for tick in range(2001, 4001):
        plant.advance(10**9 + tick * 1_000_000)
    assert plant.positions[0] == pytest.approx(0.99, abs=2e-3), "a motor that is off does not follow"
    assert plant.positions[1] == pytest.approx(0.49, abs=1e-3)
    with pytest.raises(DeviceError, match="no plant 'water'; valid: first_order"):
        make_plant("water", spec)


def test_a_force_sensor_of_another_package_comes_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scales.py").write_text(
        """
from dataclasses import dataclass
import numpy as np
from robolearn_hardware.devices import Forces

@dataclass(frozen=True)
class Scale:
    port: str
    rate_hz: float = 1000.0
    def open(self, name): return self
    def with_twin(self, name, twins): return self
    def connect(self): pass
    def read(self):
        times = np.arange(5)
        return Forces(times, times, np.tile([0, 0, 9.81, 0, 0, 0], (5, 1)))
    def tare(self): pass
    def close(self): pass
"""
    )
    package = tmp_path / "scales-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: scales\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[robolearn.force_sensors]\nscale = scales:Scale\nlost = scales:Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "rig.yaml"
    path.write_text("force_sensors: {wrist: {kind: scale, port: /dev/x}}\n")
    rig = load_rig(path)
    assert rig.force_sensors["wrist"].open("wrist").read().wrench.shape == (5, 6)
    (check,) = check_rig(rig)
    assert (check.verdict, check.found) == ("ok", "5 samples in 0.2 s, force [0.  0.  9.8] N")
    path.write_text("force_sensors: {wrist: {kind: ruler}}\n")
    with pytest.raises(DeviceError, match="no kind 'ruler' of force_sensors; valid: lost, scale"):
        load_rig(path)
    path.write_text("force_sensors: {wrist: {kind: lost}}\n")
    with pytest.raises(DeviceError, match="the kind 'lost' of the package 'scales:Nothing' cannot be loaded"):
        load_rig(path)
