"""Direct prediction of the chunk: behaviour cloning, and the conditional VAE of ACT (Zhao et al. 2023).

A plain regression predicts the mean (or median) of what people do. ACT adds a latent z that tells apart the styles in
which a person might do it: in training a posterior network infers z from the chunk itself, and the trunk predicts the
chunk from the observation and z, which stands where the noise of a denoising policy stands. At test time z = 0. (ACT
gives z to the trunk's encoder as one more token; here any trunk serves.)

There is no time and no noise: a trunk is asked at time 0. Shape letters: see contracts.py; Z size of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robolearn.policies.contracts import Denoiser, Draws, Network
from robolearn.policies.objectives.errors import absolute_error, squared_error


@dataclass(frozen=True)
class RegressionConfig:
    """Prediction of the chunk itself; with a latent, a conditional VAE as in ACT."""

    kind: Literal["regression"] = "regression"
    error: Literal["squared", "absolute"] = "squared"
    latent: int = 0
    """Z; 0: none. ACT has 32."""
    kl: float = 10.0
    """Weight of the divergence of z from a standard normal distribution."""
    posterior_width: int = 128
    """Hidden units of the network that infers z from a chunk."""
    prefix: ClassVar[int] = 0
    streaming: ClassVar[int] = 0
    guidance: ClassVar[float] = 1.0


class Regression(nn.Module):
    spans = False
    trains_guided = False

    def __init__(self, config: RegressionConfig, horizon: int, actions: int) -> None:
        """For chunks (T, A) = (``horizon``, ``actions``)."""
        super().__init__()
        self.config = config
        z, width, size = config.latent, config.posterior_width, horizon * actions
        if z:
            hidden = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in ((size, width), (width, width))]
            self.posterior = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 2 * z))
            self.spread = nn.Sequential(nn.Linear(z, size, bias=False), nn.Unflatten(1, (horizon, actions)))

    def draw(self, batch: int, shape: tuple[int, int], generator: torch.Generator | None) -> Draws:
        """Time 0 for all, and "latent" (B, Z), the random part of z."""
        return {"latent": torch.randn(batch, self.config.latent, generator=generator), "time": torch.zeros(batch, 1)}

    def losses(self, network: Network, action: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Error of the chunk, (B, T), and the divergence of z, (B,)."""
        error = {"squared": squared_error, "absolute": absolute_error}[self.config.error]
        if not self.config.latent:
            return {"regression": error(network(torch.zeros_like(action), draws["time"]), action)}
        mean, log_variance = self.posterior(action).float().chunk(2, dim=-1)
        z = mean + (0.5 * log_variance).exp() * draws["latent"]
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        output = network(self.spread(z), draws["time"])
        return {"regression": error(output, action), "divergence": self.config.kl * divergence}

    def clean(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """The prediction, whatever ``x`` and ``t`` are."""
        return network(torch.zeros_like(x), torch.zeros_like(t))

    def sample(self, denoiser: Denoiser, noise: Tensor, steps: int | None = None) -> Tensor:
        """One evaluation; the same for every ``noise``."""
        return denoiser(torch.zeros_like(noise), torch.zeros_like(noise[:, :1, 0]))

    def corrupt(self, action: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(action), action

    def steps(self, asked: int | None) -> int:
        return 1

    def step(self, x: Tensor, clean: Tensor, now: Tensor, after: Tensor) -> Tensor:
        return clean

    def straight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t.unsqueeze(-1), torch.ones_like(t).unsqueeze(-1)
