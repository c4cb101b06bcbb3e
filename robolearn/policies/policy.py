"""A policy: encoder + trunk + objective, between normalisers. Shape letters: see contracts.py."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robolearn.policies.config import PolicyConfig
from robolearn.policies.contracts import Batch, Context, Draws, Losses, Prior
from robolearn.policies.encoders import ObservationEncoder
from robolearn.policies.normalise import VectorNormaliser
from robolearn.policies.objectives.diffusion import Diffusion, DiffusionConfig
from robolearn.policies.objectives.flow import Flow, FlowConfig
from robolearn.policies.spec import PolicySpec
from robolearn.policies.trunks.transformer import Transformer
from robolearn.policies.trunks.unet1d import UNet1d
from robolearn_data.statistics import StreamStatistics

TRUNKS = {"unet1d": UNet1d, "transformer": Transformer}
"""A trunk is built from (action components, context tokens, token width, its configuration)."""

OBJECTIVES = {"flow": Flow, "diffusion": Diffusion}
"""An objective is built from its configuration."""


class Policy(nn.Module):
    """Predicts chunks of actions from observations; everything it is told and returns is in physical units."""

    def __init__(self, spec: PolicySpec, statistics: Mapping[str, StreamStatistics], config: PolicyConfig) -> None:
        super().__init__()
        self.spec = spec
        self.statistics = dict(statistics)
        self.config = config
        self.encoder = ObservationEncoder(spec, statistics, config.normalisation, config.encoder)
        self.trunk = TRUNKS[config.trunk.kind](spec.action.size, spec.obs_horizon, self.encoder.width, config.trunk)
        self.objective = OBJECTIVES[config.objective.kind](config.objective)
        self.action = VectorNormaliser(spec.action, statistics["action"], config.normalisation)

    @property
    def device(self) -> torch.device:
        return self.action.offset.device

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """The random numbers of one training step on ``batch`` windows (on the CPU: the same on every device)."""
        return self.objective.draw(batch, (self.spec.horizon, self.spec.action.size), generator)

    def noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise (B, T, A) from which ``sample`` starts."""
        return torch.randn(batch, self.spec.horizon, self.spec.action.size, generator=generator).to(self.device)

    def forward(self, batch: Batch, draws: Draws | None = None, weight: Tensor | None = None) -> Losses:
        """``loss``, under the name that torch's parallel wrappers call."""
        return self.loss(batch, draws=draws, weight=weight)

    def loss(self, batch: Batch, *, draws: Draws | None = None, weight: Tensor | None = None) -> Losses:
        """Squared error of the objective's prediction over the unpadded actions of each window.

        Args:
            draws: the random numbers to use; fresh ones by default.
            weight: (B,) factor of each window.
        """
        draws = self.draw(len(batch.action)) if draws is None else draws
        draws = {name: value.to(self.device) for name, value in draws.items()}
        x, target = self.objective.corrupt(self.action(batch.action), draws)
        output = self.trunk(x, draws["time"], self.encode(batch.observation))
        error_BT = (output.float() - target).square().mean(-1)
        if self.config.learn_padding:
            loss = error_BT.mean(1)
        else:
            real_BT = (~batch.is_pad).float()
            loss = (error_BT * real_BT).sum(1) / real_BT.sum(1).clamp(min=1)
        return Losses({self.config.objective.kind: loss if weight is None else loss * weight})

    def encode(self, observation: Mapping[str, Tensor]) -> Context:
        """Stream -> (B, O, *stream.shape), physical units; images 0..255."""
        return self.encoder(observation)

    def denoise(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Estimate of the clean chunk behind ``x``, both (B, T, A) in normalised units.

        Args:
            t: (B, 1) or (B, T), time of each token from 0 (noise) to 1 (clean).
        """
        return self.objective.clean(self.trunk(x, t, context), x, t)

    def sample(
        self, context: Context, *, noise: Tensor | None = None, steps: int | None = None, prior: Prior | None = None
    ) -> Tensor:
        """A chunk (B, T, A) in physical units, deterministic given ``noise`` (B, T, A).

        Args:
            steps: denoising steps; the configuration's by default.
            prior: known actions. Every estimate of the clean chunk is pulled towards them by their weight
                (inpainting, Lugmayr et al. 2022); those of weight 1 are returned unchanged.
        """
        noise = self.noise(len(context)) if noise is None else noise
        if prior is None:
            return self.action.inverse(self.objective.sample(lambda x, t: self.denoise(x, t, context), noise, steps))

        weight = prior.weight.to(noise).expand(noise.shape[:2]).unsqueeze(-1)
        # Free actions may be unknown (NaN) in the prior.
        known = torch.where(weight > 0, self.action(prior.action.to(noise)), 0.0)
        chunk = self.objective.sample(lambda x, t: torch.lerp(self.denoise(x, t, context), known, weight), noise, steps)
        return torch.where(weight == 1, prior.action.to(noise), self.action.inverse(chunk))


def sampler_of(config: PolicyConfig) -> str:
    """Name of objective and steps as results quote it: flow-10, ddim-10, ddpm-100."""
    match config.objective:
        case FlowConfig(steps=steps):
            return f"flow-{steps}"
        case DiffusionConfig(sampler="ddim", steps=steps):
            return f"ddim-{steps or 10}"
        case DiffusionConfig(steps=steps, levels=levels):
            return f"ddpm-{steps or levels}"
