"""Objectives against hand-computed cases, finite differences, and toy distributions that are known."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from policy_makers import TO, TP, B, actions, make, observation
from torch import Tensor, nn

from robolearn.policies.contracts import Batch, Network, Objective
from robolearn.policies.objectives.diffusion import Diffusion, DiffusionConfig
from robolearn.policies.objectives.flow import Flow, FlowConfig
from robolearn.policies.objectives.meanflow import MeanFlow, MeanFlowConfig, dispersion
from robolearn.policies.objectives.regression import Regression, RegressionConfig

SHAPE = (6, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nonlinear(x: Tensor, t: Tensor, *, until: Tensor | None = None, features: list[Tensor] | None = None) -> Tensor:
    """A network whose tokens see each other, in the input's precision."""
    r = torch.ones_like(t) if until is None else until
    mixed = (x + 0.3 * x.roll(1, 1)).tanh() * (1 + t.unsqueeze(-1)).sin()
    return mixed + (r.unsqueeze(-1) - 0.5 * t.unsqueeze(-1)).cos() * x.square()


def test_the_mean_velocity_of_a_linear_network_has_the_loss_computed_by_hand() -> None:
    a, b, c = 0.7, -0.4, 0.2

    def network(x: Tensor, t: Tensor, *, until: Tensor | None = None, features: Any = None) -> Tensor:
        assert until is not None
        return a * x + (b * t + c * until).unsqueeze(-1)

    objective = MeanFlow(MeanFlowConfig(adaptive=0.0))
    action = torch.randn(4, *SHAPE, generator=generator())
    draws = objective.draw(4, SHAPE, generator(1))
    t, r = draws["time"].unsqueeze(-1), draws["until"].unsqueeze(-1)
    v = action - draws["noise"]
    x = (1 - t) * draws["noise"] + t * action
    want = (a * x + b * t + c * r - v - (r - t) * (a * v + b)).square().mean(-1)
    torch.testing.assert_close(objective.losses(network, action, draws)["meanflow"], want)


@pytest.mark.parametrize("prefix", [0, 3])
def test_the_target_follows_finite_differences_along_the_path(prefix: int) -> None:
    objective = MeanFlow(MeanFlowConfig(adaptive=0.0, prefix=prefix))
    action = torch.randn(8, *SHAPE, generator=generator(), dtype=torch.float64)
    draws = {name: value.double() for name, value in objective.draw(8, SHAPE, generator(1)).items()}
    t, until = draws["time"], draws["until"]
    given = (t == 1).double()
    v = (action - draws["noise"]) * (1 - given).unsqueeze(-1)

    def along(h: float) -> Tensor:
        moved = t + h * (1 - given)
        x = (1 - t).unsqueeze(-1) * draws["noise"] + t.unsqueeze(-1) * action + h * v
        return nonlinear(x, moved, until=until)

    target = v + (until - t).unsqueeze(-1) * (along(1e-5) - along(-1e-5)) / 2e-5
    want = (along(0.0) - target).square().mean(-1)
    # The loss is computed in single precision.
    torch.testing.assert_close(
        objective.losses(nonlinear, action, draws)["meanflow"].double(), want, rtol=1e-4, atol=1e-5
    )


def test_spans_go_forwards_and_half_of_them_have_a_length() -> None:
    draws = MeanFlow(MeanFlowConfig()).draw(20_000, SHAPE, generator())
    assert (draws["until"] >= draws["time"]).all()
    assert (draws["until"] <= 1).all()
    assert abs((draws["until"] > draws["time"]).float().mean().item() - 0.5) < 0.02


def test_without_spans_a_mean_flow_learns_what_flow_matching_learns() -> None:
    action = torch.randn(8, *SHAPE, generator=generator())
    objective = MeanFlow(MeanFlowConfig(span_share=0.0, adaptive=0.0))
    draws = objective.draw(8, SHAPE, generator(1))
    network = functools.partial(nonlinear, until=draws["time"])
    want = Flow(FlowConfig()).losses(network, action, draws)["flow"]
    torch.testing.assert_close(objective.losses(nonlinear, action, draws)["meanflow"], want)


def test_the_target_has_no_gradient() -> None:
    scale = torch.tensor(0.5, requires_grad=True)

    def network(x: Tensor, t: Tensor, *, until: Tensor | None = None, features: Any = None) -> Tensor:
        return scale * x

    objective = MeanFlow(MeanFlowConfig(adaptive=0.0))
    action = torch.randn(4, *SHAPE, generator=generator())
    draws = objective.draw(4, SHAPE, generator(1))
    objective.losses(network, action, draws)["meanflow"].sum().backward()
    t, r, v = draws["time"].unsqueeze(-1), draws["until"].unsqueeze(-1), action - draws["noise"]
    x = (1 - t) * draws["noise"] + t * action
    want = (2 * (0.5 * x - v - (r - t) * 0.5 * v) * x).mean(-1).sum()
    torch.testing.assert_close(scale.grad, want)


