"""`robolearn eval CHECKPOINT --world pusht --episodes 500 --seed 100000`: counts successes in simulation."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from robolearn.cli.goals import read_goal
from robolearn_data.schema import UserError

if TYPE_CHECKING:
    from robolearn.evaluation import EpisodeResult, Evaluation
    from robolearn.evaluation.lockstep import Rollout, WorldFactory
    from robolearn.policies.policy import Policy
    from robolearn.policies.spec import PolicySpec
    from robolearn_deploy.delayed import Delays


ENVS: dict[str, int] = dict.fromkeys(("lift", "can", "square", "stack", "door"), 8)
"""Worlds in a process by default, where they are too heavy for 32."""


@dataclass(frozen=True)
class Eval:
    """Run a checkpoint in simulation; print score and success with 95 % intervals; save results, a plot and videos.

    Episode i starts from seed + i, and the policy's noise depends on that number alone: the same command gives the
    same episodes, whatever the number of workers (floating-point rounding aside).
    """

    checkpoint: Positional[Path]
    """A checkpoint folder, or the folder of a training run (then its newest checkpoint)."""
    world: str
    """Where to run it: pusht, lift, can, square, stack, door, so101_tabletop, so101_language, wipe,
    metaworld/TASK; or NAME/VARIANT, such as so101_language/new-pairs or wipe/perturbed."""
    episodes: int = 50
    """How many. 50 tell 80 % from 95 %; 500 tell 80 % from 85 %."""
    seed: int = 100_000
    """Start of the first episode; the next ones follow. Training data use small seeds, tests 100000 and up."""
    steps: int | None = None
    """Denoising or integration steps of the sampler; by default those the policy was configured with."""
    sampler: Literal["ddim", "ddpm"] | None = None
    """For a diffusion policy: ddim (few steps) or ddpm (all of them)."""
    workers: int | None = None
    """Processes; by default one for each core. 0 runs everything in this process."""
    envs: int | None = None
    """Worlds stepped together in each process, whose inference is one batch; by default 8 of lift (they take 100 MB
    each) and 32 of the others."""
    scheduler: str | None = None
    """Let time pass while the policy thinks, and bridge it by sync, naive, ensemble, rtc, rtc-identity, rtc-trained,
    bid or streaming. By default the world waits for the policy."""
    delay: str | None = None
    """With a scheduler: control steps from an observation to the first action of its chunk, or a file of delays that
    `robolearn deploy --json FILE` has measured. 0 by default."""
    replan: int | None = None
    """With a scheduler: control steps between the observations of two chunks, at least; by default the scheduler's
    choice, which for most is the number of actions that the policy was configured to carry out of each chunk."""
    instruction: str | None = None
    """Tell the policy this all the time, in place of what the world says; so101_language counts it as its task."""
    guidance: float | None = None
    """Scale of classifier-free guidance, for a flow or diffusion policy that was trained with --policy.condition-drop;
    by default what it was trained with, which is mostly 1: none."""
    goal: str | None = None
    """For a policy that takes a goal: DATASET or DATASET:EPISODE, whose last observation is the goal. Without it the
    policy acts without one."""
    images: Literal["auto", "on", "off"] = "auto"
    """Camera streams of the world; auto: when the policy observes one."""
    json: Path | None = None
    """Write all results to this file too."""
    out: Path | None = None
    """Folder for results.json, plot.png and videos; by default eval-WORLD in the checkpoint's folder."""
    videos: bool = True
    """Run the best, the median and the worst episode once more and save them as best.mp4, median.mp4, worst.mp4."""


def run(options: Eval) -> int:
    """Run a checkpoint in simulation."""
    _check(options)
    from robolearn.evaluation import evaluate
    from robolearn.evaluation.plots import evaluation_figure
    from robolearn.policies.checkpoint import load_instruction_limit, load_policy, load_spec, resolve_checkpoint
    from robolearn_data.instructed import instructed, with_texts
    from robolearn_deploy.instructions import InstructionCheck, accept
    from robolearn_sim.worlds import make_world, world_spec

    overrides: dict[str, Any] = {} if options.sampler is None else {"sampler": options.sampler}
    checkpoint = resolve_checkpoint(options.checkpoint)
    if options.guidance is not None:
        overrides["guidance"] = options.guidance
    if options.goal is not None:
        overrides["goal"] = read_goal(options.goal, load_spec(checkpoint))
    load = functools.partial(load_policy, checkpoint, "cpu", **overrides)
    policy = load()
    observes_images = any(s.kind == "image" for s in policy.spec.observation.values())
    images = observes_images if options.images == "auto" else options.images == "on"
    world_options = {"images": True} if images else {}
    spec = world_spec(options.world, **world_options)
    schema = spec.schema
    factory: WorldFactory = functools.partial(make_world, options.world, **world_options)
    texts = {name: stream for name, stream in policy.spec.observation.items() if stream.kind == "text"}
    if options.instruction is not None:
        if not texts:
            raise UserError("--instruction: this policy reads no instruction; leave it out")
        schema = with_texts(spec, texts).schema
        InstructionCheck(schema.streams, load_instruction_limit(checkpoint) or accept)(options.instruction)
        factory = functools.partial(instructed, factory, texts, options.instruction)
    elif missing := texts.keys() - schema.streams.keys():
        raise UserError(
            f"the policy reads the text {min(missing)!r}, and the world {options.world} says nothing: tell it what to "
            "do with --instruction"
        )
    policy.spec.check_fits(schema, f"world {options.world}")
    how = rollout_of(options.scheduler, options.delay, options.replan, policy.spec)

    out = options.out or options.checkpoint / f"eval-{options.world}"
    out.mkdir(parents=True, exist_ok=True)  # Before the work, so that a path that cannot be written costs nothing.
    seeds = range(options.seed, options.seed + options.episodes)
    workers = (os.cpu_count() or 1) if options.workers is None else options.workers
    with _Bar(options.episodes) as on_result:
        evaluation = evaluate(
            load,
            factory,
            seeds,
            steps=options.steps,
            workers=workers,
            envs_per_worker=options.envs or ENVS.get(options.world, 32),
            latency_calls=100,
            rollout=how,
            on_result=on_result,
        )
    _print(evaluation, workers)
    results = {"checkpoint": str(options.checkpoint), "sampler": options.sampler, "sampler_steps": options.steps}
    results |= {
        "goal": options.goal,
        "guidance": options.guidance,
        "scheduler": options.scheduler,
        "delay": options.delay,
        "replan": options.replan,
    }
    results |= evaluation.to_json()
    if options.videos:
        results["videos"] = _film(evaluation, policy, factory, out, options.steps, how)
    for path in (out / "results.json", options.json):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    evaluation_figure(evaluation.results).savefig(out / "plot.png")
    print(f"saved    {out}{f' and {options.json}' if options.json else ''}")
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Eval, run)}


