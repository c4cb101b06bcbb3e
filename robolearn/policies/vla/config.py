"""What can be chosen of a vision-language-action (VLA) trunk: a backbone, how it is trained, and an action expert."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Discriminator

from robolearn_data.schema import UserError

TINY = "tiny-"
"""Before the name of a family: random weights of a few thousand parameters, words as bytes."""


class VlaError(UserError):
    """A VLA cannot be built, loaded, or told what it was told."""


@dataclass(frozen=True)
class SmallConfig:
    """A backbone of ours that trains from nothing on a small machine: a CNN, bytes or words, a few layers."""

    kind: Literal["small"] = "small"
    width: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    """Heads of keys and values, each shared by heads / kv_heads queries."""
    head_dim: int = 48
    mlp: int = 512
    """Hidden width of the feed-forward part."""
    image_size: int = 96
    """Side, px, that pictures are brought to; a multiple of 16. Gives (image_size / 16)^2 tokens a picture."""
    text: Literal["bytes", "words"] = "bytes"
    """What a token of a text is. Words are a fifth as many and quicker to learn from; what is not among those of the
    training data says nothing, not even by its letters."""


@dataclass(frozen=True)
class PretrainedConfig:
    """A backbone of transformers: SmolVLM2, PaliGemma, Qwen2.5-VL or Qwen3-VL. Needs `pip install robolearn[vla]`."""

    kind: Literal["pretrained"] = "pretrained"
    name: str = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
    """Repository at huggingface.co, a folder of one, or tiny-FAMILY: random weights of a few thousand parameters to
    try things with, FAMILY one of smolvlm, paligemma, qwen2_5_vl, qwen3_vl."""
    revision: str = ""
    """Branch, tag or commit of the repository; empty: the newest."""
    layers: int = 0
    """Use the first so many language layers (SmolVLA: 16 of 32); 0: all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which its weights are kept. bfloat16 halves the memory and suits a frozen backbone."""
    image_size: int = 0
    """Side, px, that pictures are brought to, for the Qwen families; 0: 224. The others' size is fixed."""
    causal: bool = False
    """Pictures and text see only what comes before, as in language modelling; else all of each other (pi0)."""
    rope_theta: float = 0.0
    """Base of the rotary positions, if another than the backbone's own is wanted (SmolVLA: 10000); 0: its own."""
    embedding_scale: float = 1.0
    """Factor on picture and text tokens (SmolVLA: the square root of the width)."""


BackboneConfig = Annotated[SmallConfig | PretrainedConfig, Discriminator("kind")]


@dataclass(frozen=True)
class VlaConfig:
    """A vision-language backbone and an action expert that attends to its keys and values (pi0, SmolVLA)."""

    kind: Literal["vla"] = "vla"
    backbone: BackboneConfig = field(default_factory=SmallConfig)
    learn: Literal["all", "language", "lora", "expert"] = "all"
    """What is trained beside expert and state token: the backbone; all of it but its picture encoder; low-rank
    adapters (LoRA) in its language layers; nothing."""
    lora_rank: int = 16
    checkpointing: bool = False
    """Compute the backbone's layers again in the backward pass instead of keeping what they computed."""
    width: int = 128
    """Of the action expert."""
    mlp: int = 384
    """Hidden width of its feed-forward parts."""
    time: Literal["adarms", "mlp"] = "adarms"
    """How the denoising time enters: scales, shifts and gates of every layer (pi0.5), or joined with each action
    (pi0, SmolVLA)."""
    actions: Literal["full", "causal"] = "full"
    """Whether an action sees all actions of the chunk, or those before it (SmolVLA)."""
    places: bool = True
    """Add sines of an action's place in the chunk to its token; without, rotary positions alone tell (pi0, SmolVLA)."""
    cross_every: int = 0
    """n: of n layers in a row the first attends to backbone and actions together, the others to the backbone alone,
    whose keys and values they project anew (SmolVLA: 2). 0: all attend to both (pi0)."""
    state: Literal["token", "text"] = "token"
    """State streams as one token for each observation, or as numbers in the text (pi0.5)."""
    crop: float = 0.92
    """Side of what is seen of a picture, as a part of it: at random in training, the middle otherwise. 1: all of it."""
    antialias: bool = True
    """Average pixels where a picture is made smaller by more than two; without, single ones are picked (SmolVLA)."""
    max_text: int = 64
    """Tokens of an instruction (bytes or words with the small backbone), with state as text included."""
    max_state: int = 32
    """Components that a state token has room for; what an embodiment lacks is zero."""
    max_action: int = 32
    """Components that an action has room for."""
    padding: Literal["zeros", "noise"] = "zeros"
    """What a noisy chunk has in components that an action lacks: zeros, or noise, which is denoised to zeros and counts
    in the loss (pi0, SmolVLA)."""
    start_from: str = ""
    """Folder of a trained VLA whose weights training starts from: a checkpoint of ours with the same parts, for any
    robot that fits max_state and max_action; or lerobot/smolvla_base as downloaded (see vla/smolvla.py)."""

    def __post_init__(self) -> None:
        if min(self.max_text, self.max_state, self.max_action, self.width, self.mlp, self.lora_rank) < 1:
            raise VlaError("max_text, max_state, max_action, width, mlp and lora_rank must be at least 1")
        if not 0 < self.crop <= 1:
            raise VlaError(f"crop must be above 0 and at most 1 (all of a picture), got {self.crop}")
        if self.cross_every < 0:
            raise VlaError("cross_every must be 0 (no layers of cross-attention) or the period of joint layers")
        if self.width % 2:
            raise VlaError(f"the expert's width must be even, got {self.width}")
