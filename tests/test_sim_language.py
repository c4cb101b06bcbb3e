"""Instructions at the SO-101's table: sets that are apart, sentences that mean one thing, success for one verb."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robolearn.cli.main import main
from robolearn_data.dataset import Dataset
from robolearn_data.schema import SchemaError, read_text
from robolearn_sim.demonstrations import Demonstration, demonstrate, demonstration_schema
from robolearn_sim.experts import make_expert
from robolearn_sim.instructions import (
    GOALS,
    HELD_OUT_PAIRS,
    LANGUAGES,
    VERBS,
    WORDINGS,
    Goal,
    goal_of,
    goals_of,
    sentences,
)
from robolearn_sim.worlds import WorldError, make_world, options_of, variants_of, world_spec

mujoco: Any = pytest.importorskip("mujoco")

from robolearn_sim.so101_language import PLACES_AT, cube_position, possible  # noqa: E402
from robolearn_sim.so101_tabletop import CUBES  # noqa: E402

NAME = "so101_language"


@functools.cache
def the(name: str = NAME) -> Any:
    """One world of a name for all tests of a process; every test begins with a reset."""
    return make_world(name)


def words(language: str) -> set[str]:
    return {word for goal in goals_of(language) for text in sentences(goal, language) for word in text.split()}


def test_held_out_pairs_are_never_asked_for_in_seen_though_each_verb_and_colour_is() -> None:
    assert len(GOALS) == len(set(GOALS)) == 27
    seen, new = goals_of("seen"), goals_of("new-pairs")
    assert set(seen) | set(new) == set(GOALS)
    assert {(g.verb, g.cube) for g in new} == HELD_OUT_PAIRS
    assert not {(g.verb, g.cube) for g in seen} & HELD_OUT_PAIRS
    assert {g.verb for g in seen} == set(VERBS)
    assert {g.cube for g in seen} == set(CUBES)
    assert goals_of("reworded") == goals_of("synonyms") == seen


def test_a_sentence_is_of_one_set_and_means_one_goal() -> None:
    texts = [text for goal in GOALS for language in WORDINGS for text in sentences(goal, language)]
    assert len(texts) == len(set(texts))
    for goal in GOALS:
        for language in LANGUAGES:
            for text in sentences(goal, language):
                assert goal_of(text) == goal
    assert goal_of("  Put the red BLOCK  on the plate.") == Goal("put", "red", "plate")


def test_reworded_sentences_have_no_new_word_and_synonyms_have_one_each() -> None:
    assert words("reworded") <= words("seen")
    for goal in goals_of("synonyms"):
        for text in sentences(goal, "synonyms"):
            assert set(text.split()) - words("seen"), text


def test_what_is_not_understood_is_refused_with_examples() -> None:
    with pytest.raises(WorldError, match="'open the drawer' is not understood; say for example: 'reach for the red"):
        goal_of("open the drawer")
    with pytest.raises(WorldError, match="not understood"):
        the().instruct("lift the yellow cube")


def test_unknown_variants_and_options_are_refused_with_the_valid_ones() -> None:
    assert f"{NAME}/new-pairs" in variants_of(NAME)
    assert options_of(f"{NAME}/new-pairs") == {"language": "new-pairs"}
    with pytest.raises(WorldError, match="no world 'so101_language/hard'; valid: so101_language, so101_language/new"):
        make_world(f"{NAME}/hard")
    with pytest.raises(WorldError, match="no world 'lift/hard'; valid: lift"):
        world_spec("lift/hard")
    with pytest.raises(WorldError, match="one of seen, new-pairs, reworded, synonyms; not 'klingon'"):
        world_spec(NAME, language="klingon")
    with pytest.raises(WorldError, match="'switch_step' must be before 'max_steps'"):
        world_spec(NAME, switch_step=250)
    with pytest.raises(SchemaError):
        the().step(np.full(6, np.nan))


def test_the_same_seed_gives_the_same_scene_and_instruction_whatever_came_before() -> None:
    def episode(world: Any) -> tuple[str, list[np.ndarray]]:
        observations = [world.reset(5)]
        start = observations[0]["state"]
        observations += [world.step(start + 0.02 * i).observation for i in range(8)]
        return world.said, [np.concatenate([o["things"], o["state"], o["instruction"]]) for o in observations]

    first = episode(the())
    demonstrate(the(), make_expert(NAME), 6, 0.2)
    again = episode(the())
    fresh = episode(make_world(NAME))
    assert first[0] == again[0] == fresh[0]
    assert np.array_equal(first[1], again[1])
    assert np.array_equal(first[1], fresh[1])


def test_instructions_are_of_the_set_and_can_be_followed_where_they_are_said() -> None:
    for language in LANGUAGES:
        world = the(NAME if language == "seen" else f"{NAME}/{language}")
        asked = []
        for seed in range(40):
            observation = world.reset(seed)
            assert read_text(observation["instruction"]) == world.said
            assert world.goal in goals_of(language)
            assert world.said in sentences(world.goal, language)
            assert possible(world.goal, observation)
            asked.append(world.goal)
        assert {goal.verb for goal in asked} == {goal.verb for goal in goals_of(language)}


def test_a_push_has_room() -> None:
    """Checked apart from ``possible``: points every 2 mm on the way of the hand."""
    world, pushes = the(), 0
    for seed in range(80):
        observation = world.reset(seed)
        verb, cube, target = world.goal
        if verb != "push":
            continue
        pushes += 1
        here = cube_position(observation, cube)[:2]
        there = (cube_position(observation, target) if target in CUBES else PLACES_AT[target])[:2]
        begin = here - 0.035 * (there - here) / np.linalg.norm(there - here)
        assert np.linalg.norm(there - here) > 0.08
        for other in set(CUBES) - {cube, target}:
            way = np.linspace(begin, there, 120)
            assert np.linalg.norm(way - cube_position(observation, other)[:2], axis=1).min() > 0.04
    assert pushes >= 8


def test_shuffled_says_another_instruction_than_the_one_that_counts() -> None:
    plain, shuffled = the(), the(f"{NAME}/shuffled")
    for seed in range(20):
        observation, other = plain.reset(seed), shuffled.reset(seed)
        assert plain.goal == shuffled.goal
        assert goal_of(read_text(observation["instruction"])) == plain.goal
        assert goal_of(read_text(other["instruction"])) != shuffled.goal
        assert np.array_equal(observation["things"], other["things"])


def test_after_a_switch_only_the_new_instruction_counts() -> None:
    world = the(f"{NAME}/switched")
    for seed in range(10):
        observation = world.reset(seed)
        first, action = world.goal, observation["state"]
        for step in range(1, 45):
            result = world.step(action)
            assert not result.success
            assert result.score == 0 or step >= 40
            assert (world.goal == first) == (step < 40)
            assert goal_of(read_text(result.observation["instruction"])) == world.goal


def solve(seed: int, text: str) -> tuple[bool, list[np.ndarray]]:
    """The expert follows ``text``, without noise: whether it counted, and what was done."""
    world, expert = the(), make_expert(NAME)
    world.reset(seed)
    observation = world.instruct(text)
    expert.reset(np.random.default_rng(seed))
    actions = []
    while True:
        actions.append(expert.act(observation))
        step = world.step(actions[-1])
        observation = step.observation
        if step.done:
            return step.success, actions


@pytest.mark.slow
def test_what_solves_one_instruction_does_not_count_for_another() -> None:
    texts = [
        "reach for the red cube",
        "lift the red cube",
        "put the red cube on the plate",
        "put the red cube in the bin",
        "lift the blue cube",
        "put the red cube on the green cube",
        "push the red cube to the plate",
    ]
    world = the()
    for text in texts:
        solved, actions = solve(2, text)
        assert solved, text
        for other in texts:
            if other == text:
                continue
            world.reset(2)
            world.instruct(other)
            assert not any(world.step(action).success for action in actions), f"{text}, judged as: {other}"


def test_deaf_to_the_words_is_seen_as_such() -> None:
    """Whoever follows the wrong words is not counted as solving."""
    world = the(f"{NAME}/shuffled")
    episodes = [demonstrate(world, make_expert(NAME), seed, 0.2) for seed in range(3)]
    assert not any(episode.success for episode in episodes)


@pytest.mark.slow
def test_the_expert_solves_every_verb_although_it_is_disturbed() -> None:
    for name in (NAME, f"{NAME}/new-pairs", f"{NAME}/switched"):
        episodes = [demonstrate(the(name), make_expert(name), seed, 0.2) for seed in range(100, 112)]
        assert sum(episode.success for episode in episodes) >= 11, name


def test_collect_records_what_was_said(tmp_path: Path) -> None:
    out = tmp_path / "d.zarr"
    command = ["collect", str(out), "--world", f"{NAME}/reworded", "--teleop", "scripted", "--episodes", "3"]
    assert main([*command, "--workers", "1"]) == 0
    dataset = Dataset.open(out)
    for episode in range(3):
        info, said = dataset.episode_info(episode), dataset.episode(episode)["instruction"]
        assert {read_text(text) for text in said} == {info["task"]}
        assert info["task"] in sentences(goal_of(info["task"]), "reworded")
    assert dataset.schema == demonstration_schema(f"{NAME}/reworded", {})


def test_a_world_without_words_has_none_to_record() -> None:
    assert Demonstration(0, {"action": np.zeros((1, 6))}, True).task == ""
