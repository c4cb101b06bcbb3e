"""Asks a policy about recorded moments and compares what it answers with what was done then; nothing moves.

At every Ta-th control step of an episode the policy is shown what it would have observed, as deployment asks it (one
``Request``, one thread, the noise of its sequence number), and its chunk is laid beside the recorded actions. Each
question stands alone: the robot does not move to where the policy would have taken it, and nothing is committed, so
that schedulers which look at the plan answer as for the first chunk of an episode.

A small error says that observations, units, normalisation and time are as in training. It does not say that the policy
solves the task; and a policy that has learned several ways to do it may well differ from the one recorded.

n = questions, F = actions of a chunk from the first one that can be carried out (F = Tp - start), A = components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from robolearn.policies.checkpoint import load_fingerprints, load_statistics, resolve_checkpoint
from robolearn.policies.spec import PolicySpec
from robolearn_data.dataset import Dataset
from robolearn_data.reading import View, WindowReader
from robolearn_data.schema import Observation, Stream, UserError
from robolearn_data.statistics import component_name
from robolearn_deploy.inference import Inference, Request
from robolearn_deploy.local_policy import LocalPolicy
from robolearn_deploy.policy_process import WARM_UP
from robolearn_hardware.clock import now_ns

if TYPE_CHECKING:
    from robolearn.policies.engines.compiled import EngineName

OUTSIDE = 0.01
"""Share of observed values beyond the range of the training data that is worth a warning."""
WORST = 3
_BLOCK = 32
_MEANING = ("names", "unit", "frame", "wraps", "relative", "interpolation", "rate_hz")
"""Fields of a stream that say what its numbers mean. Shapes and the control rate must be equal."""


class DryRunError(UserError):
    """There is nothing to compare."""


@dataclass(frozen=True)
class DryRunOptions:
    inferences: int = 400
    """At most so many questions, spread evenly over the dataset."""
    steps: int | None = None
    """Of the sampler; None for those of the checkpoint."""
    sampler: Literal["ddim", "ddpm"] | None = None
    seed: int = 0
    device: str = "cpu"
    engine: EngineName = "torch"


@dataclass(frozen=True)
class ComponentError:
    """Of one component of the action: mean absolute errors, in its unit."""

    name: str
    unit: str
    first: float
    """Of the first action that is carried out."""
    executed: float
    """Of the Ta actions that synchronous control carries out."""
    chunk: float
    """Of all that lie ahead."""
    spread: float
    """Standard deviation of the recorded actions; 0: it never changes, and is left out of what is relative."""


@dataclass(frozen=True)
class DryRunReport:
    checkpoint: str
    dataset: str
    inferences: int
    episodes: int
    belongs: str
    """Whether checkpoint and dataset belong together, in one line."""
    warnings: tuple[str, ...]
    components: tuple[ComponentError, ...]
    relative: dict[str, float | None]
    """Error of the executed actions over the spread, mean of the components: of the "policy", of "repeat" (the action
    before stays) and of "mean" (always the mean action). 1: as far off as the actions are apart."""
    along: tuple[float | None, ...]
    """(F,) the policy's, for each action of the chunk."""
    worst: tuple[tuple[int, float], ...]
    """Episodes with the largest relative error: number, error."""
    not_finite: int
    """Chunks with NaN or infinity."""
    ages_ms: dict[str, float]
    """Observed stream -> median age of what was observed at a control step."""
    inference_ms: dict[str, float]
    """"p50", "p99", "max" of one question, warm-up excluded."""

    @property
    def fault(self) -> str:
        """Why this policy should not move a robot, in one line; empty where nothing speaks against it."""
        if self.not_finite:
            return f"{self.not_finite} of {self.inferences} chunks hold NaN or infinity"
        policy = self.relative["policy"]
        for name, words in (("repeat", "repeating the last action"), ("mean", "always the mean action")):
            other = self.relative[name]
            if policy is not None and other is not None and policy >= other:
                return (
                    f"the policy is no better than {words} (error {policy:.3f} against {other:.3f} of the spread); "
                    "train longer, or check that dataset and checkpoint belong together"
                )
        return ""

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fault": self.fault}

    def __str__(self) -> str:
        width = max(9, *(len(c.name) for c in self.components))
        head = f"{'component':{width}}  {'first':>9}  {'executed':>9}  {'chunk':>9}  {'of spread':>9}  unit"
        rows = [
            f"{c.name:{width}}  {c.first:9.4g}  {c.executed:9.4g}  {c.chunk:9.4g}  "
            f"{f'{100 * c.executed / c.spread:7.1f} %' if c.spread else 'constant':>9}  {c.unit}"
            for c in self.components
        ]
        ages = "   ".join(f"{name} {ms:.1f} ms" for name, ms in self.ages_ms.items())
        ms = self.inference_ms
        lines = [
            f"data      {self.belongs}",
            *(f"warning   {text}" for text in self.warnings),
            f"asked     {self.inferences} times in {self.episodes} episodes",
            *(f"          {row}" for row in (head, *rows)),
            f"error     {self._compared()}",
            f"along     {' '.join(_number(x) for x in self.along)}   (of the spread, from the first action on)",
            f"worst     {', '.join(f'episode {e} ({x:.3f})' for e, x in self.worst)}",
            f"inference p50 {ms['p50']:.2f} ms   p99 {ms['p99']:.2f} ms   max {ms['max']:.2f} ms",
        ]
        if ages:
            lines.append(f"age       {ages}   (median, of what was observed at a control step)")
        return "\n".join(lines)

    def _compared(self) -> str:
        names = {"policy": "policy", "repeat": "repeating the last action", "mean": "the mean action"}
        return "   ".join(f"{words} {_number(self.relative[name])}" for name, words in names.items())


