"""Slow-fast policies: the decoder hears the force and nothing of the future, two stages of training that resume, and
episodes that are the same however they are run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reactive_makers import (
    ACTION,
    HORIZON,
    RATE_HZ,
    READINGS,
    STATE,
    STATISTICS,
    TICKS,
    WRENCH,
    config,
    demonstrations,
    policy,
    spec,
    statistics,
    training,
)
from safetensors.torch import load_file

from robolearn.policies.checkpoint import load_policy, load_spec, save_policy
from robolearn.policies.contracts import Prior
from robolearn.policies.guidance import PriorError
from robolearn.policies.policy import Policy
from robolearn.policies.reactive.config import ReactiveError, TokenizerConfig, fast_spec
from robolearn.policies.reactive.decoder import FastDecoder
from robolearn.policies.reactive.readings import ReadingBlocks, fast_key, fast_views
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn.training.batches import WindowBatches
from robolearn.training.config import ConfigError
from robolearn.training.loop import train
from robolearn.training.processes import processes
from robolearn.training.sources import open_sources, spec_for
from robolearn_data.schema import Schema, Stream
from robolearn_deploy.schedulers import SCHEDULERS, SchedulerError, check_policy
from robolearn_sim.worlds import make_world

M = (HORIZON - 1) * TICKS + 1
SAMPLES = READINGS // TICKS


def readings(seed: int, ticks: int = M) -> np.ndarray:
    """(ticks * SAMPLES, 2) N."""
    return np.random.default_rng(seed).normal(0, 2, (ticks * SAMPLES, 2)).astype(np.float32)


def latent_chunk(made: Policy, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    context = made.encode({"state": torch.full((1, 2, 1), 0.3)})
    return made.sample(context, noise=made.noise(1, generator))[0].numpy()


def acted(made: Policy, rows: np.ndarray, felt: np.ndarray, first: int = 0) -> np.ndarray:
    """(M - first, A): actions tick by tick; the first block and those up to tick ``first`` are felt at once."""
    decoder, found = FastDecoder(made), []
    decoder.feel({"wrench": felt[: (first + 1) * SAMPLES]})
    for tick in range(first, M):
        if tick > first:
            decoder.feel({"wrench": felt[tick * SAMPLES : (tick + 1) * SAMPLES]})
        found.append(decoder.act(7, rows, tick)[0])
    return np.stack(found)


def test_force_changes_the_actions_inside_a_chunk_from_its_own_tick_on_and_never_before() -> None:
    made = policy()
    rows, felt = latent_chunk(made), readings(1)
    other = felt.copy()
    other[5 * SAMPLES :] += 3.0
    one, two = acted(made, rows, felt), acted(made, rows, other)
    np.testing.assert_array_equal(one[:5], two[:5])
    assert np.abs(one[5:] - two[5:]).max(axis=1).min() > 1e-4, "each tick from the fifth on"


def test_the_encoders_latent_depends_on_the_actions_and_not_on_the_force() -> None:
    made = policy()
    assert made.tokenizer is not None
    action = torch.rand(3, HORIZON, 2)
    batch = {fast_key("wrench"): torch.randn(3, HORIZON, READINGS, 2)}
    draws = {"token_noise": torch.zeros(3, *made.chunk_shape)}
    quiet = made.tokenizer.losses(action, {k: 0 * v for k, v in batch.items()}, draws)
    loud = made.tokenizer.losses(action, batch, draws)
    assert torch.equal(quiet["divergence"], loud["divergence"])
    assert not torch.equal(quiet["actions"], loud["actions"])
    assert not torch.equal(made.tokenizer.latent(action), made.tokenizer.latent(action.flip(1)))


@pytest.mark.parametrize("first", [0, 3, M - 1])
def test_tick_by_tick_the_decoder_says_what_it_says_of_the_whole_chunk(first: int) -> None:
    made = policy()
    tokenizer = made.tokenizer
    assert tokenizer is not None
    rows, felt = latent_chunk(made), readings(2)
    features = tokenizer.features(tokenizer.from_rows(torch.from_numpy(rows)[None]))
    whole = tokenizer.decode(features, tokenizer.blocks({"wrench": torch.from_numpy(felt)[None]}))
    np.testing.assert_allclose(acted(made, rows, felt, first), made.action.inverse(whole)[0][first:], atol=1e-5)


def test_a_chunk_that_takes_over_late_is_begun_anew_with_what_was_felt_since() -> None:
    made = policy()
    one, two, felt = latent_chunk(made, 0), latent_chunk(made, 1), readings(3, 2 * M)
    decoder = FastDecoder(made)
    decoder.feel({"wrench": felt[: 4 * SAMPLES]})
    decoder.act(0, one, 3)
    decoder.feel({"wrench": felt[4 * SAMPLES : 5 * SAMPLES]})
    switched = decoder.act(1, two, 2)  # captured two ticks ago
    np.testing.assert_allclose(switched[0], acted(made, two, felt[2 * SAMPLES :])[2], atol=1e-5)


def test_what_comes_next_is_told_as_if_the_force_stayed() -> None:
    made = policy()
    rows, felt = latent_chunk(made), readings(4)
    felt[3 * SAMPLES :] = np.tile(felt[2 * SAMPLES : 3 * SAMPLES], (M - 3, 1))
    decoder = FastDecoder(made)
    decoder.feel({"wrench": felt[: 3 * SAMPLES]})
    np.testing.assert_allclose(decoder.act(0, rows, 2, ahead=4), acted(made, rows, felt)[2:6], atol=1e-5)


def test_the_tokenizers_loss_is_its_formula_written_out() -> None:
    made = policy()
    tokenizer = made.tokenizer
    assert tokenizer is not None
    action, noise = torch.rand(2, HORIZON, 2) * 2 - 1, torch.randn(2, *made.chunk_shape)
    force = torch.randn(2, HORIZON, READINGS, 2)
    terms = tokenizer.losses(action, {fast_key("wrench"): force}, {"token_noise": noise})
    mean, log_variance = tokenizer.posterior(action)
    deviation = np.exp(log_variance.numpy() / 2)
    kl = -np.log(deviation) + (deviation**2 + mean.numpy() ** 2) / 2 - 0.5
    np.testing.assert_allclose(terms["divergence"], 1e-3 * kl.sum(axis=(1, 2)), rtol=1e-5)
    blocks = tokenizer.blocks.along_chunk({fast_key("wrench"): force}, TICKS)
    found = tokenizer.decode(tokenizer.features(mean + torch.from_numpy(deviation) * noise), blocks).numpy()
    at, knots = np.arange(M) / TICKS, np.arange(HORIZON)
    for b in range(2):
        wanted = np.stack([np.interp(at, knots, action[b, :, a]) for a in range(2)], axis=1)
        error = np.abs(found[b] - wanted).mean(axis=1)
        np.testing.assert_allclose(terms["actions"][b, 0], error[0], rtol=1e-5)
        np.testing.assert_allclose(terms["actions"][b, 3], error[5:7].mean(), rtol=1e-5)


def test_a_block_holds_the_readings_of_the_fast_period_that_ends_at_its_tick() -> None:
    made = spec()
    assert made.fast is not None
    blocks = ReadingBlocks(made.fast, RATE_HZ, STATISTICS)
    rows = torch.arange(HORIZON * READINGS).float()[:, None].expand(-1, 2).reshape(1, HORIZON, READINGS, 2)
    found = blocks.along_chunk({fast_key("wrench"): rows}, TICKS) / blocks.scale + blocks.mean
    # Row i ends at control step i: the first tick has the last two readings of row 0, the second the first two of 1.
    np.testing.assert_allclose(found[0, :3, ::2], [[2, 3], [4, 5], [6, 7]], atol=1e-4)
    assert found.shape == (1, M, SAMPLES * 2)


def test_a_sensor_with_a_rate_of_its_own_gives_the_same_blocks(tmp_path: Path) -> None:
    from robolearn_data.dataset import Dataset
    from robolearn_data.reading import WindowReader
    from robolearn_data.writer import DatasetWriter

    native = Stream((2,), rate_hz=RATE_HZ * READINGS)
    schema = Schema(RATE_HZ, {"rows": WRENCH, "samples": native, "action": ACTION})
    period, length = 10**9 // 20, 12
    signal = np.random.default_rng(0).normal(0, 1, (length * READINGS, 2)).astype(np.float32)
    with DatasetWriter.create(tmp_path / "d", schema) as writer:
        for i in range(length):
            now = 10**9 + i * period
            rows = signal[i * READINGS : (i + 1) * READINGS]
            writer.add_samples("samples", rows, now - np.arange(READINGS - 1, -1, -1) * period // READINGS)
            writer.add({"rows": rows, "action": np.zeros(2, np.float32)}, time_ns=now)
        writer.save_episode({})
    dataset, found = Dataset.open(tmp_path / "d"), []
    for name, stream in (("rows", WRENCH), ("samples", native)):
        fast = fast_spec({name: stream}, RATE_HZ, HORIZON, config().tokenizer or TokenizerConfig())
        made = replace(spec(), fast=fast)
        values, _ = WindowReader(dataset, fast_views(made)).read(np.array([0]), np.array([2]))
        given = {key: torch.from_numpy(value) for key, value in values.items()}
        blocks = ReadingBlocks(fast, RATE_HZ, {name: statistics(stream, -5, 5)})
        found.append(blocks.along_chunk(given, TICKS).numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_the_slow_halfs_latents_lie_between_minus_one_and_one_and_come_back_from_a_chunk() -> None:
    made = policy()
    tokenizer = made.tokenizer
    assert tokenizer is not None
    actions = [torch.rand(16, HORIZON, 2) * 2 - 1 for _ in range(3)]
    tokenizer.settle(actions)
    latent = torch.cat([tokenizer.latent(a) for a in actions])
    assert float(latent.abs().max()) <= 1 + 1e-5
    rows = tokenizer.rows(latent)
    assert rows.shape == (48, HORIZON, made.spec.chunk.size)
    np.testing.assert_allclose(tokenizer.from_rows(rows), tokenizer.posterior(torch.cat(actions))[0], atol=1e-5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pushed.zarr"
    demonstrations(path)
    return path


def trained(dataset: Path, out: Path, **how: Any) -> Policy:
    with processes("cpu") as group:
        return train(training(), [dataset], out, group, **how)


@pytest.mark.parametrize("stop_at", [2, 4, 6])
def test_a_run_stopped_in_either_stage_or_between_them_goes_on_as_if_it_had_not_been(
    dataset: Path, tmp_path: Path, stop_at: int
) -> None:
    trained(dataset, tmp_path / "whole")
    trained(dataset, tmp_path / "parts", stop_at=stop_at)
    trained(dataset, tmp_path / "parts", resume=True)
    one, two = (load_file(tmp_path / p / "checkpoints/0000007/model.safetensors") for p in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_second_stage_leaves_the_tokenizer_as_it_is_and_trains_the_rest(dataset: Path, tmp_path: Path) -> None:
    with processes("cpu") as group:
        config = replace(training(), checkpoint_every=1)
        train(config, [dataset], tmp_path / "run", group)
    before, first, last = (load_file(tmp_path / f"run/checkpoints/000000{n}/model.safetensors") for n in (4, 5, 7))
    halves = {name: name.startswith("tokenizer.") for name in first}
    for name, tokenizer in halves.items():
        if tokenizer:
            assert torch.equal(first[name], last[name]), name
    assert any(not torch.equal(first[name], last[name]) for name, tokenizer in halves.items() if not tokenizer)
    assert not before["tokenizer.settled"]
    assert last["tokenizer.settled"]
    with pytest.raises(ReactiveError, match="train on with --resume"):
        latent_chunk(load_policy(tmp_path / "run/checkpoints/0000004"))


@pytest.mark.slow
def test_a_trained_tokenizer_leaves_to_the_force_what_only_the_force_can_tell(tmp_path: Path) -> None:
    """In the toy a push sets z when it comes. With its latent kept small the decoder takes z from the force: the latent
    of a chunk without a push gives the pushed z as soon as the force does."""
    path = tmp_path / "d"
    demonstrations(path, episodes=60)
    settings = replace(training(), batch_size=64, optimiser=replace(training().optimiser, lr=3e-3))
    made = spec_for(settings, sources := open_sources([path]))
    batches = WindowBatches(sources, made, batch_size=64, seed=0, pad_after=HORIZON - 2)
    torch.manual_seed(0)
    learner = Policy(made, STATISTICS, config(kl=3e-3))
    optimiser = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for step in range(400):
        optimiser.zero_grad()
        draws = learner.draw(64, torch.Generator().manual_seed(step))
        learner.loss(batches.batch(step), draws=draws).total().backward()
        optimiser.step()
    learner.eval().requires_grad_(False)
    tokenizer = learner.tokenizer
    assert tokenizer is not None
    steady = torch.stack([torch.linspace(0, 0.2, HORIZON), torch.zeros(HORIZON)], dim=1)[None]
    rows = tokenizer.posterior(steady)[0].unflatten(2, (4, -1)).flatten(1, 2)[0].numpy()
    quiet = np.zeros((M * SAMPLES, 2), np.float32)
    pushed = quiet.copy()
    pushed[6 * SAMPLES :, 1] = 4.0
    z, x = (acted(learner, rows, pushed) - acted(learner, rows, quiet)).T[::-1]
    assert np.abs(z[:6]).max() == 0
    assert z[10:].mean() == pytest.approx(0.8, abs=0.25), "4 N ask for 0.8 m"
    assert np.abs(x).max() < 0.15, "and for nothing sideways"


def test_a_saved_policy_acts_as_before(tmp_path: Path) -> None:
    made = policy()
    save_policy(made, tmp_path / "c")
    loaded = load_policy(tmp_path / "c")
    assert load_spec(tmp_path / "c") == made.spec == loaded.spec
    rows = latent_chunk(made)
    np.testing.assert_array_equal(rows, latent_chunk(loaded))
    np.testing.assert_array_equal(acted(made, rows, readings(5)), acted(loaded, rows, readings(5)))


def test_mistakes_are_named_with_what_would_be_right() -> None:
    with pytest.raises(ReactiveError, match="no whole multiple of the control rate of 20 Hz; take 40"):
        fast_spec({"wrench": WRENCH}, RATE_HZ, HORIZON, TokenizerConfig(fast_hz=50.0))
    with pytest.raises(ReactiveError, match=r"4 readings in a control step.*fast-hz can be 20, 40, 80"):
        fast_spec({"wrench": WRENCH}, RATE_HZ, HORIZON, TokenizerConfig(fast_hz=60.0))
    with pytest.raises(ReactiveError, match="divides the horizon of 8"):
        fast_spec({"wrench": WRENCH}, RATE_HZ, HORIZON, TokenizerConfig(fast_hz=40.0, stride=3))
    known_first = replace(config(), objective=replace(config().objective, prefix=2))
    with pytest.raises(SpecError, match="without prefix"):
        Policy(spec(), STATISTICS, known_first)
    made = policy()
    known = Prior(torch.zeros(1, HORIZON, 2), torch.ones(HORIZON))
    with pytest.raises(PriorError, match="latents"):
        made.sample(made.encode({"state": torch.zeros(1, 2, 1)}), prior=known)
    with pytest.raises(SchedulerError, match="this policy can have: naive"):
        check_policy(SCHEDULERS["ensemble"], made.config)
    with pytest.raises(ReactiveError, match="--policy reactive"):
        FastDecoder(Policy(replace(spec(), fast=None), STATISTICS, replace(config(), tokenizer=None)))


def test_a_dataset_without_force_is_refused_before_training(tmp_path: Path) -> None:
    from robolearn_data.writer import DatasetWriter

    with DatasetWriter.create(tmp_path / "d", Schema(RATE_HZ, {"state": STATE, "action": ACTION})) as writer:
        writer.extend({"state": np.zeros((9, 1), np.float32), "action": np.zeros((9, 2), np.float32)})
        writer.save_episode({})
    with pytest.raises(ConfigError, match="no stream 'wrench' to react to; name one with --feel: state"):
        spec_for(training(), open_sources([tmp_path / "d"]))
    with pytest.raises(ConfigError, match="--feel force: not a stream of kind state"):
        spec_for(replace(training(), feel=("force",)), open_sources([tmp_path / "d"]))


def wipe_policy() -> Policy:
    """For the world wipe, with random weights."""
    from robolearn_sim import wipe

    schema = wipe.spec().schema
    made = config()
    tokenizer = replace(made.tokenizer or TokenizerConfig(), fast_hz=100.0)
    fast = fast_spec({"wrench": schema.streams["wrench"]}, 20.0, HORIZON, tokenizer)
    action = schema.streams["action"]
    of = PolicySpec({"state": schema.streams["state"]}, action, 20.0, 2, HORIZON, 4, fast=fast)
    found = {"state": statistics(wipe.STATE, -1, 1), "wrench": statistics(wipe.WRENCH, -9, 9)}
    torch.manual_seed(0)
    policy = Policy(of, {**found, "action": statistics(action, 0.1, 0.5)}, replace(made, tokenizer=tokenizer))
    policy.eval().requires_grad_(False)
    assert policy.tokenizer is not None
    policy.tokenizer.settle([torch.rand(64, HORIZON, 3) * 2 - 1])
    return policy


def short_wipe() -> Any:
    return make_world("wipe/perturbed", max_steps=20)


def test_evaluation_is_the_same_again_in_virtual_time_without_delay_and_alone() -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("robosuite")
    from robolearn.evaluation.lockstep import rollout
    from robolearn_deploy.delayed import Delays, rollout_delayed

    made = wipe_policy()
    seeds = [5, 6]

    def finals(results: Any) -> dict[int, tuple[float, int]]:
        return {r.seed: (r.score, r.length) for r in results}

    traces: list[list[np.ndarray]] = []

    def watched() -> Any:
        world = short_wipe()
        trace: list[np.ndarray] = []
        advance = world.advance

        def noted(target: np.ndarray) -> Any:
            trace.append(np.array(target))
            return advance(target)

        world.advance = noted
        traces.append(trace)
        return world

    together = finals(rollout(made, watched, seeds, worlds=2))
    alone = [finals(rollout(made, watched, [seed], worlds=1)) for seed in seeds]
    naive = SCHEDULERS["naive"]
    virtual = finals(rollout_delayed(made, watched, [5], worlds=1, scheduler=naive, delays=Delays.fixed(0)))
    delayed = finals(rollout_delayed(made, watched, [5], worlds=1, scheduler=naive, delays=Delays.fixed(2)))
    assert together == alone[0] | alone[1]
    assert len(traces[2]) == 20 * 5, "a decision in each fast period"
    np.testing.assert_allclose(traces[0], traces[2], atol=1e-4)
    np.testing.assert_allclose(traces[4], traces[2], atol=1e-4)
    assert virtual == {5: together[5]}
    assert delayed.keys() == {5}
    assert not np.allclose(traces[5], traces[4], atol=1e-4), "chunks that come later lead elsewhere"


def test_a_world_that_cannot_be_taken_in_fast_periods_is_refused() -> None:
    pytest.importorskip("mujoco")
    pytest.importorskip("robosuite")
    from robolearn.evaluation.lockstep import Episode
    from robolearn_data.world import FastWorldError, fast_world

    class Plain:
        """Wipe without what makes it fast."""

        def __init__(self) -> None:
            inner = make_world("wipe", max_steps=5)
            self.spec, self.reset, self.step = inner.spec, inner.reset, inner.step
            self.render, self.close = inner.render, inner.close

    with pytest.raises(FastWorldError, match="take a world with force and fast periods, such as wipe"):
        Episode(Plain(), wipe_policy(), 0)
    with pytest.raises(FastWorldError, match=r"acts 2 times in a control step.*--policy.tokenizer.fast-hz 100"):
        fast_world(short_wipe(), 2)
