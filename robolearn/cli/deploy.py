"""`robolearn deploy CHECKPOINT`: runs a policy in real time, on a rig of arms and cameras or against a world."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from robolearn.cli.goals import read_goal
from robolearn.cli.parse import UsageError, stderr_line
from robolearn_data.schema import UserError

if TYPE_CHECKING:
    from robolearn.policies.spec import PolicySpec
    from robolearn_deploy.fast import FastPolicy
    from robolearn_deploy.inference import Inference
    from robolearn_deploy.instructions import Check


@dataclass(frozen=True)
class Deploy:
    """Run a checkpoint in real time, on a rig or against a simulated world, and say how well the clock was kept.

    The policy runs in one process; arms, or the world, in another that never waits for it. On a rig every command goes
    through the arms' limits, and whatever falls silent (the policy, a camera, the recorder, this terminal) brings the
    arms to rest. Ctrl-C ends the run in order. The exit code is 1 when a process failed on the way.
    """

    checkpoint: Positional[Path | None] = None
    """A checkpoint folder, or the folder of a training run (then its newest checkpoint)."""
    policy: str | None = None
    """Instead of a checkpoint: ws://HOST:PORT or wss://HOST:PORT of a `robolearn serve`."""
    token_file: Path | None = None
    """The token of the policy's server, and of the page. Without it the variable ROBOLEARN_TOKEN holds it."""
    certificate: Path | None = None
    """The server's certificate, where no authority that this system trusts has signed it."""
    rig: Path | None = None
    """A rig file (hardware/rigs; those that end in _twin need no robot)."""
    world: str | None = None
    """Or a simulated world, as of `robolearn eval`: pusht, lift, so101_tabletop, so101_language, wipe, ..."""
    seconds: float = 30.0
    """How long."""
    episodes: int | None = None
    """Stop after this many episodes too. In a world a new one begins whenever the last is over; on a rig each begins at
    the reset pose and ends with the key s, f or d, or after --episode-s. Without: on a rig one that goes on."""
    out: Path | None = None
    """Record what happens as a dataset here."""
    seed: int = 0
    """Start of the first episode in a world; the next ones follow. Also seeds the policy's noise."""
    steps: int | None = None
    """Denoising or integration steps of the sampler; by default those the policy was configured with."""
    sampler: Literal["ddim", "ddpm"] | None = None
    """For a diffusion policy: ddim (few steps) or ddpm (all of them)."""
    goal: str | None = None
    """For a policy that takes a goal: DATASET or DATASET:EPISODE, whose last observation is the goal."""
    scheduler: str | None = None
    """How the time that inference takes is bridged: sync (the robot waits), naive (a chunk replaces the one before),
    ensemble, rtc, rtc-identity, rtc-trained, bid, streaming. By default that of the server, and naive without one."""
    replan: int | None = None
    """Control steps between the observations of two chunks, at least. 1 replans as fast as it can; by default the
    scheduler's choice, which for most is the number of actions the policy was configured to carry out of each chunk."""
    instruction: str = ""
    """What to do, for a policy that observes a text, in place of what a world says; the page changes it."""
    device: str = "cpu"
    """Where the policy runs: cpu, cuda."""
    engine: Literal["torch", "compile", "onnx", "openvino"] = "torch"
    """What computes the network: on a CPU openvino is the fastest by far (`pip install 'robolearn[openvino]'`)."""
    cores: str | None = None
    """Processor cores of the policy, such as 2-3: leave one to the servo loop (--core)."""
    episode_s: float = 60.0
    """Rig: with --episodes, the longest that one takes."""
    reset_s: float = 5.0
    """Rig: with --episodes, time for a person to set the scene (the key g goes on at once)."""
    teleop: tuple[str, ...] = ()
    """For the keys t (take over) and b (hand back). Rig: TELEOPERATOR:ARM by their names there; by default the only
    ones. World: page, or KIND or KIND:PORT of a teleoperator at this machine; by default nobody takes over."""
    servo_hz: float | None = None
    """Rig: ticks of the servo loop a second; by default what the slowest arm can do."""
    fifo: bool = True
    """Rig: ask for real-time priority and locked memory. `robolearn doctor` says whether they are permitted."""
    core: int | None = None
    """Rig: the processor core of the servo loop; by default any."""
    approach: bool = True
    """Rig: go slowly to where the plan begins; otherwise wait for the key g."""
    page: bool = True
    """Rig, or a world with --teleop: show the run on a page for browsers: cameras, plan, delays, e-stop, take-over,
    instruction."""
    page_host: str = "127.0.0.1"
    """Where to show it; 0.0.0.0: on every address of this machine. Without --token-file and ROBOLEARN_TOKEN a token is
    made, kept, and said with the address."""
    page_port: int = 8040
    """0: any free one."""
    page_cert: Path | None = None
    """Certificate (PEM) with which the page is at https, with --page-key."""
    page_key: Path | None = None
    """Its private key (PEM)."""
    page_self_signed: bool = False
    """https with a certificate of our own making, for phones and headsets: their browsers ask once whether to go on."""
    dry_run: Path | None = None
    """Move nothing: ask the policy what this dataset's observations ask for, and compare with the recorded actions."""
    json: Path | None = None
    """Write the summary to this file too. `robolearn eval --scheduler rtc --delay FILE` evaluates with its delays."""


