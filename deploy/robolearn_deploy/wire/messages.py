"""The messages between a policy server and its clients: openpi's, and under the key "robolearn" what they lack.

The server speaks first, with its metadata. Then a client sends observations, a dict of arrays and texts, and gets dicts
with "actions" back. Our own peers find a dict under ``EXTENSION`` in each message, which others ignore:

| message | from | holds |
|---|---|---|
| metadata | server | version, spec, scheduler, checks |
| request | client | id, sequence, capture_ns, deadline_ns, offset_ns, uncertainty_ns, partial, committed |
| reply | server | id, final, timing_ms, server_ns; beside it "actions" and openpi's "server_timing" |
| failure | server | id, error |
| check | client | id, instruction: may the policy be told this? |
| accepted | server | id, accepted; else a failure |
| ping | client | ping |
| pong | server | ping, received_ns, sent_ns |

Instants are CLOCK_MONOTONIC ns of the machine that sends them; ``offset_ns`` takes the client's to the server's. What
comes from a peer is checked here: a reader raises ``WireError`` or returns what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import Stream, UserError
from robolearn_deploy.inference import Committed, Reply, Request
from robolearn_deploy.wire.codec import MAX_BYTES, WireError

VERSION = 1
EXTENSION = "robolearn"
PROMPT = "prompt"
"""Where openpi's clients put the instruction."""
MAX_TEXT = 300
"""Characters of a failure or a name from a peer that are shown."""


@dataclass(frozen=True)
class Clock:
    """The server's clock as its client knows it."""

    offset_ns: int
    """Server's minus client's."""
    uncertainty_ns: int
    """By how much it may be off."""


@dataclass(frozen=True, eq=False)
class IncomingRequest:
    """A request as a server sees it."""

    request: Request
    """In the server's clock."""
    id: int | None
    """Goes back with every answer to it; None for openpi's clients."""
    partial: bool
    """Whether parts of the chunk are welcome before it is whole."""


@dataclass(frozen=True)
class Answer:
    """What a server sent to a request: a reply or a failure; to a check: a failure or neither."""

    id: int | None
    reply: Reply | None
    error: str = ""
    server_ns: int = 0
    """From the arrival of the request to the sending of this answer."""


def metadata_message(spec: PolicySpec, *, name: str = "", scheduler: str = "", checks: bool = False) -> dict[str, Any]:
    """``checks``: the server answers ``check_message``."""
    extension = {"version": VERSION, "spec": spec.to_json(), "scheduler": scheduler, "checks": checks}
    return {"name": name, EXTENSION: extension}


def read_metadata(message: Any) -> tuple[PolicySpec | None, str]:
    """The spec of the policy (None: a server of openpi, which does not say), and the name of its scheduler.

    Raises:
        WireError: not a server of policies, or one of another version.
    """
    extension = read_extension(message)
    if extension is None:
        return None, ""
    version = extension.get("version")
    if type(version) is not int or version != VERSION:
        shown = version if type(version) is int else type(version).__name__
        raise WireError(f"the server speaks version {shown} of the protocol, this machine {VERSION}; update the older")
    scheduler = extension.get("scheduler", "")
    if not isinstance(scheduler, str):
        raise WireError("the scheduler in the server's metadata is not a text")
    try:
        spec = PolicySpec.from_json(extension["spec"])
        streams = [*spec.observation.values(), spec.action]
        sizes = [s.size * np.dtype(s.dtype).itemsize for s in streams]
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WireError(f"the spec in the server's metadata cannot be read: {_line(error)}") from error
    if max(sum(sizes[:-1]) * spec.obs_horizon, sizes[-1] * spec.horizon) > MAX_BYTES or min(sizes) < 0:
        raise WireError("the spec in the server's metadata describes larger arrays than a message may have")
    return spec, scheduler[:MAX_TEXT]


def request_message(request: Request, id: int, clock: Clock | None, *, partial: bool = True) -> dict[str, Any]:
    """For our own server. Without a ``clock`` it is told no deadline, and the client alone keeps it."""
    extension: dict[str, Any] = {
        "id": id,
        "sequence": request.sequence,
        "capture_ns": request.capture_ns,
        "partial": partial,
    }
    if clock is not None:
        extension |= {"offset_ns": clock.offset_ns, "uncertainty_ns": clock.uncertainty_ns}
        extension["deadline_ns"] = request.deadline_ns
    if (committed := request.committed) is not None:
        extension["committed"] = {
            "actions": np.asarray(committed.actions),
            "delay": committed.delay,
            "execute": committed.execute,
        }
    return {**request.observation, EXTENSION: extension}


