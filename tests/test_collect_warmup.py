"""The checks before a session find what would spoil it, and say what to do."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import numpy as np
import pytest
from collect_fakes import CountingForceConfig

from robolearn_data.schema import Schema, Stream
from robolearn_deploy import warmup
from robolearn_deploy.servo_process import tick_fields
from robolearn_deploy.takeover import intent_fields
from robolearn_hardware.bounded import ArmBounds
from robolearn_hardware.cameras.health import CameraCondition, CameraHealth
from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import CameraInfo, Condition
from robolearn_hardware.machine import Check
from robolearn_hardware.rig import Placement, Rig
from robolearn_hardware.simulated import SimulatedConfig

INFO = CameraInfo("front", 64, 48, 30.0)
WELL = CameraHealth(CameraCondition.READY, 0.02, 0.0, 100, 0, 0, "")
RNG = np.random.default_rng(0)
SHARP = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)


def record(fields: Any, **values: Any) -> np.void:
    made = np.zeros(1, [(name, dtype, shape) for name, (dtype, shape) in fields.items()])
    for name, value in values.items():
        made[name] = value
    return made[0]


def blurred(picture: np.ndarray, times: int) -> np.ndarray:
    smooth = picture.astype(float)
    for _ in range(times):
        moved = [np.roll(smooth, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        smooth = np.mean(moved, 0)
    return smooth.astype(np.uint8)


def test_sharpness_is_the_variance_of_the_laplacian_of_the_luma() -> None:
    luma = SHARP @ np.array([0.299, 0.587, 0.114])
    values = []
    for y in range(1, 47):
        for x in range(1, 63):
            around = luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1]
            values.append(around - 4 * luma[y, x])
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    assert warmup.sharpness(SHARP) == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize(
    ("health", "rate_hz", "picture", "verdict", "said"),
    [
        (WELL, 30.0, SHARP, "ok", "64x48 at 30 Hz"),
        (WELL, 15.0, SHARP, "warning", "15 Hz, .* instead of 30"),
        (WELL, 30.0, blurred(SHARP, 20), "warning", "hardly an edge"),
        (WELL, 30.0, SHARP // 128, "failure", "the picture is black"),
        (dataclasses.replace(WELL, unchanged_s=2.0), 30.0, SHARP, "warning", "the same picture for 2.0 s"),
        (dataclasses.replace(WELL, condition=CameraCondition.GONE, message="unplugged"), 0, SHARP, "failure", "unplug"),
        (WELL, 0.0, None, "failure", "gives no pictures"),
    ],
    ids=["well", "slow", "blurred", "black", "frozen", "gone", "no picture"],
)
def test_a_camera_is_alive_sharp_bright_moving_and_on_time(
    health: CameraHealth, rate_hz: float, picture: np.ndarray | None, verdict: str, said: str
) -> None:
    check = warmup.check_camera("front", INFO, health, rate_hz, picture)
    assert check.verdict == verdict
    assert re.search(said, check.found)
    assert check.advice or verdict == "ok"


def test_latencies_that_were_not_measured_are_named() -> None:
    arm = SimulatedConfig("so101")
    rig = Rig("rig", {"left": arm, "right": arm}, force_sensors={"tip": CountingForceConfig()})
    placed = dataclasses.replace(rig, placement={name: Placement(latency_ms=12) for name in ("left", "tip")})
    assert warmup.check_latencies(placed).found == "not measured: right"
    assert warmup.check_latencies(rig).verdict == "warning"
    placed = dataclasses.replace(rig, placement={name: Placement(latency_ms=12) for name in ("left", "right", "tip")})
    assert warmup.check_latencies(placed).verdict == "ok"


def test_the_rate_of_a_session_is_that_of_its_pictures_and_of_every_other_stream() -> None:
    from PIL import Image

    schema = Schema(
        10.0,
        {
            "front": Stream((48, 64, 3), "uint8", "image", rate_hz=30.0),
            "state": Stream((6,), rate_hz=100.0),
            "action": Stream((6,), kind="action"),
            "instruction": Stream((256,), "uint8", "text", rate_hz=1.0),
        },
    )
    file = io.BytesIO()
    Image.fromarray(SHARP).save(file, "JPEG", quality=95, subsampling="4:2:0")
    expected = 30 * file.tell() + 100 * (24 + 16) + 10 * (24 + 16)
    assert warmup.bytes_per_s(schema, {"front": SHARP}) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("free", "verdict"), [(1e9, "ok"), (40e6, "warning"), (5e6, "failure")])
def test_the_disk_must_have_room_for_an_episode_and_should_for_all(free: float, verdict: str, tmp_path: Any) -> None:
    check = warmup.check_disk(tmp_path, free, rate=1e6, episodes=5, episode_s=10.0)
    assert check.verdict == verdict
    assert "50 MB at 1.0 MB/s" in check.found


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"positions": 0.1, "enabled": 1}, "ok"),
        ({"positions": 0.1, "enabled": 1, "incomplete": 4}, "warning"),
        ({"positions": 0.1, "enabled": 0}, "failure"),
        ({"positions": np.nan, "enabled": 0}, "ok"),
        ({"positions": np.nan, "enabled": 1}, "warning"),
        ({"positions": 0.1, "enabled": 1, "capture_ns": 1}, "failure"),
    ],
    ids=["leader", "leader on a bad cable", "leader without a motor", "deadman free", "deadman held", "silent"],
)
def test_a_teleoperator_answers_and_nobody_holds_its_deadman(values: dict[str, Any], verdict: str) -> None:
    now = 100 * SECOND_NS
    values = dict(values)
    incomplete = values.pop("incomplete", 0)
    intent = record(intent_fields(5), **{"capture_ns": now, **values})
    broken = record(intent_fields(5), **{"capture_ns": now, **values, "enabled": 0})
    assert warmup.check_teleoperator("hand", [broken] * incomplete + [intent] * 10, now).verdict == verdict
    assert warmup.check_teleoperator("hand", [], now).verdict == "failure"
    assert warmup.check_teleoperator("page", [], now).verdict == "ok"


def test_an_arm_is_ready_and_within_known_limits() -> None:
    info = SimulatedConfig("so101").open("left").info
    tick = record(tick_fields(6), condition=int(Condition.READY))
    rig = Rig("rig", limits={"left": ArmBounds(speed=0.5)})
    assert warmup.check_arm(info, rig, tick).found == "so101 within the rig's limits"
    assert "published limits" in warmup.check_arm(info, Rig("rig"), tick).found
    stopped = record(tick_fields(6), condition=int(Condition.PROTECTIVE_STOP), cause=b"it hit the table")
    assert warmup.check_arm(info, rig, stopped).verdict == "failure"
    unlimited = dataclasses.replace(info, limits=dataclasses.replace(info.limits, velocity=np.full(5, np.inf)))
    assert warmup.check_arm(unlimited, rig, tick).verdict == "warning"


def test_the_clock_is_judged_by_the_ticks_so_far() -> None:
    assert warmup.check_clock([100_000] * 100, 0, 100).verdict == "ok"
    assert warmup.check_clock([100_000] * 90 + [9_000_000] * 10, 0, 100).verdict == "warning"
    assert warmup.check_clock([100_000] * 100, 3, 100).verdict == "warning"
    assert warmup.check_clock([], 0, 100).verdict == "failure"


def test_a_changed_rig_is_a_failure_and_failures_become_one_line() -> None:
    assert warmup.check_fingerprint("a", None).verdict == "ok"
    assert warmup.check_fingerprint("a", "a").verdict == "ok"
    checks = [warmup.check_fingerprint("a", "b"), Check("disk", "ok", "fine"), Check("arm", "failure", "hot", "cool")]
    said = warmup.failures(checks)
    assert said.startswith("rig: fingerprint a; the dataset was begun with b (")
    assert said.endswith("; arm: hot (cool)")
    assert warmup.failures(checks[1:2]) == ""
