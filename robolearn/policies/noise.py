"""Where the noise of a sampled chunk comes from, the same in evaluation and in the runtime."""

from __future__ import annotations

import numpy as np
import torch


def chunk_generator(seed: int, number: int) -> torch.Generator:
    """The source of the noise of one chunk: ``number`` of the episode or run that ``seed`` names.

    It depends on nothing else, so that an episode gets the same noise in any batch, process or order.
    """
    state = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