def test_dispersion_is_the_formula_and_least_where_windows_are_apart() -> None:
    features = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = torch.tensor([[0.0, 1, 9], [1, 0, 4], [9, 4, 0]]) / 9
    torch.testing.assert_close(dispersion(features), (-pairs).exp().mean().log().expand(3))
    assert dispersion(torch.randn(16, 3, 2))[0] < dispersion(torch.zeros(16, 3, 2))[0]


@pytest.mark.parametrize("trunk", ["unet1d", "transformer"])
def test_the_dispersive_loss_reaches_the_trunks_inner_layers(trunk: str) -> None:
    model = make("meanflow", trunk).train()
    model.objective = MeanFlow(MeanFlowConfig(dispersive=0.5))
    batch = Batch(observation(), actions(), torch.zeros(B, TP, dtype=torch.bool))
    terms = model.loss(batch, draws=model.draw(B, generator())).terms
    assert set(terms) == {"meanflow", "dispersion"}
    terms["dispersion"].sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.trunk.parameters())


def test_the_divergence_of_the_latent_is_the_formula() -> None:
    objective = Regression(RegressionConfig(latent=3, kl=2.0), *SHAPE)
    action = torch.randn(5, *SHAPE, generator=generator())
    mean, log_variance = objective.posterior(action).chunk(2, dim=-1)
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum(-1)
    terms = objective.losses(nonlinear, action, objective.draw(5, SHAPE, generator()))
    torch.testing.assert_close(terms["divergence"], 2.0 * want)


@pytest.mark.parametrize(("error", "want"), [("squared", 0.25), ("absolute", 0.5)])
def test_a_regression_errs_by_the_distance_from_the_chunk(error: Any, want: float) -> None:
    objective = Regression(RegressionConfig(error=error), *SHAPE)
    action = torch.full((2, *SHAPE), 0.5)
    terms = objective.losses(lambda x, t, **_: torch.zeros_like(x), action, objective.draw(2, SHAPE, generator()))
    torch.testing.assert_close(terms["regression"], torch.full((2, SHAPE[0]), want))


@pytest.mark.parametrize("policy", ["act", "regression"])
def test_a_regression_gives_the_same_chunk_for_every_noise_and_its_estimate_is_that_chunk(policy: str) -> None:
    model = make(policy)
    with torch.inference_mode():
        context = model.encode(observation())
        chunks = [model.sample(context, noise=model.noise(B, generator(seed))) for seed in (0, 1)]
        estimate = model.denoise(torch.randn(B, TP, 2), torch.full((B, 1), 0.3), context)
    assert torch.equal(*chunks)
    torch.testing.assert_close(model.action.inverse(estimate), chunks[0])
    assert context.tokens.shape[1] == TO


# Toy distributions.


class Mlp(nn.Module):
    """A network for chunks of one number."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(5, 64), (64, 64)]
        self.net = nn.Sequential(*(m for a, b in widths for m in (nn.Linear(a, b), nn.SiLU())), nn.Linear(64, 1))

    def forward(
        self, x: Tensor, t: Tensor, *, until: Tensor | None = None, features: list[Tensor] | None = None
    ) -> Tensor:
        r = torch.ones_like(t) if until is None else until
        inputs = torch.cat([x[:, 0], t, (3 * t).cos(), r - t, (3 * (r - t)).sin()], dim=1)
        return self.net(inputs).unsqueeze(1)


@dataclass(frozen=True)
class Toy:
    modes: tuple[float, ...]
    width: float

    def draw(self, count: int, random: torch.Generator) -> Tensor:
        mode = torch.tensor(self.modes)[torch.randint(0, len(self.modes), (count, 1, 1), generator=random)]
        return mode + self.width * torch.randn(count, 1, 1, generator=random)


def trained(objective: Objective, toy: Toy, steps: int) -> Network:
    torch.manual_seed(0)
    network, random = Mlp(), generator(0)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        action = toy.draw(256, random)
        sum(
            t.mean() for t in objective.losses(network, action, objective.draw(256, (1, 1), random)).values()
        ).backward()  # pyright: ignore[reportAttributeAccessIssue]
        optimiser.step()
        schedule.step()
    return network


OBJECTIVES: dict[str, Objective] = {
    "flow": Flow(FlowConfig(steps=20)),
    "diffusion": Diffusion(DiffusionConfig(steps=20)),
    "meanflow": MeanFlow(MeanFlowConfig()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("toy", [Toy((0.3,), 0.2), Toy((-0.6, 0.6), 0.05)], ids=["one mode", "two modes"])
def test_a_known_distribution_is_recovered(name: str, toy: Toy) -> None:
    objective = OBJECTIVES[name]
    network = trained(objective, toy, 1500)
    with torch.no_grad():
        found = objective.sample(lambda x, t: objective.clean(network, x, t), torch.randn(4000, 1, 1)).flatten()
    want = toy.draw(4000, generator(9)).flatten()
    quantiles = torch.linspace(0.05, 0.95, 19)
    # One step must bend a line through two modes: it passes through the middle somewhere.
    worst = (found.quantile(quantiles) - want.quantile(quantiles)).abs().sort().values[-3]
    assert worst < 0.08
