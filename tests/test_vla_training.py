"""Instructions reach a VLA in training, evaluation and deployment, and it follows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from vla_makers import SMALL, make_vla
from vla_makers import STREAMS as VLA_STREAMS

from robolearn.cli.main import main
from robolearn.cli.parse import UsageError
from robolearn.cli.train import read_options
from robolearn.policies.checkpoint import load_policy
from robolearn.policies.config import POLICIES
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.policy import Policy
from robolearn.policies.vla.config import PretrainedConfig, SmallConfig, VlaConfig, VlaError
from robolearn.training.batches import WindowBatches
from robolearn.training.config import ConfigError, OptimiserConfig, TrainConfig, dump_config, load_config
from robolearn.training.ema import Ema
from robolearn.training.instructions import INSTRUCTION
from robolearn.training.loop import train
from robolearn.training.metrics import read_metrics
from robolearn.training.processes import processes
from robolearn.training.sources import open_sources, spec_for
from robolearn_data.instructed import Always, InstructedWorld
from robolearn_data.schema import Schema, Stream, UserError, read_text
from robolearn_data.world import Step, WorldSpec
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.delayed import Delays, rollout_delayed
from robolearn_deploy.schedulers import SCHEDULERS, check_policy, find

STREAMS = {
    "state": Stream((2,), names=("x", "y")),
    "img": Stream((16, 16, 3), "uint8", kind="image"),
    "action": Stream((2,), kind="action"),
}
SCHEMA = Schema(10.0, STREAMS)
WAYS = {"go left": (-1.0, 0.0), "go right": (1.0, 0.0), "move up": (0.0, 1.0), "move down": (0.0, -1.0)}


def write(path: Path, tasks: list[str], *, said: dict[int, dict[int, str]] | None = None, noted: bool = True) -> Path:
    """Episodes of 12 steps whose action is the way of their task, from the same states and pictures.

    Args:
        said: episode -> {step: text}, recorded as the stream "instruction"; None: there is no such stream.
        noted: note the tasks as LeRobot does.
    """
    streams = {**STREAMS, "instruction": INSTRUCTION} if said is not None else STREAMS
    with DatasetWriter.create(path, Schema(10.0, streams)) as writer:
        for episode, task in enumerate(tasks):
            text = ""
            for step in range(12):
                row = {"state": np.array([step / 12, 0.5]), "action": np.array(WAYS.get(task, (0.0, 0.0)))}
                row: dict[str, np.ndarray] = {name: value.astype(np.float32) for name, value in row.items()}
                row["img"] = np.full((16, 16, 3), 10 * step, np.uint8)
                if said is not None:
                    text = said.get(episode, {}).get(step, text)
                    row["instruction"] = INSTRUCTION.check("instruction", text)
                writer.add(row)
            writer.save_episode({"task": task} if noted and task else {})
    return path


def config(**changes: object) -> TrainConfig:
    trunk = VlaConfig(backbone=replace(SMALL, image_size=16), width=32, mlp=48, max_text=16)
    policy = replace(POLICIES["vla"](), trunk=trunk, horizon=4, action_horizon=2)
    base = TrainConfig(
        policy=policy,
        steps=4,
        batch_size=8,
        checkpoint_every=2,
        optimiser=OptimiserConfig(lr=2e-3, warmup=5),
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType]


def run(settings: TrainConfig, data: Path, out: Path, **options: object) -> Policy:
    with processes("cpu") as group:
        return train(settings, [data], out, group, **options)  # pyright: ignore[reportArgumentType]


def texts_of(data: Path, settings: TrainConfig | None = None) -> dict[tuple[int, int], str]:
    """(episode, step) -> the instruction of that window."""
    settings = settings or config()
    sources = open_sources([data])
    batches = WindowBatches(sources, spec_for(settings, sources), batch_size=1, seed=0)
    found = {}
    for number in range(len(batches.windows[0])):
        episode, step = (int(v[0]) for v in batches.windows[0].locate(np.array([number])))
        batch = batches.read(np.array([0]), np.array([number]), np.zeros(1))
        assert batch.observation["instruction"].dtype == torch.uint8
        found[episode, step] = read_text(batch.observation["instruction"][0, -1].numpy())
    return found


def test_a_window_has_the_task_of_its_episode_where_that_is_all_there_is(tmp_path: Path) -> None:
    found = texts_of(write(tmp_path / "d.zarr", ["go left", "move up"]))
    assert {text for (episode, _), text in found.items() if episode == 0} == {"go left"}
    assert {text for (episode, _), text in found.items() if episode == 1} == {"move up"}


def test_a_window_has_what_was_said_by_its_present_and_the_task_before_anybody_spoke(tmp_path: Path) -> None:
    data = write(tmp_path / "d.zarr", ["go left", "move up"], said={0: {5: "stop", 8: "go right"}})
    found = texts_of(data)
    assert [found[0, step] for step in (0, 4, 5, 7, 8, 9)] == ["go left"] * 2 + ["stop"] * 2 + ["go right"] * 2
    assert found[1, 6] == "move up"


def test_a_task_that_changes_within_an_episode_is_read_from_the_row_where_it_does(tmp_path: Path) -> None:
    """As a dataset of LeRobot is imported whose rows name several tasks."""
    with DatasetWriter.create(tmp_path / "d.zarr", SCHEMA) as writer:
        for _ in range(2):
            for _ in range(12):
                writer.add({name: np.zeros(s.shape, s.dtype) for name, s in STREAMS.items()})
            writer.save_episode({"task": "go left", "task_segments": [[0, "go left"], [7, "go right"]]})
    found = texts_of(tmp_path / "d.zarr")
    for episode in (0, 1):
        assert [found[episode, step] for step in (0, 6, 7, 9)] == ["go left"] * 2 + ["go right"] * 2


def test_datasets_with_tasks_and_with_a_stream_are_mixed(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "said.zarr", ["go left"], said={0: {0: "move down"}}),
        write(tmp_path / "noted.zarr", ["go right"]),
    ]
    for order in (paths, paths[::-1]):
        sources = open_sources(order)
        batches = WindowBatches(sources, spec_for(config(), sources), batch_size=16, seed=0)
        texts = {read_text(row.numpy()) for row in batches.batch(0).observation["instruction"][:, -1]}
        assert texts == {"move down", "go right"}


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        (["go left", ""], {}, r"notes no task of 1 of 2 episodes \(the first is 1\)"),
        (["x" * 300], {}, r"takes texts of 256 bytes, got one of 300"),
        (["say all of this"], {"max_text": 12}, r"'say all of this\\n' has 16 tokens, the policy takes 12"),
    ],
)
def test_instructions_that_cannot_be_learned_from_are_refused_before_training(
    tmp_path: Path, tasks: list[str], changes: dict[str, int], message: str
) -> None:
    settings = config()
    trunk = replace(settings.policy.trunk, **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=message):
        run(replace(settings, policy=replace(settings.policy, trunk=trunk)), write(tmp_path / "d.zarr", tasks),
            tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_policy_without_instructions_is_trained_from_data_without_tasks(tmp_path: Path) -> None:
    data = write(tmp_path / "d.zarr", ["go left"], noted=False)
    policy = run(config(observe=("img", "state")), data, tmp_path / "out")
    assert list(policy.spec.observation) == ["img", "state"]


def test_a_vla_that_is_resumed_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    """With a frozen backbone and adapters, whose parameters are not all trained."""
    data = write(tmp_path / "d.zarr", ["go left", "go right"])
    settings = config()
    trunk = replace(settings.policy.trunk, learn="lora", checkpointing=True)
    settings = replace(settings, policy=replace(settings.policy, trunk=trunk))
    run(settings, data, tmp_path / "whole")
    run(settings, data, tmp_path / "parts", stop_at=2)
    run(settings, data, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / name / "training.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_a_trained_vla_follows_the_instruction_and_nothing_else_tells_it(tmp_path: Path) -> None:
    """Four ways from the same states and pictures: only the instruction says which. Instructions that are exchanged are
    followed too, which is the control."""
    data = write(tmp_path / "d.zarr", list(WAYS) * 2)
    policy = run(config(steps=250, batch_size=32, checkpoint_every=250), data, tmp_path / "out")
    with torch.inference_mode():
        for text, way in WAYS.items():
            observation = {
                "state": torch.tensor([[[0.25, 0.5]]]),
                "img": torch.full((1, 1, 16, 16, 3), 30, dtype=torch.uint8),
                "instruction": torch.tensor(INSTRUCTION.check("instruction", text))[None, None],
            }
            noise = policy.noise(1, torch.Generator().manual_seed(0))
            chunk = policy.sample(policy.encode(observation), noise=noise)
            torch.testing.assert_close(chunk[0, 0], torch.tensor(way), atol=0.4, rtol=0)


class _Still:
    """A world that shows the same thing all the time."""

    spec = WorldSpec("still", SCHEMA, 6)

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        self.steps = 0
        return {name: np.zeros(s.shape, s.dtype) for name, s in STREAMS.items() if name != "action"}

    def step(self, action: np.ndarray) -> Step:
        self.steps += 1
        return Step(self.reset(0), 0.0, False, self.steps == 6)

    def render(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def close(self) -> None:
        pass


def test_a_world_that_says_nothing_is_told_the_instruction(tmp_path: Path) -> None:
    from robolearn.evaluation import evaluate

    policy = run(config(), write(tmp_path / "d.zarr", ["go left"]), tmp_path / "out")
    said: list[str] = []
    encode = policy.encode

    def listening(observation: dict[str, torch.Tensor]) -> object:
        said.extend(read_text(row.numpy()) for row in observation["instruction"][:, -1])
        return encode(observation)

    policy.encode = listening  # pyright: ignore[reportAttributeAccessIssue]
    world = InstructedWorld(_Still(), {"instruction": INSTRUCTION}, Always("move up"))
    evaluate(policy, lambda: world, [0])
    assert set(said) == {"move up"}


def test_a_frozen_backbone_is_held_once_and_the_rest_is_averaged() -> None:
    policy = make_vla(learn="expert")
    ema = Ema(policy, 0.75, 0.9999)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    ema.update(policy, 9)
    for (name, mine), theirs in zip(ema.module.named_parameters(), policy.parameters(), strict=True):
        assert (mine is theirs) == (not theirs.requires_grad), name
        if theirs.requires_grad:
            torch.testing.assert_close(theirs - mine, torch.full_like(mine, 1 - 10**-0.75))


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_every_scheduler_runs_a_vla_in_a_world_that_instructs_it(scheduler: str) -> None:
    """With delays of two control steps, and a policy that was trained for all of them and denoises padding as well."""
    policy = make_vla(objective=FlowConfig(prefix=4, streaming=4), padding="noise")
    check_policy(find(scheduler), policy.config)

    class Still(_Still):
        spec = WorldSpec("still", Schema(10.0, {**VLA_STREAMS, "action": policy.spec.action}), 12)

        def reset(self, seed: int) -> dict[str, np.ndarray]:
            self.steps = 0
            return self._seen()

        def step(self, action: np.ndarray) -> Step:
            assert np.isfinite(action).all()
            self.steps += 1
            return Step(self._seen(), 0.0, False, self.steps == 12)

        def _seen(self) -> dict[str, np.ndarray]:
            said = {"instruction": VLA_STREAMS["instruction"].check("instruction", "lift the cube")}
            return {name: np.full(s.shape, 65, s.dtype) for name, s in VLA_STREAMS.items()} | said

    how = {"scheduler": find(scheduler), "delays": Delays.fixed(2), "steps": 2}
    (result,) = rollout_delayed(policy, Still, [0], worlds=1, **how)  # pyright: ignore[reportArgumentType]
    assert (result.length, result.non_finite) == (12, False)


@pytest.mark.slow
def test_train_eval_and_deploy_by_their_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PushT's state with an instruction: a checkpoint, an evaluation, and a run in real time."""
    from robolearn_sim.worlds import make_world, world_spec

    world = make_world("pusht")
    with DatasetWriter.create(tmp_path / "d.zarr", world_spec("pusht").schema) as writer:
        for seed in range(2):
            observation = world.reset(seed)
            for step in range(20):
                action = np.array([200.0 + step, 250.0 - seed * step], np.float32)
                writer.add({**observation, "action": action})
                observation = world.step(action).observation
            writer.save_episode({"task": "push the T"})
    out = str(tmp_path / "run")
    words = ["train", str(tmp_path / "d.zarr"), "--preset", "vla-small", "--observe", "state", "instruction"]
    words += ["--steps", "2", "--batch-size", "4", "--precision", "fp32", "--out", out, "--device", "cpu"]
    words += ["--policy.trunk.padding", "noise"]
    assert main(words) == 0
    policy = load_policy(out)
    assert policy.chunk_shape == (policy.spec.horizon, 32)
    assert sum(p.numel() for p in policy.parameters()) < 10_000_000
    asked = ["eval", out, "--world", "pusht", "--episodes", "1", "--workers", "0", "--no-videos", "--steps", "1"]
    assert main(asked) == 2
    assert "tell it what to do with --instruction" in capsys.readouterr().err
    assert main([*asked, "--instruction", "push the T"]) == 0
    assert json.loads((tmp_path / "run" / "eval-pusht" / "results.json").read_text())["episodes"] == 1
    deployed = [sys.executable, "-m", "robolearn.cli.main", "deploy", out, "--world", "pusht", "--seconds", "2"]
    deployed += ["--instruction", "push the T", "--out", str(tmp_path / "recorded.zarr"), "--steps", "2"]
    done = subprocess.run(deployed, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    from robolearn_data.dataset import Dataset

    recorded = Dataset.open(tmp_path / "recorded.zarr")
    assert read_text(recorded.read("instruction", recorded.rows(0))[-1]) == "push the T"


@pytest.mark.slow
def test_two_processes_of_accelerate_compute_the_loss_of_one(tmp_path: Path) -> None:
    """`accelerate launch` with gloo; a backbone of which a part is frozen and a part has no pictures to see."""
    data = write(tmp_path / "d.zarr", ["go left", "go right"])
    (tmp_path / "config.yaml").write_text(dump_config(config(observe=("state", "instruction"))))
    words = ["train", str(data), "--config", str(tmp_path / "config.yaml"), "--device", "cpu"]
    alone = [sys.executable, "-m", "robolearn.cli.main", *words, "--out", str(tmp_path / "one")]
    joined = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    joined += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    joined += ["-m", "robolearn.cli.main", *words, "--out", str(tmp_path / "two")]
    for command in (alone, joined):
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (read_metrics(tmp_path / name)[-1]["loss"] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-5)
    weights = [load_policy(tmp_path / name).state_dict() for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-5)


def test_the_commands_options_choose_the_backbone() -> None:
    def trunk(*words: str) -> VlaConfig:
        options = read_options(["d.zarr", *words], "robolearn train")
        assert options.policy == options.trunk == "vla"
        assert isinstance(options.train.policy.trunk, VlaConfig)
        return options.train.policy.trunk

    assert trunk("--policy", "vla").backbone == SmallConfig()
    of_us = trunk("--preset", "lift-state", "--policy", "vla", "--policy.trunk.backbone.layers", "2")
    assert of_us.backbone == SmallConfig(layers=2)
    theirs = trunk("--policy", "vla", "--backbone", "tiny-qwen3_vl", "--policy.trunk.learn", "lora")
    assert (theirs.backbone, theirs.learn) == (PretrainedConfig(name="tiny-qwen3_vl"), "lora")
    assert trunk("--policy", "vla", "--backbone", "tiny-qwen3_vl").learn == "expert"
    published = trunk("--preset", "vla-smolvla", "--backbone", "/models/smolvlm2")
    assert isinstance(published.backbone, PretrainedConfig)
    assert (published.backbone.name, published.backbone.layers) == ("/models/smolvlm2", 16)
    with pytest.raises(UsageError, match="--backbone belongs to a VLA: add --policy vla"):
        read_options(["d.zarr", "--backbone", "small"], "robolearn train")


def test_presets_survive_yaml_and_unknown_parts_are_refused(tmp_path: Path) -> None:
    from robolearn.training.config import PRESETS

    for name in ("vla-small", "vla-smolvla"):
        settings = PRESETS[name]()
        (tmp_path / "c.yaml").write_text(dump_config(settings))
        assert load_config(tmp_path / "c.yaml") == settings
    text = dump_config(PRESETS["vla-small"]())
    (tmp_path / "c.yaml").write_text(text.replace("max_text", "max_txt"))
    with pytest.raises(ConfigError, match="max_txt"):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(VlaError, match="must be even"):
        VlaConfig(width=33)
