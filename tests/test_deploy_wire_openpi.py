"""openpi on either end: its client against our server, and ours against a server that speaks as openpi's does.

openpi-client itself runs in an environment of its own (`make test-openpi`), which ROBOLEARN_OPENPI_PYTHON names; the
frames that it documents are always sent from bytes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve
from wire_fakes import HORIZON, SPEC, CountingPolicy, chunk, packb, request

from robolearn_deploy.wire.client import PeerError, RemotePolicy, RemotePolicyError
from robolearn_deploy.wire.server import ServerOptions, serving

PYTHON = os.environ.get("ROBOLEARN_OPENPI_PYTHON")
STATE_KEY = "observation/state"


def openpi_array(array: np.ndarray) -> dict[bytes, Any]:
    """As ``openpi_client.msgpack_numpy.pack_array`` documents it."""
    return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}


def read_openpi(message: bytes | str) -> Any:
    """As ``openpi_client.msgpack_numpy.unpackb`` reads it."""

    def hook(found: dict[Any, Any]) -> Any:
        if b"__ndarray__" in found:
            return np.ndarray(buffer=found[b"data"], dtype=np.dtype(found[b"dtype"]), shape=found[b"shape"])
        return found

    assert isinstance(message, bytes)
    return msgpack.unpackb(message, object_hook=hook)


def openpi_answer(message: bytes) -> bytes:
    """A chunk of ten actions that says which observation it belongs to, from the present on."""
    observation = read_openpi(message)
    number = float(observation[STATE_KEY][-1, 0])
    assert observation["prompt"] == f"task {number:g}"
    steps = np.arange(10)
    actions = np.stack([np.full(10, number), number * HORIZON + SPEC.start + steps], axis=1)
    return packb({"actions": openpi_array(actions), "server_timing": {"infer_ms": 1.5}})


@contextlib.contextmanager
def openpi_server(answer: Callable[[bytes], bytes | str] = openpi_answer) -> Iterator[str]:
    """Metadata first, then an answer to each observation, in their order. Yields its URL."""

    def handle(connection: ServerConnection) -> None:
        connection.send(packb({"robot": "so101"}))
        for message in connection:
            assert isinstance(message, bytes)
            connection.send(answer(message))

    with serve(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def remote(url: str, **options: Any) -> Iterator[RemotePolicy]:
    client = RemotePolicy(url, spec=SPEC, keys={"state": STATE_KEY}, **options)
    try:
        yield client
    finally:
        client.close()


@pytest.mark.skipif(PYTHON is None, reason="make test-openpi: needs an environment with openpi-client")
def test_openpi_client_works_against_our_server() -> None:
    assert PYTHON is not None
    script = Path(__file__).parent / "openpi" / "client.py"
    with serving(CountingPolicy, ServerOptions(port=0, token="secret", name="counting")) as server:
        command = [PYTHON, str(script), str(server.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert server.statistics.answered == 20


def test_the_documented_frames_of_openpi_work_against_our_server() -> None:
    with serving(CountingPolicy, ServerOptions(port=0, token="secret", name="counting")) as server:
        url = f"ws://127.0.0.1:{server.port}"
        headers = {"Authorization": "Api-Key secret"}
        with connect(url, compression=None, max_size=None, additional_headers=headers) as connection:
            metadata = read_openpi(connection.recv())
            assert metadata["name"] == "counting"
            for number in range(20, 40):
                state = np.full((2, 3), number, np.float64)
                connection.send(packb({"state": openpi_array(state), "prompt": "fold the towel"[:16]}))
                answer = read_openpi(connection.recv())
                np.testing.assert_array_equal(answer["actions"], chunk(number)[SPEC.start :])
                assert answer["server_timing"]["infer_ms"] >= 0
                assert ("prev_total_ms" in answer["server_timing"]) == (number > 20)


def test_requests_that_an_openpi_client_sends_ahead_are_all_answered_in_their_order() -> None:
    with (
        serving(lambda: CountingPolicy(seconds=0.02), ServerOptions(port=0)) as server,
        connect(f"ws://127.0.0.1:{server.port}", compression=None) as connection,
    ):
        connection.recv()
        for number in range(20, 30):
            connection.send(packb({"state": openpi_array(np.full((2, 3), number, np.float32)), "prompt": "x"}))
        for number in range(20, 30):
            assert (read_openpi(connection.recv())["actions"] == chunk(number)[SPEC.start :]).all()


def test_an_openpi_client_gets_failures_as_text_which_it_raises() -> None:
    with (
        serving(CountingPolicy, ServerOptions(port=0)) as server,
        connect(f"ws://127.0.0.1:{server.port}", compression=None) as connection,
    ):
        connection.recv()
        connection.send(packb({"state": openpi_array(np.full((2, 3), 13, np.float32)), "prompt": "x"}))
        answer = connection.recv()
        assert isinstance(answer, str)
        assert "RuntimeError" in answer
        assert "secret" not in answer


def test_our_client_works_against_a_server_of_openpi() -> None:
    with openpi_server() as url, remote(url) as client:
        for number in range(20, 40):
            (reply,) = client.infer(request(number, deadline_s=20.0))
            assert reply.final == HORIZON
            np.testing.assert_array_equal(reply.actions[SPEC.start :], chunk(number)[SPEC.start :])
            assert reply.timing_ms["total"] == 1.5
        assert client.clock() is None


def test_an_answer_of_openpi_that_comes_too_late_is_never_taken_for_the_next() -> None:
    def slow_at_first(message: bytes) -> bytes:
        if read_openpi(message)[STATE_KEY][-1, 0] == 20:
            time.sleep(0.5)
        return openpi_answer(message)

    with openpi_server(slow_at_first) as url, remote(url) as client:
        with pytest.raises(TimeoutError):
            list(client.infer(request(20, deadline_s=0.1)))
        (reply,) = client.infer(request(21, deadline_s=20.0))
        np.testing.assert_array_equal(reply.actions[SPEC.start :], chunk(21)[SPEC.start :])


@pytest.mark.parametrize(
    "answer",
    [
        "Traceback (most recent call last): ...",
        packb({"actions": openpi_array(np.full((10, 2), np.nan))}),
        packb({"actions": openpi_array(np.zeros((10, 3)))}),
        packb({"nothing": 1}),
        b"\xc1",
    ],
)
def test_failures_and_unusable_chunks_of_openpi_are_errors_of_the_peer(answer: bytes | str) -> None:
    with openpi_server(lambda _: answer) as url, remote(url) as client, pytest.raises(PeerError):
        list(client.infer(request(20, deadline_s=20.0)))


def test_a_server_of_openpi_needs_a_spec_from_the_user() -> None:
    with openpi_server() as url, pytest.raises(RemotePolicyError, match="give a spec"):
        RemotePolicy(url)
