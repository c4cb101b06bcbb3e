"""A latent-action model: what happened between two pictures, as a few numbers, learned from video alone.

The inverse model sees a picture and one a little later, and says in a latent action z what happened. The forward model
predicts the later picture from the earlier one and z. What the earlier picture shows, z need not say; what the
bottleneck does not let through, it cannot say: what is left is the change, and in a robot's video the robot makes most
of it (Genie, Bruce et al. 2024; LAPA, Ye et al. 2025).

With language it is learned in two stages, as in UniVLA (Bu et al. 2025). In the first, inverse and forward model are
told the instruction, so that their latent need not say what the instruction does (``Unsaid``). In the second nobody is
told: the forward model gets that latent, which stays as it is, and a new one, which is left with what the instruction
had said. That one is the latent action. UniVLA keeps the codebook of the first stage alone; we keep its inverse model
too, for a gaussian latent and fsq have no codebook that could hold it.

Shape letters: B batch, C channels, H height and W width of a picture or feature map, Z numbers of a latent action,
T numbers that tell an instruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robolearn.policies.contracts import Batch, Draws, Losses
from robolearn.policies.encoders.images import IMAGE_NETWORKS, cropped
from robolearn.policies.encoders.observation import EncoderConfig
from robolearn.policies.latent.bottlenecks import BOTTLENECKS, Bottleneck
from robolearn.policies.latent.config import LatentError, LatentModelConfig
from robolearn.policies.latent.language import STREAM, InstructionEncoder
from robolearn_data.schema import Stream


class LatentActionModel(nn.Module):
    """Pictures are given as (B, 2, H, W, C) uint8: one, and the one ``config.ahead`` control steps later."""

    change: Tensor

    def __init__(
        self,
        name: str,
        image: Stream,
        rate_hz: float,
        config: LatentModelConfig,
        *,
        change: float = 1.0,
        encoder: EncoderConfig | None = None,
    ) -> None:
        """
        Args:
            name: of the camera's stream ``image``.
            rate_hz: control rate of the video.
            change: mean squared change from a picture to the later one, in the space that is predicted.
            encoder: with space "features", how the policy's encoder is made whose network gives the features.
        """
        super().__init__()
        self.name, self.image, self.rate_hz, self.config = name, image, rate_hz, config
        self.encoder_config = encoder
        self.features: nn.Module | None = None
        side = config.image_size
        channels, patch, height, width = image.shape[-1], config.patch, side, side
        if config.space == "features":
            if encoder is None:
                raise LatentError("space features needs a policy whose network makes them: --features RUN")
            self.features = IMAGE_NETWORKS[encoder.image](channels).requires_grad_(False)
            self.crop = (round(image.shape[0] * encoder.crop), round(image.shape[1] * encoder.crop))
            with torch.no_grad():
                _, channels, height, width = self.features(torch.zeros(1, channels, *self.crop)).shape
            patch = 1
        self.bottleneck = cast(Bottleneck, BOTTLENECKS[config.bottleneck](config))
        self.inverse = InverseModel(channels, (height, width), patch, config.width, self.bottleneck.inputs)
        self.unsaid: Unsaid | None = None
        if config.language != "none":
            self.unsaid = Unsaid(channels, (height, width), patch, config)
        told = self.bottleneck.size + (self.unsaid.size if self.unsaid is not None else 0)
        self.forward_model = ForwardModel(channels, patch, config.width, told)
        self.register_buffer("change", torch.tensor(change))

    def draw(self, batch: int, generator: torch.Generator | None = None) -> Draws:
        """The random numbers of one training step on ``batch`` pairs: each stage takes those of its bottleneck."""
        return self.bottleneck.draw(batch, generator)

    def forward(self, batch: Batch, draws: Draws | None = None) -> Losses:
        """``loss``, under the name that torch's parallel wrappers call."""
        return self.loss(batch, draws=draws)

    def loss(self, batch: Batch, *, draws: Draws | None = None) -> Losses:
        """Terms (B,): "prediction", squared error of the later picture as a part of the mean squared change, so that 1
        is no better than the earlier picture; and those of the bottleneck. Pairs that are padding count nothing."""
        draws = self.draw(len(batch)) if draws is None else draws
        draws = {name: value.to(self.change.device) for name, value in draws.items()}
        before, after = self.seen(batch.observation[self.name])
        if self.unsaid is not None and not self.unsaid.settled:
            part, terms = self.unsaid.train_pass(before, after, batch.observation[STREAM], draws)
            told = F.pad(part, (self.bottleneck.size, 0))
        else:
            z, terms = self.bottleneck.train_pass(self.inverse(before, after), draws)
            told = self._told(z, before, after, batch.observation)
        error = (self.forward_model(before, told).float() - after).square().flatten(1).mean(1)
        real = (~batch.is_pad[:, 0]).float()
        terms = {"prediction": error / self.change, **terms}
        return Losses({name: term * real for name, term in terms.items()})

    def seen(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Both pictures in the space that is predicted, (B, C, H, W) each; pixels in [-1, 1]."""
        if self.features is not None:
            x = cropped(pixels, self.crop, at_random=False).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad():
                x = self.features(x).float()
        else:
            x = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
            if x.shape[-2:] != (self.config.image_size, self.config.image_size):
                x = F.adaptive_avg_pool2d(x, self.config.image_size)
        x = x.unflatten(0, pixels.shape[:2])
        return x[:, 0], x[:, 1]

    @torch.no_grad()
    def latent(self, pixels: Tensor) -> Tensor:
        """(B, 2, H, W, C) -> latent actions (B, Z), without noise."""
        return self.bottleneck.latent(self.inverse(*self.seen(pixels))).float()

    @torch.no_grad()
    def told(self, observation: Mapping[str, Tensor]) -> Tensor:
        """What the forward model is told of pairs, without noise: the latent actions (B, Z), and with language more
        behind them: what the instruction, (B, bytes) of the observation, does not say, and T zeros."""
        before, after = self.seen(observation[self.name])
        return self._told(self.bottleneck.latent(self.inverse(before, after)), before, after, observation).float()

    def _told(self, z: Tensor, before: Tensor, after: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        return z if self.unsaid is None else torch.cat([z, self.unsaid.latent(before, after, observation[STREAM])], -1)

    @torch.no_grad()
    def predict(self, before: Tensor, told: Tensor) -> Tensor:
        """The later picture (B, C, H, W) from the earlier one, as ``seen`` gives it, and what ``told`` gives."""
        return self.forward_model(before, told)

    def latent_stream(self) -> Stream:
        """Of the latent action, as a policy that predicts it has it for its action."""
        return Stream((self.bottleneck.size,), kind="action", unit="latent")


class Unsaid(nn.Module):
    """The first stage of language: what happened, as far as the instruction does not say it. R numbers tell it.

    As the forward model is told it, (B, R + T): this latent and the instruction, which is zero after the first stage.
    """

    settled: Tensor

    def __init__(self, channels: int, size: tuple[int, int], patch: int, config: LatentModelConfig) -> None:
        super().__init__()
        assert config.language != "none"
        self.text = InstructionEncoder(config.language, config.max_text)
        self.bottleneck = cast(Bottleneck, BOTTLENECKS[config.bottleneck](config))
        self.inverse = InverseModel(channels, size, patch, config.width, self.bottleneck.inputs, self.text.size)
        self.size = self.bottleneck.size + self.text.size
        self.register_buffer("settled", torch.zeros((), dtype=torch.uint8))
        """1: it is trained and stays as it is, and the latent actions are learned beside it."""

    def train_pass(self, before: Tensor, after: Tensor, said: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures (B, C, H, W) and instructions (B, bytes) -> (B, R + T), and terms of the loss, (B,)."""
        text = self.text(said)
        z, terms = self.bottleneck.train_pass(self.inverse(before, after, text), draws)
        return torch.cat([z, text], dim=-1), terms

    @torch.no_grad()
    def latent(self, before: Tensor, after: Tensor, said: Tensor) -> Tensor:
        """The same without noise, and with zeros in place of the instruction."""
        z = self.bottleneck.latent(self.inverse(before, after, self.text(said)))
        return F.pad(z, (0, self.text.size))


class InverseModel(nn.Module):
    """Two pictures (B, C, H, W) -> (B, E). A condition (B, T) scales and shifts the channels of what it sees last."""

    def __init__(
        self, channels: int, size: tuple[int, int], patch: int, width: int, outputs: int, condition: int = 0
    ) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _convolution(2 * channels, width, patch, patch),
            _convolution(width, width, 3, 1),
            _convolution(width, width, 3, 2),
            _convolution(width, width, 3, 2),
        )
        with torch.no_grad():
            flat = self.net(torch.zeros(1, 2 * channels, *size)).flatten(1).shape[1]
        self.head = nn.Linear(flat, outputs)
        self.film = nn.Linear(condition, 2 * width) if condition else None

    def forward(self, before: Tensor, after: Tensor, condition: Tensor | None = None) -> Tensor:
        x = self.net(torch.cat([before, after - before], dim=1))
        if self.film is not None:
            scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
            x = x * (1 + scale) + shift
        return self.head(x.flatten(1))