def _check(options: Eval) -> None:
    for name, least in (("episodes", 1), ("seed", 0), ("workers", 0), ("envs", 1), ("steps", 1), ("replan", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value} is too small; give {least} or more")
    if options.scheduler is None and (options.delay is not None or options.replan is not None):
        raise UserError("--delay and --replan say when a scheduler infers; name one with --scheduler, such as naive")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; name a folder")


@dataclass(frozen=True)
class DelayedRollout:
    """A ``robolearn.evaluation`` way to run episodes: the runtime's schedulers in virtual time."""

    scheduler: str
    delays: Delays
    replan: int | None = None

    def __call__(
        self, policy: Policy, make_world: WorldFactory, seeds: Sequence[int], *, worlds: int, steps: int | None
    ) -> Iterator[EpisodeResult]:
        from robolearn.evaluation import EpisodeResult
        from robolearn_deploy.delayed import rollout_delayed
        from robolearn_deploy.schedulers import find

        how = {"scheduler": find(self.scheduler), "delays": self.delays, "least": self.replan, "steps": steps}
        for episode in rollout_delayed(policy, make_world, seeds, worlds=worlds, **how):
            yield EpisodeResult(**vars(episode))


def rollout_of(scheduler: str | None, delay: str | None, replan: int | None, spec: PolicySpec) -> Rollout:
    """What the options of that name ask for.

    Raises:
        SchedulerError, DelayError: there is no such scheduler, or it cannot work with this policy and delay.
    """
    if scheduler is None:
        from robolearn.evaluation.lockstep import rollout

        return rollout
    from robolearn_deploy.delayed import Delays, check
    from robolearn_deploy.schedulers import find

    text = delay or "0"
    whole = text.lstrip("-").isdigit()
    delays = Delays.fixed(int(text)) if whole else Delays.from_trace(Path(text), spec.rate_hz)
    check(find(scheduler), spec, delays, replan)
    return DelayedRollout(scheduler, delays, replan)


class _Bar:
    """A progress bar of episodes done, with the success so far."""

    def __init__(self, episodes: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, TimeRemainingColumn())
        self._task = self._progress.add_task("starting", total=episodes)
        self._done = self._solved = 0

    def __enter__(self) -> Callable[[EpisodeResult], None]:
        self._progress.start()
        return self._advance

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def _advance(self, result: EpisodeResult) -> None:
        self._done += 1
        self._solved += result.success
        solved = f"{100 * self._solved / self._done:.0f} % solved"
        self._progress.update(self._task, advance=1, description=solved)


def _print(evaluation: Evaluation, workers: int) -> None:
    e = evaluation
    low, high = e.score_interval
    print(f"score    {e.score:.3f}   95 % interval [{low:.3f}, {high:.3f}]   mean of {e.episodes} episodes")
    low, high = (100 * v for v in e.success_interval)
    rate = 100 * e.success_rate
    print(f"success  {rate:.1f} %  95 % interval [{low:.1f}, {high:.1f}] %   {e.successes} of {e.episodes}")
    if e.jerk is not None:
        join = "no joins" if e.join is None else f"{e.join:.2f} times the change of a step inside a chunk"
        held = sum(r.held for r in e.results)
        print(f"motion   jerk {e.jerk:,.0f} units/s^3   joins {join}   held {held} of {e.steps} steps")
    if e.latency:
        how = f"batch 1, one thread, {e.latency.calls} calls"
        print(f"latency  {e.latency.ms_p50:.1f} ms p50, {e.latency.ms_p99:.1f} ms p99 per chunk   {how}")
    where = f"{workers} processes" if workers else "this process"
    print(f"speed    {e.steps_per_s:,.0f} steps/s, {e.wall_s:.1f} s   batched inference included, {where}")
    if e.non_finite:
        print(f"warning  {e.non_finite} episodes ended because the policy gave NaN or infinity; counted as failures")


def _film(
    evaluation: Evaluation, policy: Policy, factory: WorldFactory, out: Path, steps: int | None, rollout: Rollout
) -> dict[str, dict[str, Any]]:
    from dataclasses import asdict

    from rich.progress import track

    from robolearn.evaluation.video import film

    ranked = evaluation.by_score()
    chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
    policy.eval()
    films = {}
    for name, result in track(chosen.items(), description="filming"):
        films[name] = asdict(film(policy, factory, result.seed, out / f"{name}.mp4", steps=steps, rollout=rollout))
    return films
