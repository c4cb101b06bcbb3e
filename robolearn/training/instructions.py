"""Instructions of a dataset's windows: its text stream, or what was noted as the task of each episode.

LeRobot, and whoever teaches one task at a time, notes an episode's task; a runtime records who said what when.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robolearn.policies.latent.language import STREAM
from robolearn.policies.policy import Policy
from robolearn.policies.vla.encoder import PrefixEncoder
from robolearn_data.dataset import Dataset
from robolearn_data.reading import View
from robolearn_data.schema import Schema, Stream, UserError, read_text
from robolearn_data.selection import episode_infos

INSTRUCTION = Stream((256,), "uint8", "text")
"""The stream "instruction" of a policy whose datasets have none of their own."""


def instruction_stream(schema: Schema) -> Stream:
    return schema.of_kind("text").get(STREAM, INSTRUCTION)


def instruction_views(schema: Schema) -> dict[str, View]:
    """What is read of the instruction of a window's present, beside its task; see ``Instructions``."""
    return {STREAM: View(STREAM, 1)} if STREAM in schema.of_kind("text") else {}


class Instructions:
    """What was noted as the task of each episode, or of each part of one."""

    def __init__(self, dataset: Dataset, stream: Stream) -> None:
        """Raises SchemaError: a task longer than ``stream`` takes."""
        self._begin = np.concatenate(([0], dataset.episode_ends))
        rows, texts = [], []
        for episode, noted in enumerate(_noted(dataset)):
            for row, text in noted:
                rows.append(self._begin[episode] + row)
                texts.append(text)
        self._rows = np.array(rows)
        self._texts = stream.check("instruction", texts, batch=(len(texts),))

    def read(self, episode: np.ndarray, step: np.ndarray, horizon: int, said: np.ndarray | None) -> np.ndarray:
        """(B, O, bytes) at steps (B,) of episodes (B,).

        Args:
            said: what a stream recorded, (B, O, bytes); where it is silent the task stands.
        """
        number = np.searchsorted(self._rows, self._begin[episode] + step, side="right") - 1
        tasks = np.repeat(self._texts[number][:, None], horizon, axis=1)
        return tasks if said is None else np.where(said.any(-1, keepdims=True), said, tasks)


def check_tasks(dataset: Dataset, episodes: Sequence[int], otherwise: str) -> None:
    """Raises UserError: an episode that is trained on has no task. ``otherwise``: how to do without."""
    noted = _noted(dataset)
    missing = [episode for episode in episodes if not any(text for _, text in noted[episode])]
    if missing:
        raise UserError(
            f"{dataset.location} notes no task of {len(missing)} of {len(episodes)} episodes (the first is "
            f"{missing[0]}), and has no text stream: `robolearn data relabel --set task=...` notes it, or "
            f"{otherwise}"
        )


def all_texts(dataset: Dataset, episodes: Sequence[int], name: str) -> set[str]:
    """Every instruction of these episodes."""
    noted = _noted(dataset)
    texts = {text for episode in episodes for _, text in noted[episode]}
    if name in dataset.schema.streams:
        for episode in episodes:
            rows = np.unique(dataset.read(name, dataset.rows(episode)), axis=0)
            texts |= {read_text(row) for row in rows}
    return texts - {""}


def check_instructions(policy: Policy, parts: Sequence[tuple[Dataset, Sequence[int]]]) -> None:
    """Raises UserError: an instruction of these episodes is too long for the policy."""
    if isinstance(policy.encoder, PrefixEncoder):
        for name in policy.encoder.texts:
            for dataset, episodes in parts:
                policy.encoder.check_instructions(all_texts(dataset, episodes, name))


def _noted(dataset: Dataset) -> list[list[tuple[int, str]]]:
    """For each episode the tasks noted of it, as (first row, text), the first at row 0."""
    found = []
    for info in episode_infos(dataset):
        parts = [(int(row), str(text)) for row, text in info.get("task_segments") or []]
        whole = [(0, str(info.get("task") or ""))]
        found.append(parts if parts and parts[0][0] == 0 else whole + parts)
    return found
