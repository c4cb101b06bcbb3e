"""`--goal DATASET[:EPISODE]`: what was observed at the end of a recorded episode, as the goal of a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robolearn_data.schema import UserError

if TYPE_CHECKING:
    import numpy as np

    from robolearn.policies.spec import PolicySpec


def read_goal(option: str | None, spec: PolicySpec) -> dict[str, np.ndarray] | None:
    """The goal's streams, (*shape) each; None where none is asked for.

    Raises:
        UserError: the policy takes no goal, or the dataset has no such episode or stream.
    """
    if option is None:
        return None
    if not spec.goal:
        raise UserError(f"--goal {option}: the policy was trained without a goal (robolearn train --goal STREAM)")
    from robolearn_data.dataset import Dataset

    path, _, number = option.rpartition(":")
    path, episode = (path, int(number)) if path and number.isdigit() else (option, 0)
    dataset = Dataset.open(path)
    if episode >= dataset.episodes:
        raise UserError(f"--goal {option}: {path} has the episodes 0 to {dataset.episodes - 1}")
    last = dataset.rows(episode).stop - 1
    goal = {}
    for name, stream in spec.goal.items():
        if name not in dataset.schema.streams or dataset.schema.streams[name].shape != stream.shape:
            raise UserError(f"--goal {option}: {path} has no stream {name!r} of shape {stream.shape}")
        goal[name] = dataset.read(name, slice(last, last + 1))[0]
    return goal
