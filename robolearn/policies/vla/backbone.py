"""What a vision-language backbone offers, how one is made, and which of its weights are trained.

Shape letters: B batch, C channels, M text tokens, N prefix tokens, W token width, K heads of keys and values, E head
width, n tokens of a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from torch import Tensor, nn

from robolearn.policies.vla.config import SmallConfig, VlaConfig, VlaError
from robolearn.policies.vla.prefix import PrefixShape
from robolearn.policies.vla.small import SmallBackbone
from robolearn.policies.vla.text import OwnTokeniser, Tokeniser


class Backbone(Protocol):
    """A vision-language model as far as its keys and values. Also an nn.Module."""

    width: int
    """W."""
    image_size: int
    """Side, px, of the pictures it is shown."""
    shape: PrefixShape
    causal: bool
    """Pictures and text see only what comes before them."""
    checkpointing: bool
    """Compute layers again in the backward pass."""

    @property
    def vision_modules(self) -> list[nn.Module]:
        """What is of the picture encoder."""
        ...

    @property
    def language(self) -> nn.Module:
        """The language layers."""
        ...

    def embed_image(self, pixels_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Pixels 0..255 of ``image_size`` -> tokens (B, n, W), and what some layers add to them, (B, n, W) each."""
        ...

    def embed_text(self, ids_BM: Tensor) -> Tensor:
        """(B, M, W)."""
        ...

    def positions(self, valid_BN: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """Rotary positions of a prefix that begins with so many pictures, in the form that ``keys_values`` takes, and
        the position (B,) of what comes after it."""
        ...

    def keys_values(
        self, tokens_BNW: Tensor, allowed_BNN: Tensor, position: Tensor, extras: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values (B, K, N, E) of each layer.

        Args:
            allowed_BNN: whether a token sees another.
            extras: (B, N, W) each, added to the output of the first layers.
        """
        ...

    def freeze_unused(self) -> None:
        """Do not train what keys and values do not depend on: several processes trip over missing gradients."""
        ...

    def save_assets(self, folder: Path) -> None:
        """Put what is needed to make it again, but its weights, into ``folder``."""
        ...


def make_backbone(config: VlaConfig, assets: Path | None, *, pictures: bool) -> tuple[Backbone, Tokeniser]:
    """The backbone with its tokeniser; with published weights, unless ``assets`` gives its configuration.

    Args:
        assets: the folder of a checkpoint, whose weights will be loaded.
        pictures: whether there are any to see.

    Raises:
        VlaError: an impossible configuration, weights that cannot be had, or a missing extra.
    """
    part = config.backbone
    if isinstance(part, SmallConfig):
        backbone: Backbone = SmallBackbone(part, pictures=pictures)
        tokeniser: Tokeniser = OwnTokeniser(part.text, config.max_text)
    else:
        from robolearn.policies.vla.loading import load_backbone

        weights = assets is None and not config.start_from
        backbone, tokeniser = load_backbone(part, config.max_text, assets, weights=weights)
    backbone.checkpointing = config.checkpointing
    _choose_learned(backbone, config, pictures=pictures)
    backbone.freeze_unused()
    return backbone, tokeniser


def _choose_learned(backbone: Backbone, config: VlaConfig, *, pictures: bool) -> None:
    module = cast(nn.Module, backbone)
    if config.learn in ("expert", "lora"):
        module.requires_grad_(False)
    if config.learn == "lora":
        _add_lora(backbone.language, config.lora_rank)
    if config.learn == "language" or not pictures:
        for part in backbone.vision_modules:
            part.requires_grad_(False)


def _add_lora(language: nn.Module, rank: int) -> None:
    """Low-rank adapters (Hu et al. 2021) on every projection of the language layers; they begin as zero."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise VlaError(
            "learn: lora needs peft; `pip install robolearn[vla]`, or learn expert, language or all"
        ) from error
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    found = {n.rpartition(".")[2] for n, m in language.named_modules() if isinstance(m, nn.Linear)}
    adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(found & names))
    inject_adapter_in_model(adapters, language)
    for parameter in language.parameters():
        if parameter.requires_grad:  # small changes of what is learned would be lost in bfloat16
            parameter.data = parameter.data.float()
