"""Transformer decoder over the actions of a chunk: self-attention, cross-attention to the context, time by adaLN-zero.

Shape letters: see contracts.py; D width. After Peebles & Xie 2023 (DiT) with the context as cross-attention memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robolearn.policies.attention import attention
from robolearn.policies.contracts import Context
from robolearn.policies.trunks.embedding import TimeFeatures, sinusoid


@dataclass(frozen=True)
class TransformerConfig:
    """Transformer decoder with one token for each action."""

    kind: Literal["transformer"] = "transformer"
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_ratio: int = 4


class Transformer(nn.Module):
    """(noisy chunk (B, T, A), time (B, 1) or (B, T), context) -> (B, T, A)."""

    position: Tensor
    context_position: Tensor

    def __init__(
        self, actions: int, tokens: int, token_width: int, config: TransformerConfig, *, spans: bool = False
    ) -> None:
        super().__init__()
        d = config.width
        self.width = d
        self.embed_action = nn.Linear(actions, d)
        self.embed_context = nn.Linear(token_width, d)
        self.context_place = nn.Parameter(0.02 * torch.randn(tokens, d))
        self.time_features = TimeFeatures(d, spans=spans)
        self.embed_time = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.embed_span = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d)) if spans else None
        self.blocks = nn.ModuleList(_Block(d, config.heads, config.mlp_ratio) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(d, elementwise_affine=False)
        self.final_film = nn.Linear(d, 2 * d)
        self.head = nn.Linear(d, actions)
        for layer in (self.final_film, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Context,
        *,
        until: Tensor | None = None,
        features: list[Tensor] | None = None,
    ) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        h_BTD = self.embed_action(x) + sinusoid(place, self.width, min_period=2.0, max_period=1000.0)
        memory_BND = self.embed_context(context.tokens) + self.context_place
        # The time token carries the observation too, so that it modulates every layer from the first step on.
        time = self.embed_time(self.time_features(t))
        if self.embed_span is not None:
            time = time + self.embed_span(self.time_features((1 if until is None else until) - t))
        c_BTD = F.silu(time + memory_BND.mean(1, keepdim=True))
        for block in self.blocks:
            h_BTD = block(h_BTD, memory_BND, c_BTD)
            if features is not None:
                features.append(h_BTD)
        scale, shift = self.final_film(c_BTD).chunk(2, dim=-1)
        return self.head(self.final_norm(h_BTD) * (1 + scale) + shift)


class _Block(nn.Module):
    def __init__(self, d: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(d, elementwise_affine=False) for _ in range(3))
        self.self_attention = _Attention(d, heads)
        self.cross_attention = _Attention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, ratio * d), nn.GELU(approximate="tanh"), nn.Linear(ratio * d, d))
        self.film = nn.Linear(d, 9 * d)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, h_BTD: Tensor, memory_BND: Tensor, c_BTD: Tensor) -> Tensor:
        parts = self.film(c_BTD).chunk(9, dim=-1)
        for i, branch in enumerate((self.self_attention, self.cross_attention, self.mlp)):
            scale, shift, gate = parts[3 * i : 3 * i + 3]
            y_BTD = self.norms[i](h_BTD) * (1 + scale) + shift
            if i == 0:
                y_BTD = branch(y_BTD, y_BTD)
            elif i == 1:
                y_BTD = branch(y_BTD, memory_BND)
            else:
                y_BTD = branch(y_BTD)
            h_BTD = h_BTD + gate * y_BTD
        return h_BTD


class _Attention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)

    def forward(self, h_BTD: Tensor, memory_BND: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(h_BTD), *self.key_value(memory_BND).chunk(2, dim=-1))
        )
        y = attention(query, key, value)
        return self.out(y.transpose(1, 2).flatten(2))
