"""How long an instruction may be for a policy, told where it is given: needs no torch, and no policy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from robolearn.policies.vla.config import VlaError


@dataclass(frozen=True)
class InstructionLimit:
    """Raises VlaError, called with an instruction that is too long. It can be pickled."""

    most: int
    """Tokens of a prompt."""
    numbers: int = 0
    """Components of the state that stand in the prompt beside the instruction."""
    tokeniser: Path | None = None
    """tokenizer.json of the backbone; None: a token is a byte."""

    def __call__(self, text: str) -> None:
        longest = [255] * self.numbers
        count = tokens_of(self.tokeniser, prompt(text, longest))
        if count <= self.most:
            return
        around = tokens_of(self.tokeniser, prompt("", longest))
        unit = "bytes" if self.tokeniser is None else "tokens"
        short = text if len(text) <= 60 else f"{text[:57]}..."
        raise VlaError(
            f"the instruction {short!r} has {count - around} {unit}, the policy takes {self.most - around}: say it "
            f"shorter, or train with --policy.trunk.max-text {count}"
        )


def tokens_of(tokeniser: Path | None, text: str) -> int:
    """How many ``text`` has; None: bytes.

    Raises:
        VlaError: the tokeniser cannot be read.
    """
    if tokeniser is None:
        return len(text.encode(errors="surrogateescape"))
    return len(_tokeniser(tokeniser).encode(text).ids)


@cache
def _tokeniser(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise VlaError("a pretrained backbone counts words with tokenizers: `pip install robolearn[vla]`") from error
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # what it raises has no class of its own
        raise VlaError(
            f"{path} cannot be read ({' '.join(str(error).split())[:100]}); copy the checkpoint anew"
        ) from error


def prompt(text: str, numbers: list[int]) -> str:
    """What is tokenised: the instruction and a line's end (as pi0 and SmolVLA do); with ``numbers`` (0 to 255, of the
    state) a line of them between the two (pi0.5)."""
    return f"{text}\nState: {' '.join(map(str, numbers))}\n" if numbers else f"{text}\n"
