"""What a VLA's prefix cache saves: one chunk with the observation encoded once, and encoded anew in every step.

    python tests/benchmarks/policies_prefix.py                 # about a minute
    python tests/benchmarks/policies_prefix.py --only small --only smolvlm-500m --calls 1 --out none    # many minutes

Random weights, a chunk of 16 (small) or 50 actions, batch 1, one thread, 10 steps of flow matching, two cameras.

- small: the preset vla-small, 96 px pictures.
- smolvlm-500m: the sizes of SmolVLA (16 layers of SmolVLM2-500M, 64 tokens a picture, 48 of text, an expert 720 wide).

ms: CPU time of the process for a chunk, median (other work on the machine lengthens wall time, and this hardly).
encoder ms, step ms: of the prefix, and of one denoising step given it. cache MiB: the prefix as it is kept for a chunk.
peak MiB: the process's greatest memory above what it had before, each variant in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import write_results
from rich.console import Console
from rich.table import Table

from robolearn.policies.config import POLICIES, PolicyConfig
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.vla import smolvla
from robolearn_data.schema import Stream
from robolearn_data.statistics import StreamStatistics

VARIANTS = ("cached", "anew")


def policy_of(model: str) -> Policy:
    """Random weights at the model's sizes."""
    if model == "small":
        return _made(POLICIES["vla"](), 96, None)
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, PreTrainedTokenizerFast

    text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
    text |= {"num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280, "model_type": "llama"}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision |= {"patch_size": 16, "image_size": 512}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "backbone"
        shape = AutoConfig.for_model("smolvlm", text_config=text, vision_config=vision, scale_factor=4)
        shape.save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
        return _made(smolvla.policy_config(), 512, Path(name))


def _made(config: PolicyConfig, side: int, assets: Path | None) -> Policy:
    image = Stream((side, side, 3), "uint8", "image")
    streams = {"state": Stream((6,)), "front": image, "wrist": image, "instruction": Stream((256,), "uint8", "text")}
    ends = np.stack([-np.ones(6), np.ones(6)])
    numbers = StreamStatistics(2, ends[0], ends[1], ends.mean(0), ends.std(0), ends[0], ends[1])
    spec = PolicySpec(streams, Stream((6,), kind="action"), 10.0, 1, config.horizon, min(config.action_horizon, 8))
    config = replace(config, action_horizon=spec.action_horizon)
    torch.manual_seed(0)
    policy = Policy(spec, {"state": numbers, "action": numbers}, config, assets=assets)
    return policy.eval().requires_grad_(False)


def measure(model: str, variant: str, calls: int) -> dict[str, Any]:
    """One row; in a process of its own."""
    torch.set_num_threads(1)
    policy = policy_of(model)
    observation = {
        name: torch.zeros(1, 1, *stream.shape, dtype=torch.uint8 if stream.dtype == "uint8" else torch.float32)
        for name, stream in policy.spec.observation.items()
    }
    observation["instruction"][0, 0, :22] = torch.tensor(list(b"put the cube on the lid"[:22]), dtype=torch.uint8)
    noise = policy.noise(1, torch.Generator().manual_seed(0))

    def chunk() -> None:
        if variant == "cached":
            policy.sample(policy.encode(observation), noise=noise)
        else:
            policy.objective.sample(lambda x, t: policy.denoise(x, t, policy.encode(observation)), noise)

    with torch.inference_mode():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        chunk_ms = timed(chunk, calls)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        context = policy.encode(observation)
        t = torch.full((1, 1), 0.5)
        encoder_ms = timed(lambda: policy.encode(observation), calls)
        step_ms = timed(lambda: policy.denoise(noise, t, context), calls)
    return {
        "model": model,
        "variant": variant,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "prefix_tokens": context.tokens.shape[1],
        "steps": policy.objective.steps(None),
        "chunk_ms": round(chunk_ms, 2),
        "encoder_ms": round(encoder_ms, 2),
        "step_ms": round(step_ms, 2),
        "cache_mib": round(context.tokens.numel() * context.tokens.element_size() / 2**20, 2),
        "peak_mib": round(peak / 1024, 1),
        "calls": calls,
    }


def timed(call: Callable[[], object], calls: int) -> float:
    """Median CPU time of this process, ms, after one call that does not count."""
    call()
    times = []
    for _ in range(calls):
        began = time.process_time()
        call()
        times.append(1e3 * (time.process_time() - began))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("small", "smolvlm-500m"), action="append")
    parser.add_argument("--calls", type=int, default=0, help="chunks for each figure; 0: 30 for small, 3 for the other")
    parser.add_argument("--out", default="policies_prefix", help="name of the results' file; none: no file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        model, variant = options.one
        print(json.dumps(measure(model, variant, options.calls)))
        return
    rows = []
    for model in options.only or ("small",):
        calls = options.calls or (30 if model == "small" else 3)
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--one", model, variant, "--calls", str(calls)]
            rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    table = Table(title="One chunk, batch 1, one thread")
    columns = ("model", "variant", "prefix_tokens", "chunk_ms", "encoder_ms", "step_ms", "cache_mib", "peak_mib")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right" if column not in ("model", "variant") else "left")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console(width=120).print(table)
    if options.out != "none":
        print(write_results(options.out, rows))


if __name__ == "__main__":
    main()
