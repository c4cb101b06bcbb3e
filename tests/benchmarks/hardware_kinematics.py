"""What kinematics, joint motion and simulated arms cost, and how exactly they follow.

    python tests/benchmarks/hardware.py --only kinematics

Inverse kinematics: steps of 10 ms, the tool on a sine of 0.5 Hz and 5 cm across, within joint limits, a box and a floor
that it does not touch. Its error is that of the step's result, by forward kinematics; an arm of five joints cannot keep
the orientation as well. Joint motion: a new target every 50th tick. Plants: advanced at 500 Hz in time that is made up,
which no busy machine disturbs, each joint on a sine of 0.5 Hz and 0.2 rad. Pictures: 640x480, drawn as fast as they go.

p50 and p99 are of one call. cpu is in cores: of inverse kinematics and motion at 100 Hz, of a plant per simulated
second, of pictures at 30 Hz.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.kinematics import DifferentialIK, Kinematics, Pose, Workspace, pose_error
from robolearn_hardware.limits import limits_of
from robolearn_hardware.motion import JointMotion
from robolearn_hardware.simulated import READY
from robolearn_hardware.twins.plant import Motor, PlantSpec
from robolearn_sim.plants import MujocoPlant, mujoco_plant
from robolearn_sim.scene_renderer import SceneRenderer

ARMS = ("so101", "ur5e", "fer", "xarm7")
CONTROL_HZ, SINE_HZ, PLANT_HZ = 100, 0.5, 500


def rows(seconds: float = 5.0) -> list[dict[str, Any]]:
    """Of ``hardware_loops.json``."""
    return [
        *(inverse_kinematics(model, seconds)[0] for model in ARMS),
        *(joint_motion(model, seconds) for model in ("so101", "fer")),
        *(plant(model, seconds)[0] for model in ARMS),
        *(pictures(model, seconds) for model in ARMS),
    ]


def tracking_rows(seconds: float = 8.0) -> list[dict[str, Any]]:
    """Of ``hardware_tracking.json``."""
    return [
        *(inverse_kinematics(model, seconds)[1] for model in ARMS),
        *(plant(model, seconds)[1] for model in ARMS),
    ]


def inverse_kinematics(model: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    kinematics = Kinematics(model)
    workspace = Workspace((-1.0, -1.0, 0.02), (1.0, 1.0, 1.5), floor=0.01)
    ik, q = DifferentialIK(kinematics, workspace=workspace), np.array(READY[model])
    start, errors, times = kinematics.forward(q), [], []
    busy = time.process_time()
    for tick in range(round(seconds * CONTROL_HZ)):
        way = np.array([0, 0.05 * np.sin(2 * np.pi * SINE_HZ * tick / CONTROL_HZ), 0])
        target = Pose(start.position + way, start.quaternion)
        begun = time.perf_counter()
        q = ik.step(q, target, 1 / CONTROL_HZ)
        times.append(time.perf_counter() - begun)
        errors.append(pose_error(kinematics.forward(q), target))
    busy = (time.process_time() - busy) / seconds
    error = np.array(errors)[CONTROL_HZ:]
    name = f"inverse kinematics, {model}, {kinematics.joints} joints"
    return loop_row(name, times, busy), {
        "device": name,
        "rms_mm": round(1e3 * rms(error[:, 0]), 3),
        "max_mm": round(1e3 * float(error[:, 0].max()), 3),
        "rms_rad": round(rms(error[:, 1]), 4),
    }


def joint_motion(model: str, seconds: float) -> dict[str, Any]:
    limits, random, times = limits_of(model), np.random.default_rng(0), []
    motion = JointMotion(limits, CONTROL_HZ)
    motion.begin((limits.low + limits.high) / 2)
    target, busy = limits.low, time.process_time()
    for tick in range(round(seconds * CONTROL_HZ)):
        if tick % 50 == 0:
            target = random.uniform(limits.low, limits.high)
        begun = time.perf_counter()
        motion.update(target)
        times.append(time.perf_counter() - begun)
    busy = (time.process_time() - busy) / seconds
    return loop_row(f"joint motion, {model}, {limits.joints} joints", times, busy)


def start_plant(model: str) -> MujocoPlant:
    limits, start = limits_of(model), np.array([*READY[model], 1.0])
    motor = Motor(time_constant_s=0.04)
    return mujoco_plant(PlantSpec(model, start, np.append(limits.low, 0), np.append(limits.high, 1), True, motor))


def plant(model: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    moved, times, angles, at = start_plant(model), [], [], []
    start = np.array([*READY[model], 1.0])
    ways = np.append(np.full(moved.joints, 0.2), 0.0)
    moved.advance(0)
    busy = time.process_time()
    for tick in range(1, round(seconds * PLANT_HZ) + 1):
        t = tick / PLANT_HZ
        moved.target(start + ways * np.sin(2 * np.pi * SINE_HZ * t))
        begun = time.perf_counter()
        moved.advance(round(t * SECOND_NS))
        times.append(time.perf_counter() - begun)
        at.append(t)
        angles.append((moved.positions - start)[: moved.joints])
    busy = (time.process_time() - busy) / seconds
    moved.close()
    later = np.array(at) > 1.0
    when, angle = np.array(at)[later], np.array(angles)[later]
    delays = np.arange(0.0, 0.3, 0.002)

    def error(delay: float) -> np.ndarray:
        return angle - 0.2 * np.sin(2 * np.pi * SINE_HZ * (when - delay))[:, None]

    left = [rms(error(delay)) for delay in delays]
    name = f"MuJoCo plant, {model} with gripper and three cubes"
    return loop_row(name, times, busy), {
        "device": name,
        "rms_rad": round(rms(error(0.0)), 4),
        "max_rad": round(float(np.abs(error(0.0)).max()), 4),
        "delay_ms": round(1e3 * float(delays[int(np.argmin(left))]), 1),
        "rms_without_delay_rad": round(min(left), 4),
    }


def pictures(model: str, seconds: float) -> dict[str, Any]:
    seen, times = start_plant(model), []
    renderer = SceneRenderer(seen.scene, "front", 640, 480)
    renderer.draw()
    busy, until = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.perf_counter()
        renderer.draw()
        times.append(time.perf_counter() - begun)
    busy = (time.process_time() - busy) / len(times) * 30
    renderer.close()
    seen.close()
    return loop_row(f"picture of the scene, {model}, 640x480", times, busy)


def loop_row(device: str, times: list[float], cpu: float) -> dict[str, Any]:
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return {
        "device": device,
        "hz": round(1 / float(np.mean(times)), 1),
        "p50_ms": round(p50, 4),
        "p99_ms": round(p99, 4),
        "cpu": round(cpu, 4),
    }


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
