"""What a viewer's hands say, as intents for an arm: keys, pointer, gamepad, phone, VR controller.

The browser sends what its devices measure; the mathematics is here. Frames: *view* is the person's, with x to the
right, y up and z towards them (as in WebXR); *base* is the arm's, x forward, y left, z up. Somebody who stands behind
the arm and looks the way it does has yaw 0; yaw turns them counter-clockwise about the base's z. Quaternions are
(w, x, y, z).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robolearn_deploy.dashboard.rings import PageArm, Plane
from robolearn_deploy.rotations import conjugate, exp, log, product, rotated, unit
from robolearn_deploy.takeover import JUMP_M, JUMP_RAD, STALE_NS, intent_record
from robolearn_hardware.devices import DeviceError, Intent
from robolearn_hardware.kinematics import Kinematics
from robolearn_hardware.ring import Ring

SPEED_M_S, SPEED_RAD_S = 0.15, 0.8
"""Of a key that is held, or a stick at its end, at scale 1."""
PICTURE_M = 0.3
"""What a drag across a picture's whole width, or the phone's pad, moves at scale 1."""
MOST_SCALE = 4.0
_DRIFT = 200e-6  # of two quartz clocks, at the most, as a share
_VIEW = np.array([0.5, 0.5, -0.5, -0.5])  # base from view at yaw 0: right is -y, up is z, towards the person is -x
_TOOL = np.array([0.0, 1.0, 0.0, 0.0])  # tool from view: right is x, up is -y, away from the person is z
_SIZES = {"rate": 6, "drag": 6, "phone": 6, "hand": 7, "point": 2}


class RefusedIntentError(ValueError):
    """A message that is not followed; the text says why, in two or three words."""


@dataclass
class BrowserClock:
    """Maps a browser's time to ours, by what can be known for certain.

    A message is made before it arrives here, and after the message of ours that it names had been sent. So the
    difference of the two clocks lies between two bounds, each as tight as the quickest message so far.
    """

    _least_ns: float = -math.inf
    _most_ns: float = math.inf
    _at_ns: int = 0

    def capture_ns(self, made_ms: float, heard: tuple[int, float], now_ns: int) -> tuple[int, int]:
        """(when it was made, the earliest that it can have been) ns of our clock.

        Args:
            made_ms: the browser's time at which the message was made.
            heard: (ns at which a message of ours was sent, browser's ms at which it was there).
            now_ns: the message is here.
        """
        sent_ns, heard_ms = heard
        drift = _DRIFT * (now_ns - self._at_ns) if self._at_ns else 0.0
        least, most = sent_ns - heard_ms * 1e6, now_ns - made_ms * 1e6
        self._least_ns = max(self._least_ns - drift, least)
        self._most_ns = min(self._most_ns + drift, most)
        self._at_ns = now_ns
        if self._least_ns > self._most_ns:  # its clock has stood still or was set: a sleeping phone
            self._least_ns, self._most_ns = min(least, most), most
        made_ns = made_ms * 1e6
        return round(made_ns + (self._least_ns + self._most_ns) / 2), round(made_ns + self._least_ns)


@dataclass(frozen=True, eq=False)
class Reading:
    """One message of a viewer who teleoperates, checked."""

    arm: str
    made_ms: float
    heard: tuple[float, float]
    """The newest instant of ours (ms of ``RigView.ms``) that it knew, and when it did on its clock."""
    clutch: int
    """Counts how often the deadman was taken in that browser; 0: nobody holds it."""
    kind: str
    """"rate": six axes from -1 to 1. "drag": (6,) in picture widths and rad, from anywhere. "phone": three of a drag,
    and the W3C's alpha, beta and gamma (degrees). "hand": position (m) and quaternion in a room whose y is up. "point":
    a place in a picture, from (0, 0) at its top left to (1, 1). Empty without a deadman."""
    values: np.ndarray
    gripper: float
    """NaN: it stays."""
    scale: float
    turn: float
    """Of translations and rotations."""
    yaw: float
    """rad, where the person stands."""
    tool: bool
    """In the tool's frame instead of the person's."""


def read_intent(message: Mapping[str, Any]) -> Reading:
    """Check what a viewer sent.

    Raises:
        RefusedIntentError: it is not what the page sends; infinite or NaN; a rate beyond its axis.
    """
    kinds = [kind for kind in _SIZES if kind in message]
    clutch = message.get("clutch")
    arm = message.get("arm")
    heard = message.get("heard")
    if not isinstance(arm, str) or type(clutch) is not int or not 0 <= clutch < 2**31 or len(kinds) != (clutch > 0):
        raise RefusedIntentError("malformed")
    if not isinstance(heard, list) or len(heard) != 2:
        raise RefusedIntentError("malformed")
    kind = kinds[0] if kinds else ""
    listed = message.get(kind, [])
    if not isinstance(listed, list) or len(listed) != _SIZES.get(kind, 0):
        raise RefusedIntentError("malformed")
    values = np.array([_number(v, 1e4) for v in listed], np.float64)
    if kind == "rate" and (np.abs(values) > 1.001).any():
        raise RefusedIntentError("out of range")
    if kind == "hand" and abs(float(np.linalg.norm(values[3:])) - 1) > 0.01:
        raise RefusedIntentError("no rotation")
    gripper = message.get("gripper")
    return Reading(
        arm=arm,
        made_ms=_number(message.get("t"), 1e12),
        heard=(_number(heard[0], 1e12), _number(heard[1], 1e12)),
        clutch=clutch,
        kind=kind,
        values=values,
        gripper=math.nan if gripper is None else min(max(_number(gripper, 1e4), 0.0), 1.0),
        scale=min(max(_number(message.get("scale", 1), 1e4), 0.0), MOST_SCALE),
        turn=min(max(_number(message.get("turn", 1), 1e4), 0.0), MOST_SCALE),
        yaw=_number(message.get("yaw", 0), 100.0),
        tool=message.get("tool", False) is True,
    )


def phone_rotation(alpha: float, beta: float, gamma: float) -> np.ndarray:
    """Quaternion (4,) of a phone in the earth's frame (x east, y north, z up) from the angles (degrees) that a browser
    tells: intrinsic turns about z, x, y (W3C, "Device Orientation and Motion", section 3.1)."""
    turns = [
        exp(np.radians(angle) * axis) for angle, axis in zip((alpha, beta, gamma), np.eye(3)[[2, 0, 1]], strict=True)
    ]
    return product(product(turns[0], turns[1]), turns[2])


def phone_heading(attitude: np.ndarray) -> float:
    """rad about the earth's z, counter-clockwise from north: where somebody looks who holds a phone (4,) like that, be
    it flat or upright. Its top and its back point away from them."""
    away = rotated(attitude, np.array([0.0, 1.0, -1.0]))
    return math.atan2(-away[0], away[1])


def base_from_view(yaw: float) -> np.ndarray:
    """Quaternion (4,) that takes vectors of the person's frame to the arm's."""
    return product(exp(np.array([0.0, 0.0, yaw])), _VIEW)


@dataclass(eq=False)
class _Clutch:
    """One time that a deadman is held."""

    taker: tuple[str, int, str]
    """Viewer, its count, kind of the readings."""
    number: int
    start: np.ndarray
    frame: np.ndarray
    """(4,) base from the axes in which the device counts."""
    last: np.ndarray = field(default_factory=lambda: np.zeros(6))
    lost: bool = False


class PageTeleop:
    """Writes the intents of the arms that are moved from the page. The caller lets one viewer at a time do so."""

    def __init__(self, arms: Mapping[str, PageArm]) -> None:
        self._arms = dict(arms)
        self._rings = {name: Ring.attach(arm.intents) for name, arm in arms.items()}
        self._kinematics: dict[str, Kinematics] = {}
        for name, arm in arms.items():
            with contextlib.suppress(DeviceError):  # no model of that arm: nobody moves in its tool's frame
                if arm.model:
                    self._kinematics[name] = Kinematics(arm.model)
        self._clutch: dict[str, _Clutch] = {}
        self._clutches = self._taken_ns = 0
        self.refused: Counter[str] = Counter()
        """Readings, by why."""

    def hello(self) -> dict[str, Any]:
        """What a viewer must know."""
        arms = {
            name: {"plane": arm.plane.camera if arm.plane else None, "tool": name in self._kinematics}
            for name, arm in self._arms.items()
        }
        return {"arms": arms, "stale_ms": STALE_NS / 1e6}

    def take(
        self, viewer: str, clock: BrowserClock, message: Mapping[str, Any], origin_ns: int, now_ns: int, at: np.ndarray
    ) -> None:
        """Follow what ``viewer`` sent, or refuse and count it; a reading that is refused lets go.

        Args:
            clock: of that viewer.
            origin_ns: of the ms that viewers are told.
            at: (N,) measured, of the rig's vector.
        """
        try:
            self._follow(viewer, clock, read_intent(message), origin_ns, now_ns, at)
        except RefusedIntentError as refused:
            self.refused[str(refused)] += 1
            self.let_go(now_ns)

    def let_go(self, now_ns: int, name: str | None = None) -> None:
        """Nobody holds a deadman, of arm ``name`` or of any: what was moved holds."""
        for arm in [name] if name else list(self._clutch):
            if self._clutch.pop(arm, None) is not None:
                self._publish(arm, Intent(now_ns, enabled=False))

    def poll(self, now_ns: int) -> None:
        """Let go of what is held by somebody who has fallen silent. The servo process has done so by itself."""
        if now_ns - self._taken_ns > STALE_NS:
            self.let_go(now_ns)

    @property
    def moving(self) -> bool:
        """Somebody holds a deadman."""
        return bool(self._clutch)

    def state(self) -> dict[str, Any]:
        """What viewers are told: which hands move the arm, and how many readings were refused, by why."""
        hands = {name: "jump" if clutch.lost else clutch.taker[2] for name, clutch in self._clutch.items()}
        return {"hands": hands, "refused": dict(self.refused)}

    def close(self) -> None:
        for ring in self._rings.values():
            ring.close()

    def _follow(
        self, viewer: str, clock: BrowserClock, reading: Reading, origin_ns: int, now_ns: int, at: np.ndarray
    ) -> None:
        sent_ms, heard_ms = reading.heard
        sent_ns = origin_ns + round(sent_ms * 1e6)
        if reading.arm not in self._arms:
            raise RefusedIntentError("no such arm")
        if sent_ns > now_ns or heard_ms > reading.made_ms:
            raise RefusedIntentError("from the future")
        capture_ns, earliest_ns = clock.capture_ns(reading.made_ms, (sent_ns, heard_ms), now_ns)
        name, arm = reading.arm, self._arms[reading.arm]
        if not reading.clutch:  # however old it is
            self.let_go(now_ns, name)
            return
        if now_ns - earliest_ns > STALE_NS:  # the next may be in time; where none is, the servo process holds
            self.refused["too old"] += 1
            return
        if reading.kind == "point" and arm.plane is None:
            raise RefusedIntentError("no plane")
        clutch = self._begin(name, (viewer, reading.clutch, reading.kind), reading, at)
        self._taken_ns = now_ns
        if reading.kind == "point" and arm.plane is not None:
            wanted = Intent(capture_ns, True, positions=_in_plane(arm.plane, reading.values), gripper=reading.gripper)
        elif reading.kind == "rate":
            clutch.frame = self._frame(reading, at)  # of now
            twist = np.concatenate(
                (
                    rotated(clutch.frame, reading.values[:3]) * SPEED_M_S * reading.scale,
                    rotated(clutch.frame, reading.values[3:]) * SPEED_RAD_S * reading.turn,
                )
            )
            wanted = Intent(capture_ns, True, twist=twist, gripper=reading.gripper)
        else:
            wanted = self._hand(clutch, reading, capture_ns)
        self._publish(name, wanted)

    def _hand(self, clutch: _Clutch, reading: Reading, capture_ns: int) -> Intent:
        displacement = _displacement(reading, clutch.start, clutch.frame)
        step = displacement - clutch.last
        clutch.lost |= bool(np.linalg.norm(step[:3]) > JUMP_M or np.linalg.norm(step[3:]) > JUMP_RAD)
        if clutch.lost:
            self.refused["jump"] += 1
            return Intent(capture_ns, enabled=False)
        clutch.last = displacement
        return Intent(capture_ns, True, displacement=displacement, clutch=clutch.number, gripper=reading.gripper)

    def _begin(self, name: str, taker: tuple[str, int, str], reading: Reading, at: np.ndarray) -> _Clutch:
        """The clutch that this reading belongs to."""
        clutch = self._clutch.get(name)
        if clutch is None or clutch.taker != taker:
            self._clutches += 1
            frame = self._frame(reading, at)
            clutch = self._clutch[name] = _Clutch(taker, self._clutches, reading.values, frame)
        return clutch

    def _frame(self, reading: Reading, at: np.ndarray) -> np.ndarray:
        if not reading.tool:
            return base_from_view(reading.yaw)
        kinematics, arm = self._kinematics.get(reading.arm), self._arms[reading.arm]
        positions = at[arm.first : arm.first + arm.joints]
        if kinematics is None or not np.isfinite(positions).all():
            raise RefusedIntentError("no tool frame")
        return product(kinematics.forward(positions).quaternion, _TOOL)

    def _publish(self, name: str, intent: Intent) -> None:
        self._rings[name].publish(intent_record(intent, self._arms[name].joints))


def _displacement(reading: Reading, start: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """(6,) of the tool in the base frame since ``start``, the first of the clutch's readings."""
    values = reading.values
    match reading.kind:
        case "drag":
            moved, turned = (values - start)[:3] * PICTURE_M, (values - start)[3:]
        case "phone":
            first = phone_rotation(*start[3:])
            # Out of the earth's axes into those of somebody who looks where the phone pointed to: x right, y up.
            into = product(exp(np.array([-np.pi / 2, 0.0, 0.0])), exp(np.array([0.0, 0.0, -phone_heading(first)])))
            turned = rotated(into, log(product(phone_rotation(*values[3:]), conjugate(first))))
            moved = (values - start)[:3] * PICTURE_M
        case _:
            moved = values[:3] - start[:3]
            turned = log(product(unit(values[3:]), conjugate(unit(start[3:]))))
    return np.concatenate((rotated(frame, moved) * reading.scale, rotated(frame, turned) * reading.turn))


def _in_plane(plane: Plane, place: np.ndarray) -> np.ndarray:
    """World coordinates (2,) of a place in its picture, at its edge where the pointer is beyond."""
    low, high = np.array(plane.top_left), np.array(plane.bottom_right)
    return low + np.clip(place, 0, 1) * (high - low)


def _number(value: Any, most: float) -> float:
    if type(value) not in (int, float) or not abs(value) <= most:  # NaN compares False
        raise RefusedIntentError("malformed" if type(value) not in (int, float) or value == value else "not a number")
    return float(value)
