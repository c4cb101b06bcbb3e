"""Small policies with random weights, and what they are shown, for tests of the policy contract."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from robolearn.policies.config import POLICIES, PolicyConfig
from robolearn.policies.encoders.observation import EncoderConfig
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.trunks.transformer import TransformerConfig
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.policies.vla.config import SmallConfig, VlaConfig
from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics

B, TO, TP, TA = 5, 2, 16, 8
STATE = Stream((3,), names=("x", "y", "angle"), wraps=(2,))
IMAGE = Stream((24, 32, 3), "uint8", kind="image")
ACTION = Stream((2,), kind="action", unit="px")


def statistics(low: list[float], high: list[float]) -> StreamStatistics:
    rows = np.array([low, high], np.float64)
    return StreamStatistics(
        count=2,
        min=rows[0],
        max=rows[1],
        mean=rows.mean(0),
        std=rows.std(0),
        q01=rows[0],
        q99=rows[1],
    )


STATISTICS = {"state": statistics([0, 0, 0], [100, 200, 6.3]), "action": statistics([0, 100], [512, 300])}


def small(policy: str, trunk: str) -> PolicyConfig:
    backbone = SmallConfig(width=32, layers=2, head_dim=8, mlp=48, image_size=32)
    trunks = {
        "unet1d": UNet1dConfig(widths=(16, 32), condition=16),
        "transformer": TransformerConfig(width=32, layers=2),
        "vla": VlaConfig(backbone=backbone, width=32, mlp=48, max_text=16),
    }
    return replace(POLICIES[policy](), trunk=trunks[trunk], encoder=EncoderConfig(image_width=16))


def make(policy: str = "flow", trunk: str = "unet1d", *, image: bool = False, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    observation = {"state": STATE, **({"img": IMAGE} if image else {})}
    spec = PolicySpec(observation, ACTION, 10.0, TO, TP, TA)
    policy_ = Policy(spec, STATISTICS, small(policy, trunk))
    with torch.no_grad():  # zero-initialised layers would hide what they should pass on
        for parameter in policy_.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return policy_.eval()


def observation(*, image: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    out = {"state": torch.rand(B, TO, 3, generator=generator) * torch.tensor([100.0, 200.0, 6.28])}
    if image:
        out["img"] = torch.randint(0, 256, (B, TO, 24, 32, 3), generator=generator, dtype=torch.uint8)
    return out


def actions() -> torch.Tensor:
    return torch.rand(B, TP, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [512.0, 200.0]
    ) + torch.tensor([0.0, 100.0])
