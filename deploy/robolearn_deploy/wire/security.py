"""Who may connect, and what others on the network may read: tokens and TLS."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import shutil
import socket
import ssl
import subprocess
from pathlib import Path

from robolearn_data.schema import UserError

TOKEN_VARIABLE = "ROBOLEARN_TOKEN"
CERTIFICATE_DAYS = 825


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
            raise SecurityError(f"the token in {path} cannot be read: {error}") from error
    if token is not None and (not token or not all("!" <= c <= "~" for c in token)):
        raise SecurityError(f"the token in {where} must be printable ASCII without spaces, and not empty")
    return token


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


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server with this certificate (chain) and private key, both PEM.

    Raises:
        SecurityError: a file is missing, unreadable, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise SecurityError(
            f"{certificate} and {key} cannot be used for TLS: {error}; give a PEM certificate and its private key"
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
    # The certificate itself is known, see ``is_certificate``: under which name its owner is reached does not matter.
    context.check_hostname = False
    try:
        context.load_verify_locations(cafile=str(certificate))
    except (OSError, ssl.SSLError) as error:
        raise SecurityError(f"{certificate} is not a certificate: {error}; copy the one of the server here") from error
    return context


def is_certificate(der: bytes | None, certificate: Path) -> bool:
    """Whether the certificate that a peer showed (DER) is the one in ``certificate`` (PEM)."""
    return der is not None and hmac.compare_digest(der, ssl.PEM_cert_to_DER_cert(certificate.read_text()))


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the certificate, as browsers show it."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.read_text())).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


def self_signed(folder: Path, host: str) -> tuple[Path, Path]:
    """(certificate, key) for ``host`` in ``folder``: those that are there, or new ones made by openssl.

    Raises:
        SecurityError: openssl is not installed or failed.
    """
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if certificate.is_file() and key.is_file():
        return certificate, key
    if shutil.which("openssl") is None:
        raise SecurityError(
            "openssl, which makes certificates, is not installed; install it (apt install openssl) "
            "or give --tls-cert and --tls-key"
        )
    folder.mkdir(parents=True, exist_ok=True)
    names = ["DNS:localhost", f"DNS:{socket.gethostname()}", "IP:127.0.0.1", "IP:::1", _alternative_name(host)]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", str(CERTIFICATE_DAYS), "-subj", "/CN=robolearn", "-keyout", str(key), "-out", str(certificate)]
    command += ["-addext", f"subjectAltName={','.join(dict.fromkeys(names))}"]
    made = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if made.returncode:
        raise SecurityError(f"openssl could not make a certificate: {' '.join(made.stderr.split())[-300:]}")
    key.chmod(0o600)
    return certificate, key


def _alternative_name(host: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"
