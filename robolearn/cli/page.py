"""Options that say where the page of a run is, and how it is protected."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from robolearn.cli.parse import stderr_line
from robolearn.cli.tls import tls_files

if TYPE_CHECKING:
    from robolearn_deploy.dashboard.access import PageOptions


class PageWords(Protocol):
    """What a command takes for its page."""

    @property
    def page_host(self) -> str: ...

    @property
    def page_port(self) -> int: ...

    @property
    def page_cert(self) -> Path | None: ...

    @property
    def page_key(self) -> Path | None: ...

    @property
    def page_self_signed(self) -> bool: ...

    @property
    def token_file(self) -> Path | None: ...


def page_options(options: PageWords) -> PageOptions:
    """Raises UserError: options that contradict each other, a token that cannot be read."""
    from robolearn_deploy.dashboard.access import PageOptions
    from robolearn_deploy.wire.security import fingerprint, is_loopback, make_token, page_token, read_token

    host, names = options.page_host, ("--page-cert", "--page-key", "--page-self-signed")
    tls = tls_files(options.page_cert, options.page_key, make=options.page_self_signed, host=host, names=names)
    if tls is None and not is_loopback(host):
        stderr_line("without TLS anybody on the network can read the page's token; see --page-self-signed")
    if options.page_self_signed and tls is not None:
        stderr_line(f"the page's certificate has SHA-256 {fingerprint(tls[0])}")
    token = make_token(options.token_file) if options.token_file is not None else read_token(None)
    return PageOptions(host, options.page_port, token or page_token(), tls, show_token=token is None)


def carry_out_marks(dataset: Path) -> None:
    """Relabel and delete what viewers of the page have marked, now that nobody writes; says what was done, or why it
    is still to be done."""
    from robolearn_data.schema import UserError
    from robolearn_deploy.dashboard.marks import apply_marks, marks_file

    try:
        relabelled, deleted = apply_marks(dataset)
    except UserError as error:
        stderr_line(f"what was marked on the page is not done yet, and kept in {marks_file(dataset)}: {error}")
        return
    if relabelled or deleted:
        print(
            f"as marked on the page: {relabelled} episodes relabelled, {deleted} deleted (kept beside {dataset.name})"
        )
