"""The training run of a latent-action model: `optimise` of loop.py on pairs of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from robolearn.policies.checkpoint import load_policy
from robolearn.policies.encoders.images import ImageEncoder
from robolearn.policies.encoders.observation import EncoderConfig, ObservationEncoder
from robolearn.policies.latent.checkpoint import save_latent_model
from robolearn.policies.latent.config import LatentError, LatentModelConfig
from robolearn.policies.latent.language import STREAM, check_instructions
from robolearn.policies.latent.model import LatentActionModel
from robolearn.training.config import ConfigError, Images, LatentTrainConfig
from robolearn.training.ema import Ema
from robolearn.training.instructions import all_texts, check_tasks, instruction_stream
from robolearn.training.loop import FirstStage, optimise
from robolearn.training.pairs import PairBatches
from robolearn.training.processes import Processes
from robolearn.training.sources import Source, fingerprint, open_sources
from robolearn_data.dataset import Dataset
from robolearn_data.reading import dtype_as_read
from robolearn_data.schema import Stream

SAMPLE = 1024
"""Pairs from which the mean change between pictures is taken."""


def train_latent_model(
    config: LatentTrainConfig,
    datasets: Sequence[str | Path],
    run: Path,
    group: Processes,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    workers: int = 0,
    images: Images = "auto",
) -> LatentActionModel:
    """Train a latent-action model on the pictures of ``datasets``; see ``loop.train`` for the arguments.

    Raises:
        UserError: no such camera, data without change, instructions that are not there or too long, a run folder in
            use, a loss that is not finite.
    """
    sources = open_sources(datasets, config.held_out)
    name = camera(config.stream, [source.dataset for source in sources])
    schema = sources[0].dataset.schema
    batches = PairBatches(
        sources,
        name,
        config.model.ahead,
        batch_size=config.batch_size,
        seed=config.seed,
        weights=config.weights,
        instruction=instruction_for(config.model, sources),
        images=images,
        rank=group.rank,
        processes=group.count,
        talk=group.first,
    )
    torch.manual_seed(config.seed)
    encoder, features = _network(config.features, name) if config.features else (None, None)
    model = LatentActionModel(name, schema.streams[name], schema.rate_hz, config.model, encoder=encoder)
    if features is not None and model.features is not None:
        model.features.load_state_dict(features.state_dict())
    model.change.fill_(mean_change(model, batches))
    data = fingerprint(sources)
    return optimise(
        model,
        batches,
        config,
        data,
        run,
        group,
        save=save_latent_model,
        resume=resume,
        stop_at=stop_at,
        workers=workers,
        begin=FirstStage(config.first_steps or config.steps, settle) if model.unsaid is not None else None,
    )


def settle(model: LatentActionModel, ema: Ema[LatentActionModel]) -> None:
    """From the first stage of a model with language to the second: averaged weights are those that stay."""
    model.load_state_dict(ema.module.state_dict())
    for part in (model.unsaid, ema.module.unsaid):
        assert part is not None
        part.settled.fill_(1)


def instruction_for(config: LatentModelConfig, sources: Sequence[Source]) -> Stream | None:
    """The text stream as which instructions are given, if the model reads them.

    Raises:
        UserError: a dataset has none, they differ in size, or one is too long.
    """
    if config.language == "none":
        return None
    otherwise = "learn with --model.language none"
    stream = instruction_stream(sources[0].dataset.schema)
    for source in sources:
        dataset, episodes = source.dataset, [*source.train, *source.held_out]
        texts = all_texts(dataset, episodes, STREAM)
        if STREAM not in dataset.schema.of_kind("text"):
            check_tasks(dataset, episodes, otherwise)
        elif dataset.schema.streams[STREAM].shape != stream.shape:
            raise ConfigError(
                f"{dataset.location} has instructions of {dataset.schema.streams[STREAM].shape[0]} bytes, "
                f"{sources[0].dataset.location} of {stream.shape[0]}; learn from datasets of one kind"
            )
        elif not texts:
            raise ConfigError(f"{dataset.location} has no instruction in its stream {STREAM!r}; {otherwise}")
        check_instructions(config, texts)
    return stream


def camera(wanted: str, datasets: Sequence[Dataset]) -> str:
    """The stream of pictures that is meant, and that all ``datasets`` have alike.

    Raises:
        ConfigError: there is none, several to choose from, or they differ.
    """
    first = datasets[0]
    found = first.schema.of_kind("image")
    if wanted and wanted not in found:
        raise ConfigError(f"--stream {wanted}: no pictures in {first.location}; valid: {', '.join(found) or 'none'}")
    if not wanted and len(found) != 1:
        valid = f"it has {', '.join(found)}: choose one with --stream" if found else "it has no stream of pictures"
        raise ConfigError(f"latent actions are learned from one camera of {first.location}; {valid}")
    name = wanted or next(iter(found))
    for dataset in datasets:
        stream = dataset.schema.streams.get(name)
        if stream is None or stream.kind != "image" or stream.shape != found[name].shape:
            raise ConfigError(f"{dataset.location} has no pictures {name!r} of shape {found[name].shape}")
        if abs(dataset.schema.rate_hz - first.schema.rate_hz) > 1e-6 * first.schema.rate_hz:
            raise ConfigError(f"{dataset.location} and {first.location} have different control rates")
        if dtype_as_read(stream) != "uint8":
            raise ConfigError(f"{dataset.location}: the pictures {name!r} are {stream.dtype}; 8-bit ones are needed")
    return name


@torch.no_grad()
def mean_change(model: LatentActionModel, batches: PairBatches) -> float:
    """Mean squared change from a picture to the later one, over a sample of training pairs.

    Raises:
        LatentError: nothing changes in them.
    """
    total, count = 0.0, 0
    for batch in batches.sample(SAMPLE):
        before, after = model.seen(batch.observation[model.name])
        real = ~batch.is_pad[:, 0]
        total += float((after - before).square().flatten(1).mean(1)[real].double().sum())
        count += int(real.sum())
    if not total:
        raise LatentError(
            f"the pictures of {model.name!r} do not change within {model.config.ahead} control steps: nothing can be "
            "learned from them; give --model.ahead more, or another camera"
        )
    return total / count


def _network(folder: str, name: str) -> tuple[EncoderConfig, torch.nn.Module]:
    """Encoder configuration and network for pictures of a policy that sees the camera ``name``."""
    policy = load_policy(folder)
    if isinstance(policy.encoder, ObservationEncoder) and name in policy.encoder.image:
        part = policy.encoder.image[name]
        assert isinstance(part, ImageEncoder)
        return policy.config.encoder, part.net
    raise ConfigError(f"--features {folder}: this policy has no network of its own for the pictures {name!r}")
