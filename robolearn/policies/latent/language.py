"""The instruction, as a latent-action model is told it in its first stage.

Shape letters: B batch, U different instructions of one, M tokens of a text, T numbers that tell it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from robolearn.policies.latent.config import LatentError, LatentModelConfig
from robolearn.policies.vla.attention import attend
from robolearn.policies.vla.config import SmallConfig
from robolearn.policies.vla.length import OwnUnit, prompt, tokens_of
from robolearn.policies.vla.prefix import block_mask
from robolearn.policies.vla.small import SmallBackbone
from robolearn.policies.vla.text import OwnTokeniser, prompts
from robolearn_data.schema import read_text

STREAM = "instruction"

_HEADS, _HEAD_DIM = 2, 32


class InstructionEncoder(nn.Module):
    """A text -> T numbers: the small backbone of a VLA without pictures, and a learned query of what it made."""

    size = _HEADS * _HEAD_DIM
    """T."""

    def __init__(self, unit: OwnUnit, most: int) -> None:
        """``most``: M."""
        super().__init__()
        config = SmallConfig(
            width=self.size,
            layers=2,
            heads=_HEADS,
            kv_heads=_HEADS,
            head_dim=_HEAD_DIM,
            mlp=2 * self.size,
            text=unit,
        )
        self.tokenise = OwnTokeniser(unit, most)
        self.backbone = SmallBackbone(config, pictures=False)
        self.query = nn.Parameter(torch.randn(_HEADS, 1, _HEAD_DIM))

    def forward(self, said: Tensor) -> Tensor:
        """Samples of a text stream (B, bytes) -> (B, T). What several pairs were told is read once."""
        said, place = said.unique(dim=0, return_inverse=True)
        texts = [read_text(row) for row in said.cpu().numpy()]
        ids, valid = self.tokenise(prompts(texts, None))
        valid[:, 0] = True  # a token of padding says that nothing was said
        longest = int(valid.sum(1).max())
        ids, valid = (part[:, :longest].to(self.query.device) for part in (ids, valid))
        mask = block_mask(torch.zeros(ids.shape[1], device=ids.device), valid)
        position, _ = self.backbone.positions(valid, 0)
        keys, values = self.backbone.keys_values(self.backbone.embed_text(ids), mask, position, [])
        query = self.query.expand(len(ids), -1, -1, -1)
        return attend(query, keys[-1], values[-1], valid[:, None]).squeeze(1)[place]


def check_instructions(config: LatentModelConfig, texts: Iterable[str]) -> None:
    """Raises LatentError: one is longer than the model takes."""
    if config.language == "none":
        return
    for text in texts:
        count = len(tokens_of(config.language, prompt(text, [])))
        if count > config.max_text:
            short = text if len(text) <= 60 else f"{text[:57]}..."
            raise LatentError(
                f"the instruction {short!r} has {count} {config.language}, the model takes {config.max_text}: say it "
                f"shorter, or learn with --model.max-text {count}"
            )
