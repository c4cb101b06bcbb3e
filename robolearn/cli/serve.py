"""`robolearn serve CHECKPOINT`: a policy for robots on a network, ours and openpi's clients alike."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from robolearn.cli.goals import read_goal
from robolearn.cli.parse import stderr_line
from robolearn.cli.tls import tls_files
from robolearn_data.schema import UserError

if TYPE_CHECKING:
    from robolearn_deploy.wire.server import PolicyServer, Statistics

REFRESH_S = 1.0


@dataclass(frozen=True)
class Serve:
    """Serve a checkpoint to robots over the network, until Ctrl-C.

    `robolearn deploy --policy ws://HOST:PORT` and openpi's clients connect to it. Only this machine can, unless --host
    says otherwise: then clients must show a token, and TLS keeps others on the network from reading along.
    """

    checkpoint: Positional[Path]
    """A checkpoint folder, or the folder of a training run (then its newest checkpoint)."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one of this machine."""
    port: int = 8000
    """0 takes any free one."""
    token_file: Path | None = None
    """Clients must show the token in this file; one is made if there is no such file. Without this option the
    environment variable ROBOLEARN_TOKEN holds it."""
    tls_cert: Path | None = None
    """Certificate (PEM) for TLS, with --tls-key."""
    tls_key: Path | None = None
    """Its private key (PEM)."""
    self_signed: bool = False
    """TLS with a certificate of our own making, kept for the next time; clients need a copy of it (--certificate)."""
    scheduler: str = "naive"
    """How chunks are drawn; the robots' must be the same."""
    steps: int | None = None
    """Denoising or integration steps of the sampler; by default those the policy was configured with."""
    sampler: Literal["ddim", "ddpm"] | None = None
    """For a diffusion policy: ddim (few steps) or ddpm (all of them)."""
    goal: str | None = None
    """For a policy that takes a goal: DATASET or DATASET:EPISODE, whose last observation is the goal."""
    seed: int = 0
    """Of the policy's noise."""
    device: str = "cpu"
    """Where the policy runs: cpu, cuda."""
    engine: Literal["torch", "compile", "onnx", "openvino"] = "torch"
    """What computes the network: on a CPU openvino is the fastest by far (`pip install 'robolearn[openvino]'`)."""
    cores: str | None = None
    """Processor cores that it may use, such as 2-3; by default all."""
    max_clients: int = 32
    """Connections at a time."""
    max_batch: int = 8
    """Requests of different clients that are inferred together, at most."""
    batch_window_ms: float = 2.0
    """How long a request waits for those of other clients."""


def run(options: Serve) -> int:
    """Serve a checkpoint to robots over the network."""
    _check(options)
    from robolearn.policies.checkpoint import load_instruction_limit, load_spec, resolve_checkpoint
    from robolearn_deploy.instructions import accept
    from robolearn_deploy.wire.certificates import machine_addresses
    from robolearn_deploy.wire.security import fingerprint, is_loopback, make_token, read_token, server_tls
    from robolearn_deploy.wire.server import PolicyServer, ServerOptions

    logging.basicConfig(level=logging.WARNING, format="robolearn: %(message)s")
    logging.getLogger("websockets").setLevel(logging.ERROR)
    checkpoint = resolve_checkpoint(options.checkpoint)
    if load_spec(checkpoint).fast:
        raise UserError(
            "a slow-fast policy runs where the force is felt, and is not served: give it to `robolearn deploy`"
        )
    names = ("--tls-cert", "--tls-key", "--self-signed")
    files = tls_files(options.tls_cert, options.tls_key, make=options.self_signed, host=options.host, names=names)
    tls = server_tls(*files) if files else None
    token = make_token(options.token_file) if options.token_file is not None else read_token(None)
    server = PolicyServer(
        functools.partial(_open, checkpoint, options),
        ServerOptions(
            host=options.host,
            port=options.port,
            token=token,
            tls=tls,
            name=str(options.checkpoint),
            scheduler=options.scheduler,
            check_instruction=load_instruction_limit(checkpoint) or accept,
            max_clients=options.max_clients,
            max_batch=options.max_batch,
            batch_window_s=options.batch_window_ms / 1e3,
        ),
    )
    if tls is None and not is_loopback(options.host):
        stderr_line("without TLS anybody on the network can read the token and what robots see; see --self-signed")

    def ready() -> None:
        host = options.host
        if host in ("0.0.0.0", "::"):
            host = next(iter(machine_addresses()), "localhost")
        url = f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{server.port}"
        print(f"serving   {checkpoint} at {url}   Ctrl-C ends it")
        use = f"robolearn deploy --policy {url}"
        if options.token_file is not None:
            print(f"token     {options.token_file}")
            use += f" --token-file {options.token_file.name}"
        if files is not None and options.self_signed:
            print(f"trust     {files[0]}   SHA-256 {fingerprint(files[0])}")
            use += f" --certificate {files[0].name}"
        print(f"use       {use} --rig RIG.yaml")
        sys.stdout.flush()

    asyncio.run(_serve(server, ready))
    print(_summary(server.statistics, server.batches))
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int | None]]] = {"": (Serve, run)}


