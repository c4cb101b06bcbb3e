"""Goals: what some streams shall be in the end, as one more token of the context.

In training the goal of a window is what was reached later in the same episode (hindsight, Andrychowicz et al. 2017), so
that demonstrations need no labels. When the policy runs, a goal is given in the observation under ``goal_key`` or once
with ``Policy.aim``; without one a learned token says that there is none. Shape letters: see contracts.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robolearn.policies.encoders.observation import EncoderConfig, ObservationEncoder
from robolearn.policies.normalise import Normalisation
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.statistics import StreamStatistics


class GoalError(SpecError):
    """A goal that the policy cannot be given."""


def goal_key(stream: str) -> str:
    """Name of ``stream``'s goal among the observations: (B, 1, *shape)."""
    return f"goal/{stream}"


class GoalEncoder(nn.Module):
    """Goal streams -> one token of the context's width."""

    def __init__(
        self,
        spec: PolicySpec,
        statistics: Mapping[str, StreamStatistics],
        normalisation: Normalisation,
        config: EncoderConfig,
        width: int,
    ) -> None:
        super().__init__()
        self.names = tuple(spec.goal)
        self.streams = ObservationEncoder(spec.goal, statistics, normalisation, config, spec.goal_components)
        self.token = nn.Linear(self.streams.width, width)

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """(B, 1, D) of what ``observation`` has under ``goal_key``."""
        return self.token(self.streams({name: observation[goal_key(name)] for name in self.names}).tokens)


def checked_goal(spec: PolicySpec, goal: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``goal``, stream -> (*shape), under its keys and with batch and time: (1, 1, *shape).

    Raises:
        GoalError: the policy takes no goal, or another one.
    """
    if not spec.goal:
        raise GoalError("the policy was trained without a goal; train with --goal STREAM, or leave the goal out")
    out = {}
    for name, stream in spec.goal.items():
        if name not in goal:
            raise GoalError(f"the goal lacks the stream {name!r}; the policy needs: {', '.join(spec.goal)}")
        value = torch.as_tensor(goal[name])
        if value.shape != stream.shape:
            raise GoalError(f"the goal of {name!r} has shape {tuple(value.shape)}, the policy needs {stream.shape}")
        out[goal_key(name)] = value[None, None]
    return out
