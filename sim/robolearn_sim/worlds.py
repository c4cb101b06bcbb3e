"""The simulated worlds by name. To add one: a module with a class that fulfils World and a function ``spec`` that takes
the same keyword options, then a function here that imports it and an entry in ``WORLDS``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from robolearn_data.schema import UserError
from robolearn_data.world import World, WorldSpec


class WorldError(UserError):
    """There is no such world, or it cannot be had in the way that was asked for."""


class Kind(NamedTuple):
    make: Callable[..., World]
    spec: Callable[..., WorldSpec]
    """Takes the same keyword options as ``make`` and starts nothing."""
    variants: Mapping[str, Mapping[str, Any]] = {}
    """Of a world with variants: what may follow its name and a slash -> the options that it stands for."""


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


def _so101_language() -> Kind:
    from robolearn_sim import so101_language

    return Kind(so101_language.So101Language, so101_language.spec, so101_language.VARIANTS)


def _metaworld() -> Kind:
    from robolearn_sim import metaworld

    return Kind(metaworld.MetaWorld, metaworld.spec, metaworld.VARIANTS)


def _wipe() -> Kind:
    from robolearn_sim import wipe

    return Kind(wipe.Wipe, wipe.spec, wipe.VARIANTS)


WORLDS: dict[str, Callable[[], Kind]] = {
    "pusht": _pusht,
    "lift": _lift,
    "can": _can,
    "square": _square,
    "stack": _stack,
    "door": _door,
    "so101_tabletop": _so101_tabletop,
    "so101_language": _so101_language,
    "metaworld": _metaworld,
    "wipe": _wipe,
}
"""Name -> function that imports the world, so that naming one does not load the simulator of another."""


def make_world(name: str, **options: Any) -> World:
    """Start the world ``name``, or ``NAME/VARIANT`` of one that has variants.

    Options of all worlds: ``images`` (bool) adds the camera stream, ``max_steps`` (int) ends episodes.

    Raises:
        WorldError: unknown name, variant or option, an option of a wrong type, or a simulator that is not installed.
    """
    kind, options = _find(name, options)
    world = kind.make(**options)
    world.spec = replace(world.spec, name=name)
    return world


def world_spec(name: str, **options: Any) -> WorldSpec:
    """What ``make_world`` with the same arguments would offer, without starting a simulator.

    Raises:
        WorldError: unknown name, variant or option, or an option of a wrong type.
    """
    kind, options = _find(name, options)
    return replace(kind.spec(**options), name=name)


def variants_of(name: str) -> list[str]:
    """Names ``NAME/VARIANT`` of the world ``name``.

    Raises:
        WorldError: there is no such world.
    """
    return [f"{name}/{variant}" for variant in _find(name, {})[0].variants]


def options_of(name: str) -> dict[str, Any]:
    """What the variant in ``name`` stands for; nothing without one.

    Raises:
        WorldError: there is no such world or variant.
    """
    return _find(name, {})[1]


def _find(name: str, options: dict[str, Any]) -> tuple[Kind, dict[str, Any]]:
    """The world and its options, with those of the variant."""
    base, _, variant = name.partition("/")
    if base not in WORLDS:
        raise WorldError(f"there is no world {name!r}; valid: {', '.join(WORLDS)}")
    kind = WORLDS[base]()
    if variant and variant not in kind.variants:
        found = ", ".join(f"{base}/{known}" for known in kind.variants)
        raise WorldError(f"there is no world {name!r}; valid: {base}{', ' if found else ''}{found}")
    if variant:
        options = {**kind.variants[variant], **options}
    valid = inspect.signature(kind.spec).parameters
    for option, value in options.items():
        if option not in valid:
            raise WorldError(f"the world {base!r} has no option {option!r}; valid: {', '.join(valid)}")
        expected = type(valid[option].default)
        if type(value) is not expected:
            raise WorldError(f"option {option!r} of the world {base!r} must be {expected.__name__}, not {value!r}")
    if options.get("max_steps", 1) < 1:
        raise WorldError(f"option 'max_steps' must be at least 1, not {options['max_steps']}")
    return kind, options
