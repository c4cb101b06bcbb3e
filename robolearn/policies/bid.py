"""Bidirectional decoding: of several sampled chunks, the one that fits the previous chunk and a good policy best.

Liu et al. 2024, "Bidirectional Decoding: Improving Action Chunking via Closed-Loop Resampling". Letters: see
contracts.py; N candidates. Distances are Euclidean over the action's components in normalised units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robolearn.policies.contracts import Context, Prior
from robolearn.policies.policy import Policy


def bidirectional_decoding(
    policy: Policy,
    context: Context,
    *,
    noise: Tensor,
    prior: Prior | None = None,
    weak: tuple[Policy, Context] | None = None,
    decay: float = 0.5,
    steps: int | None = None,
) -> Tensor:
    """Sample N chunks for each element and return the one with the least backward plus forward loss.

    Without a previous chunk (``prior`` None, or NaN for an element) only the forward loss counts, without a weak policy
    only backward coherence; without both the first candidate is returned.

    Args:
        noise: (N, B, T, A).
        prior: the previous chunk; its method plays no part. Actions of weight 0 are not compared, those of weight 1 are
            returned unchanged, as by ``Policy.sample``.
        weak: a worse policy, such as an early checkpoint of the same run, and its context of the same observation.
        decay: rho of the backward loss.
        steps: denoising steps; the configuration's by default.

    Returns:
        (B, T, A) in physical units.
    """
    start = policy.spec.start
    chunks = _candidates(policy, context, noise, steps)
    candidates = policy.action(chunks)
    loss = torch.zeros(noise.shape[:2], device=candidates.device)
    if prior is not None:
        weight = prior.weight.to(candidates).expand(candidates.shape[1:3])
        loss = loss + backward_loss(candidates, policy.action(prior.action.to(candidates)), weight, start, decay)
    if weak is not None:
        others = policy.action(_candidates(*weak, noise, steps))
        loss = loss + forward_loss(candidates[:, :, start:], others[:, :, start:])
    best = loss.argmin(0)
    chosen = chunks[best, torch.arange(len(best), device=best.device)]
    if prior is None:
        return chosen
    known = prior.action.to(chosen)
    keeps = (prior.weight.to(chosen).unsqueeze(-1) == 1) & ~known.isnan().any(-1, keepdim=True)
    return torch.where(keeps, known, chosen)


def backward_loss(candidates: Tensor, previous: Tensor, weight: Tensor, start: int, decay: float) -> Tensor:
    """sum_i decay^i |a_i - previous_i| with i from ``start`` on, where the previous chunk says something (equation 3).

    Args:
        candidates: (N, B, T, A).
        previous: (B, T, A) at the same instants, NaN where it says nothing.
        weight: (B, T), 0 where ``previous`` is not to be compared.

    Returns:
        (N, B).
    """
    i = torch.arange(previous.shape[1], device=previous.device) - start
    counts = (weight > 0) & (i >= 0) & ~previous.isnan().any(-1)
    distance = (candidates - previous.nan_to_num()).norm(dim=-1)
    return (torch.where(counts, decay ** i.clamp(min=0).float(), 0.0) * distance).sum(-1)


def forward_loss(candidates: Tensor, weak: Tensor) -> Tensor:
    """Mean distance to the other candidates minus mean distance to the weak policy's, summed over time (equation 4).

    Both (N, B, T, A); the paper's 1 / N is over all candidates, the own distance of 0 among them.

    Returns:
        (N, B).
    """

    def mean_distance(others: Tensor) -> Tensor:
        return (candidates.unsqueeze(1) - others.unsqueeze(0)).norm(dim=-1).sum(-1).mean(1)

    return mean_distance(candidates) - mean_distance(weak)


def _candidates(policy: Policy, context: Context, noise: Tensor, steps: int | None) -> Tensor:
    """(N, B, T, A) in physical units, all in one batch."""
    repeated = Context(context.tokens.repeat(len(noise), 1, 1))
    return policy.sample(repeated, noise=noise.flatten(0, 1), steps=steps).unflatten(0, noise.shape[:2])
