"""What can be chosen of a training run, its YAML form, and the presets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import yaml
from pydantic import TypeAdapter, ValidationError

from robolearn.policies.config import POLICIES, PolicyConfig, PolicyName
from robolearn.policies.encoders.observation import EncoderConfig
from robolearn.policies.latent.config import LatentModelConfig
from robolearn.policies.objectives.diffusion import DiffusionConfig
from robolearn.policies.trunks.transformer import TransformerConfig
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.policies.vla import smolvla
from robolearn_data.schema import UserError

Images = Literal["auto", "memory", "disk"]
"""Where pictures are while a policy trains; auto: in memory if they take a modest part of what is free."""


class ConfigError(UserError):
    """A configuration file or option is wrong."""


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to zero, and an exponential moving average (EMA) of the weights."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup: int = 500
    """Steps in which the learning rate rises from zero."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema_power: float = 0.75
    """EMA decay at step k is 1 - (1 + k)^-power: young weights are forgotten."""
    ema_max: float = 0.9999


@dataclass(frozen=True)
class RunConfig:
    """What the loop reads, whatever it trains."""

    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    weights: tuple[float, ...] = ()
    """How often each dataset is drawn, relative to the others, whatever its size; empty: as often as it has windows."""
    held_out: float = 0.0
    """Part of each dataset's episodes to keep out of training, for held_out_loss; the same ones whatever the seed."""
    steps: int = 10_000
    """Optimiser steps; of a slow-fast policy those of its slow half, after the tokenizer's."""
    batch_size: int = 128
    """Windows per step, over all processes together."""
    seed: int = 0
    """Of the first weights, the order of the windows, the noise and the crops."""
    checkpoint_every: int = 1_000
    """Optimiser steps between checkpoints, and between states that --resume can go on from."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.held_out < 1:
            raise ConfigError(
                f"held_out must be from 0 to below 1, such as 0.05 for one episode in twenty; got {self.held_out}"
            )
        if any(not (math.isfinite(weight) and weight > 0) for weight in self.weights):
            raise ConfigError(f"weights must be positive, one for each dataset; got {self.weights}")


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """One training run of a policy. Everything that changes its result is here, in the dataset or in the package
    versions."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    observe: tuple[str, ...] = ()
    """Streams the policy sees; empty: every stream of kind state. "state:x,y" shows it two components by name."""
    feel: tuple[str, ...] = ()
    """Streams that the fast half of a slow-fast policy reads; empty: those of kind state whose names begin with
    "wrench"."""
    latent: str = ""
    """Run of `robolearn latent learn`: its latent actions are learned in place of recorded ones, from video that needs
    no actions. The policy sees the model's camera unless --observe says more."""
    start_from: str = ""
    """Run or checkpoint whose encoder and trunk training starts from, such as one trained with --latent: a policy of
    the same parts and observations. Where its actions have another size, the layers that read and write them start
    anew."""
    goal: tuple[str, ...] = ()
    """Streams whose value later in the episode the policy is told as its goal (hindsight), as in ``observe``; empty: it
    has none. With --policy.condition-drop 0.1 it learns to act without one as well, and can be guided."""
    goal_within: int | None = None
    """Most control steps from an observation to its goal; by default up to the episode's end."""
    pad_after: int | None = None
    """How many actions of a window may lie beyond its episode's end; by default action_horizon - 1. A long horizon
    needs more, or the policy never sees what the last observations of an episode look like."""
    eval_every: int = 0
    """Optimiser steps between evaluations in --world; 0: none."""
    eval_episodes: int = 20
    """Episodes of such an evaluation."""
    eval_seed: int = 50_000
    """Seed of the first evaluation episode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.goal_within is not None and self.goal_within < 1:
            raise ConfigError(f"goal_within must be at least 1, got {self.goal_within}")
        most = self.policy.horizon - self.policy.obs_horizon
        if self.pad_after is not None and not 0 <= self.pad_after <= most:
            raise ConfigError(f"pad_after must be from 0 to horizon - obs_horizon = {most}, got {self.pad_after}")
        if self.goal and self.eval_every and not self.policy.condition_drop:
            raise ConfigError("--eval-every evaluates without a goal; add --policy.condition-drop 0.1 or leave it out")
        if self.eval_every < 0 or self.eval_episodes < 1:
            raise ConfigError("eval_every must not be negative and eval_episodes at least 1")
        if self.latent and self.eval_every:
            raise ConfigError("latent actions move nothing: leave --eval-every out until robot actions are trained")


@dataclass(frozen=True)
class LatentTrainConfig(RunConfig):
    """One training run of a latent-action model."""

    model: LatentModelConfig = field(default_factory=LatentModelConfig)
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(lr=2e-3, warmup=100))
    stream: str = ""
    """The camera that is learned from; empty: the only one that there is."""
    features: str = ""
    """With --model.space features: run or checkpoint of a policy that sees this camera, whose frozen network makes
    the features."""
    batch_size: int = 64
    """Pairs of pictures per step, over all processes together."""
    steps: int = 5_000
    """Optimiser steps."""
    first_steps: int | None = None
    """With --model.language: optimiser steps of the first stage, before --steps of the second; by default as many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_steps is not None and (self.model.language == "none" or self.first_steps < 1):
            raise ConfigError(
                "--first-steps is for the first of the two stages of --model.language words or bytes, and at least 1"
            )
        if bool(self.features) != (self.model.space == "features"):
            raise ConfigError(
                "--features names a policy whose network makes the features, for --model.space features: give both or "
                "neither"
            )