def read_request(message: Any, spec: PolicySpec, received_ns: int, *, sequence: int = 0) -> IncomingRequest:
    """What a client, ours or openpi's, asks of a policy with ``spec``.

    An array is (To, *stream shape), or one sample where To is 1. A text is UTF-8 bytes or str; "prompt" too is taken
    for the policy's only text.

    Args:
        sequence: of requests that have no number of their own.

    Raises:
        WireError: an observation is missing or does not fit, or the extension is malformed.
    """
    extension = read_extension(message)
    observation = {name: _observed(message, name, stream, spec) for name, stream in spec.observation.items()}
    if extension is None:
        return IncomingRequest(Request(sequence, received_ns, observation), id=None, partial=False)
    capture_ns = _integer(extension, "capture_ns", received_ns)
    deadline_ns = 0
    if "offset_ns" in extension:
        offset_ns = _integer(extension, "offset_ns")
        capture_ns += offset_ns
        if client_deadline_ns := _integer(extension, "deadline_ns", 0):
            # As late as it may be: nothing is left undone that could still be in time.
            deadline_ns = client_deadline_ns + offset_ns + _integer(extension, "uncertainty_ns", 0)
    else:
        capture_ns = received_ns
    sequence = _integer(extension, "sequence", sequence)
    if sequence < 0:
        raise WireError("the sequence of a request must be 0 or more")
    request = Request(
        sequence=sequence,
        capture_ns=capture_ns,
        observation=observation,
        committed=_committed(extension["committed"], spec) if "committed" in extension else None,
        deadline_ns=deadline_ns,
    )
    return IncomingRequest(request, _integer(extension, "id"), partial=extension.get("partial") is True)


def reply_message(incoming: IncomingRequest, reply: Reply, spec: PolicySpec, *, server_ns: int) -> dict[str, Any]:
    """The answer to ``incoming``. openpi's clients get the actions from the present on, and none of the past."""
    timing_ms = {name: float(value) for name, value in reply.timing_ms.items()}
    server_timing = {f"{name}_ms": value for name, value in timing_ms.items()}
    server_timing["infer_ms"] = timing_ms.get("total", server_ns / 1e6)
    if incoming.id is None:
        return {"actions": reply.actions[spec.start :], "server_timing": server_timing}
    extension = {"id": incoming.id, "final": int(reply.final), "timing_ms": timing_ms, "server_ns": server_ns}
    return {"actions": reply.actions, "server_timing": server_timing, EXTENSION: extension}


def failure_message(id: int, error: str) -> dict[str, Any]:
    return {EXTENSION: {"id": id, "error": error}}


def check_message(id: int, instruction: str) -> dict[str, Any]:
    return {EXTENSION: {"id": id, "instruction": instruction}}


def accepted_message(id: int) -> dict[str, Any]:
    return {EXTENSION: {"id": id, "accepted": True}}


def read_check(message: Any) -> tuple[int, str] | None:
    """Number and instruction of a check; None if ``message`` is something else.

    Raises:
        WireError: malformed.
    """
    extension = read_extension(message)
    if extension is None or "instruction" not in extension:
        return None
    if not isinstance(extension["instruction"], str):
        raise WireError("the instruction to check is not a text")
    return _integer(extension, "id"), extension["instruction"]


def read_answer(message: Any, spec: PolicySpec) -> Answer:
    """An answer of our server.

    Raises:
        WireError: malformed, of the wrong shape, or NaN or infinite where it claims to be final.
    """
    extension = read_extension(message)
    if extension is None:
        raise WireError("an answer lacks its number")
    id = _integer(extension, "id")
    if "error" in extension:
        error = extension["error"]
        if not isinstance(error, str):
            raise WireError("the failure that the server reports is not a text")
        return Answer(id, None, " ".join(error[:MAX_TEXT].split()))
    if extension.get("accepted") is True:
        return Answer(id, None)
    final = _integer(extension, "final")
    if not 0 <= final <= spec.horizon:
        raise WireError(f"{final} actions of a chunk of {spec.horizon} cannot be final")
    timing = extension.get("timing_ms", {})
    if not isinstance(timing, dict) or len(timing) > 100:
        raise WireError("the timing in an answer is not a short dict")
    if not all(isinstance(k, str) and isinstance(v, int | float) for k, v in timing.items()):
        raise WireError("the timing in an answer is not made of names and numbers")
    actions = _actions(message, spec, horizon=spec.horizon, final=final)
    reply = Reply(actions, final, {name: float(value) for name, value in timing.items()})
    return Answer(id, reply, server_ns=_integer(extension, "server_ns", 0))


def plain_request_message(request: Request, spec: PolicySpec, keys: Mapping[str, str]) -> dict[str, Any]:
    """For a server of openpi: one sample where To is 1, texts as str, streams renamed by ``keys``."""
    message: dict[str, Any] = {}
    for name, stream in spec.observation.items():
        value = np.asarray(request.observation[name])
        if stream.kind == "text":
            message[keys.get(name, PROMPT)] = value[-1].tobytes().rstrip(b"\0").decode(errors="replace")
        else:
            message[keys.get(name, name)] = value[-1] if spec.obs_horizon == 1 else value
    return message


