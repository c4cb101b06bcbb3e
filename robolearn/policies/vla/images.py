"""Pictures as a backbone wants them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def letterboxed(pixels_BHWC: Tensor, size: int, *, antialias: bool = True) -> Tensor:
    """Pixels 0..255 -> (B, 3, size, size) float in 0..255: scaled to fit, black at the left and the top (SmolVLA).

    ``antialias``: average pixels where a picture is made smaller by more than two.

    Grey pictures are repeated for the three colours.
    """
    x = pixels_BHWC.permute(0, 3, 1, 2).float()
    if x.shape[1] == 1:
        x = x.expand(-1, 3, -1, -1)
    height, width = x.shape[2:]
    if (height, width) == (size, size):
        return x
    ratio = max(height, width) / size
    h, w = max(int(height / ratio), 1), max(int(width / ratio), 1)
    x = F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False, antialias=antialias and ratio > 2)
    return F.pad(x, (size - w, 0, size - h, 0))
