"""How each engine computes a graph: torch.compile, ONNX Runtime, OpenVINO.

A builder makes a function from tensors to one tensor. It uses as many threads as torch is set to (see threads.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robolearn.policies.engines.errors import EngineError
from robolearn.policies.engines.graphs import Graph

Function = Callable[..., Tensor]
"""Tensors in the order of ``graph.inputs``, all of one batch size -> one tensor of its own. It gives no gradients."""

OnnxSource = Callable[[Graph], bytes]
"""The ONNX file of a graph."""


def build_compile(graph: Graph, _: OnnxSource) -> Function:
    """torch.compile with Inductor: a function for each batch size, whose first call takes 10 to 60 s."""
    # Inductor keeps what it compiled as pickles. Their folder must be the user's own, not one in a shared /tmp.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "robolearn" / "inductor"))
    functions: dict[int, Callable[..., Tensor]] = {}

    def run(*inputs: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            # Copies, since for tensors of another layout or mode it would be compiled again, in the middle of a run.
            values = tuple(value.detach().clone(memory_format=torch.contiguous_format) for value in inputs)
            function = functions.get(len(values[0]))
            if function is None:
                # An exported module has code of its own: those of one class share a limit of eight compilations.
                module = torch.export.export(graph.module, values, strict=False).module()
                function = functions[len(values[0])] = torch.compile(module, dynamic=False)
            return function(*values)

    return run


def build_onnx(graph: Graph, source: OnnxSource) -> Function:
    """ONNX Runtime on the CPU."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise EngineError("--engine onnx needs ONNX Runtime; install it with: pip install 'robolearn[onnx]'") from error
    content = source(graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait in a busy loop would take the cores that servo and cameras need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = tuple(graph.inputs)

    def run(*inputs: Tensor) -> Tensor:
        feed = {name: value.detach().contiguous().numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def build_openvino(graph: Graph, source: OnnxSource) -> Function:
    """OpenVINO on the CPU, in float32."""
    # On import it reports to its maker over the network, from a process that it forks. Without this package it cannot.
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise EngineError(
            "--engine openvino needs OpenVINO; install it with: pip install 'robolearn[openvino]'"
        ) from error
    core = openvino.Core()
    content = source(graph)
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",  # bfloat16, its choice where the CPU has it, errs by percents
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # the process decides on which cores it runs
    }
    requests: dict[int, Any] = {}

    def request_for(batch: int) -> Any:
        """Batch 1 has a model of its own: with all shapes known it is up to twice as fast."""
        key = 1 if batch == 1 else 0
        if key not in requests:
            model = core.read_model(content)
            if batch == 1:
                model.reshape({port.any_name: [1, *port.partial_shape[1:]] for port in model.inputs})
            requests[key] = core.compile_model(model, "CPU", properties).create_infer_request()
        return requests[key]

    def run(*inputs: Tensor) -> Tensor:
        request = request_for(len(inputs[0]))
        values = [value.detach().contiguous().numpy() for value in inputs]
        answer = request.infer(values, share_inputs=True, share_outputs=True)
        return torch.from_numpy(answer[0].copy())  # the next call writes over what the request holds

    return run


BACKENDS: dict[str, Callable[[Graph, OnnxSource], Function]] = {
    "compile": build_compile,
    "onnx": build_onnx,
    "openvino": build_openvino,
}
"""`--engine NAME` -> how it computes a graph. "torch" has no entry: nothing is replaced."""
