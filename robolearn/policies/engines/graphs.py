"""The parts of a policy that an engine computes, as functions from tensors to one tensor.

The sampling loop is not among them: priors, guidance, schedulers and every objective go on working around one step.
Shape letters: see contracts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robolearn.policies.contracts import Context
from robolearn.policies.policy import Policy

EXAMPLES = 3
"""Batch of the example inputs. More than one, or exporters would take the batch for a constant."""


@dataclass(frozen=True)
class Graph:
    """Something to compile: a module without state, and inputs of the right shapes, batch first."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    """Name -> (EXAMPLES, ...), in the order of the module's arguments."""


class _Step(nn.Module):
    """Noisy chunk (B, T, A), time (B, 1) or (B, T), context tokens (B, N, D) -> the trunk's prediction (B, T, A)."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.trunk(x, t, Context(tokens))


class _Encode(nn.Module):
    """Streams (B, O, ...) in the order of ``names`` -> context tokens (B, N, D)."""

    def __init__(self, encoder: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = names

    def forward(self, *streams: Tensor) -> Tensor:
        return self.encoder(dict(zip(self.names, streams, strict=True))).tokens


def step_graph(policy: Policy, *, per_token: bool) -> Graph:
    """One denoising step, with one time for the whole chunk or one for each action."""
    spec = policy.spec
    x = policy.noise(EXAMPLES, torch.Generator().manual_seed(0))
    t = _uniform((EXAMPLES, spec.horizon if per_token else 1), seed=1).to(x)
    with torch.no_grad():
        tokens = policy.encode(example_observation(policy, EXAMPLES)).tokens
    name = "step_per_token" if per_token else "step"
    return Graph(name, _Step(policy.trunk), {"x": x, "t": t, "tokens": tokens})


def encoder_graph(policy: Policy) -> Graph:
    """All observations -> context tokens."""
    observation = example_observation(policy, EXAMPLES)
    return Graph("encoder", _Encode(policy.encoder, tuple(observation)), observation)


def example_observation(policy: Policy, batch: int) -> dict[str, Tensor]:
    """Stream -> (B, O, *shape): random values between the extremes of the training data, random pixels."""
    out: dict[str, Tensor] = {}
    for seed, (name, stream) in enumerate(policy.spec.observation.items(), start=2):
        shape = (batch, policy.spec.obs_horizon, *stream.shape)
        value = _uniform(shape, seed)
        if stream.kind == "text":
            value = torch.tensor(stream.check(name, "pick it up")).expand(shape)
        elif stream.kind == "image":
            value = 255 * value if stream.dtype.startswith("float") else (256 * value).to(torch.uint8)
        else:
            statistics = policy.statistics[name]
            low, high = (torch.as_tensor(v, dtype=torch.float32) for v in (statistics.min, statistics.max))
            value = torch.lerp(low.expand(shape), high.expand(shape), value)
        out[name] = value.to(policy.device)
    return out


def _uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
