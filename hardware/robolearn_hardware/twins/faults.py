"""What a twin can be told to do wrong."""

from __future__ import annotations

from dataclasses import dataclass, fields

from robolearn_hardware.devices import DeviceError


@dataclass(frozen=True)
class Faults:
    """None by default. A twin refuses those that its wire does not have (``check``)."""

    lose: float = 0.0
    """Share of replies or frames that never come."""
    corrupt: float = 0.0
    """Share of replies of which a byte is flipped."""
    truncate: float = 0.0
    """Share of replies that end early."""
    latency_s: float = 0.0
    """By which every reply is late."""
    spikes: float = 0.0
    """Share of replies that are late by 50 ms more."""
    silent: tuple[int, ...] = ()
    """Motors (their bus IDs) that do not answer."""
    hot: tuple[int, ...] = ()
    """Joints (from 0) that report over-temperature and let go."""
    frozen: bool = False
    """Readings or frames go on coming and never change."""
    unplugged: bool = False
    protective_stop: bool = False
    emergency_stop: bool = False
    reboot: bool = False
    """Loses power and comes back; this fault ends by itself."""

    def check(self, device: str, possible: frozenset[str]) -> None:
        """Raise DeviceError if something is set that is not among the names in ``possible``."""
        default = Faults()
        wrong = [f.name for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)]
        wrong = [name for name in wrong if name not in possible]
        if wrong:
            raise DeviceError(f"the twin of {device} has no fault {wrong[0]!r}; valid: {', '.join(sorted(possible))}")
