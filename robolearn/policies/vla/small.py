"""A vision-language backbone of ours, small enough to train from nothing on a CPU. Words are bytes.

Shape letters: B batch, N tokens, W width, C channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robolearn.policies.vla.attention import GatedMlp, RmsNorm, attend, heads, rotate
from robolearn.policies.vla.config import SmallConfig, VlaError
from robolearn.policies.vla.prefix import PrefixShape

THETA = 10_000.0


class SmallBackbone(nn.Module):
    """See ``Backbone`` in backbone.py."""

    causal = False
    checkpointing = False

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        if config.heads % config.kv_heads or config.head_dim % 2:
            raise VlaError("heads must be a multiple of kv_heads, and head_dim even")
        if config.image_size < 16 or config.image_size % 16:
            raise VlaError(f"image_size of the small backbone must be a multiple of 16, got {config.image_size}")
        w, side = config.width, config.image_size // 16
        self.width = w
        self.image_size = config.image_size
        self.shape = PrefixShape(config.layers, config.heads, config.kv_heads, config.head_dim, THETA)
        self.vision = _pictures(w)
        self.image_place = nn.Parameter(0.02 * torch.randn(side * side, w))
        self.embed = nn.Embedding(256, w)
        self.layers = nn.ModuleList(_Layer(config, last=i == config.layers - 1) for i in range(config.layers))

    @property
    def vision_modules(self) -> list[nn.Module]:
        return [self.vision]

    @property
    def language(self) -> nn.Module:
        return self.layers

    def embed_image(self, pixels_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.vision(pixels_BCHW.to(self.image_place) / 127.5 - 1.0)
        return x.flatten(2).transpose(1, 2) + self.image_place, []

    def embed_text(self, ids_BM: Tensor) -> Tensor:
        return self.embed(ids_BM)

    def positions(self, valid_BN: Tensor, images: int) -> tuple[Tensor, Tensor]:
        return valid_BN.cumsum(1) - 1, valid_BN.sum(1)

    def keys_values(
        self, tokens_BNW: Tensor, allowed_BNN: Tensor, position: Tensor, extras: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        keys, values, h = [], [], tokens_BNW
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                h, k, v = checkpoint(layer, h, allowed_BNN, position, use_reentrant=False)
            else:
                h, k, v = layer(h, allowed_BNN, position)
            keys.append(k)
            values.append(v)
        return keys, values

    def save_assets(self, folder: Path) -> None:
        pass


def _pictures(width: int) -> nn.Sequential:
    """(B, 3, H, W) -> (B, width, H / 16, W / 16): patches of 4 x 4 pixels, then two convolutions of stride 2."""
    layers: list[nn.Module] = []
    for inputs, outputs, kernel, stride in ((3, 32, 4, 4), (32, 64, 3, 2), (64, 128, 3, 2)):
        layers += [
            nn.Conv2d(inputs, outputs, kernel, stride, 0 if kernel == stride else 1),
            nn.GroupNorm(8, outputs),
            nn.SiLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(128, width, 1))


class _Layer(nn.Module):
    """(tokens, keys, values) of tokens. The last layer has nothing after its keys and values: nobody reads it."""

    def __init__(self, config: SmallConfig, *, last: bool) -> None:
        super().__init__()
        w, e = config.width, config.head_dim
        self.head_dim = e
        self.last = last
        self.norm = RmsNorm(w)
        self.k_proj = nn.Linear(w, config.kv_heads * e, bias=False)
        self.v_proj = nn.Linear(w, config.kv_heads * e, bias=False)
        if not last:
            self.q_proj = nn.Linear(w, config.heads * e, bias=False)
            self.o_proj = nn.Linear(config.heads * e, w, bias=False)
            self.mlp_norm = RmsNorm(w)
            self.mlp = GatedMlp(w, config.mlp)

    def forward(self, h: Tensor, allowed: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.norm(h)
        k = rotate(heads(self.k_proj(x), self.head_dim), position, THETA)
        v = heads(self.v_proj(x), self.head_dim)
        if self.last:
            return h, k, v
        q = rotate(heads(self.q_proj(x), self.head_dim), position, THETA)
        h = h + self.o_proj(attend(q, k, v, allowed))
        return h + self.mlp(self.mlp_norm(h)), k, v
