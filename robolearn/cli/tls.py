"""Options that say with which certificate a server of ours speaks TLS."""

from __future__ import annotations

from pathlib import Path

from robolearn_data.schema import UserError


def tls_files(
    certificate: Path | None, key: Path | None, *, make: bool, host: str, names: tuple[str, str, str]
) -> tuple[Path, Path] | None:
    """(certificate, private key), both PEM; None: no TLS.

    Args:
        make: make them, or take those that were made before.
        host: that the server listens on.
        names: of the three options, as users write them.

    Raises:
        UserError: they contradict each other, or none can be made.
    """
    from robolearn_deploy.wire.certificates import self_signed

    for_certificate, for_key, for_make = names
    if (certificate is None) != (key is None):
        raise UserError(f"{for_certificate} and {for_key} belong together; give both, or {for_make}")
    if certificate is not None and key is not None:
        if make:
            raise UserError(f"{for_make} makes a certificate, {for_certificate} names one; give one of the two")
        return certificate, key
    return self_signed(host) if make else None
