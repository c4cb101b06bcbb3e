"""A chunk of actions through every inference engine: wall and CPU time of one observation, batch 1.

    python tests/benchmarks/runtime_engines.py                # all, about a quarter of an hour
    python tests/benchmarks/runtime_engines.py --only 4M      # networks whose name holds this; writes nothing

Each cell takes turns between the engines, so that what else the machine does falls on all of them. The networks have
random weights, which take as long as trained ones. Everything runs on one thread, since a robot's other cores have
other work. Beside the engines stand two ways without one:

- "lerobot pattern", as lerobot's diffusion policy infers: eager, under `no_grad`. It encodes once per chunk, too.
- "no cache": eager, the encoder evaluated at every denoising step.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from results import write_results
from torch import Tensor

from robolearn.policies.config import ObjectiveConfig, PolicyConfig, TrunkConfig
from robolearn.policies.engines.compiled import EngineName, chunk_difference, compile_policy
from robolearn.policies.engines.graphs import example_observation
from robolearn.policies.engines.threads import use_threads
from robolearn.policies.engines.timing import Timed
from robolearn.policies.objectives.diffusion import DiffusionConfig
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.policy import OBJECTIVES, Policy, sampler_of
from robolearn.policies.spec import PolicySpec
from robolearn.policies.trunks.transformer import TransformerConfig
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics

STATE, ACTION, IMAGE = (
    Stream((23,)),
    Stream((7,), kind="action"),
    Stream((96, 96, 3), "uint8", kind="image"),
)

NETWORKS: dict[str, tuple[TrunkConfig, dict[str, Stream]]] = {
    "UNet1d 1M": (UNet1dConfig(widths=(32, 64, 128)), {"state": STATE}),
    "UNet1d 4M": (UNet1dConfig(widths=(64, 128, 256)), {"state": STATE}),
    "Transformer 1M": (TransformerConfig(width=104), {"state": STATE}),
    "Transformer 4M": (TransformerConfig(width=192), {"state": STATE}),
    "UNet1d 1M, two cameras": (
        UNet1dConfig(widths=(32, 64, 128)),
        {"state": STATE, "wrist": IMAGE, "front": IMAGE},
    ),
}
SAMPLERS: tuple[ObjectiveConfig, ...] = (FlowConfig(steps=5), FlowConfig(steps=10), DiffusionConfig(steps=10))
ENGINES: tuple[EngineName, ...] = ("torch", "compile", "onnx", "openvino")
CHUNKS, TURNS, WARM_UP = 100, 10, 2


@dataclass
class Way:
    """One way to make a chunk, and what it took."""

    engine: str
    policy: Policy
    sample: Callable[[Policy, Timed, dict[str, Tensor], Tensor], Tensor]
    mode: Callable[[], AbstractContextManager[object]] = torch.inference_mode
    parity: float = 0.0

    def __post_init__(self) -> None:
        self.timed = Timed(CHUNKS)
        self.cpu_ms: list[float] = []

    def run(self, observation: dict[str, Tensor], noise: Tensor, chunks: int) -> None:
        unused = Timed()
        for _ in range(WARM_UP):  # another engine has had the processor's caches
            self._chunk(unused, observation, noise)
        for _ in range(chunks):
            begun_ns = time.process_time_ns()
            self._chunk(self.timed, observation, noise)
            self.cpu_ms.append((time.process_time_ns() - begun_ns) / 1e6)
            self.timed.take()

    def _chunk(self, timed: Timed, observation: dict[str, Tensor], noise: Tensor) -> None:
        with self.mode(), timed("total"):
            self.sample(self.policy, timed, observation, noise)


def encode_once(policy: Policy, timed: Timed, observation: dict[str, Tensor], noise: Tensor) -> Tensor:
    with timed("encode"):
        context = policy.encode(observation)
    return policy.sample(context, noise=noise)


def encode_at_each_step(policy: Policy, timed: Timed, observation: dict[str, Tensor], noise: Tensor) -> Tensor:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        with timed("encode"):
            context = policy.encode(observation)
        return policy.denoise(x, t, context)

    return policy.action.inverse(policy.objective.sample(denoise, noise))


def build(trunk: TrunkConfig, observation: dict[str, Stream]) -> Policy:
    spec = PolicySpec(observation, ACTION, 20.0, obs_horizon=2, horizon=16, action_horizon=8)
    statistics = {}
    for name, stream in {**observation, "action": ACTION}.items():
        low, high = -np.ones(stream.shape), np.ones(stream.shape)
        statistics[name] = StreamStatistics(2, low, high, (low + high) / 2, high, low, high)
    torch.manual_seed(0)
    policy = Policy(spec, statistics, PolicyConfig(trunk=trunk)).eval().requires_grad_(False)
    for parameter in policy.parameters():  # layers that start at zero would hide what goes through them
        parameter.add_(0.02 * torch.randn_like(parameter))
    return policy


def with_objective(policy: Policy, objective: ObjectiveConfig) -> Policy:
    """The same network under another objective, so that it is compiled once for all samplers."""
    policy = copy.copy(policy)
    policy.config = replace(policy.config, objective=objective)
    policy.objective = OBJECTIVES[objective.kind](objective, policy.spec.horizon, policy.spec.action.size)
    return policy


def measure(name: str, cache: Path) -> list[dict[str, object]]:
    policy = build(*NETWORKS[name])
    parameters = sum(p.numel() for p in policy.parameters())
    compiled: dict[str, Policy] = {}
    for engine in ENGINES:
        begun = time.monotonic()
        compiled[engine] = compile_policy(policy, engine, cache=cache)
        print(f"  {name}: {engine} ready after {time.monotonic() - begun:.1f} s", flush=True)
    observation, noise = example_observation(policy, 1), policy.noise(1, torch.Generator().manual_seed(0))
    rows: list[dict[str, object]] = []
    for objective in SAMPLERS:
        base = with_objective(policy, objective)
        ways = [
            Way("lerobot pattern", base, encode_once, torch.no_grad),
            Way("no cache", base, encode_at_each_step),
        ]
        for engine, fast in compiled.items():
            fast = with_objective(fast, objective)
            ways.append(Way(engine, fast, encode_once, parity=chunk_difference(base, fast)))
        for _ in range(TURNS):
            for way in ways:
                way.run(observation, noise, CHUNKS // TURNS)
        for way in ways:
            p50, p99 = way.timed.percentiles()["total"]
            row = {
                "network": name,
                "parameters": parameters,
                "sampler": sampler_of(base.config),
                "engine": way.engine,
                "p50_ms": p50,
                "p99_ms": p99,
                "encode_ms": way.timed.percentiles()["encode"][0],
                "cpu_ms": float(np.median(way.cpu_ms)),
                "parity": way.parity,
            }
            rows.append(row)
            print(
                f"{name:24} {row['sampler']:8} {way.engine:16} p50 {p50:7.2f}  p99 {p99:7.2f}  "
                f"encode {row['encode_ms']:6.2f}  CPU {row['cpu_ms']:7.2f} ms  parity {way.parity:.1e}",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Inference engines beside each other.")
    parser.add_argument("--only", default="", help="networks whose name holds this; nothing is written")
    only = parser.parse_args().only
    use_threads(1)
    load = os.getloadavg()[0]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            if only in name:
                rows += measure(name, Path(folder) / name)
    if not only:
        print(write_results("runtime_engines", rows, chunks=CHUNKS, load_average_at_start=load))


if __name__ == "__main__":
    main()
