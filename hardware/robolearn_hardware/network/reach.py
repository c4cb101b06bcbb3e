"""Whether a host answers at all, before an SDK that knows no deadlines is told to connect."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from robolearn_hardware.clock import SECOND_NS, now_ns
from robolearn_hardware.devices import DeviceError

_DEADLINE_S = 2.0


def reach(name: str, host: str, ports: Mapping[int, str]) -> None:
    """Connect to each port and let go of it. ``ports``: number -> what it is for. At most 2 s in all.

    Raises:
        DeviceError: no such host, nothing answers, or a port is closed.
    """
    end = now_ns() + round(_DEADLINE_S * SECOND_NS)
    for port, use in ports.items():
        left_s = max(0.05, (end - now_ns()) / SECOND_NS)
        try:
            socket.create_connection((host, port), timeout=left_s).close()
        except socket.gaierror:
            raise DeviceError(f"{name}: no host {host!r}; the rig must name the arm's IP address") from None
        except TimeoutError:
            raise DeviceError(
                f"{name}: nothing answers at {host}:{port} ({use}); check the address in the rig, cable and power"
            ) from None
        except OSError as error:
            raise DeviceError(
                f"{name}: {host}:{port} ({use}) refuses connections ({error.strerror}); is the arm's controller up, "
                "and is this its address?"
            ) from None
