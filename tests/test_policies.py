"""Every combination of objective, trunk and encoder keeps the policy contract."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from policy_makers import ACTION, IMAGE, STATE, STATISTICS, TA, TO, TP, B, actions, make, observation, small, statistics

from robolearn.policies.config import POLICIES, TRUNK_DEFAULTS
from robolearn.policies.contracts import Batch, Prior
from robolearn.policies.normalise import VectorNormaliser
from robolearn.policies.objectives.diffusion import Diffusion, DiffusionConfig
from robolearn.policies.objectives.flow import Flow, FlowConfig
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.schema import Stream, UserError

COMBINATIONS = list(
    itertools.product([name for name in POLICIES if name not in ("nearest", "vla", "reactive")], TRUNK_DEFAULTS)
)
DENOISING = [(policy, trunk) for policy, trunk in COMBINATIONS if policy not in ("act", "regression")]
"""Those that begin with noise."""


@pytest.mark.parametrize(("policy", "trunk"), COMBINATIONS)
@pytest.mark.parametrize("image", [False, True])
def test_a_training_step_lowers_the_loss_and_reaches_every_parameter(policy: str, trunk: str, image: bool) -> None:
    model = make(policy, trunk, image=image).train()
    batch = Batch(observation(image=image), actions(), torch.zeros(B, TP, dtype=torch.bool))
    draws = model.draw(B, torch.Generator().manual_seed(3))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        torch.manual_seed(0)
        optimiser.zero_grad()
        result = model.loss(batch, draws=draws)
        assert all(term.shape == (B,) for term in result.terms.values())
        result.total().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimiser.step()
        losses.append(result.total().item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("policy", "trunk"), DENOISING)
def test_sample_is_deterministic_given_noise_and_independent_of_the_batch(policy: str, trunk: str) -> None:
    model = make(policy, trunk)
    seen = observation()
    noise = model.noise(B, torch.Generator().manual_seed(4))
    with torch.inference_mode():
        chunk = model.sample(model.encode(seen), noise=noise)
        again = model.sample(model.encode(seen), noise=noise)
        alone = model.sample(model.encode({"state": seen["state"][2:3]}), noise=noise[2:3])
        other = model.sample(model.encode(seen), noise=-noise)
    assert chunk.shape == (B, TP, 2)
    assert torch.equal(chunk, again)
    torch.testing.assert_close(alone[0], chunk[2], rtol=1e-4, atol=1e-2)
    assert not torch.allclose(chunk, other)


def test_ddpm_noise_is_a_function_of_the_starting_noise_for_each_element() -> None:
    model = make("diffusion")
    model.objective = Diffusion(DiffusionConfig(sampler="ddpm"))
    seen, noise = observation(), model.noise(B, torch.Generator().manual_seed(4))
    with torch.inference_mode():
        chunk = model.sample(model.encode(seen), noise=noise, steps=20)
        alone = model.sample(model.encode({"state": seen["state"][3:4]}), noise=noise[3:4], steps=20)
        torch.manual_seed(99)
        again = model.sample(model.encode(seen), noise=noise, steps=20)
    assert torch.equal(chunk, again)
    torch.testing.assert_close(alone[0], chunk[3], rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("objective", [Flow(FlowConfig()), Diffusion(DiffusionConfig())])
def test_clean_inverts_corrupt_when_the_network_is_right(objective: Flow | Diffusion) -> None:
    action = torch.rand(64, TP, 2) * 2 - 1
    draws = objective.draw(64, (TP, 2), torch.Generator().manual_seed(0))
    draws["time"] = draws["time"].clamp(min=0.05)  # at t = 0 nothing of the action is left
    x, target = objective.corrupt(action, draws)
    found = objective.clean(lambda x, t, **_: target, x, draws["time"])
    torch.testing.assert_close(found, action, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "objective", [Flow(FlowConfig()), Diffusion(DiffusionConfig()), Diffusion(DiffusionConfig(sampler="ddpm"))]
)
def test_sampling_with_a_perfect_denoiser_returns_the_data(objective: Flow | Diffusion) -> None:
    action = torch.rand(4, TP, 2) * 2 - 1
    sample = objective.sample(lambda x, t: action, torch.randn(4, TP, 2))
    torch.testing.assert_close(sample, action, rtol=1e-4, atol=1e-4)


def test_flow_time_runs_from_noise_to_data() -> None:
    action, noise = torch.ones(2, TP, 2), torch.full((2, TP, 2), -1.0)
    flow = Flow(FlowConfig())
    for t, expected in ((0.0, -1.0), (1.0, 1.0), (0.25, -0.5)):
        x, velocity = flow.corrupt(action, {"noise": noise, "time": torch.full((2, 1), t)})
        assert torch.allclose(x, torch.tensor(expected))
        assert torch.allclose(velocity, torch.tensor(2.0))


@pytest.mark.parametrize("time", ["uniform", "beta"])
def test_flow_training_times_have_the_stated_distribution(time: str) -> None:
    t = Flow(FlowConfig(time=time)).draw(200_000, (1, 1), torch.Generator().manual_seed(0))["time"]  # pyright: ignore[reportArgumentType]
    expected = 0.5 if time == "uniform" else 0.999 * (1 - 1.5 / 2.5)  # mean of Beta(1.5, 1) is 0.6, towards noise
    assert abs(float(t.mean()) - expected) < 3e-3
    assert float(t.min()) >= 0
    assert float(t.max()) <= 1


def test_diffusion_corrupts_as_diffusers_add_noise() -> None:
    reference = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    action, noise = torch.randn(100, TP, 2), torch.randn(100, TP, 2)
    level = torch.arange(100)
    x, _ = Diffusion(DiffusionConfig()).corrupt(action, {"noise": noise, "time": (1 - (level + 1) / 100).unsqueeze(-1)})
    torch.testing.assert_close(x, reference.add_noise(action, noise, level))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("policy", "trunk"), DENOISING)
def test_time_is_per_token(policy: str, trunk: str) -> None:
    model = make(policy, trunk)
    x, context = torch.randn(B, TP, 2), model.encode(observation())
    with torch.inference_mode():
        same = model.denoise(x, torch.full((B, 1), 0.5), context)
        spread = model.denoise(x, torch.full((B, TP), 0.5), context)
        torch.testing.assert_close(same, spread, rtol=1e-4, atol=1e-4)
        ladder = torch.linspace(0.5, 0.9, TP).expand(B, TP)
        assert not torch.allclose(model.denoise(x, ladder, context), same, atol=1e-3)
        clean = model.denoise(x.clamp(-1, 1), torch.ones(B, 1), context)
    torch.testing.assert_close(clean, x.clamp(-1, 1))  # at time 1 a chunk is its own estimate


@pytest.mark.parametrize(("policy", "trunk"), COMBINATIONS)
def test_prior_keeps_committed_actions_and_pulls_on_weighted_ones(policy: str, trunk: str) -> None:
    model = make(policy, trunk)
    noise = model.noise(B, torch.Generator().manual_seed(5))
    known = torch.full((B, TP, 2), float("nan"))
    known[:, :8] = torch.tensor([300.0, 200.0])
    weight = torch.zeros(TP)
    weight[:4], weight[4:8] = 1.0, 0.7
    with torch.inference_mode():
        context = model.encode(observation())
        free = model.sample(context, noise=noise)
        chunk = model.sample(context, noise=noise, prior=Prior(known, weight))
    assert torch.equal(chunk[:, :4], known[:, :4])
    assert torch.isfinite(chunk).all()
    before, after = (c[:, 4:8] - known[:, 4:8] for c in (free, chunk))
    assert after.norm() < 0.6 * before.norm()


def test_prior_refuses_weights_out_of_range() -> None:
    with pytest.raises(ValueError, match="weights"):
        Prior(torch.zeros(1, TP, 2), torch.full((TP,), 1.5))
    with pytest.raises(ValueError, match="weights"):
        Prior(torch.zeros(1, TP, 2), torch.ones(TP - 1))


def test_padded_actions_do_not_count_unless_asked() -> None:
    model = make()
    draws = model.draw(B, torch.Generator().manual_seed(0))
    pad = torch.zeros(B, TP, dtype=torch.bool)
    pad[:, 10:] = True
    first, second = actions(), actions()
    second[:, 10:] += 50
    # A pointwise trunk shows the masking alone: convolutions let padded inputs change their neighbours' outputs.
    model.trunk = torch.nn.Module()
    model.trunk.forward = lambda x, t, context, **_: x  # pyright: ignore[reportAttributeAccessIssue]
    for learn, same in ((False, True), (True, False)):
        model.config = replace(model.config, learn_padding=learn)
        losses = [model.loss(Batch(observation(), a, pad), draws=draws).total() for a in (first, second)]
        assert torch.equal(*losses) == same


def test_loss_weights_scale_windows() -> None:
    model = make()
    batch, draws = Batch(observation(), actions(), torch.zeros(B, TP, dtype=torch.bool)), model.draw(B)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0])
    plain, weighted = model.loss(batch, draws=draws), model.loss(batch, draws=draws, weight=weight)
    torch.testing.assert_close(weighted.terms["flow"], plain.terms["flow"] * weight)


@pytest.mark.parametrize("kind", ["min-max", "mean-std", "quantile"])
def test_normaliser_inverts_and_leaves_constant_components_unscaled(kind: str) -> None:
    stream = Stream((3,))
    normaliser = VectorNormaliser(stream, statistics([-5, 0, 2], [5, 1, 2]), kind)  # pyright: ignore[reportArgumentType]
    x = torch.tensor([[5.0, 0.0, 2.0], [-5.0, 1.0, 2.0]])
    y = normaliser(x)
    torch.testing.assert_close(normaliser.inverse(y), x)
    torch.testing.assert_close(y[:, 2], torch.zeros(2))
    torch.testing.assert_close(y[:, 0].abs(), torch.ones(2))


def test_normaliser_shows_wrapping_angles_as_cosine_and_sine() -> None:
    normaliser = VectorNormaliser(STATE, STATISTICS["state"], "min-max")
    low, high = normaliser(torch.tensor([[50.0, 100.0, 1e-4], [50.0, 100.0, 2 * np.pi - 1e-4]]))
    assert normaliser.width == 4
    torch.testing.assert_close(low, high, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="cosine"):
        normaliser.inverse(low)


def test_a_policy_does_not_see_components_that_were_left_out() -> None:
    spec = PolicySpec({"state": STATE}, ACTION, 10.0, TO, TP, TA, components={"state": (0, 1)})
    model = Policy(spec, STATISTICS, small("flow", "unet1d"))
    seen = observation()
    hidden = {"state": seen["state"].clone()}
    hidden["state"][..., 2] += 1.0
    assert torch.equal(model.encode(seen).tokens, model.encode(hidden).tokens)
    assert model.encoder.width == 2


def test_images_may_be_float_or_uint8_and_are_cropped_in_the_middle_outside_training() -> None:
    model = make(image=True)
    seen = observation(image=True)
    as_float = {**seen, "img": seen["img"].float()}
    with torch.inference_mode():
        tokens = model.encode(seen).tokens
        assert torch.equal(tokens, model.encode(as_float).tokens)
        edge = {**seen, "img": seen["img"].clone()}
        edge["img"][:, :, 0] = 255
        assert torch.equal(tokens, model.encode(edge).tokens)
        model.train()
        assert not torch.equal(model.encode(seen).tokens, model.encode(seen).tokens)


def test_spec_refuses_horizons_that_do_not_fit() -> None:
    with pytest.raises(SpecError, match="too short"):
        PolicySpec({"state": STATE}, ACTION, 10.0, 2, 8, 8)
    with pytest.raises(SpecError, match="observes nothing"):
        PolicySpec({}, ACTION, 10.0, 2, 16, 8)


def test_spec_survives_json() -> None:
    spec = PolicySpec({"state": STATE, "img": IMAGE}, ACTION, 10.0, 2, 16, 8, components={"state": (0, 2)})
    assert PolicySpec.from_json(spec.to_json()) == spec
