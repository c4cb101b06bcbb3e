"""What can be chosen of a policy, and the named starting points.

A new objective or trunk is one file, its configuration in the union below and its class in policy.py's dict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Discriminator

from robolearn.policies.encoders.observation import EncoderConfig
from robolearn.policies.normalise import Normalisation
from robolearn.policies.objectives.diffusion import DiffusionConfig
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.objectives.meanflow import MeanFlowConfig
from robolearn.policies.objectives.regression import RegressionConfig
from robolearn.policies.reactive.config import TokenizerConfig
from robolearn.policies.trunks.nearest import NearestConfig
from robolearn.policies.trunks.transformer import TransformerConfig
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.policies.vla.config import VlaConfig

ObjectiveConfig = Annotated[FlowConfig | DiffusionConfig | MeanFlowConfig | RegressionConfig, Discriminator("kind")]
TrunkConfig = Annotated[UNet1dConfig | TransformerConfig | NearestConfig | VlaConfig, Discriminator("kind")]


@dataclass(frozen=True)
class PolicyConfig:
    """Encoder, trunk, objective and horizons. Horizons count control steps."""

    objective: ObjectiveConfig = field(default_factory=FlowConfig)
    trunk: TrunkConfig = field(default_factory=UNet1dConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    obs_horizon: int = 2
    """Observations the policy sees (To)."""
    horizon: int = 16
    """Actions in a predicted chunk (Tp)."""
    action_horizon: int = 8
    """Actions carried out before the next chunk in synchronous control (Ta)."""
    condition_drop: float = 0.0
    """Part of the training windows that are shown without their condition (the goal; without one, the observation), for
    classifier-free guidance and for acting without a goal; 0.1 is usual."""
    normalisation: Normalisation = "min-max"
    learn_padding: bool = False
    """Count the repeated actions beyond an episode's end in the loss (right for absolute targets: hold the last)."""
    tokenizer: TokenizerConfig | None = None
    """Of a slow-fast policy: what the slow half predicts is a latent, of which the fast half makes actions."""


PolicyName = Literal["flow", "diffusion", "meanflow", "act", "regression", "nearest", "vla", "reactive"]

POLICIES: dict[str, Callable[[], PolicyConfig]] = {
    "flow": lambda: PolicyConfig(objective=FlowConfig()),
    "diffusion": lambda: PolicyConfig(objective=DiffusionConfig()),
    "meanflow": lambda: PolicyConfig(objective=MeanFlowConfig()),
    "act": lambda: PolicyConfig(
        RegressionConfig(error="absolute", latent=32),
        TransformerConfig(),
        obs_horizon=1,
        horizon=100,
        action_horizon=50,
    ),
    "regression": lambda: PolicyConfig(objective=RegressionConfig()),
    "vla": lambda: PolicyConfig(FlowConfig(time="beta"), VlaConfig(), obs_horizon=1, normalisation="quantile"),
    "nearest": lambda: PolicyConfig(RegressionConfig(), NearestConfig()),
    "reactive": lambda: PolicyConfig(
        DiffusionConfig(), horizon=16, action_horizon=12, learn_padding=True, tokenizer=TokenizerConfig()
    ),
}
"""`--policy NAME` -> its configuration, which further options change."""


def with_policy(config: PolicyConfig, policy: PolicyName) -> PolicyConfig:
    """``config`` with the objective of another policy and all else as it is, so that the two can be compared; its trunk
    too where the other one has none, or is the only one to have its own."""
    other = POLICIES[policy]()
    names = {policy, policy_name(config)}
    swaps = len(names) == 2 and bool(names & {"nearest", "vla"})
    trunk = other.trunk if swaps else config.trunk
    return replace(config, objective=other.objective, trunk=trunk, tokenizer=other.tokenizer)


def policy_name(config: PolicyConfig) -> PolicyName:
    """The name in ``POLICIES`` that ``config`` comes from."""
    objective = config.objective
    if config.tokenizer is not None:
        return "reactive"
    if isinstance(config.trunk, NearestConfig | VlaConfig):
        return config.trunk.kind
    return "act" if isinstance(objective, RegressionConfig) and objective.latent else objective.kind


TRUNK_DEFAULTS: dict[str, Callable[[], TrunkConfig]] = {
    "unet1d": UNet1dConfig,
    "transformer": TransformerConfig,
    "vla": VlaConfig,
}
"""`--trunk NAME` -> its configuration."""
