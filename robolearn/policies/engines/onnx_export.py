"""A graph of a policy as an ONNX file, written once and kept beside the checkpoint.

ONNX files are data: reading one runs no code of its author's, and every engine made from one is compared with the
checkpoint's own network before it is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from robolearn.policies.engines.errors import EngineError
from robolearn.policies.engines.graphs import Graph
from robolearn.policies.policy import Policy

FORMAT = 1
"""Rises when the graphs or the way in which they are exported change."""


def policy_key(policy: Policy) -> str:
    """Fingerprint of everything that decides what a policy computes, and of what exports it."""
    digest = hashlib.sha256()
    about = {
        "format": FORMAT,
        "torch": torch.__version__,
        "spec": policy.spec.to_json(),
        "config": asdict(policy.config),
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    # Buffers as well: those of the normalisers are not saved with the weights.
    for name, value in (*policy.named_parameters(), *policy.named_buffers()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def exported(graph: Graph, key: str, cache: Path | None, *, again: bool) -> bytes:
    """The ONNX file of ``graph``, from ``cache`` where it is there and new otherwise.

    Args:
        key: of the policy, see ``policy_key``.
        cache: folder of exported files; None keeps none. One that cannot be written to is as good as none.
        again: export even if there is a file.
    """
    if cache is None:
        return _export(graph)
    path = cache / f"{graph.name}-{key}.onnx"
    if not again:
        with contextlib.suppress(OSError):
            return path.read_bytes()
    content = _export(graph)
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        # Under another name until it is whole: two processes may load the same checkpoint.
        handle, partial = tempfile.mkstemp(dir=cache, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
        for old in cache.glob(f"{graph.name}-*.onnx"):
            if old != path:
                old.unlink()
    return content


def _export(graph: Graph) -> bytes:
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise EngineError(
            f"exporting a network needs the package {error.name}; install it with: pip install 'robolearn[onnx]'"
        ) from error
    inputs = tuple(graph.inputs.values())
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    shapes = tuple({0: batch} for _ in inputs)
    with _quiet(), torch.no_grad():
        # One tuple more where the module takes any number of arguments: they are one argument to the exporter.
        program = torch.export.export(graph.module, inputs, dynamic_shapes=_like(graph, shapes), strict=False)
        answer = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=list(graph.inputs), output_names=["output"]
        )
    assert answer is not None
    return answer.model_proto.SerializeToString()


def _like(graph: Graph, shapes: tuple[object, ...]) -> tuple[object, ...]:
    return (shapes,) if graph.name == "encoder" else shapes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells about its own insides, on warnings and logs that nobody who deploys a policy can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
