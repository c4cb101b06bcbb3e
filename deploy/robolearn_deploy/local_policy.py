"""A checkpoint's policy in this process. torch is imported when it is made, so that the parent stays light."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from robolearn_data.schema import Observation


class LocalPolicy:
    """Loads a checkpoint for inference on one thread: more would compete with the control process for the cores."""

    def __init__(
        self,
        checkpoint: Path,
        *,
        steps: int | None,
        sampler: Literal["ddim", "ddpm"] | None,
        seed: int,
        device: str,
    ) -> None:
        """
        Args:
            checkpoint: folder of the checkpoint.
            steps: denoising steps; None for those of the checkpoint.
            sampler: of a diffusion policy; None for that of the checkpoint.
            seed: of the noise from which chunks are sampled.
            device: where the policy runs ("cpu", "cuda").
        """
        import torch

        from robolearn.policies.checkpoint import load_policy

        torch.set_num_threads(1)
        self._torch = torch
        self._policy = load_policy(checkpoint, device=device, sampler=sampler)
        self._policy.eval()
        self._generator = torch.Generator().manual_seed(seed)
        self._steps = steps
        self._device = device
        self.spec = self._policy.spec

    def infer(self, observation: Observation) -> np.ndarray:
        torch = self._torch
        with torch.inference_mode():
            batch = {name: torch.from_numpy(value)[None].to(self._device) for name, value in observation.items()}
            noise = self._policy.noise(1, self._generator)
            chunk = self._policy.sample(self._policy.encode(batch), noise=noise, steps=self._steps)
        return chunk[0].float().cpu().numpy()
