"""Network cameras that send JPEG pictures over HTTP (multipart/x-mixed-replace)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, Self
from urllib.parse import unquote, urlsplit

import numpy as np

from robolearn_hardware.cameras.calibration_file import with_lens
from robolearn_hardware.cameras.reader import Picture, ThreadedCamera
from robolearn_hardware.clock import now_ns
from robolearn_hardware.devices import Camera, CameraInfo, DeviceError, DeviceGoneError, DeviceTimeoutError
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.mjpeg import MjpegTwin
from robolearn_hardware.twins.pictures import PictureSpec, make_pictures

MAX_JPEG_BYTES = 32 * 2**20
_MAX_LINE_BYTES = 8192
_MAX_LINES = 64
_SILENCE_S = 5.0
"""In which a server must send something."""


@dataclass(frozen=True)
class MjpegConfig:
    """An MJPEG stream. A frame's capture time is when its first byte was there."""

    url: str
    """http://host:port/path, https://..., http://user:password@host/...; or twin"""
    width: int = 640
    height: int = 480
    """What the camera sends; it is not scaled."""
    rate_hz: float = 30.0
    calibration: Path | None = None
    """What `robolearn calibrate` has written: the lens."""
    pictures: str = "pattern"
    """What its twin sees, see ``twins.pictures``."""

    def open(self, name: str) -> Camera:
        info = with_lens(CameraInfo(name, self.width, self.height, self.rate_hz), self.calibration)
        return ThreadedCamera(info, partial(_Stream, self.url, info))

    def with_twin(self, name: str, twins: Twins) -> Self:
        if self.url != "twin":
            return self
        spec = PictureSpec(name, self.width, self.height, 0.9 * self.width)
        make = partial(MjpegTwin, partial(make_pictures, self.pictures, spec), self.rate_hz)
        return replace(self, url=twins.start(name, make).address)


class _Stream:
    """The source of ``ThreadedCamera``."""

    def __init__(self, url: str, info: CameraInfo) -> None:
        self._url = urlsplit(url)
        self._info = info
        self._where = f"camera {info.name!r} at {self._url.hostname}:{self._port()}"
        self._connection: http.client.HTTPConnection | None = None
        self._parts: _Parts | None = None

    def _port(self) -> int:
        try:
            port = self._url.port
        except ValueError:
            port = 0
        if self._url.scheme not in ("http", "https") or not self._url.hostname or port == 0:
            raise DeviceError(
                f"camera {self._info.name!r}: {self._url.geturl()!r} is no address of a camera; valid: http://host:port/path"
            )
        return port or (443 if self._url.scheme == "https" else 80)

    def open(self) -> CameraInfo:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(self._url.hostname or "", self._port(), timeout=_SILENCE_S)
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        headers = {"Accept": "multipart/x-mixed-replace"}
        if self._url.username:
            user = f"{unquote(self._url.username)}:{unquote(self._url.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
        try:
            self._connection.request("GET", path, headers=headers)
            response = self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._raise(error)
        if response.status != 200:
            raise DeviceError(f"{self._where} answers {response.status} {response.reason} to {path!r}; check the URL")
        content = response.getheader("Content-Type", "")
        boundary = re.fullmatch(r'multipart/x-mixed-replace\s*;.*?boundary="?([^";\s]+)"?.*', content, re.I | re.S)
        if not boundary:
            raise DeviceError(
                f"{self._where} sends {content or 'something without a type'!r}, an MJPEG stream is "
                f"'multipart/x-mixed-replace; boundary=...'; check the path {path!r}"
            )
        # The boundary is stated with or without its two dashes.
        self._parts = _Parts(response.read1, b"--" + boundary[1].removeprefix("--").encode("latin-1"))
        return self._info

    def fetch(self) -> Picture | None:
        assert self._parts is not None
        try:
            received_ns, jpeg = self._parts.next()
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            self._raise(error)
        return Picture(received_ns, received_ns, jpeg)

    def decode(self, data: bytes) -> np.ndarray | None:
        import simplejpeg

        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            if (width, height) == (self._info.width, self._info.height):
                return simplejpeg.decode_jpeg(data, "RGB", strict=True)
        except ValueError:  # truncated or corrupt: the next one may be whole
            return None
        raise DeviceError(
            f"{self._where} sends pictures of {width}x{height}, not {self._info.width}x{self._info.height}; "
            "set width and height to what it sends, or the camera to what is wanted"
        )

    def interrupt(self) -> None:
        if self._connection is not None and self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _raise(self, error: Exception) -> NoReturn:
        if isinstance(error, TimeoutError):
            raise DeviceTimeoutError(f"{self._where} sent nothing for {_SILENCE_S:g} s") from None
        if isinstance(error, ValueError):
            raise DeviceError(f"{self._where} sends no MJPEG stream: {error}") from None
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DeviceGoneError(f"{self._where} is not reached: {reason}; is it on, and the address right?") from None


class _Parts:
    """Cuts a multipart stream into its parts. Distrusts every number in it."""

    def __init__(self, read: Callable[[int], bytes], boundary: bytes) -> None:
        self._read = read
        self._boundary = boundary
        self._buffer = bytearray()

    def next(self) -> tuple[int, bytes]:
        """When the first byte of the next part was there, and the part.

        Raises:
            ValueError: this is no such stream.
            OSError: it has ended.
        """
        lines = 0
        while not self._line().startswith(self._boundary):
            lines += 1
            if lines > _MAX_LINES:
                raise ValueError("no boundary between pictures")
        length: int | None = None
        for _ in range(_MAX_LINES):
            line = self._line()
            if not line:
                break
            key, _, value = line.partition(b":")
            if key.strip().lower() == b"content-length":
                length = self._length(value.strip())
        else:
            raise ValueError("a part without end of its header")
        if not self._buffer:
            self._more()
        received_ns = now_ns()
        return received_ns, self._until_boundary() if length is None else self._take(length)

    def _length(self, text: bytes) -> int:
        if not re.fullmatch(rb"[0-9]{1,9}", text) or int(text) > MAX_JPEG_BYTES:
            raise ValueError(f"a picture of {text[:30].decode('latin-1')!r} bytes; at most {MAX_JPEG_BYTES}")
        return int(text)

    def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            self._more()
        part = bytes(self._buffer[:length])
        del self._buffer[:length]
        return part

    def _until_boundary(self) -> bytes:
        token, searched = b"\r\n" + self._boundary, 0
        while (end := self._buffer.find(token, searched)) < 0:
            searched = max(0, len(self._buffer) - len(token))
            if len(self._buffer) > MAX_JPEG_BYTES:
                raise ValueError(f"a picture of more than {MAX_JPEG_BYTES} bytes")
            self._more()
        return self._take(end)

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MAX_LINE_BYTES:
                raise ValueError("a line without end")
            self._more()
        return self._take(end + 1).strip()

    def _more(self) -> None:
        data = self._read(65536)
        if not data:
            raise ConnectionResetError(0, "the stream has ended")
        self._buffer += data
