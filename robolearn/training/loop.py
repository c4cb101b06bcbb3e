"""The training loop, top to bottom: one step is read in `optimise` from the batch's numbers to the averaged weights.

`train` prepares it for a policy, and latent.py for a latent-action model.

Nothing random is carried from step to step. The order of the windows, noise and times are functions of (seed, step),
so that a resumed run equals one that was never stopped, and several processes compute what one would.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from robolearn.evaluation.results import Evaluation
from robolearn.evaluation.rollout import evaluate
from robolearn.policies.checkpoint import save_policy
from robolearn.policies.latent.model import LatentActionModel
from robolearn.policies.policy import Policy
from robolearn.policies.start import start_from, started_statistics
from robolearn.policies.tensor_file import gather_tensors
from robolearn.policies.trunks.nearest import Nearest
from robolearn.policies.vla.config import VlaConfig
from robolearn.training.batches import Batches, WindowBatches, to_device
from robolearn.training.config import (
    ConfigError,
    Images,
    OptimiserConfig,
    RunConfig,
    TrainConfig,
    dump_config,
    load_config,
)
from robolearn.training.ema import Ema
from robolearn.training.instructions import check_instructions
from robolearn.training.latent_labels import with_latents
from robolearn.training.metrics import MetricsLog, read_metrics, training_figure
from robolearn.training.processes import Processes
from robolearn.training.progress import TrainingBar
from robolearn.training.resume import Progress, gather_state, load_state, save_state
from robolearn.training.sources import fingerprint, open_sources, spec_for, statistics_for, streams_of
from robolearn_data.schema import UserError
from robolearn_data.statistics import degenerate_components
from robolearn_data.world import World

REPORT_EVERY = 50

M = TypeVar("M", Policy, LatentActionModel)


class Save(Protocol):
    def __call__(self, module: Any, folder: Path, /, *, dataset_fingerprint: str, step: int) -> None: ...


class FirstStage(NamedTuple):
    steps: int
    end: Callable[[Any, Ema[Any]], None]
    """Called after them with the module that is trained and its average."""


def train(
    config: TrainConfig,
    datasets: Sequence[str | Path],
    run: Path,
    group: Processes,
    *,
    make_world: Callable[[], World] | None = None,
    resume: bool = False,
    stop_at: int | None = None,
    workers: int = 0,
    images: Images = "auto",
) -> Policy:
    """Train a policy and write checkpoints, metrics and state into the folder ``run``.

    Args:
        datasets: folders or URLs.
        group: this process and its siblings, from ``processes()``.
        make_world: world to evaluate in every ``config.eval_every`` steps.
        resume: go on from the state in ``run``.
        stop_at: end after this step as if interrupted, with the state saved.
        workers: threads that prepare coming batches; 0: they are made when they are needed.
        images: where pictures are held; neither this nor ``workers`` changes the result.

    Returns:
        The policy with averaged weights, divided among the processes where ``group.shard`` is.

    Raises:
        UserError: data that does not suit, a model that cannot be sharded, a run folder in use, a loss that is not
            finite.
    """
    if group.shard and config.eval_every:
        raise ConfigError(
            "--shard: no process holds the whole policy to act with; leave --eval-every out, and run `robolearn eval` "
            "on the checkpoints"
        )
    sources = open_sources(datasets, config.held_out)
    observing = config
    if config.latent:
        sources, camera = with_latents(sources, config.latent, group.device, talk=group.first)
        if not config.observe and not isinstance(config.policy.trunk, VlaConfig):
            observing = replace(config, observe=(camera,))
    spec = spec_for(observing, sources)
    values = statistics_for(sources, spec)
    if config.start_from:
        values = started_statistics(spec, values, Path(config.start_from))
    batches = WindowBatches(
        sources,
        spec,
        batch_size=config.batch_size,
        seed=config.seed,
        weights=config.weights,
        pad_after=config.pad_after,
        goal_within=config.goal_within,
        images=images,
        rank=group.rank,
        processes=group.count,
        talk=group.first,
    )

    torch.manual_seed(config.seed)
    policy = Policy(spec, values, config.policy)
    anew = start_from(policy, Path(config.start_from)) if config.start_from else []
    check_instructions(policy, [(source.dataset, source.train) for source in sources])
    if isinstance(policy.trunk, Nearest):
        if group.shard:
            raise ConfigError("--shard: a policy that remembers has no weights to train; leave --shard out")
        policy = policy.to(group.device)
        return _remember(config, policy, batches, fingerprint(sources), run, group, make_world)
    constant = degenerate_components(streams_of(spec), values)
    notes = [f"constant in this data, hence centred but not scaled: {', '.join(constant)}"] if constant else []
    if config.start_from:
        notes.append(f"starts from {config.start_from}; new are {', '.join(anew) or 'no weights'}")

    half = config.policy.tokenizer

    def evaluated(averaged: Policy) -> Evaluation:
        assert make_world is not None
        return evaluate(averaged, make_world, range(config.eval_seed, config.eval_seed + config.eval_episodes))

    return optimise(
        policy,
        batches,
        config,
        fingerprint(sources),
        run,
        group,
        save=save_policy,
        evaluated=evaluated if make_world and config.eval_every else None,
        eval_every=config.eval_every,
        resume=resume,
        stop_at=stop_at,
        workers=workers,
        notes=notes,
        begin=FirstStage(half.steps, functools.partial(_settle, batches)) if half else None,
    )


def optimise(
    module: M,
    batches: Batches,
    config: RunConfig,
    data: str,
    run: Path,
    group: Processes,
    *,
    save: Save,
    evaluated: Callable[[M], Evaluation] | None = None,
    eval_every: int = 0,
    resume: bool = False,
    stop_at: int | None = None,
    workers: int = 0,
    notes: Sequence[str] = (),
    begin: FirstStage | None = None,
) -> M:
    """The loop. See ``train`` for what is not said here.

    Args:
        data: fingerprint of the datasets; a run is resumed with the same ones.
        save: writes a checkpoint.
        evaluated: what the averaged module achieves in a world, asked every ``eval_every`` steps.
        notes: lines for the person who watches.
        begin: what is learned before, in steps of its own.

    Returns:
        The module with averaged weights, as in ``train``.

    Raises:
        UserError: a run folder in use, or of another run; a loss that is not finite.
    """
    share = group.share(config.batch_size)
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and group.device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    if group.shard:
        from robolearn.training.sharding import check_shardable, shard

        check_shardable(module)
        divided = functools.partial(shard, group=group, bf16=bf16)
    else:
        module, divided = module.to(group.device), None
    ema = Ema(module, config.optimiser.ema_power, config.optimiser.ema_max, shard=divided)
    model = module
    if group.count > 1 and not group.shard:
        # Of two halves only one is trained at a time.
        model = DistributedDataParallel(module, find_unused_parameters=begin is not None)
    optimiser = torch.optim.AdamW(
        module.parameters(),
        lr=config.optimiser.lr,
        betas=config.optimiser.betas,
        weight_decay=config.optimiser.weight_decay,
        fused=True,
    )
    beginning = begin.steps if begin else 0
    total = beginning + config.steps
    first, cpu_s = _begin(config, data, run, group, resume, module, ema, optimiser)
    log = MetricsLog(run, first) if group.first else None
    last = total if stop_at is None else min(stop_at, total)
    reported: list[torch.Tensor] = []

    with (
        batches.coming(first, last, workers) as coming,
        TrainingBar(first, total, visible=group.first) as bar,
    ):
        for note in notes:
            bar.note(note)
        for step in range(first, last):
            began_cpu = time.process_time()
            if begin and step == begin.steps:
                begin.end(module, ema)
                bar.note(f"the first stage is over; {config.steps} steps of the second follow")
            stage, steps = (step, beginning) if step < beginning else (step - beginning, config.steps)
            draws = module.draw(config.batch_size, torch.Generator().manual_seed(_seed(config.seed, step)))
            torch.manual_seed(_seed(config.seed, step, group.rank))  # image crops
            batch = to_device(next(coming), group.device)

            for parameters in optimiser.param_groups:
                parameters["lr"] = learning_rate(config.optimiser, stage, steps)
            with torch.autocast(group.device.type, torch.bfloat16, enabled=bf16):
                losses = model(batch, {name: value[share] for name, value in draws.items()})
            loss = losses.total()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimiser.clip)
            optimiser.step()
            ema.update(module, stage)
            cpu_s += time.process_time() - began_cpu

            reported.append(loss.detach())
            done = step + 1
            saves = done % config.checkpoint_every == 0 or done == last
            if done % REPORT_EVERY == 0 or saves:
                mean = group.mean(torch.stack(reported).mean())
                reported.clear()
                if not math.isfinite(mean):
                    raise UserError(f"the loss is not finite at step {done}; lower --optimiser.lr or check the data")
                bar.update(done, mean)
                if log:
                    log.write(
                        {"step": done, "loss": mean, "lr": optimiser.param_groups[0]["lr"], "cpu_s": round(cpu_s, 3)}
                    )
            if saves and config.held_out and (log or group.shard):
                held_out = held_out_loss(ema.module, batches, group, bf16=bf16)
                if log:
                    log.write({"step": done, "held_out_loss": held_out})
            if saves and group.shard and not log:
                gather_tensors(ema.module.state_dict())
                gather_state(module, ema, optimiser)
            if saves and log:
                folder = run / "checkpoints" / f"{done:07d}"
                save(ema.module, folder, dataset_fingerprint=data, step=done)
                save_state(run, Progress(done, cpu_s, data), module, ema, optimiser)
                training_figure(read_metrics(run)).savefig(run / "loss.png")
            if log and evaluated and done > beginning and (done % eval_every == 0 or done == total):
                result = evaluated(ema.module)
                log.write({"step": done, "success_rate": result.success_rate, "score": result.score})
                bar.note(f"step {done}: {result.summary()}")
                training_figure(read_metrics(run)).savefig(run / "loss.png")
    return ema.module


@torch.no_grad()
def held_out_loss(module: Policy | LatentActionModel, batches: Batches, group: Processes, *, bf16: bool) -> float:
    """Mean loss on windows of the held-out episodes: the same windows, noise and times whenever it is asked for."""
    total, count = 0.0, 0
    for number, batch in enumerate(batches.held_out()):
        draws = module.draw(len(batch), torch.Generator().manual_seed(_seed(number)))
        with torch.autocast(group.device.type, torch.bfloat16, enabled=bf16):
            losses = module(to_device(batch, group.device), draws=draws)
        total += len(batch) * float(losses.total())
        count += len(batch)
    return total / count


def learning_rate(config: OptimiserConfig, step: int, steps: int) -> float:
    """Linear rise over the warm-up, then half a cosine to zero at the last step."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, steps - config.warmup)))


