"""Flow matching: the network predicts the velocity from noise to data along straight lines (Lipman et al. 2023).

Time runs from 0 (noise) to 1 (data): x_t = (1 - t) noise + t action, velocity = action - noise.
Shape letters: see contracts.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robolearn.policies.contracts import Denoiser, Draws


@dataclass(frozen=True)
class FlowConfig:
    """Flow matching with Euler steps."""

    kind: Literal["flow"] = "flow"
    steps: int = 10
    """Euler steps when a chunk is sampled."""
    time: Literal["uniform", "beta"] = "uniform"
    """Distribution of training times; "beta" is pi0's, Beta(1.5, 1) towards noise."""


class Flow:
    def __init__(self, config: FlowConfig) -> None:
        self.config = config

    def draw(self, batch: int, shape: tuple[int, int], generator: torch.Generator | None) -> Draws:
        """Noise (B, T, A) and time (B, 1) of one training step."""
        noise = torch.randn(batch, *shape, generator=generator)
        t = torch.rand(batch, 1, generator=generator)
        if self.config.time == "beta":
            # 1 - u^(1/1.5) is 1 - Beta(1.5, 1); 0.999 keeps away from the exact end, as pi0 does.
            t = 0.999 * (1 - t ** (1 / 1.5))
        return {"noise": noise, "time": t}

    def corrupt(self, action: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(noisy chunk, target of the network), both (B, T, A)."""
        t = draws["time"].unsqueeze(-1)
        return (1 - t) * draws["noise"] + t * action, action - draws["noise"]

    def clean(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The chunk (B, T, A) that the network's ``output`` at ``x`` implies; t is (B, 1) or (B, T)."""
        return x + (1 - t.unsqueeze(-1)) * output

    def sample(self, denoiser: Denoiser, noise: Tensor, steps: int | None = None) -> Tensor:
        """Euler integration from ``noise`` (B, T, A) to a chunk."""
        times = torch.linspace(0.0, 1.0, (steps or self.config.steps) + 1, device=noise.device)
        x = noise
        for now, after in itertools.pairwise(times):
            clean = denoiser(x, now.expand(len(x), 1))
            x = torch.lerp(x, clean, (after - now) / (1 - now))
        return x
