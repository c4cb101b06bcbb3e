"""What a policy is shown: point clouds, pictures as keypoints, goals reached in hindsight; and published sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_makers import ACTION, STATE, STATISTICS, TA, TO, TP, statistics

from robolearn.cli.main import main
from robolearn.policies.checkpoint import load_policy, save_policy
from robolearn.policies.config import POLICIES, PolicyConfig, PolicyName
from robolearn.policies.contracts import Batch
from robolearn.policies.encoders.images import SpatialSoftmax
from robolearn.policies.goals import GoalError, goal_key
from robolearn.policies.policy import Policy
from robolearn.policies.spec import PolicySpec
from robolearn.policies.trunks.unet1d import UNet1dConfig
from robolearn.training.batches import WindowBatches
from robolearn.training.config import PRESETS, ConfigError, TrainConfig
from robolearn.training.sources import open_sources, spec_for, statistics_for
from robolearn_data.formats.names import known_stream
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.statistics import statistics as dataset_statistics
from robolearn_data.writer import DatasetWriter

# Point clouds.

CLOUD = Stream((32, 6), kind="points", unit="m,m,m,,,", frame="base")


def cloud_policy(policy: PolicyName = "flow") -> Policy:
    torch.manual_seed(0)
    values = {**STATISTICS, "cloud": statistics([-1, -1, 0, 0, 0, 0], [1, 1, 0.5, 255, 255, 255])}
    spec = PolicySpec({"state": STATE, "cloud": CLOUD}, ACTION, 10.0, TO, TP, TA)
    config = replace(POLICIES[policy](), trunk=UNet1dConfig(widths=(16, 32)))
    return Policy(spec, values, config)


def clouds(batch: int, points: int = 32) -> torch.Tensor:
    scale = torch.tensor([2.0, 2, 0.5, 255, 255, 255])
    return torch.rand(batch, TO, points, 6, generator=torch.Generator().manual_seed(0)) * scale - torch.tensor(
        [1.0, 1, 0, 0, 0, 0]
    )


def test_neither_the_order_of_points_nor_a_repeated_point_changes_what_a_policy_sees() -> None:
    parts: Any = cloud_policy().encoder
    encoder = parts.points["cloud"]
    cloud = clouds(3)
    features = encoder(cloud)
    assert features.shape == (3, TO, 64)
    torch.testing.assert_close(encoder(cloud[:, :, torch.randperm(32)]), features)
    torch.testing.assert_close(encoder(torch.cat([cloud, cloud[:, :, 5:9]], dim=2)), features)
    assert not torch.allclose(encoder(cloud + 0.1), features, atol=1e-3)


def test_points_are_scaled_alike_along_all_axes_and_colours_on_their_own() -> None:
    parts: Any = cloud_policy().encoder
    encoder = parts.points["cloud"]
    torch.testing.assert_close(encoder.scale, torch.tensor([1.0, 1, 1, 2 / 255, 2 / 255, 2 / 255]))
    torch.testing.assert_close(encoder.offset, torch.tensor([0.0, 0, 0.25, 127.5, 127.5, 127.5]))


def test_a_point_cloud_is_learned_from_and_its_statistics_are_of_all_points(tmp_path: Path) -> None:
    """The chunk is where the cloud is: nothing else says it."""
    path, rng = tmp_path / "cloud.zarr", np.random.default_rng(0)
    schema = Schema(10, {"cloud": Stream((16, 3), kind="points"), "action": ACTION})
    with DatasetWriter.create(path, schema) as writer:
        for _ in range(3):
            for _ in range(30):
                centre = rng.uniform(-1, 1, 3)
                cloud = (centre + 0.05 * rng.standard_normal((16, 3))).astype(np.float32)
                writer.add({"cloud": cloud, "action": centre[:2].astype(np.float32)})
            writer.save_episode({})
    sources = open_sources([path])
    config = TrainConfig(policy=PolicyConfig(POLICIES["regression"]().objective), observe=("cloud",))
    spec = spec_for(config, sources)
    found = statistics_for(sources, spec)["cloud"]
    everything = sources[0].dataset.read("cloud").reshape(-1, 3)
    np.testing.assert_allclose(found.min, everything.min(0))
    np.testing.assert_allclose(found.std, everything.std(0), rtol=1e-5)
    np.testing.assert_allclose(found.q99, np.quantile(everything, 0.99, axis=0), rtol=1e-5)
    assert dataset_statistics(sources[0].dataset, ["cloud"])["cloud"].count == 90 * 16

    words = ["--policy", "regression", "--observe", "cloud", "--steps", "2", "--batch-size", "8", "--device", "cpu"]
    words += ["--policy.trunk.widths", "16", "32", "--policy.encoder.points-width", "16"]
    assert main(["train", str(path), "--out", str(tmp_path / "run"), *words]) == 0
    loaded = load_policy(tmp_path / "run")
    seen = {"cloud": torch.randn(2, TO, 16, 3)}
    assert loaded.sample(loaded.encode(seen)).shape == (2, TP, 2)


def test_a_stream_of_points_needs_three_numbers_for_each() -> None:
    with pytest.raises(SchemaError, match="points, 3 or more"):
        Stream((128, 2), kind="points")
    with pytest.raises(SchemaError, match="floats"):
        Stream((128, 3), "int16", kind="points")


def test_point_clouds_are_known_by_the_name_that_3d_diffusion_policy_gives_them() -> None:
    assert known_stream("point_cloud", (512, 6), "float32").kind == "points"
    assert known_stream("keypoint", (9, 2), "float32").kind == "state"


# Keypoints.


def test_a_spatial_softmax_says_where_a_bright_spot_is() -> None:
    layer = SpatialSoftmax(1, 1, 9, 5)
    with torch.no_grad():
        for parameter, value in zip(layer.maps.parameters(), (50.0, 0.0), strict=True):
            parameter.fill_(value)
    features = torch.zeros(2, 1, 9, 5)
    features[0, 0, 8, 0] = features[1, 0, 4, 3] = 1.0
    torch.testing.assert_close(layer(features), torch.tensor([[-1.0, 1.0], [0.5, 0.0]]), rtol=0, atol=1e-4)


# Published sizes.


def parameters(policy: Policy) -> int:
    return sum(p.numel() for p in policy.parameters())


def test_the_published_state_network_has_the_published_size() -> None:
    """diffusion_policy's state notebook (five numbers, two of them seen) prints 6.535322e+07."""
    config = PRESETS["pusht-state-published"]().policy
    state = Stream((5,))
    values = {"state": statistics([0] * 5, [1] * 5), "action": STATISTICS["action"]}
    with torch.device("meta"):
        policy = Policy(PolicySpec({"state": state}, ACTION, 10.0, TO, TP, TA), values, config)
    assert parameters(policy) == 65_353_218


