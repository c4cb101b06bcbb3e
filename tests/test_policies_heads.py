"""Every policy from demonstrations to a world: trained, evaluated, deployed, with each scheduler that applies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from policy_makers import ACTION, STATE, STATISTICS, TA, TO, TP, B, actions, make, observation
from safetensors.torch import load_file

from robolearn.cli.main import main
from robolearn.cli.train import read_options
from robolearn.policies.checkpoint import CheckpointError, load_policy, resolve_checkpoint, save_policy
from robolearn.policies.config import POLICIES, PolicyConfig, PolicyName
from robolearn.policies.contracts import Batch, Prior
from robolearn.policies.objectives.flow import FlowConfig
from robolearn.policies.objectives.meanflow import MeanFlowConfig
from robolearn.policies.policy import Policy, sampler_of
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn.policies.trunks.nearest import Nearest, NearestConfig
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.delayed import Delays, rollout_delayed
from robolearn_deploy.inference import Request
from robolearn_deploy.local_policy import LocalPolicy
from robolearn_deploy.schedulers import SCHEDULERS, SchedulerError, find
from robolearn_sim import pusht

SMALL = {
    "flow": "--policy.trunk.widths 16 32",
    "diffusion": "--policy.trunk.widths 16 32",
    "meanflow": "--policy.trunk.widths 16 32",
    "act": "--policy.trunk.width 32 --policy.trunk.layers 2",
    "regression": "--policy.trunk.widths 16 32",
    "nearest": "",
    "vla": "--observe state --policy.trunk.width 32 --policy.trunk.backbone.width 32 --policy.trunk.backbone.layers 2",
}
"""Options that make a policy small."""
SERVES = {
    "flow": {"sync", "naive", "ensemble", "rtc", "rtc-identity", "bid"},
    "diffusion": {"sync", "naive", "ensemble", "rtc", "rtc-identity", "bid"},
    "meanflow": {"sync", "naive", "ensemble", "rtc", "rtc-identity", "bid"},
    "act": {"sync", "naive", "ensemble", "rtc-identity"},
    "regression": {"sync", "naive", "ensemble", "rtc-identity"},
    "nearest": {"sync", "naive", "ensemble", "rtc-identity"},
    "vla": {"sync", "naive", "ensemble", "rtc", "rtc-identity", "bid"},
}
"""The schedulers that a policy can have without being trained for one."""


@pytest.fixture(scope="module")
def pushes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes in which the agent circles around the block."""
    path = tmp_path_factory.mktemp("data") / "pushes.zarr"
    world = pusht.PushT()
    with DatasetWriter.create(path, Schema(10, {"state": pusht.STATE, "action": pusht.ACTION})) as writer:
        for seed, length in enumerate((60, 45, 130)):
            seen = world.reset(seed)
            for step in range(length):
                angle = step / 8 + seed
                action = np.array([256 + 150 * np.cos(angle), 256 + 150 * np.sin(angle)], np.float32)
                writer.add({"state": seen["state"], "action": action})
                seen = world.step(action).observation
            writer.save_episode({})
    return path


