"""`robolearn latent`: actions found in video. `robolearn train --latent` and `--start-from` make a policy of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from robolearn.cli.parse import DatasetPath, UsageError
from robolearn.training.config import Images, LatentTrainConfig, load_config

if TYPE_CHECKING:
    from robolearn.policies.latent.model import LatentActionModel
    from robolearn_data.dataset import Dataset

_NOTHING = 0.02
"""Part of the change: by less than this does what z says matter."""


@dataclass(frozen=True)
class Learn:
    """Learn latent actions from video: from pictures alone, without any action.

    An inverse model says in a few numbers (z) what happened between two pictures; a forward model has to predict the
    later one from the earlier one and z. What z says in the end is what changes and cannot be foreseen: mostly what the
    robot does. Three commands make a policy of it:

      robolearn latent learn video.zarr --out runs/latent

      robolearn train video.zarr --latent runs/latent --out runs/pretrained

      robolearn train few.zarr --start-from runs/pretrained --observe img --out runs/policy

    With --model.language words (or bytes) the dataset's instructions are read, and two stages are trained: what
    happened that the instruction does not say, and then z, which is left with what serves the task (UniVLA).

    The first ends with figures (see `robolearn latent report --help`). The second trains a policy to predict z, the
    third gives it robot actions from a few labelled episodes: the result is a policy like any other.
    """

    datasets: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATASET [DATASET ...]", help_behavior_hint="(one or more)")]
    ]
    """Datasets with pictures (folders or URLs); actions and states in them are not learned from."""
    out: Path = Path("runs/latent")
    """Run folder: checkpoints, metrics.jsonl, loss.png, config.yaml, and at the end report.json and report.png."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    shard: bool = False
    """With several processes (torchrun): divide the model among them; see `robolearn train --help`."""
    workers: int = 0
    """Threads that prepare coming batches; 0: made when needed. Same result."""
    images: Images = "auto"
    """Where pictures are: in memory, or read from disk as needed; auto: in memory if there is plenty. Same result."""
    resume: bool = False
    """Go on with the run in --out; its config.yaml is used."""
    train: Annotated[LatentTrainConfig, tyro.conf.arg(name="")] = field(default_factory=LatentTrainConfig)


@dataclass(frozen=True)
class Report:
    """What a latent-action model has learned: figures, and a picture of them.

    explained: part of the change that the forward model predicts with z, and with the z of another pair; 1 is all, 0 is
    no better than to expect no change. leakage: the later picture rebuilt from z without its own earlier picture (the
    mean one, or another's), and the earlier picture from z by a linear map: near 0 unless z carries the picture itself.
    codes: used, dead (by none of these pairs), perplexity; for gaussian the numbers that vary. probes: R^2 of what was
    recorded from z by a linear map, cross-validated over episodes, beside an untrained model and the pictures'
    difference. With --model.language both parts have their column: z, and what the instruction does not say (unsaid).
    """

    model: tyro.conf.Positional[Path]
    """Run of `robolearn latent learn`, or one of its checkpoints."""
    dataset: tyro.conf.Positional[DatasetPath]
    """With the same camera; the probes take what else it has of actions and states."""
    episodes: str = "all"
    """Which: numbers and ranges (0,3,5-9,-1), conditions (success=true), or all."""
    pairs: int = 2000
    """The most pairs of pictures to look at."""
    out: Path | None = None
    """Folder for report.json and report.png; by default that of the model."""


def learn(options: Learn) -> None:
    """Learn latent actions from video, without any action."""
    from robolearn.policies.latent.checkpoint import load_latent_model
    from robolearn.training.latent import train_latent_model
    from robolearn.training.processes import processes
    from robolearn.training.sources import open_sources

    if not options.datasets:
        raise UsageError("name at least one dataset to learn from; see `robolearn latent learn --help`")
    if options.workers < 0:
        raise UsageError(f"--workers {options.workers} must not be negative")
    config = options.train
    if options.resume:
        saved = load_config(options.out / "config.yaml", LatentTrainConfig)
        config = saved if config == LatentTrainConfig() else config
    with processes(options.device, shard=options.shard) as group:
        train_latent_model(
            config,
            options.datasets,
            options.out,
            group,
            resume=options.resume,
            workers=options.workers,
            images=options.images,
        )
        if not group.first:
            return
        print(f"learned: {options.out} (checkpoints, metrics.jsonl, loss.png)")
        sources = open_sources(options.datasets, config.held_out)
        model = load_latent_model(options.out, str(group.device))
        _report(model, [(source.dataset, source.held_out or source.train) for source in sources], 2000, options.out)


