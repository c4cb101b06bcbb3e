"""Pictures -> features: a small CNN, or ResNet-18 with GroupNorm; positions kept by a flat layer or as keypoints.

Shape letters: see contracts.py; K keypoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robolearn_data.schema import Stream


@dataclass(frozen=True)
class ImageConfig:
    """How a camera's pictures are encoded. Not a choice of its own: part of EncoderConfig."""

    image: Literal["cnn", "resnet18"] = "cnn"
    """Network of each camera: a small CNN, or ResNet-18 with GroupNorm."""
    image_width: int = 128
    """Features per camera and observation step."""
    pool: Literal["flat", "keypoints"] = "flat"
    """How a feature map becomes features: all of it through one layer, or as the centres of ``keypoints`` soft maxima
    (spatial softmax, Levine et al. 2016), as Diffusion Policy has it."""
    keypoints: int = 32
    crop: float = 0.92
    """Side of the crop as a part of the image: at random in training, centred otherwise. 1 turns it off."""


class ImageEncoder(nn.Module):
    """(B, O, H, W, 3) pixels 0..255 -> (B, O, width)."""

    def __init__(self, stream: Stream, config: ImageConfig) -> None:
        super().__init__()
        height, width, channels = stream.shape
        self.crop = (round(height * config.crop), round(width * config.crop))
        self.width = config.image_width
        self.net = IMAGE_NETWORKS[config.image](channels)
        with torch.no_grad():
            c, h, w = self.net(torch.zeros(1, channels, *self.crop)).shape[1:]
        if config.pool == "keypoints":
            points = SpatialSoftmax(c, config.keypoints, h, w)
            self.head = nn.Sequential(points, nn.Linear(2 * config.keypoints, config.image_width), nn.ReLU())
        else:
            # A flat linear layer keeps positions exactly; the pooled layers before it have made it small.
            self.head = nn.Sequential(
                nn.Flatten(), nn.Linear(c * h * w, config.image_width), nn.LayerNorm(config.image_width)
            )

    def forward(self, pixels: Tensor) -> Tensor:
        x = cropped(pixels, self.crop, at_random=self.training).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return self.head(self.net(x)).unflatten(0, pixels.shape[:2])


def cropped(pixels: Tensor, size: tuple[int, int], *, at_random: bool) -> Tensor:
    """A part (B, O, *size, C) of pictures (B, O, H, W, C), at random or from the middle: at one place for all frames of
    a window, so that what moves between them is the scene."""
    (b, _, h, w, _), (ch, cw) = pixels.shape, size
    if not at_random:
        top, left = (h - ch) // 2, (w - cw) // 2
        return pixels[:, :, top : top + ch, left : left + cw]
    top = torch.randint(0, h - ch + 1, (b, 1), device=pixels.device)
    left = torch.randint(0, w - cw + 1, (b, 1), device=pixels.device)
    rows = (top + torch.arange(ch, device=pixels.device))[:, None, :, None]
    columns = (left + torch.arange(cw, device=pixels.device))[:, None, None, :]
    window = torch.arange(b, device=pixels.device)[:, None, None, None]
    frame = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None]
    return pixels[window, frame, rows, columns]


class SpatialSoftmax(nn.Module):
    """Feature map (B, C, H, W) -> where each of K maps has its centre, (B, 2 K) in [-1, 1], x and y by turns."""

    places: Tensor

    def __init__(self, channels: int, keypoints: int, height: int, width: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, keypoints, 1)
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("places", torch.stack([x, y], dim=-1).flatten(0, 1), persistent=False)  # (H W, 2)

    def forward(self, features: Tensor) -> Tensor:
        return (self.maps(features).flatten(2).softmax(-1) @ self.places.to(features)).flatten(1)


def _cnn(channels: int) -> nn.Module:
    """Patches of 4 x 4 pixels, then convolutions of stride 2: a sixteenth of the size on each side."""
    layers: list[nn.Module] = []
    for kernel, stride, width in ((4, 4, 32), (3, 2, 64), (3, 2, 64)):
        layers += [
            nn.Conv2d(channels, width, kernel, stride, 0 if kernel == stride else 1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
        ]
        channels = width
    return nn.Sequential(*layers)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016); GroupNorm, since averaged weights break BatchNorm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.GroupNorm(outputs // 16, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(outputs // 16, outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.GroupNorm(outputs // 16, outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _resnet18(channels: int) -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, 7, 2, 3, bias=False),
        nn.GroupNorm(4, 64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_BasicBlock(inputs, outputs, stride), _BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers)


IMAGE_NETWORKS: dict[str, Callable[[int], nn.Module]] = {"cnn": _cnn, "resnet18": _resnet18}
"""Name -> channels of a picture -> network from (B, channels, H, W) in [-1, 1] to a feature map."""
