"""Observation -> prefix: pictures, instruction and state as tokens, then through the backbone.

Shape letters: B batch, O observations, N prefix tokens, W token width, S components of the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from robolearn.policies.contracts import Context
from robolearn.policies.encoders.images import cropped
from robolearn.policies.normalise import Normalisation, VectorNormaliser
from robolearn.policies.spec import PolicySpec, SpecError
from robolearn.policies.vla.backbone import make_backbone
from robolearn.policies.vla.config import VlaConfig, VlaError
from robolearn.policies.vla.images import letterboxed
from robolearn.policies.vla.prefix import Prefix, block_mask
from robolearn.policies.vla.text import prompts
from robolearn_data.schema import read_text
from robolearn_data.statistics import StreamStatistics


class PrefixEncoder(nn.Module):
    """Every picture of every observation, the newest text, and the states -> the backbone's keys and values."""

    def __init__(
        self,
        spec: PolicySpec,
        statistics: Mapping[str, StreamStatistics],
        normalisation: Normalisation,
        config: VlaConfig,
        assets: Path | None = None,
    ) -> None:
        """``assets``: folder of the checkpoint that the weights come from; None: published or random weights.

        Raises:
            SpecError: streams that a VLA cannot read.
            VlaError: see ``make_backbone``.
        """
        super().__init__()
        self.spec = spec
        self.state_as_text = config.state == "text"
        streams = spec.observation
        self.images, self.texts, states = (
            [name for name, stream in streams.items() if stream.kind == kind] for kind in ("image", "text", "state")
        )
        if strange := [name for name in streams if name not in (*self.images, *self.texts, *states)]:
            raise SpecError(f"a VLA sees pictures, states and a text; leave {', '.join(strange)} out of --observe")
        if len(self.texts) > 1:
            raise SpecError(f"a VLA reads one text, it was given {', '.join(self.texts)}; leave all but one out")
        for name in self.images:
            if streams[name].shape[2] not in (1, 3):
                raise SpecError(f"image {name!r} has shape {streams[name].shape}; a VLA sees grey or RGB pictures")
        missing = [name for name in states if name not in statistics]
        if missing:
            raise no_statistics(missing)
        self.normalise = nn.ModuleDict()
        self.state_size = 0
        """S."""
        for name in states:
            chosen = spec.components.get(name)
            self.normalise[name] = part = VectorNormaliser(streams[name], statistics[name], normalisation, chosen)
            self.state_size += part.width
        self.backbone, self.tokenise = make_backbone(config, assets, pictures=bool(self.images))
        self.shape = self.backbone.shape
        self.width = self.shape.width
        """Of a context's token."""
        size = self.state_size
        if size > config.max_state and not self.state_as_text:
            raise SpecError(
                f"the state has {size} components, the policy room for {config.max_state}: "
                f"--policy.trunk.max-state {size}, or show it fewer (--observe STREAM:NAME,NAME)"
            )
        self.max_state, self.crop, self.antialias = config.max_state, config.crop, config.antialias
        self.embed_state = None
        if states and not self.state_as_text:
            self.embed_state = nn.Linear(config.max_state, self.backbone.width)

    def forward(self, observation: Mapping[str, Tensor]) -> Context:
        """Stream -> (B, O, *shape), physical units.

        Raises:
            SpecError: a picture of another size than the policy was made for.
            VlaError: an instruction that is too long.
        """
        return Context(self.prefix(observation).pack())

    def prefix(self, observation: Mapping[str, Tensor]) -> Prefix:
        """As ``forward``."""
        tokens, valid, block, extras = [], [], [], []
        for name in self.images:
            for pixels in self._seen(name, observation[name]).unbind(1):
                square = letterboxed(pixels, self.backbone.image_size, antialias=self.antialias)
                embedded, extra = self.backbone.embed_image(square)
                tokens.append(embedded)
                extras.append(extra)
        images = len(tokens)

        state_BOS = self._state(observation)
        ids, real = self.tokenise(self.prompts(observation, state_BOS))
        tokens.append(self.backbone.embed_text(ids.to(self._device)))
        if self.embed_state is not None and state_BOS is not None:
            room = self.max_state - state_BOS.shape[-1]
            embedded = self.embed_state(nn.functional.pad(state_BOS, (0, room)).to(self.embed_state.weight.dtype))
            tokens.append(embedded)
        for i, part in enumerate(tokens):
            valid.append(real.to(self._device) if i == images else torch.ones_like(part[..., 0], dtype=torch.bool))
            block.append(torch.full(part.shape[1:2], int(i > images), device=self._device))

        dtype = tokens[images].dtype
        tokens_BNW = torch.cat([part.to(dtype) for part in tokens], dim=1)
        valid_BN = torch.cat(valid, dim=1)
        allowed = block_mask(torch.cat(block), valid_BN, causal=self.backbone.causal)
        position, after = self.backbone.positions(valid_BN, images)
        keys, values = self.backbone.keys_values(tokens_BNW, allowed, position, _joined(extras, tokens_BNW))
        return Prefix(keys, values, valid_BN, after)

    def prompts(self, observation: Mapping[str, Tensor], state_BOS: Tensor | None) -> list[str]:
        """What the backbone reads, one text for each element of the batch."""
        batch = next(iter(observation.values())).shape[0]
        texts = [""] * batch
        if self.texts:
            texts = [read_text(row) for row in observation[self.texts[0]][:, -1].cpu().numpy()]
        return prompts(texts, state_BOS.flatten(1) if self.state_as_text and state_BOS is not None else None)

    def check_instructions(self, texts: set[str]) -> None:
        """Check before training that every instruction fits, with state as text at its longest.

        Raises:
            VlaError: one is too long.
        """
        size = self.state_size * self.spec.obs_horizon
        state = torch.ones(1, size) if self.state_as_text and size else None
        for text in sorted(texts, key=len, reverse=True):
            self.tokenise(prompts([text], state))

    def save_assets(self, checkpoint: Path) -> None:
        """Put into a checkpoint what its weights do not say of a published backbone: its configuration and tokens."""
        self.backbone.save_assets(checkpoint / "backbone")
        self.tokenise.save_assets(checkpoint / "backbone")

    @property
    def _device(self) -> torch.device:
        return next(self.backbone.parameters()).device  # pyright: ignore[reportAttributeAccessIssue]

    def _state(self, observation: Mapping[str, Tensor]) -> Tensor | None:
        """(B, O, S) normalised."""
        if not len(self.normalise):
            return None
        return torch.cat([module(observation[name].flatten(2)) for name, module in self.normalise.items()], dim=-1)

    def _seen(self, name: str, pixels: Tensor) -> Tensor:
        """What of the pictures is seen."""
        if pixels.shape[1:] != (self.spec.obs_horizon, *self.spec.observation[name].shape):
            raise SpecError(
                f"stream {name!r} has pictures of shape {tuple(pixels.shape[1:])}, the policy was made for "
                f"{(self.spec.obs_horizon, *self.spec.observation[name].shape)}; scale them, or train on such pictures"
            )
        height, width = pixels.shape[2:4]
        size = round(height * self.crop), round(width * self.crop)
        return cropped(pixels, size, at_random=self.training)


def no_statistics(streams: list[str]) -> VlaError:
    return VlaError(
        f"there are no statistics of {', '.join(streams)}, from which this robot's units are normalised: train on a "
        "dataset of this robot (--policy.trunk.start-from CHECKPOINT starts from published weights), or deploy the "
        "checkpoint of such a run"
    )


def _joined(extras: list[list[Tensor]], tokens_BNW: Tensor) -> list[Tensor]:
    """What layers add to the tokens of each picture -> (B, N, W) each, zero behind the pictures."""
    if not extras or not extras[0]:
        return []
    joined = [torch.cat(parts, dim=1) for parts in zip(*extras, strict=True)]
    return [nn.functional.pad(part, (0, 0, 0, tokens_BNW.shape[1] - part.shape[1])) for part in joined]
