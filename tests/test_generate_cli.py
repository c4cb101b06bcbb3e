"""`robolearn data generate` makes demonstrations that succeed at new starts, the same ones however it is run."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.schema import Schema
from robolearn_data.writer import DatasetWriter
from robolearn_sim.demonstrations import demonstration_schema
from robolearn_sim.generate import Attempt, GenerateError, Recipe, attempt, sources_from, trace_of
from robolearn_sim.worlds import make_world

pytestmark = pytest.mark.skipif(importlib.util.find_spec("robosuite") is None, reason="robosuite is not installed")


def record(path: Path, world: str, episodes: int, noise: str = "0.2") -> Path:
    words = ["collect", str(path), "--world", world, "--episodes", str(episodes), "--noise", noise, "--workers", "1"]
    assert main(words) == 0
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("source") / "four.zarr", "lift", 4)


@pytest.fixture(scope="module")
def generated(recorded: Path) -> Path:
    path = recorded.with_name("generated.zarr")
    assert (
        main(["data", "generate", str(recorded), str(path), "--episodes", "5", "--seed", "70", "--workers", "1"]) == 0
    )
    return path


@pytest.fixture(scope="module")
def lift() -> Iterator[Any]:
    world = make_world("lift")
    yield world
    world.close()


def content(path: Path) -> dict[str, np.ndarray]:
    dataset = Dataset.open(path)
    return {"ends": dataset.episode_ends, **{name: dataset.read(name) for name in dataset.schema.streams}}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def derived(source: Path, path: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """A copy of ``source`` without the streams and notes in ``drop``; ``changes`` replace whole streams or notes."""
    dataset = Dataset.open(source)
    streams = {name: stream for name, stream in dataset.schema.streams.items() if name not in drop}
    with DatasetWriter.create(path, Schema(dataset.schema.rate_hz, streams)) as writer:
        for i in range(dataset.episodes):
            rows = dataset.rows(i)
            writer.extend({name: changes.get(name, dataset.read(name))[rows] for name in streams})
            info = {k: v for k, v in dataset.episode_info(i).items() if k not in drop}
            writer.save_episode({k: changes.get(k, v) for k, v in info.items()})
    return path


def test_every_episode_succeeds_from_its_own_start_and_says_what_it_was_made_of(
    recorded: Path, generated: Path
) -> None:
    dataset, source = Dataset.open(generated), Dataset.open(recorded)
    assert dataset.schema == source.schema  # so that `data merge` can join them
    infos = [dataset.episode_info(i) for i in range(dataset.episodes)]
    assert len(infos) == 5
    assert all(info["success"] and info["task"] == "lift" for info in infos)
    seeds = [info["seed"] for info in infos]
    assert seeds == sorted(set(seeds))
    assert seeds[0] >= 70
    for info in infos:
        assert info["generated_from"] == source.fingerprint()
        assert len(info["source_episodes"]) == 2  # reaching, and lifting
        assert set(info["source_episodes"]) <= set(range(4))
        assert info["mirrored"] == [False, False]
        assert (info["noise_m"], info["nearest"], info["pushes"]) == (0.005, 3, 0)


def test_the_action_learned_is_the_undisturbed_one(generated: Path) -> None:
    dataset = Dataset.open(generated)
    meant, sent = dataset.read("action"), dataset.read("action_sent")
    free = np.abs(meant[:, :3]).max(axis=1) < 0.5  # where no action is at its limit
    assert 0.05 < (sent - meant)[free, :3].std() < 0.15  # 5 mm, in units of 5 cm
    assert np.array_equal(sent[:, 6], meant[:, 6])
    assert np.abs(meant).max() <= 1


def test_the_actions_carried_out_lead_through_the_states_to_success(generated: Path, lift: Any) -> None:
    dataset = Dataset.open(generated)
    episode = dataset.episode(2)
    states = [lift.reset(dataset.episode_info(2)["seed"])["state"]]
    steps = [lift.step(sent) for sent in episode["action_sent"]]
    states += [step.observation["state"] for step in steps[:-1]]
    np.testing.assert_allclose(states, episode["state"], atol=1e-4)
    assert steps[-1].success


@pytest.mark.slow
def test_a_kill_loses_nothing_saved_and_resume_gives_what_one_worker_would_have(
    recorded: Path, generated: Path, tmp_path: Path
) -> None:
    path = tmp_path / "killed.zarr"
    words = ["data", "generate", str(recorded), str(path), "--seed", "70", "--workers", "2"]
    command = [sys.executable, "-m", "robolearn.cli.main", *words, "--episodes", "100"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (path.exists() and Dataset.open(path).episodes):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    saved = Dataset.open(path).episodes
    assert 1 <= saved < 100
    assert main([*words, "--episodes", str(max(saved + 1, 5)), "--resume"]) == 0
    whole, first = content(path), content(generated)
    for name in ("state", "action", "action_sent"):
        assert np.array_equal(whole[name][: len(first[name])], first[name])


def every_third_fails(*_: object, first_seed: int, **__: object) -> Iterator[Attempt]:
    """Instead of a simulator: attempts of two steps, of which those of seeds 2, 5, 8, ... fail."""
    schema = demonstration_schema("lift", {})
    for seed in count(first_seed):
        streams = {name: np.full((2, *s.shape), seed, s.dtype) for name, s in schema.streams.items()}
        yield Attempt(seed, streams, seed % 3 != 2, ((0, False), (1, False)), 0)


def test_attempts_that_fail_are_counted_and_not_kept_and_done_again_by_resume(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("robolearn_sim.generate.attempts", every_third_fails)
    path = tmp_path / "some.zarr"
    words = ["data", "generate", str(recorded), str(path), "--seed", "0"]
    assert main([*words, "--episodes", "3"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "saved 3 and discarded 1 failed attempts, 75% of the attempts" in said
    assert main([*words, "--episodes", "5", "--resume"]) == 0
    dataset = Dataset.open(path)
    assert [dataset.episode_info(i)["seed"] for i in range(dataset.episodes)] == [0, 1, 3, 4, 6]


def test_what_hardly_ever_succeeds_is_given_up_with_a_reason(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: object, **__: object) -> Iterator[Attempt]:
        yield from (Attempt(seed, {}, False, (), 0) for seed in count())

    monkeypatch.setattr("robolearn_sim.generate.attempts", failing)
    assert main(["data", "generate", str(recorded), str(tmp_path / "none.zarr")]) == 2
    assert "31 of 31 attempts failed; lower --noise (now 0.005), or add demonstrations" in capsys.readouterr().err


def test_with_mirror_images_and_pushes_the_attempts_still_succeed(recorded: Path, lift: Any) -> None:
    sources, _ = sources_from(lift, Dataset.open(recorded), mirror=True)
    assert len(sources) == 8
    found = [attempt(lift, sources, Recipe(corrections=1.0, nearest=0), seed) for seed in range(70, 78)]
    assert sum(each.success for each in found) >= 6
    assert {mirrored for each in found for _, mirrored in each.sources} == {False, True}
    assert all(each.pushes >= 1 for each in found)
    # A push carries out something else than what is learned, by 2.5 cm or more of the 5 that an action may.
    for each in found:
        apart = np.linalg.norm((each.streams["action_sent"] - each.streams["action"])[:, :3], axis=1)
        assert (apart > 0.25).sum() >= 3


def test_an_attempt_is_determined_by_its_seed(recorded: Path, lift: Any) -> None:
    sources, _ = sources_from(lift, Dataset.open(recorded), mirror=False)
    one, other, again = (attempt(lift, sources, Recipe(corrections=0.5), seed) for seed in (70, 71, 70))
    assert one.sources == again.sources
    for name, values in one.streams.items():
        assert np.array_equal(values, again.streams[name])
    assert not np.array_equal(one.streams["state"][0], other.streams["state"][0])


def test_demonstrations_that_hold_only_what_was_carried_out_serve_too(
    recorded: Path, tmp_path: Path, lift: Any
) -> None:
    sent = np.clip(Dataset.open(recorded).read("action_sent"), -1, 1)
    path = derived(recorded, tmp_path / "person.zarr", drop=("action_sent",), action=sent)
    sources, faults = sources_from(lift, Dataset.open(path), mirror=False)
    assert (len(sources), faults) == (4, [])
    assert sum(attempt(lift, sources, Recipe(), seed).success for seed in range(70, 76)) >= 4


def test_the_trace_holds_where_the_tool_was_and_where_it_was_told_to_go(recorded: Path, lift: Any) -> None:
    dataset = Dataset.open(recorded)
    trace, episode = trace_of(lift, dataset, 1), dataset.episode(1)
    np.testing.assert_allclose(trace.tool[:, :3], episode["state"][:, :3], atol=1e-5)
    np.testing.assert_allclose(trace.target[:, :3], trace.tool[:, :3] + 0.05 * episode["action"][:, :3], atol=1e-5)
    np.testing.assert_allclose(trace.objects["cube"][:, :3] - trace.tool[:, :3], episode["state"][:, 7:10], atol=1e-5)


def test_demonstrations_of_a_world_become_ones_of_its_variant_where_nobody_demonstrated(
    recorded: Path,
) -> None:
    path = recorded.with_name("wide.zarr")
    words = ["data", "generate", str(recorded), str(path), "--world", "lift/wide", "--episodes", "4", "--workers", "1"]
    assert main(words) == 0
    demonstrated, made = (
        np.array([d.episode(i)["state"][0, :2] + d.episode(i)["state"][0, 7:9] for i in range(4)])
        for d in (Dataset.open(recorded), Dataset.open(path))
    )
    assert np.abs(demonstrated).max() < 0.031
    assert np.abs(made).max() > 0.05
    assert Dataset.open(path).metadata["world"] == "lift/wide"


@pytest.mark.slow
@pytest.mark.parametrize("world", ["can", "stack", "so101_tabletop"])
def test_what_is_carried_to_a_place_arrives_there_from_new_starts(world: str, tmp_path: Path) -> None:
    noise = "0.02" if world == "so101_tabletop" else "0.2"  # of joints in rad, and of parts of a step of the tool
    source = Dataset.open(record(tmp_path / "source.zarr", world, 4, noise))
    simulated: Any = make_world(world)
    sources, _ = sources_from(simulated, source, mirror=False)
    courses = {"can": ("can", "goal"), "stack": ("red", "green"), "so101_tabletop": ("red", "plate")}
    assert {each.course for each in sources} == {courses[world]}
    assert sum(attempt(simulated, sources, Recipe(), seed).success for seed in range(10)) >= 7
    simulated.close()


def test_an_episode_that_cannot_be_gone_through_again_is_left_out_with_a_reason(
    recorded: Path, tmp_path: Path, lift: Any
) -> None:
    sent = Dataset.open(recorded).read("action_sent").copy()
    rows = Dataset.open(recorded).rows(2)
    sent[rows][5:10, 0] = 1.0  # a view: episode 2 goes elsewhere
    path = derived(recorded, tmp_path / "altered.zarr", action_sent=sent)
    sources, faults = sources_from(lift, Dataset.open(path), mirror=False)
    assert [source.episode for source in sources] == [0, 1, 3]
    assert len(faults) == 1
    assert "episode 2 of" in faults[0]
    assert "cannot be gone through again: at step" in faults[0]
    unseeded = derived(recorded, tmp_path / "unseeded.zarr", drop=("seed",))
    with pytest.raises(GenerateError, match=r"episode 0 of .* has no seed; record it in a simulated world"):
        sources_from(lift, Dataset.open(unseeded), mirror=False)
    failed = derived(recorded, tmp_path / "failed.zarr", success=False)
    with pytest.raises(GenerateError, match="no episode that succeeded"):
        sources_from(lift, Dataset.open(failed), mirror=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--world", "lifft"], "'lifft'; valid: pusht, lift"),
        (["--world", "pusht"], "'pusht' has no tool that picks up objects; valid: lift, can"),
        (["--world", "stack"], "were recorded in the world 'lift'; 'stack' is another"),
        (["--world", "lift/high"], "there is no world 'lift/high'; valid: lift, lift/wide"),
        (["--task", "sweep"], "the world 'lift' has no option 'task'"),
        (["--episodes", "0"], "--episodes must be at least 1"),
        (["--noise", "nan"], "--noise must be a length in m"),
        (["--corrections", "2"], "--corrections must be from 0 to 1"),
        (["--nearest", "-1"], "--nearest must be at least 0"),
        (["--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_nothing_is_made(
    words: list[str], message: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "never.zarr"
    assert main(["data", "generate", str(recorded), str(path), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert not path.exists()


def test_a_source_that_does_not_say_its_world_is_refused(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = derived(recorded, tmp_path / "silent.zarr", drop=("world",))
    assert main(["data", "generate", str(path), str(tmp_path / "never.zarr")]) == 2
    assert "does not say which world it was recorded in; name it with --world" in capsys.readouterr().err


def test_a_mirror_image_of_a_world_that_has_none_is_refused(tmp_path: Path) -> None:
    simulated: Any = make_world("door")
    with DatasetWriter.create(tmp_path / "door.zarr", simulated.spec.schema) as writer:
        writer.close()
    with pytest.raises(GenerateError, match="'door' does not look the same in a mirror; --mirror is for lift, stack"):
        sources_from(simulated, Dataset.open(tmp_path / "door.zarr"), mirror=True)
    simulated.close()


def test_a_dataset_is_never_overwritten_and_resume_wants_the_same_options(
    recorded: Path, generated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(generated)
    words = ["data", "generate", str(recorded), str(generated), "--episodes", "6"]
    assert main([*words, "--seed", "70"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*words, "--seed", "70", "--resume", "--noise", "0.01"]) == 2
    assert "begun with other options" in capsys.readouterr().err
    assert_equal(content(generated), before)
