"""The asymmetric tokenizer of Reactive Diffusion Policy (Xue et al. 2025): actions -> latent -> actions.

The encoder sees the actions of a chunk, which a person demonstrated while feeling the force. The decoder gets the
latent and the force up to each instant. The latent is kept small by its divergence from a normal distribution, so that
what the force tells at its time is left to the decoder, which can then answer a force that the slow half knew nothing
of.

Shape letters: see contracts.py and readings.py; L tokens of a latent, Z numbers in a token, W = Z L / T, H features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from robolearn.policies.contracts import Draws
from robolearn.policies.reactive.config import ReactiveError, TokenizerConfig
from robolearn.policies.reactive.readings import ReadingBlocks
from robolearn.policies.spec import PolicySpec
from robolearn_data.statistics import StreamStatistics


class Tokenizer(nn.Module):
    """Actions are in normalised units here, (B, T, A)."""

    low: Tensor
    high: Tensor
    settled: Tensor

    def __init__(self, spec: PolicySpec, statistics: Mapping[str, StreamStatistics], config: TokenizerConfig) -> None:
        super().__init__()
        if spec.fast is None:
            raise ReactiveError(
                "a slow-fast policy needs force to read: name a stream with --feel, such as --feel wrench"
            )
        self.spec, self.config = spec, config
        self.ticks = spec.fast.ticks
        self.tokens, self.channels = spec.horizon // config.stride, config.channels
        """L, Z."""
        width, actions = config.width, spec.action.size
        halvings = config.stride.bit_length() - 1
        down: list[nn.Module] = [nn.Conv1d(actions, width, 5, padding=2), nn.SiLU()]
        up: list[nn.Module] = [nn.Conv1d(config.channels, width, 3, padding=1), nn.SiLU()]
        for _ in range(halvings):
            down += [nn.Conv1d(width, width, 5, stride=2, padding=2), nn.SiLU()]
            up += [nn.ConvTranspose1d(width, width, 4, stride=2, padding=1), nn.SiLU()]
        self.encoder = nn.Sequential(*down, nn.Conv1d(width, 2 * config.channels, 1))
        self.unfold = nn.Sequential(*up, nn.Conv1d(width, width, 5, padding=2))
        self.blocks = ReadingBlocks(spec.fast, spec.rate_hz, statistics)
        self.gru = nn.GRU(width + self.blocks.width, width, batch_first=True)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, actions))
        self.register_buffer("low", torch.full((config.channels,), -1.0))
        self.register_buffer("high", torch.full((config.channels,), 1.0))
        self.register_buffer("settled", torch.zeros((), dtype=torch.uint8))
        """1: it is trained and stays as it is, and the slow half is trained on its latents."""

    @property
    def shape(self) -> tuple[int, int]:
        """(L, Z) of a latent."""
        return self.tokens, self.channels

    def posterior(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the latent, (B, L, Z)."""
        mean, log_variance = self.encoder(action.mT).mT.float().chunk(2, dim=-1)
        return mean, log_variance.clamp(-12, 4)

    def losses(self, action: Tensor, observation: Mapping[str, Tensor], draws: Draws) -> dict[str, Tensor]:
        """Mean error of each action and of the ticks before it (B, T), and the latent's divergence, (B,).

        Between two actions the decoder shall say what lies between them. ``draws`` has "token_noise" (B, L, Z).
        """
        mean, log_variance = self.posterior(action)
        latent = mean + (0.5 * log_variance).exp() * draws["token_noise"]
        found = self.decode(self.features(latent), self.blocks.along_chunk(observation, self.ticks))  # (B, M, A)
        error = (found - _between(action, self.ticks)).abs().mean(-1)
        error = torch.cat([error[:, :1], error[:, 1:].unflatten(1, (-1, self.ticks)).mean(-1)], dim=1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2))
        return {"actions": error, "divergence": self.config.kl * divergence}

    def features(self, latent: Tensor) -> Tensor:
        """Latent (B, L, Z) -> what the decoder is told of it at each tick, (B, M, H)."""
        return _between(self.unfold(latent.mT).mT, self.ticks)

    def decode(self, features: Tensor, blocks: Tensor) -> Tensor:
        """Actions at the ticks (B, M, A): of each the block (B, M, R) of its tick and those before are known."""
        return self.decode_on(features, blocks, None)[0]

    def decode_on(self, features: Tensor, blocks: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same for some ticks in a row, from the recurrent ``state`` after those before; and the state after."""
        if not self.config.feels:
            blocks = torch.zeros_like(blocks)
        hidden, after = self.gru(torch.cat([features, blocks], dim=-1), state)
        return self.head(torch.cat([features, hidden], dim=-1)), after

    @torch.no_grad()
    def settle(self, actions: Iterable[Tensor]) -> None:
        """End its training. From here on the latents of all ``actions`` (., T, A) lie in [-1, 1] for the slow half."""
        low = torch.full_like(self.low, torch.inf)
        high = -low
        for action in actions:
            mean = self.posterior(action)[0].flatten(0, 1)
            low, high = torch.minimum(low, mean.amin(0)), torch.maximum(high, mean.amax(0))
        middle, half = (low + high) / 2, ((high - low) / 2).clamp(min=0.1)  # a channel that says nothing stays small
        self.low.copy_(middle - half)
        self.high.copy_(middle + half)
        self.settled.fill_(1)

    def latent(self, action: Tensor) -> Tensor:
        """The latent that the slow half shall predict, (B, L, Z) in [-1, 1]."""
        with torch.no_grad():
            return (self.posterior(action)[0] - self.low) / (self.high - self.low) * 2 - 1

    def rows(self, latent: Tensor) -> Tensor:
        """What ``latent`` gives as a chunk: (B, T, W), W numbers for each control step."""
        latent = (latent + 1) / 2 * (self.high - self.low) + self.low
        return latent.unflatten(2, (self.config.stride, -1)).flatten(1, 2)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Chunk (B, T, W) -> the latent (B, L, Z) that ``features`` takes."""
        return rows.unflatten(1, (self.tokens, self.config.stride)).flatten(2)


def _between(values: Tensor, ticks: int) -> Tensor:
    """(B, T, .) at the control steps -> (B, M, .) at the ticks, on straight lines."""
    part = (torch.arange(ticks, device=values.device) / ticks)[None, None, :, None].to(values)
    lines = torch.lerp(values[:, :-1, None], values[:, 1:, None], part).flatten(1, 2)
    return torch.cat([lines, values[:, -1:]], dim=1)
