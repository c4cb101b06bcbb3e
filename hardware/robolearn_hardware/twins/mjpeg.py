"""A network camera: MJPEG over HTTP, as IP cameras, mjpg-streamer and the ESP32-CAM serve it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.pictures import Feed, Pictures, TwinFrame

FAULTS = Feed.FAULTS | {"corrupt", "truncate", "unplugged"}
BOUNDARY = "frame"


class MjpegTwin:
    """Serves the pictures at ``address``, to any number of clients; a slow one gets the newest picture.

    lose=1 is a camera that keeps the connection and sends nothing.
    """

    def __init__(self, pictures: Callable[[], Pictures], rate_hz: float, quality: int = 90) -> None:
        self._quality = quality
        self._feed = Feed(pictures, rate_hz, self._emit)
        self._changed = threading.Condition()
        self._number, self._jpeg = 0, b""
        self._random = random.Random(0)
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/stream"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self._feed.start()

    def fault(self, faults: Faults) -> None:
        faults.check("an MJPEG camera", FAULTS)
        self._feed.faults = faults
        with self._changed:
            self._changed.notify_all()

    def observe(self) -> dict[str, Any]:
        """As ``Feed.observe``."""
        return self._feed.observe()

    def close(self) -> None:
        self._feed.close()
        self._server.shutdown()
        self._server.server_close()

    @property
    def unplugged(self) -> bool:
        return self._feed.faults.unplugged

    def next_jpeg(self, number: int) -> tuple[int, bytes]:
        """The newest picture, once there is another than ``number``; the same, when none comes within 0.2 s."""
        with self._changed:
            self._changed.wait_for(lambda: self._number != number or self.unplugged, 0.2)
            return self._number, self._jpeg

    def _emit(self, frame: TwinFrame) -> None:
        import simplejpeg

        jpeg = simplejpeg.encode_jpeg(frame.colour, self._quality, "RGB", "420")
        faults = self._feed.faults
        if self._random.random() < faults.truncate:
            jpeg = jpeg[: len(jpeg) // 2]
        if self._random.random() < faults.corrupt:
            jpeg = jpeg[:2] + b"\0" + jpeg[3:]  # of the first marker: entropy-coded data is not checked by JPEG
        with self._changed:
            self._number, self._jpeg = frame.number, jpeg
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, twin: MjpegTwin, *arguments: Any) -> None:
        self._twin = twin
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self._twin.unplugged:
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        self.end_headers()
        number = 0
        try:
            while not self._twin.unplugged:
                last, (number, jpeg) = number, self._twin.next_jpeg(number)
                if number != last:
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
        except OSError:  # the client has gone
            pass
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass
