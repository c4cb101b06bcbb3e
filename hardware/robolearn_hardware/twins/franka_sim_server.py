"""franky-sim with faults. Run by the interpreter of its own environment (see ``franka.py``), never imported.

Reads one line of JSON for each request from standard input, {"faults": {...}} or {"observe": true}, and answers with
one line. The first line that it prints is its address.
"""

# pyright: reportMissingImports=false

import json
import queue
import random
import struct
import sys
import threading
import time
from typing import Any

from franky_sim import franka_robot_protocol as protocol
from franky_sim import franka_server, simulation_server
from franky_sim.franka_robot_server import FrankaRobotServer
from franky_sim.mujoco_simulator import MujocoSimulator

_JOINT_REFLEX = 6  # the place of this error among libfranka's 41
_FER_VERSION = 5  # of the protocol that it speaks
_REFLEX_ERRORS = tuple(i == _JOINT_REFLEX for i in range(41))


class Server(FrankaRobotServer):
    """A robot that can be in a reflex or stopped by its user."""

    stopped = None
    pressed = False

    @property
    def robot_state(self) -> Any:
        state = super().robot_state
        if self.stopped is None:
            return state
        errors = _REFLEX_ERRORS if self.stopped == protocol.RobotMode.kReflex else state.errors
        return state.replace(robot_mode=self.stopped, errors=errors, reflex_reason=errors)

    def start_motion(self, *args: Any) -> None:
        if self.stopped is not None:
            raise RuntimeError("not in this mode")  # which the command's handler answers with kAborted
        super().start_motion(*args)

    def stop(self, mode: Any, status: Any) -> None:
        self.stopped = mode
        if self.current_motion_id:
            protocol.BaseCommand.send_response(
                self._tcp_socket, protocol.RobotCommand.kMove, self.current_motion_id, status
            )
        self.stop_motion(send_preemption_signal=False)
        self.reset_current_motion_id()

    def apply(self, faults: dict[str, Any]) -> None:
        if faults.get("protective_stop"):
            self.stop(protocol.RobotMode.kReflex, protocol.MoveStatus.kReflexAborted)
        if faults.get("emergency_stop"):
            self.pressed = True
            self.stop(protocol.RobotMode.kUserStopped, protocol.MoveStatus.kEmergencyAborted)
        elif self.pressed:
            self.pressed, self.stopped = False, None


def recover(self: Any, server: Server) -> None:
    """In place of AutomaticErrorRecoveryCommand.handle, which knows no errors."""
    status = protocol.AutomaticErrorRecoveryStatus
    if server.pressed:
        self.reply(status.kCommandNotPossibleRejected)
        return
    server.stopped = None
    self.reply(status.kSuccess)


def refuse(self: Any, server: Server, command_type_struct: str = "I") -> None:
    """In place of ConnectCommand.handle: a FER says that the client is too new, and how old itself is."""
    header = franka_server.MessageHeader(self.command_type, self.command_id, 8)
    status = franka_server.ConnectStatus.kIncompatibleLibraryVersion
    reply = struct.pack("<BH5x", status, _FER_VERSION)
    self.client_socket.sendall(header.to_bytes(command_type_struct=command_type_struct) + reply)


def main() -> None:
    start, reports, *address = json.loads(sys.argv[1])
    protocol.AutomaticErrorRecoveryCommand.handle = recover
    simulation_server.FrankaRobotServer = Server
    if reports == "fer":
        franka_server.ConnectCommand.handle = refuse
    hosts = address or [
        f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(2, 255)}" for _ in range(50)
    ]
    requests: queue.Queue[str] = queue.Queue()
    with MujocoSimulator(enable_visualization=False) as sim:
        robot = sim.add_robot(initial_q=start)
        with simulation_server.SimulationServer(sim, hostname_candidates=hosts) as servers:
            server = servers.robot_servers[0]
            servers.run_once()  # its state is not there before
            print(json.dumps(robot.hostname), flush=True)
            threading.Thread(target=_listen, args=(requests,), daemon=True).start()
            unplugged = False
            while True:
                while not requests.empty():
                    line = requests.get()
                    if not line:
                        return
                    request = json.loads(line)
                    if "faults" in request:
                        server.apply(request["faults"])
                        unplugged = request["faults"].get("unplugged", False)
                    print(
                        json.dumps({"positions": list(robot.inner_state.q), "moving": server.current_motion_id > 0}),
                        flush=True,
                    )
                if unplugged:
                    time.sleep(0.01)
                else:
                    servers.run_once()


def _listen(requests: "queue.Queue[str]") -> None:
    for line in sys.stdin:
        requests.put(line)
    requests.put("")  # the twin has ended


if __name__ == "__main__":
    main()
