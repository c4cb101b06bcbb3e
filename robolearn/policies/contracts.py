"""The small types that encoder, trunk, objective and training loop hand to each other.

Shape letters, used in all of robolearn.policies: B batch, O observation horizon (To), T chunk length (Tp), A action
components, N context tokens, D token width, C context vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

Draws = dict[str, Tensor]
"""The random numbers of one training step, batch first, so that a rank can take its slice of the joint batch's."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(noisy chunk (B, T, A), time (B, 1) or (B, T)) -> estimate of the clean chunk (B, T, A), normalised units."""


class Network(Protocol):
    """A trunk with the context of an observation."""

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        *,
        until: Tensor | None = None,
        features: list[Tensor] | None = None,
        conditioned: bool = True,
    ) -> Tensor:
        """Noisy chunk (B, T, A), time (B, 1) or (B, T) -> prediction (B, T, A).

        Args:
            until: end of the span of time that is predicted, shaped as ``t``; 1 if None. For objectives with ``spans``.
            features: hidden features (B, ...) are appended to it.
            conditioned: False for the prediction without the condition (condition.py).
        """
        ...


class Objective(Protocol):
    """How a trunk is trained and sampled. One with parameters is an nn.Module too."""

    spans: bool
    """The trunk is asked for a mean over a span of time, whose end is its ``until``."""
    trains_guided: bool
    """Guidance is part of its loss, and is not to be applied again when a chunk is sampled."""

    def draw(self, batch: int, shape: tuple[int, int], generator: torch.Generator | None) -> Draws:
        """The random numbers of one training step on B windows of ``shape`` (T, A). "time", (B, 1) or (B, T), is 1
        where an action is given clean and not learned."""
        ...

    def losses(self, network: Network, action: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Named terms of the loss for chunks ``action`` (B, T, A): (B, T) of each action, or (B,) of each window.

        ``draws`` are those of ``draw``, and "drop" (B, 1), the windows that are shown without their condition.
        """
        ...

    def clean(self, network: Network, x: Tensor, t: Tensor) -> Tensor:
        """Estimate of the clean chunk (B, T, A) behind ``x`` at time ``t``, (B, 1) or (B, T)."""
        ...

    def sample(self, denoiser: Denoiser, noise: Tensor, steps: int | None = None) -> Tensor:
        """A chunk (B, T, A), deterministic given ``noise`` (B, T, A)."""
        ...

    def corrupt(self, action: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(noisy chunk, velocity or noise that leads there), both (B, T, A)."""
        ...

    def steps(self, asked: int | None) -> int:
        """Denoising steps from noise to clean: ``asked``, or the configuration's."""
        ...

    def step(self, x: Tensor, clean: Tensor, now: Tensor, after: Tensor) -> Tensor:
        """``x`` (B, T, A) moved from time ``now`` to ``after``, (B, 1) or (B, T), by the estimate ``clean``."""
        ...

    def straight(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(tau, scale), both (B, 1 or T, 1): x / scale lies on flow matching's straight line at time tau."""
        ...


@dataclass(frozen=True)
class Batch:
    """Training windows in physical units."""

    observation: Mapping[str, Tensor]
    """Stream -> (B, O, *stream.shape); images uint8 or float in 0..255."""
    action: Tensor
    """(B, T, A)."""
    is_pad: Tensor
    """(B, T) bool: the action is a stand-in beyond the episode's edge or for one not recorded."""

    def __len__(self) -> int:
        return self.action.shape[0]


@dataclass(frozen=True)
class Context:
    """What the encoder makes of an observation: computed once, used by every denoising step."""

    tokens: Tensor
    """(B, N, D), one token for each observation step, oldest first."""

    @property
    def vector(self) -> Tensor:
        """(B, N * D)."""
        return self.tokens.flatten(1)

    def __len__(self) -> int:
        return self.tokens.shape[0]


PriorMethod = Literal["inpaint", "rtc", "rtc-identity", "prefix"]


@dataclass(frozen=True)
class Prior:
    """What is already known of the chunk to be sampled, such as the committed part of the previous chunk.

    Methods (guidance.py has their formulas); with each of them actions of weight 1 are returned unchanged:

    - inpaint: every estimate of the clean chunk is pulled towards the known actions by their weight.
    - rtc: real-time chunking, guidance through the denoiser's Jacobian; costs a backward pass in every step.
    - rtc-identity: the same with the identity in place of the Jacobian.
    - prefix: the leading actions of weight 1 are given clean to a policy that was trained for it (training-time
      real-time chunking, the objective's ``prefix``); weights below 1 count as 0.
    """

    action: Tensor
    """(B, T, A) in physical units, aligned with the chunk to be sampled; ignored where ``weight`` is 0. NaN where it is
    not known: such an action has weight 0."""
    weight: Tensor
    """(T,) or (B, T) in [0, 1]: 1 keeps the action exactly, values between pull towards it, 0 leaves it free."""
    method: PriorMethod = "inpaint"
    beta: float = 5.0
    """Largest guidance weight of rtc and rtc-identity. A sampler of fewer steps takes their number: a step of 1 / n of
    the way with a larger weight would go beyond what is known."""

    def __post_init__(self) -> None:
        if self.weight.shape[-1] != self.action.shape[1]:
            raise ValueError(f"prior has {self.action.shape[1]} actions but {self.weight.shape[-1]} weights")
        if bool(((self.weight < 0) | (self.weight > 1)).any()):
            raise ValueError("prior weights must lie in [0, 1]")
        if self.method not in get_args(PriorMethod):
            raise ValueError(f"no prior method {self.method!r}; valid: {', '.join(get_args(PriorMethod))}")


@dataclass(frozen=True)
class Losses:
    """Named terms, each (B,); their weighted sum is what training minimises."""

    terms: Mapping[str, Tensor]
    weights: Mapping[str, float] = field(default_factory=dict)
    """Factor of a term, 1 where it is not named."""

    def total(self) -> Tensor:
        """Scalar: the sum of the terms' batch means times their weights."""
        means = [self.weights.get(name, 1.0) * term.mean() for name, term in self.terms.items()]
        return torch.stack(means).sum()
