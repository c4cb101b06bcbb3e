"""A model divided among processes (--shard) is the one that a single process trains, and nobody holds all of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reactive_makers
import torch
import vla_makers
from safetensors.torch import load_file
from sharded_process import CASES, RUN, learn, tiny, vla

from robolearn.cli.main import main
from robolearn.policies.checkpoint import load_policy, resolve_checkpoint
from robolearn.policies.config import POLICIES
from robolearn.policies.latent.checkpoint import load_latent_model
from robolearn.policies.latent.config import LatentModelConfig
from robolearn.policies.tensor_file import write_tensors
from robolearn.policies.vla.encoder import PrefixEncoder
from robolearn.training.config import LatentTrainConfig, RunConfig, TrainConfig, dump_config
from robolearn.training.metrics import read_metrics
from robolearn.training.processes import Processes, processes
from robolearn.training.sharding import check_shardable, units
from robolearn_data.schema import Schema, Stream, UserError
from robolearn_data.writer import DatasetWriter

STREAMS = {
    "state": Stream((2,), names=("x", "y")),
    "img": Stream((16, 16, 3), "uint8", kind="image"),
    "action": Stream((2,), kind="action"),
}


def started(folder: Path, *fault: str) -> list[subprocess.Popen[str]]:
    """Two processes, without a launcher that would end one for the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("sharded_process.py")), str(folder), *fault]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def ended(running: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """(exit code, what was said) of each."""
    try:
        said = [process.communicate(timeout=600)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    rng = np.random.default_rng(0)
    with DatasetWriter.create(folder / "d.zarr", Schema(10.0, STREAMS)) as writer:
        for task in ("go left", "go right", "move up", "move down"):
            for step in range(12):
                state = np.array([step / 12, rng.random()], np.float32)
                picture = rng.integers(0, 256, (16, 16, 3), np.uint8)
                writer.add({"state": state, "action": state[::-1] - 0.5, "img": picture})
            writer.save_episode({"task": task})
    (folder / "unet.yaml").write_text(dump_config(CASES["unet"]))
    return folder


@pytest.fixture(scope="module")
def runs(data: Path) -> Path:
    """Every case trained by one process ("one/CASE") and by two that share the model ("two/CASE")."""
    with processes("cpu") as group:
        learn("lora", data, "taken_up", group, stop_at=2)
        for case in CASES:
            learn(case, data, f"one/{case}", group)
    for code, said in ended(started(data)):
        assert code == 0, said
    return data


def close(one: Path, two: Path) -> None:
    a, b = load_file(one), load_file(two)
    assert a.keys() == b.keys()
    for name, value in a.items():
        # Adam magnifies how sums are rounded.
        torch.testing.assert_close(value, b[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if case != "bf16"])
def test_two_processes_that_share_a_model_learn_what_one_does(case: str, runs: Path) -> None:
    one, two = runs / "one" / case, runs / "two" / case
    close(one / "training.safetensors", two / "training.safetensors")
    last = f"checkpoints/{4:07d}/model.safetensors"
    close(one / last, two / last)
    for a, b in zip(read_metrics(one), read_metrics(two), strict=True):
        assert (a.keys(), a["step"]) == (b.keys(), b["step"])
        for name in a.keys() & {"loss", "held_out_loss"}:
            assert a[name] == pytest.approx(b[name], rel=1e-4)


@pytest.mark.slow
def test_the_checkpoint_of_a_shared_model_is_one_like_any_other(runs: Path) -> None:
    policies = [load_policy(runs / who / "vla") for who in ("one", "two")]
    said = policies[0].spec.observation["instruction"].check("instruction", [["go left"], ["move up"]], batch=(2, 1))
    seen = {
        "state": torch.rand(2, 1, 2),
        "img": torch.randint(0, 256, (2, 1, 16, 16, 3), dtype=torch.uint8),
        "instruction": torch.tensor(said),
    }
    noise = policies[0].noise(2)
    a, b = (policy.sample(policy.encode(seen), noise=noise) for policy in policies)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    names = {"model.safetensors", "policy.yaml", "statistics.json", "backbone"}
    assert {file.name for file in resolve_checkpoint(runs / "two" / "lora").iterdir()} == names
    assert load_policy(runs / "two" / "lora").config == load_policy(runs / "one" / "lora").config
    assert json.loads((runs / "two" / "latent" / "report.json").read_text())["pairs"]


@pytest.mark.slow
def test_in_bfloat16_a_shared_model_learns_alike_and_its_state_stays_float32(runs: Path) -> None:
    one, two = (read_metrics(runs / who / "bf16") for who in ("one", "two"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=0.02)
    types = [
        {name: value.dtype for name, value in load_file(runs / who / "bf16" / "training.safetensors").items()}
        for who in ("one", "two")
    ]
    assert types[0] == types[1]
    assert set(types[1].values()) >= {torch.bfloat16, torch.float32}
    assert {kind for name, kind in types[1].items() if name.startswith("optimiser.")} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_each_process_holds_about_half_of_everything(case: str, runs: Path) -> None:
    state = load_file(runs / "one" / case / "training.safetensors")
    model = (load_latent_model if case == "latent" else load_policy)(runs / "one" / case)
    moments = sum(value.numel() for name, value in state.items() if name.endswith(("exp_avg", "exp_avg_sq")))
    weights = dict(model.named_parameters())
    whole = {"weights": sum(value.numel() for value in weights.values()), "moments": moments}
    whole["average"] = whole["gradients"] = moments // 2
    parts = [json.loads((runs / f"held{rank}.json").read_text())[case] for rank in range(2)]
    for name, count in whole.items():
        held = [part[name] for part in parts]
        assert sum(held) == count, name
        assert max(held) < 0.6 * count, name
    # And no tensor is left anywhere that holds more.
    everything = 8 * moments + sum(value.nbytes for value in weights.values())
    assert max(part["bytes"] for part in parts) < 0.6 * everything + 50_000


@pytest.mark.slow
def test_a_shared_run_that_is_resumed_equals_one_that_was_never_stopped(runs: Path) -> None:
    whole, parts = (load_file(runs / name / "training.safetensors") for name in ("two/lora", "stopped"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(runs: Path, tmp_path: Path) -> None:
    close(runs / "one" / "lora" / "training.safetensors", runs / "taken_up" / "training.safetensors")
    (tmp_path / "d.zarr").symlink_to(runs / "d.zarr")
    shutil.copytree(runs / "handed_over", tmp_path / "run")
    with processes("cpu") as group:
        learn("lora", tmp_path, "run", group, resume=True)
    close(runs / "one" / "lora" / "training.safetensors", tmp_path / "run" / "training.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "codes"), [("killed", [1, -9]), ("disk", [1, 1])])
def test_no_process_waits_for_one_that_has_failed(fault: str, codes: list[int], data: Path, tmp_path: Path) -> None:
    for name in ("d.zarr", "unet.yaml"):
        (tmp_path / name).symlink_to(data / name)
    assert [code for code, _ in ended(started(tmp_path, fault))] == codes


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(vla(), eval_every=2), "run `robolearn eval`"),
        (TrainConfig(policy=POLICIES["nearest"](), observe=("state",), **RUN), "no weights to train"),
        (vla(backbone=tiny("smolvlm", "bfloat16")), "backbone.dtype float32"),
        (LatentTrainConfig(model=LatentModelConfig(width=8, bottleneck="vq"), **RUN), "gaussian or fsq"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_training(
    config: RunConfig, said: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CASES, "refused", config)
    (tmp_path / "d.zarr").symlink_to(data / "d.zarr")
    with pytest.raises(UserError, match=said):
        learn("refused", tmp_path, "run", Processes(0, 2, torch.device("cpu"), shard=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "embeddings"), [("small", 1), ("smolvlm", 2)])
def test_every_layer_of_backbone_and_expert_is_a_unit(kind: str, embeddings: int) -> None:
    """But the last one of a pretrained backbone, which is not called as a whole."""
    policy = vla_makers.make_vla(kind)
    assert isinstance(policy.encoder, PrefixEncoder)
    language, expert = list(policy.encoder.backbone.language.children()), list(policy.trunk.layers)  # pyright: ignore[reportArgumentType]
    wanted = [*(language if kind == "small" else language[:-1]), *expert]
    found = list(units(policy))
    assert {id(unit) for unit in wanted} <= {id(unit) for unit in found}
    assert (language[-1] in found) == (kind == "small")
    assert sum(isinstance(unit, torch.nn.Embedding) for unit in found) == embeddings


def test_a_slow_fast_policy_is_not_shared() -> None:
    with pytest.raises(UserError, match="between the stages"):
        check_shardable(reactive_makers.policy())


def test_one_process_has_nobody_to_share_with(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(data / "d.zarr"), "--shard", "--out", str(tmp_path / "run")]) == 2
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err


def test_a_tensor_file_reads_as_any_other(tmp_path: Path) -> None:
    types = (torch.bool, torch.float64, torch.uint8, torch.bfloat16, torch.int64, torch.float32, torch.float16)
    tensors = {
        f"{kind} {shape}": torch.randint(0, 2, shape).to(kind) for kind in types for shape in ((), (0, 3), (5, 3))
    }
    tensors["turned"] = torch.rand(3, 4).T
    write_tensors(tmp_path / "file", tensors, {"step": "7"})
    read = load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in tensors.items())
