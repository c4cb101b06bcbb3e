"""SmolVLA (Shukor et al. 2025): its sizes, and the names of its published weights in ours.

The published checkpoint is lerobot/smolvla_base at huggingface.co (Apache-2.0), 500 tensors, 450,046,176 parameters.
Three things differ beside names: its time runs from the data (0) to the noise (1), so that its velocity is ours with
the other sign (the head's weights change theirs); it has a language head, which predicts no action; and a norm after
the last language layer, and in that layer all but keys and values, which nothing reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from robolearn.policies.config import PolicyConfig
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.vla.config import PretrainedConfig, VlaConfig

NAME = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
_EXPERT = "model.vlm_with_expert.lm_expert."
_VLM = "model.vlm_with_expert.vlm."

_RULES: tuple[tuple[str, str], ...] = (
    (r"model\.action_in_proj\.(weight|bias)", r"trunk.embed_action.\1"),
    (r"model\.action_out_proj\.(weight|bias)", r"trunk.head.\1"),
    (r"model\.action_time_mlp_in\.(weight|bias)", r"trunk.embed_time.0.\1"),
    (r"model\.action_time_mlp_out\.(weight|bias)", r"trunk.embed_time.2.\1"),
    (r"model\.state_proj\.(weight|bias)", r"encoder.embed_state.\1"),
    (rf"{re.escape(_EXPERT)}norm\.weight", r"trunk.norm.weight.weight"),
    (rf"{re.escape(_EXPERT)}layers\.(\d+)\.input_layernorm\.weight", r"trunk.layers.\1.norm.weight.weight"),
    (
        rf"{re.escape(_EXPERT)}layers\.(\d+)\.post_attention_layernorm\.weight",
        r"trunk.layers.\1.mlp_norm.weight.weight",
    ),
    (rf"{re.escape(_EXPERT)}layers\.(\d+)\.self_attn\.([qkvo]_proj)\.weight", r"trunk.layers.\1.\2.weight"),
    (rf"{re.escape(_EXPERT)}layers\.(\d+)\.mlp\.(\w+_proj)\.weight", r"trunk.layers.\1.mlp.\2.weight"),
    (rf"{re.escape(_VLM)}model\.(.+)", r"encoder.backbone.model.\1"),
)
_UNUSED = (f"{_VLM}lm_head.weight",)
_SETTINGS: dict[str, object] = {
    "adapt_to_pi_aloha": False,
    "add_image_special_tokens": False,
    "attention_mode": "cross_attn",
    "max_action_dim": 32,
    "max_period": 4.0,
    "max_state_dim": 32,
    "min_period": 4e-3,
    "normalization_mapping": {"ACTION": "MEAN_STD", "STATE": "MEAN_STD", "VISUAL": "IDENTITY"},
    "self_attn_every_n_layers": 2,
}
"""Of its config.json, what changes the policy and not the shapes of its weights; as ``policy_config`` has it."""


def policy_config() -> PolicyConfig:
    """What the published checkpoint was made with; its action chunk has 50 steps."""
    trunk = VlaConfig(
        backbone=PretrainedConfig(
            name=NAME, layers=16, rope_theta=10_000.0, embedding_scale=math.sqrt(960), dtype="float32"
        ),
        learn="expert",
        width=720,
        mlp=2048,
        time="mlp",
        actions="causal",
        places=False,
        cross_every=2,
        crop=1.0,
        antialias=False,
        padding="noise",
        max_text=48,
        max_state=32,
        max_action=32,
    )
    return PolicyConfig(
        objective=FlowConfig(time="beta"),
        trunk=trunk,
        obs_horizon=1,
        horizon=50,
        action_horizon=50,
        normalisation="mean-std",
    )


def our_name(published: str) -> str | None:
    """The name of a published tensor in a ``Policy``; None for what has no use here.

    Raises:
        KeyError: no tensor of SmolVLA.
    """
    if published in _UNUSED:
        return None
    for pattern, name in _RULES:
        if re.fullmatch(pattern, published):
            return re.sub(pattern, name, published)
    raise KeyError(published)


def our_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors under our names. Raises KeyError as ``our_name`` does."""
    found = {our_name(name): value for name, value in published.items()}
    weights = {name: value for name, value in found.items() if name is not None}
    return {name: -value if name.startswith("trunk.head.") else value for name, value in weights.items()}


def check_settings(settings: Mapping[str, object], image_size: int) -> None:
    """That a checkpoint's config.json says of it what ``policy_config`` does, as far as it says it.

    Args:
        image_size: px, of the backbone.

    Raises:
        ValueError: it names the first setting that differs.
    """
    for name, value in {**_SETTINGS, "resize_imgs_with_padding": [image_size, image_size]}.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name} is {settings[name]!r}; with this backbone only {value!r} is known here")


def is_published(names: set[str]) -> bool:
    """Whether a file of these tensors is a SmolVLA of LeRobot."""
    return any(name.startswith(_EXPERT) for name in names)
