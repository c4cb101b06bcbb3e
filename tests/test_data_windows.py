"""Training windows have their present within an episode, and every recorded step is in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from robolearn_data.schema import SchemaError
from robolearn_data.windows import windows


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int]:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    horizon = draw(st.integers(1, 20))
    before = draw(st.integers(0, horizon - 1))
    return np.cumsum(lengths), horizon, before, draw(st.integers(0, horizon - 1 - before))


@given(cases())
def test_windows_are_what_a_loop_over_episodes_gives(case: tuple[np.ndarray, int, int, int]) -> None:
    ends, horizon, before, after = case
    expected = []
    for episode, length in enumerate(np.diff(ends, prepend=0).tolist()):
        last_start = max(length - horizon + after, -before)  # too short for a window: one, padded further
        expected += [(episode, start + before) for start in range(-before, last_start + 1)]
    found = windows(ends, horizon, before, after)
    assert len(found) == len(expected)
    assert list(zip(*(a.tolist() for a in found.locate(np.arange(len(found)))), strict=True)) == expected


@given(cases())
def test_the_present_is_in_its_episode_and_every_row_is_in_a_window(case: tuple[np.ndarray, int, int, int]) -> None:
    ends, horizon, before, after = case
    found = windows(ends, horizon, before, after)
    episode, present = found.locate(np.arange(len(found)))
    lengths = np.diff(ends, prepend=0)
    assert ((present >= 0) & (present < lengths[episode])).all()
    steps = present[:, None] - before + np.arange(horizon)
    inside = (steps >= 0) & (steps < lengths[episode][:, None])
    assert set((steps + (ends - lengths)[episode][:, None])[inside].tolist()) == set(range(ends[-1]))


@given(cases(), st.randoms(use_true_random=False))
def test_chosen_episodes_give_their_windows_and_no_others(case: tuple[np.ndarray, int, int, int], random) -> None:
    ends, horizon, before, after = case
    chosen = random.sample(range(len(ends)), random.randint(0, len(ends)))
    some = windows(ends, horizon, before, after, episodes=chosen)
    every = windows(ends, horizon, before, after)
    episode, present = every.locate(np.arange(len(every)))
    numbers = np.concatenate([np.flatnonzero(episode == e) for e in chosen] or [np.empty(0, int)]).astype(int)
    assert len(some) == len(numbers)
    for found, expected in zip(some.locate(np.arange(len(some))), (episode, present), strict=True):
        np.testing.assert_array_equal(found, expected[numbers])


def test_the_human_pusht_demonstrations_have_the_published_number_of_windows(human_pusht: Path) -> None:
    ends = np.asarray(zarr.open_array(str(human_pusht), path="meta/episode_ends", mode="r")[:])
    assert len(windows(ends, 16, 1, 7)) == 24_208


@pytest.mark.parametrize("case", [(0, 0, 0), (4, 4, 0), (4, 0, 4), (4, -1, 0), (4, 0, -1), (4, 2, 2)])
def test_windows_whose_present_would_lie_outside_the_episode_are_refused(case: tuple[int, int, int]) -> None:
    with pytest.raises(SchemaError, match="horizon {} with padding {} before and {} after".format(*case)):
        windows(np.array([10]), *case)


def test_an_unknown_episode_or_window_is_refused() -> None:
    with pytest.raises(SchemaError, match="no episode 2; valid: 0 to 1"):
        windows(np.array([3, 6]), 2, 0, 0, episodes=[0, 2])
    found = windows(np.array([3, 6]), 2, 0, 0)
    for number in (-1, len(found)):
        with pytest.raises(IndexError, match=r"must be in \[0, 4\)"):
            found.locate(np.array([number]))
