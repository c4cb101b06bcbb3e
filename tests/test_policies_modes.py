"""In data with two ways of doing the same, each method goes on with the way that was begun.

The actions of a chunk are all near +0.6 or all near -0.6, and the observation does not say which: a chunk sampled
afresh changes its mind every second time. The denoiser is exact, so that nothing depends on a training.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policy_makers import TO, TP, make
from torch import Tensor

from robolearn.policies.bid import bidirectional_decoding
from robolearn.policies.contracts import Context, Prior, PriorMethod
from robolearn.policies.guidance import rtc_weights
from robolearn.policies.policy import Policy
from robolearn.policies.streaming import StreamingBuffer, stream

B, START, BLOCK, DELAY = 200, TO - 1, 4, 3
MEAN, SPREAD = 0.6, 0.05


def exact(kind: str) -> Policy:
    """A policy whose denoiser is the posterior mean of these data: tokens of mode m are m MEAN + SPREAD noise."""
    policy = make(kind)
    policy.config = replace(
        policy.config, objective=replace(policy.config.objective, prefix=START + DELAY, streaming=BLOCK)
    )

    def denoise(x: Tensor, t: Tensor, context: Context) -> Tensor:
        tau, scale = policy.objective.straight(t)
        signal, noise = tau * scale, (1 - tau) * scale  # x = signal action + noise N(0, 1)
        variance = signal**2 * SPREAD**2 + noise**2
        up = torch.sigmoid((2 * signal * MEAN * x / variance).sum((1, 2), keepdim=True))  # probability of mode +1
        means = [m * MEAN + signal * SPREAD**2 / variance * (x - signal * m * MEAN) for m in (1, -1)]
        return up * means[0] + (1 - up) * means[1]

    policy.denoise = denoise  # pyright: ignore[reportAttributeAccessIssue]
    return policy


def context_of(policy: Policy) -> Context:
    return policy.encode({"state": torch.zeros(B, TO, 3)})


def agreement(policy: Policy, first: Tensor, second: Tensor) -> float:
    """Part of the chunks whose way is the same in both, by the sign of the actions that are carried out next."""
    ways = [policy.action(c)[:, START + DELAY : START + DELAY + BLOCK].mean((1, 2)).sign() for c in (first, second)]
    return float((ways[0] == ways[1]).float().mean())


def is_of_a_mode(policy: Policy, chunk: Tensor) -> bool:
    """Whether what is carried out is like the data: near the mean of one of the two ways."""
    carried_out = policy.action(chunk)[:, START : START + DELAY + BLOCK]
    return bool(((carried_out.abs() - MEAN).abs() < 5 * SPREAD).float().mean() > 0.95)


def noise(seed: int) -> Tensor:
    return torch.randn(B, TP, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_a_chunk_sampled_afresh_changes_its_mind(kind: str) -> None:
    policy = exact(kind)
    with torch.inference_mode():
        chunks = [policy.sample(context_of(policy), noise=noise(i)) for i in range(2)]
    assert all(is_of_a_mode(policy, chunk) for chunk in chunks)
    assert 0.25 < agreement(policy, *chunks) < 0.75


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
@pytest.mark.parametrize("method", ["inpaint", "rtc", "rtc-identity", "prefix"])
def test_a_prior_keeps_the_way_that_was_begun(kind: str, method: PriorMethod) -> None:
    policy = exact(kind)
    with torch.inference_mode():
        context = context_of(policy)
        before = policy.sample(context, noise=noise(0))
        known = torch.full_like(before, float("nan"))
        known[:, :-BLOCK] = before[:, BLOCK:]
        prior = Prior(known, rtc_weights(TP, START, DELAY, BLOCK), method)
        after = policy.sample(context, noise=noise(1), prior=prior)
    assert agreement(policy, known, after) > 0.9
    # Inpainting averages what is known with what the network makes of it, which may be of the other way.
    assert is_of_a_mode(policy, after) or method == "inpaint"


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_bidirectional_decoding_keeps_the_way_that_was_begun(kind: str) -> None:
    policy = exact(kind)
    with torch.inference_mode():
        context = context_of(policy)
        before = policy.sample(context, noise=noise(0))
        prior = Prior(before, torch.ones(TP) * 0.5)
        after = bidirectional_decoding(policy, context, noise=torch.stack([noise(i) for i in range(1, 9)]), prior=prior)
    assert agreement(policy, before, after) > 0.95  # all eight candidates have the other way once in 256


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
@pytest.mark.parametrize("delay", [0, DELAY])
def test_streaming_keeps_the_way_that_was_begun(kind: str, delay: int) -> None:
    policy, buffers = exact(kind), [StreamingBuffer() for _ in range(B)]
    with torch.inference_mode():
        context = context_of(policy)
        chunks = [stream(policy, context, buffers, noise=noise(i), delay=delay) for i in range(6)]
    for chunk in chunks:
        assert agreement(policy, chunks[0], chunk) > 0.95
        assert is_of_a_mode(policy, chunk)