def test_the_published_image_network_has_the_published_size() -> None:
    """LeRobot's diffusion policy for PushT has 262,709,026 learnable parameters (its training log says so)."""
    config = PRESETS["pusht-image-published"]()
    assert config.observe == ("img", "state:agent_x,agent_y")
    streams = {"img": Stream((96, 96, 3), "uint8", kind="image"), "agent": Stream((2,))}
    values = {"agent": statistics([0, 0], [1, 1]), "action": STATISTICS["action"]}
    with torch.device("meta"):  # sizes without numbers
        policy = Policy(PolicySpec(streams, ACTION, 10.0, TO, TP, TA), values, config.policy)
    assert parameters(policy) == 262_709_026


def test_the_transformer_preset_has_the_published_width_depth_and_heads() -> None:
    config = PRESETS["pusht-state-transformer"]().policy.trunk
    assert (config.kind, config.width, config.layers, config.heads) == ("transformer", 256, 8, 4)  # pyright: ignore


# Goals.


POINT = Stream((2,), names=("x", "y"))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes in which a point goes straight somewhere: its action is where it will be next."""
    path, rng = tmp_path_factory.mktemp("data") / "lines.zarr", np.random.default_rng(0)
    with DatasetWriter.create(path, Schema(10, {"at": POINT, "action": Stream((2,), kind="action")})) as writer:
        for _ in range(40):
            start, end = rng.uniform(-1, 1, (2, 2))
            for step in range(21):
                now, then = (start + (end - start) * min(k, 20) / 20 for k in (step, step + 1))
                writer.add({"at": now.astype(np.float32), "action": then.astype(np.float32)})
            writer.save_episode({})
    return path


def batches_of(lines: Path, goal_within: int | None = None, **options: Any) -> tuple[WindowBatches, PolicySpec]:
    config, sources = TrainConfig(goal=("at",), goal_within=goal_within), open_sources([lines])
    spec = spec_for(config, sources)
    return WindowBatches(sources, spec, batch_size=64, seed=3, goal_within=goal_within, **options), spec


@pytest.mark.parametrize("within", [None, 4])
def test_the_goal_of_a_window_is_what_was_reached_later_in_its_episode(lines: Path, within: int | None) -> None:
    batches, spec = batches_of(lines, within)
    assert list(spec.goal) == ["at"]
    ahead = []
    for step in range(8):
        batch = batches.batch(step)
        now, goal = batch.observation["at"][:, -1], batch.observation[goal_key("at")][:, 0]
        assert batch.observation[goal_key("at")].shape == (64, 1, 2)
        # On the line that the episode follows: the direction is that of its actions.
        along = batch.action[:, TO] - batch.action[:, TO - 1]
        for here, there, step_ in zip(now, goal, along, strict=True):
            if step_.norm() > 1e-4:
                ahead.append(float((there - here) @ step_ / (step_ @ step_)))
                torch.testing.assert_close(there, here + ahead[-1] * step_, rtol=0, atol=1e-3)
    steps = np.rint(ahead)
    np.testing.assert_allclose(ahead, steps, atol=1e-2)
    assert steps.min() == 1
    assert steps.max() == (within or 20)


def test_goals_do_not_depend_on_how_many_processes_share_a_batch(lines: Path) -> None:
    whole = batches_of(lines)[0].batch(5).observation[goal_key("at")]
    parts = [batches_of(lines, rank=rank, processes=2)[0].batch(5).observation[goal_key("at")] for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("objective", ["flow", "meanflow", "diffusion", "act"])
def test_any_objective_takes_a_goal_and_without_one_acts_as_with_none(lines: Path, objective: PolicyName) -> None:
    batches, spec = batches_of(lines)
    config = replace(POLICIES[objective](), trunk=UNet1dConfig(widths=(16, 32)), condition_drop=0.5)
    torch.manual_seed(0)
    policy = Policy(spec, statistics_for(open_sources([lines]), spec), config)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch = batches.batch(0)
    policy.loss(batch).total().backward()
    assert all(p.grad is not None for p in policy.parameters())
    policy.eval()
    noise = policy.noise(64, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        told = policy.sample(policy.encode(batch.observation), noise=noise)
        untold = policy.sample(policy.encode({"at": batch.observation["at"]}), noise=noise)
        policy.aim({"at": batch.observation[goal_key("at")][7, 0]})
        aimed = policy.sample(policy.encode({"at": batch.observation["at"]}), noise=noise)
        policy.aim(None)
        again = policy.sample(policy.encode({"at": batch.observation["at"]}), noise=noise)
    torch.testing.assert_close(aimed[7], told[7], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(told, untold, atol=1e-3)
    assert torch.equal(untold, again)


@pytest.mark.slow
def test_a_policy_goes_where_its_goal_is(lines: Path, tmp_path: Path) -> None:
    words = ["--goal", "at", "--policy", "regression", "--steps", "150", "--batch-size", "64", "--device", "cpu"]
    words += ["--policy.trunk.widths", "16", "32", "--policy.condition-drop", "0.1"]
    words += ["--optimiser.warmup", "20", "--optimiser.lr", "3e-3"]
    assert main(["train", str(lines), "--out", str(tmp_path / "run"), *words]) == 0
    policy = load_policy(tmp_path / "run")
    angle = torch.arange(8) / 8 * 2 * np.pi
    goals = 0.8 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    with torch.inference_mode():
        chunk = policy.sample(policy.encode({"at": torch.zeros(8, TO, 2), goal_key("at"): goals[:, None]}))
    towards = torch.cosine_similarity(chunk[:, -1], goals)
    assert towards.mean() > 0.8
    assert towards.min() > 0.4


def test_mistakes_about_goals_are_one_line(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, spec = batches_of(lines)
    config = replace(POLICIES["flow"](), trunk=UNet1dConfig(widths=(16, 32)))
    values = statistics_for(open_sources([lines]), spec)
    policy = Policy(spec, values, config)
    with pytest.raises(GoalError, match="lacks the stream 'at'"):
        policy.aim({"where": torch.zeros(2)})
    with pytest.raises(GoalError, match=r"shape \(3,\), the policy needs \(2,\)"):
        policy.aim({"at": torch.zeros(3)})
    with pytest.raises(GoalError, match="trained without a goal"):
        Policy(replace(spec, goal={}), values, config).aim({"at": torch.zeros(2)})
    with pytest.raises(GoalError, match=r"give --goal DATASET:EPISODE, or train with --policy\.condition-drop"):
        policy.encode({"at": torch.zeros(1, TO, 2)})
    with pytest.raises(ConfigError, match="evaluates without a goal"):
        TrainConfig(goal=("at",), eval_every=10)
    save_policy(policy, tmp_path / "policy")
    aimed = load_policy(tmp_path / "policy", goal={"at": np.zeros(2, np.float32)})
    assert aimed.spec == spec
    for words, message in (
        (["--goal", str(lines) + ":40"], "has the episodes 0 to 39"),
        (["--goal", str(tmp_path / "none.zarr")], "none.zarr"),
    ):
        assert main(["eval", str(tmp_path / "policy"), "--world", "pusht", *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["train", str(lines), "--goal", "there", "--out", str(tmp_path / "x")]) == 2
    assert "--goal there: not a stream of kind state, image or points; valid: at" in capsys.readouterr().err


def test_a_loss_on_goals_weighs_no_window_without_an_action(lines: Path) -> None:
    batches, spec = batches_of(lines)
    policy = Policy(spec, statistics_for(open_sources([lines]), spec), POLICIES["regression"]())
    batch = batches.batch(0)
    nothing = Batch(batch.observation, batch.action, torch.ones_like(batch.is_pad))
    assert policy.loss(nothing).total() == 0
