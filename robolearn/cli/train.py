"""`robolearn train`: options, presets and configuration files become one TrainConfig; then the loop runs."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from robolearn.cli.parse import UsageError, parse
from robolearn.policies.config import POLICIES, TRUNK_DEFAULTS, PolicyConfig, PolicyName, policy_name, with_policy
from robolearn.policies.vla.config import PretrainedConfig, SmallConfig, VlaConfig
from robolearn.training.config import PRESETS, Images, TrainConfig, load_config, starting


@dataclass(frozen=True)
class Options:
    """Train a policy from one or several datasets.

    Start from a --preset, a --config file or the defaults; --policy and --trunk choose parts; every other option
    changes one value. The run folder gets checkpoints, metrics.jsonl, loss.png and config.yaml.

    Several datasets are mixed if their streams and rates agree: `train real.zarr sim.zarr --weights 3 1` draws three
    windows of the first for one of the second. --held-out 0.05 never trains on one episode in twenty and reports the
    loss there: where it rises while the training loss falls, the policy learns the data by heart.

    With several GPUs or processes: torchrun --nproc-per-node 2 -m robolearn.cli.main train ..., or the same with
    `accelerate launch --num_processes 2`. Each process holds the whole model; with --shard it holds its part (FSDP).

    --policy reactive trains in two stages, one after the other: a tokenizer for --policy.tokenizer.steps, which turns
    chunks into latents and makes actions of them again while it feels the force (--feel wrench), then for --steps the
    diffusion that predicts latents.
    """

    datasets: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATASET [DATASET ...]", help_behavior_hint="(one or more)")]
    ]
    """Dataset folders or URLs (see `robolearn data info`)."""
    out: Path = Path("runs/train")
    """Run folder."""
    policy: PolicyName = "flow"
    """Flow matching, denoising diffusion, one-step flow (MeanFlow), ACT's conditional VAE, plain regression, the chunk
    of the nearest training window, a vision-language-action policy (flow matching; it reads pictures, states and the
    instruction), or a slow-fast one that reacts to force between its chunks (reactive). With --preset or --config it
    changes the objective alone, so that all else is equal; nearest and vla have a trunk of their own."""
    trunk: Literal["unet1d", "transformer", "nearest", "vla"] = "unet1d"
    """Network that predicts the chunk."""
    backbone: str = ""
    """Of a VLA: small (of ours, trained from nothing), a vision-language model at huggingface.co such as
    HuggingFaceTB/SmolVLM2-500M-Video-Instruct (SmolVLM2, PaliGemma, Qwen2.5-VL, Qwen3-VL), a folder of one, or
    tiny-smolvlm (random weights, for a trial). By default that of the preset, or small."""
    preset: (
        Literal[
            "pusht-state",
            "pusht-image",
            "lift-state",
            "pusht-state-published",
            "pusht-state-transformer",
            "pusht-image-published",
            "vla-small",
            "vla-smolvla",
        ]
        | None
    ) = None
    """Settings as the start: of the README's results, of Diffusion Policy's published sizes, which need a GPU, or of a
    VLA: a small one that two cores train, or SmolVLA's sizes."""
    config: Path | None = None
    """YAML file of settings as the start, such as the config.yaml of another run."""
    world: str | None = None
    """World to evaluate in during training, such as pusht or lift, every --eval-every steps."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    shard: bool = False
    """Divide the model among the processes: its weights, their gradients and average, and the optimiser's state. For
    one that is larger than a GPU; otherwise it is quicker without. Same result, but for how sums are rounded."""
    workers: int = 0
    """Threads that prepare coming batches (2 suit a GPU, or pictures on disk); 0: made when needed. Same result."""
    images: Images = "auto"
    """Where pictures are: in memory, or read from disk as needed; auto: in memory if there is plenty. Same result."""
    resume: bool = False
    """Go on with the run in --out; its config.yaml is used."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def read_options(argv: Sequence[str], prog: str) -> Options:
    """Two readings: the options that choose a starting point, then all of them over its values."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--policy", choices=list(POLICIES))
    first.add_argument("--trunk", choices=list(TRUNK_DEFAULTS))
    first.add_argument("--backbone", default="")
    first.add_argument("--preset", choices=list(PRESETS))
    first.add_argument("--config", type=Path)
    first.add_argument("--out", type=Path, default=Options.out)
    first.add_argument("--resume", action="store_true")
    try:
        chosen, _ = first.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; see `{prog} --help`") from None
    if chosen.preset and chosen.config:
        raise UsageError("--preset and --config are two starting points; give one")
    if chosen.resume:
        start = load_config(chosen.out / "config.yaml")
    elif chosen.config:
        start = load_config(chosen.config)
    else:
        start = PRESETS[chosen.preset]() if chosen.preset else starting(chosen.policy or "flow")
    if chosen.policy and chosen.policy != policy_name(start.policy):
        start = replace(start, policy=with_policy(start.policy, chosen.policy))
    if chosen.trunk and chosen.trunk != start.policy.trunk.kind:
        start = replace(start, policy=replace(start.policy, trunk=TRUNK_DEFAULTS[chosen.trunk]()))
    if chosen.backbone:
        start = replace(start, policy=_with_backbone(start.policy, chosen.backbone))
    default = Options(
        datasets=tyro.MISSING,
        policy=policy_name(start.policy),
        trunk=start.policy.trunk.kind,
        train=start,
    )
    return parse(Options, argv, prog=prog, default=default)


def _with_backbone(policy: PolicyConfig, name: str) -> PolicyConfig:
    trunk = policy.trunk
    if not isinstance(trunk, VlaConfig):
        raise UsageError("--backbone belongs to a VLA: add --policy vla")
    if name == "small":
        trunk = (
            trunk if isinstance(trunk.backbone, SmallConfig) else replace(trunk, backbone=SmallConfig(), learn="all")
        )
    elif isinstance(trunk.backbone, PretrainedConfig):
        trunk = replace(trunk, backbone=replace(trunk.backbone, name=name))
    else:
        trunk = replace(trunk, backbone=PretrainedConfig(name=name), learn="expert")
    return replace(policy, trunk=trunk)


def run(options: Options) -> None:
    """Train a policy from one or several datasets."""
    from robolearn.training.loop import train
    from robolearn.training.processes import processes
    from robolearn.training.sources import open_sources, spec_for

    if not options.datasets:
        raise UsageError("name at least one dataset to train on; see `robolearn train --help`")
    if options.workers < 0:
        raise UsageError(f"--workers {options.workers} must not be negative")
    make_world = None
    if options.world and options.train.latent:
        raise UsageError("latent actions move nothing in a world: leave --world out until robot actions are trained")
    if options.world:
        from robolearn_sim.worlds import make_world as make
        from robolearn_sim.worlds import world_spec

        spec = spec_for(options.train, open_sources(options.datasets))
        images = {"images": True} if any(s.kind == "image" for s in spec.observation.values()) else {}
        spec.check_fits(world_spec(options.world, **images).schema, f"world {options.world}")
        make_world = functools.partial(make, options.world, **images)
    elif options.train.eval_every:
        raise UsageError("--eval-every needs a world to evaluate in: add --world pusht or --world lift")
    with processes(options.device, shard=options.shard) as group:
        train(
            options.train,
            options.datasets,
            options.out,
            group,
            make_world=make_world,
            resume=options.resume,
            workers=options.workers,
            images=options.images,
        )
        if group.first:
            print(f"trained: {options.out} (checkpoints, metrics.jsonl, loss.png)")


COMMANDS = {"": (Options, run)}
