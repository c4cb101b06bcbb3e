"""Priors steer sampling by the papers' formulas, in both conventions of time, wherever the caller's autograd stands."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_makers import TO, TP, actions, make, observation
from torch import Tensor

from robolearn.policies.contracts import Batch, Prior
from robolearn.policies.guidance import PriorError, guidance_weight, rtc_weights, with_prior
from robolearn.policies.objectives.diffusion import Diffusion, DiffusionConfig
from robolearn.policies.objectives.flow import Flow, FlowConfig
from robolearn.policies.policy import Policy

B, T, A = 3, 8, 2
MIX = torch.randn(T * A, T * A, generator=torch.Generator().manual_seed(0)).double() / 6
"""A denoiser whose Jacobian is known: the estimate is tanh of a linear map of all actions together."""


def toy(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ MIX.to(x).T).unflatten(1, (T, A)) * (0.5 + t.mean(1)[:, None, None])


def toy_jacobian(x: Tensor, t: float) -> Tensor:
    """(T A, T A) of one element x (T, A)."""
    slope = 1 - torch.tanh(MIX @ x.flatten()).square()
    return slope[:, None] * MIX * (0.5 + t)


def problem(seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, known actions (B, T, A) and weights (B, T, 1) in double precision."""
    generator = torch.Generator().manual_seed(seed)
    x, known = (torch.randn(B, T, A, generator=generator).double() for _ in range(2))
    return x, known, torch.rand(B, T, 1, generator=generator).double()


def prior(method: str, beta: float = 5.0) -> Prior:
    return Prior(torch.zeros(B, T, A), torch.zeros(T), method, beta)  # pyright: ignore[reportArgumentType]


def weights_by_hand(horizon: int, start: int, d: int, s: int) -> list[float]:
    h, out = horizon - start, []
    for i in range(-start, h):
        if i < d:
            out.append(1.0)
        elif i < h - s:
            c = (h - s - i) / (h - s - d + 1)
            out.append(c * (math.e**c - 1) / (math.e - 1))
        else:
            out.append(0.0)
    return out


