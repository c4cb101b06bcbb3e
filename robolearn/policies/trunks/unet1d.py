"""Convolutional U-Net over the time axis of a chunk, after Chi et al. 2023 (Diffusion Policy), appendix A.

Shape letters: see contracts.py; E width of the condition, W width of a level, L length of a level (T, T/2, ...).
Time is given per token. Where it is the same for all tokens it has length 1 and costs nothing extra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robolearn.policies.contracts import Context
from robolearn.policies.trunks.embedding import TimeFeatures


@dataclass(frozen=True)
class UNet1dConfig:
    """Convolutional U-Net over time."""

    kind: Literal["unet1d"] = "unet1d"
    widths: tuple[int, ...] = (64, 128, 256)
    """Channels of each level; the length halves between levels. (256, 512, 1024) is the published size."""
    kernel: int = 5
    condition: int = 128
    """Width of the embedding of time and observation that modulates every block."""
    conditioning: Literal["sum", "concatenate"] = "sum"
    """sum: the observation is embedded too, and added to the embedding of time; concatenate: the observation as it is
    beside the embedding of time, as published, with weights in every block for each of its numbers."""
    groups: int = 8


class UNet1d(nn.Module):
    """(noisy chunk (B, T, A), time (B, 1) or (B, T), context) -> (B, T, A)."""

    def __init__(
        self, actions: int, tokens: int, token_width: int, config: UNet1dConfig, *, spans: bool = False
    ) -> None:
        super().__init__()
        widths, e = config.widths, config.condition
        self.divisor = 2 ** (len(widths) - 1)
        self.sums = config.conditioning == "sum"
        hidden = 2 * e if self.sums else 4 * e
        self.time_features = TimeFeatures(e, spans=spans)
        self.embed_time = nn.Sequential(nn.Linear(e, hidden), nn.SiLU(), nn.Linear(hidden, e))
        self.embed_span = nn.Sequential(nn.Linear(e, hidden), nn.SiLU(), nn.Linear(hidden, e)) if spans else None
        self.embed_context = nn.Linear(tokens * token_width, e) if self.sums else nn.Identity()
        conditions = e if self.sums else e + tokens * token_width

        def block(inputs: int, outputs: int) -> FiLMBlock:
            return FiLMBlock(inputs, outputs, conditions, config.kernel, config.groups)

        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            resample = nn.Identity() if last else nn.Conv1d(width, width, 3, stride=2, padding=1)
            self.down.append(
                nn.ModuleList([block(actions if i == 0 else widths[i - 1], width), block(width, width), resample])
            )
        self.middle = nn.ModuleList([block(widths[-1], widths[-1]), block(widths[-1], widths[-1])])
        self.up = nn.ModuleList()
        for inputs, width in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
            self.up.append(
                nn.ModuleList(
                    [block(2 * inputs, width), block(width, width), nn.ConvTranspose1d(width, width, 4, 2, 1)]
                )
            )
        self.final = nn.Sequential(
            nn.Conv1d(widths[0], widths[0], config.kernel, padding=config.kernel // 2),
            nn.GroupNorm(config.groups, widths[0]),
            nn.SiLU(),
            nn.Conv1d(widths[0], actions, 1),
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Context,
        *,
        until: Tensor | None = None,
        features: list[Tensor] | None = None,
    ) -> Tensor:
        length = x.shape[1]
        pad = -length % self.divisor
        time = self.embed_time(self.time_features(t))
        if self.embed_span is not None:
            time = time + self.embed_span(self.time_features((1 if until is None else until) - t))
        context_BEL = self.embed_context(context.vector)[..., None]
        if self.sums:
            condition_BEL = time.mT + context_BEL
        else:
            condition_BEL = torch.cat([time.mT, context_BEL.expand(-1, -1, time.shape[1])], dim=1)
        h_BWL = F.pad(x.mT, (0, pad), mode="replicate") if pad else x.mT
        if pad and condition_BEL.shape[-1] > 1:
            condition_BEL = F.pad(condition_BEL, (0, pad), mode="replicate")
        conditions = [condition_BEL]  # one for each level's length
        skips: list[Tensor] = []
        for first, second, resample in self.down:  # pyright: ignore[reportGeneralTypeIssues]
            h_BWL = second(first(h_BWL, conditions[-1]), conditions[-1])
            skips.append(h_BWL)
            h_BWL = resample(h_BWL)
            conditions.append(_shorter(conditions[-1], h_BWL.shape[-1]))
        if features is not None:
            features.extend(skips[:-1])
        for middle in self.middle:
            h_BWL = middle(h_BWL, conditions[-1])
        for level, (first, second, resample) in zip(range(len(self.up), 0, -1), self.up, strict=True):  # pyright: ignore[reportGeneralTypeIssues]
            h_BWL = torch.cat([h_BWL, skips[level]], dim=1)
            h_BWL = resample(second(first(h_BWL, conditions[level]), conditions[level]))
        return self.final(h_BWL)[..., :length].mT


class FiLMBlock(nn.Module):
    """Two convolutions with a shortcut; the condition scales and shifts between them (FiLM, Perez et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.SiLU()
        )
        self.second = nn.Sequential(
            nn.Conv1d(outputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.SiLU()
        )
        self.film = nn.Conv1d(condition, 2 * outputs, 1)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x_BWL: Tensor, condition_BEL: Tensor) -> Tensor:
        scale, shift = self.film(F.silu(condition_BEL)).chunk(2, dim=1)
        h_BWL = self.first(x_BWL) * (1 + scale) + shift
        return self.second(h_BWL) + self.shortcut(x_BWL)


def _shorter(condition_BEL: Tensor, length: int) -> Tensor:
    """The condition at a level of ``length``: tokens that the level merges are averaged."""
    if condition_BEL.shape[-1] in (1, length):
        return condition_BEL
    return F.adaptive_avg_pool1d(condition_BEL, length)
