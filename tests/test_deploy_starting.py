"""What takes long to start is waited for, named, and can be stopped."""

from __future__ import annotations

import dataclasses
import time
from multiprocessing import active_children

import pytest

from robolearn_deploy import starting
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.servo import ServoProcess
from robolearn_deploy.starting import Starting
from robolearn_hardware.rig import Rig
from robolearn_hardware.simulated import SimulatedArm, SimulatedConfig

SLOW_S = 2.0


@dataclasses.dataclass(frozen=True)
class SlowConfig(SimulatedConfig):
    def open(self, name: str) -> SimulatedArm:
        time.sleep(SLOW_S)
        return super().open(name)


def test_what_is_waited_for_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    waiting = Starting(say=said.append)
    waiting.begin("camera wrist")
    waiting()
    assert said == [], "nothing takes long yet"
    monkeypatch.setattr(starting, "SAY_S", 0.0)
    waiting()
    assert len(said) == 1
    assert "still starting camera wrist" in said[0]


def test_ctrl_c_is_heard_while_an_arm_is_connected_and_no_process_is_left(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")
    calls = 0

    def stop_asked() -> bool:
        nonlocal calls
        calls += 1
        return calls > 3

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ServoProcess(Rig("slow", arms={"arm": SlowConfig("so101")}), ServoOptions(fifo=False), Starting(stop_asked))
    assert time.monotonic() - began < starting.START_S / 2
    assert not [child for child in active_children() if child.name == "servo"]
    assert "Traceback" not in capfd.readouterr().err
