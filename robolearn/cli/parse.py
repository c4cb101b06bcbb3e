"""Turns command-line words into a typed dataclass, and every mistake into one line with exit code 2."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

import docstring_parser
import tyro

from robolearn_data.schema import UserError

T = TypeVar("T")

DatasetPath = Annotated[str, tyro.conf.arg(metavar="PATH|URL")]
"""A dataset in a folder, or in an object store: s3://bucket/name."""

_MARKERS = (tyro.conf.AvoidSubcommands, tyro.conf.PositionalMetavarFromFieldName)


class UsageError(UserError):
    """The words on the command line are wrong."""


def parse(cls: type[T], argv: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """Read ``argv`` into ``cls`` through tyro.

    Nested fields are ``--policy.trunk.widths 32 64``; a bool is ``--json`` or ``--no-json``.

    Args:
        default: values of the options that ``argv`` does not name; the defaults of ``cls`` if None.

    Raises:
        UsageError: anything misspelt, missing or of a wrong type.
        SystemExit: with code 0 after ``--help``.
    """
    extra: dict[str, Any] = {} if default is None else {"default": default}

    def read(words: Sequence[str]) -> tuple[T, list[str]]:
        with _joined_docstrings():
            return tyro.cli(cls, prog=prog, args=list(words), config=_MARKERS, return_unknown_args=True, **extra)

    if "-h" in argv or "--help" in argv:
        read(["--help"])
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught), _terminal(columns=10_000):
            value, unknown = read(argv)
    except SystemExit:
        names = _option_names(read)
        # A misspelt option is the likelier cause of whatever else is missing, so it is named first.
        unknown = [word for word in argv if word.startswith("--") and _option(word) not in names]
        message = _unknown_words(unknown, names) if unknown else _one_line(caught.getvalue())
        raise UsageError(f"{message}; see `{prog} --help`") from None
    if unknown:
        raise UsageError(f"{_unknown_words(unknown, _option_names(read))}; see `{prog} --help`")
    return value


def stderr_line(message: str) -> None:
    """Print ``message`` on standard error as exactly one line."""
    text = re.sub(r"\s*[\r\n]\s*", " ", message.strip())
    print(f"robolearn: {text}", file=sys.stderr)


def _one_line(box: str) -> str:
    """The text of tyro's boxed message without frame, title, colours, rules and footer."""
    said = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:
        row = line[2:].rstrip(" │╯")  # the frame's side takes two columns
        text = row.strip(" ─-") and row.strip()
        if not text or text.startswith("For full helptext") or text.endswith("--help"):
            continue
        explains = row.startswith(" " * 8)  # the help text of a missing argument is indented twice
        said.append(f"({text.removesuffix(' (required)')})" if explains else text)
    text = re.sub(r"^Missing from [^:]+:", "missing", " ".join(said)).removeprefix("Error parsing ")
    return text.replace(" Argument helptext:", ";").rstrip(".") or "the command line cannot be read"


def _unknown_words(words: Sequence[str], names: Sequence[str]) -> str:
    options = [_option(word) for word in words if word.startswith("-")]
    if not options:
        return f"unexpected {', '.join(map(repr, words))}; options: {', '.join(names)}"
    return "; ".join(_unknown_option(option, names) for option in options)


def _unknown_option(option: str, names: Sequence[str]) -> str:
    ends = [name for name in names if name.endswith("." + option.lstrip("-"))]  # the last part alone was given
    meant = ends or difflib.get_close_matches(option, names, n=3, cutoff=0.7)
    if meant:
        return f"unknown option {option}; did you mean {' or '.join(meant)}?"
    return f"unknown option {option}; options: {', '.join(names)}"


def _option(word: str) -> str:
    """``--dry_run=3`` -> ``--dry-run``, as tyro spells it."""
    return word.partition("=")[0].replace("_", "-")


def _option_names(read: Callable[[Sequence[str]], object]) -> list[str]:
    """The options that ``read`` understands, from its help text, in the order shown there."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit), _terminal(columns=100):
        read(["--help"])
    rows = re.findall(r"^[│ ]*(--?[A-Za-z].*)$", re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue()), flags=re.MULTILINE)
    spelt = [word.rstrip(",") for row in rows for word in itertools.takewhile(lambda w: w.startswith("-"), row.split())]
    return [word for word in dict.fromkeys(spelt) if word.startswith("--") and word != "--help"]


@contextlib.contextmanager
def _joined_docstrings() -> Iterator[None]:
    """tyro takes an indented line of an option's docstring for one that must stay a line. What it reads here has none:
    only empty lines and lists ("- ") break."""
    read = docstring_parser.parse_from_object

    def joined(obj: Any) -> docstring_parser.Docstring:
        found = read(obj)
        for option in found.params:
            option.description = re.sub(r"(?<!\n)\n[ \t]*(?!\n|- )", " ", option.description or "") or None
        return found

    docstring_parser.parse_from_object = joined
    try:
        yield
    finally:
        docstring_parser.parse_from_object = read


@contextlib.contextmanager
def _terminal(columns: int) -> Iterator[None]:
    """Sets the width tyro writes for: wide keeps each message on one line, narrow keeps options in one column."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