@pytest.fixture(scope="module")
def trained(pushes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Policy -> the folder of a run of three steps."""
    runs: dict[str, Path] = {}

    def run(policy: str) -> Path:
        if policy not in runs:
            out = tmp_path_factory.mktemp(policy) / "run"
            words = f"--policy {policy} {SMALL[policy]} --steps 3 --batch-size 8 --device cpu".split()
            assert main(["train", str(pushes), "--out", str(out), *words]) == 0
            runs[policy] = out
        return runs[policy]

    return run


class Short(pusht.PushT):
    """Forty steps of PushT."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = replace(self.spec, max_steps=40)


@pytest.mark.parametrize("policy", SMALL)
def test_a_policy_is_trained_and_evaluated_by_the_command_line(
    trained: Callable[[str], Path], policy: str, tmp_path: Path
) -> None:
    words = ["--world", "pusht", "--episodes", "1", "--workers", "0", "--no-videos", "--out", str(tmp_path)]
    assert main(["eval", str(trained(policy)), *words, "--steps", "1"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["episodes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["meanflow", "act"])
def test_a_policy_is_deployed_by_the_command_line(trained: Callable[[str], Path], policy: str, tmp_path: Path) -> None:
    out, summary = tmp_path / "run.zarr", tmp_path / "summary.json"
    words = ["--world", "pusht", "--seconds", "3", "--replan", "8", "--out", str(out), "--json", str(summary)]
    assert main(["deploy", str(trained(policy)), *words]) == 0
    assert json.loads(summary.read_text())["failure"] == ""
    assert len(np.unique(Dataset.open(out).read("chunk"))) > 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("policy", SMALL)
def test_a_scheduler_works_or_the_error_names_those_that_do(
    trained: Callable[[str], Path], policy: str, scheduler: str
) -> None:
    loaded = load_policy(trained(policy))
    options = {"worlds": 1, "scheduler": find(scheduler), "delays": Delays.fixed(2), "least": 6, "steps": 2}
    if scheduler in SERVES[policy]:
        (episode,) = rollout_delayed(loaded, Short, [3], **options)
        assert episode.length == 40
        assert not episode.non_finite
        return
    with pytest.raises(SchedulerError) as error:
        next(rollout_delayed(loaded, Short, [3], **options))
    assert set(str(error.value).split("can have: ")[1].split(", ")) == SERVES[policy]
    with pytest.raises(SchedulerError, match="this policy can have: sync, naive"):
        LocalPolicy(resolve_checkpoint(trained(policy)), scheduler=scheduler)


@pytest.mark.parametrize("policy", SMALL)
def test_a_loaded_policy_gives_the_same_chunks_and_its_loss_is_the_same(
    trained: Callable[[str], Path], policy: str, tmp_path: Path
) -> None:
    first = load_policy(trained(policy))
    save_policy(first, tmp_path / "again")
    second = load_policy(tmp_path / "again")
    seen = {"state": torch.rand(3, first.spec.obs_horizon, 5) * 400}
    noise, action = first.noise(3, torch.Generator().manual_seed(0)), torch.rand(3, first.spec.horizon, 2) * 500
    draws = first.draw(3, torch.Generator().manual_seed(1))
    batch = Batch(seen, action, torch.zeros(3, first.spec.horizon, dtype=torch.bool))
    chunks = [model.sample(model.encode(seen), noise=noise) for model in (first, second)]
    assert torch.equal(*chunks)
    assert torch.equal(*(model.loss(batch, draws=draws).total() for model in (first, second)))


def test_the_name_of_a_policy_alone_stands_for_its_published_settings_and_beside_a_preset_for_its_objective() -> None:
    alone = read_options(["data.zarr", "--policy", "act"], "robolearn train").train
    assert alone.policy == POLICIES["act"]()
    assert (alone.policy.horizon, alone.pad_after) == (100, 99)
    plain = read_options(["data.zarr", "--preset", "lift-state"], "robolearn train").train
    for policy in ("act", "meanflow", "regression"):
        beside = read_options(["data.zarr", "--preset", "lift-state", "--policy", policy], "robolearn train").train
        want = replace(plain, policy=replace(plain.policy, objective=POLICIES[policy]().objective))
        assert beside == want
    nearest = read_options(["data.zarr", "--preset", "lift-state", "--policy", "nearest"], "robolearn train").train
    assert sampler_of(nearest.policy) == "nearest"


def test_guidance_of_a_one_step_sampler_goes_to_what_is_known_and_not_beyond() -> None:
    """The largest guidance weight is 5; with one step for the whole way it would land five times too far."""
    model = make("regression")
    with torch.inference_mode():
        context = model.encode(observation())
        free = model.sample(context)
        known = free + 40
        pulled = model.sample(context, prior=Prior(known, torch.full((TP,), 0.5), "rtc-identity"))
    torch.testing.assert_close(pulled, free + 20, rtol=1e-4, atol=1e-2)


# Nearest neighbour.


def memory(*, observations: torch.Tensor, chunks: torch.Tensor) -> Policy:
    spec = PolicySpec({"state": STATE}, ACTION, 10.0, TO, TP, TA)
    model = Policy(spec, STATISTICS, POLICIES["nearest"]()).eval()
    assert isinstance(model.trunk, Nearest)
    model.trunk.remember([(model.encode({"state": observations}), model.action(chunks))])
    return model


def test_the_nearest_neighbour_of_a_training_observation_is_its_own_chunk() -> None:
    seen, chunks = observation()["state"], actions()
    model = memory(observations=seen, chunks=chunks)
    order = torch.tensor([4, 0, 2])
    found = model.sample(model.encode({"state": seen[order]}))
    torch.testing.assert_close(found, chunks[order])
    near = model.sample(model.encode({"state": seen[order] + 0.01}))
    torch.testing.assert_close(near, chunks[order])


def test_nearness_counts_in_normalised_units() -> None:
    # x ranges over 100 and y over 200: 12 of x are farther than 20 of y.
    seen = torch.zeros(2, TO, 3)
    seen[0, :, 0], seen[1, :, 1] = 12, 20
    model = memory(observations=seen, chunks=actions()[:2])
    found = model.sample(model.encode({"state": torch.zeros(1, TO, 3)}))
    torch.testing.assert_close(found, actions()[1:2])


def test_a_trained_nearest_neighbour_remembers_every_window_and_nothing_else(
    trained: Callable[[str], Path], pushes: Path
) -> None:
    folder = resolve_checkpoint(trained("nearest"))
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == {"trunk.contexts", "trunk.chunks"}
    lengths = np.diff(Dataset.open(pushes).episode_ends, prepend=0)
    assert len(weights["trunk.contexts"]) == (lengths + 1 + 7 - 16 + 1).sum()  # To - 1 before, Ta - 1 after, Tp
    model, data = load_policy(folder), Dataset.open(pushes)
    state, action = data.read("state"), data.read("action")
    chunk = model.sample(model.encode({"state": torch.from_numpy(state[70:72])[None]}))
    np.testing.assert_allclose(chunk[0].numpy(), action[70:86], atol=1e-2)


def test_a_nearest_neighbour_is_refused_where_it_could_not_be_one() -> None:
    image = Stream((8, 8, 3), "uint8", kind="image")
    with pytest.raises(SpecError, match="give states with --observe, or another --policy"):
        Policy(PolicySpec({"img": image}, ACTION, 10.0, TO, TP, TA), STATISTICS, POLICIES["nearest"]())
    config = PolicyConfig(FlowConfig(), NearestConfig())
    with pytest.raises(SpecError, match="takes no goal, and the objective regression"):
        Policy(PolicySpec({"state": STATE}, ACTION, 10.0, TO, TP, TA), STATISTICS, config)


# Guidance.


def test_guidance_needs_windows_without_condition() -> None:
    spec = PolicySpec({"state": STATE}, ACTION, 10.0, TO, TP, TA)
    for objective in (FlowConfig(guidance=2.0), MeanFlowConfig(guidance=2.0)):
        with pytest.raises(SpecError, match="condition-drop"):
            Policy(spec, STATISTICS, PolicyConfig(objective))


def test_guidance_can_be_chosen_when_a_policy_is_loaded_unless_it_was_learned(tmp_path: Path) -> None:
    spec = PolicySpec({"state": STATE}, ACTION, 10.0, TO, TP, TA)
    trunk = UNet1dConfig(widths=(16, 32))
    for policy in ("flow", "meanflow"):
        config = replace(POLICIES[policy](), trunk=trunk, condition_drop=0.1)
        save_policy(Policy(spec, STATISTICS, config), tmp_path / policy)
    assert load_policy(tmp_path / "flow", guidance=1.5).config.objective.guidance == 1.5
    with pytest.raises(CheckpointError, match="has learned its own"):
        load_policy(tmp_path / "meanflow", guidance=1.5)
    save_policy(Policy(spec, STATISTICS, PolicyConfig(trunk=trunk)), tmp_path / "plain")
    with pytest.raises(SpecError, match="condition-drop"):
        load_policy(tmp_path / "plain", guidance=1.5)


def test_a_goal_and_its_guidance_are_given_by_the_command_line_and_a_goal_changes_what_is_done(
    pushes: Path, tmp_path: Path
) -> None:
    words = ["--goal", "state:block_x,block_y", "--steps", "3", "--batch-size", "8", "--device", "cpu"]
    words += ["--policy.trunk.widths", "16", "32", "--policy.condition-drop", "0.2", "--optimiser.lr", "0.01"]
    assert main(["train", str(pushes), "--out", str(tmp_path / "run"), *words]) == 0
    rows = ["--world", "pusht", "--episodes", "1", "--workers", "0", "--no-videos", "--steps", "1"]
    told = ["--goal", f"{pushes}:0", "--guidance", "3", "--out", str(tmp_path / "eval")]
    assert main(["eval", str(tmp_path / "run"), *rows, *told]) == 0
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert (results["goal"], results["guidance"]) == (f"{pushes}:0", 3)
    checkpoint = resolve_checkpoint(tmp_path / "run")
    goal = {"state": Dataset.open(pushes).read("state", slice(59, 60))[0]}
    observation = {"state": np.tile(goal["state"], (TO, 1))}
    request = Request(0, 0, observation)
    without, towards = (next(LocalPolicy(checkpoint, goal=g).infer(request)).actions for g in (None, goal))
    assert not np.allclose(without, towards, atol=1e-3)


def test_a_checkpoint_from_before_the_newer_encoders_keeps_its_fingerprint(tmp_path: Path) -> None:
    spec = PolicySpec({"state": STATE}, ACTION, 10.0, TO, TP, TA)
    save_policy(Policy(spec, STATISTICS, PolicyConfig(trunk=UNet1dConfig(widths=(16, 32)))), tmp_path / "old")
    path = tmp_path / "old/policy.yaml"
    description = yaml.safe_load(path.read_text())
    old = {"image": "cnn", "image_width": 128, "crop": 0.92}
    parts = {"spec": description["spec"], "normalisation": "min-max", "encoder": old}
    parts["statistics"] = json.loads((tmp_path / "old/statistics.json").read_text())
    want = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    assert description["fingerprint"]["transforms"] == want
    description["policy"]["encoder"] = old
    del description["policy"]["condition_drop"]
    path.write_text(yaml.safe_dump(description))
    load_policy(tmp_path / "old")


@pytest.mark.parametrize("policy", ["flow", "diffusion"])
def test_guidance_goes_from_the_free_estimate_past_the_conditioned_one(policy: PolicyName) -> None:
    spec = PolicySpec({"state": STATE}, ACTION, 10.0, TO, TP, TA)
    torch.manual_seed(0)
    config = replace(POLICIES[policy](), condition_drop=0.1)
    model = Policy(spec, STATISTICS, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    context, x, t = model.encode(observation()), 0.3 * torch.randn(B, TP, 2), torch.full((B, 1), 0.5)
    assert model.condition is not None
    free = model.denoise(x, t, model.condition.without(context))
    plain = model.denoise(x, t, context)
    assert not torch.allclose(free, plain, atol=1e-4)
    model.config = replace(config, objective=replace(config.objective, guidance=2.5))
    torch.testing.assert_close(model.denoise(x, t, context), free + 2.5 * (plain - free))


def test_a_mean_flow_learns_the_guided_velocity_and_samples_it_in_one_evaluation() -> None:
    """With r = t the target is w v + (1 - w) u(x, t, t | nothing), and v where the condition was left out."""
    spec = PolicySpec({"state": STATE}, ACTION, 10.0, TO, TP, TA)
    torch.manual_seed(0)
    config = PolicyConfig(MeanFlowConfig(guidance=2.0, span_share=0.0, adaptive=0.0), condition_drop=0.4)
    model = Policy(spec, STATISTICS, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    seen, action = observation(), actions()
    draws = model.draw(B, torch.Generator().manual_seed(1))
    drop = draws["drop"]
    assert 0 < drop.sum() < B
    found = model.loss(Batch(seen, action, torch.zeros(B, TP, dtype=torch.bool)), draws=draws).terms["meanflow"]

    assert model.condition is not None
    shown = model.encode(seen)
    free = model.condition.without(shown)
    t = draws["time"]
    x = (1 - t).unsqueeze(-1) * draws["noise"] + t.unsqueeze(-1) * model.action(action)
    v = model.action(action) - draws["noise"]
    guided = 2 * v - model.trunk(x, t, free, until=t)
    target = torch.where(drop.unsqueeze(-1), v, guided)
    output = torch.where(drop.unsqueeze(-1), model.trunk(x, t, free, until=t), model.trunk(x, t, shown, until=t))
    torch.testing.assert_close(found, (output - target).square().mean((1, 2)))

    calls = []
    model.trunk.register_forward_hook(lambda *_: calls.append(1))
    model.sample(shown)
    assert len(calls) == 1
