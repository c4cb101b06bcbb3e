"""Training of a model that is divided among processes (FSDP, Zhao et al. 2023, as torch's ``fully_shard``).

Each process holds a part of every weight, of its gradient, of the optimiser's state and of the averaged weights. The
weights of a *unit*, such as a layer, are gathered while it is computed, forward and backward.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from robolearn.policies.latent.bottlenecks import VectorQuantised
from robolearn.policies.reactive.tokenizer import Tokenizer
from robolearn.policies.vla.pretrained import PretrainedBackbone
from robolearn.training.processes import Processes
from robolearn_data.schema import UserError

_WHOLE: dict[type[nn.Module], str] = {
    Tokenizer: "a slow-fast policy's tokenizer is settled between the stages from whole weights",
    VectorQuantised: "the codes of --model.bottleneck vq are moved in place; choose gaussian or fsq",
}
"""Parts that need their weights whole, and why."""


def check_shardable(module: nn.Module) -> None:
    """
    Raises:
        UserError: ``module`` cannot be trained in parts.
    """
    if tuple(int(number) for number in torch.__version__.split(".")[:2]) < (2, 13):
        raise UserError(f"--shard needs torch 2.13 or newer, here is {torch.__version__}; leave it out or update torch")
    for part in module.modules():
        for kind, why in _WHOLE.items():
            if isinstance(part, kind):
                raise UserError(f"--shard: {why}; or leave --shard out, and every process holds all")
    dtypes = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.requires_grad}
    if len(dtypes) > 1:
        raise UserError(
            f"--shard needs one type of numbers in all weights that are trained, here they are {', '.join(dtypes)}: "
            "--policy.trunk.backbone.dtype float32, or --policy.trunk.learn lora or expert"
        )


def shard(module: nn.Module, group: Processes, *, bf16: bool) -> None:
    """Divide the weights of ``module`` among the processes, unit by unit, and bring them to the group's device.

    Args:
        bf16: gather the units' weights in bfloat16, as autocast would round them. It is to be on as well, for what is
            left: embeddings, and the few weights outside of units.
    """
    # A warning of changes in place, which no unit's output meets.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(group.device.type, (group.count,))
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for unit in [*units(module)]:
        fully_shard(
            unit,
            mesh=mesh,
            reshard_after_forward=True,
            mp_policy=half if bf16 and not isinstance(unit, nn.Embedding) else MixedPrecisionPolicy(),
        )
    # The rest too is let go of after the forward pass: a pass without a backward one would leave old weights there.
    fully_shard(module, mesh=mesh, reshard_after_forward=True)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """What stands in lists, as layers do, and embeddings; all that is left is a unit too."""
    # Of a pretrained backbone's last layer parts are called, not the whole.
    partial = {id(part.language[-1]) for part in module.modules() if isinstance(part, PretrainedBackbone)}  # pyright: ignore[reportIndexIssue]

    def within(part: nn.Module, listed: bool) -> Iterator[nn.Module]:
        trains = any(True for _ in part.parameters())
        called = not isinstance(part, nn.ModuleList) and id(part) not in partial
        if called and trains and (listed or isinstance(part, nn.Embedding)):
            yield part
            return
        for child in part.children():
            yield from within(child, listed=isinstance(part, nn.ModuleList))

    return within(module, listed=False)
