"""Spreads the episodes of an evaluation over processes. Threads would be slower: a world's Python holds the lock.

Each process has its own policy, its own worlds and a pipe of its own, on which it sends ("ready", None) when loaded,
("result", EpisodeResult) for each episode, ("done", None) at last, or ("mistake" | "crash", text). Nothing is shared,
so that a process that dies can block nobody: its pipe closes, and the parent says so.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from robolearn.evaluation.lockstep import Rollout, WorldFactory, rollout
from robolearn.evaluation.results import EpisodeResult
from robolearn.policies.policy import Policy
from robolearn_data.schema import UserError


class EvaluationError(UserError):
    """The evaluation could not be carried out."""


@dataclass(frozen=True)
class Job:
    """What one process does. Pickled to it over the pipe that started it, never to a file."""

    load_policy: Callable[[], Policy]
    make_world: WorldFactory
    seeds: tuple[int, ...]
    worlds: int
    steps: int | None
    rollout: Rollout = rollout


def _work(job: Job, pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C goes to the whole group; the parent decides.
    torch.set_num_threads(1)
    try:
        policy = job.load_policy()
        pipe.send(("ready", None))
        for result in job.rollout(policy, job.make_world, job.seeds, worlds=job.worlds, steps=job.steps):
            pipe.send(("result", result))
        pipe.send(("done", None))
    except BrokenPipeError:
        pass  # The parent is gone: nobody is left to report to.
    except UserError as error:
        pipe.send(("mistake", str(error)))
    except Exception:
        pipe.send(("crash", traceback.format_exc()))


def split(seeds: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """Deal the seeds out like cards; no part is empty."""
    return [tuple(seeds[i::parts]) for i in range(min(parts, len(seeds)))]


def run_in_processes(jobs: Sequence[Job], on_result: Callable[[EpisodeResult], None]) -> float:
    """Run every job in a fresh (spawned) process and hand on results as they arrive.

    Returns:
        Seconds from the first process being loaded to the last result.

    Raises:
        EvaluationError: a process died, or met a mistake that a person can mend.
        RuntimeError: a process met a fault of the program; the message holds its traceback.
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        running: dict[Connection, tuple[int, BaseProcess]] = {}
        for number, job in enumerate(jobs):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(job, theirs), name=f"evaluation-{number}", daemon=True)
            process.start()
            stack.callback(_stop, process)
            theirs.close()  # So that the pipe ends when the process does.
            running[ours] = (number, process)
        began = None
        for kind, value in _messages(running):
            if kind == "ready" and began is None:
                began = time.monotonic()
            elif kind == "result":
                on_result(value)
        return time.monotonic() - began if began is not None else 0.0


def _messages(running: dict[Connection, tuple[int, BaseProcess]]) -> Iterator[tuple[str, Any]]:
    """Every ready and result message until all processes are done."""
    while running:
        for pipe in wait(list(running)):
            assert isinstance(pipe, Connection)
            number, process = running[pipe]
            try:
                kind, value = pipe.recv()
            except EOFError:
                process.join()
                raise EvaluationError(_obituary(number, process.exitcode)) from None
            if kind == "done":
                del running[pipe]
            elif kind == "mistake":
                raise EvaluationError(value)
            elif kind == "crash":
                raise RuntimeError(f"evaluation process {number} failed:\n{value}")
            else:
                yield kind, value


def _obituary(number: int, code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = "; it may have run out of memory: try fewer workers" if code == -signal.SIGKILL else ""
        return f"evaluation process {number} was killed by {name}{memory}"
    return f"evaluation process {number} ended early with exit code {code}; run with workers=0 to see why"


def _stop(process: BaseProcess) -> None:
    process.join(timeout=2)  # One that is done leaves by itself, and closes its worlds.
    if process.is_alive():
        process.kill()
        process.join()
