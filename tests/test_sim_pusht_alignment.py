"""Aligned demonstrations are the recorded ones, moved rigidly by a little, and end on the target."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from robolearn_sim.pusht import PushT, coverage
from robolearn_sim.pusht_alignment import end_on_target


def test_human_demonstrations_are_moved_rigidly_and_end_on_the_target(human_pusht: Path) -> None:
    data: Any = zarr.open_group(str(human_pusht), mode="r")
    ends = data["meta/episode_ends"][:]
    world = PushT()
    before, after = [], []
    for first, last in list(itertools.pairwise(ends))[::10]:
        state, action = data["data/state"][first:last], data["data/action"][first:last]
        new_state, new_action = end_on_target(world, state, action)
        # A rigid motion keeps every distance, and the angles turn together.
        for a, b in ((state[:, :2], new_state[:, :2]), (action, new_action)):
            np.testing.assert_allclose(
                np.linalg.norm(a - state[:, 2:4], axis=1), np.linalg.norm(b - new_state[:, 2:4], axis=1), atol=1e-3
            )
        turn = np.unwrap(new_state[:, 4] - state[:, 4], period=2 * np.pi)
        np.testing.assert_allclose(turn, turn[0], atol=1e-6)
        assert np.abs(new_action - action).max() < 60

        for s, a, scores in ((state, action, before), (new_state, new_action, after)):
            world.restore(s[-10].astype(np.float32))
            for target in a[-10:]:
                end = world.step(target.astype(np.float32)).observation["state"]
            scores.append(coverage(*(float(v) for v in end[2:5])))  # pyright: ignore[reportPossiblyUnboundVariable]
    assert np.mean(before) < 0.92
    assert np.mean(after) > 0.98
