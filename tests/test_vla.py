"""A VLA's prefix is computed once, means what one joint pass means, and reads what it is told."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from policy_makers import TP, actions
from torch import Tensor
from vla_makers import FAMILIES, TEXT, TEXTS, backbone, encoder, make_vla, noise, seen

from robolearn.policies.bid import bidirectional_decoding
from robolearn.policies.contracts import Batch, Context, Prior, PriorMethod
from robolearn.policies.engines.compiled import compile_policy
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.policy import Policy
from robolearn.policies.streaming import StreamingBuffer, stream
from robolearn.policies.trunks.embedding import TimeFeatures, sinusoid
from robolearn.policies.vla.attention import rms_normalised
from robolearn.policies.vla.config import VlaConfig
from robolearn.policies.vla.images import letterboxed
from robolearn.policies.vla.prefix import Prefix, block_mask

B = len(TEXTS)


@pytest.mark.parametrize("kind", ["small", *FAMILIES])
def test_a_cached_prefix_gives_the_chunk_of_one_that_is_computed_anew_in_every_step_bit_for_bit(kind: str) -> None:
    policy = make_vla(kind).double()
    observation = seen()
    with torch.inference_mode():
        cached = policy.sample(policy.encode(observation), noise=noise(policy))
        again = policy.objective.sample(lambda x, t: policy.denoise(x, t, policy.encode(observation)), noise(policy))
    assert cached.dtype == torch.float64
    assert torch.equal(cached, policy.action.inverse(again))


def rotated(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """(B, H, N, E): pairs (x_i, x_{i + E/2}) as complex numbers, turned by position / theta^(2 i / E)."""
    half = x.shape[-1] // 2
    turn = position[:, None, :, None].double() / theta ** (torch.arange(half).double() / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(turn), turn)
    return torch.cat([z.real, z.imag], dim=-1)


def time_in_double(t: Tensor, width: int) -> Tensor:
    """Sines then cosines of periods 4e-3 to 4 (pi0), (...) -> (..., width)."""
    period = 4e-3 * 1000 ** torch.linspace(0, 1, width // 2, dtype=torch.float64)
    angle = 2 * math.pi * t.double().unsqueeze(-1) / period
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def test_float32_is_enough_for_the_time() -> None:
    t = torch.cat([torch.linspace(0, 1, 11), torch.rand(10_000, generator=torch.Generator().manual_seed(0))])
    features = TimeFeatures(96)
    torch.testing.assert_close(features(t).double(), time_in_double(t, 96), rtol=0, atol=2e-6)
    at, step = torch.tensor([0.37], dtype=torch.float64), torch.tensor([1e-6], dtype=torch.float64)
    slope = (time_in_double(at + step, 96) - time_in_double(at - step, 96)) / 2e-6
    got = torch.func.jvp(features.double(), (at,), (torch.ones_like(at),))[1]
    torch.testing.assert_close(got, slope, rtol=1e-5, atol=1e-2)


def joint_velocity(policy: Policy, observation: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
    """The expert's prediction from one pass over prefix and actions together under one mask, written out: softmax of
    Q K^T / sqrt(E) with -inf where the mask forbids. Small backbone, adaptive RMSNorm, no cross-attention."""
    expert: Any = policy.trunk
    encode, config = encoder(policy), policy.config.trunk
    assert isinstance(config, VlaConfig)
    small, texts = encode.backbone, [row.numpy().tobytes().rstrip(b"\0") for row in observation["instruction"][:, -1]]
    words = torch.zeros(len(x), config.max_text, dtype=torch.long)
    real = torch.zeros(len(x), config.max_text, dtype=torch.bool)
    for row, text in enumerate(texts):
        words[row, : len(text) + 1] = torch.tensor(list(text + b"\n"))
        real[row, : len(text) + 1] = True
    pictures = [small.embed_image(letterboxed(observation[n][:, 0], 32))[0] for n in ("img", "wrist")]
    state = encode.normalise["state"](observation["state"].flatten(2))
    state = encode.embed_state(F.pad(state, (0, config.max_state - state.shape[-1])).double())
    h = torch.cat([*pictures, small.embed(words), state], dim=1)
    n, count = h.shape[1], x.shape[1]
    ones = torch.ones(len(x), 1, dtype=torch.bool)
    valid = torch.cat([ones.expand(-1, sum(p.shape[1] for p in pictures)), real, ones, ones.expand(-1, count)], dim=1)
    position = valid.cumsum(1) - 1
    block = torch.cat([torch.zeros(n - 1), torch.ones(1), torch.full((count,), 2.0)])
    allowed = (block[:, None] >= block[None, :]) & valid[:, None, :]
    allowed = allowed | torch.eye(n + count, dtype=torch.bool)

    a = expert.embed_action(F.pad(x, (0, config.max_action - x.shape[-1])))
    a = a + sinusoid(torch.arange(count).float(), config.width, min_period=2.0, max_period=1000.0).double()
    c = F.silu(expert.embed_time(time_in_double(1 - t, config.width)))
    shape = encode.shape

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, shape.head_dim)).transpose(1, 2)

    def adapted(norm: Any, y: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift, gate = norm.adapt(c).chunk(3, dim=-1)
        return rms_normalised(y) * (1 + scale) + shift, 1 + gate

    for back, front in zip(small.layers, expert.layers, strict=True):
        y = back.norm(h)
        z, gate = adapted(front.norm, a)
        q = split(torch.zeros(*h.shape[:2], shape.heads * shape.head_dim).double() if back.last else back.q_proj(y))
        q = torch.cat([q, split(front.q_proj(z))], dim=2)
        k = torch.cat([split(back.k_proj(y)), split(front.k_proj(z))], dim=2)
        v = torch.cat([split(back.v_proj(y)), split(front.v_proj(z))], dim=2)
        q, k = (rotated(part, position, 10_000.0) for part in (q, k))
        k, v = (part.repeat_interleave(shape.heads // shape.kv_heads, 1) for part in (k, v))
        score = (q @ k.mT / shape.head_dim**0.5).masked_fill(~allowed[:, None], -torch.inf)
        out = (score.softmax(-1) @ v).transpose(1, 2).flatten(2)
        a = a + gate * front.o_proj(out[:, n:])
        z, gate = adapted(front.mlp_norm, a)
        a = a + gate * front.mlp(z)
        if not back.last:
            h = h + back.o_proj(out[:, :n])
            h = h + back.mlp(back.mlp_norm(h))
    return expert.head(adapted(expert.norm, a)[0])[..., : x.shape[-1]]


def test_prefix_and_expert_compute_what_one_joint_pass_under_the_block_mask_does() -> None:
    policy = make_vla().double()
    x, t = noise(policy), torch.rand(B, TP, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        got = policy.network(policy.encode(seen()))(x, t)
        want = joint_velocity(policy, seen(), x, t)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_backbone_gives_the_keys_and_values_of_transformers_own_forward_pass(kind: str) -> None:
    """Two pictures, then text, under the models' own masks: causal, but for PaliGemma, whose prefix sees all of itself
    and whose positions begin with 1."""
    from transformers import DynamicCache

    policy = make_vla(kind, backbone=replace(backbone(kind), causal=kind != "paligemma"))
    encode = encoder(policy)
    model, side = encode.backbone.model, encode.backbone.image_size
    observation = {k: v[:1] for k, v in seen().items()}
    prefix = encode.prefix(observation)
    pictures = [letterboxed(observation[name][:, 0], side) for name in ("img", "wrist")]
    tokens = encode.backbone.embed_image(pictures[0])[0].shape[1]
    image_token = 259
    model.config.image_token_id = image_token
    words = [*TEXTS[0].encode(), 10]
    ids = torch.tensor([[image_token] * (2 * tokens) + words])
    inputs: dict[str, Tensor] = {"input_ids": ids}
    kinds = (ids == image_token).int()
    if kind.startswith("qwen"):
        embed = encode.backbone.pictures
        mean, std = ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)) if kind == "qwen2_5_vl" else ((0.5,) * 3, (0.5,) * 3)
        side_patches = side // 8
        patches = []
        for picture in pictures:  # in the order of transformers' own processor, one patch at a time
            x = (picture[0] / 255 - embed._mean) / embed._std
            assert torch.allclose(embed._mean.flatten(), torch.tensor(mean), atol=1e-3)
            assert torch.allclose(embed._std.flatten(), torch.tensor(std), atol=1e-3)
            for block_row in range(side_patches // 2):
                for block_column in range(side_patches // 2):
                    for i in range(2):
                        for j in range(2):
                            r, c = 8 * (2 * block_row + i), 8 * (2 * block_column + j)
                            patch = x[:, r : r + 8, c : c + 8]
                            patches.append(torch.stack([patch, patch], dim=1).flatten())
        inputs["pixel_values"] = torch.stack(patches)
        inputs["image_grid_thw"] = torch.tensor([[1, side_patches, side_patches]] * 2)
        # A token of text between two pictures would part them; ours are told apart by their number.
        inputs["position_ids"] = encode.backbone.positions(torch.ones(1, ids.shape[1], dtype=torch.bool), 2)[0]
        inputs["mm_token_type_ids"] = kinds
    elif kind == "smolvlm":
        inputs["pixel_values"] = torch.stack([picture[0] for picture in pictures])[None] / 127.5 - 1
    else:
        inputs["pixel_values"] = torch.cat(pictures) / 127.5 - 1
        inputs["position_ids"] = torch.arange(ids.shape[1])[None]
        inputs["token_type_ids"] = torch.zeros_like(ids)
    cache: Any = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(**inputs, past_key_values=cache, use_cache=True)
    last = 2 * tokens + len(words)
    assert prefix.valid[0].tolist() == [
        i < last or i == prefix.valid.shape[1] - 1 for i in range(prefix.valid.shape[1])
    ]
    for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        torch.testing.assert_close(keys[:, :, :last], cache.layers[layer].keys, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(values[:, :, :last], cache.layers[layer].values, rtol=1e-4, atol=1e-5)


def test_positions_of_pictures_on_a_grid_are_those_of_transformers() -> None:
    """Qwen's own index of rotary positions, for a picture between two words."""
    policy = make_vla("qwen3_vl")
    back = encoder(policy).backbone
    model = back.model
    rows, columns = back.pictures.grid
    n = rows * columns
    ids = torch.tensor([[259] * n + [7, 8, 9]])
    want, _ = model.get_rope_index(
        ids, mm_token_type_ids=(ids == 259).int(), image_grid_thw=torch.tensor([[1, 2 * rows, 2 * columns]])
    )
    got, after = back.positions(torch.ones(1, n + 3, dtype=torch.bool), 1)
    assert torch.equal(got, want.to(got))
    assert after.tolist() == [int(want.max()) + 1]


