"""What a person who records demonstrations sees, hears and presses at the terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robolearn.cli.keys import COLLECT_KEYS, Keys, command_names, shown_key
from robolearn.cli.tables import new_table, show_table

if TYPE_CHECKING:
    from robolearn_deploy.collect_session import CollectSession
    from robolearn_deploy.operator import Operator
    from robolearn_hardware.machine import Check

_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failure": "[red]FAILURE[/]"}
_STAGES = {
    "READY": "black on yellow",
    "RETURNING": "black on cyan",
    "COUNTDOWN": "black on magenta",
    "EPISODE": "white on red",
    "STOPPING": "black on cyan",
    "JUDGING": "black on yellow",
    "OVER": "black on green",
}
_DO = {
    "READY": "set the scene, then start",
    "RETURNING": "the robot goes to its start pose: keep clear",
    "COUNTDOWN": "get ready",
    "EPISODE": "recording: success, failure, discard, redo or stop",
    "STOPPING": "coming to rest",
    "JUDGING": "how was it: success, failure, discard or redo?",
    "OVER": "the session is over",
}
WAITING = "hold the deadman and move: recording begins then"
BELLS = {"COUNT": 1, "GO": 2, "STOPPED": 1, "SAVED": 1, "DISCARDED": 2, "REFUSED": 3, "FAULT": 3, "OVER": 4}
"""How often the bell rings at a cue."""
_RING_S = 0.2


class SessionTerminal:
    """Fulfils robolearn_deploy's ``CollectWatcher``. Where standard error is no terminal it prints a line for each
    stage instead."""

    def __init__(
        self, keys: Sequence[str] = (), *, bell: bool = True, typed: Callable[[str], None] = lambda key: None
    ) -> None:
        """
        Args:
            keys: of --key, besides ``COLLECT_KEYS`` or in their place.
            typed: is told the keys that are no commands.

        Raises:
            UsageError: one is not KEY=COMMAND.
        """
        from rich.console import Console
        from rich.live import Live

        more = command_names("--key", keys)
        self._meaning: dict[str, tuple[str, ...]] = {key: (name,) for key, (name, _) in COLLECT_KEYS.items()}
        self._meaning |= {{"space": " ", "enter": "\n"}.get(key, key): told for key, told in more.items()}
        self._added = more
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._keys, self._typed = Keys(), typed
        self._operator: Operator | None = None
        self._bells: deque[float] | None = deque() if bell and self._console.is_terminal else None
        self._cues = 0
        self._said: tuple[Any, ...] = ()
        self._robot = ""

    def __enter__(self) -> SessionTerminal:
        self._keys.__enter__()
        self._say("starting")
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.stop()
        self._keys.cooked()

    def started(
        self, operator: Operator, instruct: Callable[[str], None], pids: Mapping[str, int], rings: Any = None
    ) -> None:
        self._operator = operator
        self._say("looking at cameras, clock and disk")

    def checked(self, checks: Sequence[Check]) -> None:
        table = new_table("check", "", "found", "what to do", wrap=("found", "what to do"))
        for check in checks:
            table.add_row(check.subject, _MARKS[check.verdict], check.found, check.advice if check.advice else "")
        show_table(table)
        named = "   ".join(f"[b]{shown_key(key)}[/b] {meaning}" for key, (_, meaning) in COLLECT_KEYS.items())
        own = "   ".join(f"[b]{key}[/b] {' or '.join(told).lower()}" for key, told in self._added.items())
        self._console.print(f"{named}   {own}", highlight=False)
        if self._console.is_terminal:
            self._live.start()

    def progress(self, elapsed_s: float, measured: Any, episode: int) -> None:
        from robolearn_deploy.operator import Command

        while key := self._keys.pressed():
            if key not in self._meaning:
                self._typed(key)
            for name in self._meaning.get(key, ()):
                if self._operator is not None:
                    self._operator.tell(Command[name])
        state = getattr(measured, "state", None)
        if state is not None:
            hand = ", deadman held" if measured.person else ""
            self._robot = f"{state.name.lower().replace('_', ' ')}{hand}"
        if self._bells and time.monotonic() >= self._bells[0]:
            self._bells.popleft()
            self._console.bell()

    def session(self, session: CollectSession, now_ns: int) -> None:
        if session.cues != self._cues:
            self._cues = session.cues
            if self._bells is not None:
                now = time.monotonic()
                self._bells.extend(now + k * _RING_S for k in range(BELLS.get(session.cue.name, 0)))
        if self._live.is_started:
            self._live.update(self._lines(session, now_ns))
            return
        note = session.note if session.note not in ("1", "2", "3") else ""
        said = (session.stage, session.task, WAITING if session.waiting else note)
        if said != self._said:
            self._said = said
            self._say(" ".join(f"{session.stage.name}: {_progress(session, now_ns)}   {said[2]}".split("\n")))

    def message(self, text: str) -> None:
        self._say(f"robolearn: {text}")

    def _lines(self, session: CollectSession, now_ns: int) -> Any:
        from rich.text import Text

        stage = session.stage.name
        timed = session.ends_ns and not session.waiting
        left = f" {max(0.0, (session.ends_ns - now_ns) / 1e9):.0f} s " if timed else " "
        text = Text()
        text.append(f" {stage}{left}", style=_STAGES[stage])
        text.append(f" {session.task}", style="bold")
        text.append(f"   {WAITING if session.waiting else _DO[stage]}\n")
        text.append(f"{_progress(session, now_ns)}\n")
        text.append(f"robot {self._robot}", style="dim")
        if session.note:
            text.append(f"\n{session.note}", style="bold")
        return text

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _progress(session: CollectSession, now_ns: int) -> str:
    done, goal = session.total, session.options.episodes
    rate = f", {100 * session.successes / done:.0f} % successes" if done else ""
    minutes = f", {session.recorded_ns / 6e10:.1f} minutes recorded" if session.saved else ""
    left_ns = session.left_ns(now_ns)
    end = ""
    if left_ns is not None and done < goal:
        at = time.strftime("%H:%M", time.localtime(time.time() + left_ns / 1e9))
        end = f", {left_ns / 6e10:.0f} minutes left (until {at})"
    thrown = f", {session.discarded} discarded" if session.discarded else ""
    return f"{done} of {goal} episodes{rate}{minutes}{thrown}{end}"
