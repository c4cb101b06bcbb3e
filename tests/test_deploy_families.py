"""A policy of every family drives the SO-101's twin through the runtime: chunks come while the arm moves, and what the
arm is sent keeps its limits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robolearn.policies.checkpoint import load_instruction_limit, save_policy
from robolearn.policies.config import POLICIES, PolicyConfig
from robolearn.policies.objectives.regression import RegressionConfig
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.trunks.transformer import TransformerConfig
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.policies.vla.config import SmallConfig, VlaConfig
from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics
from robolearn_deploy.dashboard.rings import RigRings
from robolearn_deploy.driven_arm import ServoOptions
from robolearn_deploy.instructions import accept
from robolearn_deploy.limiter import Limiter
from robolearn_deploy.local_policy import LocalPolicy
from robolearn_deploy.operator import Command, Operator
from robolearn_deploy.rig_log import RigMeasured
from robolearn_deploy.rig_options import RigOptions
from robolearn_deploy.rig_runtime import run_rig
from robolearn_deploy.stall import State
from robolearn_hardware.rig import load_rig, with_twins
from robolearn_hardware.ring import Ring

pytest.importorskip("ruckig", reason="needs robolearn[kinematics]")

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
RATE_HZ = 25.0
TRANSFORMER = TransformerConfig(width=64, layers=2)
VLA = VlaConfig(backbone=SmallConfig(width=64, layers=2, mlp=96), width=64, mlp=96)

FAMILIES: dict[str, tuple[PolicyConfig, str]] = {
    "meanflow, UNet": (replace(POLICIES["meanflow"](), trunk=UNet1dConfig(widths=(32, 64))), "naive"),
    "meanflow, transformer": (replace(POLICIES["meanflow"](), trunk=TRANSFORMER), "ensemble"),
    "diffusion, transformer": (replace(POLICIES["diffusion"](), trunk=TRANSFORMER), "rtc-identity"),
    "act": (replace(POLICIES["act"](), trunk=TRANSFORMER), "naive"),
    "vla": (replace(POLICIES["vla"](), trunk=VLA), "rtc"),
    "vla, regression": (replace(POLICIES["vla"](), objective=RegressionConfig(), trunk=VLA), "naive"),
}
"""Name -> parts, and the scheduler that it runs with."""


def checkpoint(folder: Path, config: PolicyConfig) -> Path:
    """An untrained policy that keeps the arm near its middle, and shakes it."""
    state = Stream((6,), names=JOINTS, rate_hz=100.0, interpolation="linear")
    texts = {"instruction": Stream((256,), "uint8", "text")} if config.trunk.kind == "vla" else {}
    action = Stream((6,), kind="action", names=JOINTS)
    spec = PolicySpec(
        {"state": state, **texts}, action, RATE_HZ, config.obs_horizon, config.horizon, config.action_horizon
    )
    ones = np.ones(6)
    statistics = StreamStatistics(2, *(share * ones for share in (-0.05, 0.05, 0, 0.03, -0.05, 0.05)))
    torch.manual_seed(0)
    policy = Policy(spec, {"state": statistics, "action": statistics}, config)
    with torch.no_grad():  # layers that begin at zero would ask for no motion
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_policy(policy, folder)
    return folder


class Witness:
    """Keeps all that was sent, says something else on the way, and ends the run."""

    def __init__(self, ticks: int = 250) -> None:
        self._most, self.said = ticks, False

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: RigRings
    ) -> None:
        self.operator, self.instruct, self.rate_hz = operator, instruct, rings.rate_hz
        self._ring, self._next = Ring.attach(rings.ticks), 0
        self.ticks = np.zeros(0, self._ring.dtype)

    def progress(self, elapsed_s: float, measured: RigMeasured, episode: int) -> None:
        self.look()
        ran = measured.ticks_in[State.RUNNING]
        if ran > self._most // 2 and not self.said:
            self.instruct("lift the blue cube")
            self.said = True
        if ran > self._most:
            self.operator.tell(Command.END)

    def look(self) -> None:
        records, after = self._ring.drain(self._next)
        assert len(records) == after - self._next
        self.ticks, self._next = np.concatenate([self.ticks, records]), after

    def message(self, text: str) -> None: ...


def breaches(positions: np.ndarray, limiter: Limiter) -> dict[str, int]:
    """Setpoints (n, J), one for each tick, of which a finite difference breaks a limit; they come as float32."""
    low, high = limiter.info.limits.low, limiter.info.limits.high
    found = {"position": int(((positions < low - 1e-6) | (positions > high + 1e-6)).any(axis=1).sum())}
    dt, rounding = limiter.dt_s, np.abs(positions).max() * 2.0**-24
    bounds = {"velocity": limiter.velocity, "acceleration": limiter.acceleration, "jerk": limiter.jerk}
    for order, (name, most) in enumerate(bounds.items(), 1):
        rates = np.abs(np.diff(positions, order, axis=0)) / dt**order
        found[name] = int((rates > 1.0001 * most + 2**order * rounding / dt**order).any(axis=1).sum())
    return found


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.slow
def test_a_policy_of_each_family_drives_a_twin_arm_within_its_limits(root: Path, tmp_path: Path, name: str) -> None:
    config, scheduler = FAMILIES[name]
    folder, witness = checkpoint(tmp_path / "checkpoint", config), Witness()
    make = functools.partial(LocalPolicy, folder, steps=None if config.objective.kind == "regression" else 2)
    make = functools.partial(make, scheduler=scheduler)
    policy: Any = make()
    with with_twins(load_rig(root / "hardware/rigs/so101_twin.yaml")) as (rig, _):
        limiter = Limiter(rig.arms["follower"].open("follower").info, 1.0)
        options = RigOptions(
            120.0,
            scheduler=scheduler,
            replan_steps=8,
            instruction="go to the red cube",
            check_instruction=load_instruction_limit(folder) or accept,
            servo=ServoOptions(fifo=False),
        )
        report = run_rig(rig, make, policy.spec, options, witness)
        assert report.failure == ""
        limiter = Limiter(limiter.info, witness.rate_hz)
    assert witness.said
    ran = witness.ticks["state"] == State.RUNNING
    assert ran.sum() >= 250
    assert len(np.unique(witness.ticks["chunk"][ran])) >= 3, "chunks came while it moved"
    sent = witness.ticks["sent"][:, : limiter.info.joints].astype(np.float64)
    assert np.ptp(sent[ran], axis=0).max() > 0.005, "it moved"
    assert breaches(sent, limiter) == {"position": 0, "velocity": 0, "acceleration": 0, "jerk": 0}
