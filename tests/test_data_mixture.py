"""The order of training windows depends on the seed alone, misses none, and gives each dataset its share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robolearn_data.mixture import Mixture, held_out
from robolearn_data.schema import SchemaError

sizes = st.lists(st.integers(40, 3000), min_size=1, max_size=4).map(tuple)
property_test = settings(deadline=None, max_examples=30)


@property_test
@given(sizes, st.integers(0, 20_000), st.integers(0, 9000), st.integers(0, 3))
def test_any_stretch_of_draws_is_the_same_however_it_is_cut(
    sizes: tuple[int, ...], start: int, length: int, seed: int
) -> None:
    whole = Mixture(sizes, seed).draws(start, start + length)
    middle = start + length // 3
    parts = [Mixture(sizes, seed).draws(start, middle), Mixture(sizes, seed).draws(middle, start + length)]
    for i in range(2):
        np.testing.assert_array_equal(whole[i], np.concatenate([part[i] for part in parts]))


@property_test
@given(sizes, st.integers(0, 3))
def test_every_window_of_a_dataset_comes_once_before_any_comes_again(sizes: tuple[int, ...], seed: int) -> None:
    datasets, windows = Mixture(sizes, seed).draws(0, 3 * sum(sizes))
    for dataset, size in enumerate(sizes):
        mine = windows[datasets == dataset]
        for epoch in range(len(mine) // size):
            assert set(mine[epoch * size : (epoch + 1) * size]) == set(range(size))


@property_test
@given(sizes, st.data())
def test_datasets_come_as_often_as_their_weights_say_whatever_their_size(
    sizes: tuple[int, ...], data: st.DataObject
) -> None:
    weights = tuple(data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes))))
    mixture = Mixture(sizes, 0, weights)
    datasets, windows = mixture.draws(0, 3 * 4096)
    counts = np.bincount(datasets, minlength=len(sizes))
    np.testing.assert_allclose(counts, 3 * 4096 * np.array(weights) / sum(weights), atol=2.01)
    for dataset, size in enumerate(sizes):
        assert windows[datasets == dataset].max(initial=0) < size


def test_a_dataset_that_is_drawn_less_than_once_in_a_block_keeps_its_order() -> None:
    """Shares far below one draw in a block, between others that do not divide it evenly."""
    weights = (0.3, 1e-5, 0.31, 2e-5, 0.29)
    datasets, windows = Mixture((50, 7, 60, 7, 55), 0, weights).draws(0, 400 * 4096)
    counts = np.bincount(datasets, minlength=5)
    np.testing.assert_allclose(counts, 400 * 4096 * np.array(weights) / sum(weights), atol=2.51)
    for dataset, size in enumerate((50, 7, 60, 7, 55)):
        mine = windows[datasets == dataset]
        for epoch in range(len(mine) // size):
            assert set(mine[epoch * size : (epoch + 1) * size]) == set(range(size))


def test_without_weights_every_window_is_as_likely_as_any_other() -> None:
    datasets, _ = Mixture((100, 900)).draws(0, 100_000)
    assert np.mean(datasets == 1) == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_batch_that_one_would_have(processes: int) -> None:
    mixture = Mixture((50, 20), 3, (1.0, 2.0))
    whole = mixture.batch(7, 32)
    parts = [mixture.batch(7, 32, rank, processes) for rank in range(processes)]
    for i in range(2):
        np.testing.assert_array_equal(whole[i], np.concatenate([part[i] for part in parts]))


def test_seeds_differ_and_so_do_epochs() -> None:
    one, other = Mixture((500,), 0).draws(0, 1000)[1], Mixture((500,), 1).draws(0, 1000)[1]
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:500], one[500:])


@property_test
@given(st.integers(2, 60), st.floats(0, 0.9), st.integers(0, 5))
def test_held_out_episodes_stay_held_out_when_more_are_recorded(episodes: int, part: float, seed: int) -> None:
    train, out = held_out(episodes, part, seed)
    assert sorted(train + out) == list(range(episodes))
    assert train
    assert bool(out) == (part > 0)
    more = held_out(episodes + 50, part, seed)
    if len(out) > 1 and len(train) > 1:  # neither side is kept from being empty by a single episode
        assert set(out) <= set(more[1])
        assert set(train) <= set(more[0])


def test_the_part_held_out_is_about_what_was_asked_for() -> None:
    counts = [len(held_out(1000, 0.1, seed)[1]) for seed in range(5)]
    assert 70 < min(counts) <= max(counts) < 130
    assert len(set(map(tuple, (held_out(50, 0.2, seed)[1] for seed in range(5))))) > 1


def test_mistakes_are_told() -> None:
    for arguments in (((),), ((0, 3),), ((3, 3), 0, (1.0,)), ((3, 3), 0, (1.0, -1.0)), ((3,), 0, (float("nan"),))):
        with pytest.raises(SchemaError):
            Mixture(*arguments)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SchemaError, match="cannot be shared"):
        Mixture((5,)).batch(0, 10, 0, 3)
    with pytest.raises(SchemaError, match="held out"):
        held_out(10, 1.0)
    with pytest.raises(SchemaError, match="leaves none to train on"):
        held_out(1, 0.1)
    assert held_out(1, 0.0) == ([0], [])
