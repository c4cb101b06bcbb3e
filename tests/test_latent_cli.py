"""Three commands from video to a policy: they fit together, say what they found, and refuse what does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robolearn.cli.main import main
from robolearn.policies.checkpoint import load_policy, load_spec, load_statistics, resolve_checkpoint
from robolearn_data.schema import Schema
from robolearn_data.writer import DatasetWriter
from robolearn_sim import pusht
from robolearn_sim.worlds import make_world

MODEL = ["--model.width", "8", "--model.size", "3", "--steps", "4", "--batch-size", "8", "--checkpoint-every", "2"]
POLICY = ["--policy.trunk.widths", "16", "32", "--policy.trunk.condition", "16", "--policy.encoder.image-width", "16"]
POLICY += ["--steps", "4", "--batch-size", "8", "--checkpoint-every", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of PushT: "video.zarr" has the pictures and a task, "few.zarr" has states and actions too."""
    folder = tmp_path_factory.mktemp("data")
    streams = {"img": pusht.IMAGE, "state": pusht.STATE, "action": pusht.ACTION}
    world, rng = make_world("pusht", images=True), np.random.default_rng(0)
    with (
        DatasetWriter.create(folder / "few.zarr", Schema(10.0, streams)) as few,
        DatasetWriter.create(folder / "video.zarr", Schema(10.0, {"img": pusht.IMAGE})) as video,
    ):
        for seed in range(2):
            seen = world.reset(seed)
            for _ in range(25):
                action = rng.uniform(100, 400, 2).astype(np.float32)
                few.add({"img": seen["img"], "state": seen["state"], "action": action})
                video.add({"img": seen["img"]})
                seen = world.step(action).observation
            few.save_episode({})
            video.save_episode({"task": f"push the T to {seed}"})
    world.close()
    return folder


@pytest.fixture(scope="module")
def learned(folder: Path) -> Path:
    """The first two commands: runs "latent" and "pretrained"."""
    words = ["latent", "learn", str(folder / "video.zarr"), "--out", str(folder / "latent"), *MODEL]
    assert main(words) == 0
    words = [
        "train",
        str(folder / "video.zarr"),
        "--latent",
        str(folder / "latent"),
        "--out",
        str(folder / "pretrained"),
    ]
    assert main([*words, *POLICY]) == 0
    return folder


@pytest.mark.slow
def test_three_commands_make_a_policy_that_eval_runs_with_every_kind_of_scheduler(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(learned / "few.zarr"), "--start-from", str(learned / "pretrained"), "--observe", "img"]
    assert main([*words, "--out", str(tmp_path / "policy"), *POLICY]) == 0
    assert "starts from" in capsys.readouterr().out
    assert load_policy(tmp_path / "policy").spec.action == pusht.ACTION
    for more in ([], ["--scheduler", "rtc", "--delay", "2"], ["--scheduler", "bid", "--delay", "1"]):
        words = ["eval", str(tmp_path / "policy"), "--world", "pusht", "--episodes", "1", "--workers", "0"]
        assert main([*words, "--steps", "1", "--no-videos", "--out", str(tmp_path / "eval"), *more]) == 0
        assert json.loads((tmp_path / "eval" / "results.json").read_text())["episodes"] == 1


def test_the_encoder_and_what_does_not_touch_actions_are_those_of_the_policy_started_from(
    learned: Path, tmp_path: Path
) -> None:
    words = ["train", str(learned / "few.zarr"), "--start-from", str(learned / "pretrained"), "--observe", "img"]
    assert main([*words, "--out", str(tmp_path / "policy"), *POLICY, "--optimiser.lr", "0"]) == 0
    before, after = (
        load_file(resolve_checkpoint(run) / "model.safetensors")
        for run in (learned / "pretrained", tmp_path / "policy")
    )
    kept = {name for name in after if after[name].shape == before[name].shape}
    assert all(torch.equal(before[name], after[name]) for name in kept)
    anew = after.keys() - kept
    assert anew
    assert all(name.startswith(("trunk.down.0.0.", "trunk.final.")) for name in anew)


