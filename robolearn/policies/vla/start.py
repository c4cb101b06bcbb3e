"""Weights that training starts from: of a checkpoint of ours, or of LeRobot's SmolVLA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robolearn.policies.vla import smolvla
from robolearn.policies.vla.config import VlaError
from robolearn.policies.vla.encoder import PrefixEncoder

if TYPE_CHECKING:
    from robolearn.policies.policy import Policy

_FILE, _SETTINGS = "model.safetensors", "config.json"


def load_start(policy: Policy, folder: Path) -> None:
    """Put the weights in ``folder`` into encoder and trunk. Adapters (LoRA) keep their own.

    Args:
        folder: a checkpoint of ours, or a SmolVLA of LeRobot (config.json, model.safetensors).

    Raises:
        VlaError: no such weights, or those of another architecture.
    """
    try:
        weights = load_file(folder / _FILE)
    except (OSError, SafetensorError) as error:
        raise VlaError(
            f"start_from {folder}: {_FILE} cannot be read ({' '.join(str(error).split())[:100]}); give the folder of a "
            "checkpoint (RUN/checkpoints/STEP), or of lerobot/smolvla_base as `hf download` writes it"
        ) from error
    if smolvla.is_published(set(weights)):
        try:
            settings = json.loads((folder / _SETTINGS).read_text()) if (folder / _SETTINGS).exists() else {}
            assert isinstance(policy.encoder, PrefixEncoder)
            smolvla.check_settings(settings, policy.encoder.backbone.image_size)
            weights = smolvla.our_weights(weights)
        except KeyError as error:
            raise VlaError(f"start_from {folder}: {error} is no tensor of SmolVLA that is known here") from error
        except ValueError as error:
            raise VlaError(f"start_from {folder}: {_SETTINGS}: {error} (--preset vla-smolvla)") from error
    wanted = {name: value for name, value in policy.state_dict().items() if name.startswith(("encoder.", "trunk."))}
    wanted = {name.replace(".base_layer.", "."): value for name, value in wanted.items() if ".lora_" not in name}
    weights = {name: value for name, value in weights.items() if name.startswith(("encoder.", "trunk."))}
    weights = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    _check(folder, wanted, weights)
    for name, value in wanted.items():
        value.copy_(weights[name])


def _check(folder: Path, wanted: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    missing, strange = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    other = [name for name in sorted(wanted.keys() & weights.keys()) if wanted[name].shape != weights[name].shape]
    if missing or strange or other:
        example = (
            f"{other[0]} is {tuple(weights[other[0]].shape)} there and {tuple(wanted[other[0]].shape)} here"
            if other
            else f"{(missing or strange)[0]} is not {'there' if missing else 'here'}"
        )
        raise VlaError(
            f"start_from {folder}: a policy of other parts ({len(missing)} weights missing, {len(strange)} unused, "
            f"{len(other)} of another shape; {example}); train with the same --policy.trunk options, or for "
            "smolvla_base with --preset vla-smolvla"
        )