class ForwardModel(nn.Module):
    """(picture (B, C, H, W), z (B, Z)) -> the later picture, as the earlier one and what is added to it.

    A small U-Net of two levels; z scales and shifts the channels of every block (FiLM). The network is not told where a
    pixel lies: so z says how things move, not where they are in the end.
    """

    def __init__(self, channels: int, patch: int, width: int, latent: int) -> None:
        super().__init__()
        self.patch = patch
        self.stem = _convolution(channels, width, patch, patch)
        self.embed = nn.Sequential(nn.Linear(latent, 2 * width), nn.SiLU())
        self.first = _FiLMBlock(width, width, 2 * width)
        self.down = _convolution(width, width, 3, 2)
        self.middle = _FiLMBlock(width, width, 2 * width)
        self.last = _FiLMBlock(2 * width, width, 2 * width)
        self.out = nn.Conv2d(width, channels * patch * patch, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def forward(self, before: Tensor, z: Tensor) -> Tensor:
        c = self.embed(z)
        fine = self.first(self.stem(before), c)
        coarse = self.middle(self.down(fine), c)
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="nearest")
        change = self.out(self.last(torch.cat([fine, coarse], dim=1), c))
        return before + F.pixel_shuffle(change, self.patch)


class _FiLMBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.norm = nn.GroupNorm(8, outputs)
        self.film = nn.Linear(condition, 2 * outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(c)[..., None, None].chunk(2, dim=1)
        return F.silu(self.norm(self.convolution(x)) * (1 + scale) + shift)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    padding = 0 if kernel == stride else kernel // 2
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.GroupNorm(8, outputs), nn.SiLU())
