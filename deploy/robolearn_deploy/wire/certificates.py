"""Certificates of our own making, for servers whose clients and viewers are told which one to expect."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import shutil
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

from robolearn_deploy.wire.security import SecurityError, configuration

CERTIFICATE_DAYS = 825
"""Longer ones are refused by Apple's devices."""


def self_signed(host: str, folder: Path | None = None) -> tuple[Path, Path]:
    """(certificate, key) for a server on ``host``: those that are there, or new ones made by openssl.

    They name this machine and all its addresses. New ones are made when the old have expired, or do not name the
    address by which others reach this machine now.

    Args:
        folder: by default one for this host in ``configuration()``.

    Raises:
        SecurityError: openssl is not installed or failed.
    """
    folder = folder or configuration() / "tls" / host.replace(":", "_")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    addresses, machine = machine_addresses(), socket.gethostname()
    others = [host] if host not in ("", "0.0.0.0", "::") else []
    if shutil.which("openssl") is None:
        raise SecurityError(
            "openssl, which makes certificates, is not installed; install it (apt install openssl) "
            "or give a certificate and its key"
        )
    if certificate.is_file() and key.is_file() and _serves(certificate, (others or addresses or ["localhost"])[0]):
        return certificate, key
    names = ["localhost", machine, f"{machine.partition('.')[0]}.local", "127.0.0.1", "::1", *addresses, *others]
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Both appear at once: a certificate and a key of two different runs would be of no use.
    made = Path(tempfile.mkdtemp(dir=folder.parent))  # which nobody else may read
    try:
        named = ",".join(_alternative_name(name) for name in dict.fromkeys(names))
        (made / "request.cnf").write_text(_REQUEST + f"subjectAltName = {named}\n")
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-config", str(made / "request.cnf"), "-days", str(CERTIFICATE_DAYS)]
        command += ["-keyout", str(made / key.name), "-out", str(made / certificate.name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise SecurityError(f"openssl could not make a certificate: {' '.join(done.stderr.split())[-300:]}")
        (made / "request.cnf").unlink()
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was quicker: what it made is as good
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return certificate, key


def machine_addresses() -> list[str]:
    """The IPv4 addresses of this machine, that by which others reach it first; without loopback."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):  # no network
            probe.connect(("192.0.2.1", 9))  # sends nothing (RFC 5737): the kernel chooses an interface
            found.append(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # without an address
                answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                found.append(socket.inet_ntoa(answer[20:24]))
    return [address for address in dict.fromkeys(found) if not ipaddress.ip_address(address).is_loopback]


# Not an authority: whoever trusts it trusts this server, and nothing that its key could sign.
_REQUEST = """[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = robolearn
[extensions]
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
"""


def _serves(certificate: Path, name: str) -> bool:
    """Whether ``certificate`` is for ``name`` too, and good for a day at least."""
    check = "-checkip" if _alternative_name(name).startswith("IP:") else "-checkhost"
    for question in (["-checkend", "86400"], [check, name]):
        asked = ["openssl", "x509", "-noout", "-in", str(certificate), *question]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode or "NOT match" in done.stdout:
            return False
    return True


def _alternative_name(name: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"
