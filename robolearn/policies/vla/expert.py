"""The action expert: a transformer over the actions of a chunk that attends to the backbone's prefix layer by layer.

After pi0 (Black et al. 2024), pi0.5 (time by adaptive RMSNorm) and SmolVLA (Shukor et al. 2025: layers of
cross-attention between joint ones, actions that see only those before them). The block mask: pictures and text see each
other, the state sees them too, actions see all of it. Nothing of the prefix sees actions, hence it is computed once.

Shape letters: B batch, T actions, A components of an action, N prefix tokens, D width of the expert, E head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robolearn.policies.contracts import Context
from robolearn.policies.spec import SpecError
from robolearn.policies.trunks.embedding import TimeFeatures, sinusoid
from robolearn.policies.vla.attention import GatedMlp, RmsNorm, attend, heads, rms_normalised, rotate
from robolearn.policies.vla.config import VlaConfig
from robolearn.policies.vla.prefix import Prefix, PrefixShape


class ActionExpert(nn.Module):
    """(noisy chunk (B, T, A), time (B, 1) or (B, T), packed prefix) -> (B, T, A)."""

    def __init__(self, actions: int, shape: PrefixShape, config: VlaConfig, *, spans: bool = False) -> None:
        """``spans``: see ``Objective.spans``.

        Raises:
            SpecError: more action components than there is room for.
        """
        super().__init__()
        if actions > config.max_action:
            raise SpecError(
                f"an action has {actions} components, the policy room for {config.max_action}: "
                f"--policy.trunk.max-action {actions}"
            )
        d = config.width
        self.config, self.shape = config, shape
        self.embed_action = nn.Linear(config.max_action, d)
        self.time_features = TimeFeatures(d, spans=spans)
        self.embed_time = nn.Sequential(
            nn.Linear(d if config.time == "adarms" else 2 * d, d), nn.SiLU(), nn.Linear(d, d)
        )
        self.embed_span = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d)) if spans else None
        self.layers = nn.ModuleList(
            _Layer(shape, config, cross=bool(config.cross_every) and i % config.cross_every != 0)
            for i in range(shape.layers)
        )
        self.norm = _Norm(config)
        self.head = nn.Linear(d, config.max_action)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Context,
        *,
        until: Tensor | None = None,
        features: list[Tensor] | None = None,
    ) -> Tensor:
        prefix = Prefix.unpack(context.tokens, self.shape)
        actions = x.shape[-1]
        h_BTD = self.embed_action(F.pad(x, (0, self.config.max_action - actions)))
        h_BTD, c_BTD = self._with_time(h_BTD, t, until)
        ahead = torch.arange(x.shape[1], device=x.device)
        if self.config.places:
            place = sinusoid(ahead.float(), self.config.width, min_period=2.0, max_period=1000.0)
            h_BTD = h_BTD + place.to(h_BTD.dtype)
        seen_TT = torch.ones(len(ahead), len(ahead), dtype=torch.bool, device=x.device)
        if self.config.actions == "causal":
            seen_TT = seen_TT.tril()
        of_prefix = prefix.valid.unsqueeze(1).expand(-1, len(ahead), -1)
        allowed = torch.cat([of_prefix, seen_TT.expand(x.shape[0], -1, -1)], dim=-1)
        for layer, k, v in zip(self.layers, prefix.keys, prefix.values, strict=True):
            h_BTD = layer(h_BTD, c_BTD, k, v, allowed, prefix.next_position, ahead)
            if features is not None:
                features.append(h_BTD)
        y_BTD, _ = self.norm(h_BTD, c_BTD)
        return self.head(y_BTD)[..., :actions]

    def _with_time(self, h_BTD: Tensor, t: Tensor, until: Tensor | None) -> tuple[Tensor, Tensor]:
        """(tokens, what scales and shifts the layers)."""
        # pi0's time runs from the data to the noise.
        time = self.time_features(1 - t).to(h_BTD.dtype)
        if self.embed_span is not None:
            span = (1 if until is None else until) - t
            time = time + self.embed_span(self.time_features(span).to(h_BTD.dtype))
        if self.config.time == "adarms":
            return h_BTD, F.silu(self.embed_time(time))
        return self.embed_time(torch.cat([h_BTD, time.expand_as(h_BTD)], dim=-1)), time


class _Norm(nn.Module):
    """RMSNorm; adaptive to the time, with a gate for the branch behind it, or with a weight."""

    def __init__(self, config: VlaConfig) -> None:
        super().__init__()
        self.adapt = self.weight = None
        if config.time == "adarms":
            self.adapt = nn.Linear(config.width, 3 * config.width)
            nn.init.zeros_(self.adapt.weight)
            nn.init.zeros_(self.adapt.bias)
        else:
            self.weight = RmsNorm(config.width)

    def forward(self, h_BTD: Tensor, c_BTD: Tensor) -> tuple[Tensor, Tensor | float]:
        """(normalised, gate)."""
        if self.adapt is None:
            assert self.weight is not None
            return self.weight(h_BTD), 1.0
        scale, shift, gate = self.adapt(c_BTD).chunk(3, dim=-1)
        # A gate of 1 at first, as in pi0's plain layers: the expert learns from the first step.
        return rms_normalised(h_BTD) * (1 + scale) + shift, 1 + gate


class _Layer(nn.Module):
    def __init__(self, shape: PrefixShape, config: VlaConfig, *, cross: bool) -> None:
        super().__init__()
        d, e = config.width, shape.head_dim
        self.shape, self.cross = shape, cross
        self.norm, self.mlp_norm = _Norm(config), _Norm(config)
        self.q_proj = nn.Linear(d, shape.heads * e, bias=False)
        source = shape.kv_heads * e if cross else d
        self.k_proj = nn.Linear(source, shape.kv_heads * e, bias=False)
        self.v_proj = nn.Linear(source, shape.kv_heads * e, bias=False)
        self.o_proj = nn.Linear(shape.heads * e, d, bias=False)
        self.mlp = GatedMlp(d, config.mlp)

    def forward(
        self,
        h_BTD: Tensor,
        c_BTD: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        allowed: Tensor,
        begin: Tensor,
        ahead: Tensor,
    ) -> Tensor:
        """``allowed`` (B, T, N + T); the actions stand at positions ``begin`` (B,) + ``ahead`` (T,)."""
        e, theta = self.shape.head_dim, self.shape.rope_theta
        x, gate = self.norm(h_BTD, c_BTD)
        q = heads(self.q_proj(x), e)
        if self.cross:
            k = heads(self.k_proj(prefix_keys.transpose(1, 2).flatten(2).to(x.dtype)), e)
            v = heads(self.v_proj(prefix_values.transpose(1, 2).flatten(2).to(x.dtype)), e)
            q = rotate(q, ahead.expand(q.shape[0], -1), theta)
            y = attend(q, k, v, allowed[..., : k.shape[2]])
        else:
            position = begin.to(torch.promote_types(q.dtype, torch.float32)).unsqueeze(1) + ahead
            q = rotate(q, position, theta)
            k = rotate(heads(self.k_proj(x), e), position, theta)
            k = torch.cat([prefix_keys.to(q.dtype), k], dim=2)
            v = torch.cat([prefix_values.to(q.dtype), heads(self.v_proj(x), e)], dim=2)
            y = attend(q, k, v, allowed)
        h_BTD = h_BTD + gate * self.o_proj(y)
        x, gate = self.mlp_norm(h_BTD, c_BTD)
        return h_BTD + gate * self.mlp(x)
