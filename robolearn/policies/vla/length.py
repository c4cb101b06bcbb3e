"""How long an instruction may be for a policy, told where it is given: needs no torch, and no policy."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from robolearn.policies.vla.config import VlaError

OwnUnit = Literal["bytes", "words"]
WORDS = 4096
"""Different words that are told apart: of forty, all are in four cases of five."""


@dataclass(frozen=True)
class InstructionLimit:
    """Raises VlaError, called with an instruction that is too long. It can be pickled."""

    most: int
    """Tokens of a prompt."""
    numbers: int = 0
    """Components of the state that stand in the prompt beside the instruction."""
    tokeniser: OwnUnit | Path = "bytes"
    """What a token is; of a pretrained backbone its tokenizer.json."""

    def __call__(self, text: str) -> None:
        longest = [255] * self.numbers
        count = len(tokens_of(self.tokeniser, prompt(text, longest)))
        if count <= self.most:
            return
        around = len(tokens_of(self.tokeniser, prompt("", longest)))
        unit = "tokens" if isinstance(self.tokeniser, Path) else self.tokeniser
        short = text if len(text) <= 60 else f"{text[:57]}..."
        raise VlaError(
            f"the instruction {short!r} has {count - around} {unit}, the policy takes {self.most - around}: say it "
            f"shorter, or train with --policy.trunk.max-text {count}"
        )


def tokens_of(tokeniser: OwnUnit | Path, text: str) -> list[int]:
    """Their numbers. A word's is a hash of its letters, whatever their case, so that no list of words is needed.

    Raises:
        VlaError: the tokeniser cannot be read.
    """
    if isinstance(tokeniser, Path):
        return _tokeniser(tokeniser).encode(text).ids
    if tokeniser == "bytes":
        return list(text.encode(errors="surrogateescape"))
    return [zlib.crc32(word.encode(errors="surrogateescape")) % WORDS for word in text.lower().split()]


@cache
def _tokeniser(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise VlaError("a pretrained backbone counts words with tokenizers: `pip install robolearn[vla]`") from error
    try:
        tokeniser = Tokenizer.from_file(str(path))
    except Exception as error:  # what it raises has no class of its own
        raise VlaError(
            f"{path} cannot be read ({' '.join(str(error).split())[:100]}); copy the checkpoint anew"
        ) from error
    tokeniser.no_truncation()
    tokeniser.no_padding()
    return tokeniser


def prompt(text: str, numbers: list[int]) -> str:
    """What is tokenised: the instruction and a line's end (as pi0 and SmolVLA do); with ``numbers`` (0 to 255, of the
    state) a line of them between the two (pi0.5)."""
    return f"{text}\nState: {' '.join(map(str, numbers))}\n" if numbers else f"{text}\n"
