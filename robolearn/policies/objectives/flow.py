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

from robolearn.policies.contracts import Denoiser, Draws, Network
from robolearn.policies.objectives.errors import squared_error
from robolearn.policies.objectives.token_times import token_times


@dataclass(frozen=True)
class FlowConfig:
    """Flow matching with Euler steps."""

    kind: Literal["flow"] = "flow"
    steps: int = 10
    """Euler steps when a chunk is sampled."""
    time: Literal["uniform", "beta"] = "uniform"
    """Distribution of training times; "beta" is pi0's, Beta(1.5, 1) towards noise."""
    prefix: int = 0
    """Training-time real-time chunking: at most so many leading actions are given clean in training, a number drawn for
    each window; 0: none. A delay of d control steps takes obs_horizon - 1 + d."""
    streaming: int = 0
    """Streaming policy: actions in a block, the later ones noisier in training (see policies/streaming.py); 0: off."""
    guidance: float = 1.0
    """Scale of classifier-free guidance towards the condition, 1 for none; see policies/condition.py."""


class Flow:
    spans = False
    trains_guided = False

    def __init__(self, config: FlowConfig) -> None:
        self.config = config

    def draw(self, batch: int, shape: tuple[int, int], generator: torch.Generator | None) -> Draws:
        """Noise (B, T, A) and time, (B, 1) or (B, T), of one training step."""
        noise = torch.randn(batch, *shape, generator=generator)
        t = torch.rand(batch, 1, generator=generator)
        if self.config.time == "beta":
            # 1 - u^(1/1.5) is 1 - Beta(1.5, 1); 0.999 keeps away from the exact end, as pi0 does.
            t = 0.999 * (1 - t ** (1 / 1.5))
        return {"noise": noise, "time": token_times(t, shape[0], self.config.prefix, self.config.streaming, generator)}

    def corrupt(self, action: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(noisy chunk, target of the network), both (B, T, A)."""
        t = draws["time"].unsqueeze(-1)
        return (1 - t) * draws["noise"] + t * action, action - draws["noise"]

    def losses(self, network: Network, action: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Squared error of the velocity, (B, T)."""
        x, velocity = self.corrupt(action, draws)
        return {"flow": squared_error(network(x, draws["time"]), velocity)}

    def clean(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """Where the velocity at ``x`` leads, (B, T, A); t is (B, 1) or (B, T)."""
        return x + (1 - t.unsqueeze(-1)) * network(x, t)

    def sample(self, denoiser: Denoiser, noise: Tensor, steps: int | None = None) -> Tensor:
        """Euler integration from ``noise`` (B, T, A) to a chunk."""
        times = torch.linspace(0.0, 1.0, self.steps(steps) + 1, device=noise.device)
        x = noise
        for begin, end in itertools.pairwise(times):
            now, after = begin.expand(len(x), 1), end.expand(len(x), 1)
            x = self.step(x, denoiser(x, now), now, after)
        return x

    def steps(self, asked: int | None) -> int:
        """Denoising steps from noise to clean: ``asked``, or the configuration's."""
        return asked or self.config.steps

    def step(self, x: Tensor, clean: Tensor, now: Tensor, after: Tensor) -> Tensor:
        """``x`` (B, T, A) moved from time ``now`` to ``after``, (B, 1) or (B, T), given the estimate ``clean``."""
        part = torch.where(now < 1, (after - now) / (1 - now), 0.0)
        return torch.lerp(x, clean, part.unsqueeze(-1).to(x))

    def straight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Diffusion.straight``; here x is on the straight line already."""
        return t.unsqueeze(-1), torch.ones_like(t).unsqueeze(-1)
