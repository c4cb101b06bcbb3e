"""Datasets whose actions are the latent actions of their pictures. They are computed once, when a run begins."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress

from robolearn.policies.latent.checkpoint import latent_fingerprint, load_latent_model
from robolearn.policies.latent.config import LatentError
from robolearn.policies.latent.model import LatentActionModel
from robolearn.training.sources import Source
from robolearn_data.dataset import Dataset
from robolearn_data.overlay import WithStream
from robolearn_data.reading import View, WindowReader
from robolearn_data.schema import Schema

_PIECE = 256


def with_latents(
    sources: Sequence[Source], folder: str | Path, device: torch.device, *, talk: bool = False
) -> tuple[list[Source], str]:
    """``sources`` with the latent actions of their pictures as their actions, whether they had any or not, and the
    camera's name. ``talk``: show a bar.

    Raises:
        LatentError: no model, or one of another camera or rate.
    """
    model = load_latent_model(folder, str(device))
    mark = latent_fingerprint(folder)
    found = []
    for source in sources:
        check_camera(model, source.dataset.schema, str(source.dataset.location))
        values, valid = latents(model, source.dataset, talk=talk)
        dataset = WithStream(source.dataset, "action", model.latent_stream(), values, valid, mark=mark)
        found.append(Source(dataset, source.train, source.held_out))
    return found, model.name


def check_camera(model: LatentActionModel, schema: Schema, where: str) -> None:
    """Check that ``schema`` has the pictures that ``model`` was trained on.

    Raises:
        LatentError: it has not.
    """
    stream = schema.streams.get(model.name)
    if stream is None or stream.shape != model.image.shape:
        has = "no such stream" if stream is None else f"pictures of {stream.shape}"
        raise LatentError(
            f"the latent-action model looks at {model.name!r}, pictures of {model.image.shape}; {where} has {has}"
        )
    if abs(schema.rate_hz - model.rate_hz) > 1e-6 * model.rate_hz:
        raise LatentError(
            f"the latent-action model was trained at {model.rate_hz:g} Hz, {where} has {schema.rate_hz:g} Hz"
        )


def latents(model: LatentActionModel, dataset: Dataset, *, talk: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The latent action that begins at each row (N, Z), and where there is one (N,): not at an episode's end."""
    ahead = model.config.ahead
    view = View(model.name, 2, ahead=1, rate_hz=dataset.schema.rate_hz / ahead)
    reader = WindowReader(dataset, {"frames": view}, images="disk")
    values = np.zeros((dataset.steps, model.bottleneck.size), np.float32)
    valid = np.zeros(dataset.steps, bool)
    episode = np.searchsorted(dataset.episode_ends, np.arange(dataset.steps), side="right")
    step = np.arange(dataset.steps) - np.concatenate(([0], dataset.episode_ends))[episode]
    with Progress(transient=True, disable=not (talk and sys.stdout.isatty())) as bar:
        what = f"latent actions of {dataset.location.name}"
        for first in bar.track(range(0, dataset.steps, _PIECE), description=what):
            part = slice(first, first + _PIECE)
            frames, missing = reader.read(episode[part], step[part])
            values[part] = model.latent(torch.from_numpy(frames["frames"]).to(model.change.device)).cpu().numpy()
            valid[part] = ~missing["frames"].any(1)
    return values, valid
