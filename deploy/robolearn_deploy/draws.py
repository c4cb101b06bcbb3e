"""How schedulers sample chunks, many at once: the worlds of an evaluation, or the clients of a server.

torch is imported when something is drawn: the control process needs the names of schedulers and not their networks.
Shapes: B chunks, Tp actions of each, A components of an action, To observations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from robolearn_deploy.inference import Committed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from robolearn.policies.contracts import Context
    from robolearn.policies.policy import Policy


@dataclass(eq=False)
class Question:
    """What one chunk depends on besides the observation."""

    generator: torch.Generator
    """Of its noise."""
    captured: float = 0.0
    """Instant of the observation's capture in control periods, from any origin."""
    committed: Committed | None = None
    """None for the first chunk of an episode."""
    memory: dict[str, Any] = field(default_factory=dict)
    """What a scheduler keeps from chunk to chunk of an episode; empty at its beginning."""


Draw = Callable[["Policy", "Context", Sequence[Question], int | None], "Tensor"]
"""(policy, context of B observations, B questions, sampler steps or None) -> chunks (B, Tp, A) in physical units."""


def plain(policy: Policy, context: Context, questions: Sequence[Question], steps: int | None) -> Tensor:
    """From the observation alone."""
    return policy.sample(context, noise=_noise(policy, questions), steps=steps)


def real_time_chunking(policy: Policy, context: Context, questions: Sequence[Question], steps: int | None) -> Tensor:
    """Guided to what the robot is committed to, through the denoiser's Jacobian (Black et al. 2025)."""
    return _guided("rtc", policy, context, questions, steps)


def real_time_chunking_identity(
    policy: Policy, context: Context, questions: Sequence[Question], steps: int | None
) -> Tensor:
    """The same with the identity in place of the Jacobian, which costs no backward pass."""
    return _guided("rtc-identity", policy, context, questions, steps)


def _guided(
    method: Literal["rtc", "rtc-identity"],
    policy: Policy,
    context: Context,
    questions: Sequence[Question],
    steps: int | None,
) -> Tensor:
    import torch

    from robolearn.policies.contracts import Prior
    from robolearn.policies.guidance import rtc_weights

    known = [q.committed for q in questions]
    if not any(known):
        return plain(policy, context, questions, steps)
    spec = policy.spec
    # Where nothing is committed nothing is given, so that delay and steps do not matter there.
    delay = torch.tensor([c.delay if c else 0 for c in known])
    execute = torch.tensor([c.execute if c else 1 for c in known])
    weight = rtc_weights(spec.horizon, spec.start, delay, execute)
    prior = Prior(_actions(policy, known), weight, method)
    return policy.sample(context, noise=_noise(policy, questions), steps=steps, prior=prior)


def prefix(policy: Policy, context: Context, questions: Sequence[Question], steps: int | None) -> Tensor:
    """What will have happened before the chunk takes over is given clean to a policy that was trained for it.

    A delay beyond what it was trained for is bridged as far as it was.

    Raises:
        PriorError: it was not trained for any.
    """
    import torch

    from robolearn.policies.contracts import Prior

    known = [q.committed for q in questions]
    if not any(known):
        return plain(policy, context, questions, steps)
    start, most = policy.spec.start, policy.config.objective.prefix
    if most == 0:
        policy.check_prefix(start + max(c.delay for c in known if c))
    given = torch.tensor([[min(start + c.delay, most) if c else 0] for c in known])
    weight = (torch.arange(policy.spec.horizon) < given).float()
    prior = Prior(_actions(policy, known), weight, "prefix")
    return policy.sample(context, noise=_noise(policy, questions), steps=steps, prior=prior)


CANDIDATES = 16
"""Chunks among which bidirectional decoding chooses."""


def bidirectional(policy: Policy, context: Context, questions: Sequence[Question], steps: int | None) -> Tensor:
    """Of several chunks the one that continues best what is committed (Liu et al. 2024, its backward coherence; without
    its contrast to a weaker policy)."""
    import torch

    from robolearn.policies.bid import bidirectional_decoding
    from robolearn.policies.contracts import Prior

    known = [q.committed for q in questions]
    if not any(known):
        return plain(policy, context, questions, steps)
    noise = torch.stack([policy.noise(CANDIDATES, q.generator) for q in questions], dim=1)  # (N, B, Tp, A)
    frozen = torch.tensor([[policy.spec.start + c.delay if c else 0] for c in known])
    weight = torch.where(torch.arange(policy.spec.horizon) < frozen, 1.0, 0.5)  # below 1: compared, and free
    prior = Prior(_actions(policy, known), weight)
    return bidirectional_decoding(policy, context, noise=noise, prior=prior, steps=steps)


def streaming(policy: Policy, context: Context, questions: Sequence[Question], steps: int | None) -> Tensor:
    """Blocks of actions at rising noise are carried from chunk to chunk (Hoeg et al. 2024), see policies/streaming.py.

    A chunk that is not asked for a block after the one before starts anew.

    Raises:
        StreamingError, PriorError: the policy was not trained for it, or for no delay.
    """
    import torch

    from robolearn.policies.contracts import Context, Prior
    from robolearn.policies.streaming import StreamingBuffer, stream

    start, objective = policy.spec.start, policy.config.objective
    buffers: list[StreamingBuffer] = []
    delays: list[int] = []
    for q in questions:
        buffer = q.memory.setdefault("buffer", StreamingBuffer())
        elapsed = round(q.captured - q.memory.get("captured", q.captured))
        if q.committed is None or elapsed != objective.streaming:
            buffer.reset()
        q.memory["captured"] = q.captured
        # A buffer that leaves room for a longer delay is as good for this one.
        room = buffer.first - start if buffer.tokens is not None else 0
        delays.append(max(min(q.committed.delay if q.committed else 0, objective.prefix - start), room, 0))
        buffers.append(buffer)
    known = _actions(policy, [q.committed for q in questions])
    noise, chunks = _noise(policy, questions), torch.empty_like(known)
    for delay in sorted(set(delays)):
        rows = [i for i, d in enumerate(delays) if d == delay]
        given = (torch.arange(policy.spec.horizon) < start + delay) & ~known[rows].isnan().any(-1).cpu()
        chunks[rows] = stream(
            policy,
            Context(context.tokens[rows]),
            [buffers[i] for i in rows],
            noise=noise[rows],
            delay=delay,
            prior=Prior(known[rows], given.float(), "prefix"),
            steps=steps,
        )
    return chunks


def _actions(policy: Policy, known: Sequence[Committed | None]) -> Tensor:
    """(B, Tp, A) of what is committed, NaN where nothing is."""
    import torch

    blank = np.full((policy.spec.horizon, *policy.spec.action.shape), np.nan, np.float32)
    stacked = np.stack([blank if c is None else c.actions for c in known])
    return torch.from_numpy(stacked).float().to(policy.device)


def _noise(policy: Policy, questions: Sequence[Question]) -> Tensor:
    """(B, Tp, A)."""
    import torch

    return torch.cat([policy.noise(1, q.generator) for q in questions])