async def _serve(server: PolicyServer, ready: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    status = asyncio.create_task(_show(server.statistics))
    try:
        await server.run(ready)
    finally:
        status.cancel()


async def _show(statistics: Statistics) -> None:
    """One line on the terminal, renewed every second; nothing where there is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return
    with console.status("opening the policy", refresh_per_second=2) as status:
        while True:
            before = statistics.answered
            await asyncio.sleep(REFRESH_S)
            rate = (statistics.answered - before) / REFRESH_S
            status.update(f"{statistics.clients} clients   {rate:.0f} requests/s   {_times(statistics)}")


def _summary(statistics: Statistics, batches: dict[int, int]) -> str:
    together = ", ".join(f"{count} of {size}" for size, count in sorted(batches.items()))
    said = f"answered  {statistics.answered} requests, {statistics.failed} failed   {_times(statistics)}"
    if batches and max(batches) > 1:
        said += f"\nbatches   {together}"
    if statistics.refused or statistics.dropped:
        said += f"\nclients   {statistics.refused} refused, {statistics.dropped} dropped"
    return said


def _times(statistics: Statistics) -> str:
    import numpy as np

    if not statistics.total_ms:
        return "no chunk yet"
    p50, p99 = np.percentile(list(statistics.total_ms), (50, 99))
    return f"{p50:.1f} ms a chunk, p99 {p99:.1f} ms"


def _open(checkpoint: Path, options: Serve) -> Any:
    """The policy, in the thread that infers; the first chunks, which take many times longer, are behind it."""
    import numpy as np

    from robolearn.policies.checkpoint import load_spec
    from robolearn_deploy.inference import Committed, Request
    from robolearn_deploy.local_policy import LocalPolicy
    from robolearn_deploy.policy_process import WARM_UP
    from robolearn_deploy.schedulers import find, steps_of
    from robolearn_hardware.clock import now_ns

    scheduler = find(options.scheduler)

    policy = LocalPolicy(
        checkpoint,
        steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        device=options.device,
        scheduler=scheduler.name,
        goal=read_goal(options.goal, load_spec(checkpoint)),
        engine=options.engine,
        cores=options.cores,
    )
    spec = policy.spec
    blank = {name: np.zeros((spec.obs_horizon, *s.shape), s.dtype) for name, s in spec.observation.items()}
    delay, execute = steps_of(1, scheduler.execute_steps(spec), spec)
    plan = Committed(np.zeros((spec.horizon, *spec.action.shape), np.float32), delay, execute)
    for sequence in range(WARM_UP):
        committed = plan if scheduler.committed and sequence else None
        list(policy.infer(Request(sequence, now_ns(), blank, committed)))
    return policy


def _check(options: Serve) -> None:
    if not 0 <= options.port < 1 << 16:
        raise UserError(f"--port {options.port} does not exist; give one from 1 to 65535, or 0 for any free one")
    if not 0 <= options.batch_window_ms <= 1000:
        raise UserError(f"--batch-window-ms {options.batch_window_ms:g} is not possible; give 0 to 1000")
    for name, least in (("seed", 0), ("steps", 1), ("max_clients", 1), ("max_batch", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value} is too small; give {least} or more")
