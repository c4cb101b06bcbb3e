"""Latent actions: bottlenecks against their papers' formulas, figures, a toy whose actions are found in its video."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robolearn.evaluation.latent_plots import latent_figure
from robolearn.evaluation.latents import code_figures, linear_r2, measure, pieces
from robolearn.policies.latent.bottlenecks import BOTTLENECKS, FiniteScalar, Gaussian, VectorQuantised, substituted
from robolearn.policies.latent.checkpoint import load_latent_model, save_latent_model
from robolearn.policies.latent.config import LatentError, LatentModelConfig
from robolearn.policies.latent.model import LatentActionModel
from robolearn.training.config import ConfigError, LatentTrainConfig, OptimiserConfig, dump_config, load_config
from robolearn.training.latent import train_latent_model
from robolearn.training.latent_labels import latents, with_latents
from robolearn.training.metrics import read_metrics
from robolearn.training.processes import processes
from robolearn.training.sources import Source
from robolearn_data.dataset import Dataset
from robolearn_data.overlay import WithStream
from robolearn_data.schema import Schema, SchemaError, Stream, UserError
from robolearn_data.statistics import statistics
from robolearn_data.writer import DatasetWriter

SIDE = 32
IMAGE = Stream((SIDE, SIDE, 3), "uint8", kind="image")
ACTION = Stream((2,), kind="action", names=("x", "y"))
SMALL = {"image_size": SIDE, "patch": 4, "width": 16, "ahead": 1}


def draw_square(x: float, y: float, background: np.ndarray) -> np.ndarray:
    """A bright square of 7 x 7 pixels with soft edges, its middle at (x, y) pixels."""
    grid = np.arange(SIDE) + 0.5
    along, down = (np.clip(4 - np.abs(grid - middle), 0, 1) for middle in (x, y))
    cover = (down[:, None] * along)[..., None]
    return (background * (1 - cover) + 255 * cover).astype(np.uint8)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square moved by a random action, up to 3 pixels each way, before a background of its own in each episode."""
    path = tmp_path_factory.mktemp("data") / "squares.zarr"
    rng = np.random.default_rng(0)
    with DatasetWriter.create(path, Schema(10.0, {"img": IMAGE, "action": ACTION}), compression={"img": "zstd-1"}) as w:
        for _ in range(40):
            colour = rng.integers(0, 120, (1, 1, 3))
            background = np.broadcast_to(colour, (SIDE, SIDE, 3)) + rng.integers(0, 20, (1, SIDE, 3))
            x, y = rng.uniform(8, SIDE - 8, 2)
            for _ in range(20):
                action = rng.uniform(-3, 3, 2)
                action = np.where(
                    (np.array([x, y]) + action < 5) | (np.array([x, y]) + action > SIDE - 5), -action, action
                )
                w.add({"img": draw_square(x, y, background), "action": action.astype(np.float32)})
                x, y = np.array([x, y]) + action
            w.save_episode({})
    return path


def settings(steps: int = 20, **model: object) -> LatentTrainConfig:
    return LatentTrainConfig(
        model=LatentModelConfig(**{**SMALL, **model}),  # pyright: ignore[reportArgumentType]
        steps=steps,
        batch_size=32,
        checkpoint_every=steps,
        optimiser=OptimiserConfig(lr=2e-3, warmup=20),
    )


def learn(config: LatentTrainConfig, data: Path, run: Path, **options: object) -> LatentActionModel:
    with processes("cpu") as group:
        return train_latent_model(config, [data], run, group, **options)  # pyright: ignore[reportArgumentType]


