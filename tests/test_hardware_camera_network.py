"""MJPEG over HTTP against its twin and against servers that mean harm; RTSP and video files through FFmpeg."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg

from robolearn_hardware.cameras.files import VideoConfig
from robolearn_hardware.cameras.mjpeg import MAX_JPEG_BYTES, MjpegConfig
from robolearn_hardware.cameras.rtsp import RtspConfig
from robolearn_hardware.clock import SECOND_NS
from robolearn_hardware.devices import Camera, DeviceError, DeviceGoneError, DeviceTimeoutError, Frame
from robolearn_hardware.twins.host import Twins
from robolearn_hardware.twins.pictures import Pattern, PictureSpec, bar_at, read_bar, read_time

SPEC = PictureSpec("test", 160, 120, 144.0)
MS = 1_000_000


@pytest.fixture(scope="module")
def twins() -> Iterator[Twins]:
    with Twins() as found:
        yield found


@pytest.fixture(scope="module")
def config(twins: Twins) -> MjpegConfig:
    return MjpegConfig("twin", 160, 120).with_twin("front", twins)


def jpeg(time_ns: int = 0, spec: PictureSpec = SPEC) -> bytes:
    return simplejpeg.encode_jpeg(Pattern(spec).at(time_ns)[0], 90, "RGB", "420")


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=xyz\r\n\r\n"


def part(data: bytes, length: str | None = None) -> bytes:
    size = f"Content-Length: {len(data) if length is None else length}\r\n" if length != "" else ""
    return b"--xyz\r\nContent-Type: image/jpeg\r\n" + size.encode() + b"\r\n" + data + b"\r\n"


@contextmanager
def serve(answer: Callable[[socket.socket], None], requests: list[bytes] | None = None) -> Iterator[MjpegConfig]:
    """A server on which every connection gets ``answer``, which may raise when the client has gone."""
    server = socket.create_server(("127.0.0.1", 0))
    requests = [] if requests is None else requests

    def talk(client: socket.socket) -> None:
        with client:
            try:
                requests.append(client.recv(4096))
                answer(client)
            except OSError:
                pass

    def run() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client,), daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield MjpegConfig(f"http://127.0.0.1:{server.getsockname()[1]}/stream?quality=9", 160, 120)
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()
    assert requests[0].startswith(b"GET /stream?quality=9 HTTP/1.1\r\n")


def send(*parts: bytes, then: float = 0.0) -> Callable[[socket.socket], None]:
    """Send these and wait before the connection is closed."""

    def answer(client: socket.socket) -> None:
        client.sendall(b"".join(parts))
        time.sleep(then)

    return answer


def connected(config: MjpegConfig | VideoConfig | RtspConfig) -> Camera:
    camera = config.open("front")
    camera.connect()
    return camera


def test_pictures_come_in_order_with_the_time_their_first_byte_came(config: MjpegConfig) -> None:
    camera = connected(config)
    frames = [camera.read() for _ in range(10)]
    camera.close()
    written = [read_time(frame.colour) for frame in frames]
    assert written == sorted(set(written))
    for frame, time_ns in zip(frames, written, strict=True):
        assert abs(read_bar(frame.colour) - bar_at(time_ns)) < 0.03
        assert 0 <= frame.capture_ns - time_ns < SECOND_NS


def test_pictures_that_nobody_read_are_skipped_and_counted(config: MjpegConfig) -> None:
    camera = connected(config)
    first = camera.read()
    time.sleep(1)
    second = camera.read()
    camera.close()
    assert second.number - first.number > 5
    assert read_time(second.colour) - read_time(first.colour) > SECOND_NS // 2


@pytest.mark.parametrize("length", [None, ""])
def test_parts_are_found_with_and_without_a_stated_length(length: str | None) -> None:

    def answer(client: socket.socket) -> None:
        client.sendall(HEAD)
        for number in range(1, 1000):
            data = part(jpeg(number * SECOND_NS), length)
            for start in range(0, len(data), 1000):
                client.sendall(data[start : start + 1000])
                time.sleep(0.001)

    with serve(answer) as config:
        camera = connected(config)
        written = [read_time(camera.read().colour) for _ in range(10)]
        camera.close()
    assert written == sorted(set(written))


def test_a_chunked_answer_is_understood_and_the_password_of_the_url_is_sent() -> None:
    requests = []

    def answer(client: socket.socket) -> None:
        client.sendall(HEAD.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"))
        for number in range(1, 1000):
            data = part(jpeg(number * SECOND_NS))
            for start in range(0, len(data), 777):
                piece = data[start : start + 777]
                client.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            time.sleep(0.01)

    with serve(answer, requests) as config:
        camera = connected(replace(config, url=config.url.replace("http://", "http://eve:p%40ss@")))
        read_time(camera.read().colour)
        camera.close()
    assert b"Authorization: Basic " + base64.b64encode(b"eve:p@ss") in requests[0].split(b"\r\n")


def test_truncated_and_corrupt_pictures_are_left_out_and_counted(config: MjpegConfig, twins: Twins) -> None:
    camera = connected(config)
    for fault in ("truncate", "corrupt"):
        twins["front"].fault(**{fault: 0.5})
        frames = [camera.read() for _ in range(15)]
        for frame in frames:
            read_time(frame.colour)  # top and bottom are there
        assert frames[-1].number - frames[0].number > 15
    twins["front"].fault(truncate=1.0)
    time.sleep(0.1)
    with pytest.raises(DeviceTimeoutError, match="sends no picture that is whole within 1 s"):
        read_on(camera)
    twins["front"].fault()
    camera.read()
    camera.close()


def read_on(camera: Camera) -> None:
    """Until it raises."""
    while True:
        camera.read()


def test_a_stream_that_stalls_times_out_and_one_that_breaks_off_is_gone(config: MjpegConfig, twins: Twins) -> None:
    camera = connected(config)
    twins["front"].fault(lose=1.0)
    with pytest.raises(DeviceTimeoutError, match="sends no picture that is whole within 1 s"):
        read_on(camera)
    twins["front"].fault()
    camera.read()
    twins["front"].fault(unplugged=True)
    with pytest.raises(DeviceGoneError, match="is not reached: the stream has ended"):
        read_on(camera)
    with pytest.raises(DeviceGoneError, match="is not reached"):
        camera.connect()
    twins["front"].fault()
    camera.connect()
    camera.read()
    camera.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (send(b"HTTP/1.1 404 Not Found\r\n\r\n"), r"answers 404 Not Found to '/stream\?quality=9'; check the URL"),
        (send(b"HTTP/1.1 401 Unauthorized\r\n\r\n"), "answers 401 Unauthorized"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>"), "sends 'text/html', an MJPEG stream is"),
        (send(b"HTTP/1.1 200 OK\r\n\r\nhello"), "sends 'something without a type'"),
        (send(b"SSH-2.0-OpenSSH_9.6\r\n"), "is not reached"),
        (send(b""), "is not reached"),
        (send(HEAD, b"x" * 100000), "no MJPEG stream: a line without end"),
        (send(HEAD, b"x\r\n" * 1000), "no boundary between pictures"),
        (send(HEAD, b"--xyz\r\n" + b"a: b\r\n" * 1000), "a part without end of its header"),
        (send(HEAD, part(b"", "-5")), "a picture of '-5' bytes"),
        (send(HEAD, part(b"", "1e9")), "a picture of '1e9' bytes"),
        (send(HEAD, part(b"", str(MAX_JPEG_BYTES + 1))), rf"bytes; at most {MAX_JPEG_BYTES}"),
        (send(HEAD, part(b"", "9" * 50)), "a picture of '99999"),
        (
            send(HEAD, part(jpeg(spec=PictureSpec("other", 320, 240, 1.0))), then=3),
            "pictures of 320x240, not 160x120; set",
        ),
    ],
)
def test_a_server_that_is_no_mjpeg_camera_is_named_so(answer: Callable[[socket.socket], None], message: str) -> None:
    with serve(answer) as config, pytest.raises(DeviceError, match=message):
        connected(config)


def test_a_huge_picture_is_refused_by_its_header_and_not_decoded() -> None:
    small = jpeg()
    at = small.index(b"\xff\xc0")  # start of frame: length 2, precision 1, height 2, width 2
    huge = small[: at + 5] + (65000).to_bytes(2, "big") * 2 + small[at + 9 :]
    with serve(send(HEAD, part(huge), then=3)) as config, pytest.raises(DeviceError, match="65000x65000, not 160x120"):
        connected(config)


@pytest.mark.slow
def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_the_driver_past_its_deadline() -> None:
    def drip(client: socket.socket) -> None:
        for byte in HEAD * 10:
            client.sendall(bytes([byte]))
            time.sleep(0.3)

    with serve(drip) as config:
        camera = config.open("front")
        start = time.monotonic()
        with pytest.raises(DeviceTimeoutError, match="is not open within 10 s"):
            camera.connect()
        assert time.monotonic() - start < 20
        camera.close()


def test_no_server_and_no_url_are_told_apart() -> None:
    with pytest.raises(DeviceGoneError, match=r"'front' at 127\.0\.0\.1:1 is not reached: Connection refused"):
        connected(MjpegConfig("http://127.0.0.1:1/"))
    for url in ("ftp://camera/x", "front door", "http://:80/x", "http://camera:99999/"):
        with pytest.raises(DeviceError, match="is no address of a camera; valid: http://host:port/path"):
            MjpegConfig(url).open("front").connect()


@pytest.fixture(scope="module")
def stream(twins: Twins) -> RtspConfig:
    return RtspConfig("twin", 160, 120).with_twin("door", twins)


def test_an_rtsp_stream_comes_in_order_at_the_times_of_the_cameras_own_clock(stream: RtspConfig, twins: Twins) -> None:
    twins["door"].fault(spikes=0.3)
    camera = connected(stream)
    frames = [camera.read() for _ in range(40)]
    camera.close()
    twins["door"].fault()
    written = [read_time(frame.colour) for frame in frames]
    assert written == sorted(set(written))
    for frame, time_ns in zip(frames, written, strict=True):
        assert abs(read_bar(frame.colour) - bar_at(time_ns)) < 0.03
        assert time_ns < frame.capture_ns <= frame.received_ns
    delays = np.array([frame.received_ns - time_ns for frame, time_ns in zip(frames, written, strict=True)]) / MS
    errors = np.array([frame.capture_ns - time_ns for frame, time_ns in zip(frames, written, strict=True)]) / MS
    assert np.ptp(delays[20:]) > 40  # each third frame is 50 ms late
    assert np.ptp(errors[20:]) < 20  # and its time is not


def test_an_rtsp_stream_that_stalls_times_out_breaks_off_and_comes_back(stream: RtspConfig, twins: Twins) -> None:
    camera = connected(stream)
    twins["door"].fault(lose=1.0)
    with pytest.raises(DeviceTimeoutError, match="within 1 s"):
        read_on(camera)
    twins["door"].fault(unplugged=True)
    with pytest.raises(DeviceGoneError, match=r"has ended the stream|has broken off"):
        read_on(camera)
    with pytest.raises(DeviceGoneError, match="is not reached, or sends no video"):
        camera.connect()
    twins["door"].fault()
    camera.connect()
    camera.read()
    camera.close()


def test_an_rtsp_camera_of_another_size_or_transport_is_refused(stream: RtspConfig) -> None:
    with pytest.raises(DeviceError, match="sends pictures of 160x120, not 640x480; set width and height"):
        connected(RtspConfig(stream.url))
    with pytest.raises(DeviceGoneError, match="is not reached, or sends no video"):
        connected(replace(stream, transport="udp"))  # the twin has TCP only


@pytest.mark.slow
def test_an_rtsp_server_that_never_answers_does_not_hold_the_driver_past_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        camera = RtspConfig(f"rtsp://127.0.0.1:{server.getsockname()[1]}/x").open("door")
        start = time.monotonic()
        with pytest.raises((DeviceGoneError, DeviceTimeoutError)):
            camera.connect()
        assert time.monotonic() - start < 20


def make_video(path: Path, seconds: float, rate: int = 20) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 160, 120, "yuv420p", 4_000_000
        pattern = Pattern(SPEC)
        for number in range(round(seconds * rate)):
            picture = pattern.at(number * SECOND_NS // rate)[0]
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_a_video_file_plays_at_its_own_speed_and_begins_again(tmp_path: Path) -> None:
    make_video(tmp_path / "film.mp4", 1.0)
    camera = connected(VideoConfig(tmp_path / "film.mp4"))
    assert (camera.info.width, camera.info.height, camera.info.rate_hz) == (160, 120, 20)
    frames: list[Frame] = []
    written: list[int] = []
    while not (np.diff(written) < 0).any():
        frames.append(camera.read())
        written.append(read_time(frames[-1].colour))
    camera.close()
    again = int(np.flatnonzero(np.diff(written) < 0)[0])
    first = frames[0].capture_ns - written[0]
    for frame, time_ns in zip(frames[: again + 1], written, strict=False):
        assert abs(frame.capture_ns - time_ns - first) < MS
        assert frame.capture_ns <= frame.received_ns
    assert abs(frames[again + 1].capture_ns - frames[0].capture_ns - SECOND_NS) < 2 * SECOND_NS


def test_a_video_file_that_is_not_repeated_ends_and_stays_at_its_end(tmp_path: Path) -> None:
    make_video(tmp_path / "film.mp4", 0.3)
    camera = connected(VideoConfig(tmp_path / "film.mp4", repeat=False))
    with pytest.raises(DeviceGoneError, match=r"film\.mp4 is at its end; repeat: true begins again"):
        read_on(camera)
    with pytest.raises(DeviceGoneError, match="is at its end"):
        camera.connect()


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    for name in ("missing.mp4", "notes.txt"):
        with pytest.raises(DeviceError, match=r"cannot be played: .*; is it a video"):
            connected(VideoConfig(tmp_path / name))
