"""`robolearn doctor | find | teleop | calibrate`, run as a person runs them, on rigs of twins."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_hardware.cameras.calibration_file import read_calibration
from robolearn_hardware.machine import check_machine, measure_lateness
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.servo.calibration import load_calibration
from robolearn_hardware.servo.models import MODELS

RIGS = Path(__file__).resolve().parent.parent / "hardware" / "rigs"
SO101 = RIGS / "so101_twin.yaml"
COMMAND = (sys.executable, "-m", "robolearn.cli.main")


@pytest.fixture(autouse=True)
def sdk() -> None:
    pytest.importorskip("scservo_sdk", reason="needs robolearn[feetech]")
    pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")


def test_doctor_looks_at_the_machine_and_finds_every_device_of_a_twin_rig(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--rig", str(SO101)]) == 0
    said = capsys.readouterr().out
    for part in ("clock: 500 Hz", "shared memory", "feetech-servo-sdk 1.0.0", "ok   follower: so101", "ok   leader:"):
        assert part in said
    assert "FAIL" not in said


def test_doctor_goes_on_after_a_device_that_is_not_there_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "calibration.yaml").write_text("")
    rig = tmp_path / "rig.yaml"
    rig.write_text(
        "arms:\n  gone: {kind: so101, port: /dev/ttyNONE, calibration: calibration.yaml}\n"
        "  there: {kind: widowx, port: twin}\n"
    )
    pytest.importorskip("dynamixel_sdk", reason="needs robolearn[dynamixel]")
    assert main(["doctor", "--rig", str(rig)]) == 1
    said = capsys.readouterr().out
    assert "FAIL gone: " in said
    assert "ok   there: widowx" in said
    assert main(["doctor", "--rig", str(tmp_path / "none.yaml")]) == 2
    assert "no rig" in capsys.readouterr().err


def test_what_the_machine_lacks_comes_with_advice() -> None:
    for check in check_machine():
        assert check.verdict == "ok" or check.advice
    late = measure_lateness()
    assert (late >= 0).all()


def test_find_says_which_ports_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["find", "ports"])
    said = capsys.readouterr().out
    assert (code, "no serial port" in said) in ((0, False), (1, True))


def test_find_motors_names_those_of_a_bus(capsys: pytest.CaptureFixture[str]) -> None:
    with with_twins(load_rig(SO101)) as (rig, _):
        port = rig.devices()["follower"].port  # type: ignore[attr-defined]
        assert main(["find", "motors", port, "--maker", "feetech"]) == 0
        said = capsys.readouterr().out
        assert said.splitlines() == [f"feetech at 1000000 baud: motor {i}, sts3215" for i in range(1, 7)]
        assert main(["find", "motors", port, "--maker", "feetech", "--baud", "57600"]) == 1
        assert "no motor answers" in capsys.readouterr().out
    assert main(["find", "motors", "/dev/ttyNONE"]) == 2


def test_find_cameras_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["find", "cameras"])
    said = capsys.readouterr().out
    assert (code, "no camera is connected" in said) in ((0, False), (1, True))


@pytest.mark.slow
def test_teleop_moves_the_follower_with_the_leader_and_ends_at_rest_on_ctrl_c() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [*COMMAND, "teleop", str(SO101), "--rate-hz", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("leader moves follower at 50 Hz")
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "ticks in" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pairs", "a:b"], "valid are TELEOPERATOR:ARM of leader and follower"),
        (["--join-speed", "2"], "--join-speed must lie above 0 and up to 1"),
    ],
)
def test_teleop_refuses_what_it_cannot_do(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teleop", str(SO101), *words]) == 2
    assert message in capsys.readouterr().err


def test_teleop_asks_who_moves_whom(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teleop", str(RIGS / "aloha_twin.yaml")]) == 2
    assert "--pairs TELEOPERATOR:ARM" in capsys.readouterr().err


@pytest.mark.slow
def test_calibrate_joints_writes_a_calibration_with_which_the_arm_is_opened_again(tmp_path: Path) -> None:
    out = tmp_path / "leader.yaml"
    out.write_text("old")
    process = subprocess.Popen(
        [*COMMAND, "calibrate", "joints", str(SO101), "leader", "--out", str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout is not None
        said = ""
        while "Now move every joint" not in said and (more := process.stdout.read(1)):
            said += more
        time.sleep(6)  # the twin's hand moves every joint to and fro once in ten seconds
        said += process.communicate("\n", timeout=30)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "shoulder_pan" in said
    assert out.with_name("leader.yaml.old").read_text() == "old"
    calibration = load_calibration(out, MODELS["so101"])
    assert calibration.motors["shoulder_pan"].range_low < calibration.motors["shoulder_pan"].zero
    text = f"teleoperators: {{leader: {{kind: so101_leader, port: twin, calibration: {out}}}}}"
    (tmp_path / "rig.yaml").write_text(text)
    with with_twins(load_rig(tmp_path / "rig.yaml")) as (rig, _):
        leader = rig.teleoperators["leader"].open("leader")
        leader.connect()
        intent = leader.read()
        leader.close()
    assert intent.positions is not None
    assert np.isfinite(intent.positions).all()


def test_calibrate_names_the_devices_that_it_can_calibrate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "joints", str(SO101), "camera"]) == 2
    assert "no servo arm 'camera'; valid: follower, leader" in capsys.readouterr().err


@pytest.mark.slow
def test_calibrate_latency_finds_that_of_a_twin_and_moves_it_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "latency", str(SO101), "follower", "--seconds", "6"]) == 0
    said = capsys.readouterr().out
    found = re.search(r"follower: \{latency_ms: (\d+)\}", said)
    assert found, said
    assert 20 <= int(found[1]) <= 250, "the twin's motors lag by 50 ms; a busy machine adds some"
    assert main(["calibrate", "latency", str(SO101), "camera"]) == 2
    assert "has arms follower and cameras none" in capsys.readouterr().err


@pytest.mark.slow
def test_calibrate_camera_finds_the_lens_that_rendered_a_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cv2", reason="needs robolearn[cameras]")
    from test_hardware_camera_calibration import BOARD, MATRIX, many_views, render

    with av.open(str(tmp_path / "board.mp4"), "w") as file:
        stream: Any = file.add_stream("libx264", rate=4, options={"crf": "10"})
        pictures = [render(view) for view in many_views(30.0)]
        stream.height, stream.width = pictures[0].shape[:2]
        for picture in pictures:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    (tmp_path / "rig.yaml").write_text("cameras: {front: {kind: video, path: board.mp4}}")
    board = ["--board.columns", str(BOARD.columns), "--board.rows", str(BOARD.rows)]
    board += ["--board.square-mm", str(BOARD.square_m * 1000), "--board.marker-mm", str(BOARD.marker_m * 1000)]
    assert main(["calibrate", "camera", str(tmp_path / "rig.yaml"), "front", "--pictures", "14", *board]) == 0
    assert "focal length" in capsys.readouterr().out
    lens = read_calibration(tmp_path / "front.yaml").lens
    assert np.abs(lens.matrix - MATRIX).max() < 10
    assert main(["calibrate", "camera", str(tmp_path / "rig.yaml"), "front", "--seconds", "2"]) == 2
    assert "8 are needed" in capsys.readouterr().err


def test_calibrate_board_says_how_large_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="needs robolearn[cameras]")
    assert (
        main(["calibrate", "board", str(tmp_path / "board.png"), "--board.square-mm", "20", "--board.marker-mm", "15"])
        == 0
    )
    assert "200 x 140 mm" in capsys.readouterr().out
    assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")


def test_a_simulated_camera_without_a_simulated_arm_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("robosuite", reason="needs robolearn[sim]")
    (tmp_path / "rig.yaml").write_text("cameras: {front: {kind: mjpeg, url: twin, pictures: mujoco}}")
    assert main(["doctor", "--rig", str(tmp_path / "rig.yaml")]) == 2
    assert "give an arm of this rig plant: mujoco" in capsys.readouterr().err
