"""Who may connect, and what others on the network may read: tokens and TLS."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
import ssl
from pathlib import Path

from robolearn_data.schema import UserError

TOKEN_VARIABLE = "ROBOLEARN_TOKEN"


class SecurityError(UserError):
    """A token or certificate is missing, unreadable or does not fit."""


def token_matches(authorization: str | None, token: str) -> bool:
    """Whether an Authorization header is "Bearer TOKEN" or, as openpi's clients send it, "Api-Key TOKEN".

    Takes as long for a wrong token as for the right one.
    """
    scheme, _, given = (authorization or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode(errors="replace"), token.encode())
    return same and scheme.lower() in ("bearer", "api-key")


def read_token(path: Path | None) -> str | None:
    """The token in ``path``, or else in the environment variable ROBOLEARN_TOKEN; None without either.

    Raises:
        SecurityError: the file is unreadable, or the token empty or not of printable ASCII without spaces.
    """
    if path is None:
        token, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    else:
        where = str(path)
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not ASCII"
            raise SecurityError(f"the token in {path} cannot be read: {reason}") from error
    if token is not None and (not token or not all("!" <= c <= "~" for c in token)):
        raise SecurityError(f"the token in {where} must be printable ASCII without spaces, and not empty")
    return token


def configuration() -> Path:
    """Where certificates and tokens that nobody named a place for are kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "robolearn"


def page_token() -> str:
    """Of this user's dashboards: kept, so that a browser is shown it only once; where that cannot be, a new one."""
    try:
        return make_token(configuration() / "page-token")
    except OSError:
        return secrets.token_urlsafe(32)


def make_token(path: Path) -> str:
    """Write a new random token to ``path``, readable by its owner alone; what is there already stays and counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        token = read_token(path)
        assert token is not None
        return token
    token = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address that does not listen yet: nobody else can have it any more. Raises OSError.

    One address: "localhost" is 127.0.0.1, which whoever connects to either name tries.
    """
    numeric = "127.0.0.1" if host == "localhost" else host or None
    found = socket.getaddrinfo(numeric, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, where = found[0]
    made = socket.socket(family, kind)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
    except BaseException:
        made.close()
        raise
    return made


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server with this certificate (chain) and private key, both PEM.

    Raises:
        SecurityError: a file is missing, unreadable, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password="")  # or OpenSSL asks the terminal for one
    except (OSError, ssl.SSLError) as error:
        raise SecurityError(
            f"{certificate} and {key} cannot be used for TLS: {error.strerror or error}; "
            "give a PEM certificate and its private key without a password"
        ) from error
    return context


def client_tls(certificate: Path | None) -> ssl.SSLContext:
    """For a client that trusts this very certificate of the server (PEM), or, without one, the system's authorities.

    Raises:
        SecurityError: the file is missing or not a certificate.
    """
    if certificate is None:
        return ssl.create_default_context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The client compares the certificate itself: under which name its owner is reached does not matter.
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may be signed by an authority that we do not know
    context.load_verify_locations(cadata=read_certificate(certificate))
    return context


def read_certificate(certificate: Path) -> bytes:
    """The first certificate of a PEM file, as DER.

    Raises:
        SecurityError: the file is missing or holds none.
    """
    try:
        text = certificate.read_text(encoding="ascii", errors="replace")
        begin = text.index(ssl.PEM_HEADER)
        der = ssl.PEM_cert_to_DER_cert(text[begin : text.index(ssl.PEM_FOOTER, begin)] + ssl.PEM_FOOTER)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except FileNotFoundError as error:
        raise SecurityError(f"there is no certificate {certificate}; copy the one of the server there") from error
    except (OSError, ValueError) as error:
        raise SecurityError(f"{certificate} is not a certificate (PEM); copy the one of the server there") from error
    return der


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the certificate, as browsers show it."""
    digest = hashlib.sha256(read_certificate(certificate)).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))
