"""What a policy expects and gives, independent of how it computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robolearn_data.schema import Schema, SchemaError, Stream, UserError


class SpecError(UserError):
    """A policy and the data or world it was given do not fit together."""


@dataclass(frozen=True)
class FastSpec:
    """The fast half of a slow-fast policy: what it reads, and how often it acts. See policies/reactive."""

    observation: Mapping[str, Stream]
    """What it reads, all of it numbers: (F,) at a rate of its own, or (n, F): n readings in each control period."""
    ticks: int
    """How often it acts in a control period (K)."""
    latent: int
    """Numbers of the slow half's chunk for each control step (W), which it makes actions of."""


@dataclass(frozen=True)
class PolicySpec:
    """Observation and action streams, horizons in control steps, and the rate they are meant for.

    A chunk has ``horizon`` (Tp) actions. Its action i belongs to control step ``i - (obs_horizon - 1)`` relative to
    the newest observation, so that index ``obs_horizon - 1`` is the first one still to be carried out and
    ``[start : start + action_horizon]`` (Ta of them) is executed before the next chunk in synchronous control.
    """

    observation: Mapping[str, Stream]
    action: Stream
    rate_hz: float
    obs_horizon: int
    horizon: int
    action_horizon: int
    components: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of a state stream named here, the only components that the policy sees."""
    goal: Mapping[str, Stream] = field(default_factory=dict)
    """Streams whose value at the goal the policy is told; empty: it has no goal. See goals.py."""
    goal_components: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """As ``components``, of the goal."""
    fast: FastSpec | None = None
    """The fast half, of a policy that has one."""

    def __post_init__(self) -> None:
        if self.obs_horizon < 1 or self.action_horizon < 1:
            raise SpecError("obs_horizon and action_horizon must be at least 1")
        if self.start + self.action_horizon > self.horizon:
            raise SpecError(
                f"horizon {self.horizon} is too short: obs_horizon {self.obs_horizon} - 1 + action_horizon "
                f"{self.action_horizon} = {self.start + self.action_horizon} steps are needed"
            )
        chosen = ((self.observation, self.components), (self.goal, self.goal_components))
        for name, indices, streams in ((n, i, s) for s, components in chosen for n, i in components.items()):
            stream = streams.get(name)
            if stream is None or stream.kind != "state" or not all(0 <= i < stream.size for i in indices):
                raise SpecError(f"components {indices} of {name!r} do not exist in what the policy observes")
        if not self.observation:
            raise SpecError("the policy observes nothing; name at least one stream of kind state, image or points")

    @property
    def start(self) -> int:
        """Index in the chunk of the first action to be executed: ``obs_horizon - 1``."""
        return self.obs_horizon - 1

    @property
    def chunk(self) -> Stream:
        """What a chunk has for each control step: an action; of a slow-fast policy a part of the latent, (W,)."""
        return self.action if self.fast is None else Stream((self.fast.latent,), kind="info")

    def check_fits(self, schema: Schema, where: str) -> None:
        """Check that ``schema`` (of a dataset or a world) offers what this policy needs.

        Raises:
            SpecError: a stream is missing or has another shape, or the control rate differs.
        """
        if self.action.unit == "latent":
            raise SpecError(
                "the policy predicts latent actions, which move nothing: train it on episodes with robot actions "
                "first, `robolearn train DATASET --start-from RUN`"
            )
        fast = self.fast.observation if self.fast else {}
        for name, mine in {**self.observation, **fast, "action": self.action}.items():
            if name not in schema.streams:
                raise SpecError(
                    f"the policy needs the stream {name!r}, which {where} does not have; "
                    f"it has: {', '.join(sorted(schema.streams))}"
                )
            theirs = schema.streams[name]
            if theirs.shape != mine.shape:
                raise SpecError(
                    f"stream {name!r} has shape {theirs.shape} in {where}, the policy needs {mine.shape}; "
                    "give the world or dataset that it was made for"
                )
        if abs(schema.rate_hz - self.rate_hz) > 1e-6 * self.rate_hz:
            raise SpecError(
                f"the policy was trained at {self.rate_hz:g} Hz, {where} runs at {schema.rate_hz:g} Hz; "
                "train on data of that rate or choose another world"
            )

    def to_json(self) -> dict[str, Any]:
        streams = {**self.observation, "action": self.action}
        goal = {
            "goal": Schema(self.rate_hz, self.goal).to_json()["streams"],
            "goal_components": {name: list(indices) for name, indices in self.goal_components.items()},
        }
        return {
            **Schema(self.rate_hz, streams).to_json(),
            "obs_horizon": self.obs_horizon,
            "horizon": self.horizon,
            "action_horizon": self.action_horizon,
            "components": {name: list(indices) for name, indices in self.components.items()},
            **(goal if self.goal else {}),
            **({"fast": self._fast_json(self.fast)} if self.fast else {}),
        }

    def _fast_json(self, fast: FastSpec) -> dict[str, Any]:
        streams = Schema(self.rate_hz, fast.observation).to_json()["streams"]
        return {"streams": streams, "ticks": fast.ticks, "latent": fast.latent}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PolicySpec:
        rest = dict(value)
        try:
            horizons = {k: int(rest.pop(k)) for k in ("obs_horizon", "horizon", "action_horizon")}
            components, goal_components = (
                {str(name): tuple(map(int, indices)) for name, indices in rest.pop(key, {}).items()}
                for key in ("components", "goal_components")
            )
            goal = Schema.from_json({"rate_hz": rest["rate_hz"], "streams": rest.pop("goal", {})}).streams
            fast = rest.pop("fast", None)
            if fast is not None:
                read = Schema.from_json({"rate_hz": rest["rate_hz"], "streams": fast["streams"]}).streams
                fast = FastSpec(read, int(fast["ticks"]), int(fast["latent"]))
            schema = Schema.from_json(rest)
            streams = dict(schema.streams)
            action = streams.pop("action")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SchemaError(f"the policy's spec cannot be read: {error!r}") from error
        return cls(
            observation=streams,
            action=action,
            rate_hz=schema.rate_hz,
            components=components,
            goal=goal,
            goal_components=goal_components,
            fast=fast,
            **horizons,
        )