def _settle(batches: WindowBatches, policy: Policy, ema: Ema[Policy]) -> None:
    """From the tokenizer's training to that of the slow half: the averaged tokenizer is the one that stays."""
    trained, averaged = policy.tokenizer, ema.module.tokenizer
    assert trained is not None
    assert averaged is not None
    trained.load_state_dict(averaged.state_dict())
    for tokenizer in (trained, averaged):
        tokenizer.settle(policy.action(batch.action.to(policy.device)) for batch in batches.all())


def _begin(
    config: RunConfig,
    data: str,
    run: Path,
    group: Processes,
    resume: bool,
    module: nn.Module,
    ema: Ema,
    optimiser: torch.optim.Optimizer,
) -> tuple[int, float]:
    """Prepare the run folder, or take up the state in it. Returns (steps done, CPU seconds used)."""
    if resume:
        if load_config(run / "config.yaml", type(config)) != config:
            raise ConfigError(f"the options differ from those in {run / 'config.yaml'}; leave them out with --resume")
        progress = load_state(run, module, ema, optimiser)
        if progress.data != data:
            raise ConfigError(
                f"the data are not those that {run} was trained on so far; give the same datasets in order"
            )
        return progress.step, progress.cpu_s
    if group.first:
        _claim(config, run)
    return 0, 0.0


