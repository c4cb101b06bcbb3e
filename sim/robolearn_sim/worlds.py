"""The simulated worlds by name. To add one: a module with a class that fulfils World and a function ``spec`` that takes
the same keyword options, then a function here that imports it and an entry in ``WORLDS``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from robolearn_data.schema import UserError
from robolearn_data.world import World, WorldSpec


class WorldError(UserError):
    """There is no such world, or it cannot be had in the way that was asked for."""


class Kind(NamedTuple):
    make: Callable[..., World]
    spec: Callable[..., WorldSpec]
    """Takes the same keyword options as ``make`` and starts nothing."""


def _pusht() -> Kind:
    from robolearn_sim import pusht

    return Kind(pusht.PushT, pusht.spec)


def _lift() -> Kind:
    from robolearn_sim import lift, panda

    return panda.kind(lift.Lift)


def _can() -> Kind:
    from robolearn_sim import can, panda

    return panda.kind(can.Can)


def _square() -> Kind:
    from robolearn_sim import panda, square

    return panda.kind(square.Square)


def _stack() -> Kind:
    from robolearn_sim import panda, stack

    return panda.kind(stack.Stack)


def _door() -> Kind:
    from robolearn_sim import door, panda

    return panda.kind(door.Door)


def _so101_tabletop() -> Kind:
    from robolearn_sim import so101_tabletop

    return Kind(so101_tabletop.So101Tabletop, so101_tabletop.spec)


WORLDS: dict[str, Callable[[], Kind]] = {
    "pusht": _pusht,
    "lift": _lift,
    "can": _can,
    "square": _square,
    "stack": _stack,
    "door": _door,
    "so101_tabletop": _so101_tabletop,
}
"""Name -> function that imports the world, so that naming one does not load the simulator of another."""


def make_world(name: str, **options: Any) -> World:
    """Start the world ``name``.

    Options of both worlds: ``images`` (bool) adds the camera stream, ``max_steps`` (int) ends episodes.

    Raises:
        WorldError: unknown name or option, an option of a wrong type, or a simulator that is not installed.
    """
    return _find(name, options).make(**options)


def world_spec(name: str, **options: Any) -> WorldSpec:
    """What ``make_world`` with the same arguments would offer, without starting a simulator.

    Raises:
        WorldError: unknown name or option, or an option of a wrong type.
    """
    return _find(name, options).spec(**options)


def _find(name: str, options: dict[str, Any]) -> Kind:
    if name not in WORLDS:
        raise WorldError(f"there is no world {name!r}; valid: {', '.join(WORLDS)}")
    kind = WORLDS[name]()
    valid = inspect.signature(kind.spec).parameters
    for option, value in options.items():
        if option not in valid:
            raise WorldError(f"the world {name!r} has no option {option!r}; valid: {', '.join(valid)}")
        expected = type(valid[option].default)
        if type(value) is not expected:
            raise WorldError(f"option {option!r} of the world {name!r} must be {expected.__name__}, not {value!r}")
    if options.get("max_steps", 1) < 1:
        raise WorldError(f"option 'max_steps' must be at least 1, not {options['max_steps']}")
    return kind
