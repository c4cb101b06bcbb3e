"""A policy whose network is computed by an engine; all else (objective, sampler, prior, guidance) stays as it is.

Shape letters: see contracts.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robolearn.policies.contracts import Context
from robolearn.policies.encoders.observation import ObservationEncoder
from robolearn.policies.engines.backends import BACKENDS, Function, OnnxSource
from robolearn.policies.engines.errors import EngineError
from robolearn.policies.engines.graphs import EXAMPLES, Graph, encoder_graph, example_observation, step_graph
from robolearn.policies.engines.onnx_export import exported, policy_key
from robolearn.policies.policy import Policy

EngineName = Literal["torch", "compile", "onnx", "openvino"]

TOLERANCE = 1e-5
"""Largest difference from torch that passes: of a chunk, as a part of the action's range; of what a part of the
network gives, as a part of the largest value or of 1, whichever is larger."""


def compile_policy(
    policy: Policy,
    engine: EngineName,
    *,
    batches: Sequence[int] = (1,),
    per_token: bool = False,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Policy:
    """A policy that computes the same through ``engine``: its ``encode``, ``denoise`` and ``sample`` work as before.

    What the engine computes is compared with torch on random observations before it is given away. Where a gradient
    through the network is asked for (guidance), torch computes it: an exported graph has none.

    Args:
        policy: in evaluation mode, on the device where it is to run. It is not changed; the new one shares its weights.
        engine: "torch" gives ``policy`` itself.
        batches: batch sizes that will be asked for; others work too, slow the first time.
        per_token: prepare for one time per action (B, T) as well; without, that is slow the first time.
        cache: folder of exported files, such as ``checkpoint / "engines"``; None exports each time (5 to 10 s).
        progress: called with (parts of the network that are ready, parts in all).

    Raises:
        EngineError: unknown or not installed, cannot compute this network, or differs from torch by more than
            ``TOLERANCE``.
    """
    if engine not in get_args(EngineName):
        raise EngineError(f"engine {engine!r} is unknown; valid: {', '.join(get_args(EngineName))}")
    if engine == "torch":
        return policy
    if engine != "compile" and policy.device.type != "cpu":
        raise EngineError(f"--engine {engine} runs on the CPU, the policy is on {policy.device}; give --device cpu")
    if policy.training:
        raise ValueError("the policy is in training mode, where crops are random; call eval() first")

    key = policy_key(policy)

    def compiled(graph: Graph) -> Function:
        try:
            return _checked(graph, engine, batches, lambda g: exported(g, key, cache, again=False))
        except Exception:  # with a file from the cache: it may be damaged, and a new one may be right
            if cache is None or engine == "compile":
                raise
            return _checked(graph, engine, batches, lambda g: exported(g, key, cache, again=True))

    def compiled_step(per_token: bool) -> Function:
        with torch.inference_mode(False):  # exporters refuse what was made in it
            return compiled(step_graph(policy, per_token=per_token))

    trunk = _EngineTrunk(policy.trunk, compiled_step).eval()
    parts = [lambda: trunk.prepare(per_token=False)]
    if per_token:
        parts.append(lambda: trunk.prepare(per_token=True))
    fast = copy.copy(policy)
    fast._modules = {**policy._modules, "trunk": trunk}  # everything else is shared
    sees = any(stream.kind == "image" for stream in policy.spec.observation.values())
    if sees and isinstance(policy.encoder, ObservationEncoder):
        # Without images the encoder is a few sums and products, and torch as quick as any. That of a VLA reads a text,
        # which an exported graph would hold for a constant.
        encoder = _EngineEncoder(policy.encoder, encoder_graph(policy), compiled).eval()
        fast._modules["encoder"] = encoder
        parts.append(encoder.prepare)
    for done, prepare in enumerate(parts):
        if progress is not None:
            progress(done, len(parts))
        prepare()
    for batch in batches:
        _check(engine, f"chunks of batch {batch}", chunk_difference(policy, fast, batch))
    if progress is not None:
        progress(len(parts), len(parts))
    return fast


def chunk_difference(reference: Policy, other: Policy, batch: int = 1) -> float:
    """Largest difference between chunks of the two from equal observations and noise, as a part of the action's range.

    The range is that of the training data, which normalisation brings to a length of 2.
    """
    observation = example_observation(reference, batch)
    noise = reference.noise(batch, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        chunks = [
            policy.action(policy.sample(policy.encode(observation), noise=noise)) for policy in (reference, other)
        ]
        return float((chunks[0] - chunks[1]).abs().max()) / 2


class _EngineTrunk(nn.Module):
    """Stands where the trunk stood: (noisy chunk (B, T, A), time (B, 1) or (B, T), context) -> (B, T, A)."""

    def __init__(self, trunk: nn.Module, compile_step: Callable[[bool], Function]) -> None:
        super().__init__()
        self.trunk = trunk
        self._compile = compile_step
        self._functions: dict[bool, Function] = {}

    def prepare(self, *, per_token: bool) -> Function:
        if per_token not in self._functions:
            self._functions[per_token] = self._compile(per_token)
        return self._functions[per_token]

    def forward(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        if torch.is_grad_enabled() and (self.training or x.requires_grad or context.tokens.requires_grad):
            return self.trunk(x, t, context)
        return self.prepare(per_token=t.shape[1] > 1)(x, t, context.tokens)


class _EngineEncoder(nn.Module):
    """Stands where the encoder stood: stream -> (B, O, *shape), physical units, to context."""

    def __init__(self, encoder: nn.Module, graph: Graph, compile_graph: Callable[[Graph], Function]) -> None:
        super().__init__()
        self.encoder = encoder
        self._graph = graph
        self._compile = compile_graph
        self._function: Function | None = None

    def prepare(self) -> Function:
        if self._function is None:
            self._function = self._compile(self._graph)
        return self._function

    def forward(self, observation: Mapping[str, Tensor]) -> Context:
        streams = [observation[name] for name in self._graph.inputs]
        dtypes = [example.dtype for example in self._graph.inputs.values()]
        # Pixels between two whole numbers, which training's augmentation makes, do not fit a graph for bytes.
        fits = all(s.dtype == d or d == torch.float32 for s, d in zip(streams, dtypes, strict=True))
        if not fits or (torch.is_grad_enabled() and (self.training or any(s.requires_grad for s in streams))):
            return self.encoder(observation)
        return Context(self.prepare()(*(s.to(d) for s, d in zip(streams, dtypes, strict=True))))


def _checked(graph: Graph, engine: EngineName, batches: Sequence[int], source: OnnxSource) -> Function:
    """The graph's function, after a look at what it computes."""
    try:
        function = BACKENDS[engine](graph, source)
        difference = 0.0
        with torch.inference_mode():
            for batch in batches:
                rows = torch.arange(batch) % EXAMPLES
                inputs = [value[rows.to(value.device)] for value in graph.inputs.values()]
                want = graph.module(*inputs)
                error = (function(*inputs) - want).abs().max() / want.abs().max().clamp(min=1)
                difference = max(difference, float(error.nan_to_num(nan=math.inf)))
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            f"engine {engine} cannot compute this policy's {graph.name}: {' '.join(str(error).split())[:300]}; "
            "take --engine torch"
        ) from error
    _check(engine, graph.name, difference)
    return function


def _check(engine: EngineName, what: str, difference: float) -> None:
    if not difference <= TOLERANCE:
        raise EngineError(
            f"engine {engine} differs from torch by {difference:.1e} in {what}, more than {TOLERANCE:g}; "
            "take another --engine"
        )
