"""Who gets to a policy server, and what others on the network could do: tokens, certificates, addresses."""

from __future__ import annotations

import contextlib
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from wire_bench import DEADLINE_S, ask, raw, remote, served, wait_for
from wire_fakes import CountingPolicy, chunk

from robolearn_deploy.wire import certificates, strangers
from robolearn_deploy.wire.certificates import machine_addresses, self_signed
from robolearn_deploy.wire.client import RemotePolicy, RemotePolicyError
from robolearn_deploy.wire.security import (
    SecurityError,
    make_token,
    read_token,
    server_tls,
    token_matches,
)
from robolearn_deploy.wire.server import PolicyServer, ServerOptions


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "", "secret", "Basic secret", "Bearer secret x"])
def test_without_the_right_token_nobody_gets_in(header: str | None) -> None:
    with served(token="secret") as server:
        headers = {"Authorization": header} if header is not None else None
        with pytest.raises(InvalidStatus) as caught, raw(server, additional_headers=headers):
            pass
        assert caught.value.response.status_code == 401
        assert server.statistics.refused == 1


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "Api-Key secret"])
def test_with_the_right_token_our_clients_and_those_of_openpi_get_in(header: str) -> None:
    with served(token="secret") as server, raw(server, additional_headers={"Authorization": header}):
        pass


def test_a_remote_policy_shows_its_token_and_says_when_it_is_refused() -> None:
    with served(token="secret") as server:
        with remote(server, token="secret") as client:
            ask(client, 20)
        with pytest.raises(RemotePolicyError, match="refuses the token"):
            RemotePolicy(f"ws://127.0.0.1:{server.port}", token="wrong")


def test_a_host_that_others_can_reach_demands_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "robot.local"):
        with pytest.raises(SecurityError, match="--token-file"):
            PolicyServer(CountingPolicy, ServerOptions(host=host))
    PolicyServer(CountingPolicy, ServerOptions(host="0.0.0.0", token="x"))
    PolicyServer(CountingPolicy, ServerOptions(host="::1"))


def test_a_web_page_cannot_use_a_policy_on_this_machine() -> None:
    with served() as server, pytest.raises(InvalidStatus), raw(server, origin="http://evil.example"):
        pass


def test_tls_with_a_certificate_of_our_own_making_is_trusted_by_whoever_has_it(tmp_path: Path) -> None:
    certificate, key = self_signed("127.0.0.1", tmp_path / "tls")
    assert key.stat().st_mode & 0o077 == 0
    with served(tls=server_tls(certificate, key), token="secret") as server:
        url = f"wss://localhost:{server.port}"
        client = RemotePolicy(url, token="secret", certificate=certificate)
        assert (ask(client, 20)[0].actions == chunk(20)).all()
        client.close()
        with pytest.raises(RemotePolicyError, match="not trusted"):
            RemotePolicy(url, token="secret")
        other, _ = self_signed("127.0.0.1", tmp_path / "other")
        with pytest.raises(RemotePolicyError, match="not trusted"):
            RemotePolicy(url, token="secret", certificate=other)
        with pytest.raises(RemotePolicyError, match="no policy can be used"):
            RemotePolicy(f"ws://localhost:{server.port}", token="secret", connect_s=2.0)


def test_a_certificate_is_made_once_and_again_when_it_has_expired_or_is_for_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def certificate(host: str = "robot.local") -> bytes:
        certificate, key = self_signed(host, tmp_path / "tls")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        server_tls(certificate, key)  # they belong together
        assert sorted(path.name for path in tmp_path.iterdir()) == ["tls"], "nothing else is left"
        return certificate.read_bytes()

    with monkeypatch.context() as patched:
        patched.setattr(certificates, "CERTIFICATE_DAYS", 1)
        short = certificate()
    first = certificate()
    assert first != short, "what expires within a day is made anew"
    assert certificate() == first
    assert certificate("192.168.77.5") != first


def test_a_certificate_names_every_address_of_this_machine_and_cannot_sign_others(tmp_path: Path) -> None:
    certificate, _ = self_signed("0.0.0.0", tmp_path / "tls")
    shown = subprocess.run(["openssl", "x509", "-noout", "-text", "-in", certificate], capture_output=True, text=True)
    for name in ("DNS:localhost", f"DNS:{socket.gethostname()}", "IP Address:127.0.0.1", "CA:FALSE"):
        assert name in shown.stdout
    for address in machine_addresses():
        assert f"IP Address:{address}" in shown.stdout
    assert "0.0.0.0" not in shown.stdout


def test_a_server_on_localhost_is_found_under_its_name_and_its_number() -> None:
    with served(host="localhost") as server:
        for name in ("localhost", "127.0.0.1"):
            client = RemotePolicy(f"ws://{name}:{server.port}")
            assert (ask(client, 20)[0].actions == chunk(20)).all()
            client.close()