def _claim(config: RunConfig, run: Path) -> None:
    if (run / "config.yaml").exists():
        raise ConfigError(f"{run} holds a run already; add --resume to go on with it or choose another --out")
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_config(config))


def _remember(
    config: TrainConfig,
    policy: Policy,
    batches: WindowBatches,
    data: str,
    run: Path,
    group: Processes,
    make_world: Callable[[], World] | None,
) -> Policy:
    """The whole training of a policy without weights: its trunk keeps every window."""
    assert isinstance(policy.trunk, Nearest)
    policy.eval()
    began_cpu = time.process_time()
    policy.trunk.remember((policy.encode(batch.observation), policy.action(batch.action)) for batch in batches.all())
    cpu_s = time.process_time() - began_cpu
    if group.first:
        _claim(config, run)
        log = MetricsLog(run, 0)
        log.write({"step": 1, "cpu_s": round(cpu_s, 3)})
        if config.held_out:
            log.write({"step": 1, "held_out_loss": held_out_loss(policy, batches, group, bf16=False)})
        save_policy(policy, run / "checkpoints" / f"{1:07d}", dataset_fingerprint=data, step=1)
        if make_world and config.eval_every:
            result = evaluate(policy, make_world, range(config.eval_seed, config.eval_seed + config.eval_episodes))
            log.write({"step": 1, "success_rate": result.success_rate, "score": result.score})
        training_figure(read_metrics(run)).savefig(run / "loss.png")
    return policy


def _seed(*parts: int) -> int:
    """One 63-bit seed from several numbers (SplitMix64's mixing)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1