def run(options: Deploy) -> int:
    """Run a checkpoint in real time, on a rig or against a world."""
    _check(options)
    if options.dry_run is not None:
        return _dry_run(options, options.dry_run)
    source = remote_policy(options) if options.policy else local_policy(options)
    _check_instruction(options, source)
    if options.rig is not None:
        from robolearn.cli.deploy_rig import run_on_rig

        report = run_on_rig(options, options.rig, source)
    else:
        from robolearn.cli.deploy_world import run_in_world

        report = run_in_world(options, str(options.world), source)
    print(report)
    if options.out is not None:
        print(f"saved     {options.out}   look at it with: robolearn data info {options.out}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**source.named, **report.to_json()}, indent=1) + "\n")
    if report.failure:
        stderr_line(f"error: {report.failure}")
        return 1
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Deploy, run)}


def _dry_run(options: Deploy, dataset: Path) -> int:
    from robolearn.cli.deploy_dry_run import run_dry
    from robolearn.policies.checkpoint import resolve_checkpoint

    if options.checkpoint is None:
        raise UsageError("--dry-run needs a checkpoint on this machine")
    return run_dry(
        resolve_checkpoint(options.checkpoint),
        dataset,
        steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        device=options.device,
        engine=options.engine,
        json_path=options.json,
    )


@dataclass(frozen=True)
class PolicySource:
    """A policy that can be made in another process."""

    make: Callable[[], Inference]
    spec: PolicySpec
    scheduler: str
    named: dict[str, str]
    """Where it comes from, for the records."""
    check: Check
    """Of what it is told."""
    fast: FastPolicy | None = None
    """The fast half of a slow-fast policy."""


def local_policy(options: Deploy) -> PolicySource:
    """Of the checkpoint."""
    from robolearn.policies.checkpoint import load_instruction_limit, load_spec, resolve_checkpoint
    from robolearn_deploy.instructions import accept
    from robolearn_deploy.local_policy import LocalPolicy
    from robolearn_deploy.reactive import ReactiveFast

    assert options.checkpoint is not None
    checkpoint, scheduler = resolve_checkpoint(options.checkpoint), options.scheduler or "naive"
    spec = load_spec(checkpoint)
    make = functools.partial(
        LocalPolicy,
        checkpoint,
        steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        device=options.device,
        scheduler=scheduler,
        goal=read_goal(options.goal, spec),
        engine=options.engine,
        cores=options.cores,
    )
    return PolicySource(
        make,
        spec,
        scheduler,
        {"checkpoint": str(checkpoint)},
        load_instruction_limit(checkpoint) or accept,
        ReactiveFast(checkpoint, spec) if spec.fast else None,
    )


def remote_policy(options: Deploy) -> PolicySource:
    """Of the server."""
    from robolearn_deploy.wire.client import RemoteCheck, RemotePolicy
    from robolearn_deploy.wire.security import read_token

    assert options.policy is not None
    access: dict[str, Any] = {"token": read_token(options.token_file), "certificate": options.certificate}
    with contextlib.closing(RemotePolicy(options.policy, **access)) as policy:
        spec, served = policy.spec, policy.scheduler
    scheduler = options.scheduler or served or "naive"
    if served and scheduler != served:
        raise UserError(f"{options.policy} serves chunks for the scheduler {served!r}, not {scheduler!r}; leave it out")
    make = functools.partial(RemotePolicy, options.policy, spec=spec, **access)
    return PolicySource(make, spec, scheduler, {"policy": options.policy}, RemoteCheck(options.policy, **access))


def _check_instruction(options: Deploy, source: PolicySource) -> None:
    from robolearn_deploy.channels import TEXT_BYTES
    from robolearn_deploy.rig_streams import INSTRUCTION_BYTES

    sizes = [stream.shape[0] for stream in source.spec.observation.values() if stream.kind == "text"]
    most = min([INSTRUCTION_BYTES if options.rig is not None else TEXT_BYTES, *sizes])
    given = len(options.instruction.encode(errors="surrogateescape"))
    if given > most:
        raise UserError(f"--instruction has {given} bytes in UTF-8; at most {most} are possible here, say it shorter")
    if options.instruction:
        source.check(options.instruction)


def _check(options: Deploy) -> None:
    if options.checkpoint is None and options.policy is None:
        raise UserError("name a policy: a checkpoint folder, or --policy ws://HOST:PORT of a `robolearn serve`")
    if options.checkpoint is not None and options.policy is not None:
        raise UserError(f"two policies are named, {options.checkpoint} and {options.policy}; give one of them")
    here = [f"--{name}" for name in ("steps", "sampler", "cores") if getattr(options, name) is not None]
    if options.policy is not None and here:
        raise UserError(f"{' and '.join(here)}: the server decides; give that to `robolearn serve`")
    if options.policy is None and options.certificate:
        raise UserError("--certificate is for a policy on a network; name it with --policy")
    if not 0 <= options.page_port < 1 << 16:
        raise UserError(f"--page-port {options.page_port} does not exist; give 1 to 65535, or 0 for any free one")
    paged = options.page and (options.rig is not None or (options.world is not None and options.teleop))
    if options.token_file and not (options.policy or paged):
        raise UserError(
            "--token-file is for a policy on a network (--policy) or for the page, which there is with --rig, and with "
            "--world and --teleop"
        )
    places = (options.rig, options.world, options.dry_run).count(None)
    if places != 2:
        several = "" if places == 3 else "in one place, not several; "
        raise UsageError(f"{several}say where: --rig hardware/rigs/so101_twin.yaml, --world pusht, --dry-run DATASET")
    for name in ("seconds", "episode_s"):
        value = getattr(options, name)
        if not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value:g} is not possible; give a positive number")
    for name, least in (("episodes", 1), ("seed", 0), ("steps", 1), ("replan", 1), ("servo_hz", 1), ("reset_s", 0)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value} is too small; give {least} or more")
