"""What a run trains on: its datasets, the episodes held out of each, and the policy's spec and statistics from them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robolearn.policies.reactive.config import fast_spec
from robolearn.policies.spec import PolicySpec
from robolearn.policies.vla.config import VlaConfig
from robolearn.training.config import ConfigError, TrainConfig
from robolearn.training.instructions import INSTRUCTION, check_tasks
from robolearn_data.dataset import Dataset
from robolearn_data.location import Location
from robolearn_data.mixture import held_out
from robolearn_data.reading import dtype_as_read
from robolearn_data.schema import Schema, SchemaError, Stream
from robolearn_data.statistics import StreamStatistics, joint_statistics

_MEANING = ("shape", "kind", "names", "unit", "frame", "wraps", "relative")
"""Fields of a stream in which datasets must agree. Dtype and native rate are brought together in reading."""


@dataclass(frozen=True, eq=False)
class Source:
    """One dataset of a run."""

    dataset: Dataset
    train: Sequence[int]
    """Numbers of the episodes that are learned from."""
    held_out: Sequence[int]
    """Of those that are not, on which the loss is reported."""


def open_sources(paths: Sequence[str | Path], part_held_out: float = 0.0) -> list[Source]:
    """Open datasets and hold out a part of the episodes of each: the same ones whatever the seed of the run.

    Raises:
        DatasetError: a dataset cannot be read.
        ConfigError: one has no episode to train on.
    """
    found = []
    for path in paths:
        dataset = Dataset.open(path)
        if not dataset.episodes:
            raise ConfigError(f"{path} has no episodes to train on; `robolearn data info` shows what it holds")
        try:
            found.append(Source(dataset, *held_out(dataset.episodes, part_held_out)))
        except SchemaError as error:
            raise ConfigError(f"--held-out: {path}: {error}") from None
    return found


def spec_for(config: TrainConfig, sources: Sequence[Source]) -> PolicySpec:
    """The spec of a policy with this configuration on these datasets, which must agree in its streams.

    Raises:
        ConfigError: a stream that a dataset does not have, nothing to observe, or datasets that do not agree.
    """
    schema = sources[0].dataset.schema
    if "action" not in schema.streams:
        raise ConfigError(f"the dataset has no stream 'action'; it has: {', '.join(sorted(schema.streams))}")
    texts = {"instruction": INSTRUCTION, **schema.of_kind("text")}
    everything = (*texts, *schema.of_kind("state", "image"))
    default = everything if isinstance(config.policy.trunk, VlaConfig) else tuple(schema.of_kind("state"))
    observation, components = _chosen("--observe", config.observe or default, schema, texts)
    goal, goal_components = _chosen("--goal", config.goal, schema, {})
    policy, fast = config.policy, None
    if policy.tokenizer is not None:
        fast = fast_spec(_felt(config.feel, schema), schema.rate_hz, policy.horizon, policy.tokenizer)
    elif config.feel:
        raise ConfigError("--feel names what the fast half of a slow-fast policy reads: add --policy reactive")
    spec = PolicySpec(
        observation=observation,
        action=schema.streams["action"],
        rate_hz=schema.rate_hz,
        obs_horizon=policy.obs_horizon,
        horizon=policy.horizon,
        action_horizon=policy.action_horizon,
        components=components,
        goal=goal,
        goal_components=goal_components,
        fast=fast,
    )
    if "instruction" in spec.observation:
        for source in sources:
            if "instruction" not in source.dataset.schema.streams:
                check_tasks(source.dataset, source.train, "leave instruction out of --observe")
    for source in sources[1:]:
        _check_agrees(source.dataset, spec, sources[0].dataset.location)
    return spec


def _felt(names: Sequence[str], schema: Schema) -> dict[str, Stream]:
    """What the fast half of a slow-fast policy reads."""
    states = schema.of_kind("state")
    chosen = names or [name for name in states if name.startswith("wrench")]
    unknown = [name for name in chosen if name not in states]
    if unknown or not chosen:
        what = f"--feel {unknown[0]}: not a stream of kind state" if unknown else "no stream 'wrench' to react to"
        raise ConfigError(f"{what}; name one with --feel: {', '.join(states)}")
    return {name: states[name] for name in chosen}


def _chosen(
    option: str, items: Sequence[str], schema: Schema, texts: Mapping[str, Stream]
) -> tuple[dict[str, Stream], dict[str, tuple[int, ...]]]:
    """Streams that ``items`` ("stream" or "stream:component,component") name, and the components chosen of them.

    Args:
        texts: those that may be named too.
    """
    usable = {**schema.of_kind("state", "image", "points"), **texts}
    kinds = "state, image, points or text" if texts else "state, image or points"
    streams: dict[str, Stream] = {}
    components: dict[str, tuple[int, ...]] = {}
    for item in items:
        name, _, chosen = item.partition(":")
        if name not in usable:
            valid = ", ".join(usable)
            raise ConfigError(f"{option} {name}: not a stream of kind {kinds}; valid: {valid}")
        streams[name] = usable[name]
        if usable[name].kind == "image" and dtype_as_read(usable[name]) != "uint8":
            raise ConfigError(f"{option} {name}: its pictures are {usable[name].dtype}; a policy sees 8-bit ones")
        if chosen:
            names = usable[name].names
            unknown = [part for part in chosen.split(",") if part not in names]
            if unknown:
                raise ConfigError(f"{option} {item}: {name} has no component {unknown[0]!r}; valid: {', '.join(names)}")
            components[name] = tuple(names.index(part) for part in chosen.split(","))
    return streams, components


def statistics_for(sources: Sequence[Source], spec: PolicySpec) -> dict[str, StreamStatistics]:
    """Of the action and of what is observed, over the episodes that all datasets train on."""
    streams = streams_of(spec)
    numeric = [name for name, stream in streams.items() if stream.kind not in ("image", "text")]
    return joint_statistics([(source.dataset, source.train) for source in sources], numeric)


def streams_of(spec: PolicySpec) -> dict[str, Stream]:
    """All that is read of a dataset."""
    return {**spec.observation, **(spec.fast.observation if spec.fast else {}), **spec.goal, "action": spec.action}


def fingerprint(sources: Sequence[Source]) -> str:
    """Names the data of a run (hex). Of a single dataset it is the dataset's own."""
    found = [source.dataset.fingerprint() for source in sources]
    return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]


def _check_agrees(dataset: Dataset, spec: PolicySpec, first: Location) -> None:
    here, hint = dataset.location, "train on datasets of one kind"
    rate_hz = dataset.schema.rate_hz
    if abs(rate_hz - spec.rate_hz) > 1e-6 * spec.rate_hz:
        raise ConfigError(f"{here} has a control rate of {rate_hz:g} Hz, {first} one of {spec.rate_hz:g} Hz; {hint}")
    for name, ours in streams_of(spec).items():
        theirs = dataset.schema.streams.get(name)
        if name == "instruction" and ours.kind == "text" and theirs is None:
            continue  # its tasks are read; see instructions.py
        if theirs is None:
            raise ConfigError(f"{here} has no stream {name!r}, which {first} has; {hint}")
        for field in _MEANING:
            a, b = getattr(ours, field), getattr(theirs, field)
            unstated = field in ("names", "unit", "frame") and not (a and b)
            if a != b and not unstated:
                raise ConfigError(f"stream {name!r} has {field} {b!r} in {here} and {a!r} in {first}; {hint}")
        if theirs.kind == "image" and dtype_as_read(theirs) != "uint8":
            raise ConfigError(f"stream {name!r} holds {theirs.dtype} pictures in {here}; a policy sees 8-bit ones")
