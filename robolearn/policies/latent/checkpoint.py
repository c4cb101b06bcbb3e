"""A latent-action model on disk: a folder with model.safetensors and latent.yaml. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from robolearn.policies.encoders.observation import EncoderConfig
from robolearn.policies.latent.config import LatentError, LatentModelConfig
from robolearn.policies.latent.model import LatentActionModel
from robolearn.policies.tensor_file import write_tensors
from robolearn_data.schema import Schema

FORMAT = 1
_FILE = "latent.yaml"


def save_latent_model(model: LatentActionModel, folder: Path, *, dataset_fingerprint: str = "", step: int = 0) -> None:
    """Write ``folder``; it appears under its name only when it is whole. An older one is replaced."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        description = {
            "format": FORMAT,
            "step": step,
            "parameters": sum(p.numel() for p in model.parameters()),
            "camera": Schema(model.rate_hz, {model.name: model.image}).to_json(),
            "model": json.loads(json.dumps(asdict(model.config))),
            "encoder": model.encoder_config and json.loads(json.dumps(asdict(model.encoder_config))),
            "fingerprint": {"dataset": dataset_fingerprint},
        }
        (partial / _FILE).write_text(yaml.safe_dump(description, sort_keys=False))
        write_tensors(partial / "model.safetensors", model.state_dict())
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_latent_model(folder: Path | str, device: str = "cpu") -> LatentActionModel:
    """The model of a checkpoint, or of the newest one of a run, for inference.

    Raises:
        LatentError: there is none, it is damaged, or of a first stage, which has no latent actions yet.
    """
    folder = resolve_latent_model(folder)
    try:
        description: dict[str, Any] = yaml.safe_load((folder / _FILE).read_text())
        if description["format"] != FORMAT:
            raise LatentError(f"{folder} is a latent-action model of another version; train it again with this one")
        camera = Schema.from_json(description["camera"])
        ((name, image),) = camera.streams.items()
        encoder = description["encoder"]
        model = LatentActionModel(
            name,
            image,
            camera.rate_hz,
            TypeAdapter(LatentModelConfig).validate_python(description["model"]),
            encoder=encoder and TypeAdapter(EncoderConfig).validate_python(encoder),
        )
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, ValidationError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, LatentError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise LatentError(f"{folder} is damaged: {reason}; train again or copy it anew") from error
    if model.unsaid is not None and not model.unsaid.settled:
        raise LatentError(
            f"{folder} is of the first stage, which learns what the instruction does not say; latent actions are "
            "learned in the second: go on with `robolearn latent learn --resume`, or give a later checkpoint"
        )
    return model.to(device).eval().requires_grad_(False)


def latent_fingerprint(folder: Path | str) -> str:
    """Names the model's weights (hex)."""
    return hashlib.sha256((resolve_latent_model(folder) / "model.safetensors").read_bytes()).hexdigest()[:16]


def resolve_latent_model(folder: Path | str) -> Path:
    """``folder`` itself, or the newest checkpoint of a run.

    Raises:
        LatentError: neither.
    """
    folder = Path(folder)
    found = [folder / _FILE] if (folder / _FILE).is_file() else sorted((folder / "checkpoints").glob(f"*/{_FILE}"))
    found = [file.parent for file in found if not file.parent.name.endswith(".partial")]
    if not found:
        raise LatentError(
            f"{folder} holds no latent-action model; give a run of `robolearn latent learn`, or one of its "
            "checkpoints/<step> folders"
        )
    return found[-1]
