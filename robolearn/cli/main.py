"""`robolearn COMMAND ...`: finds the command's module, parses its options and reports mistakes in one line."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from robolearn.cli.parse import UsageError, parse, stderr_line
from robolearn_data.schema import UserError

COMMANDS = {
    "collect": "record demonstrations into a dataset",
    "train": "train a policy from a dataset",
    "latent": "actions found in video, to train policies where few actions are known",
    "eval": "run a checkpoint in simulation and count successes",
    "deploy": "run a policy in real time, on a robot or in a simulated world",
    "serve": "a checkpoint for robots on a network",
    "data": "look at, check, import and export datasets",
    "find": "which port and which camera is which",
    "doctor": "look at this machine and at every device of a rig",
    "calibrate": "joints of servo arms, cameras, latencies",
    "teleop": "follower arms do what leader arms do",
    "demo": "collect, train, evaluate and deploy in one go",
}
"""Command -> one line of help. Each is the module robolearn.cli.<command> with ``COMMANDS``: name -> (options, run)."""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with interrupts_kept():
            code = _dispatch(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        stderr_line(f"error: {error}")
        return 2
    except BrokenPipeError:
        # The reader of our output has gone (`robolearn ... | head`); nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        stderr_line(f"error: {_explain(error)}")
        return 2
    except KeyboardInterrupt:
        stderr_line("stopped")
        return 130


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Within, a Ctrl-C that met a finalizer comes again: Python drops what is raised in one."""
    report = sys.unraisablehook
    waiting: threading.Timer | None = None

    def again(dropped: Any) -> None:
        nonlocal waiting
        if dropped.exc_type is not KeyboardInterrupt:
            return report(dropped)
        # A moment later, for what is raised in here is dropped too; to the main thread, for it may sleep.
        if waiting:
            waiting.cancel()
        waiting = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        waiting.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = report
        if waiting:
            waiting.cancel()


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview("robolearn COMMAND ...", COMMANDS))
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}; valid: {', '.join(COMMANDS)}")
    module = importlib.import_module(f"robolearn.cli.{name}")
    commands: dict[str, tuple[type, Callable[[Any], int | None]]] = module.COMMANDS
    if "" in commands:
        options, run = commands[""]
        prog = f"robolearn {name}"
    else:
        if not rest or rest[0] in ("-h", "--help"):
            helps = {k: (run.__doc__ or "").split("\n")[0] for k, (_, run) in commands.items()}
            print(_overview(f"robolearn {name} COMMAND ...", helps))
            return 0 if rest else 2
        sub, *rest = rest
        if sub not in commands:
            raise UsageError(f"unknown command 'robolearn {name} {sub}'; valid: {', '.join(commands)}")
        options, run = commands[sub]
        prog = f"robolearn {name} {sub}"
    read = getattr(module, "read_options", None)
    return run(read(rest, prog) if read else parse(options, rest, prog=prog)) or 0


def _overview(usage: str, commands: dict[str, str]) -> str:
    lines = [f"usage: {usage}", "", "commands:"]
    lines += [f"  {name:10s} {text}" for name, text in commands.items()]
    return "\n".join([*lines, "", f"`{usage.replace('COMMAND ...', 'COMMAND --help')}` explains one."])


def _explain(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; what was saved before is whole: free space and run the command again"
    if error.errno == errno.ENOENT:
        return f"no such file or folder{where}; check the path"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not permitted{where}; check the owner and mode of the path"
    return f"{error.strerror or str(error) or type(error).__name__}{where}"


if __name__ == "__main__":
    raise SystemExit(main())
