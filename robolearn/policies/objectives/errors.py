"""Errors of a prediction, one number for each action. Shape letters: see contracts.py."""

from __future__ import annotations

from torch import Tensor


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the components: (B, T, A) each -> (B, T)."""
    return (output.float() - target).square().mean(-1)


def absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """As ``squared_error``."""
    return (output.float() - target).abs().mean(-1)