def dry_run(
    checkpoint: Path,
    dataset: str | Path,
    options: DryRunOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> DryRunReport:
    """Compare a checkpoint's policy with a dataset.

    Raises:
        CheckpointError, DatasetError: one of them cannot be read.
        EngineError: the engine is not installed, or cannot compute this network.
        SpecError: the dataset lacks a stream that the policy needs, or has another control rate.
        DryRunError: there are no recorded actions, or they never change.
    """
    options = options or DryRunOptions()
    checkpoint = resolve_checkpoint(checkpoint)
    data = Dataset.open(dataset)
    policy = LocalPolicy(
        checkpoint,
        steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        device=options.device,
        engine=options.engine,
    )
    replay = replayed(policy, data, options.inferences, progress)
    belongs, warnings = _belong(checkpoint, data, policy.spec)
    outside = replay.outside(load_statistics(checkpoint))
    return replay.report(str(checkpoint), belongs, (*warnings, *outside))


def replayed(
    policy: Inference,
    data: Dataset,
    inferences: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Replay:
    """Ask any policy. Raises as ``dry_run``."""
    if policy.spec.fast:
        raise UserError(
            "a dry run compares actions, and those of a slow-fast policy depend on the force that they meet; run it in "
            "a world: --world wipe"
        )
    policy.spec.check_fits(data.schema, f"dataset {data.location}")
    episode, step = questions(data, policy.spec, inferences)
    replay = Replay(data, policy.spec, episode)
    for done, answer in enumerate(_answers(policy, data, episode, step, replay.reader), 1):
        replay.add(*answer)
        progress(done, len(episode))
    return replay


def questions(dataset: Dataset, spec: PolicySpec, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At which moments the policy is asked: episodes (n,) and control steps in them (n,).

    Every Ta steps, where the Ta actions from there on are recorded; at the beginning of an episode in any case.
    """
    if most < 1:
        raise DryRunError(f"{most} inferences are too few; give 1 or more")
    if not dataset.episodes:
        raise DryRunError(f"{dataset.location} has no episodes; record some, or name another dataset")
    lengths = np.diff(dataset.episode_ends, prepend=0)
    ta = spec.action_horizon
    steps = [np.arange(0, max(length - ta, 0) + 1, ta) for length in lengths.tolist()]
    episode = np.repeat(np.arange(len(lengths)), [len(s) for s in steps])
    step = np.concatenate(steps)
    chosen = np.unique(np.linspace(0, len(step) - 1, min(most, len(step))).round().astype(int))
    return episode[chosen], step[chosen]


def _answers(
    policy: Inference, data: Dataset, episode: np.ndarray, step: np.ndarray, reader: WindowReader
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, float]]:
    """Of each question the window and what is missing of it, the chunk (Tp, *action), and the time it took in ms."""
    spec = policy.spec
    begin = np.concatenate(([0], data.episode_ends))
    ticks = data.times()
    period = 1e9 / spec.rate_hz
    for first in range(0, len(episode), _BLOCK):
        part = slice(first, first + _BLOCK)
        values, missing = reader.read(episode[part], step[part])
        for i, (e, s) in enumerate(zip(episode[part].tolist(), step[part].tolist(), strict=True)):
            row = begin[e] + s
            capture_ns = round(row * period) if ticks is None else int(ticks[row])
            window = {name: value[i] for name, value in values.items()}
            observation = {name: window[name] for name in spec.observation}
            if first + i == 0:
                for _ in range(WARM_UP):
                    _ask(policy, Request(0, capture_ns, observation))
            began_ns = now_ns()
            chunk = _ask(policy, Request(first + i, capture_ns, observation))
            yield window, {name: value[i] for name, value in missing.items()}, chunk, (now_ns() - began_ns) / 1e6


def _ask(policy: Inference, request: Request) -> np.ndarray:
    *_, whole = policy.infer(request)
    return whole.actions


class Replay:
    """What was answered, beside what was done."""

    def __init__(self, data: Dataset, spec: PolicySpec, episode: np.ndarray) -> None:
        """``episode`` (n,) of each question."""
        self._data, self._spec, self._episode = data, spec, episode
        views = {name: View(name, spec.obs_horizon) for name in spec.observation}
        views[_ACTION] = View("action", spec.horizon, ahead=spec.horizon - spec.obs_horizon)
        views[_BEFORE] = View("action", 2)
        self.reader = WindowReader(data, views, images="disk")
        self._chunks: list[np.ndarray] = []
        self._done: list[np.ndarray] = []
        self._before: list[np.ndarray] = []
        self._ms: list[float] = []
        self._newest: dict[str, list[np.ndarray]] = {n: [] for n, s in spec.observation.items() if s.kind == "state"}

    def add(self, window: Observation, missing: dict[str, np.ndarray], chunk: np.ndarray, ms: float) -> None:
        spec = self._spec
        done = window[_ACTION].reshape(spec.horizon, -1).astype(np.float64)
        done[missing[_ACTION]] = np.nan
        before = window[_BEFORE][0].reshape(-1).astype(np.float64)
        self._chunks.append(chunk.reshape(spec.horizon, -1)[spec.start :].astype(np.float64))
        self._done.append(done[spec.start :])
        self._before.append(np.full_like(before, np.nan) if missing[_BEFORE][0] else before)
        self._ms.append(ms)
        for name, values in self._newest.items():
            values.append(window[name][-1].reshape(-1))

    def report(self, checkpoint: str = "", belongs: str = "", warnings: tuple[str, ...] = ()) -> DryRunReport:
        """Raises DryRunError."""
        dataset = str(self._data.location)
        spec, ta = self._spec, self._spec.action_horizon
        chunk_nFA, done_nFA, before_nA = np.stack(self._chunks), np.stack(self._done), np.stack(self._before)
        finite = np.isfinite(chunk_nFA).all((1, 2))
        done_nFA[~finite] = np.nan
        executed = done_nFA[:, :ta]
        if not np.isfinite(done_nFA).any() and finite.any():
            raise DryRunError(f"no action is recorded at the {len(finite)} moments asked about; ask about more of them")
        mean_A = _mean(executed, (0, 1))
        spread_A = np.sqrt(_mean((executed - mean_A) ** 2, (0, 1)))
        spread_A = np.where(spread_A > 1e-6 * (1 + np.abs(mean_A)), spread_A, 0.0)
        if finite.any() and not spread_A.any():
            raise DryRunError(f"the recorded actions of {dataset} never change; nothing can be learned from them")
        error_nFA = np.abs(chunk_nFA - done_nFA)
        # All three on the same moments: those that have an action before them.
        has_before = np.isfinite(before_nA).all(-1)
        repeat_nFA = np.abs(before_nA[:, None] - executed)
        relative = {
            "policy": _relative(error_nFA[has_before][:, :ta], spread_A),
            "repeat": _relative(repeat_nFA[has_before], spread_A),
            "mean": _relative(np.abs(mean_A - executed)[has_before], spread_A),
        }
        per_episode = {int(e): _relative(error_nFA[self._episode == e][:, :ta], spread_A) for e in set(self._episode)}
        known = [(e, round(x, 4)) for e, x in per_episode.items() if x is not None]
        p50, p99, most = np.percentile(self._ms, [50, 99, 100])
        return DryRunReport(
            checkpoint=checkpoint,
            dataset=dataset,
            inferences=len(finite),
            episodes=len(per_episode),
            belongs=belongs,
            warnings=warnings,
            components=_components(spec, error_nFA, spread_A),
            relative=relative,
            along=tuple(_relative(error_nFA[:, i], spread_A) for i in range(error_nFA.shape[1])),
            worst=tuple(sorted(known, key=lambda x: -x[1])[:WORST]),
            not_finite=int((~finite).sum()),
            ages_ms=ages_ms(self._data, spec),
            inference_ms={"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(float(most), 3)},
        )

    def outside(self, trained: Any) -> Iterator[str]:
        """Warnings of what was observed beyond the range of the training data."""
        for name, values in self._newest.items():
            stream, seen = self._spec.observation[name], np.stack(values)
            low, high = trained[name].min.reshape(-1), trained[name].max.reshape(-1)
            margin = 1e-3 * (high - low) + 1e-6
            share = ((seen < low - margin) | (seen > high + margin)).mean(0)
            chosen = self._spec.components.get(name, range(stream.size))
            for i in chosen:
                if share[i] > OUTSIDE and i not in stream.wraps:
                    what = _name(name, stream, i)
                    yield (
                        f"{what} is beyond what the policy was trained on ({low[i]:.4g} to {high[i]:.4g}) in "
                        f"{100 * share[i]:.0f} % of the moments"
                    )


_ACTION, _BEFORE = "action", "action before"


def _belong(checkpoint: Path, data: Dataset, spec: PolicySpec) -> tuple[str, list[str]]:
    """Whether they belong together, in one line, and warnings of what differs."""
    trained, here = load_fingerprints(checkpoint)["dataset"], data.fingerprint()
    warnings = []
    if trained == here:
        belongs = f"the checkpoint was trained on this dataset ({here})"
    elif not trained:
        belongs = "unknown: the checkpoint does not say what it was trained on"
    else:
        belongs = f"another than the checkpoint was trained on (fingerprint {here}, trained on {trained})"
        warnings.append(
            "this is not the dataset that the checkpoint was trained on, or only one of several: errors are those on "
            "data that the policy has not seen; they are to be expected where the rig or the scene differs"
        )
    for name, mine in {**spec.observation, "action": spec.action}.items():
        theirs = data.schema.streams[name]
        for field in _MEANING:
            a, b = getattr(mine, field), getattr(theirs, field)
            if a != b:
                warnings.append(f"stream {name!r} has {field} {b!r} in the dataset and {a!r} in the checkpoint")
    return belongs, warnings


def ages_ms(data: Dataset, spec: PolicySpec) -> dict[str, float]:
    """Of each observed stream with capture times, the median age of its newest sample at the control steps, in ms.

    On a rig an observation is made at the capture of the newest state, whose age is then 0. Where it is more in the
    recording, the policy was trained on older states than it will be shown, by that much.
    """
    ticks = data.times()
    found = {}
    for name, stream in spec.observation.items():
        if ticks is None or stream.kind == "text":
            continue
        if stream.is_native:
            parts = []
            for episode in range(data.episodes):
                at, times = ticks[data.rows(episode)], data.samples(name, episode).time
                newest = np.searchsorted(times, at, side="right") - 1
                parts.append((at - times[np.maximum(newest, 0)])[newest >= 0] if len(times) else at[:0])
            ages = np.concatenate(parts)
        else:
            times = data.times(name)
            ages = np.empty(0) if times is None else (ticks - times)[times > 0]
        if len(ages):
            found[name] = round(float(np.median(ages)) / 1e6, 3)
    return found


def _components(spec: PolicySpec, error_nFA: np.ndarray, spread_A: np.ndarray) -> tuple[ComponentError, ...]:
    first_A, executed_A, chunk_A = (_mean(error_nFA[:, :n], (0, 1)) for n in (1, spec.action_horizon, None))
    size = spec.action.size
    units = spec.action.unit.split(",")
    units = units if len(units) == size else [spec.action.unit] * size
    return tuple(
        ComponentError(
            _name("action", spec.action, i),
            units[i],
            first=float(first_A[i]),
            executed=float(executed_A[i]),
            chunk=float(chunk_A[i]),
            spread=float(spread_A[i]),
        )
        for i in range(size)
    )


def _name(name: str, stream: Stream, component: int) -> str:
    return component_name(name, stream, [int(i) for i in np.unravel_index(component, stream.shape or (1,))])


def _mean(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Without what is NaN; NaN where nothing else is."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(axes) / np.where(known.any(axes), known.sum(axes), np.nan)


def _relative(error: np.ndarray, spread_A: np.ndarray) -> float | None:
    """Mean over the components that change of error (..., A) over spread (A,); None without any error."""
    changes = spread_A > 0
    values = _mean(error, tuple(range(error.ndim - 1)))[changes] / spread_A[changes]
    return float(values.mean()) if values.size and np.isfinite(values).all() else None


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
