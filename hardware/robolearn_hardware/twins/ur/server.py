"""The ports of a UR twin. They are fixed by the protocol, so each twin has a loopback address of its own."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from robolearn_hardware.limits import limits_of
from robolearn_hardware.twins.faults import Faults
from robolearn_hardware.twins.loopback import Listeners
from robolearn_hardware.twins.plant import Motor, PlantSpec, make_plant
from robolearn_hardware.twins.ur.controller import UNLOCK_AFTER_S, Controller
from robolearn_hardware.twins.ur.dashboard import BANNER, answer, replies
from robolearn_hardware.twins.ur.rtde import RtdeConnection

DASHBOARD, RTDE, SCRIPTS = 29999, 30004, (30001, 30002, 30003)
START = (0.0, -np.pi / 2, np.pi / 2, -np.pi / 2, -np.pi / 2, 0.0)
"""rad; the tool points down in front of the arm."""
VERSION = (5, 12, 0, 1096)
FAULTS = frozenset(
    ["lose", "truncate", "latency_s", "spikes", "frozen", "unplugged", "protective_stop", "emergency_stop", "reboot"]
)
_SERIAL = "20225500001"
_BEYOND = 1.0  # rad; the joints have no stops at their limits
_MOTOR = Motor(time_constant_s=0.03, speed=np.pi, acceleration=40.0)


class UrTwin:
    """A ``TwinServer``. ``address`` is an IP address.

    ``observe``: "positions" (6,), "mode", "safety", "playing" (a program runs), "uploads" and "commands" so far.

    Faults: a protective stop lasts until the dashboard unlocks it, an emergency stop as long as it is set (then the arm
    is without power); ``reboot`` closes every connection, and the controller comes back without power.
    """

    def __init__(
        self,
        model: str,
        plant: str = "first_order",
        *,
        reports: str = "",
        start: tuple[float, ...] = START,
        unlock_after_s: float = UNLOCK_AFTER_S,
        reboot_s: float = 1.0,
        protective_stop: bool = False,
        remote_control: bool = True,
    ) -> None:
        """``model`` as in ``limits.LIMITS``; it calls itself ``reports`` where that is given. ``protective_stop``: it
        starts in one. ``remote_control``: what its pendant is switched to."""
        limits = limits_of(model)
        low, high = limits.low - _BEYOND, limits.high + _BEYOND
        spec = PlantSpec(model, np.array(start), low, high, has_gripper=False, motor=_MOTOR)
        self._plant = make_plant(plant, spec)
        self._controller = Controller(self._plant, unlock_after_s=unlock_after_s)
        if protective_stop:
            self._controller.protective_stop()
        version = ".".join(map(str, VERSION))
        reports = reports or model.removesuffix("e").upper()
        self._replies = replies(self._controller, reports, _SERIAL, version, remote_control)
        self._faults = Faults()
        self._reboot_s = reboot_s
        self._streams: set[RtdeConnection] = set()
        ports: dict[int, Callable[[socket.socket], None]] = {DASHBOARD: self._dashboard, RTDE: self._rtde}
        ports |= dict.fromkeys(SCRIPTS, self._script)
        self._listeners = Listeners(ports)
        self.address = self._listeners.address

    def start(self) -> None:
        self._listeners.open()

    def fault(self, faults: Faults) -> None:
        faults.check("a UR arm", FAULTS)
        self._faults = faults
        self._controller.frozen = faults.frozen
        for stream in list(self._streams):
            stream.faults = faults
        if faults.protective_stop:
            self._controller.protective_stop()
        self._controller.emergency_stop(faults.emergency_stop)
        if faults.reboot:
            threading.Thread(target=self._reboot, daemon=True).start()
        elif faults.unplugged:
            self._listeners.refuse()
        else:
            self._listeners.open()

    def observe(self) -> dict[str, Any]:
        return self._controller.truth()

    def close(self) -> None:
        self._listeners.close()
        self._plant.close()

    def _reboot(self) -> None:
        self._listeners.close()
        time.sleep(self._reboot_s)
        self._controller.boot()
        self._listeners.open()

    def _rtde(self, client: socket.socket) -> None:
        stream = RtdeConnection(client, self._controller, VERSION)
        stream.faults = self._faults
        self._streams.add(stream)
        try:
            stream.serve()
        finally:
            self._streams.discard(stream)

    def _dashboard(self, client: socket.socket) -> None:
        client.sendall(f"{BANNER}\n".encode())
        with client.makefile("r") as lines:
            for line in lines:
                self._delay()
                if not self._faults.unplugged:
                    client.sendall(f"{answer(line, self._replies)}\n".encode())

    def _script(self, client: socket.socket) -> None:
        """A program is complete with an ``end`` at the beginning of a line. Programs of one line are not known."""
        received = ""
        with contextlib.suppress(UnicodeDecodeError):
            while got := client.recv(65536):
                received += got.decode()
                if received.rstrip().endswith("\nend"):
                    if not self._faults.unplugged:
                        self._controller.upload(received)
                    received = ""

    def _delay(self) -> None:
        late_s = self._faults.latency_s + 0.05 * (random.random() < self._faults.spikes)
        if late_s:
            time.sleep(late_s)