@given(st.data())
def test_rtc_weights_are_the_papers(data: st.DataObject) -> None:
    start, h = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 30))
    d = data.draw(st.integers(0, h // 2))
    s = data.draw(st.integers(d, h - d))
    found = rtc_weights(start + h, start, d, s)
    assert found.tolist() == pytest.approx(weights_by_hand(start + h, start, d, s), abs=1e-6)
    assert (found[: start + d] == 1).all()
    assert (found.diff() <= 0).all()


def test_rtc_weights_of_a_batch_are_those_of_its_elements() -> None:
    d, s = torch.tensor([0, 3, 8]), torch.tensor([8, 9, 15])
    batch = rtc_weights(24, 1, d, s)
    assert batch.shape == (3, 24)
    for row, di, si in zip(batch, d.tolist(), s.tolist(), strict=True):
        assert torch.equal(row, rtc_weights(24, 1, di, si))
    assert torch.equal(rtc_weights(24, 1, d, 8)[1], rtc_weights(24, 1, 3, 8))


@pytest.mark.parametrize(("delay", "execute"), [(-1, 4), (5, 4), (6, 10), (16, 16)])
def test_rtc_weights_refuse_a_delay_that_the_horizon_cannot_bridge(delay: int, execute: int) -> None:
    with pytest.raises(PriorError, match="horizon of 15"):
        rtc_weights(16, 1, delay, execute)
    with pytest.raises(PriorError, match="longer"):
        rtc_weights(16, 1, torch.tensor([0, delay]), torch.tensor([8, execute]))


def test_guidance_weight_is_the_papers_and_clipped_at_both_ends() -> None:
    for tau in (0.1, 0.3, 0.5, 0.8, 0.95):
        expected = min(5.0, (1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2)
        assert float(guidance_weight(torch.tensor(tau, dtype=torch.float64), 5.0)) == pytest.approx(expected, rel=1e-9)
    assert guidance_weight(torch.tensor([0.0, 1.0]), 5.0).tolist() == [5.0, 5.0]
    assert float(guidance_weight(torch.tensor(0.5), 5.0)) == 2.0


@pytest.mark.parametrize("tau", [0.0, 0.2, 0.7])
def test_rtc_adds_the_vector_jacobian_product_of_the_residual(tau: float) -> None:
    x, known, weight = problem()
    t = torch.full((B, 1), tau).double()
    guided = with_prior(toy, prior("rtc"), known, weight, Flow(FlowConfig()))(x, t)
    coefficient = 5.0 if tau == 0 else min(5.0, (1 - tau) / tau * ((1 - tau) ** 2 + tau**2) / (1 - tau) ** 2)
    for b in range(B):
        clean = toy(x[b : b + 1], t[b : b + 1])[0]
        pull = toy_jacobian(x[b], tau).T @ (weight[b] * (known[b] - clean)).flatten()
        expected = clean + (1 - tau) * coefficient * pull.unflatten(0, (T, A))
        torch.testing.assert_close(guided[b], expected)


def test_rtc_pulls_along_the_gradient_of_the_weighted_distance_by_finite_differences() -> None:
    """J^T W (Y - A1) is minus the gradient of 1/2 sum W (Y - A1)^2, whatever the network."""
    x, known, weight = problem(2)
    t = torch.full((B, 1), 0.5).double()

    def distance(at: Tensor) -> Tensor:
        return 0.5 * (weight * (known - toy(at, t)).square()).sum()

    guided = with_prior(toy, prior("rtc"), known, weight, Flow(FlowConfig()))(x, t)
    pull = (guided - toy(x, t)) / (0.5 * 2.0)  # (1 - tau) times the coefficient, which is 2 at tau = 0.5
    for index in [(0, 0, 0), (1, 3, 1), (2, 7, 0)]:
        step = torch.zeros_like(x)
        step[index] = 1e-6
        slope = (distance(x + step) - distance(x - step)) / 2e-6
        assert float(pull[index]) == pytest.approx(-float(slope), rel=1e-6, abs=1e-9)


def test_rtc_identity_has_the_identity_for_a_jacobian() -> None:
    x, known, weight = problem()
    t = torch.full((B, 1), 0.4).double()
    guided = with_prior(toy, prior("rtc-identity"), known, weight, Flow(FlowConfig()))(x, t)
    coefficient = (0.6**2 + 0.4**2) / (0.4 * 0.6)
    torch.testing.assert_close(guided, toy(x, t) + 0.6 * coefficient * weight * (known - toy(x, t)))


def test_beta_clips_the_guidance() -> None:
    x, known, weight = problem()
    t = torch.full((B, 1), 0.5).double()
    full, clipped, none = (
        with_prior(toy, prior("rtc", beta), known, weight, Flow(FlowConfig()))(x, t) for beta in (9.0, 0.5, 0.0)
    )
    torch.testing.assert_close(clipped - none, (full - none) * 0.5 / 2.0)
    torch.testing.assert_close(none, toy(x, t))


def test_the_guided_step_is_the_same_in_openpis_convention() -> None:
    """There s = 1 - tau is 1 at the noise, the velocity is u = noise - action, and a step goes down in s."""
    x, known, weight = problem()
    tau, step = 0.3, 0.1
    t = torch.full((B, 1), tau).double()
    flow = Flow(FlowConfig())
    ours = flow.step(x, with_prior(toy, prior("rtc"), known, weight, flow)(x, t), t, t + step)
    s = 1 - tau
    for b in range(B):
        u = (x[b] - toy(x[b : b + 1], t[b : b + 1])[0]) / s
        action = x[b] - s * u
        jacobian = toy_jacobian(x[b], tau)  # of the action, which does not depend on how time is counted
        pull = (jacobian.T @ (weight[b] * (known[b] - action)).flatten()).unflatten(0, (T, A))
        u = u - min(5.0, s / (1 - s) * (s**2 + (1 - s) ** 2) / s**2) * pull
        torch.testing.assert_close(ours[b], x[b] - step * u)


@pytest.mark.parametrize("method", ["rtc", "rtc-identity"])
def test_guided_ddim_is_guided_flow_on_the_rescaled_sample(method: str) -> None:
    """A network that denoises the straight line is given to both; each takes the step between the same two times."""
    x, known, weight = problem()
    diffusion, flow = Diffusion(DiffusionConfig()), Flow(FlowConfig())
    now, after = torch.full((B, 1), 0.40).double(), torch.full((B, 1), 0.55).double()
    tau, scale = diffusion.straight(now)
    tau_after, scale_after = diffusion.straight(after)

    def of_diffusion(y: Tensor, t: Tensor) -> Tensor:
        tau, scale = diffusion.straight(t)
        return toy(y / scale, tau[..., 0])

    with_diffusion = with_prior(of_diffusion, prior(method), known, weight, diffusion)
    with_flow = with_prior(toy, prior(method), known, weight, flow)
    stepped = diffusion.step(x * scale, with_diffusion(x * scale, now), now, after)
    expected = flow.step(x, with_flow(x, tau[..., 0]), tau[..., 0], tau_after[..., 0])
    torch.testing.assert_close(stepped / scale_after, expected, rtol=1e-6, atol=1e-6)
    level = round((1 - 0.40) * 100)
    alpha_bar = float(diffusion.alpha_bar[level])
    assert float(tau[0, 0]) == pytest.approx(alpha_bar**0.5 / (alpha_bar**0.5 + (1 - alpha_bar) ** 0.5), rel=1e-6)


def test_our_ddim_step_is_diffusers() -> None:
    diffusion, generator = Diffusion(DiffusionConfig()), torch.Generator().manual_seed(0)
    x, clean = (torch.randn(B, T, A, generator=generator) for _ in range(2))
    diffusion.scheduler.set_timesteps(10)
    for now, after in ((99 - 9, 80), (50, 40), (0, -1)):
        theirs = diffusion.scheduler.step(clean, now, x, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        ours = diffusion.step(x, clean, *(torch.full((B, 1), 1 - (level + 1) / 100) for level in (now, after)))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["flow", "diffusion"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_rtc_works_wherever_the_callers_autograd_stands_and_leaves_no_gradients(policy: str, mode: type) -> None:
    model = make(policy)
    noise = torch.randn(5, TP, 2, generator=torch.Generator().manual_seed(0))
    with mode():  # the context, the noise and the prior are inference tensors under inference_mode
        context = model.encode(observation())
        known = Prior(actions() * 1.0, rtc_weights(TP, TO - 1, 3, 5) * 1.0, "rtc")
        chunk = model.sample(context, noise=noise * 1.0, prior=known)
    expected = model.sample(model.encode(observation()), noise=noise, prior=known)
    torch.testing.assert_close(chunk, expected)
    assert not chunk.requires_grad
    assert all(p.grad is None for p in model.parameters())
    with torch.inference_mode():
        frozen = model.requires_grad_(False)
        torch.testing.assert_close(frozen.sample(context, noise=noise, prior=known), expected)


@pytest.mark.parametrize("policy", ["flow", "diffusion"])
@pytest.mark.parametrize("method", ["rtc", "rtc-identity"])
def test_guidance_keeps_the_frozen_prefix_and_ignores_what_is_unknown(policy: str, method: str) -> None:
    model = make(policy)
    noise = torch.randn(5, TP, 2, generator=torch.Generator().manual_seed(0))
    known = actions()
    known[0] = float("nan")  # this world has no previous chunk
    known[1, 9:] = float("nan")
    weight = rtc_weights(TP, TO - 1, torch.tensor([3, 3, 0, 5, 7]), 8)
    with torch.no_grad():
        context = model.encode(observation())
        plain = model.sample(context, noise=noise)
        chunk = model.sample(context, noise=noise, prior=Prior(known, weight, method))  # pyright: ignore[reportArgumentType]
    assert torch.isfinite(chunk).all()
    torch.testing.assert_close(chunk[0], plain[0])
    for b, d in enumerate([3, 3, 0, 5, 7][1:], start=1):
        assert torch.equal(chunk[b, : TO - 1 + d], known[b, : TO - 1 + d])
        assert not torch.allclose(chunk[b, TO - 1 + d :], plain[b, TO - 1 + d :])


def test_guidance_brings_a_trained_like_denoiser_nearer_to_the_known_actions() -> None:
    """The denoiser is the posterior mean of Gaussian actions that are correlated along the chunk."""
    place = torch.arange(T).double()
    covariance = torch.exp(-((place[:, None] - place) ** 2) / 8) + 1e-3 * torch.eye(T).double()

    def gaussian(x: Tensor, t: Tensor) -> Tensor:
        tau = t[0, 0]
        gain = tau * covariance @ torch.linalg.inv(tau**2 * covariance + (1 - tau) ** 2 * torch.eye(T).double())
        return gain @ x

    flow = Flow(FlowConfig(steps=20))
    generator = torch.Generator().manual_seed(0)
    known = (torch.linalg.cholesky(covariance) @ torch.randn(64, T, A, generator=generator).double()).float().double()
    noise = torch.randn(64, T, A, generator=generator).double()
    weight = torch.zeros(64, T, 1).double()
    weight[:, :3] = 1
    jump = {}
    for method in ("none", "rtc", "rtc-identity"):
        steered = gaussian if method == "none" else with_prior(gaussian, prior(method), known, weight, flow)
        chunk = flow.sample(steered, noise)
        jump[method] = float((chunk[:, 3] - known[:, 2]).norm(dim=-1).mean())
    within = float((known[:, 3] - known[:, 2]).norm(dim=-1).mean())
    assert jump["rtc"] < 0.5 * jump["none"]
    assert jump["rtc"] < 2 * within


def test_rtc_with_an_engine_that_has_no_gradients_says_so() -> None:
    x, known, weight = problem()
    steered = with_prior(lambda x, t: toy(x.detach(), t), prior("rtc"), known, weight, Flow(FlowConfig()))
    with pytest.raises(PriorError, match="rtc-identity"):
        steered(x, torch.zeros(B, 1))


def test_a_prior_of_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="rtc-identity"):
        Prior(torch.zeros(1, T, A), torch.zeros(T), "magic")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("policy", "trunk"), [("flow", "unet1d"), ("diffusion", "transformer")])
def test_prefix_gives_the_network_the_leading_actions_clean_at_time_one(policy: str, trunk: str) -> None:
    model = trained_for_prefix(policy, trunk)
    known, delays = actions(), torch.tensor([0, 1, 4, 6, 2])
    weight = rtc_weights(TP, TO - 1, delays, 8)
    weight[4] = 0  # no previous chunk: not even the past is given
    seen: list[tuple[Tensor, Tensor]] = []
    inner = model.trunk.forward
    model.trunk.forward = lambda x, t, context: (seen.append((x, t)), inner(x, t, context))[1]  # pyright: ignore[reportAttributeAccessIssue]
    with torch.inference_mode():
        chunk = model.sample(model.encode(observation()), noise=model.noise(5), prior=Prior(known, weight, "prefix"))
    given = [1, 2, 5, 7, 0]
    assert len(seen) == 10
    for x, t in seen:
        for b, n in enumerate(given):
            torch.testing.assert_close(x[b, :n], model.action(known)[b, :n])
            assert (t[b, :n] == 1).all()
            assert (t[b, n:] < 1).all()
            assert len(set(t[b, n:].tolist())) == 1
    for b, n in enumerate(given):
        assert torch.equal(chunk[b, :n], known[b, :n])


def test_prefix_is_refused_by_a_policy_that_was_not_trained_for_it() -> None:
    for most in (0, 4):
        model = trained_for_prefix("flow", "unet1d", most)
        with pytest.raises(PriorError, match=f"at most {most}.*prefix 5"):
            model.sample(model.encode(observation()), prior=Prior(actions(), rtc_weights(TP, TO - 1, 4, 8), "prefix"))
    model.sample(model.encode(observation()), prior=Prior(actions(), rtc_weights(TP, TO - 1, 3, 8), "prefix"))


def trained_for_prefix(policy: str, trunk: str, prefix: int = 7) -> Policy:
    model = make(policy, trunk)
    objective = replace(model.config.objective, prefix=prefix)
    model.config = replace(model.config, objective=objective)
    return model


def test_prefix_training_gives_a_number_of_leading_actions_that_is_uniform() -> None:
    for objective in (Flow(FlowConfig(prefix=6)), Diffusion(DiffusionConfig(prefix=6))):
        t = objective.draw(7000, (TP, 2), torch.Generator().manual_seed(0))["time"]
        assert t.shape == (7000, TP)
        given = (t == 1).sum(1)
        assert ((t == 1).long().cumprod(1).sum(1) == given).all()  # leading
        assert given.bincount(minlength=8).tolist() == pytest.approx([1000] * 7 + [0], abs=120)
        rest = t[:, 6:]
        assert (rest == rest[:, :1]).all()


def test_the_option_leaves_the_draws_of_the_other_numbers_as_they_were() -> None:
    for plain, prefixed in (
        (Flow(FlowConfig()), Flow(FlowConfig(prefix=6, streaming=4))),
        (Diffusion(DiffusionConfig()), Diffusion(DiffusionConfig(prefix=6))),
    ):
        first, second = (o.draw(9, (TP, 2), torch.Generator().manual_seed(0)) for o in (plain, prefixed))
        assert torch.equal(first["noise"], second["noise"])
        assert first["time"].shape == (9, 1)


@pytest.mark.parametrize("kind", ["flow", "diffusion"])
@pytest.mark.parametrize("learn_padding", [False, True])
def test_loss_counts_the_actions_that_were_not_given(kind: str, learn_padding: bool) -> None:
    model = make(kind)
    model.config = replace(model.config, learn_padding=learn_padding)
    draws = model.draw(5, torch.Generator().manual_seed(0))
    draws["time"] = draws["time"].repeat(1, TP)
    given = [0, 2, 5, 9, 16]
    for b, n in enumerate(given):
        draws["time"][b, :n] = 1
    pad = torch.zeros(5, TP, dtype=torch.bool)
    pad[:, 12:] = True
    loss = model.loss(Batch(observation(), actions(), pad), draws=draws).terms[kind]

    clean, noise = model.action(actions()), draws["noise"]
    t = draws["time"].unsqueeze(-1)
    if kind == "flow":
        x, target = (1 - t) * noise + t * clean, clean - noise
    else:
        alpha_bar = model.objective.alpha_bar[((1 - t) * 100).round().long()]  # pyright: ignore[reportAttributeAccessIssue]
        x, target = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise, noise
    error = (model.trunk(x, draws["time"], model.encode(observation())) - target).square().mean(-1)
    last = TP if learn_padding else 12
    expected = [error[b, n:last].mean() if n < last else torch.tensor(0.0) for b, n in enumerate(given)]
    torch.testing.assert_close(loss, torch.stack(expected))


@pytest.mark.parametrize("options", [{"prefix": 6}, {"prefix": 4, "streaming": 4}])
@pytest.mark.parametrize("kind", ["flow", "diffusion"])
def test_two_processes_compute_the_loss_of_one_for_the_same_draws(kind: str, options: dict[str, int]) -> None:
    """Each process draws for the joint batch and takes its slice, as the training loop does."""
    model = make(kind)
    model.objective.config = replace(model.objective.config, **options)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    whole = Batch({"state": observation()["state"][:4]}, actions()[:4], torch.zeros(4, TP, dtype=torch.bool))
    losses = []
    for share in (slice(0, 4), slice(0, 2), slice(2, 4)):
        draws = model.draw(4, torch.Generator().manual_seed(11))
        part = Batch({"state": whole.observation["state"][share]}, whole.action[share], whole.is_pad[share])
        losses.append(model.loss(part, draws={name: value[share] for name, value in draws.items()}).terms[kind])
    torch.testing.assert_close(torch.cat(losses[1:]), losses[0], rtol=1e-5, atol=1e-6)
