"""zarr v3 codecs for pictures and video.

zarr finds them by name through the entry points of the installed package, so that plain ``zarr.open`` reads a dataset
in any process. ``register`` does the same in a source tree that is not installed. To add one: a file with a
``ChunkCodec``, an entry in ``CODECS`` and in ``[project.entry-points."zarr.codecs"]``, a name in ``storage.encoding``.
"""

from __future__ import annotations

from zarr.registry import register_codec

from robolearn_data.codecs.chunk import ChunkCodec
from robolearn_data.codecs.h264 import H264Codec
from robolearn_data.codecs.jpeg import JpegCodec
from robolearn_data.codecs.jpegxl import JpegXlCodec

CODECS: tuple[type[ChunkCodec], ...] = (JpegCodec, JpegXlCodec, H264Codec)


def register() -> None:
    """Make the codecs known to zarr in this process. Calling it again changes nothing."""
    for codec in CODECS:
        register_codec(codec.name, codec)
