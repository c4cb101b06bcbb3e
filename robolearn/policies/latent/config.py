"""What can be chosen of a latent-action model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robolearn_data.schema import UserError


class LatentError(UserError):
    """A latent-action model, or data for one, is not what is needed."""


@dataclass(frozen=True)
class LatentModelConfig:
    """Inverse model (picture, later picture) -> latent action; forward model (picture, latent action) -> later one."""

    ahead: int = 2
    """Control steps from a picture to the later one."""
    space: Literal["pixels", "features"] = "pixels"
    """What the forward model predicts: pixels, or the feature map of a frozen network (see --features)."""
    bottleneck: Literal["gaussian", "vq", "fsq"] = "gaussian"
    """What a latent action can be: a vector with noise (gaussian), codes of a learned codebook (vq), or numbers rounded
    to a few levels (fsq). Without one, the latent action could be the later picture itself."""
    size: int = 8
    """Numbers of a gaussian latent action, or of a code of vq."""
    kl: float = 1e-5
    """gaussian: weight of the divergence from a standard normal distribution, against the part of the change that is
    not predicted. Too much of it and z says nothing: no number varies, and the z of another pair explains as much."""
    tokens: int = 4
    """vq: codes that make one latent action."""
    codes: int = 16
    """vq: size of the codebook, which all tokens share."""
    replace_every: int = 100
    """vq: steps after which codes that were hardly used get another place."""
    levels: tuple[int, ...] = (8, 8, 8, 6, 5)
    """fsq: levels of each number of a latent action."""
    spread: float = 0.1
    """fsq: weight of what keeps each number spread over its levels (mean 0, deviation 1, before it is bounded), against
    the part of the change that is not predicted. Without it they may all drift to an end, and one code is used."""
    image_size: int = 96
    """pixels: height and width to which pictures are scaled."""
    patch: int = 4
    """pixels: height and width of the patches that a picture is cut into."""
    width: int = 32
    """Channels of both models."""
    language: Literal["none", "words", "bytes"] = "none"
    """Whether the instruction splits what happened in two: first is learned what it does not say, then, without it,
    what is left, which serves the task. Policies learn the second alone. Texts are read as words or as bytes."""
    max_text: int = 64
    """language: the most words or bytes of an instruction."""

    def __post_init__(self) -> None:
        for name in ("ahead", "size", "tokens", "replace_every", "image_size", "patch", "width", "max_text"):
            if getattr(self, name) < 1:
                raise LatentError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.width % 8:
            raise LatentError(f"model.width must be a multiple of 8, got {self.width}")
        if self.image_size % self.patch or self.image_size < 4 * self.patch:
            raise LatentError(
                f"model.image_size {self.image_size} must be four times model.patch {self.patch} or more, "
                "and a multiple of it"
            )
        if self.codes < 2 or not self.levels or min(self.levels) < 2:
            raise LatentError(
                f"a code must have two values at least: model.codes is {self.codes}, model.levels {self.levels}"
            )
        for name in ("kl", "spread"):
            if getattr(self, name) < 0:
                raise LatentError(f"model.{name} must not be negative, got {getattr(self, name):g}")
        if self.language != "none" and self.bottleneck == "gaussian" and not self.kl:
            raise LatentError(
                f"model.language {self.language} needs a bottleneck that leaves out what the instruction says: "
                "model.kl above 0, or model.bottleneck vq or fsq"
            )
