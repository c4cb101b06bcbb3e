"""One-step flow: the network predicts the mean velocity over a span of time (Geng et al. 2025, "Mean Flows for One-step
Generative Modeling"), with the dispersive loss of MP1 (Sheng et al. 2025).

Time runs from 0 (noise) to 1 (data) as in flow.py, the other way round than in the papers. On the line
x_t = (1 - t) noise + t action with velocity v, the mean velocity from t to a later r is

    u(x_t, t, r) = 1 / (r - t) * integral of v from t to r,    hence    u = v + (r - t) du/dt

with du/dt along the path: the Jacobian-vector product of u with (v, 1) for (x, t). The network is trained on the right
side without gradient; r = t is flow matching. From noise to a chunk it is one step: x + u(x, 0, 1).

Shape letters: see contracts.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from robolearn.policies.contracts import Draws, Network
from robolearn.policies.objectives.flow import Flow
from robolearn.policies.objectives.token_times import token_times
from robolearn_data.schema import UserError

_CLOSE = 1e-3
"""Added to the error before it is divided by its own root."""


@dataclass(frozen=True)
class MeanFlowConfig:
    """One-step flow matching (MeanFlow); MP1's settings where nothing else is said."""

    kind: Literal["meanflow"] = "meanflow"
    steps: int = 1
    """Steps when a chunk is sampled; more than one go along the mean velocity to the end, again and again."""
    time: Literal["uniform", "logit-normal"] = "uniform"
    """Distribution of both ends of a span. MP1's, the sigmoid of N(0.4, 1) in our direction of time, seldom comes near
    the span from 0 to 1 that is sampled: on toys it recovered two thirds of a spread that uniform ends recovered."""
    span_share: float = 0.5
    """Part of the windows that learn a mean over a span; the others learn the velocity itself."""
    adaptive: float = 0.5
    """Power p of the adaptive loss: error / (error + 0.001)^p. 0 for the plain squared error."""
    dispersive: float = 0.0
    """Weight of the dispersive loss, which keeps the hidden features of different windows apart; MP1 takes 0.5."""
    prefix: int = 0
    """Leading actions given clean in training, as in FlowConfig."""
    streaming: int = 0
    """Actions in a block of a streaming policy, as in FlowConfig."""
    guidance: float = 1.0
    """Scale of classifier-free guidance, 1 for none. It is learned, so that sampling still takes one evaluation: the
    velocity that the target is made of is w v + (1 - w) u(x, t, t) without the condition."""


class MeanFlow(Flow):
    """Corrupts and samples as ``Flow`` does: an estimate of the clean chunk is where the mean velocity to the end
    leads."""

    spans = True
    trains_guided = True

    def __init__(self, config: MeanFlowConfig) -> None:
        self.config = config

    def draw(self, batch: int, shape: tuple[int, int], generator: torch.Generator | None) -> Draws:
        """Noise (B, T, A), time (B, 1) or (B, T), and "until" of the same shape: the end of the span."""
        noise = torch.randn(batch, *shape, generator=generator)
        if self.config.time == "uniform":
            ends = torch.rand(batch, 2, generator=generator)
        else:  # 1 - sigmoid(N(-0.4, 1)) is sigmoid(N(0.4, 1))
            ends = torch.sigmoid(0.4 + torch.randn(batch, 2, generator=generator))
        whole = torch.rand(batch, 1, generator=generator) < self.config.span_share
        t = token_times(ends.amin(1, keepdim=True), shape[0], self.config.prefix, self.config.streaming, generator)
        # What is given, or in a later block, has a time of its own; no span goes backwards.
        until = torch.where(whole, torch.maximum(ends.amax(1, keepdim=True), t), t)
        return {"noise": noise, "time": t, "until": until}

    def losses(self, network: Network, action: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Adaptive squared error of the mean velocity, (B, T), and the dispersion of the features, (B,)."""
        t, until = draws["time"], draws["until"]
        x, velocity = self.corrupt(action, draws)
        # What is given clean stands still, at a time that does not pass.
        moves = (t < 1).to(x)
        if self.config.guidance != 1:
            velocity = self._guided(network, x, velocity, draws)
        velocity = velocity * moves.unsqueeze(-1)

        def mean_velocity(x: Tensor, t: Tensor, features: list[Tensor] | None = None) -> Tensor:
            return network(x, t, until=until, features=features).float()

        # The fused attention kernels have no forward derivative.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            change = torch.func.jvp(mean_velocity, (x, t), (velocity, moves))[1]
            target = velocity + (until - t).unsqueeze(-1) * change
        features: list[Tensor] = []
        error = (mean_velocity(x, t, features) - target).square().mean(-1)
        if self.config.adaptive:
            error = error / (error.detach().mean(1, keepdim=True) + _CLOSE) ** self.config.adaptive
        losses = {"meanflow": error}
        if self.config.dispersive:
            if not features:
                raise UserError("this trunk shows no hidden features to disperse; train with dispersive 0")
            each = torch.stack([dispersion(feature) for feature in features])
            losses["dispersion"] = self.config.dispersive * each.mean(0)
        return losses

    def _guided(self, network: Network, x: Tensor, velocity: Tensor, draws: Draws) -> Tensor:
        """The velocity (B, T, A) of the guided flow; windows that are shown without their condition keep theirs."""
        t, w = draws["time"], self.config.guidance
        with torch.no_grad():
            free = network(x, t, until=t, conditioned=False).float()
        return torch.where(draws["drop"].unsqueeze(-1), velocity, w * velocity + (1 - w) * free)


def dispersion(features: Tensor) -> Tensor:
    """log of the mean of exp(-d_ij) over all pairs of windows, the same for each, (B,); d: squared distance of
    ``features`` (B, ...), divided by the largest of the batch (MP1, dispersive loss with temperature 1)."""
    flat = features.flatten(1).float()
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances = distances / distances.max().clamp(min=1e-12)
    return (-distances).exp().mean().log().expand(len(flat))
