"""One of the processes among which test_training_sharding.py divides models: python sharded_process.py FOLDER [FAULT].

FOLDER holds the dataset "d.zarr" and gets the runs. With FAULT "killed" the second process dies in the middle of a run;
with "disk" the first cannot write.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from vla_makers import SMALL

from robolearn.cli.main import main
from robolearn.policies.config import POLICIES, PolicyConfig
from robolearn.policies.latent.config import LatentModelConfig
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.policies.vla.config import PretrainedConfig, VlaConfig
from robolearn.training import loop
from robolearn.training import processes as grouping
from robolearn.training.config import LatentTrainConfig, OptimiserConfig, RunConfig, TrainConfig
from robolearn.training.ema import Ema
from robolearn.training.latent import train_latent_model
from robolearn.training.processes import Processes, processes

OPTIMISER = OptimiserConfig(lr=2e-3, warmup=5)
RUN: dict[str, Any] = {"steps": 4, "batch_size": 8, "checkpoint_every": 4, "optimiser": OPTIMISER}


def vla(**changes: object) -> TrainConfig:
    trunk = replace(VlaConfig(backbone=replace(SMALL, image_size=16), width=32, mlp=48, max_text=16, crop=1), **changes)  # pyright: ignore[reportArgumentType]
    policy = replace(POLICIES["vla"](), trunk=trunk, horizon=4, action_horizon=2)
    return TrainConfig(policy=policy, **RUN)


def tiny(family: str, dtype: str = "float32") -> PretrainedConfig:
    return PretrainedConfig(name=f"tiny-{family}", dtype=dtype, image_size=32 if family.startswith("qwen") else 0)  # pyright: ignore[reportArgumentType]


LORA = vla(backbone=tiny("smolvlm", "bfloat16"), learn="lora", lora_rank=4, checkpointing=True)
CASES: dict[str, RunConfig] = {
    "vla": replace(vla(checkpointing=True), held_out=0.25),
    "lora": LORA,
    "bf16": replace(LORA, precision="bf16"),
    "unet": TrainConfig(
        policy=PolicyConfig(trunk=UNet1dConfig(widths=(16, 32), condition=16)), observe=("state",), **RUN
    ),
    "latent": LatentTrainConfig(model=LatentModelConfig(width=8, size=3, bottleneck="gaussian"), **RUN),
}
"""What is trained by two processes and by one."""

_WORDS = "latent learn {folder}/d.zarr --model.width 8 --model.size 3 --steps 4 --batch-size 8 --checkpoint-every 4"
COMMANDS = {
    "unet": ["train", "{folder}/d.zarr", "--config", "{folder}/unet.yaml"],
    "latent": f"{_WORDS} --optimiser.lr 2e-3 --optimiser.warmup 5".split(),
}
"""Those that the two start from the command line."""


def learn(case: str, folder: Path, out: str, group: Processes, **options: Any) -> nn.Module:
    config, data = CASES[case], [folder / "d.zarr"]
    if isinstance(config, TrainConfig):
        return loop.train(config, data, folder / out, group, **options)
    assert isinstance(config, LatentTrainConfig)
    return train_latent_model(config, data, folder / out, group, **options)


def local(value: Tensor) -> int:
    return value.to_local().numel() if isinstance(value, DTensor) else value.numel()


def held(model: nn.Module, ema: Ema[Any], optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """Numbers that this process holds of a model, by use, and bytes of all tensors that it holds at all."""
    moments = [v for state in optimiser.state.values() for name, v in state.items() if name != "step"]
    shared = {id(p) for p in model.parameters()}
    gc.collect()
    everything = gc.get_objects()
    storages = [x.untyped_storage() for x in everything if type(x) in (Tensor, nn.Parameter)]
    storages += [x.to_local().untyped_storage() for x in everything if type(x) is DTensor]
    return {
        "weights": sum(local(p) for p in model.parameters()),
        "gradients": sum(local(p.grad) for p in model.parameters() if p.grad is not None),
        "moments": sum(map(local, moments)),
        "average": sum(local(p) for p in ema.module.parameters() if id(p) not in shared),
        "bytes": sum({s.data_ptr(): s.nbytes() for s in storages}.values()),
    }


def work(folder: Path, fault: str) -> None:
    with processes("cpu", shard=True) as group:

        @contextlib.contextmanager
        def again(device: str, *, shard: bool) -> Iterator[Processes]:
            assert (device, shard) == ("cpu", True)
            yield group

        grouping.processes = again  # what the command line starts
        save, gather = loop.save_state, loop.gather_state
        found: dict[str, dict[str, float]] = {}

        def saving(run: Path, progress: Any, *parts: Any) -> None:
            if fault == "disk":
                raise OSError(28, "No space left on device", str(run))
            found[current] = held(*parts)
            save(run, progress, *parts)

        def gathering(*parts: Any) -> None:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            found[current] = held(*parts)
            gather(*parts)

        loop.save_state, loop.gather_state = saving, gathering
        for current in ["unet"] if fault else CASES:
            if current in COMMANDS:
                words = [word.format(folder=folder) for word in COMMANDS[current]]
                assert main([*words, "--device", "cpu", "--shard", "--out", str(folder / "two" / current)]) == 0
            else:
                learn(current, folder, f"two/{current}", group)
        (folder / f"held{group.rank}.json").write_text(json.dumps(found))
        learn("lora", folder, "stopped", group, stop_at=2)
        if group.first:
            shutil.copytree(folder / "stopped", folder / "handed_over")
        learn("lora", folder, "stopped", group, resume=True)
        learn("lora", folder, "taken_up", group, resume=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
