"""A small slow-fast policy, and demonstrations in which a force is answered, importable by processes of tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from robolearn.policies.config import POLICIES, PolicyConfig
from robolearn.policies.policy import Policy
from robolearn.policies.reactive.config import TokenizerConfig, fast_spec
from robolearn.policies.spec import PolicySpec
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.training.config import OptimiserConfig, TrainConfig
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream
from robolearn_data.statistics import StreamStatistics
from robolearn_data.writer import DatasetWriter

RATE_HZ, TICKS, READINGS, HORIZON = 20.0, 2, 4, 8
"""Of the toy: control steps a second, ticks in each, force readings in each, actions of a chunk."""
STATE = Stream((1,), names=("goal",))
WRENCH = Stream((READINGS, 2), names=("fx", "fz"), unit="N")
ACTION = Stream((2,), kind="action", names=("x", "z"), unit="m")


def statistics(stream: Stream, low: float, high: float) -> StreamStatistics:
    rows = np.stack([np.full(stream.shape, low), np.full(stream.shape, high)])
    moments = {"mean": rows.mean(0), "std": rows.std(0)}
    return StreamStatistics(count=2, min=rows[0], max=rows[1], q01=rows[0], q99=rows[1], **moments)


STATISTICS = {
    "state": statistics(STATE, -1, 1),
    "wrench": statistics(WRENCH, -5, 5),
    "action": statistics(ACTION, -1, 1),
}


def config(*, kl: float = 1e-3, steps: int = 4, horizon: int = HORIZON) -> PolicyConfig:
    tokenizer = TokenizerConfig(steps, fast_hz=RATE_HZ * TICKS, stride=4, channels=4, width=16, kl=kl)
    trunk = UNet1dConfig(widths=(16, 32), condition=16)
    return replace(POLICIES["reactive"](), horizon=horizon, action_horizon=4, trunk=trunk, tokenizer=tokenizer)


def spec(wrench: Stream = WRENCH) -> PolicySpec:
    made = config()
    assert made.tokenizer is not None
    fast = fast_spec({"wrench": wrench}, RATE_HZ, HORIZON, made.tokenizer)
    return PolicySpec({"state": STATE}, ACTION, RATE_HZ, 2, HORIZON, 4, fast=fast)


def policy(*, settled: bool = True) -> Policy:
    """With random weights."""
    torch.manual_seed(0)
    made = Policy(spec(), STATISTICS, config()).eval().requires_grad_(False)
    if settled:
        assert made.tokenizer is not None
        made.tokenizer.settle([torch.rand(64, HORIZON, 2) * 2 - 1])
    return made


def training(steps: int = 3, tokenizer_steps: int = 4) -> TrainConfig:
    return TrainConfig(
        policy=config(steps=tokenizer_steps),
        optimiser=OptimiserConfig(warmup=1),
        steps=steps,
        batch_size=8,
        checkpoint_every=2,
        pad_after=HORIZON - 2,
        observe=("state",),
    )


def demonstrations(path: Path, episodes: int = 6, length: int = 24) -> Dataset:
    """x goes towards the goal at a steady pace; z is 0 until a push comes at some time, and from then on what the push
    was: (fz / 5) m. Nothing tells in advance when or how hard."""
    rng = np.random.default_rng(0)
    schema = Schema(RATE_HZ, {"state": STATE, "wrench": WRENCH, "action": ACTION})
    with DatasetWriter.create(path, schema) as writer:
        for _ in range(episodes):
            goal, when, push = rng.uniform(-1, 1), rng.integers(4, length - 4), rng.uniform(-5, 5)
            force = np.where(np.arange(length * READINGS) >= when * READINGS, push, 0.0)
            wrench = np.zeros((length, READINGS, 2), np.float32)
            wrench[..., 1] = force.reshape(length, READINGS)
            z = np.where(np.arange(length) >= when, push / 5, 0.0)
            x = goal * np.arange(length) / length
            writer.extend(
                {
                    "state": np.full((length, 1), goal, np.float32),
                    "wrench": wrench,
                    "action": np.stack([x, z], 1).astype(np.float32),
                }
            )
            writer.save_episode({})
    return Dataset.open(path)
