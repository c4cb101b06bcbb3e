"""Which of several viewers moves the robot. An e-stop and a pause are everybody's, and need none of this."""

from __future__ import annotations

from dataclasses import dataclass

ANSWER_S = 10.0
"""Who holds the control has so long to answer who asks for it; then it passes, unless the arm is being moved."""


@dataclass
class Control:
    """At most one viewer, by name, is in control; at most one asks for it. Instants are s of any one clock."""

    holder: str | None = None
    asker: str | None = None
    asked_s: float = 0.0

    def ask(self, viewer: str, now_s: float) -> bool:
        """``viewer`` wants it: at once where it is free. False: another one asks already."""
        if self.holder in (None, viewer):
            self.holder = viewer
            return True
        if self.asker not in (None, viewer):
            return False
        if self.asker is None:
            self.asker, self.asked_s = viewer, now_s
        return True

    def answer(self, viewer: str, *, grant: bool) -> None:
        """The holder's answer to who asks; of anybody else it is none."""
        if viewer == self.holder and self.asker is not None:
            self.holder, self.asker = (self.asker if grant else self.holder), None

    def leave(self, viewer: str) -> None:
        """``viewer`` gives it back, does not ask any more, or is gone."""
        if viewer == self.asker:
            self.asker = None
        if viewer == self.holder:
            self.holder, self.asker = self.asker, None

    def poll(self, now_s: float, *, moving: bool) -> None:
        """Pass it on where the holder has not answered; ``moving``: he holds the deadman."""
        if self.asker is not None and not moving and now_s - self.asked_s >= ANSWER_S:
            self.holder, self.asker = self.asker, None

    def waits_s(self, now_s: float) -> float:
        """Until it passes to who asks."""
        return max(0.0, self.asked_s + ANSWER_S - now_s)

    def allows(self, viewer: str) -> bool:
        """``viewer`` may press what moves the robot or ends an episode: nobody else is in control."""
        return self.holder in (None, viewer)
