"""The state of a training run in one safetensors file, replaced whole: a run killed while saving keeps the old one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robolearn.training.ema import Ema
from robolearn_data.schema import UserError

FILE = "training.safetensors"


@dataclass(frozen=True)
class Progress:
    step: int
    """Optimiser steps done."""
    cpu_s: float
    """CPU time that training took so far, evaluation and saving left out."""
    data: str
    """Fingerprint of the datasets."""


def save_state(folder: Path, progress: Progress, model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.module.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
    partial = folder / f"{FILE}.partial"
    metadata = {"step": str(progress.step), "cpu_s": repr(progress.cpu_s), "data": progress.data}
    try:
        partial.write_bytes(save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata))
        os.replace(partial, folder / FILE)
    finally:
        partial.unlink(missing_ok=True)


def load_state(folder: Path, model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> Progress:
    """Put back what ``save_state`` wrote.

    Raises:
        UserError: no such file, or it belongs to a run of another configuration.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{folder} holds no training state to resume ({FILE}); start the run without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model.load_state_dict(_part(tensors, "model."))
        ema.module.load_state_dict(_part(tensors, "ema."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimiser.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        return Progress(int(metadata["step"]), float(metadata["cpu_s"]), metadata["data"])
    except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not belong to this run or is damaged ({reason}); start again in another --out"
        ) from error


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
