"""The twins of one rig: started by the configurations that name them, found by others, ended together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.twins.process import Twin, TwinServer


class Twins:
    """Device's name in the rig -> its twin. Use it as a context manager, which ends them."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._twins: dict[str, Twin] = {}

    def start(self, name: str, make: Callable[[], TwinServer]) -> Twin:
        self._twins[name] = self._stack.enter_context(Twin(make))
        return self._twins[name]

    def __contains__(self, name: str) -> bool:
        return name in self._twins

    def __getitem__(self, name: str) -> Twin:
        """Raises DeviceError when that device has none."""
        if name not in self._twins:
            raise DeviceError(f"device {name!r} has no twin; twins: {', '.join(self._twins) or 'none'}")
        return self._twins[name]

    def __enter__(self) -> Twins:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
