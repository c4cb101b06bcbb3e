"""Streaming policies: a chunk whose later actions are noisier, carried from one inference to the next.

After Hoeg, Du & Egeland 2024, "Streaming Diffusion Policy": h blocks of actions stand at rising noise. An inference
takes a part 1/h of the denoising steps, after which the first block is clean and is carried out; then the blocks move
up by one and a new one of noise is put behind them. The steps saved are paid for by plans that are older: a block has
seen h observations, the first of them h inferences ago.

Here what is not changed any more goes before the first block: the past, and during a delay of d control steps the
actions that are carried out meanwhile. Shape letters: see contracts.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robolearn.policies.contracts import Context, Prior
from robolearn.policies.objectives.token_times import block_times
from robolearn.policies.policy import Policy
from robolearn_data.schema import UserError


class StreamingError(UserError):
    """A policy that was not trained for streaming."""


@dataclass
class StreamingBuffer:
    """The chunk under way of one robot or world. A new one starts from noise; so does one after ``reset``."""

    tokens: Tensor | None = None
    """(T, A) in normalised units, at the times that ``block_times`` gives for progress 1."""
    first: int = 0
    """Index of the first action of block 0."""

    def reset(self) -> None:
        """Start anew: at an episode's begin, with another instruction, or when a step was not in its time."""
        self.tokens = None


def stream(
    policy: Policy,
    context: Context,
    buffers: Sequence[StreamingBuffer],
    *,
    noise: Tensor,
    delay: int = 0,
    prior: Prior | None = None,
    steps: int | None = None,
) -> Tensor:
    """The next chunk of each buffer, which is moved on. To be called every ``objective.streaming`` control steps.

    Args:
        buffers: B of them, one for each element of ``context``; some may be new.
        noise: (B, T, A); the result is deterministic given it and the buffers.
        delay: control steps until the chunk can take over, the same in all calls: a buffer made for a shorter delay
            starts anew.
        prior: actions that are known when a buffer starts in the middle of an episode; those of weight 1 in front are
            given, as with the method "prefix". A buffer that is under way goes on from its own actions.
        steps: denoising steps from noise to clean; the objective's by default. A call takes a part 1/h of them, that
            of a new buffer all.

    Returns:
        (B, T, A) in physical units. Clean up to index ``start + delay + objective.streaming``; what follows is the
        present estimate of actions that are still changing.

    Raises:
        StreamingError: the policy was not trained with ``streaming``.
        PriorError: it was trained for a shorter delay.
    """
    if not policy.config.objective.streaming:
        raise StreamingError(
            "the policy was not trained for streaming: train with --policy.objective.streaming BLOCK and "
            "--policy.objective.prefix obs_horizon - 1 + DELAY, or use another scheduler"
        )
    first = policy.spec.start + delay
    policy.check_prefix(first)
    for buffer in buffers:
        if buffer.tokens is None or buffer.first < first:
            buffer.reset()
            buffer.first = first

    chunk = noise.new_empty(*noise.shape[:2], policy.spec.action.size)
    # Buffers that take the same steps go through the network together.
    kinds = {(buffer.tokens is None, buffer.first) for buffer in buffers}
    for fresh, first in sorted(kinds):
        rows = [i for i, b in enumerate(buffers) if (b.tokens is None, b.first) == (fresh, first)]
        part = Context(context.tokens[rows])
        if fresh:
            known = prior and Prior(prior.action[rows], prior.weight.expand(noise.shape[:2])[rows], "prefix")
            chunk[rows] = policy.sample(part, noise=noise[rows], steps=steps, prior=known)
            times = _times(policy, first, 1.0, noise[rows])
            tokens, _ = policy.objective.corrupt(policy.action(chunk[rows]), {"noise": noise[rows], "time": times})
        else:
            before = torch.stack([b.tokens for i in rows if (b := buffers[i]).tokens is not None])
            tokens, clean = _move_on(policy, part, before, first, noise[rows], steps)
            chunk[rows] = policy.action.inverse(clean)
        for i, row in zip(rows, tokens, strict=True):
            buffers[i].tokens = row
    return chunk


def _move_on(
    policy: Policy, context: Context, before: Tensor, first: int, noise: Tensor, steps: int | None
) -> tuple[Tensor, Tensor]:
    """Shift buffers (B, T, A) by a block and denoise until block 0 is clean: (buffers, estimate of the clean chunk)."""
    block, objective = policy.config.objective.streaming, policy.objective
    blocks = max((policy.spec.horizon - first) // block, 1)
    last = first + (blocks - 1) * block
    x = torch.cat([before[:, block : last + block], noise[:, last:]], dim=1)
    count = -(-objective.steps(steps) // blocks)
    clean = x
    for p, q in itertools.pairwise(torch.linspace(0, 1, count + 1).tolist()):
        now, after = (_times(policy, first, progress, x) for progress in (p, q))
        clean = policy.denoise(x, now, context)
        x = objective.step(x, clean, now, after)
    return x, torch.where((_times(policy, first, 1.0, x) == 1).unsqueeze(-1), x, clean)


def _times(policy: Policy, first: int, progress: float, like: Tensor) -> Tensor:
    """(B, T)."""
    b, tokens = like.shape[:2]
    place, part = torch.full((b, 1), first, device=like.device), torch.full((b, 1), progress, device=like.device)
    return block_times(tokens, place, policy.config.objective.streaming, part)