def test_who_begins_no_tls_is_hung_up_on_soon(tmp_path: Path) -> None:
    with served(tls=server_tls(*self_signed("127.0.0.1", tmp_path / "tls")), handshake_s=0.5) as server:
        silent = socket.create_connection(("127.0.0.1", server.port))
        silent.settimeout(DEADLINE_S)
        assert silent.recv(1) == b""
        silent.close()


@pytest.mark.parametrize("tls", [False, True])
def test_hundreds_who_connect_and_say_nothing_hold_few_places_and_keep_nobody_out(tls: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"token": "secret", "handshake_s": 3 * DEADLINE_S}
    access: dict[str, Any] = {"token": "secret"}
    if tls:
        certificate, key = self_signed("127.0.0.1", tmp_path / "tls")
        options["tls"], access["certificate"] = server_tls(certificate, key), certificate
    with served(**options) as server, contextlib.ExitStack() as stack:
        silent: list[socket.socket] = []

        def crowd() -> None:
            for _ in range(300):
                silent.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)))

        crowd()
        client = RemotePolicy(f"{'wss' if tls else 'ws'}://127.0.0.1:{server.port}", **access)
        stack.callback(client.close)
        crowd()
        assert (ask(client, 20)[0].actions == chunk(20)).all()
        wait_for(lambda: sum(map(still_open, silent)) <= strangers.MOST)
        assert (ask(client, 21)[0].actions == chunk(21)).all(), "who was let in is not among those hung up on"


def test_those_who_say_nothing_are_hung_up_on_soon() -> None:
    with served(handshake_s=0.5) as server, contextlib.ExitStack() as stack:
        where = ("127.0.0.1", server.port)
        silent = [stack.enter_context(socket.create_connection(where, DEADLINE_S)) for _ in range(20)]
        wait_for(lambda: not any(map(still_open, silent)))


def still_open(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_tls_where_there_is_none_and_none_where_there_is_are_told_apart(tmp_path: Path) -> None:
    certificate, key = self_signed("127.0.0.1", tmp_path / "tls")
    with served(tls=server_tls(certificate, key)) as server, pytest.raises(RemotePolicyError, match="give wss://"):
        RemotePolicy(f"ws://127.0.0.1:{server.port}", connect_s=3.0)
    with served() as server, pytest.raises(RemotePolicyError, match="give ws://"):
        RemotePolicy(f"wss://127.0.0.1:{server.port}", certificate=certificate, connect_s=3.0)
    with pytest.raises(RemotePolicyError, match="a certificate for it is given; give wss://"):
        RemotePolicy("ws://127.0.0.1:1", certificate=certificate)


def test_a_certificate_that_an_authority_has_signed_is_pinned_as_well(tmp_path: Path) -> None:
    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *new_key, "-subj", "/CN=robot", "-keyout", "key.pem", "-out", "request.pem")
    openssl("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-out", "signed.pem")
    with served(tls=server_tls(tmp_path / "signed.pem", tmp_path / "key.pem")) as server:
        client = RemotePolicy(f"wss://127.0.0.1:{server.port}", certificate=tmp_path / "signed.pem")
        assert (ask(client, 20)[0].actions == chunk(20)).all()
        client.close()
        with pytest.raises(RemotePolicyError, match="not trusted"):
            RemotePolicy(f"wss://127.0.0.1:{server.port}", certificate=tmp_path / "ca.pem")


def test_files_that_are_no_certificate_are_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("nothing")
    with pytest.raises(SecurityError, match="cannot be used for TLS"):
        server_tls(tmp_path / "a.pem", tmp_path / "b.pem")
    with pytest.raises(SecurityError, match="is not a certificate"):
        RemotePolicy("wss://127.0.0.1:1", certificate=tmp_path / "a.pem")
    with pytest.raises(SecurityError, match="there is no certificate"):
        RemotePolicy("wss://127.0.0.1:1", certificate=tmp_path / "c.pem")


def test_a_token_is_made_once_and_read_by_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = make_token(tmp_path / "new" / "token")
    assert (tmp_path / "new" / "token").stat().st_mode & 0o077 == 0
    assert make_token(tmp_path / "new" / "token") == token
    assert read_token(tmp_path / "new" / "token") == token
    assert len(token) >= 40
    assert token_matches(f"Bearer {token}", token)
    monkeypatch.setenv("ROBOLEARN_TOKEN", "other")
    assert read_token(None) == "other"
    monkeypatch.delenv("ROBOLEARN_TOKEN")
    assert read_token(None) is None
    for bad in ("", "a b", "\x07"):
        (tmp_path / "bad").write_text(bad)
        with pytest.raises(SecurityError):
            read_token(tmp_path / "bad")


@pytest.mark.parametrize("url", ["http://x:1", "127.0.0.1:8000", "ws://", "", "ws://x:0", "ws://x:99999", "ws://x:y"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RemotePolicyError, match=r"ws://HOST:PORT"):
        RemotePolicy(url)


def test_no_server_is_an_error_that_says_so() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(RemotePolicyError, match=r"no policy can be used at ws://.*: nobody listens there"):
            RemotePolicy(f"ws://127.0.0.1:{unused.getsockname()[1]}", connect_s=0.3)
