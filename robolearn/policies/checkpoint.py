"""A checkpoint is a folder: model.safetensors, policy.yaml (parts, spec, fingerprints), statistics.json.

Nothing is pickled, and loading runs no code from the files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from robolearn.policies.config import PolicyConfig
from robolearn.policies.encoders.observation import EncoderConfig
from robolearn.policies.objectives.diffusion import DiffusionConfig
from robolearn.policies.objectives.meanflow import MeanFlowConfig
from robolearn.policies.objectives.regression import RegressionConfig
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn.policies.tensor_file import write_tensors
from robolearn.policies.vla.config import TINY, SmallConfig, VlaConfig, VlaError
from robolearn.policies.vla.encoder import PrefixEncoder
from robolearn.policies.vla.length import InstructionLimit
from robolearn_data.schema import UserError
from robolearn_data.statistics import StreamStatistics, statistics_from_json, statistics_to_json

FORMAT = 1


class CheckpointError(UserError):
    """A folder is not a checkpoint, or not one that this version reads."""


def save_policy(policy: Policy, folder: Path, *, dataset_fingerprint: str = "", step: int = 0) -> None:
    """Write ``folder``; it appears under its name only when it is whole. An older one is replaced."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(policy, partial, dataset_fingerprint, step)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(policy: Policy, folder: Path, dataset_fingerprint: str, step: int) -> None:
    folder.mkdir(parents=True)
    statistics = json.dumps(statistics_to_json(policy.statistics), indent=1)
    (folder / "statistics.json").write_text(statistics)
    description = {
        "format": FORMAT,
        "step": step,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "spec": policy.spec.to_json(),
        "policy": json.loads(json.dumps(asdict(policy.config))),
        "fingerprint": {
            "dataset": dataset_fingerprint,
            "transforms": _transforms(policy.spec, policy.config, statistics),
        },
    }
    (folder / "policy.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    write_tensors(folder / "model.safetensors", policy.state_dict())
    if isinstance(policy.encoder, PrefixEncoder):
        policy.encoder.save_assets(folder)


def load_policy(
    folder: Path | str,
    device: str = "cpu",
    *,
    sampler: Literal["ddim", "ddpm"] | None = None,
    guidance: float | None = None,
    goal: Mapping[str, np.ndarray] | None = None,
) -> Policy:
    """The policy of a checkpoint or run folder, ready for inference.

    Args:
        sampler: for a diffusion policy, another sampler than its configuration names.
        guidance: scale of classifier-free guidance, for a policy that was trained with ``condition_drop``.
        goal: of a policy that takes one, stream -> (*shape); see goals.py. Without one it acts without a goal.

    Raises:
        CheckpointError: not a checkpoint, damaged, or of another version.
        GoalError: the policy takes no goal, or another one.
    """
    folder = resolve_checkpoint(folder)
    description = _describe(folder)
    try:
        config = TypeAdapter(PolicyConfig).validate_python(description["policy"])
        statistics_text = (folder / "statistics.json").read_text()
        statistics = statistics_from_json(json.loads(statistics_text))
        spec = PolicySpec.from_json(description["spec"])
        weights = load_file(folder / "model.safetensors")
        if description["fingerprint"]["transforms"] != _transforms(spec, config, statistics_text):
            raise CheckpointError(
                f"{folder}: statistics.json or policy.yaml was changed after training; restore the original files"
            )
        objective = config.objective
        if sampler is not None:
            if not isinstance(objective, DiffusionConfig):
                raise CheckpointError(f"{folder} is a {objective.kind} policy; --sampler is for diffusion policies")
            config = replace(config, objective=replace(objective, sampler=sampler, steps=None))
        if guidance is not None:
            if isinstance(objective, MeanFlowConfig | RegressionConfig):
                why = "has learned its own" if isinstance(objective, MeanFlowConfig) else "samples nothing"
                raise CheckpointError(f"{folder} is a {objective.kind} policy and {why}; leave the guidance out")
            config = replace(config, objective=replace(config.objective, guidance=guidance))
        policy = Policy(spec, statistics, config, assets=folder)
        policy.load_state_dict(weights)
    except (OSError, ValidationError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, CheckpointError | SpecError | VlaError):
            raise
        raise CheckpointError(
            f"{folder} is damaged: {' '.join(str(error).split())[:300]}; train again or copy it anew"
        ) from error
    policy = policy.to(torch.device(device)).eval().requires_grad_(False)
    if goal is not None:
        policy.aim({name: torch.from_numpy(np.array(value)) for name, value in goal.items()})
    return policy


def load_spec(folder: Path | str) -> PolicySpec:
    """The spec alone, without building the network."""
    return PolicySpec.from_json(_describe(resolve_checkpoint(folder))["spec"])


def load_instruction_limit(folder: Path | str) -> InstructionLimit | None:
    """How long an instruction may be, without building the network; None: it reads none, or that is not known."""
    folder = resolve_checkpoint(folder)
    description = _describe(folder)
    spec, trunk = PolicySpec.from_json(description["spec"]), description["policy"]["trunk"]
    if trunk["kind"] != "vla" or not any(stream.kind == "text" for stream in spec.observation.values()):
        return None
    numbers = 0
    if trunk["state"] == "text":
        for name, stream in spec.observation.items():
            chosen = spec.components.get(name, range(stream.size)) if stream.kind == "state" else ()
            numbers += spec.obs_horizon * (len(chosen) + len(set(chosen) & set(stream.wraps)))
    backbone, tokeniser = trunk["backbone"], folder / "backbone" / "tokenizer.json"
    if backbone["kind"] == "small" or backbone["name"].startswith(TINY):
        return InstructionLimit(trunk["max_text"], numbers, backbone.get("text", "bytes"))
    return InstructionLimit(trunk["max_text"], numbers, tokeniser) if tokeniser.is_file() else None


def load_fingerprints(folder: Path | str) -> dict[str, str]:
    """What a checkpoint was made from: "dataset" ("" where that was not noted) and "transforms"."""
    return {name: str(value) for name, value in _describe(resolve_checkpoint(folder))["fingerprint"].items()}


def load_statistics(folder: Path | str) -> dict[str, StreamStatistics]:
    """Of the data that it was trained on, without building the network. Raises CheckpointError."""
    path = resolve_checkpoint(folder) / "statistics.json"
    try:
        return statistics_from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; train again or copy it anew") from error


def resolve_checkpoint(folder: Path | str) -> Path:
    """``folder`` itself if it is a checkpoint, or the newest checkpoint of a run folder.

    Raises:
        CheckpointError: neither.
    """
    folder = Path(folder)
    if (folder / "policy.yaml").is_file():
        return folder
    found = list_checkpoints(folder)
    if not found:
        what = "holds no checkpoint" if folder.is_dir() else "does not exist"
        raise CheckpointError(f"{folder} {what}; give a run folder or one of its checkpoints/<step> folders")
    return found[-1]


def list_checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first."""
    return sorted(
        f.parent for f in (run / "checkpoints").glob("*/policy.yaml") if not f.parent.name.endswith(".partial")
    )


def _describe(folder: Path) -> dict[str, Any]:
    try:
        description = yaml.safe_load((folder / "policy.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{folder / 'policy.yaml'} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / 'policy.yaml'} is not a checkpoint of format {FORMAT}; train again with this version"
        )
    return description


def _transforms(spec: PolicySpec, config: PolicyConfig, statistics: str) -> str:
    """Fingerprint of everything between raw observations and the network, and between the network and raw actions."""
    parts: Mapping[str, Any] = {
        "spec": spec.to_json(),
        "normalisation": config.normalisation,
        "encoder": _encoder(config.encoder),
        "statistics": json.loads(statistics),
    }
    if isinstance(config.trunk, VlaConfig):
        backbone = config.trunk.backbone
        seen = [config.trunk.state, config.trunk.max_text, backbone.kind, backbone.image_size]
        words = [backbone.text] if isinstance(backbone, SmallConfig) and backbone.text != "bytes" else []
        parts = {**parts, "vla": [*seen, *words]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _encoder(config: EncoderConfig) -> dict[str, Any]:
    """What is chosen of the encoder. Settings that came later count where they are not the default, so that checkpoints
    from before them keep their fingerprint."""
    default = asdict(EncoderConfig())
    return {k: v for k, v in asdict(config).items() if v != default[k] or k in ("image", "image_width", "crop")}
