"""A whole session is held with a gamepad: it starts, moves the arm, and says that the episode has succeeded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from collect_fakes import Demonstrator
from servo_bench import simulated_rig

from robolearn_data.dataset import Dataset
from robolearn_deploy.collect_session import CollectSession, SessionOptions, Stage
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.operator import Command
from robolearn_deploy.rig_collect import collect_on_rig
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.stall import State
from robolearn_hardware.kinematics import Kinematics
from robolearn_hardware.teleop.gamepad import BUTTONS, GamepadConfig
from robolearn_hardware.twins.gamepad import GamepadTwin

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")


class Player(Demonstrator):
    """Says everything with the pad."""

    def __init__(self, pad: GamepadTwin) -> None:
        super().__init__(ticks=60)
        self._pad = pad
        self._pressed = False

    def _hold(self, *buttons: str, forward: float = 0.0) -> None:
        self._pad.push((0, -forward), [BUTTONS.index(button) for button in buttons])

    def decide(self, session: CollectSession) -> None:
        self._pressed = not self._pressed  # a button is let go before it is pressed again
        match session.stage:
            case Stage.READY if self._pressed:
                self._hold("start")
            case Stage.EPISODE if self._drove - self._moved >= 60 and self._pressed:
                self._hold("x")
            case Stage.EPISODE:
                self._hold("left_shoulder", forward=0.8)
            case _:
                self._hold()


@pytest.mark.slow
def test_a_session_is_held_with_nothing_but_a_gamepad(tmp_path: Path) -> None:
    pad, out = GamepadTwin(hand_hz=0.0), tmp_path / "out.zarr"
    pad.start()
    try:
        rig = simulated_rig(tmp_path)
        rig = dataclasses.replace(rig, teleoperators={"hand": GamepadConfig(device=pad.address)})
        options = RigOptions(
            float("inf"),
            out=out,
            servo=ServoOptions(fifo=False, rate_hz=50),
            teleoperators={"hand": "left"},
            buttons={"x": (Command.SUCCESS,)},
            operator="me",
        )
        session = SessionOptions(("push",), episodes=2, countdown_s=0.0, reset_s=0.0)
        report = collect_on_rig(rig, options, session, Player(pad))
    finally:
        pad.close()
    assert report.rig.failure == ""
    dataset = Dataset.open(out)
    assert [dataset.episode_info(i)["success"] for i in range(dataset.episodes)] == [True, True]
    kinematics = Kinematics("so101")
    for i in range(2):
        episode = dataset.episode(i)
        drove = episode["control_state"] == State.TELEOP
        assert drove.any()
        sent = np.asarray(episode["action_sent"], np.float64)[:, :5]
        moved = kinematics.forward(sent[-1]).position - kinematics.forward(sent[0]).position
        assert moved[0] > 0.01, "the stick was pushed forward"
        assert np.abs(moved[1:]).max() < 0.02
