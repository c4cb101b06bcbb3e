"""Latent actions with language: two stages, what each of them is told, and that they split a change in two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robolearn.evaluation.latent_plots import latent_figure
from robolearn.evaluation.latents import measure
from robolearn.policies.contracts import Batch
from robolearn.policies.latent.bottlenecks import BOTTLENECKS
from robolearn.policies.latent.checkpoint import load_latent_model, save_latent_model
from robolearn.policies.latent.config import LatentError, LatentModelConfig
from robolearn.policies.latent.language import InstructionEncoder
from robolearn.policies.latent.model import LatentActionModel
from robolearn.training.config import ConfigError, LatentTrainConfig, OptimiserConfig
from robolearn.training.ema import Ema
from robolearn.training.latent import settle, train_latent_model
from robolearn.training.latent_labels import latents
from robolearn.training.pairs import PairBatches
from robolearn.training.processes import processes
from robolearn.training.sources import open_sources
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema, Stream, UserError, read_text
from robolearn_data.writer import DatasetWriter

SIDE = 16
IMAGE = Stream((SIDE, SIDE, 3), "uint8", kind="image")
LEVEL = Stream((1,), kind="state")
TEXT = Stream((32,), "uint8", kind="text")


def write(path: Path, episodes: int, *, text: Stream | None = TEXT, task: str = "", seed: int = 0) -> Path:
    """Two lamps, somewhere in each episode: the red one is turned up or down as it is said, the blue one flickers."""
    rng = np.random.default_rng(seed)
    streams = {"img": IMAGE, "red": LEVEL, "blue": LEVEL} | ({"instruction": text} if text else {})
    with DatasetWriter.create(path, Schema(10.0, streams), compression={"img": "zstd-1"}) as writer:
        for _ in range(episodes):
            left, top = rng.permutation([1, 9]), rng.integers(0, SIDE - 6, 2)
            background, level = rng.integers(0, 60, 3), rng.integers(10, 21, 2)
            for _ in range(20):
                picture = np.broadcast_to(background, IMAGE.shape).astype(np.uint8)
                for lamp, channel in enumerate((0, 2)):
                    place = picture[top[lamp] : top[lamp] + 6, left[lamp] : left[lamp] + 6]
                    place[:] = 30
                    place[..., channel] = 8 * level[lamp]
                change = rng.integers(-8, 9, 2)
                change = np.where((level + change < 10) | (level + change > 30), -change, change)
                red, blue = level[:, None].astype(np.float32)
                said = f"turn red {'up' if change[0] > 0 else 'down'} {abs(change[0])}"
                row = {"img": picture, "red": red, "blue": blue}
                writer.add({**row, "instruction": said} if text else row)
                level = level + change
            writer.save_episode({"task": task} if task else {})
    return path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "told.zarr", 6)


def settings(steps: int, first_steps: int, **model: object) -> LatentTrainConfig:
    chosen = {"image_size": SIDE, "patch": 2, "width": 8, "ahead": 1, "language": "words", "max_text": 8, **model}
    return LatentTrainConfig(
        model=LatentModelConfig(**chosen),  # pyright: ignore[reportArgumentType]
        steps=steps,
        first_steps=first_steps,
        batch_size=16,
        checkpoint_every=first_steps,
        optimiser=OptimiserConfig(lr=2e-3, warmup=2),
    )


def learn(config: LatentTrainConfig, data: Path, run: Path, **options: object) -> LatentActionModel:
    with processes("cpu") as group:
        return train_latent_model(config, [data], run, group, **options)  # pyright: ignore[reportArgumentType]


def untrained(**model: object) -> LatentActionModel:
    return LatentActionModel("img", IMAGE, 10.0, settings(1, 1, **model).model, change=0.1)


def pairs(texts: list[str]) -> Batch:
    frames = torch.randint(0, 256, (len(texts), 2, SIDE, SIDE, 3), dtype=torch.uint8)
    is_pad = torch.zeros(len(texts), 1, dtype=torch.bool)
    return Batch({"img": frames, "instruction": spoken(texts)}, torch.empty(len(texts), 0, 0), is_pad)


def spoken(texts: list[str]) -> torch.Tensor:
    return torch.tensor(TEXT.check("instruction", texts, batch=(len(texts),)))


def trained_parts(model: LatentActionModel, batch: Batch) -> set[str]:
    model.zero_grad(set_to_none=True)
    model.loss(batch).total().backward()
    return {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bottleneck", list(BOTTLENECKS))
def test_each_stage_trains_its_own_inverse_model_and_both_the_forward_model(bottleneck: str) -> None:
    model, batch = untrained(bottleneck=bottleneck).train(), pairs(["left 1", "right 2", "right 2"])
    torch.nn.init.normal_(model.forward_model.out.weight)  # it begins with zeros, which let no gradient through
    assert trained_parts(model, batch) == {"unsaid", "forward_model"}
    settle(model, Ema(model, 0.75, 0.99))
    own = {"inverse", "forward_model"} | ({"bottleneck"} if bottleneck == "vq" else set())
    assert trained_parts(model, batch) == own


def test_latent_actions_and_the_forward_model_of_the_second_stage_are_not_told_the_instruction() -> None:
    model, batch = untrained().eval(), pairs(["left 1", "right 2"])
    assert model.unsaid is not None
    other = {**batch.observation, "instruction": batch.observation["instruction"].flip(0)}
    one, two = model.told(batch.observation), model.told(other)
    z, r = model.bottleneck.size, model.unsaid.bottleneck.size
    assert torch.equal(one[:, :z], two[:, :z])
    assert not torch.equal(one[:, z : z + r], two[:, z : z + r])
    assert not one[:, z + r :].any()
    assert torch.equal(one[:, :z], model.latent(batch.observation["img"]))
    assert model.latent_stream().shape == (z,)


def test_an_instruction_is_told_alike_in_any_company_and_words_have_an_order() -> None:
    torch.manual_seed(0)
    read = InstructionEncoder("words", 8).eval()
    texts = ["put it left", "left it put", "put", "", "put it left of the green one"]
    said = spoken(texts)
    together = read(said)
    assert together.isfinite().all()
    for i in range(5):
        torch.testing.assert_close(read(said[i : i + 1])[0], together[i])
    for i in range(1, 5):
        assert (together[0] - together[i]).abs().max() > 1e-2


@pytest.mark.parametrize("bottleneck", list(BOTTLENECKS))
def test_a_run_resumed_in_both_stages_equals_one_that_was_never_stopped(
    bottleneck: str, told: Path, tmp_path: Path
) -> None:
    config = replace(settings(6, 5, bottleneck=bottleneck, replace_every=2), checkpoint_every=100)
    learn(config, told, tmp_path / "whole")
    learn(config, told, tmp_path / "parts", stop_at=3)
    learn(config, told, tmp_path / "parts", stop_at=8, resume=True)
    learn(config, told, tmp_path / "parts", resume=True, workers=2, images="disk")
    whole, parts = (load_file(tmp_path / name / "training.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("bottleneck", list(BOTTLENECKS))
def test_what_the_first_stage_learned_stays_as_it_is(bottleneck: str, told: Path, tmp_path: Path) -> None:
    learn(settings(5, 5, bottleneck=bottleneck, replace_every=2), told, tmp_path / "run")
    first, last = (
        load_file(folder / "model.safetensors") for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())
    )
    kept = {name for name in first if name.startswith("unsaid.")} - {"unsaid.settled"}
    assert len(kept) > 10
    assert all(torch.equal(first[name], last[name]) for name in kept)
    assert (first["unsaid.settled"], last["unsaid.settled"]) == (0, 1)
    assert torch.equal(first["inverse.head.weight"], last["inverse.head.weight"]) is False


def test_a_checkpoint_of_the_first_stage_has_no_latent_actions_to_give(told: Path, tmp_path: Path) -> None:
    learn(settings(4, 4), told, tmp_path / "run", stop_at=4)
    with pytest.raises(LatentError, match="first stage, which learns what the instruction does not say"):
        load_latent_model(tmp_path / "run")


@pytest.mark.parametrize("language", ["words", "bytes"])
def test_a_saved_model_tells_the_same(language: str, tmp_path: Path) -> None:
    model, batch = untrained(language=language, max_text=32).eval(), pairs(["left 1", "right 2"])
    assert model.unsaid is not None
    model.unsaid.settled.fill_(1)
    save_latent_model(model, tmp_path / "m")
    assert torch.equal(load_latent_model(tmp_path / "m").told(batch.observation), model.told(batch.observation))


def test_policies_are_given_latent_actions_of_video_without_instructions(told: Path, tmp_path: Path) -> None:
    silent = Dataset.open(write(tmp_path / "silent.zarr", 6, text=None))
    model = untrained().eval()
    np.testing.assert_array_equal(latents(model, silent)[0], latents(model, Dataset.open(told))[0])
    assert latents(model, silent)[0].shape == (silent.steps, model.bottleneck.size)


def test_a_pair_has_the_instruction_of_its_earlier_picture_or_the_task_of_its_episode(
    told: Path, tmp_path: Path
) -> None:
    tasks = write(tmp_path / "tasks.zarr", 2, text=None, task="be quick", seed=1)
    batches = PairBatches(open_sources([told, tasks]), "img", 3, batch_size=40, seed=0, instruction=TEXT)
    with batches.coming(0, 1, 0) as coming:
        batch = next(coming)
    dataset = Dataset.open(told)
    pictures, said = dataset.read("img"), dataset.read("instruction")
    found = [read_text(text) for text in batch.observation["instruction"].numpy()]
    for frames, text in zip(batch.observation["img"].numpy(), found, strict=True):
        rows = np.flatnonzero((pictures == frames[0]).all((1, 2, 3)))  # lamps may be alike twice in an episode
        assert text in ({read_text(said[row]) for row in rows} if len(rows) else {"be quick"})
    assert "be quick" in found
    assert len(set(found)) > 10


def test_what_cannot_be_told_is_refused_before_training(told: Path, tmp_path: Path) -> None:
    mute = write(tmp_path / "mute.zarr", 1, text=None)
    small = write(tmp_path / "small.zarr", 1, text=Stream((20,), "uint8", kind="text"))
    silent = tmp_path / "silent.zarr"
    with DatasetWriter.create(silent, Schema(10.0, {"img": IMAGE, "instruction": TEXT})) as writer:
        for _ in range(3):
            writer.add({"img": np.zeros(IMAGE.shape, np.uint8), "instruction": ""})
        writer.save_episode({})
    config = settings(2, 2)
    for changed, data, said in (
        (config, [mute], "notes no task of 1 of 1 episodes .* or learn with --model.language none"),
        (config, [silent], "no instruction in its stream 'instruction'; learn with --model.language none"),
        (config, [told, small], "instructions of 20 bytes, .* of 32"),
        (replace(config, model=replace(config.model, max_text=3)), [told], "has 4 words, .* --model.max-text 4"),
        (replace(config, model=replace(config.model, language="bytes")), [told], r"1\d bytes, the model takes 8"),
    ):
        with processes("cpu") as group, pytest.raises(UserError, match=said):
            train_latent_model(changed, data, tmp_path / "run", group)
    assert not (tmp_path / "run").exists()
    with pytest.raises(LatentError, match=r"model.kl above 0, or model.bottleneck vq or fsq"):
        settings(2, 2, kl=0.0)
    with pytest.raises(LatentError, match="max_text must be at least 1"):
        settings(2, 2, max_text=0)
    with pytest.raises(ConfigError, match=r"two stages of --model\.language"):
        settings(2, 2, language="none")


@pytest.mark.slow
def test_what_is_said_and_what_is_not_are_found_by_probes_in_the_part_that_is_theirs(tmp_path: Path) -> None:
    data = write(tmp_path / "lamps.zarr", 40)
    # Without language z says the blue lamp, which moves as much.
    config = settings(200, 200, width=16, size=2, kl=1e-4)
    config = replace(config, batch_size=32, optimiser=OptimiserConfig(lr=4e-3, warmup=10))
    model = learn(config, data, tmp_path / "run")
    dataset = Dataset.open(data)
    parts = [(dataset, range(dataset.episodes))]
    found = measure(model, parts, most=400)
    red, blue = (found["probes"][f"{name}, change"] for name in ("red", "blue"))
    assert red["z"][0] > 0.8
    assert blue["z"][0] < 0.1
    assert blue["unsaid"][0] > 0.8
    assert red["unsaid"][0] < 0.1
    assert found["explained"]["z"] > found["explained"]["unsaid of another pair"] + 0.3
    latent_figure(model, found, parts).savefig(tmp_path / "report.png")
