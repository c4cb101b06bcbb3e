"""A checkpoint's policy in this process. torch is imported when it is made, so that the parent stays light.

Its samplers know no action of a chunk for certain before they know all of them, the streaming one included: it answers
with whole chunks. An ``Inference`` that knows the first actions earlier yields them as parts, which the runtime, the
server and the client pass on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from robolearn_data.schema import UserError
from robolearn_deploy.draws import Question
from robolearn_deploy.inference import Reply, Request
from robolearn_deploy.schedulers import check_policy, find
from robolearn_hardware.clock import now_ns, period_ns

if TYPE_CHECKING:
    from robolearn.policies.engines.compiled import EngineName


class LocalPolicy:
    """Loads a checkpoint for inference on one thread: more would compete with the control process for the cores."""

    def __init__(
        self,
        checkpoint: Path,
        *,
        steps: int | None = None,
        sampler: Literal["ddim", "ddpm"] | None = None,
        seed: int = 0,
        device: str = "cpu",
        scheduler: str = "naive",
        goal: Mapping[str, np.ndarray] | None = None,
        engine: EngineName = "torch",
        cores: str | None = None,
    ) -> None:
        """
        Args:
            checkpoint: folder of the checkpoint.
            steps: denoising steps; None for those of the checkpoint.
            sampler: of a diffusion policy; None for that of the checkpoint.
            seed: of the noise from which chunks are sampled; a chunk's is a function of it and the request's number.
            device: where the policy runs ("cpu", "cuda").
            scheduler: decides how chunks are drawn, see schedulers.py.
            goal: of a policy that takes one, stream -> (*shape), see robolearn/policies/goals.py.
            engine: computes the network, see ``robolearn.policies.engines``. What it exports is kept in the checkpoint.
            cores: those that it may use, such as "2-3", so that a servo loop has another to itself; None: all.

        Raises:
            CheckpointError: it cannot be loaded.
            SchedulerError: there is no such scheduler, or the policy was not trained for it.
            EngineError: the engine is not installed, or cannot compute this network.
            UserError: torch cannot use the device.
        """
        import torch

        from robolearn.policies.checkpoint import load_policy
        from robolearn.policies.engines.compiled import compile_policy
        from robolearn.policies.engines.threads import parse_cores, use_threads

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # unknown, or torch was built without it
            reason = str(error).split("\n")[0]
            raise UserError(f"the device {device!r} cannot be used: {reason}; give --device cpu, or cuda") from error
        use_threads(1, parse_cores(cores) if cores else None)
        self._draw = find(scheduler).draw
        policy = load_policy(checkpoint, device=device, sampler=sampler, goal=goal).eval()
        check_policy(find(scheduler), policy.config)
        per_token = scheduler in ("rtc-trained", "streaming")  # their actions differ in noise along the chunk
        self._policy = compile_policy(policy, engine, per_token=per_token, cache=checkpoint / "engines")
        self._steps = steps
        self._seed = seed
        self._memory: dict[str, Any] = {}
        self.spec = self._policy.spec

    def infer(self, request: Request) -> Iterator[Reply]:
        if request.committed is None:
            self._memory = {}
        yield from self.infer_batch([request], [self._memory])

    def infer_batch(self, requests: Sequence[Request], memories: Sequence[dict[str, Any]]) -> list[Reply]:
        """Answer several requests in one inference.

        Args:
            memories: what the scheduler keeps for each of them between requests, empty at the first of an episode.
        """
        import torch

        from robolearn.policies.noise import chunk_generator

        policy, began_ns = self._policy, now_ns()
        period = period_ns(policy.spec.rate_hz)
        # Not inference_mode: a draw may need gradients with respect to the chunk.
        with torch.no_grad():
            observation = {
                name: torch.from_numpy(np.stack([r.observation[name] for r in requests])).to(policy.device)
                for name in policy.spec.observation
            }
            context = policy.encode(observation)
            encoded_ns = now_ns()
            questions = [
                Question(chunk_generator(self._seed, r.sequence), r.capture_ns / period, r.committed, memory)
                for r, memory in zip(requests, memories, strict=True)
            ]
            chunks = self._draw(policy, context, questions, self._steps).float().cpu().numpy()
        ended_ns = now_ns()
        timing = {
            "encode": (encoded_ns - began_ns) / 1e6,
            "sample": (ended_ns - encoded_ns) / 1e6,
            "total": (ended_ns - began_ns) / 1e6,
        }
        return [Reply(chunk, len(chunk), timing) for chunk in chunks]

    def close(self) -> None:
        """Nothing to let go of."""
