"""The state of a training run in one safetensors file, replaced whole: a run killed while saving keeps the old one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from robolearn.policies.tensor_file import gather_tensors, write_tensors
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
    """Of a sharded model the weights are gathered: the other processes call ``gather_state`` meanwhile."""
    partial = folder / f"{FILE}.partial"
    metadata = {"step": str(progress.step), "cpu_s": repr(progress.cpu_s), "data": progress.data}
    try:
        write_tensors(partial, _tensors(model, ema, optimiser), metadata)
        os.replace(partial, folder / FILE)
    finally:
        partial.unlink(missing_ok=True)


def gather_state(model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> None:
    """Take part in ``save_state`` of the first process."""
    gather_tensors(_tensors(model, ema, optimiser))


def load_state(folder: Path, model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> Progress:
    """Put back what ``save_state`` wrote, by whatever number of processes. Of what is sharded a process reads its part.

    Raises:
        UserError: no such file, or it belongs to a run of another configuration.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{folder} holds no training state to resume ({FILE}); start the run without --resume")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            for prefix, module in (("model.", model), ("ema.", ema.module)):
                mine = module.state_dict()
                module.load_state_dict(
                    {name: _read(file, prefix + name, mine.get(name)) for name in _names(file, prefix)}
                )
            parameters = optimiser.param_groups[0]["params"]
            state: dict[int, dict[str, Tensor]] = {}
            for name in _names(file, "optimiser."):
                index, key = name.split(".", 1)
                shaped_as = None if key == "step" else parameters[int(index)]
                state.setdefault(int(index), {})[key] = _read(file, f"optimiser.{name}", shaped_as)
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        return Progress(int(metadata["step"]), float(metadata["cpu_s"]), metadata["data"])
    except (SafetensorError, RuntimeError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path} does not belong to this run or is damaged ({reason}); start again in another --out"
        ) from error


def _tensors(model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.module.state_dict().items()}
    for i, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
    return tensors


def _names(file: Any, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118


def _read(file: Any, name: str, shaped_as: Tensor | None) -> Tensor:
    """A tensor of the file, or where ``shaped_as`` is sharded, this process's rows of it."""
    if not hasattr(shaped_as, "device_mesh"):
        return file.get_tensor(name)
    from torch.distributed.tensor import DTensor  # takes as long as torch does

    assert isinstance(shaped_as, DTensor)
    rows = file.get_slice(name)
    if tuple(rows.get_shape()) != tuple(shaped_as.shape):
        raise RuntimeError(f"{name} has the shape {rows.get_shape()}, not {list(shaped_as.shape)}")
    mesh, local = shaped_as.device_mesh, shaped_as.to_local()
    each = -(-len(shaped_as) // mesh.size())  # as torch.chunk divides
    begin = min(mesh.get_local_rank() * each, len(shaped_as))
    part = rows[begin : begin + len(local)] if len(local) else torch.empty_like(local, device="cpu")
    return DTensor.from_local(
        part.to(local), mesh, shaped_as.placements, run_check=False, shape=shaped_as.shape, stride=shaped_as.stride()
    )