def report(options: Report) -> None:
    """What a latent-action model has learned: figures and plots."""
    from robolearn.policies.latent.checkpoint import load_latent_model
    from robolearn.training.latent import instruction_for
    from robolearn.training.latent_labels import check_camera
    from robolearn.training.sources import Source
    from robolearn_data.dataset import Dataset
    from robolearn_data.selection import select_episodes

    if options.pairs < 10:
        raise UsageError(f"--pairs {options.pairs} is too few; 10 at least")
    model = load_latent_model(options.model)
    dataset = Dataset.open(options.dataset)
    check_camera(model, dataset.schema, options.dataset)
    episodes = select_episodes(dataset, options.episodes)
    instruction_for(model.config, [Source(dataset, episodes, [])])
    _report(model, [(dataset, episodes)], options.pairs, options.out or options.model)


def _report(model: LatentActionModel, parts: Sequence[tuple[Dataset, Sequence[int]]], pairs: int, out: Path) -> None:
    from robolearn.evaluation.latent_plots import latent_figure
    from robolearn.evaluation.latents import measure

    figures = measure(model, parts, most=pairs)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(figures, indent=1) + "\n")
    latent_figure(model, figures, parts).savefig(out / "report.png")
    _print(figures)
    print(f"report: {out / 'report.json'}, {out / 'report.png'}")


def _print(figures: Mapping[str, Any]) -> None:
    from robolearn.cli.tables import new_table, show_table

    explained, leakage, codes = (figures[name] for name in ("explained", "leakage", "codes"))
    print(f"{figures['pairs']} pairs of {figures['episodes']} episodes")
    table = new_table("", "part", numbers=("part",), wrap=("",))
    for text, value in (
        ("explained: change predicted with z", explained["z"]),
        *((f"explained: with the {name}", value) for name, value in explained.items() if name != "z"),
        ("leakage: later picture from the mean picture and z", leakage["mean picture and z"]),
        ("leakage: later picture from another picture and z", leakage["another picture and z"]),
        ("leakage: earlier picture from z, linear", leakage["picture from z, linear"]),
        ("for comparison: change from z, linear", leakage["change from z, linear"]),
    ):
        table.add_row(text, f"{value:.3f}")
    show_table(table)
    if "size" in codes:
        used, size, dead = codes["used"], codes["size"], codes["dead"]
        print(f"codes: {used} of {size} used, {dead} dead, perplexity {codes['perplexity']:.1f}")
    else:
        total = sum(codes["divergence_nats"])
        print(f"z: {codes['varying']} of {codes['numbers']} numbers vary, {total:.1f} nats in all")
    if explained["z"] - explained["z of another pair"] < _NOTHING:
        print(
            "z says next to nothing of what happened, another pair's explains as much: learn for more --steps, with a "
            "lower --model.kl (gaussian) or a higher --model.spread (fsq)"
        )
    if not figures["probes"]:
        print("probes: none, there are no actions or states beside these pictures")
        return
    sources = tuple(next(iter(figures["probes"].values())))
    table = new_table("linear probe, R^2", *sources, numbers=sources)
    for name, found in figures["probes"].items():
        table.add_row(name, *map(_r2, found.values()))
    show_table(table)


def _r2(values: Sequence[float]) -> str:
    """The mean of the components that vary, and each."""
    import numpy as np

    mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    each = " ".join("-" if np.isnan(value) else f"{value:.2f}" for value in values)
    return f"{mean:.2f}" if len(values) > 6 else f"{mean:.2f} ({each})"


COMMANDS = {"learn": (Learn, learn), "report": (Report, report)}
