"""Weights and states as safetensors files, written tensor by tensor: no second copy of all of them is ever held."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file that any reader of safetensors reads.

    Tensors that are sharded among processes are gathered one after the other; the other processes have to call
    ``gather_tensors`` with theirs meanwhile.

    Raises:
        OSError: the disk is full, or ``path`` cannot be written.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    names, end = _order(tensors), 0
    for name in names:
        value = tensors[name]
        begin, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            _write(file, _whole(tensors[name]))


def gather_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Take part in ``write_tensors`` of another process."""
    for name in _order(tensors):
        _whole(tensors[name])


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Wide numbers first: every tensor then begins at a multiple of the size of its numbers."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _whole(value: Tensor) -> Tensor:
    gather = getattr(value, "full_tensor", None)  # a DTensor's; to import its class takes as long as torch does
    return (gather() if gather else value).detach()


def _write(file: BinaryIO, value: Tensor) -> None:
    if value.numel():
        file.write(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
