"""Instructions as tokens. B batch, M tokens of a text (the most that fit)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from robolearn.policies.vla.config import VlaError
from robolearn.policies.vla.length import OwnUnit, prompt, tokens_of


class Tokeniser(Protocol):
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token numbers (B, M), and which of them count (B, M) bool.

        Raises:
            VlaError: a text does not fit.
        """
        ...

    def save_assets(self, folder: Path) -> None:
        """Put what is needed to make it again into ``folder``."""
        ...


class OwnTokeniser:
    """Of the small backbone: a token is a byte of UTF-8, or a word."""

    def __init__(self, unit: OwnUnit, most: int) -> None:
        self.unit: OwnUnit = unit
        self.most = most

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return padded([tokens_of(self.unit, text) for text in texts], texts, self.most)

    def save_assets(self, folder: Path) -> None:
        pass


class PretrainedTokeniser:
    """One of transformers."""

    def __init__(self, tokeniser: Any, most: int) -> None:
        self.tokeniser = tokeniser
        self.most = most
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        if len(self._known) > 10_000:  # with state as text every prompt is a new one
            self._known.clear()
        for text in texts:
            if text not in self._known:
                self._known[text] = self.tokeniser(text)["input_ids"]
        return padded([self._known[text] for text in texts], texts, self.most)

    def save_assets(self, folder: Path) -> None:
        self.tokeniser.save_pretrained(folder)


def padded(found: Sequence[Sequence[int]], texts: Sequence[str], most: int) -> tuple[Tensor, Tensor]:
    """Token numbers with zeros after them (B, most), and which of them count.

    Raises:
        VlaError: one does not fit; the message quotes it.
    """
    ids = torch.zeros(len(found), most, dtype=torch.long)
    valid = torch.zeros(len(found), most, dtype=torch.bool)
    for row, (numbers, text) in enumerate(zip(found, texts, strict=True)):
        if len(numbers) > most:
            short = text if len(text) <= 60 else f"{text[:57]}..."
            raise VlaError(
                f"the prompt {short!r} has {len(numbers)} tokens, the policy takes {most}: say it shorter, or train "
                f"with --policy.trunk.max-text {len(numbers)}"
            )
        ids[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        valid[row, : len(numbers)] = True
    return ids, valid


def prompts(texts: Sequence[str], state_BS: Tensor | None) -> list[str]:
    """What is tokenised, see ``prompt``; ``state`` (B, S) in [-1, 1] where it is usual."""
    if state_BS is None:
        return [prompt(text, []) for text in texts]
    numbers = ((state_BS.float().clamp(-1, 1) + 1) * 127.5).round().int().tolist()
    return [prompt(text, row) for text, row in zip(texts, numbers, strict=True)]