def test_noise_substitution_is_x_plus_the_error_s_length_in_a_random_direction() -> None:
    rng = np.random.default_rng(0)
    x, q, v = (rng.normal(size=(5, 3, 4)) for _ in range(3))
    expected = x + np.sqrt(((x - q) ** 2).sum(-1, keepdims=True)) * v / np.sqrt((v**2).sum(-1, keepdims=True))
    found = substituted(*(torch.from_numpy(value) for value in (x, q, v)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_noise_substitution_s_gradient_reaches_the_codebook_and_the_inverse_model() -> None:
    part = VectorQuantised(LatentModelConfig(bottleneck="vq", tokens=2, codes=4, size=3))
    x = torch.randn(8, 6, requires_grad=True)
    z, _ = part.train_pass(x, part.draw(8, None))
    z.square().sum().backward()
    assert x.grad is not None
    assert part.codebook.grad is not None
    chosen = part.codes(x).unique()
    assert (x.grad.abs().sum(1) > 0).all()
    assert (part.codebook.grad[chosen].abs().sum(1) > 0).all()
    unused = [i for i in range(4) if i not in chosen]
    assert not part.codebook.grad[unused].any()


def test_codes_are_the_nearest_of_the_codebook_and_the_latent_is_made_of_them() -> None:
    part = VectorQuantised(LatentModelConfig(bottleneck="vq", tokens=2, codes=5, size=3)).eval()
    x = torch.randn(7, 6)
    book = part.codebook.detach().numpy()
    for i, n in itertools.product(range(7), range(2)):
        vector = x[i, 3 * n : 3 * n + 3].numpy()
        nearest = int(np.argmin(((book - vector) ** 2).sum(1)))
        assert int(part.codes(x)[i, n]) == nearest
        np.testing.assert_array_equal(part.latent(x)[i, 3 * n : 3 * n + 3].detach().numpy(), book[nearest])


def test_codes_that_nobody_uses_move_next_to_used_ones_and_the_same_way_each_time() -> None:
    def after_training() -> VectorQuantised:
        torch.manual_seed(0)
        part = VectorQuantised(LatentModelConfig(bottleneck="vq", tokens=1, codes=8, size=2, replace_every=5))
        with torch.no_grad():
            part.codebook[:2] = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
            part.codebook[2:] = 100.0
        x = torch.tensor([[1.1, 0.0], [-1.1, 0.0]]).repeat(8, 1)
        for _ in range(6):
            part.train_pass(x, {"noise": torch.ones(16, 1, 2)})
        return part

    part = after_training()
    kept = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    distance = torch.cdist(part.codebook.detach(), kept).amin(1)
    assert (distance[:2] == 0).all()
    assert (distance[2:] > 0).all()
    assert (distance < 0.1).all()
    assert torch.equal(part.codebook, after_training().codebook)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (7,), (8, 8, 8, 6, 5)])