def test_a_run_that_starts_from_a_policy_keeps_the_statistics_of_what_that_policy_saw(
    folder: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    chosen = ["--observe", "img", "state", *POLICY]
    assert main(["train", str(folder / "few.zarr"), "--out", str(one), *chosen]) == 0
    with DatasetWriter.create(
        tmp_path / "other.zarr", Schema(10.0, {"img": pusht.IMAGE, "state": pusht.STATE, "action": pusht.ACTION})
    ) as writer:
        for t in range(20):
            picture = np.full(pusht.IMAGE.shape, t, np.uint8)
            writer.add({"img": picture, "state": np.full(5, t, np.float32), "action": np.full(2, t, np.float32)})
        writer.save_episode({})
    words = ["train", str(tmp_path / "other.zarr"), "--out", str(two), *chosen, "--start-from", str(one)]
    assert main(words) == 0
    statistics = [load_statistics(run) for run in (one, two)]
    np.testing.assert_array_equal(statistics[0]["state"].max, statistics[1]["state"].max)
    np.testing.assert_array_equal(statistics[1]["action"].max, [19, 19])


def test_a_resumed_pretraining_equals_one_that_was_never_stopped(learned: Path, tmp_path: Path) -> None:
    from robolearn.training.config import load_config
    from robolearn.training.loop import train
    from robolearn.training.processes import processes

    config = load_config(learned / "pretrained" / "config.yaml")
    with processes("cpu") as group:
        train(config, [learned / "video.zarr"], tmp_path / "run", group, stop_at=3)
    words = ["train", str(learned / "video.zarr"), "--out", str(tmp_path / "run"), "--resume"]
    assert main(words) == 0
    whole, parts = (load_file(run / "training.safetensors") for run in (learned / "pretrained", tmp_path / "run"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_learning_prints_its_figures_and_report_adds_probes(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((learned / "latent" / "report.json").read_text())["probes"] == {}
    assert (learned / "latent" / "report.png").stat().st_size > 10_000
    words = ["latent", "report", str(learned / "latent"), str(learned / "few.zarr"), "--out", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "z says next to nothing" in said, "after four steps"
    for part in ("leakage: earlier picture from z", "of 3 numbers vary", "linear probe", "state, change"):
        assert part in said
    probes = json.loads((tmp_path / "report.json").read_text())["probes"]
    assert set(probes) == {"state, change", "action", "action, change"}
    assert all(len(values) == 2 for values in probes["action"].values())


def test_features_of_a_policy_s_network_are_predicted_in_place_of_pixels(folder: Path, tmp_path: Path) -> None:
    policy = ["train", str(folder / "few.zarr"), "--out", str(tmp_path / "p"), "--observe", "img", *POLICY]
    assert main(policy) == 0
    words = ["latent", "learn", str(folder / "video.zarr"), "--out", str(tmp_path / "l"), *MODEL]
    words += ["--model.space", "features", "--model.bottleneck", "vq"]
    assert main(words) == 2
    assert main([*words, "--features", str(tmp_path / "p")]) == 0
    assert main(["latent", "report", str(tmp_path / "l"), str(folder / "few.zarr"), "--pairs", "20"]) == 0
    weights = load_file(resolve_checkpoint(tmp_path / "p") / "model.safetensors")
    (newest,) = (tmp_path / "l" / "checkpoints").glob("*4")
    kept = load_file(newest / "model.safetensors")
    assert torch.equal(kept["features.0.weight"], weights["encoder.image.img.net.0.weight"])


def test_with_language_one_command_trains_both_stages_and_policies_learn_the_second(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["latent", "learn", str(folder / "video.zarr"), "--out", str(tmp_path / "l"), *MODEL]
    assert main([*words, "--model.language", "words", "--first-steps", "2", "--model.max-text", "3"]) == 2
    assert "has 5 words, the model takes 3" in capsys.readouterr().err
    assert main([*words, "--model.language", "words", "--first-steps", "2", "--model.max-text", "8"]) == 0
    assert sorted(path.name for path in (tmp_path / "l" / "checkpoints").iterdir()) == ["0000002", "0000004", "0000006"]
    assert "explained: with the unsaid of another pair" in capsys.readouterr().out

    words = ["latent", "report", str(tmp_path / "l"), str(folder / "few.zarr"), "--out", str(tmp_path)]
    assert main(words) == 2
    assert "notes no task of 2 of 2 episodes" in capsys.readouterr().err
    said = tmp_path / "said.zarr"
    shutil.copytree(folder / "few.zarr", said)
    assert main(["data", "relabel", str(said), "--set", "task=push the T to 1"]) == 0
    words[3] = str(said)
    assert main(words) == 0
    probes = json.loads((tmp_path / "report.json").read_text())["probes"]
    assert list(probes["action"]) == ["z", "unsaid", "untrained", "difference"]
    assert len({tuple(values) for values in probes["action"].values()}) == 4

    words = ["train", str(folder / "few.zarr"), "--latent", str(tmp_path / "l"), "--out", str(tmp_path / "p"), *POLICY]
    assert main(words) == 0
    assert load_spec(tmp_path / "p").action.shape == (3,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "{pretrained}", "--world", "pusht"], "predicts latent actions, which move nothing"),
        (["train", "{few}", "--latent", "{few}", "--out", "{out}"], "holds no latent-action model"),
        (["train", "{video}", "--latent", "{latent}", "--out", "{out}", "--world", "pusht"], "leave --world out"),
        (["train", "{video}", "--out", "{out}", "--observe", "img"], "no stream 'action'"),
        (["train", "{few}", "--start-from", "{latent}", "--out", "{out}", "--observe", "img"], "no checkpoint"),
        (["train", "{few}", "--start-from", "{pretrained}", "--out", "{out}"], "that policy observes img"),
        (
            ["train", "{few}", "--start-from", "{pretrained}", "--out", "{out}", "--observe", "img"],
            "a policy of other parts",
        ),
        (["latent", "learn", "{video}", "--out", "{latent}", "--resume", "--seed", "9"], "the options differ"),
        (["latent", "learn", "{video}", "--out", "{latent}"], "holds a run already"),
        (["latent", "learn", "{video}", "--out", "{out}", "--first-steps", "9"], "of --model.language words or bytes"),
        (
            ["latent", "learn", "{few}", "--out", "{out}", "--model.language", "words"],
            "or learn with --model.language none",
        ),
        (["latent", "report", "{pretrained}", "{few}"], "holds no latent-action model"),
        (["latent", "report", "{latent}", "{few}", "--episodes", "7"], "no episode 7"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    words: list[str], said: str, learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: learned / name for name in ("latent", "pretrained")}
    places |= {name: learned / f"{name}.zarr" for name in ("few", "video")}
    assert main([word.format(out=tmp_path / "out", **places) for word in words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen",
    [
        ["vq", "--model.replace-every", "2", "--model.language", "words", "--first-steps", "4"],  # two stages
        ["fsq", "--model.spread", "1"],
    ],
    ids=["vq", "fsq"],
)
def test_two_processes_learn_what_one_does_with_the_joined_batch(
    chosen: list[str], folder: Path, tmp_path: Path
) -> None:
    words = ["latent", "learn", str(folder / "video.zarr"), "--model.bottleneck", *chosen]
    words = ["-m", "robolearn.cli.main", *words, *MODEL, "--steps", "6", "--device", "cpu", "--out"]
    joined = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, how in (("one", []), ("two", joined)):
        command = [sys.executable, *how, *words, str(tmp_path / name)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "training.safetensors") for name in ("one", "two"))
    if chosen[0] == "vq":
        assert torch.equal(one["model.bottleneck.used"], two["model.bottleneck.used"])
    for name, value in one.items():
        # A norm of single channels takes the bias before it away: that has no gradient but what is rounded.
        if name.startswith("model.") and not name.endswith((".0.bias", ".convolution.bias")):
            torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-4)  # Adam magnifies how sums are rounded


def test_the_spec_of_a_pretrained_policy_says_that_its_actions_are_latent(learned: Path) -> None:
    spec = load_spec(learned / "pretrained")
    assert (spec.action.shape, spec.action.unit) == ((3,), "latent")
    assert list(spec.observation) == ["img"]
