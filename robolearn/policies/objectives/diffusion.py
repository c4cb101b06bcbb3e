"""Denoising diffusion: the network predicts the added noise (Ho et al. 2020); DDPM or DDIM (Song et al. 2021) samples.

The schedule and both samplers are diffusers'. Time runs from 0 (noise) to 1 (data) as in flow.py: level k of K is at
t = 1 - (k + 1) / K, and t = 1 is clean data. Shape letters: see contracts.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robolearn.policies.contracts import Denoiser, Draws, Network
from robolearn.policies.objectives.errors import squared_error
from robolearn.policies.objectives.token_times import token_times
from robolearn_data.schema import UserError


@dataclass(frozen=True)
class DiffusionConfig:
    """Denoising diffusion with the settings of Diffusion Policy (Chi et al. 2023)."""

    kind: Literal["diffusion"] = "diffusion"
    sampler: Literal["ddim", "ddpm"] = "ddim"
    """ddim: deterministic, few steps; ddpm: stochastic, all levels."""
    steps: int | None = None
    """Denoising steps when a chunk is sampled; by default 10 with ddim and every level with ddpm."""
    levels: int = 100
    """Noise levels K of training."""
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    prefix: int = 0
    """Leading actions given clean in training, as in FlowConfig."""
    streaming: int = 0
    """Actions in a block of a streaming policy, as in FlowConfig."""
    guidance: float = 1.0
    """As in FlowConfig."""


class Diffusion:
    spans = False
    trains_guided = False

    def __init__(self, config: DiffusionConfig) -> None:
        # Here and not above, since importing diffusers takes two seconds that a flow policy need not pay.
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self.config = config
        # The samplers get the clean chunk ("sample"), already clipped by ``clean``.
        options = {
            "num_train_timesteps": config.levels,
            "beta_schedule": config.schedule,
            "prediction_type": "sample",
            "clip_sample": False,
        }
        self.scheduler = (DDIMScheduler if config.sampler == "ddim" else DDPMScheduler)(**options)
        # Index k + 1: index 0 is clean data.
        self.alpha_bar = torch.cat([torch.ones(1), self.scheduler.alphas_cumprod])

    def draw(self, batch: int, shape: tuple[int, int], generator: torch.Generator | None) -> Draws:
        """Noise (B, T, A) and time, (B, 1) or (B, T), of one training step."""
        noise = torch.randn(batch, *shape, generator=generator)
        level = torch.randint(0, self.config.levels, (batch, 1), generator=generator)
        t = token_times(self._time(level), shape[0], self.config.prefix, self.config.streaming, generator)
        if self.config.streaming:  # onto the levels of the schedule; the noisier, so that only what is given is clean
            t = (t * self.config.levels + 1e-4).floor() / self.config.levels
        return {"noise": noise, "time": t}

    def corrupt(self, action: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(noisy chunk, target of the network), both (B, T, A)."""
        alpha_bar = self._alpha_bar(draws["time"])
        return alpha_bar.sqrt() * action + (1 - alpha_bar).sqrt() * draws["noise"], draws["noise"]

    def losses(self, network: Network, action: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Squared error of the noise, (B, T)."""
        x, noise = self.corrupt(action, draws)
        return {"diffusion": squared_error(network(x, draws["time"]), noise)}

    def clean(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """The chunk (B, T, A) that the noise found in ``x`` implies, clipped to the data's range [-1, 1]."""
        alpha_bar = self._alpha_bar(t)
        return ((x - (1 - alpha_bar).sqrt() * network(x, t)) / alpha_bar.sqrt()).clamp(-1, 1)

    def sample(self, denoiser: Denoiser, noise: Tensor, steps: int | None = None) -> Tensor:
        """Denoise ``noise`` (B, T, A) to a chunk. DDPM's noise is a function of ``noise``, for each element of B."""
        generators = None
        if self.config.sampler == "ddpm":
            bits = noise[:, 0, 0].detach().cpu().float().view(torch.int32)
            generators = [torch.Generator().manual_seed(int(seed)) for seed in bits]
        self.scheduler.set_timesteps(self.steps(steps))
        x = noise
        for level in self.scheduler.timesteps.tolist():
            clean = denoiser(x, self._time(torch.full((len(x), 1), level, device=x.device)))
            x = self.scheduler.step(clean, level, x, generator=generators, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        return x

    def steps(self, asked: int | None) -> int:
        """Denoising steps from noise to clean: ``asked``, or the configuration's."""
        steps = asked or self.config.steps or (10 if self.config.sampler == "ddim" else self.config.levels)
        if steps > self.config.levels:
            raise UserError(f"{steps} denoising steps asked, the policy was trained with {self.config.levels} levels")
        return steps

    def step(self, x: Tensor, clean: Tensor, now: Tensor, after: Tensor) -> Tensor:
        """DDIM: ``x`` (B, T, A) moved from time ``now`` to ``after``, (B, 1) or (B, T), by the estimate ``clean``."""
        alpha_now, alpha_after = self._alpha_bar(now), self._alpha_bar(after)
        noise = (x - alpha_now.sqrt() * clean) / (1 - alpha_now).sqrt()
        moved = alpha_after.sqrt() * clean + (1 - alpha_after).sqrt() * noise
        return torch.where(alpha_now < 1, moved, x)

    def straight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(tau, scale), both (B, 1 or T, 1): x / scale lies on flow matching's straight line at time tau.

        With a the signal fraction, x = sqrt(a) action + sqrt(1 - a) noise. Divided by scale = sqrt(a) + sqrt(1 - a) it
        is tau action + (1 - tau) noise with tau = sqrt(a) / scale, and DDIM's step is Euler's.
        """
        alpha_bar = self._alpha_bar(t)
        scale = alpha_bar.sqrt() + (1 - alpha_bar).sqrt()
        return alpha_bar.sqrt() / scale, scale

    def _time(self, level: Tensor) -> Tensor:
        return 1 - (level + 1) / self.config.levels

    def _alpha_bar(self, t: Tensor) -> Tensor:
        """Signal fraction at time t (B, 1) or (B, T) -> (B, 1 or T, 1)."""
        index = ((1 - t) * self.config.levels).round().long()
        return self.alpha_bar.to(t.device)[index].unsqueeze(-1)
