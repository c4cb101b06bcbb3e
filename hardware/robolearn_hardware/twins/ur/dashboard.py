"""Port 29999: the dashboard server, a line of text each way (Dashboard Server e-Series manual, PolyScope 5)."""

from __future__ import annotations

from collections.abc import Callable

from robolearn_hardware.twins.ur.controller import UNLOCK_AFTER_S, Controller, RobotMode

BANNER = "Connected: Universal Robots Dashboard Server"


def replies(
    controller: Controller, model: str, serial: str, version: str, remote_control: bool
) -> dict[str, Callable[[], str]]:
    """Command, in small letters -> what carries it out and says what the controller says."""

    def stop() -> str:
        controller.stop_program()
        return "Stopped"

    def unlock() -> str:
        if controller.unlock():
            return "Protective stop releasing"
        return (
            f"Cannot unlock protective stop until {UNLOCK_AFTER_S:g}s after occurrence. "
            "Always inspect cause of protective stop before unlocking"
        )

    def power(mode: RobotMode, done: str) -> Callable[[], str]:
        return lambda: done if controller.power(mode) else "Could not power on, emergency stopped"

    return {
        "polyscopeversion": lambda: f"URSoftware {version} (Mar 11 2022)",
        "get robot model": lambda: model,
        "get serial number": lambda: serial,
        "is in remote control": lambda: str(remote_control).lower(),
        "robotmode": lambda: f"Robotmode: {controller.mode.name}",
        "safetystatus": lambda: f"Safetystatus: {controller.safety.name}",
        "safetymode": lambda: f"Safetymode: {controller.safety.name}",
        "running": lambda: f"Program running: {str(controller.playing).lower()}",
        "programstate": lambda: f"{'PLAYING' if controller.playing else 'STOPPED'} <unnamed>",
        "stop": stop,
        "power on": power(RobotMode.IDLE, "Powering on"),
        "power off": power(RobotMode.POWER_OFF, "Powering off"),
        "brake release": power(RobotMode.RUNNING, "Brake releasing"),
        "unlock protective stop": unlock,
        "close popup": lambda: "closing popup",
        "close safety popup": lambda: "closing safety popup",
        "quit": lambda: "Disconnected",
    }


def answer(line: str, known: dict[str, Callable[[], str]]) -> str:
    command = line.strip().lower()
    return known[command]() if command in known else f"could not understand: '{line.strip()}'"