def read_plain_answer(message: Any, spec: PolicySpec) -> Answer:
    """A chunk from a server of openpi: its first action belongs to the present, so that the past is filled with it.

    More actions than the spec's chunk has are left out.

    Raises:
        WireError: no actions, too few of them, of the wrong shape, NaN or infinite.
    """
    if not isinstance(message, dict):
        raise WireError("an answer is not a dict")
    present = _actions(message, spec, horizon=None, final=spec.horizon - spec.start)
    actions = np.concatenate([np.repeat(present[:1], spec.start, axis=0), present[: spec.horizon - spec.start]])
    timing = message.get("server_timing")
    infer_ms = timing.get("infer_ms") if isinstance(timing, dict) else None
    if not isinstance(infer_ms, int | float) or not 0 <= infer_ms < 1e9:
        return Answer(None, Reply(actions, spec.horizon))
    return Answer(None, Reply(actions, spec.horizon, {"total": float(infer_ms)}), server_ns=int(infer_ms * 1e6))


def ping_message(ping: int) -> dict[str, Any]:
    return {EXTENSION: {"ping": ping}}


def pong_message(ping: int, received_ns: int, sent_ns: int) -> dict[str, Any]:
    return {EXTENSION: {"ping": ping, "received_ns": received_ns, "sent_ns": sent_ns}}


def read_ping(message: Any) -> int | None:
    """The number of a ping; None if ``message`` is something else."""
    extension = read_extension(message)
    return _integer(extension, "ping") if extension is not None and "ping" in extension else None


def read_pong(message: Any) -> tuple[int, int, int] | None:
    """(ping, received_ns, sent_ns) of a pong; None if ``message`` is something else."""
    extension = read_extension(message)
    if extension is None or "ping" not in extension:
        return None
    return _integer(extension, "ping"), _integer(extension, "received_ns"), _integer(extension, "sent_ns")


def read_extension(message: Any) -> dict[str, Any] | None:
    """What our peers add to ``message``; None from others.

    Raises:
        WireError: neither the one nor the other.
    """
    if not isinstance(message, dict):
        raise WireError(f"a message must be a dict, not {type(message).__name__}")
    extension = message.get(EXTENSION)
    if extension is not None and not isinstance(extension, dict):
        raise WireError(f"{EXTENSION!r} in a message must be a dict, not {type(extension).__name__}")
    return extension


def _observed(message: dict[Any, Any], name: str, stream: Stream, spec: PolicySpec) -> np.ndarray:
    value = message.get(name)
    texts = [n for n, s in spec.observation.items() if s.kind == "text"]
    if value is None and texts == [name]:
        value = message.get(PROMPT)
    if value is None:
        raise WireError(f"the observation {name!r} is missing; the policy needs: {', '.join(spec.observation)}")
    if stream.kind == "text" and isinstance(value, str):
        if "\0" in value:
            raise WireError(f"the text {name!r} holds a zero")
        value = np.array([value] * spec.obs_horizon)
    elif isinstance(value, list) and all(type(number) in (int, float, bool) for number in value):
        value = np.asarray(value, np.float64)
    elif isinstance(value, bool | int | float | np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        raise WireError(f"the observation {name!r} must be an array, not {type(value).__name__}")
    if spec.obs_horizon == 1 and value.shape == stream.shape:
        value = value[None]
    try:
        with np.errstate(over="ignore"):
            checked = stream.check(name, value, batch=(spec.obs_horizon,))
    except UserError as error:
        raise WireError(_line(error)) from error
    if checked.dtype.kind == "f" and not np.isfinite(checked).all():  # too large for the policy's dtype
        raise WireError(f"stream {name!r} holds NaN or infinity")
    return checked


def _committed(value: Any, spec: PolicySpec) -> Committed:
    if not isinstance(value, dict):
        raise WireError("what is committed is not a dict")
    actions = value.get("actions")
    shape = (spec.horizon, *spec.action.shape)
    if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f" or actions.shape != shape:
        raise WireError(f"the committed actions must be floats of shape {shape}")
    with np.errstate(over="ignore"):
        actions = actions.astype(spec.action.dtype, copy=False)
    if np.isinf(actions).any():
        raise WireError("the committed actions hold infinity")
    delay, execute = _integer(value, "delay"), _integer(value, "execute")
    if not (0 <= delay <= spec.horizon and 0 <= execute <= spec.horizon):
        raise WireError(f"delay {delay} and execute {execute} must lie between 0 and the horizon {spec.horizon}")
    return Committed(actions, delay, execute)


def _actions(message: dict[Any, Any], spec: PolicySpec, *, horizon: int | None, final: int) -> np.ndarray:
    """ "actions" of an answer; with a ``horizon`` of None at least ``final`` of them."""
    actions = message.get("actions")
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiub":
        raise WireError("an answer holds no array of actions")
    length = actions.shape[0] if actions.ndim else 0
    if actions.shape[1:] != spec.action.shape or (length != horizon if horizon is not None else length < final):
        wanted = (horizon if horizon is not None else f">= {final}", *spec.action.shape)
        raise WireError(f"the actions in an answer have shape {actions.shape}, expected {wanted}".replace("'", ""))
    with np.errstate(over="ignore"):
        actions = actions.astype(spec.action.dtype, copy=False)
    if not np.isfinite(actions[:final]).all():
        raise WireError("the actions in an answer hold NaN or infinity")
    return actions


def _integer(fields: Mapping[Any, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name, default)
    if type(value) is not int:
        raise WireError(f"{name!r} in a message must be a whole number, not {type(value).__name__}")
    return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_TEXT]
