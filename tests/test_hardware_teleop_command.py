"""An arm is moved by hand, relative to where it is: through its twin's servo bus, within its limits, or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from servo_twins import Bench, bench, connected

from robolearn.cli.main import main
from robolearn_deploy.guided import Guided, GuidedTick
from robolearn_hardware.clock import now_ns, period_ns, wait_until_ns
from robolearn_hardware.devices import DeviceError
from robolearn_hardware.kinematics import Kinematics, Workspace
from robolearn_hardware.teleop.spacemouse import SpaceMouseConfig
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.spacemouse import SpaceMouseTwin

RIGS = Path(__file__).parents[1] / "hardware" / "rigs"
RATE_HZ = 100.0
FORWARD, REST = (0, -1, 0, 0, 0, 0), (0,) * 6
BENT = (0.0, -1.0, 0.8, 0.6, 0.0, 0.5)


class Table:
    """An SO-101, a SpaceMouse, and who reads both."""

    def __init__(self, arm: Bench, mouse: SpaceMouseTwin, workspace: Workspace | None = None) -> None:
        self.arm_twin, self.mouse_twin = arm.twin, mouse
        self.arm = arm.arm()
        self.mouse = SpaceMouseConfig(device=mouse.address).open("mouse")
        self.kinematics = Kinematics("so101")
        self.arm.connect()
        self.mouse.connect()
        self.guided = Guided(self.mouse, self.arm, RATE_HZ, workspace)
        self.ticks: list[GuidedTick] = []

    def until(self, holds: Callable[[GuidedTick], bool], seconds: float = 20.0) -> GuidedTick:
        """Tick until that, or for so long; the last tick."""
        begun, due = time.monotonic(), now_ns()
        while True:
            due = max(due + period_ns(RATE_HZ), now_ns())
            wait_until_ns(due)
            tick = self.guided.tick()
            self.ticks.append(tick)
            if holds(tick) or time.monotonic() - begun > seconds:
                return tick

    def tool(self) -> np.ndarray:
        """(3,) m, where the twin's is."""
        return self.kinematics.forward(self.arm_twin.observe()["positions"][:5]).position

    def close(self) -> None:
        self.arm.close()
        self.mouse.close()


@pytest.fixture
def table() -> Iterator[Table]:
    mouse = SpaceMouseTwin(hand_hz=0.0)
    mouse.start()
    with bench("so101", start=BENT) as arm:
        found = Table(arm, mouse)
        yield found
        found.close()
    mouse.close()


def still(table: Table) -> Callable[[GuidedTick], bool]:
    """The arm has not moved for a fifth of a second."""

    def holds(tick: GuidedTick) -> bool:
        last = np.array([tick.measured.positions for tick in table.ticks[-20:]])
        return len(last) == 20 and bool(np.ptp(last, axis=0).max() < 2e-3)

    return holds


def test_it_goes_where_the_hand_pushes_and_rests_when_that_lets_go(table: Table) -> None:
    before = table.tool()
    assert "deadman is not held" in table.until(lambda tick: False, 0.3).said
    np.testing.assert_allclose(table.tool(), before, atol=1e-3)
    table.mouse_twin.push(FORWARD)
    table.until(lambda tick: table.tool()[0] > before[0] + 0.03)
    assert table.ticks[-1].said == "following"
    table.mouse_twin.push(REST)
    assert "not held" in table.until(still(table)).said
    moved = table.tool() - before
    assert moved[0] > 0.03
    assert np.abs(moved[1:]).max() < moved[0] / 3, "at rest: on its way one motor may be ahead of another"
    requested = np.array([tick.requested for tick in table.ticks])
    limits = table.arm.info.limits
    assert np.abs(np.diff(requested, axis=0)).max() < limits.velocity.max() * 0.3, "no target jumps"


def test_an_unplugged_device_holds_the_arm_until_it_is_back(table: Table) -> None:
    table.mouse_twin.push(FORWARD)
    table.until(lambda tick: tick.said == "following")
    table.mouse_twin.fault(Faults(unplugged=True))
    table.until(lambda tick: "unplugged" in tick.said)
    assert "unplugged" in table.until(still(table)).said
    table.mouse_twin.fault(Faults())
    here = table.tool()
    table.mouse_twin.push(FORWARD)
    table.until(lambda tick: table.tool()[0] > here[0] + 0.01)
    assert table.ticks[-1].said == "following"
    while not table.guided.stop():
        pass


def test_it_stops_where_the_workspace_ends() -> None:
    mouse = SpaceMouseTwin(hand_hz=0.0)
    mouse.start()
    here = Kinematics("so101").forward(np.array(BENT[:5])).position
    fence = Workspace(low=here - 0.5, high=here + np.array([0.04, 0.5, 0.5]))
    with bench("so101", start=BENT) as arm:
        table = Table(arm, mouse, fence)
        mouse.push(FORWARD)
        said = table.until(lambda tick: "workspace" in tick.said).said
        table.until(still(table))
        assert "workspace" in said
        assert here[0] + 0.02 < table.tool()[0] < here[0] + 0.045
        table.close()
    mouse.close()


def test_an_arm_without_a_kinematic_model_is_refused() -> None:
    mouse = SpaceMouseTwin(hand_hz=0.0)
    hand = SpaceMouseConfig(device=mouse.address).open("mouse")
    with bench("koch") as arm, connected(arm.arm()) as koch, pytest.raises(DeviceError, match="koch"):
        Guided(hand, koch, RATE_HZ, None)
    mouse.close()


@pytest.mark.parametrize("rig", ["so101_gamepad_twin", "so101_keyboard_twin", "so101_spacemouse_twin"])
def test_the_command_moves_an_arm_by_every_device(rig: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teleop", str(RIGS / f"{rig}.yaml"), "--seconds", "1"]) == 0
    said = capsys.readouterr().out
    assert "hand moves follower at 100 Hz" in said
    assert "ticks in 1." in said
