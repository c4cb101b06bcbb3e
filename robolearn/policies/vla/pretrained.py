"""Vision-language models of transformers as backbones: SmolVLM2, PaliGemma, Qwen2.5-VL, Qwen3-VL.

A model is used as far as the keys and values of its language layers, which are run one by one with a mask of ours.
What differs between families is how pictures become tokens and where tokens stand: one small class each. A further
family is one more of them and an entry in ``FAMILIES``.

Shape letters: B batch, C channels, M text tokens, N prefix tokens, W token width, K heads of keys and values, E head
width, n tokens of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robolearn.policies.vla.config import PretrainedConfig, VlaError
from robolearn.policies.vla.prefix import PrefixShape

Size = tuple[int, int]


class PretrainedBackbone(nn.Module):
    """See ``Backbone`` in backbone.py."""

    checkpointing = False

    def __init__(self, model: Any, config: PretrainedConfig) -> None:
        """``model``: transformers' model without a language head; its unused layers are taken away."""
        super().__init__()
        self.model = model
        self.config = config
        text = model.config.get_text_config()
        if not 0 <= config.layers <= len(self._language.layers):
            raise VlaError(f"layers {config.layers}: {config.name} has {len(self._language.layers)}; 0 takes all")
        if config.layers:
            self._language.layers = self._language.layers[: config.layers]
        self.width = text.hidden_size
        self.causal = config.causal
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        rope = getattr(text, "rope_parameters", None) or {}
        theta = config.rope_theta or rope.get("rope_theta") or getattr(text, "rope_theta", 10_000.0)
        self.shape = PrefixShape(
            len(self._language.layers), text.num_attention_heads, text.num_key_value_heads, head_dim, float(theta)
        )
        self.pictures = FAMILIES[model.config.model_type](model, config.image_size)
        self.image_size = self.pictures.size

    @property
    def _language(self) -> Any:
        return self.model.text_model if hasattr(self.model, "text_model") else self.model.language_model

    @property
    def vision_modules(self) -> list[nn.Module]:
        return self.pictures.modules(self.model)

    @property
    def language(self) -> nn.Module:
        return self._language.layers

    def embed_image(self, pixels_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        dtype = next(self.model.parameters()).dtype
        tokens, extras = self.pictures(self.model, pixels_BCHW, dtype)
        return tokens * self.config.embedding_scale, extras

    def embed_text(self, ids_BM: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids_BM) * self.config.embedding_scale

    def positions(self, valid_BN: Tensor, images: int) -> tuple[Tensor, Tensor]:
        if self.pictures.grid is None or self.config.rope_theta:
            return valid_BN.cumsum(1) - 1, valid_BN.sum(1)
        return grid_positions(valid_BN, images, self.pictures.grid)

    def keys_values(
        self, tokens_BNW: Tensor, allowed_BNN: Tensor, position: Tensor, extras: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        rotation = self._rotation(tokens_BNW, position)
        mask = allowed_BNN.unsqueeze(1)
        keys, values, h = [], [], tokens_BNW
        for number, layer in enumerate(self._language.layers):
            last = number == self.shape.layers - 1
            run = _run_attention if last else _run_layer
            if self.checkpointing and torch.is_grad_enabled():
                h, k, v = checkpoint(run, layer, h, mask, rotation, use_reentrant=False)
            else:
                h, k, v = run(layer, h, mask, rotation)
            if number < len(extras):
                h = h + extras[number].to(h.dtype)
            keys.append(k)
            values.append(v)
        return keys, values

    def _rotation(self, like: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, N, E)."""
        if not self.config.rope_theta:
            return self._language.rotary_emb(like, position)
        half = self.shape.head_dim // 2
        dtype = torch.promote_types(like.dtype, torch.float32)
        frequency = self.shape.rope_theta ** -(torch.arange(half, device=like.device, dtype=dtype) / half)
        angle = (position.unsqueeze(-1).to(dtype) * frequency).repeat(1, 1, 2)
        return angle.cos().to(like.dtype), angle.sin().to(like.dtype)

    def freeze_unused(self) -> None:
        last = self._language.layers[-1]
        used = (last.input_layernorm, last.self_attn.k_proj, last.self_attn.v_proj)
        used = [*used, getattr(last.self_attn, "k_norm", None)]
        keep = {id(p) for part in used if part is not None for p in part.parameters() if p.requires_grad}
        pooling = getattr(self.vision_modules[0], "head", None)  # SigLIP's, for one vector of a whole picture
        for part in (last, self._language.norm, pooling):
            for parameter in part.parameters() if part is not None else ():
                parameter.requires_grad_(id(parameter) in keep)

    def save_assets(self, folder: Path) -> None:
        self.model.config.save_pretrained(folder)


class _Recorder:
    """Stands where a layer expects its cache, and keeps what it is given."""

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.key, self.value = key, value
        return key, value


def _run_layer(layer: Any, h: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    recorder = _Recorder()
    h = layer(h, attention_mask=mask, past_key_values=recorder, use_cache=True, position_embeddings=rotation)
    return h, recorder.key, recorder.value


def _run_attention(
    layer: Any, h: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``_run_layer`` where only keys and values are wanted."""
    recorder = _Recorder()
    layer.self_attn(
        layer.input_layernorm(h), attention_mask=mask, past_key_values=recorder, position_embeddings=rotation
    )
    return h, recorder.key, recorder.value


def grid_positions(valid_BN: Tensor, images: int, grid: Size) -> tuple[Tensor, Tensor]:
    """Positions (3, B, N) of Qwen-VL: a picture's tokens stand at (begin, begin + row, begin + column), what follows
    it begins after its longer side; text stands at the same number thrice. And the next position (B,)."""
    rows, columns = grid
    n = rows * columns
    place = torch.zeros(3, valid_BN.shape[1], dtype=torch.long, device=valid_BN.device)
    row = torch.arange(rows, device=valid_BN.device).repeat_interleave(columns)
    column = torch.arange(columns, device=valid_BN.device).repeat(rows)
    for image in range(images):
        begin = image * max(rows, columns)
        place[:, image * n : (image + 1) * n] = begin + torch.stack([torch.zeros_like(row), row, column])
    text = valid_BN[:, images * n :].cumsum(1) - 1 + images * max(rows, columns)
    position = place.unsqueeze(1).repeat(1, len(valid_BN), 1)
    position[:, :, images * n :] = text
    return position, text[:, -1] + 1


class _Siglip:
    """SmolVLM2 and PaliGemma: a square of fixed size, through the picture encoder and a projection."""

    grid = None

    def __init__(self, model: Any, image_size: int) -> None:
        fixed = model.config.vision_config.image_size
        if image_size not in (0, fixed):
            raise VlaError(
                f"image_size {image_size}: this backbone's pictures have {fixed} pixels a side; leave it out"
            )
        self.size: int = fixed

    def modules(self, model: Any) -> list[nn.Module]:
        if hasattr(model, "connector"):
            return [model.vision_model, model.connector]
        return [model.vision_tower, model.multi_modal_projector]

    def __call__(self, model: Any, pixels_BCHW: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        encoder, projection = self.modules(model)
        seen = encoder(pixel_values=(pixels_BCHW / 127.5 - 1).to(dtype))
        return projection(seen.last_hidden_state), []


class _Qwen:
    """Qwen2.5-VL and Qwen3-VL: squares of any size, cut into patches that come in blocks of 2 x 2."""

    def __init__(self, model: Any, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        vision = model.config.vision_config
        self._patch, self._merge, self._times = (
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
        )
        step = self._patch * self._merge
        self.size = image_size or max(224 // step, 1) * step
        if self.size % step:
            raise VlaError(f"image_size {self.size}: a multiple of {step} is needed (patches of this backbone)")
        self.grid: Size = (self.size // step, self.size // step)
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))

    def modules(self, model: Any) -> list[nn.Module]:
        return [model.visual]

    def __call__(self, model: Any, pixels_BCHW: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        batch = len(pixels_BCHW)
        mean, std = self._mean.to(pixels_BCHW), self._std.to(pixels_BCHW)
        patches = self._patches((pixels_BCHW / 255 - mean) / std).to(dtype)
        side = self.size // self._patch
        grid = torch.tensor([[1, side, side]], device=patches.device).expand(batch, -1)
        seen = model.visual(patches, grid_thw=grid)
        extras = [e.unflatten(0, (batch, -1)) for e in getattr(seen, "deepstack_features", None) or []]
        return seen.pooler_output.unflatten(0, (batch, -1)), extras

    def _patches(self, x_BCHW: Tensor) -> Tensor:
        """(B * patches, C * times * patch * patch): a still picture is repeated in time; blocks of merge x merge
        patches follow each other."""
        m, p = self._merge, self._patch
        x = x_BCHW.unflatten(3, (-1, m, p)).unflatten(2, (-1, m, p))  # B C gh m p gw m p
        x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B gh gw m m C p p
        x = x.unsqueeze(6).expand(*x.shape[:6], self._times, p, p)
        return x.flatten(0, 4).flatten(1)


_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

FAMILIES: dict[str, Callable[[Any, int], Any]] = {
    "smolvlm": _Siglip,
    "paligemma": _Siglip,
    "qwen2_5_vl": lambda model, size: _Qwen(model, size, *_CLIP),
    "qwen3_vl": lambda model, size: _Qwen(model, size, *_HALF),
}
"""transformers' model_type -> how its pictures become tokens."""
