"""Small VLA policies with random weights, and what they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from policy_makers import ACTION, IMAGE, STATE, STATISTICS, TP
from torch import Tensor

from robolearn.policies.config import POLICIES
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.vla.config import BackboneConfig, PretrainedConfig, SmallConfig, VlaConfig
from robolearn.policies.vla.encoder import PrefixEncoder
from robolearn_data.schema import Stream

TEXT = Stream((64,), "uint8", "text")
STREAMS = {"state": STATE, "img": IMAGE, "wrist": IMAGE, "instruction": TEXT}
TEXTS = ("lift the red cube", "push", "put it on the blue one", "")
FAMILIES = ("smolvlm", "paligemma", "qwen2_5_vl", "qwen3_vl")

SMALL = SmallConfig(width=32, layers=3, heads=4, kv_heads=2, head_dim=8, mlp=48, image_size=32)


def backbone(kind: str) -> BackboneConfig:
    """ "small", or a family of transformers with tiny random weights."""
    if kind == "small":
        return SMALL
    return PretrainedConfig(name=f"tiny-{kind}", image_size=32 if kind.startswith("qwen") else 0)


def make_vla(
    kind: str = "small", *, obs_horizon: int = 1, objective: FlowConfig | None = None, seed: int = 0, **changes: object
) -> Policy:
    """``changes``: of the VlaConfig."""
    torch.manual_seed(seed)
    trunk = VlaConfig(backbone=backbone(kind), width=32, mlp=48, max_text=32, crop=1.0)
    trunk = replace(trunk, **changes)  # pyright: ignore[reportArgumentType]
    spec = PolicySpec(STREAMS, ACTION, 10.0, obs_horizon, TP, 8)
    config = replace(POLICIES["vla"](), objective=objective or FlowConfig(), trunk=trunk)
    policy = Policy(spec, STATISTICS, config)
    with torch.no_grad():  # zero-initialised layers would hide what they should pass on
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return policy.eval()


def seen(texts: Sequence[str] = TEXTS, *, obs_horizon: int = 1) -> dict[str, Tensor]:
    """An observation for each text; the same ones whatever the texts."""
    generator = torch.Generator().manual_seed(1)
    b, o = len(texts), obs_horizon
    out = {"state": torch.rand(b, o, 3, generator=generator) * torch.tensor([100.0, 200.0, 6.28])}
    for name in ("img", "wrist"):
        out[name] = torch.randint(0, 256, (b, o, 24, 32, 3), generator=generator, dtype=torch.uint8)
    out["instruction"] = torch.tensor(TEXT.check("instruction", [[text] * o for text in texts], batch=(b, o)))
    return out


def noise(policy: Policy, batch: int = len(TEXTS)) -> Tensor:
    return policy.noise(batch, torch.Generator().manual_seed(4)).to(next(policy.parameters()).dtype)


def encoder(policy: Policy) -> Any:
    """Untyped: the tests look at parts that only some backbones have."""
    assert isinstance(policy.encoder, PrefixEncoder)
    return policy.encoder
