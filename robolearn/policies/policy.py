"""A policy: encoder + trunk + objective, between normalisers. Shape letters: see contracts.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.policies.condition import Condition
from robolearn.policies.config import PolicyConfig
from robolearn.policies.contracts import Batch, Context, Draws, Losses, Network, Objective, Prior
from robolearn.policies.encoders.observation import ObservationEncoder
from robolearn.policies.goals import GoalEncoder, GoalError, checked_goal, goal_key
from robolearn.policies.guidance import PriorError, leading, with_prior
from robolearn.policies.normalise import VectorNormaliser
from robolearn.policies.objectives.diffusion import Diffusion, DiffusionConfig
from robolearn.policies.objectives.flow import Flow, FlowConfig
from robolearn.policies.objectives.meanflow import MeanFlow, MeanFlowConfig
from robolearn.policies.objectives.regression import Regression, RegressionConfig
from robolearn.policies.reactive.config import ReactiveError
from robolearn.policies.reactive.tokenizer import Tokenizer
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn.policies.trunks.nearest import Nearest, NearestConfig
from robolearn.policies.trunks.transformer import Transformer
from robolearn.policies.trunks.unet1d import UNet1d
from robolearn.policies.vla.config import VlaConfig
from robolearn.policies.vla.encoder import PrefixEncoder, no_statistics
from robolearn.policies.vla.expert import ActionExpert
from robolearn.policies.vla.start import load_start
from robolearn_data.statistics import StreamStatistics

TRUNKS = {"unet1d": UNet1d, "transformer": Transformer, "nearest": Nearest}
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
            _check_vla(spec, config)
            self.encoder = PrefixEncoder(spec, statistics, config.normalisation, config.trunk, assets)
        else:
            self.encoder = ObservationEncoder(
                spec.observation, statistics, config.normalisation, config.encoder, spec.components
            )
        self.goal_encoder = self.condition = None
        tokens, width = spec.obs_horizon, self.encoder.width
        if spec.goal:
            self.goal_encoder = GoalEncoder(spec, statistics, config.normalisation, config.encoder, width)
            self.condition = Condition(1, width)
            tokens += 1
        elif config.condition_drop:
            self.condition = Condition(tokens, width)
        self._goal: dict[str, Tensor] | None = None
        self.tokenizer = None if config.tokenizer is None else Tokenizer(spec, statistics, config.tokenizer)
        if self.tokenizer is not None:
            _check_reactive(spec, config)
        room = 0
        if isinstance(config.trunk, VlaConfig) and config.trunk.padding == "noise":
            room = config.trunk.max_action
        self.action = VectorNormaliser(spec.action, statistics["action"], config.normalisation, room=room)
        self.chunk_shape = self.tokenizer.shape if self.tokenizer else (spec.horizon, max(spec.action.size, room))
        """(T, A) of what the trunk predicts: the actions of a chunk, with padding where it is denoised too, or the
        tokens of a slow-fast policy's latent."""
        length, numbers = self.chunk_shape
        prefix, block = config.objective.prefix, config.objective.streaming
        if min(prefix, block) < 0 or prefix + max(block, 1) > spec.horizon:
            raise SpecError(
                f"a prefix of {prefix} given actions and a streaming block of {block} do not fit a horizon of "
                f"{spec.horizon}: neither may be negative, and one action at least must be left to predict"
            )
        if config.objective.guidance != 1 and not (self.condition and config.condition_drop):
            raise SpecError(
                f"guidance {config.objective.guidance:g} needs windows that were shown without their condition: "
                "train with --policy.condition-drop 0.1, or with guidance 1"
            )
        if config.trunk.kind == "nearest":
            _check_nearest(spec, config)
        self.objective = OBJECTIVES[config.objective.kind](config.objective, length, numbers)
        spans = self.objective.spans
        if isinstance(config.trunk, VlaConfig) and isinstance(self.encoder, PrefixEncoder):
            self.trunk: nn.Module = ActionExpert(spec.action.size, self.encoder.shape, config.trunk, spans=spans)
        else:
            self.trunk = TRUNKS[config.trunk.kind](numbers, tokens, width, config.trunk, spans=spans)
        if isinstance(config.trunk, VlaConfig) and config.trunk.start_from and assets is None:
            load_start(self, Path(config.trunk.start_from))

    @property
    def device(self) -> torch.device:
        return self.action.offset.device

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """The random numbers of one training step on ``batch`` windows (on the CPU: the same on every device)."""
        draws = self.objective.draw(batch, self.chunk_shape, generator)
        if self.tokenizer is not None:
            draws["token_noise"] = torch.randn(batch, *self.chunk_shape, generator=generator)
        if self.condition:
            draws["drop"] = torch.rand(batch, 1, generator=generator) < self.config.condition_drop
        return draws

    def noise(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise (B, T, A) from which ``sample`` starts."""
        return torch.randn(batch, *self.chunk_shape, generator=generator).to(self.device)

    def forward(self, batch: Batch, draws: Draws | None = None, weight: Tensor | None = None) -> Losses:
        """``loss``, under the name that torch's parallel wrappers call."""
        return self.loss(batch, draws=draws, weight=weight)

    def loss(self, batch: Batch, *, draws: Draws | None = None, weight: Tensor | None = None) -> Losses:
        """The objective's terms, meant over the actions of each window that are not padding.

        Actions that the draws give clean (time 1) do not count either. Of a slow-fast policy they are the tokenizer's
        until it is settled, then those of the slow half.

        Args:
            draws: the random numbers to use; fresh ones by default.
            weight: (B,) factor of each window.
        """
        draws = self.draw(len(batch.action)) if draws is None else draws
        draws = {name: value.to(self.device) for name, value in draws.items()}
        known_BT = torch.ones_like(batch.is_pad) if self.config.learn_padding else ~batch.is_pad
        if self.tokenizer is not None and not self.tokenizer.settled:
            terms, learned_BT = self.tokenizer.losses(self.action(batch.action), batch.observation, draws), known_BT
        else:
            terms, learned_BT = self._chunk_losses(batch, known_BT, draws)
        learned_BT = learned_BT.float()
        for name, term in terms.items():
            if term.ndim == 2:
                term = (term * learned_BT).sum(1) / learned_BT.sum(1).clamp(min=1)
            terms[name] = term if weight is None else term * weight
        return Losses(terms)

    def _chunk_losses(self, batch: Batch, known_BT: Tensor, draws: Draws) -> tuple[dict[str, Tensor], Tensor]:
        """The objective's terms, and which of the T things it predicts are learned, bool (B, T)."""
        chunk = self.action(batch.action)
        if self.tokenizer is not None:
            chunk = self.tokenizer.latent(chunk)
            known_BT = known_BT.unflatten(1, (len(chunk[0]), -1)).any(-1)
        learned_BT = known_BT & (draws["time"] < 1)  # what is given clean is not learned
        context = self.encode(batch.observation)
        if self.condition:
            context = self.condition.dropped(context, draws["drop"])
        return self.objective.losses(self.network(context), chunk, draws), learned_BT

    def encode(self, observation: Mapping[str, Tensor]) -> Context:
        """Stream -> (B, O, *stream.shape), physical units; images 0..255; and the goal, see goals.py.

        Raises:
            GoalError: no goal is given to a policy that was never trained without one.
        """
        context = self.encoder(observation)
        if self.goal_encoder is None or self.condition is None:
            return context
        if all(goal_key(name) in observation for name in self.spec.goal):
            goal = self.goal_encoder(observation)
        elif self._goal is not None:
            goal = self.goal_encoder(self._goal).expand(len(context), -1, -1)
        elif self.config.condition_drop:
            goal = self.condition.null.expand(len(context), -1, -1)
        else:
            raise GoalError(
                f"the policy needs a goal ({', '.join(self.spec.goal)}): give --goal DATASET:EPISODE, or train with "
                "--policy.condition-drop 0.1 to act without one too"
            )
        return Context(torch.cat([context.tokens, goal.to(context.tokens)], dim=1))

    def aim(self, goal: Mapping[str, Tensor] | None) -> None:
        """Give the goal of all that is asked from now on, stream -> (*stream.shape) in physical units; None: no goal.

        Raises:
            GoalError: the policy takes no goal, or another one.
        """
        self._goal = None if goal is None else {k: v.to(self.device) for k, v in checked_goal(self.spec, goal).items()}

    def network(self, context: Context) -> Network:
        """The trunk with a context."""
        return functools.partial(self._predict, context)

    def _predict(self, context: Context, x: Tensor, t: Tensor, *, conditioned: bool = True, **more: Any) -> Tensor:
        if not conditioned:
            assert self.condition is not None
            context = self.condition.without(context)
        return self.trunk(x, t, context, **more)

    def denoise(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Estimate of the clean chunk behind ``x``, both (B, T, A) in normalised units.

        Args:
            t: (B, 1) or (B, T), time of each token from 0 (noise) to 1 (clean).
        """
        clean = self.objective.clean(self.network(context), x, t)
        w = self.config.objective.guidance
        if w == 1 or self.objective.trains_guided or self.condition is None:
            return clean
        free = self.objective.clean(self.network(self.condition.without(context)), x, t)
        return free + w * (clean - free)

    def sample(
        self, context: Context, *, noise: Tensor | None = None, steps: int | None = None, prior: Prior | None = None
    ) -> Tensor:
        """A chunk (B, T, A) in physical units, deterministic given ``noise`` (B, T, A).

        Of a slow-fast policy it is (B, T, W), the latent, for the fast half; ``noise`` is (B, *chunk_shape).

        Args:
            steps: denoising steps; the configuration's by default.
            prior: known actions, and the method by which they steer the others.

        Raises:
            PriorError: the policy was not trained for this prior.
        """
        noise = self.noise(len(context)) if noise is None else noise
        if self.tokenizer is not None and not self.tokenizer.settled:
            raise ReactiveError("the slow half of this policy has not been trained yet: train on with --resume")
        if prior is None:
            chunk = self.objective.sample(lambda x, t: self.denoise(x, t, context), noise, steps)
            return self.tokenizer.rows(chunk) if self.tokenizer else self.action.inverse(chunk)
        if self.tokenizer is not None:
            raise PriorError("the chunks of a slow-fast policy are latents, which no known actions can steer")

        prior = replace(prior, beta=min(prior.beta, self.objective.steps(steps)))
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


def _check_nearest(spec: PolicySpec, config: PolicyConfig) -> None:
    learned = [name for name, stream in {**spec.observation, **spec.goal}.items() if stream.kind != "state"]
    if learned:
        raise SpecError(
            f"a nearest-neighbour policy compares states, and learns nothing that could compare {learned[0]!r}; "
            "give states with --observe, or another --policy"
        )
    if not isinstance(config.objective, RegressionConfig) or config.objective.latent or spec.goal:
        raise SpecError(
            "the trunk nearest takes no goal, and the objective regression without a latent: --policy nearest"
        )


def _check_reactive(spec: PolicySpec, config: PolicyConfig) -> None:
    if isinstance(config.trunk, VlaConfig | NearestConfig) or config.objective.prefix or config.objective.streaming:
        raise SpecError(
            "a slow-fast policy has a trunk unet1d or transformer, and an objective without prefix and streaming: its "
            "chunks are latents"
        )


def _check_vla(spec: PolicySpec, config: PolicyConfig) -> None:
    if spec.goal or config.condition_drop:
        raise SpecError(
            "a VLA is told by its instruction what to do, and takes neither --goal nor --policy.condition-drop; leave "
            "them out, or take --policy flow"
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
        case RegressionConfig() if isinstance(config.trunk, NearestConfig):
            return "nearest"
        case RegressionConfig(latent=latent, error=error):
            return "act" if latent else {"squared": "mse", "absolute": "mae"}[error]
