"""A network camera: H.264 by RTSP (RFC 2326), with RTP (RFC 6184) in the same TCP connection."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.pictures import Feed, Pictures, TwinFrame

FAULTS = Feed.FAULTS | {"unplugged"}
_RTP_HZ = 90_000
_PAYLOAD_TYPE = 96
_LARGEST = 1400
"""Of an RTP packet's payload, bytes; larger units are fragmented."""
_KEY_EVERY = 10
"""Frames: a client that joins waits for the next key frame."""

_SDP = f"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=twin
c=IN IP4 0.0.0.0
t=0 0
m=video 0 RTP/AVP {_PAYLOAD_TYPE}
a=rtpmap:{_PAYLOAD_TYPE} H264/{_RTP_HZ}
a=fmtp:{_PAYLOAD_TYPE} packetization-mode=1
a=control:video
""".replace("\n", "\r\n")


class RtspTwin:
    """Streams the pictures at ``address``, to any number of clients, over TCP only.

    lose=1 is a camera that keeps the connection and sends nothing.
    """

    def __init__(self, pictures: Callable[[], Pictures], rate_hz: float) -> None:
        self._feed = Feed(pictures, rate_hz, self._emit)
        self._encoder = _Encoder(rate_hz)
        self._players: list[socket.socket] = []
        self._clients: list[socket.socket] = []
        self._lock = threading.Lock()
        self._sequence = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"rtsp://127.0.0.1:{self._server.getsockname()[1]}/stream"

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()
        self._feed.start()

    def fault(self, faults: Faults) -> None:
        faults.check("an RTSP camera", FAULTS)
        self._feed.faults = faults
        if faults.unplugged:
            self._hang_up()

    def observe(self) -> dict[str, Any]:
        """As ``Feed.observe``."""
        return self._feed.observe()

    def close(self) -> None:
        self._feed.close()
        self._server.close()
        self._hang_up()

    def _hang_up(self) -> None:
        with self._lock:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
            self._clients.clear()
            self._players.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:  # closed
                return
            if self._feed.faults.unplugged:
                client.close()
                continue
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._clients.append(client)
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        """Answer requests until the client goes. What it sends between them (RTCP) is passed over."""
        with client, contextlib.suppress(OSError):
            buffer = b""
            while data := client.recv(4096):
                buffer += data
                while request := re.search(rb"([A-Z_]+) \S+ RTSP/1\.0\r\n(.*?)\r\n\r\n", buffer, re.S):
                    buffer = buffer[request.end() :]
                    self._answer(client, request[1].decode(), request[2].decode("latin-1"))
                buffer = buffer[-4096:]

    def _answer(self, client: socket.socket, method: str, headers: str) -> None:
        number = re.search(r"(?i)cseq:\s*(\d+)", headers)
        status, more, body = "200 OK", "", ""
        if method == "OPTIONS":
            more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n"
        elif method == "DESCRIBE":
            body = _SDP
            more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP" and "RTP/AVP/TCP" in headers:
            more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1;timeout=60\r\n"
        elif method == "SETUP":
            status = "461 Unsupported Transport"
        else:
            more = "Session: 1\r\n"
        answer = f"RTSP/1.0 {status}\r\nCSeq: {number[1] if number else 0}\r\n{more}\r\n{body}"
        with self._lock:
            client.sendall(answer.encode())
            if method == "PLAY":
                self._players.append(client)

    def _emit(self, frame: TwinFrame) -> None:
        stamp = frame.capture_ns * _RTP_HZ // SECOND_NS % 2**32
        units = self._encoder.encode(frame.colour)
        payloads = [payload for unit in units for payload in _fragments(unit)]
        packets = []
        for i, payload in enumerate(payloads):
            self._sequence = (self._sequence + 1) % 2**16
            last = 0x80 if i == len(payloads) - 1 else 0
            header = struct.pack(">BBHII", 0x80, last | _PAYLOAD_TYPE, self._sequence, stamp, 1)
            packets.append(struct.pack(">cBH", b"$", 0, len(header + payload)) + header + payload)
        with self._lock:
            for player in list(self._players):
                try:
                    player.settimeout(0.5)
                    player.sendall(b"".join(packets))
                    player.settimeout(None)
                except OSError:
                    self._players.remove(player)


class _Encoder:
    """H.264 of which no frame waits for another."""

    def __init__(self, rate_hz: float) -> None:
        self._rate = Fraction(rate_hz).limit_denominator(1001)
        self._codec: Any = None
        self._number = 0

    def encode(self, colour: np.ndarray) -> list[bytes]:
        """The NAL units of one picture."""
        import av

        if self._codec is None:
            self._codec = av.CodecContext.create("libx264", "w")
            self._codec.height, self._codec.width = colour.shape[:2]
            self._codec.pix_fmt, self._codec.time_base = "yuv420p", 1 / self._rate
            self._codec.options = {
                "preset": "ultrafast",
                "tune": "zerolatency",
                "crf": "18",
                "g": str(_KEY_EVERY),
                "x264-params": "repeat-headers=1:sliced-threads=0:threads=1",
            }
        picture = av.VideoFrame.from_ndarray(colour, format="rgb24")
        picture.pts, picture.time_base = self._number, 1 / self._rate
        self._number += 1
        data = b"".join(bytes(packet) for packet in self._codec.encode(picture))
        return [unit for unit in re.split(rb"\x00*\x00\x00\x01", data) if unit]


def _fragments(unit: bytes) -> Iterator[bytes]:
    """A NAL unit as RTP payloads: itself, or fragments (FU-A, RFC 6184 section 5.8)."""
    if len(unit) <= _LARGEST:
        yield unit
        return
    indicator, kind = unit[0] & 0xE0 | 28, unit[0] & 0x1F
    for start in range(1, len(unit), _LARGEST):
        first, last = start == 1, start + _LARGEST >= len(unit)
        yield bytes([indicator, first << 7 | last << 6 | kind]) + unit[start : start + _LARGEST]
