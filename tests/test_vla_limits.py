"""What a VLA refuses, what of it is trained, and in which precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policy_makers import ACTION, IMAGE, STATE, STATISTICS, TP, actions
from vla_makers import STREAMS, TEXT, TEXTS, backbone, encoder, make_vla, noise, seen

from robolearn.policies.config import POLICIES
from robolearn.policies.contracts import Batch
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn.policies.vla.config import VlaConfig, VlaError
from robolearn.policies.vla.images import letterboxed
from robolearn.policies.vla.prefix import Prefix
from robolearn_data.schema import Stream

B = len(TEXTS)


@pytest.mark.parametrize(
    ("change", "stream", "message"),
    [
        ({"max_action": 1}, {}, "an action has 2 components, the policy room for 1: --policy.trunk.max-action 2"),
        ({"max_state": 3}, {}, "the state has 4 components, the policy room for 3"),
        ({}, {"note": TEXT}, "a VLA reads one text, it was given instruction, note"),
        ({}, {"depth": Stream((8, 8, 4), "uint8", "image")}, "a VLA sees grey or RGB pictures"),
        ({}, {"force": Stream((6,))}, "there are no statistics of force"),
        ({}, {"cloud": Stream((64, 3), kind="points")}, "a VLA sees pictures, states and a text; leave cloud out"),
    ],
)
def test_what_a_vla_cannot_be_made_for_is_refused_before_training(
    change: dict[str, int], stream: dict[str, Stream], message: str
) -> None:
    trunk = VlaConfig(backbone=backbone("small"), width=32, mlp=48, **change)  # pyright: ignore[reportArgumentType]
    spec = PolicySpec({**STREAMS, **stream}, ACTION, 10.0, 1, TP, 8)
    with pytest.raises((SpecError, VlaError)) as caught:
        Policy(spec, STATISTICS, replace(POLICIES["vla"](), trunk=trunk))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_embodiment_without_statistics_is_told_where_they_come_from() -> None:
    spec = PolicySpec({"state": STATE, "img": IMAGE}, ACTION, 10.0, 1, TP, 8)
    with pytest.raises(VlaError, match=r"no statistics of action.*train on a dataset of this robot"):
        Policy(spec, {"state": STATISTICS["state"]}, POLICIES["vla"]())


def test_a_prompt_that_is_too_long_is_quoted_with_what_would_fit_it() -> None:
    policy = make_vla(max_text=12)
    with pytest.raises(
        VlaError, match=r"'lift the red cube\\n' has 18 tokens, the policy takes 12.*--policy.trunk.max"
    ):
        policy.encode(seen())
    with pytest.raises(VlaError, match="has 18 tokens"):
        encoder(policy).check_instructions({"push", "lift the red cube"})
    encoder(policy).check_instructions({"push"})


def test_a_picture_of_another_size_is_refused_with_both_sizes() -> None:
    observation = seen()
    observation["wrist"] = observation["wrist"][:, :, :20]
    with pytest.raises(SpecError, match=r"'wrist' has pictures of shape \(1, 20, 32, 3\).*for \(1, 24, 32, 3\)"):
        make_vla().encode(observation)


def test_a_policy_that_cannot_read_says_so() -> None:
    spec = PolicySpec({"state": STATE, "instruction": TEXT}, ACTION, 10.0, 1, TP, 8)
    with pytest.raises(SpecError, match="cannot read the text 'instruction': take --policy vla"):
        Policy(spec, STATISTICS, POLICIES["flow"]())


def test_pictures_are_cropped_at_random_in_training_and_in_the_middle_otherwise() -> None:
    policy = make_vla(crop=0.75)
    encode = encoder(policy)
    picture = seen()["img"]
    assert torch.equal(encode._seen("img", picture), picture[:, :, 3:21, 4:28])
    policy.train()
    torch.manual_seed(0)
    parts = [encode._seen("img", picture)[0, 0] for _ in range(8)]
    places = [(top, left) for top in range(7) for left in range(9)]
    whole = picture[0, 0]
    found = [next(p for p in places if torch.equal(whole[p[0] : p[0] + 18, p[1] : p[1] + 24], part)) for part in parts]
    assert len(set(found)) > 4


def test_a_picture_is_scaled_to_fit_with_black_above_and_left() -> None:
    picture = torch.full((1, 10, 20, 3), 200, dtype=torch.uint8)
    out = letterboxed(picture, 40)
    assert out.shape == (1, 3, 40, 40)
    assert (out[:, :, :20] == 0).all()
    assert (out[:, :, 20:] == 200).all()
    assert torch.equal(letterboxed(picture[..., :1], 40), out)


def test_a_picture_made_smaller_is_averaged_unless_single_pixels_are_asked_for() -> None:
    stripes = torch.tensor([0, 200], dtype=torch.uint8).repeat(15).expand(1, 30, 30).unsqueeze(-1).expand(-1, -1, -1, 3)
    picked = letterboxed(stripes, 10, antialias=False)
    assert torch.equal(picked, stripes.permute(0, 3, 1, 2)[:, :, 1::3, 1::3].float())
    assert (letterboxed(stripes, 10) - 100).abs().max() < 40


@pytest.mark.parametrize("kind", ["small", "smolvlm"])
@pytest.mark.parametrize("learn", ["all", "language", "lora", "expert"])
def test_only_what_is_to_be_learned_gets_gradients_and_all_of_it_does(kind: str, learn: str) -> None:
    policy = make_vla(kind, learn=learn).train()
    batch = Batch(seen(), actions()[:B], torch.zeros(B, TP, dtype=torch.bool))
    policy.loss(batch).total().backward()
    learned = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learned == {name for name, p in policy.named_parameters() if p.grad is not None}
    of_backbone = {name for name in learned if ".backbone." in name}
    vision = {name for name in of_backbone if ".vision" in name or ".connector" in name}
    assert bool(vision) == (learn == "all")
    assert bool(of_backbone) == (learn != "expert")
    assert all("lora_" in name for name in of_backbone) == (learn in ("lora", "expert"))
    assert {name for name, _ in policy.trunk.named_parameters(prefix="trunk")} <= learned


@pytest.mark.parametrize("kind", ["small", "qwen3_vl"])
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    batch = Batch(seen(), actions()[:B], torch.zeros(B, TP, dtype=torch.bool))
    gradients = []
    for checkpointing in (False, True):
        policy = make_vla(kind, checkpointing=checkpointing).train()
        policy.loss(batch, draws=policy.draw(B, torch.Generator().manual_seed(3))).total().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None)
        if gradient is not None:
            assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("kind", ["small", "paligemma"])
def test_bfloat16_chunks_are_near_those_of_float32(kind: str) -> None:
    """Autocast, and a backbone kept in bfloat16; positions stay exact."""
    policy = make_vla(kind)
    half = make_vla(kind, backbone=replace(backbone(kind), dtype="bfloat16")) if kind != "small" else policy
    half.load_state_dict(policy.state_dict())
    with torch.inference_mode():
        plain = policy.sample(policy.encode(seen()), noise=noise(policy))
        with torch.autocast("cpu", torch.bfloat16):
            context = half.encode(seen())
            rough = half.sample(context, noise=noise(policy))
    assert torch.equal(
        Prefix.unpack(context.tokens, encoder(half).shape).next_position.long(),
        encoder(policy).prefix(seen()).valid.sum(1),
    )
    span = float((STATISTICS["action"].max - STATISTICS["action"].min).max())
    assert (plain - rough).abs().max() < 0.05 * span


@pytest.mark.parametrize("learn", ["expert", "lora"])
def test_a_backbone_kept_in_bfloat16_is_trained_around_in_float32(learn: str) -> None:
    kept = replace(backbone("smolvlm"), dtype="bfloat16")
    policy = make_vla("smolvlm", backbone=kept, learn=learn).train()
    batch = Batch(seen(), actions()[:B], torch.zeros(B, TP, dtype=torch.bool))
    policy.loss(batch).total().backward()
    learned = [p for p in policy.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in learned)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learned)
    weights = [p for name, p in encoder(policy).backbone.named_parameters() if "lora_" not in name]
    assert all(p.dtype == torch.bfloat16 for p in weights)
