"""The thread of a server that infers, so that its event loop never waits for a policy.

Each client has at most one request waiting: a newer one takes its place. What waits when the policy becomes free is
inferred together if the policy can do that, else in the order in which the clients asked.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from robolearn.policies.spec import PolicySpec
from robolearn_data.schema import UserError
from robolearn_deploy.inference import Inference, Reply, Request
from robolearn_hardware.clock import now_ns

log = logging.getLogger(__name__)

FAILURES = 3
"""So many inferences that fail one after the other are no accident of one request: a graphics card that is lost ..."""


@runtime_checkable
class BatchInference(Inference, Protocol):
    """A policy that several robots can share: it answers their requests in one go, and mixes up none of them."""

    spec: PolicySpec

    def infer_batch(self, requests: Sequence[Request], memories: Sequence[dict[str, Any]]) -> list[Reply]:
        """One whole reply to each, in their order. What each says does not depend on the others.

        Args:
            memories: what is kept of each robot from request to request; empty at the first of an episode.
        """
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """One request that waits, and where its answers go. Both functions are called in the worker's thread."""

    request: Request
    deliver: Callable[[Reply], None]
    fail: Callable[[str], None]
    memory: dict[str, Any]
    """Of the robot that asks, for ``BatchInference.infer_batch``."""
    partial: bool = False


class InferenceWorker:
    """Runs one policy in a thread of its own, in which it is also made."""

    def __init__(self, make: Callable[[], Inference], *, max_batch: int, batch_window_s: float) -> None:
        """
        Args:
            make: opens the policy.
            max_batch: requests inferred together, at most.
            batch_window_s: how long the first request waits for others, if there is more than one client.
        """
        self._make = make
        self._max_batch = max_batch
        self._batch_window_s = batch_window_s
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, Job] = {}
        self._clients = 0
        self._stopping = False
        self._busy_since_ns: int | None = None
        self._failed_in_a_row = 0
        self._spec: PolicySpec | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self.batches: dict[int, int] = {}
        """Size -> how many batches of it were inferred."""

    def start(self) -> PolicySpec | None:
        """Open the policy and return its spec, None if ``stop`` was called before; what opening it raised is raised
        here."""
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._spec is not None or self._failure is not None or self._stopping)
            if self._failure is not None:
                raise self._failure
            return self._spec

    def submit(self, client: Hashable, job: Job) -> Job | None:
        """Let ``job`` wait for its turn. Returns the job of the same client that it replaces, if one was waiting."""
        with self._changed:
            replaced = self._waiting.get(client)
            self._waiting[client] = job  # in the place of the one it replaces: nobody gains by asking often
            self._changed.notify_all()
        return replaced

    def set_clients(self, count: int) -> None:
        """How many may ask: a single one is never kept waiting for company."""
        with self._changed:
            self._clients = count

    def forget(self, client: Hashable) -> None:
        """Drop what a client that is gone waits for."""
        with self._changed:
            self._waiting.pop(client, None)

    @property
    def idle(self) -> bool:
        with self._changed:
            return not self._waiting and self._busy_since_ns is None

    def fault(self, hang_s: float) -> str:
        """Why no request is answered at present, in one line; empty if nothing is known against it.

        Args:
            hang_s: an inference that takes longer counts as hanging.
        """
        with self._changed:
            busy_s = 0.0 if self._busy_since_ns is None else (now_ns() - self._busy_since_ns) / 1e9
        if busy_s > hang_s:
            return f"an inference has been going on for {busy_s:.0f} s"
        if self._failed_in_a_row >= FAILURES:
            return f"the last {self._failed_in_a_row} inferences failed"
        return ""

    def stop(self, timeout_s: float) -> bool:
        """End the thread. False: the policy did not return in time; it is a daemon and ends with the process."""
        with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            policy = self._make()
            spec = policy.spec
        except BaseException as error:  # raised again where ``start`` waits
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            return
        with self._changed:
            self._spec = spec
            self._changed.notify_all()
        with contextlib.closing(policy):
            while jobs := self._next(self._max_batch if isinstance(policy, BatchInference) else 1):
                self._infer(policy, jobs)
                with self._changed:
                    self._busy_since_ns = None

    def _next(self, most: int) -> list[Job]:
        """What to infer now; empty at the end."""
        with self._changed:
            while not self._stopping:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if most > 1:
                    self._changed.wait_for(
                        lambda: len(self._waiting) >= min(most, self._clients) or self._stopping, self._batch_window_s
                    )
                if self._waiting and not self._stopping:  # whoever waited may have gone meanwhile
                    self._busy_since_ns = now_ns()
                    return [self._waiting.pop(client) for client in list(self._waiting)[:most]]
            return []

    def _infer(self, policy: Inference, jobs: list[Job]) -> None:
        due = []
        for job in jobs:
            if 0 < job.request.deadline_ns <= now_ns():
                job.fail("its deadline had passed before the policy was free")
            else:
                due.append(job)
        if not due:
            return
        works = _infer_batch(policy, due) if isinstance(policy, BatchInference) else _infer_one(policy, due[0])
        self._failed_in_a_row = 0 if works else self._failed_in_a_row + 1
        self.batches[len(due)] = self.batches.get(len(due), 0) + 1


def _infer_batch(policy: BatchInference, jobs: list[Job]) -> bool:
    """Whether the policy works: it answered one of them, or refused it for a reason."""
    for job in jobs:
        if job.request.committed is None:
            job.memory.clear()
    try:
        replies = policy.infer_batch([job.request for job in jobs], [job.memory for job in jobs])
        if len(replies) != len(jobs):
            raise RuntimeError(f"{len(replies)} replies to {len(jobs)} requests")
    except BaseException as error:  # SystemExit of a policy's code too: the thread goes on
        if len(jobs) == 1:
            jobs[0].fail(_explain(error))
            return isinstance(error, UserError)
        worked = [_infer_batch(policy, [job]) for job in jobs]  # what one robot asked must not fail the others
        return any(worked)
    for job, reply in zip(jobs, replies, strict=True):
        job.deliver(reply)
    return True


def _infer_one(policy: Inference, job: Job) -> bool:
    """Whether the policy works, as above."""
    last = None
    try:
        for reply in policy.infer(job.request):
            if job.partial:
                job.deliver(reply)
            last = reply
        if last is None:
            raise RuntimeError("no reply")
    except BaseException as error:
        job.fail(_explain(error))
        return isinstance(error, UserError)
    if not job.partial:
        job.deliver(last)
    return True


def _explain(error: BaseException) -> str:
    """One line for the client. Whatever a policy raises must not end the service; its traceback is the operator's."""
    if isinstance(error, UserError | TimeoutError | ConnectionError):
        return f"the policy refused: {' '.join(str(error).split())}"
    log.error("the policy failed", exc_info=error)
    return f"the policy failed: {type(error).__name__}; see the server's log"
