"""A vision-language backbone of ours, small enough to train from nothing on a CPU. Texts are bytes or words.

Shape letters: B batch, N tokens, W width, C channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robolearn.policies.vla.attention import GatedMlp, RmsNorm, attend, heads, rotate
from robolearn.policies.vla.config import SmallConfig, VlaError
from robolearn.policies.vla.length import WORDS
from robolearn.policies.vla.prefix import PrefixShape

THETA = 10_000.0


class SmallBackbone(nn.Module):
    """See ``Backbone`` in backbone.py."""

    causal = False
    checkpointing = False

    def __init__(self, config: SmallConfig, *, pictures: bool) -> None:
        """``pictures``: whether there are any to see."""
        super().__init__()
        if config.heads % config.kv_heads or config.head_dim % 2:
            raise VlaError("heads must be a multiple of kv_heads, and head_dim even")
        if config.image_size < 16 or config.image_size % 16:
            raise VlaError(f"image_size of the small backbone must be a multiple of 16, got {config.image_size}")
        w, side = config.width, config.image_size // 16
        self.width = w
        self.image_size = config.image_size
        self.shape = PrefixShape(config.layers, config.heads, config.kv_heads, config.head_dim, THETA)
        self.vision = _Pictures(w, side * side) if pictures else None
        self.embed = nn.Embedding(256 if config.text == "bytes" else WORDS, w)
        self.layers = nn.ModuleList(_Layer(config, last=i == config.layers - 1) for i in range(config.layers))

    @property
    def vision_modules(self) -> list[nn.Module]:
        return [] if self.vision is None else [self.vision]

    @property
    def language(self) -> nn.Module:
        return self.layers

    def embed_image(self, pixels_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        assert self.vision is not None
        return self.vision(pixels_BCHW), []

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

    def freeze_unused(self) -> None:
        pass

    def save_assets(self, folder: Path) -> None:
        pass


class _Pictures(nn.Module):
    """Pixels (B, 3, H, W) 0..255 -> tokens (B, H / 16 * W / 16, width): patches of 4 x 4 pixels, then two convolutions
    of stride 2, and a learned vector for each place."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in ((3, 32, 4, 4), (32, 64, 3, 2), (64, 128, 3, 2)):
            padding = 0 if kernel == stride else 1
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.GroupNorm(8, outputs), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Conv2d(128, width, 1))
        self.place = nn.Parameter(0.02 * torch.randn(places, width))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.net(pixels.to(self.place) / 127.5 - 1.0)
        return x.flatten(2).transpose(1, 2) + self.place


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