def _pusht_state() -> TrainConfig:
    return TrainConfig(
        policy=PolicyConfig(trunk=UNet1dConfig(widths=(48, 96, 192))),
        optimiser=OptimiserConfig(lr=5e-4),
        observe=("state",),
        steps=12_000,
        batch_size=256,
        checkpoint_every=500,
        precision="bf16",
    )


def _pusht_image() -> TrainConfig:
    return replace(
        _pusht_state(), observe=("img", "state:agent_x,agent_y"), steps=10_000, batch_size=64, checkpoint_every=500
    )


_PUBLISHED = OptimiserConfig(lr=1e-4)
"""Of Diffusion Policy: AdamW 1e-4 (0.95, 0.999), weight decay 1e-6, warm-up 500, EMA power 0.75."""


def _pusht_state_published() -> TrainConfig:
    """Diffusion Policy's network for PushT from states (Chi et al. 2023), as in its notebook: 65 M parameters."""
    trunk = UNet1dConfig(widths=(256, 512, 1024), condition=256, conditioning="concatenate")
    return TrainConfig(
        policy=PolicyConfig(objective=DiffusionConfig(sampler="ddpm"), trunk=trunk, learn_padding=True),
        optimiser=_PUBLISHED,
        observe=("state",),
        steps=400_000,
        batch_size=256,
        checkpoint_every=5_000,
    )


def _pusht_state_transformer() -> TrainConfig:
    """The same with a transformer of the published width, depth and heads. Ours lets time in by adaLN, which the
    published one does without: it has more parameters."""
    published = _pusht_state_published()
    trunk = TransformerConfig(width=256, layers=8)
    return replace(
        published,
        policy=replace(published.policy, trunk=trunk),
        optimiser=replace(_PUBLISHED, betas=(0.9, 0.95), weight_decay=1e-3, warmup=1_000),
    )


def _pusht_image_published() -> TrainConfig:
    """From 96x96 pictures and the agent's position: ResNet-18 with 32 keypoints, 263 M parameters."""
    trunk = UNet1dConfig(widths=(512, 1024, 2048), condition=128, conditioning="concatenate")
    encoder = EncoderConfig(image="resnet18", image_width=64, pool="keypoints", crop=84 / 96)
    published = _pusht_state_published()
    return replace(
        published,
        policy=replace(published.policy, trunk=trunk, encoder=encoder),
        observe=("img", "state:agent_x,agent_y"),
        steps=800_000,
        batch_size=64,
    )


def _lift_state() -> TrainConfig:
    return TrainConfig(
        policy=PolicyConfig(trunk=UNet1dConfig(widths=(32, 64, 128))),
        optimiser=OptimiserConfig(lr=5e-4, warmup=200),
        observe=("state",),
        steps=2_000,
        checkpoint_every=500,
    )


def _vla_small() -> TrainConfig:
    """3 million parameters from nothing: two cores train it."""
    return TrainConfig(
        policy=POLICIES["vla"](),
        optimiser=OptimiserConfig(lr=5e-4),
        steps=10_000,
        batch_size=64,
        checkpoint_every=500,
        precision="bf16",
    )


def _vla_smolvla() -> TrainConfig:
    """SmolVLA's sizes (Shukor et al. 2025): 16 layers of SmolVLM2-500M, frozen, and an expert of 0.75 its width."""
    return TrainConfig(
        policy=smolvla.policy_config(),
        optimiser=OptimiserConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-10, warmup=1_000, clip=10.0),
        steps=20_000,
        batch_size=64,
    )


def starting(policy: PolicyName) -> TrainConfig:
    """The run that `--policy NAME` alone stands for."""
    config = TrainConfig(policy=POLICIES[policy]())
    # Every control step is a present, though few have a whole chunk of this length before them.
    if policy in ("act", "reactive"):
        config = replace(config, pad_after=config.policy.horizon - config.policy.obs_horizon)
    return config


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "pusht-state": _pusht_state,
    "pusht-image": _pusht_image,
    "pusht-state-published": _pusht_state_published,
    "pusht-state-transformer": _pusht_state_transformer,
    "pusht-image-published": _pusht_image_published,
    "lift-state": _lift_state,
    "vla-small": _vla_small,
    "vla-smolvla": _vla_smolvla,
}
"""`--preset NAME` -> the run that the README's figures come from, or one of a published size, which needs a GPU."""

C = TypeVar("C", bound=RunConfig)


@overload
def load_config(path: Path) -> TrainConfig: ...
@overload
def load_config(path: Path, kind: type[C]) -> C: ...
def load_config(path: Path, kind: type[RunConfig] = TrainConfig) -> RunConfig:
    """Read a configuration from YAML; what the file leaves out has its default.

    Raises:
        ConfigError: unknown keys, wrong types, no YAML.
    """
    try:
        return validated(TypeAdapter(kind), yaml.safe_load(path.read_text()) or {}, str(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def validated(adapter: TypeAdapter[Any], value: Any, where: str) -> Any:
    """``adapter``'s reading of ``value`` into a dataclass, with every complaint in one line.

    Raises:
        ConfigError: wrong types, or keys that the dataclass does not have.
    """
    try:
        result = adapter.validate_python(value)
    except ValidationError as error:
        faults = [f"{'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(faults)}") from error
    _refuse_unknown(value, asdict(result), where, "")
    return result


def _refuse_unknown(given: Any, known: Any, where: str, path: str) -> None:
    """Keys that pydantic passed over: it forbids extras only in classes of its own kind."""
    if not isinstance(given, dict) or not isinstance(known, dict):
        return
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {path}{key!s}; valid: {', '.join(known)}")
        _refuse_unknown(value, known[key], where, f"{path}{key}.")


def dump_config(config: RunConfig) -> str:
    """YAML that ``load_config`` reads back to an equal configuration."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value
