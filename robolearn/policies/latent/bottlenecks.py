"""What passes from the inverse model to the forward model: as little as possible, so that it is the action.

Shape letters: B batch, E numbers that the inverse model gives, Z numbers of a latent action, N tokens (codes) of one,
K codes of a codebook, D numbers of a code.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from robolearn.policies.contracts import Draws
from robolearn.policies.latent.config import LatentModelConfig


class Bottleneck(Protocol):
    """An nn.Module too."""

    inputs: int
    """E."""
    size: int
    """Z."""
    codebook_size: int
    """K; 0 where there are no codes."""

    def draw(self, batch: int, generator: torch.Generator | None) -> Draws:
        """The random numbers of one training step."""
        ...

    def train_pass(self, x: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, E) -> latent actions (B, Z) as the forward model sees them in training, and terms of the loss, (B,)."""
        ...

    def latent(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, Z), without noise."""
        ...

    def codes(self, x: Tensor) -> Tensor:
        """(B, E) -> numbers of the codes (B, N); (B, 0) where there are none."""
        ...


class Gaussian(nn.Module):
    """A normal distribution held near the standard one, as in a variational autoencoder (Kingma & Welling 2014)."""

    codebook_size = 0

    def __init__(self, config: LatentModelConfig) -> None:
        super().__init__()
        self.size = config.size
        self.inputs = 2 * config.size
        self.weight = config.kl

    def draw(self, batch: int, generator: torch.Generator | None) -> Draws:
        return {"noise": torch.randn(batch, self.size, generator=generator)}

    def train_pass(self, x: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        mean, log_variance = x.float().chunk(2, dim=-1)
        z = mean + (0.5 * log_variance).exp() * draws["noise"]
        return z, {"divergence": self.weight * self.divergence(x).sum(-1)}

    def latent(self, x: Tensor) -> Tensor:
        return x.chunk(2, dim=-1)[0]

    def codes(self, x: Tensor) -> Tensor:
        return torch.empty(len(x), 0, dtype=torch.long, device=x.device)

    def divergence(self, x: Tensor) -> Tensor:
        """(B, Z): KL(N(mean, variance) || N(0, 1)) of each number, in nats."""
        mean, log_variance = x.float().chunk(2, dim=-1)
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


class VectorQuantised(nn.Module):
    """N codes from one learned codebook, trained by noise substitution (NSVQ, Vali & Bäckström 2022).

    In training the error of quantisation is replaced by noise of the same length in a random direction: its gradient
    reaches both the inverse model and the codebook, with no loss of its own and no straight-through estimate. Codes
    that were hardly used are moved next to codes that were, as there.
    """

    used: Tensor
    steps: Tensor

    def __init__(self, config: LatentModelConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.codebook_size = config.codes
        self.size = self.inputs = config.tokens * config.size
        self.replace_every = config.replace_every
        self.codebook = nn.Parameter(torch.randn(config.codes, config.size))
        # Counted in the weights, so that a run that is resumed replaces the same codes at the same step.
        self.register_buffer("used", torch.zeros(config.codes, dtype=torch.long))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def draw(self, batch: int, generator: torch.Generator | None) -> Draws:
        return {"noise": torch.randn(batch, self.tokens, self.codebook.shape[1], generator=generator)}

    def train_pass(self, x: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        x_BND = x.float().unflatten(1, (self.tokens, -1))
        if self.training:
            self._replace_unused()
        code_BN = self.codes(x)
        if self.training:
            used = torch.bincount(code_BN.flatten(), minlength=self.codebook_size)
            if dist.is_initialized():
                dist.all_reduce(used)
            self.used += used
            self.steps += 1
        return substituted(x_BND, self.codebook[code_BN], draws["noise"]).flatten(1), {}

    def latent(self, x: Tensor) -> Tensor:
        return self.codebook[self.codes(x)].flatten(1)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        return torch.cdist(x.float().unflatten(1, (self.tokens, -1)), self.codebook[None]).argmin(-1)

    @torch.no_grad()
    def _replace_unused(self) -> None:
        step = int(self.steps)
        if step == 0 or step % self.replace_every:
            return
        few = self.used < 0.01 * self.used.float().mean()
        kept = self.codebook[~few]
        if few.any():
            # The same in every process: it depends on the step alone.
            generator = torch.Generator().manual_seed(step)
            chosen = torch.randint(len(kept), (int(few.sum()),), generator=generator)
            near = 0.01 * kept.std() * torch.randn(len(chosen), kept.shape[1], generator=generator).to(kept)
            self.codebook[few] = kept[chosen] + near
        self.used.zero_()


def substituted(x: Tensor, quantised: Tensor, noise: Tensor) -> Tensor:
    """x + |x - quantised| noise / |noise| over the last axis (Vali & Bäckström 2022)."""
    error = (x - quantised).norm(dim=-1, keepdim=True)
    return x + error * noise / noise.norm(dim=-1, keepdim=True)


class FiniteScalar(nn.Module):
    """Every number rounded to a few levels (FSQ, Mentzer et al. 2024): the codebook is all combinations of them.

    There is no code to learn, but where a number is at the end of its range no gradient brings it back, and one code is
    left in the end. So each is kept spread over the batch, as VICReg (Bardes et al. 2022) does it, with its mean too.
    A latent action is in [-1, 1]. One token.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, config: LatentModelConfig) -> None:
        super().__init__()
        self.size = self.inputs = len(config.levels)
        self.codebook_size = math.prod(config.levels)
        self.weight = config.spread
        levels = torch.tensor(config.levels)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", torch.cumprod(torch.cat([levels.new_ones(1), levels[:-1]]), 0), persistent=False)

    def draw(self, batch: int, generator: torch.Generator | None) -> Draws:
        return {}

    def train_pass(self, x: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        bounded = self.bound(x.float())
        straight_through = bounded + (bounded.round() - bounded).detach()
        return straight_through / (self.levels // 2), {"spread": self.weight * spread(x.float()).expand(len(x))}

    def latent(self, x: Tensor) -> Tensor:
        return self.bound(x.float()).round() / (self.levels // 2)

    def codes(self, x: Tensor) -> Tensor:
        place = self.bound(x.float()).round().long() + self.levels // 2  # 0 .. level - 1
        return (place * self.basis).sum(-1, keepdim=True)

    def bound(self, x: Tensor) -> Tensor:
        """(B, Z) -> numbers that round to as many whole ones as there are levels. The shift is for even numbers of
        levels, so that 0 stays 0."""
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset


def spread(x: Tensor) -> Tensor:
    """Of (B, Z): (mean)^2 + (1 - standard deviation)^2 over the batch of all processes, mean of the Z numbers."""
    moments = torch.stack([x.sum(0), x.square().sum(0), torch.full_like(x[0], len(x))])
    if dist.is_initialized():
        moments = all_reduce(moments)
    mean, square = moments[:2] / moments[2]
    deviation = (square - mean.square()).clamp(min=1e-6).sqrt()
    return (mean.square() + (1 - deviation).square()).mean()


BOTTLENECKS = {"gaussian": Gaussian, "vq": VectorQuantised, "fsq": FiniteScalar}
"""Name -> built from the configuration."""
