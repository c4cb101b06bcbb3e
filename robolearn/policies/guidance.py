"""How a prior steers sampling: the denoiser is wrapped so that each estimate of the clean chunk fits what is known.

Real-time chunking (Black, Galliker & Levine 2025, "Real-Time Execution of Action Chunking Flow Policies", equations 2
to 5) is written for time tau from 0 (noise) to 1 (data) on the straight line x = (1 - tau) noise + tau action. With Y
the known actions, W their weights, v the velocity and A1 = x + (1 - tau) v it follows

    v' = v + min(beta, (1 - tau) / tau * ((1 - tau)^2 + tau^2) / (1 - tau)^2) * (dA1/dx)^T W (Y - A1)

Here the same is said of the estimate, A1' = A1 + (1 - tau) (v' - v), which suits diffusion too: an objective's
``straight`` gives tau, and the scale by which its x is larger than on that line. Shape letters: see contracts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from robolearn.policies.contracts import Denoiser, Prior
from robolearn_data.schema import UserError


class PriorError(UserError):
    """A prior that this policy or horizon cannot honour."""


class _Objective(Protocol):
    def straight(self, t: Tensor) -> tuple[Tensor, Tensor]: ...


def rtc_weights(horizon: int, start: int, delay: int | Tensor, execute: int | Tensor) -> Tensor:
    """Weights of the previous chunk's actions in real-time chunking (equation 5).

    With i counted from ``start`` and H = horizon - start: 1 for i < d, c (e^c - 1) / (e - 1) with
    c = (H - s - i) / (H - s - d + 1) for d <= i < H - s, and 0 after.

    Args:
        horizon: actions in a chunk, Tp.
        start: index of the action that belongs to the observation's capture; those before it are past and weigh 1.
        delay: d, control steps until the new chunk takes over; an int, or (B,).
        execute: s, control steps between the observations of two chunks; an int, or (B,).

    Returns:
        (Tp,), or (B, Tp) if delay or execute is a tensor.

    Raises:
        PriorError: not 0 <= d <= s <= H - d.
    """
    h = horizon - start
    d, s = torch.as_tensor(delay), torch.as_tensor(execute)
    if bool((d < 0).any() or (s < d).any() or (s > h - d).any()):
        worst, steps = int(d.max()), int(s.max())
        raise PriorError(
            f"a delay of {worst} control steps and {steps} between inferences do not fit a horizon of {h} "
            f"(0 <= delay <= steps <= horizon - delay); need {steps + worst} actions ahead: "
            "train with a longer --policy.horizon, infer faster, or run with fewer steps between inferences"
        )
    d, s = d.unsqueeze(-1), s.unsqueeze(-1)
    i = torch.arange(horizon, device=d.device) - start
    c = (h - s - i) / (h - s - d + 1)
    decaying = c * torch.expm1(c) / math.expm1(1)
    return torch.where(i < d, 1.0, torch.where(i < h - s, decaying, 0.0))


def guidance_weight(tau: Tensor, beta: float) -> Tensor:
    """min(beta, (1 - tau) / tau * ((1 - tau)^2 + tau^2) / (1 - tau)^2): infinite at both ends, hence beta there."""
    return (((1 - tau).square() + tau.square()) / (tau * (1 - tau))).clamp(max=beta)


def with_prior(denoiser: Denoiser, prior: Prior, known: Tensor, weight: Tensor, objective: _Objective) -> Denoiser:
    """``denoiser`` steered towards ``known`` (B, T, A) in normalised units, with ``weight`` (B, T, 1).

    For "rtc" the denoiser must be differentiable and must not hold inference tensors.
    """

    def inpaint(x: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(denoiser(x, t), known, weight)

    def rtc(x: Tensor, t: Tensor) -> Tensor:
        tau, scale = objective.straight(t)
        clean, pull = _vjp(denoiser, x, t, lambda clean: weight * (known - clean))
        return clean + (1 - tau) * guidance_weight(tau, prior.beta) * scale * pull

    def rtc_identity(x: Tensor, t: Tensor) -> Tensor:
        tau, _ = objective.straight(t)
        clean = denoiser(x, t)
        return clean + (1 - tau) * guidance_weight(tau, prior.beta) * weight * (known - clean)

    def prefix(x: Tensor, t: Tensor) -> Tensor:
        given = leading(weight)
        clean = denoiser(torch.where(given, known, x), torch.where(given[..., 0], 1.0, t))
        return torch.where(given, known, clean)

    return {"inpaint": inpaint, "rtc": rtc, "rtc-identity": rtc_identity, "prefix": prefix}[prior.method]


def leading(weight: Tensor) -> Tensor:
    """(B, T, 1) weights -> bool of the same shape: the actions of weight 1 before the first that weighs less."""
    return (weight == 1).cumprod(1).bool()


def _vjp(denoiser: Denoiser, x: Tensor, t: Tensor, residual: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """(estimate, J^T residual(estimate)) with J the Jacobian of the estimate with respect to ``x``; all (B, T, A).

    Works under ``torch.no_grad`` and ``torch.inference_mode``, and leaves no gradient on parameters.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()  # a clone: autograd refuses what was made in inference mode
        clean = denoiser(x, t.clone())
        if not clean.requires_grad:
            raise PriorError(
                'this engine gives no gradients, which "rtc" needs; use "rtc-identity" or the engine torch'
            )
        estimate = clean.detach()
        (pull,) = torch.autograd.grad(clean, x, residual(estimate))
    return estimate, pull
