"""A policy: encoder + trunk + objective, between normalisers. Shape letters: see contracts.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.policies.config import PolicyConfig
from robolearn.policies.contracts import Batch, Context, Draws, Losses, Network, Objective, Prior
from robolearn.policies.encoders import ObservationEncoder
from robolearn.policies.guidance import PriorError, leading, with_prior
from robolearn.policies.normalise import VectorNormaliser
from robolearn.policies.objectives.diffusion import Diffusion, DiffusionConfig
from robolearn.policies.objectives.flow import Flow, FlowConfig
from robolearn.policies.objectives.meanflow import MeanFlow, MeanFlowConfig
from robolearn.policies.objectives.regression import Regression, RegressionConfig
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn.policies.trunks.transformer import Transformer
from robolearn.policies.trunks.unet1d import UNet1d
from robolearn.policies.vla.config import VlaConfig
from robolearn.policies.vla.encoder import PrefixEncoder, no_statistics
from robolearn.policies.vla.expert import ActionExpert
from robolearn.policies.vla.start import load_start
from robolearn_data.statistics import StreamStatistics

TRUNKS = {"unet1d": UNet1d, "transformer": Transformer}
"""A trunk is built from (action components, context tokens, token width, its configuration), and ``spans``. A VLA is
built beside its own encoder, in ``Policy``."""

OBJECTIVES: dict[str, Callable[[Any, int, int], Objective]] = {
    "flow": lambda config, horizon, actions: Flow(config),
    "diffusion": lambda config, horizon, actions: Diffusion(config),
    "meanflow": lambda config, horizon, actions: MeanFlow(config),
    "regression": Regression,
}
"""An objective is built from (its configuration, actions in a chunk, components of an action)."""


class Policy(nn.Module):
    """Predicts chunks of actions from observations; everything it is told and returns is in physical units."""

    def __init__(
        self,
        spec: PolicySpec,
        statistics: Mapping[str, StreamStatistics],
        config: PolicyConfig,
        *,
        assets: Path | None = None,
    ) -> None:
        """``assets``: the folder of a checkpoint whose weights will be loaded, for parts that keep files there."""
        super().__init__()
        if "action" not in statistics:
            raise no_statistics(["action"])
        self.spec = spec
        self.statistics = dict(statistics)
        self.config = config
        self.encoder: ObservationEncoder | PrefixEncoder
        if isinstance(config.trunk, VlaConfig):
            self.encoder = PrefixEncoder(spec, statistics, config.normalisation, config.trunk, assets)
        else:
            self.encoder = ObservationEncoder(spec, statistics, config.normalisation, config.encoder)
        prefix, block = config.objective.prefix, config.objective.streaming
        if min(prefix, block) < 0 or prefix + max(block, 1) > spec.horizon:
            raise SpecError(
                f"a prefix of {prefix} given actions and a streaming block of {block} do not fit a horizon of "
                f"{spec.horizon}: neither may be negative, and one action at least must be left to predict"
            )
        self.objective = OBJECTIVES[config.objective.kind](config.objective, spec.horizon, spec.action.size)
        spans = self.objective.spans
        if isinstance(config.trunk, VlaConfig) and isinstance(self.encoder, PrefixEncoder):
            self.trunk: nn.Module = ActionExpert(spec.action.size, self.encoder.shape, config.trunk, spans=spans)
        else:
            self.trunk = TRUNKS[config.trunk.kind](
                spec.action.size, spec.obs_horizon, self.encoder.width, config.trunk, spans=spans
            )
        self.action = VectorNormaliser(spec.action, statistics["action"], config.normalisation)
        if isinstance(config.trunk, VlaConfig) and config.trunk.start_from and assets is None:
            load_start(self, Path(config.trunk.start_from))

    @property
    def device(self) -> torch.device:
        return self.action.offset.device

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """The random numbers of one training step on ``batch`` windows (on the CPU: the same on every device)."""
        return self.objective.draw(batch, (self.spec.horizon, self.spec.action.size), generator)

    def noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise (B, T, A) from which ``sample`` starts."""
        return torch.randn(batch, self.spec.horizon, self.spec.action.size, generator=generator).to(self.device)

    def forward(self, batch: Batch, draws: Draws | None = None, weight: Tensor | None = None) -> Losses:
        """``loss``, under the name that torch's parallel wrappers call."""
        return self.loss(batch, draws=draws, weight=weight)

    def loss(self, batch: Batch, *, draws: Draws | None = None, weight: Tensor | None = None) -> Losses:
        """The objective's terms, meant over the actions of each window that are not padding.

        Actions that the draws give clean (time 1) do not count either.

        Args:
            draws: the random numbers to use; fresh ones by default.
            weight: (B,) factor of each window.
        """
        draws = self.draw(len(batch.action)) if draws is None else draws
        draws = {name: value.to(self.device) for name, value in draws.items()}
        learned_BT = draws["time"] < 1  # what is given clean is not learned
        if not self.config.learn_padding:
            learned_BT = learned_BT & ~batch.is_pad
        learned_BT = learned_BT.float().expand(batch.is_pad.shape)
        network = self.network(self.encode(batch.observation))
        terms = self.objective.losses(network, self.action(batch.action), draws)
        for name, term in terms.items():
            if term.ndim == 2:
                term = (term * learned_BT).sum(1) / learned_BT.sum(1).clamp(min=1)
            terms[name] = term if weight is None else term * weight
        return Losses(terms)

    def encode(self, observation: Mapping[str, Tensor]) -> Context:
        """Stream -> (B, O, *stream.shape), physical units; images 0..255."""
        return self.encoder(observation)

    def network(self, context: Context) -> Network:
        """The trunk with a context."""
        return functools.partial(self._predict, context)

    def _predict(self, context: Context, x: Tensor, t: Tensor, **more: Any) -> Tensor:
        return self.trunk(x, t, context, **more)

    def denoise(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Estimate of the clean chunk behind ``x``, both (B, T, A) in normalised units.

        Args:
            t: (B, 1) or (B, T), time of each token from 0 (noise) to 1 (clean).
        """
        return self.objective.clean(self.network(context), x, t)

    def sample(
        self, context: Context, *, noise: Tensor | None = None, steps: int | None = None, prior: Prior | None = None
    ) -> Tensor:
        """A chunk (B, T, A) in physical units, deterministic given ``noise`` (B, T, A).

        Args:
            steps: denoising steps; the configuration's by default.
            prior: known actions, and the method by which they steer the others.

        Raises:
            PriorError: the policy was not trained for this prior.
        """
        noise = self.noise(len(context)) if noise is None else noise
        if prior is None:
            return self.action.inverse(self.objective.sample(lambda x, t: self.denoise(x, t, context), noise, steps))

        known = self.action(prior.action.to(noise))
        weight = prior.weight.to(noise).expand(noise.shape[:2]).unsqueeze(-1)
        weight = torch.where(known.isnan().any(-1, keepdim=True), 0.0, weight)
        known = torch.where(weight > 0, known, 0.0)
        if prior.method == "prefix":
            self.check_prefix(int(leading(weight).sum(1).max()))
        if prior.method == "rtc":  # autograd refuses what was made in inference mode
            with torch.inference_mode(False):
                context = Context(context.tokens.clone())
        guided = with_prior(lambda x, t: self.denoise(x, t, context), prior, known, weight, self.objective)
        chunk = self.objective.sample(guided, noise, steps)
        return torch.where(weight == 1, prior.action.to(noise), self.action.inverse(chunk))

    def check_prefix(self, actions: int) -> None:
        """Check that the policy was trained with so many leading actions given clean.

        Raises:
            PriorError: it was trained with fewer.
        """
        most = self.config.objective.prefix
        if actions > most:
            raise PriorError(
                f"{actions} leading actions are given, the policy was trained with at most {most}: "
                f"train with --policy.objective.prefix {actions}, infer faster, or use another method than prefix"
            )


def sampler_of(config: PolicyConfig) -> str:
    """Name of objective and steps as results quote it: flow-10, ddim-10, ddpm-100."""
    match config.objective:
        case FlowConfig(steps=steps):
            return f"flow-{steps}"
        case DiffusionConfig(sampler="ddim", steps=steps):
            return f"ddim-{steps or 10}"
        case DiffusionConfig(steps=steps, levels=levels):
            return f"ddpm-{steps or levels}"
        case MeanFlowConfig(steps=steps):
            return f"meanflow-{steps}"
        case RegressionConfig(latent=latent, error=error):
            return "act" if latent else {"squared": "mse", "absolute": "mae"}[error]