def test_finite_scalars_are_those_of_the_paper_s_formula(levels: tuple[int, ...]) -> None:
    part = FiniteScalar(LatentModelConfig(bottleneck="fsq", levels=levels))
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (500, len(levels)))).float()
    x[0], x[1], x[2] = 0.0, 50.0, -50.0
    for i, level in enumerate(levels):
        half = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        bounded = np.tanh(x[:, i].double().numpy() + math.atanh(offset / half)) * half - offset
        whole = np.round(bounded)
        assert whole.min() == -(level // 2)
        assert whole.max() == level - 1 - level // 2
        np.testing.assert_allclose(part.latent(x)[:, i].numpy(), whole / (level // 2), rtol=1e-6)
    assert not part.latent(torch.zeros(1, len(levels))).any()


def test_every_combination_of_levels_has_a_code_of_its_own() -> None:
    levels = (4, 3, 5)
    part = FiniteScalar(LatentModelConfig(bottleneck="fsq", levels=levels))
    places = [np.arange(level) - level // 2 for level in levels]
    wanted = torch.tensor(list(itertools.product(*places)), dtype=torch.float32)
    half, offset = (
        torch.tensor([f(level) for level in levels])
        for f in (lambda n: (n - 1) * 1.001 / 2, lambda n: 0.5 * (n % 2 == 0))
    )
    x = torch.atanh((wanted + offset) / half) - torch.atanh(offset / half)
    codes = part.codes(x).flatten()
    assert sorted(codes.tolist()) == list(range(math.prod(levels)))
    assert part.codebook_size == math.prod(levels)


def test_rounding_passes_the_gradient_of_what_is_rounded() -> None:
    part = FiniteScalar(LatentModelConfig(bottleneck="fsq", levels=(5, 8)))
    x = torch.tensor([[0.3, -0.4]], requires_grad=True)
    part.train_pass(x, {})[0].sum().backward()
    assert x.grad is not None
    for i, level in enumerate((5, 8)):
        half, offset = (level - 1) * 1.001 / 2, 0.5 * (level % 2 == 0)
        slope = half * (1 - math.tanh(x[0, i].item() + math.atanh(offset / half)) ** 2) / (level // 2)
        assert float(x.grad[0, i]) == pytest.approx(slope, rel=1e-5)


def test_numbers_at_an_end_of_their_range_are_brought_back() -> None:
    part = FiniteScalar(LatentModelConfig(bottleneck="fsq", levels=(5, 8), spread=0.5))
    x = torch.tensor([[1.0, 40.0], [3.0, 40.1]], requires_grad=True)
    z, terms = part.train_pass(x, {})
    assert terms["spread"].tolist() == pytest.approx([0.5 * (2**2 + 0 + 40.05**2 + 0.95**2) / 2] * 2, rel=1e-4)
    z.sum().backward(retain_graph=True)
    assert x.grad is not None
    assert not x.grad[:, 1].any()
    terms["spread"].mean().backward()
    assert (x.grad[:, 1] > 0).all()


def test_divergence_of_the_gaussian_is_the_integral_of_its_definition() -> None:
    part = Gaussian(LatentModelConfig(size=2, kl=0.5))
    mean, log_variance = torch.tensor([[0.7, -1.2]]), torch.tensor([[-0.5, 0.8]])
    x = torch.cat([mean, log_variance], dim=1)
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    expected = []
    for i in range(2):
        q = torch.distributions.Normal(mean[0, i].double(), (0.5 * log_variance[0, i].double()).exp())
        log_p = torch.distributions.Normal(0.0, 1.0).log_prob(grid)
        expected.append(float(torch.trapezoid(q.log_prob(grid).exp() * (q.log_prob(grid) - log_p), grid)))
    np.testing.assert_allclose(part.divergence(x)[0].numpy(), expected, rtol=1e-5)
    z, terms = part.train_pass(x, {"noise": torch.tensor([[1.0, -2.0]])})
    assert float(terms["divergence"]) == pytest.approx(0.5 * sum(expected), rel=1e-5)
    torch.testing.assert_close(z, mean + (0.5 * log_variance).exp() * torch.tensor([[1.0, -2.0]]))


def test_code_figures_count_used_dead_and_perplexity() -> None:
    alike = code_figures(np.arange(8).repeat(10)[:, None], 8)
    assert (alike["used"], alike["dead"]) == (8, 0)
    assert alike["perplexity"] == pytest.approx(8)
    single = code_figures(np.full((50, 2), 3), 8)
    assert (single["used"], single["dead"], single["perplexity"]) == (1, 7, 1)
    skewed = code_figures(np.array([[0]] * 3 + [[5]]), 6)
    assert skewed["perplexity"] == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert skewed["most_used"][:2] == [3, 1]


def test_a_linear_probe_finds_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(20), 30)
    x = rng.normal(size=(600, 4))
    y = np.stack([x @ [1, -2, 0, 3] + 5, rng.normal(size=600), np.full(600, 2.0)], 1)
    r2 = linear_r2(x, y, episode)
    assert r2[0] > 0.98
    assert r2[1] < 0.05
    assert np.isnan(r2[2])
    # What only names the episode tells nothing about another one: folds are of episodes.
    name, level = rng.normal(size=(20, 4))[episode], rng.normal(size=20)[episode][:, None]
    assert linear_r2(name, level, episode)[0] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bottleneck", "counted", "least"), [("gaussian", "varying", 2), ("vq", "used", 16), ("fsq", "used", 100)]
)
def test_actions_are_found_in_video_by_a_linear_probe_and_z_does_not_carry_the_picture(
    bottleneck: str, counted: str, least: int, squares: Path, tmp_path: Path
) -> None:
    model = learn(settings(steps=500, bottleneck=bottleneck, size=4, kl=1e-4), squares, tmp_path / "run")
    dataset = Dataset.open(squares)
    parts = [(dataset, range(dataset.episodes))]
    found = measure(model, parts, most=700)
    z, untrained = (np.mean(found["probes"]["action"][source]) for source in ("z", "untrained"))
    assert z > 0.85
    assert z > untrained + 0.1
    assert found["explained"]["z"] > 0.6
    assert found["explained"]["z of another pair"] < 0.2
    assert found["leakage"]["picture from z, linear"] < 0.2
    assert found["codes"][counted] >= least
    latent_figure(model, found, parts).savefig(tmp_path / "report.png")


@pytest.mark.parametrize("bottleneck", ["vq", "gaussian", "fsq"])
def test_a_resumed_run_equals_one_that_was_never_stopped(bottleneck: str, squares: Path, tmp_path: Path) -> None:
    config = settings(12, bottleneck=bottleneck, replace_every=4, codes=32)
    learn(config, squares, tmp_path / "whole")
    learn(config, squares, tmp_path / "parts", stop_at=7)
    learn(config, squares, tmp_path / "parts", resume=True, workers=2, images="disk")
    whole, parts = (load_file(tmp_path / name / "training.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_actions_of_a_dataset_change_nothing_of_what_is_learned_from_its_pictures(
    squares: Path, tmp_path: Path
) -> None:
    source, path = Dataset.open(squares), tmp_path / "silent.zarr"
    with DatasetWriter.create(path, Schema(10.0, {"img": IMAGE}), compression={"img": "zstd-1"}) as writer:
        for episode in range(source.episodes):
            writer.extend({"img": source.read("img", source.rows(episode))})
            writer.save_episode({})
    for name, data in (("with", squares), ("without", path)):
        learn(settings(5), data, tmp_path / name)
    one, two = (
        load_file(sorted((tmp_path / n / "checkpoints").iterdir())[0] / "model.safetensors")
        for n in ("with", "without")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("bottleneck", list(BOTTLENECKS))
def test_a_saved_model_gives_the_same_latents(bottleneck: str, tmp_path: Path) -> None:
    config = LatentModelConfig(**{**SMALL, "bottleneck": bottleneck})  # pyright: ignore[reportArgumentType]
    model = LatentActionModel("img", IMAGE, 10.0, config, change=0.1).eval()
    frames = torch.randint(0, 256, (3, 2, SIDE, SIDE, 3), dtype=torch.uint8)
    save_latent_model(model, tmp_path / "m", step=3)
    loaded = load_latent_model(tmp_path / "m")
    assert torch.equal(model.latent(frames), loaded.latent(frames))
    assert loaded.latent_stream() == Stream((model.bottleneck.size,), kind="action", unit="latent")


def test_labels_belong_to_their_rows_and_there_is_none_where_the_episode_ends(squares: Path, tmp_path: Path) -> None:
    config = LatentModelConfig(**{**SMALL, "ahead": 3})  # pyright: ignore[reportArgumentType]
    model = LatentActionModel("img", IMAGE, 10.0, config).eval()
    save_latent_model(model, tmp_path / "m")
    dataset = Dataset.open(squares)
    values, valid = latents(model, dataset)
    pictures = dataset.read("img")
    for row in (0, 5, 41, 56):
        pair = torch.from_numpy(pictures[[row, row + 3]])[None]
        np.testing.assert_allclose(values[row], model.latent(pair)[0].numpy(), atol=1e-5)
    assert [valid[20 * e : 20 * e + 20].tolist() for e in (0, 39)] == [[True] * 17 + [False] * 3] * 2
    (labelled,), name = with_latents([Source(dataset, [0, 1], [])], tmp_path / "m", torch.device("cpu"))
    assert name == "img"
    assert labelled.dataset.schema.streams["action"] == model.latent_stream()
    np.testing.assert_array_equal(labelled.dataset.read("action"), values)
    assert labelled.dataset.fingerprint() != dataset.fingerprint()


def test_a_stream_in_memory_stands_in_place_of_the_stored_one(squares: Path) -> None:
    dataset = Dataset.open(squares)
    values = np.arange(2 * dataset.steps, dtype=np.float32).reshape(-1, 2)
    valid = np.arange(dataset.steps) % 2 == 0
    shown = WithStream(dataset, "action", Stream((2,), kind="action", unit="m"), values, valid, mark="a")
    np.testing.assert_array_equal(shown.read("action", slice(3, 9)), values[3:9])
    np.testing.assert_array_equal(shown.take("action", [[7, -1]]), [[values[7], [0, 0]]])
    np.testing.assert_array_equal(shown.read("img", slice(0, 2)), dataset.read("img", slice(0, 2)))
    assert statistics(shown, ["action"])["action"].max[0] == values[valid][:, 0].max()
    other = WithStream(dataset, "action", Stream((2,), kind="action", unit="m"), values, valid, mark="b")
    assert len({dataset.fingerprint(), shown.fingerprint(), other.fingerprint()}) == 3
    with pytest.raises(SchemaError, match="shape"):
        WithStream(dataset, "action", ACTION, values[:5])


def test_pairs_that_were_not_recorded_count_nothing() -> None:
    from robolearn.policies.contracts import Batch

    model = LatentActionModel("img", IMAGE, 10.0, LatentModelConfig(**SMALL), change=0.5).eval()  # pyright: ignore[reportArgumentType]
    frames = torch.randint(0, 256, (2, 2, SIDE, SIDE, 3), dtype=torch.uint8)
    batch = Batch({"img": frames}, torch.empty(2, 0, 0), torch.tensor([[False], [True]]))
    terms = model.loss(batch).terms
    assert all(term[1].item() == 0 for term in terms.values())
    # Before training the forward model predicts no change.
    change = (frames[0, 1].double() - frames[0, 0].double()).div(127.5).square().mean()
    assert terms["prediction"][0].item() == pytest.approx(float(change) / 0.5, rel=1e-4)


def test_the_configuration_survives_yaml(tmp_path: Path) -> None:
    config = settings(7, bottleneck="fsq", levels=(4, 4))
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml", LatentTrainConfig) == config
    (tmp_path / "c.yaml").write_text("model: {bottlneck: vq}")
    with pytest.raises(ConfigError, match=r"unknown key model\.bottlneck"):
        load_config(tmp_path / "c.yaml", LatentTrainConfig)


def test_held_out_episodes_have_a_loss_of_their_own(squares: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    learn(replace(settings(3), held_out=0.2), squares, tmp_path / "run")
    assert sum("held_out_loss" in row for row in read_metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"image_size": 30}, "four times model.patch 4 or more"),
        ({"width": 12}, "multiple of 8"),
        ({"ahead": 0}, "ahead must be at least 1"),
        ({"levels": (5, 1)}, "two values"),
        ({"kl": -1.0}, "not be negative"),
    ],
)
def test_settings_that_make_no_model_are_refused(model: dict[str, object], said: str) -> None:
    with pytest.raises(LatentError, match=said):
        settings(**model)  # pyright: ignore[reportArgumentType]


def test_data_that_nothing_can_be_learned_from_is_refused(tmp_path: Path) -> None:
    still, blind = tmp_path / "still.zarr", tmp_path / "blind.zarr"
    with DatasetWriter.create(still, Schema(10.0, {"img": IMAGE, "two": IMAGE})) as writer:
        for _ in range(5):
            writer.add({"img": np.zeros(IMAGE.shape, np.uint8), "two": np.zeros(IMAGE.shape, np.uint8)})
        writer.save_episode({})
    with DatasetWriter.create(blind, Schema(10.0, {"action": ACTION})) as writer:
        writer.add({"action": np.zeros(2, np.float32)})
        writer.save_episode({})
    from dataclasses import replace

    for config, data, said in (
        (replace(settings(), stream="img"), still, "do not change"),
        (settings(), still, "it has img, two: choose one with --stream"),
        (replace(settings(), stream="cam"), still, "valid: img, two"),
        (settings(), blind, "no stream of pictures"),
    ):
        with pytest.raises(UserError, match=said):
            learn(config, data, tmp_path / "run")
    with pytest.raises(LatentError, match="robolearn latent learn"):
        load_latent_model(tmp_path)
    with pytest.raises(ConfigError, match="give both or neither"):
        LatentTrainConfig(features="runs/x")


def test_pieces_tell_what_was_done_between_the_pictures(squares: Path) -> None:
    model = LatentActionModel("img", IMAGE, 10.0, LatentModelConfig(**{**SMALL, "ahead": 2}))  # pyright: ignore[reportArgumentType]
    dataset = Dataset.open(squares)
    action, pictures = dataset.read("action"), dataset.read("img")
    (piece,) = pieces(model, [(dataset, [3])], 100)
    frames = piece.observation["img"]
    assert len(piece.episode) == 18
    rows = [next(r for r in range(60, 78) if (pictures[r] == frame[0].numpy()).all()) for frame in frames]
    np.testing.assert_allclose(piece.recorded["action"], [(action[r] + action[r + 1]) / 2 for r in rows], rtol=1e-6)
    np.testing.assert_allclose(piece.recorded["action, change"], [action[r + 2] - action[r] for r in rows], rtol=1e-5)
    assert all((pictures[r + 2] == frame[1].numpy()).all() for r, frame in zip(rows, frames, strict=True))
