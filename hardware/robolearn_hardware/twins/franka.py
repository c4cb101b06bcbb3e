"""The twin of a Franka Research 3: franky-sim (PyPI, Apache-2.0), an FCI server over MuJoCo, in its own environment.

franky-sim wants MuJoCo 4, which this project's simulator refuses. `make franka-sim` makes ``.venv-franka-sim``; another
place is named by the environment variable ROBOLEARN_FRANKA_SIM (the environment's folder).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.twins.faults import Faults

FAULTS = frozenset(["unplugged", "protective_stop", "emergency_stop", "reboot"])
START = (0.0, -0.4, 0.0, -2.0, 0.0, 1.6, 0.8)
"""rad"""
_SERVER = Path(__file__).with_name("franka_sim_server.py")
_ANSWER_S = 10.0


def sim_python() -> Path | None:
    """The interpreter that has franky-sim, if there is one."""
    named = os.environ.get("ROBOLEARN_FRANKA_SIM")
    folders = [Path(named)] if named else [folder / ".venv-franka-sim" for folder in (Path.cwd(), *_SERVER.parents)]
    found = [folder / "bin" / "python" for folder in folders if (folder / "bin" / "franky-sim").is_file()]
    return found[0] if found else None


class FrankaTwin:
    """A ``TwinServer``. ``address`` is an IP address. ``observe``: "positions" (7,), "moving" (a motion is under way).

    Faults: a protective stop is a reflex until error recovery, an emergency stop the user stop while it is set,
    ``unplugged`` a robot that says nothing more, ``reboot`` an end of all connections.
    """

    def __init__(self, start: tuple[float, ...] = START, *, reports: str = "fr3") -> None:
        """``start`` (7,) rad. ``reports``: "fr3", or "fer" of one that refuses clients of a Research 3."""
        python = sim_python()
        if python is None:
            raise DeviceError(
                "no environment with franky-sim; make it with `make franka-sim`, or name its folder in "
                "ROBOLEARN_FRANKA_SIM"
            )
        self._python, self._settings = str(python), [start, reports]
        self._process = self._launch()
        self.address: str = self._line()

    def start(self) -> None:
        pass  # it answers already

    def fault(self, faults: Faults) -> None:
        faults.check("a Franka arm", FAULTS)
        if faults.reboot:
            self._end()
            self._process = self._launch(self.address)
            self._line()
            return
        wanted = {name: getattr(faults, name) for name in FAULTS}
        self._ask({"faults": wanted})

    def observe(self) -> dict[str, Any]:
        answer = self._ask({"observe": True})
        return {**answer, "positions": np.array(answer["positions"])}

    def close(self) -> None:
        self._end()

    def _launch(self, *address: str) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)  # of another interpreter
        return subprocess.Popen(
            [self._python, str(_SERVER), json.dumps([*self._settings, *address])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._line()

    def _line(self) -> Any:
        """The next line of its output that is JSON; SDKs print too. Its end, or silence, ends the process."""
        assert self._process.stdout is not None
        silent = threading.Timer(_ANSWER_S, self._process.kill)
        silent.start()
        try:
            for line in self._process.stdout:
                with contextlib.suppress(ValueError):
                    return json.loads(line)
        finally:
            silent.cancel()
        raise DeviceError(f"franky-sim has ended (exit code {self._process.wait()})")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
