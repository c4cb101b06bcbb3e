"""One process or several (torchrun): who this is, and on which device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from robolearn_data.schema import UserError


@dataclass(frozen=True)
class Processes:
    rank: int
    count: int
    device: torch.device
    shard: bool = False
    """The model that is trained is divided among the processes (sharding.py)."""

    @property
    def first(self) -> bool:
        """The one process that writes files and talks."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """This process's part of the joint batch."""
        if batch_size % self.count:
            raise UserError(
                f"batch_size {batch_size} cannot be divided among {self.count} processes; choose a multiple"
            )
        size = batch_size // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    def mean(self, value: torch.Tensor) -> float:
        """The average of a scalar over all processes."""
        if self.count > 1:
            dist.all_reduce(value)
        return float(value) / self.count


@contextmanager
def processes(device: str = "auto", *, shard: bool = False) -> Iterator[Processes]:
    """The process group that torchrun's environment describes (gloo on CPUs, NCCL on GPUs), or this process alone.

    Raises:
        UserError: no GPU where one is wanted, or ``shard`` with one process.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no GPU is visible to torch; use --device cpu or install a CUDA build of torch")
    if shard and count == 1:
        raise UserError(
            "--shard divides a model among processes, and this one is alone: torchrun --nproc-per-node 2 -m "
            "robolearn.cli.main train ..., or leave it out"
        )
    if count == 1:
        yield Processes(0, 1, torch.device(device))
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Processes(rank, count, torch.device(device), shard)
    finally:
        dist.destroy_process_group()