def test_pictures_and_text_do_not_see_the_state_and_nothing_sees_padding() -> None:
    mask = block_mask(torch.tensor([0, 0, 0, 1]), torch.tensor([[True, True, False, True]]))[0]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    policy = make_vla()
    one, other = seen(), seen()
    other["state"] = other["state"] + 3
    a, b = encoder(policy).prefix(one), encoder(policy).prefix(other)
    for x, y in zip([*a.keys, *a.values], [*b.keys, *b.values], strict=True):
        assert torch.equal(x[:, :, :-1], y[:, :, :-1])
        assert not torch.equal(x[:, :, -1], y[:, :, -1])


def test_a_prefix_comes_out_of_its_context_as_it_went_in() -> None:
    policy = make_vla()
    prefix = encoder(policy).prefix(seen())
    back = Prefix.unpack(prefix.pack(), encoder(policy).shape)
    assert torch.equal(back.valid, prefix.valid)
    assert back.next_position.tolist() == prefix.next_position.tolist() == prefix.valid.sum(1).tolist()
    for a, b in zip([*back.keys, *back.values], [*prefix.keys, *prefix.values], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("actions_see", ["full", "causal"])
def test_causal_actions_do_not_depend_on_later_ones(actions_see: str) -> None:
    policy = make_vla(actions=actions_see)
    context = policy.encode(seen())
    x, t = noise(policy), torch.full((B, 1), 0.3)
    later = x.clone()
    later[:, 9:] += 1
    a, b = (policy.network(context)(value, t)[:, :9] for value in (x, later))
    assert torch.equal(a, b) == (actions_see == "causal")


@pytest.mark.parametrize("change", [{"max_text": 60}, {"max_action": 40}, {"max_state": 50}])
def test_room_that_is_not_used_changes_nothing(change: dict[str, int]) -> None:
    policy, roomy = make_vla(), make_vla(**change)  # pyright: ignore[reportArgumentType]
    weights = policy.state_dict()
    for name, value in roomy.state_dict().items():
        if value.shape == weights[name].shape:
            value.copy_(weights[name])
        else:
            value[tuple(slice(n) for n in weights[name].shape)] = weights[name]
    with torch.inference_mode():
        chunks = [p.sample(p.encode(seen()), noise=noise(policy)) for p in (policy, roomy)]
    torch.testing.assert_close(*chunks, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["small", "qwen3_vl"])
@pytest.mark.parametrize("state", ["token", "text"])
def test_the_chunk_depends_on_instruction_state_and_every_picture(kind: str, state: str) -> None:
    policy = make_vla(kind, state=state, max_text=64)
    with torch.inference_mode():
        plain = policy.sample(policy.encode(seen()), noise=noise(policy))
        other = policy.sample(policy.encode(seen(TEXTS[::-1])), noise=noise(policy))
        assert all(not torch.allclose(a, b) for a, b in zip(plain, other, strict=True))
        for name in ("state", "img", "wrist"):
            changed = seen()
            changed[name] = changed[name].flip(0)
            assert not torch.allclose(plain, policy.sample(policy.encode(changed), noise=noise(policy)))


def test_state_as_text_is_read_as_numbers_from_0_to_255() -> None:
    policy = make_vla(state="text", max_text=64)
    encode = encoder(policy)
    observation = seen(["go"])
    observation["state"] = torch.tensor([[[0.0, 200.0, 0.0]]])  # the least, the most, an angle of 0
    assert encode.prompts(observation, encode._state(observation)) == ["go\nState: 0 255 255 128\n"]


@pytest.mark.parametrize("obs_horizon", [1, 3])
def test_every_observation_is_seen_and_the_newest_instruction_is_read(obs_horizon: int) -> None:
    policy = make_vla(obs_horizon=obs_horizon)
    observation = seen(obs_horizon=obs_horizon)
    encode = encoder(policy)
    words = policy.config.trunk.max_text  # pyright: ignore[reportAttributeAccessIssue]
    assert encode.prefix(observation).valid.shape[1] == obs_horizon * (2 * 4 + 1) + words
    observation["instruction"][:, -1] = torch.tensor(TEXT.check("instruction", "now this"))
    assert encode.prompts(observation, None) == ["now this\n"] * B


def test_a_chunk_does_not_depend_on_the_batch_it_is_computed_in() -> None:
    policy = make_vla()
    with torch.inference_mode():
        chunk = policy.sample(policy.encode(seen()), noise=noise(policy))
        alone = policy.sample(policy.encode({k: v[2:3] for k, v in seen().items()}), noise=noise(policy)[2:3])
    torch.testing.assert_close(alone[0], chunk[2], rtol=1e-4, atol=1e-2)


def test_padding_is_denoised_and_learned_with_the_action_if_it_is_noise() -> None:
    policy = make_vla(padding="noise", max_action=5)
    context, t = policy.encode(seen()), torch.full((B, 1), 0.3)
    start, other = noise(policy), noise(policy)
    assert start.shape == (B, TP, 5)
    other[..., 2:] += 1
    with torch.inference_mode():
        chunks = [policy.sample(context, noise=x) for x in (start, other)]
        assert chunks[0].shape == (B, TP, 2)
        assert not torch.allclose(*chunks, rtol=1e-3)
        batch = Batch(seen(), actions()[:B], torch.zeros(B, TP, dtype=torch.bool))
        loss = policy.loss(batch, draws={"noise": start, "time": t}).terms["flow"]
        clean = F.pad((actions()[:B] - policy.action.offset) * policy.action.scale, (0, 3))
        velocity = policy.network(context)(0.7 * start + 0.3 * clean, t)
    torch.testing.assert_close(loss, (velocity - clean + start).square().mean((1, 2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["zeros", "noise"])
@pytest.mark.parametrize("method", ["inpaint", "rtc", "rtc-identity", "prefix"])
def test_what_is_committed_is_kept_by_every_prior(method: PriorMethod, padding: str) -> None:
    policy = make_vla(objective=FlowConfig(prefix=4), padding=padding, max_action=5)
    weight = torch.tensor([1.0] * 3 + [0.5] * 3 + [0.0] * (TP - 6))
    known = actions()[:B]
    with torch.inference_mode():
        context = policy.encode(seen())
        free = policy.sample(context, noise=noise(policy))
        chunk = policy.sample(context, noise=noise(policy), prior=Prior(known, weight, method))
    assert torch.equal(chunk[:, :3], known[:, :3])
    if method != "prefix":
        assert (chunk - known)[:, 3:6].abs().mean() < (free - known)[:, 3:6].abs().mean()


def test_real_time_chunking_goes_through_the_experts_jacobian() -> None:
    """The pull of rtc equals J^T r with J from finite differences in float64."""
    policy = make_vla().double()
    context = policy.encode({k: v[:1] for k, v in seen().items()})
    x, t = noise(policy, 1), torch.full((1, 1), 0.4).double()
    residual = torch.randn(1, TP, 2, generator=torch.Generator().manual_seed(7)).double()
    with torch.no_grad():
        differences = torch.zeros_like(x)
        for i in range(TP):
            for j in range(2):
                step = torch.zeros_like(x)
                step[0, i, j] = 1e-5
                change = policy.denoise(x + step, t, context) - policy.denoise(x - step, t, context)
                differences[0, i, j] = (change / 2e-5 * residual).sum()
    variable = x.clone().requires_grad_()
    (pull,) = torch.autograd.grad(policy.denoise(variable, t, context), variable, residual)
    torch.testing.assert_close(pull, differences, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("padding", ["zeros", "noise"])
def test_streaming_and_bidirectional_decoding_take_a_vlas_context(padding: str) -> None:
    policy = make_vla(objective=FlowConfig(prefix=4, streaming=4), padding=padding)
    context = policy.encode(seen())
    buffers = [StreamingBuffer() for _ in TEXTS]
    with torch.inference_mode():
        first = stream(policy, context, buffers, noise=noise(policy))
        second = stream(policy, context, buffers, noise=noise(policy))
        assert first.shape == second.shape == (B, TP, 2)
        many = torch.stack([noise(policy), -noise(policy), 2 * noise(policy)])
        chosen = bidirectional_decoding(policy, context, noise=many)
        single = policy.sample(Context(context.tokens[1:2]), noise=many[0, 1:2])
    torch.testing.assert_close(chosen[1:2], single, rtol=1e-4, atol=1e-2)


@pytest.mark.slow
def test_an_exported_expert_follows_the_same_instructions() -> None:
    """ONNX Runtime computes the denoising steps; the prefix stays with torch, or its text would be a constant."""
    policy = make_vla()
    fast = compile_policy(policy, "onnx", batches=(B,))
    with torch.inference_mode():
        for texts in (TEXTS, TEXTS[::-1]):
            chunks = [p.sample(p.encode(seen(texts)), noise=noise(policy)) for p in (policy, fast)]
            torch.testing.assert_close(*chunks, rtol=1e-4, atol=1e-2)
