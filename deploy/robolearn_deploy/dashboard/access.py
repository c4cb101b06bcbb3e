"""Who may see the page: where it listens, and which requests it answers.

A page that can move a robot is guarded against other pages in the viewer's own browser as well: a foreign page may
open a websocket to any address (so its Origin is looked at) and may have its own name resolve to this machine (DNS
rebinding; so the Host is looked at).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from websockets.datastructures import Headers

from robolearn_data.schema import UserError
from robolearn_deploy.instructions import Check, accept
from robolearn_deploy.wire.certificates import machine_addresses
from robolearn_deploy.wire.security import bind, is_loopback, server_tls

COOKIE = "robolearn_dashboard"


class PageError(UserError):
    """The page cannot be shown as asked."""


@dataclass(frozen=True)
class PageOptions:
    host: str = "127.0.0.1"
    port: int = 8040
    """0: any free one."""
    token: str | None = field(default=None, repr=False)
    """What viewers must show once. Needed for every host but loopback."""
    tls: tuple[Path, Path] | None = None
    """Certificate and private key, PEM: the page is at https, and nobody on the way sees the token."""
    show_token: bool = False
    """The address that is said holds the token, so that whoever can read it need not type it."""
    max_viewers: int = 16
    check_instruction: Check = accept
    """Of what viewers say to the policy. It may take a while."""


def listen(options: PageOptions) -> socket.socket:
    """A socket that listens where the options say.

    Raises:
        PageError: others could press the buttons and no token is demanded of them; the port is taken; the host is not
            of this machine.
        SecurityError: the files for TLS cannot be used.
    """
    if options.tls is not None:
        server_tls(*options.tls)
    if options.token is None and not is_loopback(options.host):
        raise PageError(
            f"on host {options.host} anybody on the network could move the robot; give a token "
            "(--token-file, or set ROBOLEARN_TOKEN), or leave the page on 127.0.0.1"
        )
    try:
        made = bind(options.host, options.port)
        made.listen()
        return made
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PageError(
            f"the page cannot listen on {options.host} port {options.port}: {reason}; "
            "give another --page-port, or a --page-host of this machine"
        ) from error


def address(listening: socket.socket, options: PageOptions) -> str:
    """Where a browser on this machine, or on its network, finds the page."""
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = next(iter(machine_addresses()), "localhost")
    scheme, shown = "https" if options.tls else "http", f"[{host}]" if ":" in host else host
    token = f"?token={quote(options.token, safe='')}" if options.show_token and options.token else ""
    return f"{scheme}://{shown}:{port}/{token}"


class Door:
    """Decides on requests."""

    def __init__(self, options: PageOptions) -> None:
        self._token, self._secure = options.token, "; Secure" if options.tls else ""
        # The token itself is not left in a browser's store; the cookie holds as long as the token does.
        self._pass = hmac.digest((self._token or "").encode(), COOKIE.encode(), hashlib.sha256).hex()
        self._local = is_loopback(options.host)
        self._host, self._machine = options.host.lower(), socket.gethostname().lower().partition(".")[0]

    def knows_host(self, headers: Headers) -> bool:
        """The browser was told a name of this machine. Any number is one: no resolver was asked for it.

        Where others may connect, this machine's name in any domain is good enough: they need the token as well.
        """
        found = headers.get_all("Host")
        try:
            host = urlsplit(f"//{found[0]}").hostname if len(found) == 1 else None
        except ValueError:
            return False
        if not host:
            return False
        try:
            number = ipaddress.ip_address(host)
        except ValueError:
            own = not self._local and (host == self._host or host.partition(".")[0] == self._machine)
            return own or host == "localhost"
        return number.is_loopback or not self._local

    def same_origin(self, headers: Headers) -> bool:
        """The request comes from our own page."""
        origins, hosts = headers.get_all("Origin"), headers.get_all("Host")
        return len(origins) == len(hosts) == 1 and origins[0] in (f"http://{hosts[0]}", f"https://{hosts[0]}")

    def cookie_for(self, path: str) -> str | None:
        """The Set-Cookie header for a request that brings the token in its query; None if it is wrong."""
        given = parse_qs(urlsplit(path).query).get("token", [""])[0]
        if self._token is None or not hmac.compare_digest(given.encode(errors="replace"), self._token.encode()):
            return None
        return f"{COOKIE}={self._pass}; HttpOnly; SameSite=Strict; Path=/; Max-Age=2592000{self._secure}"

    def lets_in(self, headers: Headers) -> bool:
        """No token is demanded, or the cookie is there."""
        if self._token is None:
            return True
        # Split by hand: the library gives up at the first cookie that some other page of this host wrote badly.
        cookies = (cookie.strip().partition("=") for line in headers.get_all("Cookie") for cookie in line.split(";"))
        return any(
            name == COOKIE and hmac.compare_digest(value.encode(errors="replace"), self._pass.encode())
            for name, _, value in cookies
        )
