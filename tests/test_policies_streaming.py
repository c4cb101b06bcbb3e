"""Streaming: blocks of rising noise in training, and a buffer that moves on by one block an inference."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from policy_makers import TO, TP, actions, make, observation
from torch import Tensor

from robolearn.policies.contracts import Batch, Context, Prior
from robolearn.policies.guidance import PriorError
from robolearn.policies.objectives.diffusion import Diffusion, DiffusionConfig
from robolearn.policies.objectives.flow import Flow, FlowConfig
from robolearn.policies.objectives.token_times import CHUNK_WISE, block_times
from robolearn.policies.policy import Policy
from robolearn.policies.spec import SpecError
from robolearn.policies.streaming import StreamingBuffer, StreamingError, stream

B, BLOCK, PREFIX = 5, 4, 4
FIRST = TO - 1
"""Index of the first action of block 0 without delay: 16 actions have 3 blocks of 4, and 3 of noise behind."""


def times_by_hand(tokens: int, first: int, block: int, progress: float) -> list[float]:
    blocks = (tokens - first) // block
    out = []
    for i in range(tokens):
        if i < first:
            out.append(1.0)
        elif i < first + blocks * block:
            j = (i - first) // block
            begin, end = 1 - (j + 1) / blocks, 1 - j / blocks
            out.append(begin + progress * (end - begin))
        else:
            out.append(0.0)
    return out


def streaming_policy(kind: str = "flow", trunk: str = "unet1d") -> Policy:
    model = make(kind, trunk)
    model.config = replace(
        model.config, objective=replace(model.config.objective, prefix=PREFIX, streaming=BLOCK, steps=12)
    )
    model.objective.config = model.config.objective  # pyright: ignore[reportAttributeAccessIssue]
    return model


def context_of(model: Policy) -> Context:
    with torch.no_grad():
        return model.encode(observation())


@pytest.mark.parametrize(("first", "block"), [(1, 4), (3, 4), (1, 1), (2, 14), (0, 16)])
@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_block_times_rise_from_block_to_block(first: int, block: int, progress: float) -> None:
    found = block_times(TP, torch.tensor([[first]]), block, torch.tensor([[progress]]))
    assert found[0].tolist() == pytest.approx(times_by_hand(TP, first, block, progress), abs=1e-6)


def test_a_block_at_the_end_of_its_inference_stands_where_the_one_before_it_began() -> None:
    first, zero, one = torch.tensor([[1]]), torch.zeros(1, 1), torch.ones(1, 1)
    begin, end = block_times(TP, first, BLOCK, zero), block_times(TP, first, BLOCK, one)
    torch.testing.assert_close(end[:, BLOCK:13], begin[:, : 13 - BLOCK])


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_training_times_are_chunk_wise_in_four_windows_of_five_and_constant_in_the_others(kind: str) -> None:
    objective = (
        Flow(FlowConfig(prefix=PREFIX, streaming=BLOCK))
        if kind == "flow"
        else Diffusion(DiffusionConfig(prefix=PREFIX, streaming=BLOCK))
    )
    t = objective.draw(4000, (TP, 2), torch.Generator().manual_seed(0))["time"]
    assert t.shape == (4000, TP)
    given = (t == 1).long().cumprod(1).sum(1)
    assert ((t == 1).sum(1) == given).all()  # nothing is clean behind what is given
    assert given.bincount().tolist() == pytest.approx([800] * (PREFIX + 1), abs=120)
    chunk_wise = 0
    for row, n in zip(t, given.tolist(), strict=True):
        rest = row[n:]
        if len(set(rest.tolist())) == 1:
            continue
        chunk_wise += 1
        blocks = (TP - n) // BLOCK
        progress = (float(row[n]) - 1) * blocks + 1
        level = 1e-6 if kind == "flow" else 0.011  # diffusion: onto the schedule's levels, the noisier
        assert row.tolist() == pytest.approx(times_by_hand(TP, n, BLOCK, progress), abs=level)
    assert abs(chunk_wise / 4000 - CHUNK_WISE) < 0.03
    if kind == "diffusion":
        levels = t * 100
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "trunk"), [("flow", "unet1d"), ("flow", "transformer"), ("diffusion", "unet1d")])
def test_training_with_these_options_lowers_the_loss(kind: str, trunk: str) -> None:
    model = streaming_policy(kind, trunk).train()
    batch = Batch(observation(), actions(), torch.zeros(B, TP, dtype=torch.bool))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    draws = model.draw(B, torch.Generator().manual_seed(3))
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        total = model.loss(batch, draws=draws).total()
        total.backward()
        optimiser.step()
        losses.append(total.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
@pytest.mark.parametrize("delay", [0, 3])
def test_an_inference_takes_a_part_of_the_steps_at_the_blocks_times(kind: str, delay: int) -> None:
    model, buffers = streaming_policy(kind), [StreamingBuffer()]
    context = Context(context_of(model).tokens[:1])
    first = FIRST + delay
    blocks = (TP - first) // BLOCK
    seen: list[Tensor] = []
    inner = model.trunk.forward
    model.trunk.forward = lambda x, t, context: (seen.append(t), inner(x, t, context))[1]  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        stream(model, context, buffers, noise=torch.randn(1, TP, 2), delay=delay)
        assert len(seen) == 12  # a new buffer takes all steps
        seen.clear()
        stream(model, context, buffers, noise=torch.randn(1, TP, 2), delay=delay)
    assert len(seen) == 12 // blocks
    for step, t in enumerate(seen):
        assert t[0].tolist() == pytest.approx(times_by_hand(TP, first, BLOCK, step / (12 // blocks)), abs=1e-6)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_a_perfect_denoiser_streams_the_data(kind: str) -> None:
    """The data is a long plan; the denoiser knows the part of it that each inference is about."""
    model = streaming_policy(kind)
    plan = torch.rand(B, 60, 2) * 1.8 - 0.9
    buffers = [StreamingBuffer() for _ in range(B)]
    context = context_of(model)
    for call in range(6):
        here = plan[:, BLOCK * call : BLOCK * call + TP]
        model.denoise = lambda x, t, context, here=here: here  # pyright: ignore[reportAttributeAccessIssue]
        chunk = stream(model, context, buffers, noise=torch.randn(B, TP, 2))
        torch.testing.assert_close(model.action(chunk)[:, :13], here[:, :13], rtol=1e-4, atol=1e-4)
        for b, buffer in enumerate(buffers):
            assert buffer.tokens is not None
            times = torch.tensor(times_by_hand(TP, FIRST, BLOCK, 1.0))
            clean = times == 1
            torch.testing.assert_close(buffer.tokens[clean], here[b][clean], rtol=1e-4, atol=1e-4)


def test_a_block_goes_on_from_the_tokens_that_the_inference_before_left() -> None:
    model, buffers = streaming_policy(), [StreamingBuffer() for _ in range(B)]
    context = context_of(model)
    with torch.no_grad():
        stream(model, context, buffers, noise=torch.randn(B, TP, 2))
        before = torch.stack([b.tokens for b in buffers if b.tokens is not None])
        noise = torch.randn(B, TP, 2)
        chunk = stream(model, context, buffers, noise=noise)

        x = torch.cat([before[:, BLOCK:13], noise[:, 13 - BLOCK :]], dim=1)  # by hand, with Euler's rule
        times = [torch.tensor(times_by_hand(TP, FIRST, BLOCK, p / 4)).expand(B, TP) for p in range(5)]
        for now, after in itertools.pairwise(times):
            v = model.trunk(x, now, context)
            x = x + (after - now).unsqueeze(-1) * v
    after = torch.stack([b.tokens for b in buffers if b.tokens is not None])
    torch.testing.assert_close(after, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.action(chunk)[:, : FIRST + BLOCK], x[:, : FIRST + BLOCK], rtol=1e-4, atol=1e-4)
    # What was emitted last time is the past of this chunk, unchanged.
    torch.testing.assert_close(chunk[:, :FIRST], model.action.inverse(before)[:, BLOCK : BLOCK + FIRST])


def test_each_world_has_its_own_buffer_and_begins_when_it_likes() -> None:
    model = streaming_policy()
    context, noises = context_of(model), torch.randn(3, B, TP, 2)
    together = [StreamingBuffer() for _ in range(B)]
    chunks = []
    with torch.no_grad():
        for call, noise in enumerate(noises):
            if call == 1:
                together[2].reset()
            chunks.append(stream(model, context, together, noise=noise))
        for b in range(B):
            alone = StreamingBuffer()
            for call in range(3):
                if b == 2 and call == 1:
                    alone.reset()
                one = Context(context.tokens[b : b + 1])
                chunk = stream(model, one, [alone], noise=noises[call, b : b + 1])
                torch.testing.assert_close(chunk[0], chunks[call][b], rtol=1e-4, atol=1e-2)


def test_a_delay_keeps_the_actions_that_are_carried_out_meanwhile() -> None:
    model, buffers = streaming_policy(), [StreamingBuffer() for _ in range(B)]
    context, delay = context_of(model), 3
    with torch.no_grad():
        one = stream(model, context, buffers, noise=torch.randn(B, TP, 2), delay=delay)
        two = stream(model, context, buffers, noise=torch.randn(B, TP, 2), delay=delay)
    kept = FIRST + delay
    torch.testing.assert_close(two[:, :kept], one[:, BLOCK : BLOCK + kept], rtol=1e-4, atol=1e-2)
    assert not torch.allclose(two[:, kept : kept + BLOCK], one[:, BLOCK + kept : 2 * BLOCK + kept], atol=1.0)


def test_a_buffer_that_begins_in_the_middle_of_an_episode_keeps_the_known_actions() -> None:
    model, buffers = streaming_policy(), [StreamingBuffer() for _ in range(B)]
    weight = torch.zeros(TP)
    weight[:4] = 1
    with torch.no_grad():
        chunk = stream(
            model,
            context_of(model),
            buffers,
            noise=torch.randn(B, TP, 2),
            delay=3,
            prior=Prior(actions(), weight),
        )
    assert torch.equal(chunk[:, :4], actions()[:, :4])
    assert all(b.tokens is not None for b in buffers)
    torch.testing.assert_close(torch.stack([b.tokens for b in buffers])[:, :4], model.action(actions())[:, :4])  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_a_longer_delay_starts_a_buffer_anew_and_a_shorter_one_does_not() -> None:
    model, buffer = streaming_policy(), StreamingBuffer()
    context = Context(context_of(model).tokens[:1])
    for delay, first in ((1, FIRST + 1), (3, FIRST + 3), (0, FIRST + 3)):
        with torch.no_grad():
            stream(model, context, [buffer], noise=torch.randn(1, TP, 2), delay=delay)
        assert buffer.first == first


def test_policies_that_cannot_stream_say_what_to_train() -> None:
    with pytest.raises(StreamingError, match=r"--policy\.objective\.streaming"):
        stream(make(), context_of(make()), [StreamingBuffer()], noise=torch.randn(1, TP, 2))
    with pytest.raises(PriorError, match="at most 4"):
        stream(streaming_policy(), context_of(make()), [StreamingBuffer()], noise=torch.randn(1, TP, 2), delay=PREFIX)


@pytest.mark.parametrize(("prefix", "streaming"), [(-1, 0), (0, -2), (16, 0), (9, 8)])
def test_options_that_do_not_fit_the_horizon_are_refused(prefix: int, streaming: int) -> None:
    model = make()
    objective = FlowConfig(prefix=prefix, streaming=streaming)
    with pytest.raises(SpecError, match="horizon of 16"):
        Policy(model.spec, model.statistics, replace(model.config, objective=objective))
