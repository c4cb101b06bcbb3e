"""Relabelled demonstrations are recorded ones, moved rigidly, and carried out they end on the target."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from robolearn_sim.pusht import PushT, coverage
from robolearn_sim.pusht_hindsight import STRETCH, Demonstration, relabel


@pytest.fixture(scope="module")
def human(human_pusht: Path) -> list[Demonstration]:
    """Every tenth demonstration."""
    data: Any = zarr.open_group(str(human_pusht), mode="r")
    ends = itertools.pairwise([0, *data["meta/episode_ends"][:]])
    return [(data["data/state"][a:b], data["data/action"][a:b]) for a, b in list(ends)[::10]]


def _end(world: PushT, demonstration: Demonstration) -> float:
    """Coverage after the last second of a demonstration."""
    state, action = demonstration
    seen = world.restore(state[-10].astype(np.float32))
    for target in action[-10:]:
        seen = world.step(target.astype(np.float32)).observation
    return coverage(*(float(v) for v in seen["state"][2:5]))


def test_people_stop_short_of_the_target_and_relabelled_demonstrations_do_not(human: list[Demonstration]) -> None:
    world = PushT()
    assert np.mean([_end(world, d) for d in human]) < 0.92
    relabelled = [relabel(world, *d) for d in human]
    assert np.mean([_end(world, whole) for whole, *_ in relabelled]) > 0.98
    stretches = [s for _, *rest in relabelled for s in rest]
    assert len(stretches) > 5 * len(human)
    # Their true start velocities are unknown here, hence not all end exactly there.
    assert np.median([_end(world, s) for s in stretches]) > 0.97


def test_relabelling_is_a_rigid_motion_that_stays_on_the_table(human: list[Demonstration]) -> None:
    state, action = human[0]
    (new_state, new_action), *stretches = relabel(PushT(), state, action)
    for before, after in ((state[:, :2], new_state[:, :2]), (action, new_action)):
        distance = np.linalg.norm(before - state[:, 2:4], axis=1)
        np.testing.assert_allclose(np.linalg.norm(after - new_state[:, 2:4], axis=1), distance, atol=1e-3)
    turn = np.unwrap(new_state[:, 4] - state[:, 4], period=2 * np.pi)
    np.testing.assert_allclose(turn, turn[0], atol=1e-5)
    for s, a in stretches:
        assert len(s) == len(a) <= STRETCH
        assert s[:, :4].min() >= 15
        assert s[:, :4].max() <= 497
