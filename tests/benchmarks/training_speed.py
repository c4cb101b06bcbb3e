"""Training steps and inference of small networks beside the sizes that diffusion_policy publishes, same loop and data.

    python tests/benchmarks/training_speed.py

PushT's state (agent and block pose), batch 256, one thread. CPU time, so that other programs hardly matter.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pusht import RUNS, prepare
from results import write_results

from robolearn.policies.config import PolicyConfig, TrunkConfig
from robolearn.policies.objectives.diffusion import DiffusionConfig
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.policy import Policy
from robolearn.policies.trunks.transformer import TransformerConfig
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.training.config import OptimiserConfig, TrainConfig
from robolearn.training.loop import train
from robolearn.training.metrics import read_metrics
from robolearn.training.processes import processes

NETWORKS: dict[str, tuple[TrunkConfig, int]] = {
    "UNet1d 32-64-128": (UNet1dConfig(widths=(32, 64, 128)), 20),
    "UNet1d 48-96-192": (UNet1dConfig(widths=(48, 96, 192)), 20),
    "UNet1d 64-128-256": (UNet1dConfig(widths=(64, 128, 256)), 10),
    "UNet1d 256-512-1024 (published size)": (UNet1dConfig(widths=(256, 512, 1024), condition=256), 2),
    "Transformer 4 x 128": (TransformerConfig(), 10),
    "Transformer 8 x 256 (published size)": (TransformerConfig(width=256, layers=8), 2),
}
"""Name -> trunk and how many steps to time after one that does not count."""


def measure(name: str, trunk: TrunkConfig, steps: int, precision: str) -> dict[str, object]:
    config = TrainConfig(
        policy=PolicyConfig(trunk=trunk),
        optimiser=OptimiserConfig(warmup=1),
        observe=("state",),
        batch_size=256,
        steps=steps + 1,
        checkpoint_every=1,  # each step is reported, with its CPU time
        precision=precision,  # pyright: ignore[reportArgumentType]
    )
    with tempfile.TemporaryDirectory() as folder, processes("cpu") as group:
        policy = train(config, [RUNS / "human.zarr"], Path(folder), group)
        cpu_s = np.diff([row["cpu_s"] for row in read_metrics(Path(folder))])
    return {
        "network": name,
        "precision": precision,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "steps_per_cpu_s": float(1 / np.mean(cpu_s)),
        "cpu_ms_per_step": float(1000 * np.mean(cpu_s)),
        **_chunks(policy),
    }


def _chunks(policy: Policy) -> dict[str, float]:
    """CPU milliseconds to sample one chunk (batch 1, fp32), for each objective on this trunk."""
    found = {}
    spec = policy.spec
    observation = {name: torch.zeros(1, spec.obs_horizon, *s.shape) for name, s in spec.observation.items()}
    objectives = {"flow_10": FlowConfig(), "ddim_10": DiffusionConfig(), "ddpm_100": DiffusionConfig(sampler="ddpm")}
    for name, objective in objectives.items():
        sampler = Policy(spec, policy.statistics, replace(policy.config, objective=objective)).eval()
        calls = 3 if name == "ddpm_100" else 10
        times = []
        with torch.inference_mode():
            for _ in range(calls + 1):
                began = time.process_time()
                sampler.sample(sampler.encode(observation))
                times.append(time.process_time() - began)
        found[f"{name}_ms"] = float(1000 * np.median(times[1:]))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    prepare()
    rows = []
    for name, (trunk, steps) in NETWORKS.items():
        for precision in ("fp32", "bf16"):
            rows.append(measure(name, trunk, steps, precision))
            print(rows[-1], flush=True)
    write_results("training_speed", rows)
