"""The two image codecs of diffusion_policy and UMI buffers as numcodecs codecs: JPEG 2000 and JPEG XL.

imagecodecs has codecs of the same names, but what it notes about itself in an array (``squeeze``, ``mct``, ...) is
refused by the older copies inside diffusion_policy and UMI. These note the name and the level alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numcodecs.abc import Codec
from numcodecs.registry import register_codec

from robolearn_data.formats.transfer import missing


class ImageCodec(Codec):
    """One image (1, H, W, C) per chunk. Use a subclass."""

    codec_id: str | None
    name: ClassVar[str]
    """imagecodecs' name of the format."""

    def __init__(self, level: int | None = None, **_: object) -> None:
        """``level`` is the quality; the encoder's other settings in a file do not matter for decoding."""
        self.level = level
        self.shape: tuple[int, ...] | None = None
        """(H, W, C) or (H, W) an image must have, where set. Checked before anything of that size is allocated."""
        try:
            import imagecodecs
        except ImportError:
            raise missing("imagecodecs") from None
        self._encode = getattr(imagecodecs, f"{self.name}_encode")
        self._decode = getattr(imagecodecs, f"{self.name}_decode")

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "level": self.level}

    def encode(self, buf: Any) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        chunk = np.asarray(buf)
        return self._encode(chunk.reshape(image_shape(chunk.shape)), level=self.level)

    def decode(self, buf: Any, out: Any = None) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        into = None if self.shape is None else np.empty(self.shape, np.uint8)
        image = self._decode(bytes(buf), out=into)
        if out is not None:
            np.copyto(out, image.reshape(out.shape))
            return out
        return image


class Jpeg2k(ImageCodec):
    """JPEG 2000, used by diffusion_policy with level 50 for real-robot images (level = PSNR in dB)."""

    codec_id = "imagecodecs_jpeg2k"
    name = "jpeg2k"


class JpegXl(ImageCodec):
    """JPEG XL, used by UMI with level 99 (level = quality 0 to 100)."""

    codec_id = "imagecodecs_jpegxl"
    name = "jpegxl"


def register() -> None:
    """Let zarr v2 arrays name the two codecs."""
    register_codec(Jpeg2k)
    register_codec(JpegXl)


def image_shape(chunk: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the image that is stored for a chunk (1, H, W, C): (H, W, C), or (H, W) where C is 1."""
    return chunk[1:-1] if chunk[-1] == 1 else chunk[1:]
