"""Training windows never leave their episode, and every recorded step is in one."""

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
    pad = st.integers(0, horizon - 1)
    return np.cumsum(lengths), horizon, draw(pad), draw(pad)


@given(cases())
def test_windows_are_what_a_loop_over_episodes_gives(case: tuple[np.ndarray, int, int, int]) -> None:
    ends, horizon, before, after = case
    expected_rows, expected_mask, expected_place = [], [], []
    begin = 0
    for episode, end in enumerate(ends.tolist()):
        length = end - begin
        last_start = max(length - horizon + after, -before)  # too short for a window: one, padded further
        for start in range(-before, last_start + 1):
            steps = range(start, start + horizon)
            expected_rows.append([begin + min(max(s, 0), length - 1) for s in steps])
            expected_mask.append([not 0 <= s < length for s in steps])
            expected_place.append((episode, start))
        begin = end
    found = windows(ends, horizon, before, after)
    assert len(found) == len(expected_rows)
    numbers = np.arange(len(found))
    rows, padded = found.rows(numbers)
    assert rows.tolist() == expected_rows
    assert padded.tolist() == expected_mask
    assert list(zip(*(a.tolist() for a in found.locate(numbers)), strict=True)) == expected_place


@given(cases())
def test_every_row_is_in_a_window_unpadded_and_none_crosses_an_episode(case: tuple[np.ndarray, int, int, int]) -> None:
    ends, horizon, before, after = case
    found = windows(ends, horizon, before, after)
    rows, padded = found.rows(np.arange(len(found)))
    episode = np.searchsorted(ends, rows, side="right")
    assert (episode == episode[:, :1]).all()
    assert set(rows[~padded].tolist()) == set(range(ends[-1]))
    assert (~padded).any(1).all()  # none is padding alone


@given(cases(), st.randoms(use_true_random=False))
def test_chosen_episodes_give_their_windows_and_no_others(case: tuple[np.ndarray, int, int, int], random) -> None:
    ends, horizon, before, after = case
    chosen = random.sample(range(len(ends)), random.randint(0, len(ends)))
    some = windows(ends, horizon, before, after, episodes=chosen)
    every = windows(ends, horizon, before, after)
    episode, _ = every.locate(np.arange(len(every)))
    numbers = np.concatenate([np.flatnonzero(episode == e) for e in chosen] or [np.empty(0, int)]).astype(int)
    assert len(some) == len(numbers)
    for found, expected in zip(some.rows(np.arange(len(some))), every.rows(numbers), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_human_pusht_demonstrations_have_the_published_number_of_windows(human_pusht: Path) -> None:
    ends = np.asarray(zarr.open_array(str(human_pusht), path="meta/episode_ends", mode="r")[:])
    assert len(windows(ends, 16, 1, 7)) == 24_208


def test_the_rows_of_a_batch_may_be_in_any_order() -> None:
    found = windows(np.array([4, 6]), 3, 1, 1)
    rows, padded = found.rows(np.array([len(found) - 1, 0]))
    assert rows.tolist() == [[4, 5, 5], [0, 0, 1]]
    assert padded.tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize(("horizon", "before", "after"), [(0, 0, 0), (4, 4, 0), (4, 0, 4), (4, -1, 0), (4, 0, -1)])
def test_windows_of_padding_alone_are_refused(horizon: int, before: int, after: int) -> None:
    with pytest.raises(SchemaError, match=f"horizon {horizon} with padding {before} before and {after} after"):
        windows(np.array([10]), horizon, before, after)


def test_an_unknown_episode_or_window_is_refused() -> None:
    with pytest.raises(SchemaError, match="no episode 2; valid: 0 to 1"):
        windows(np.array([3, 6]), 2, 0, 0, episodes=[0, 2])
    found = windows(np.array([3, 6]), 2, 0, 0)
    for number in (-1, len(found)):
        with pytest.raises(IndexError, match=r"must be in \[0, 4\)"):
            found.rows(np.array([number]))
