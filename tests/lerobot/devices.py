"""LeRobot's own SO-101 driver, as a device of ours, against our twin. In LeRobot's environment: `make test-lerobot`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from robolearn_hardware.devices import Arm, DeviceGoneError, LimitError, Teleoperator
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.servo.calibration import default_calibration
from robolearn_hardware.servo.models import MODELS

RIG = """
arms:
  twin: {kind: so101, port: twin}
teleoperators:
  leader_twin: {kind: so101_leader, port: twin}
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rig.yaml").write_text(RIG)
        calibration = default_calibration(MODELS["so101"])
        for device in ("follower", "leader"):
            text = {
                joint: {
                    "id": motor.id,
                    "drive_mode": 0,
                    "homing_offset": motor.homing_offset,
                    "range_min": max(motor.range_low, 0),
                    "range_max": min(motor.range_high, 4095),
                }
                for joint, motor in calibration.motors.items()
            }
            (folder / f"{device}.json").write_text(json.dumps(text))
        with with_twins(load_rig(folder / "rig.yaml")) as (rig, twins):
            ports = {name: config.port for name, config in rig.devices().items()}
            settings = f"calibration_dir: {folder}"
            (folder / "lerobot.yaml").write_text(
                f"arms:\n  follower: {{kind: lerobot, type: so101_follower, model: so101, "
                f"settings: {{port: {ports['twin']}, id: follower, {settings}}}}}\n"
                f"teleoperators:\n  leader: {{kind: lerobot, type: so101_leader, "
                f"settings: {{port: {ports['leader_twin']}, id: leader, {settings}}}}}\n"
            )
            wrapped = load_rig(folder / "lerobot.yaml")
            joints = list(calibration.motors.values())[:5]
            # LeRobot's zero is the middle of the range, ours where the arm's is.
            middle = np.array([(max(m.range_low, 0) + min(m.range_high, 4095)) / 2 for m in joints])
            offset = (np.array([m.zero for m in joints]) - middle) * 2 * np.pi / 4096
            check_arm(wrapped.arms["follower"].open("follower"), twins["twin"], offset)
            check_leader(wrapped.teleoperators["leader"].open("leader"), twins["leader_twin"], offset)
    print("LeRobot's SO-101 follower and leader work as devices, against our twins")
    return 0


def check_arm(arm: Arm, twin, offset: np.ndarray) -> None:
    for attempt in range(3):  # on a busy machine an answer of the twin may come too late for LeRobot
        try:
            arm.connect()
            break
        except DeviceGoneError:
            if attempt == 2:
                raise
    start = arm.state().positions
    truth = np.array(twin.observe()["positions"])[:5] + offset
    assert np.abs(start - truth).max() < 0.03, (start, truth)
    target = start + 0.2
    for _ in range(60):
        arm.command(target, 0.7)
        time.sleep(0.03)
    state = arm.state()
    assert np.abs(state.positions - target).max() < 0.05, (state.positions, target)
    assert abs(state.gripper - 0.7) < 0.1, state.gripper
    try:
        arm.command(np.full(5, np.nan))
        raise AssertionError("NaN was taken")
    except LimitError:
        pass
    twin.fault(unplugged=True)
    for _ in range(100):
        try:
            arm.state()
        except DeviceGoneError:
            break
    else:
        raise AssertionError("an unplugged arm goes on answering")
    twin.fault()
    arm.close()


def check_leader(leader: Teleoperator, twin, offset: np.ndarray) -> None:
    leader.connect()
    seen = []
    for _ in range(40):
        seen.append(leader.read().positions)
        time.sleep(0.05)
    truth = np.array(twin.observe()["positions"])[:5] + offset
    assert np.ptp(np.array(seen), axis=0).max() > 0.05, "the twin's hand moves it"
    assert np.abs(seen[-1] - truth).max() < 0.1
    leader.close()


if __name__ == "__main__":
    sys.exit(main())
