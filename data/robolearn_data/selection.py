"""Which episodes of a dataset are meant, as a person writes it."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from robolearn_data import storage
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError
from robolearn_data.schema import UserError

_RANGE = re.compile(r"(-?\d+)(?:-(-?\d+))?")
_TERM = re.compile(r"\s*([^=!,]+?)\s*(!=|=)\s*(.*?)\s*")


class SelectionError(UserError):
    """The words do not name episodes of this dataset."""


def episode_infos(dataset: Dataset) -> list[dict[str, Any]]:
    """What was noted about every episode, in order; one read where ``Dataset.episode_info`` makes one for each."""
    if not dataset.episodes:
        return []
    array = storage.open_array(dataset.location.store(), storage.INFO)
    texts = np.atleast_1d(np.asarray(array[: dataset.episodes]))
    try:
        return [dict(json.loads(str(text))) for text in texts]
    except (TypeError, ValueError):
        fault = f"{storage.INFO} cannot be read; `robolearn data validate {dataset.location}` says where"
        raise DatasetError(f"dataset {dataset.location} is damaged: {fault}") from None


def select_episodes(dataset: Dataset, text: str) -> list[int]:
    """Numbers of the episodes that ``text`` means, increasing.

    "0,3,5-9,-1": numbers and ranges, both ends included, negative ones counted from the last. "success=false" or
    "task=lift,operator!=ann": those whose info has (not) these values, all conditions at once; values are read as JSON
    and otherwise as text. "all": every episode.

    Raises:
        SelectionError: neither of these, an episode that does not exist, or nothing found.
    """
    text = text.strip()
    if text == "all":
        return list(range(dataset.episodes))
    terms = [part.strip() for part in text.split(",")]
    if "=" in text:
        return _matching(dataset, text, terms)
    found: set[int] = set()
    for term in terms:
        match = _RANGE.fullmatch(term)
        if not match:
            raise SelectionError(
                f"{term!r} names no episodes; valid: numbers and ranges (0,3,5-9,-1), conditions (success=false), all"
            )
        first = _number(dataset, match[1])
        last = first if match[2] is None else _number(dataset, match[2])
        if last < first:
            raise SelectionError(f"the range {term} is empty; write the smaller number first")
        found.update(range(first, last + 1))
    return sorted(found)


def _number(dataset: Dataset, text: str) -> int:
    # More digits than any count of episodes has would only be slow to read.
    number = int(text) if len(text) < 19 else dataset.episodes
    if not -dataset.episodes <= number < dataset.episodes:
        have = f"0 to {dataset.episodes - 1}" if dataset.episodes else "none"
        raise SelectionError(f"no episode {text}; the dataset has {have}")
    return number % dataset.episodes


def _matching(dataset: Dataset, text: str, terms: list[str]) -> list[int]:
    conditions = []
    for term in terms:
        match = _TERM.fullmatch(term)
        if not match:
            raise SelectionError(f"{term!r} is not a condition; write key=value or key!=value, with commas between")
        conditions.append((match[1], match[2] == "=", json_or_text(match[3])))
    infos = episode_infos(dataset)
    keys = sorted({key for info in infos for key in info})
    for key, _, _ in conditions:
        if key not in keys:
            raise SelectionError(f"no episode has {key!r} in its info; valid: {', '.join(keys)}")
    found = [
        number
        for number, info in enumerate(infos)
        if all((key in info and _equal(info[key], value)) is wanted for key, wanted, value in conditions)
    ]
    if not found:
        raise SelectionError(f"no episode has {text}; `robolearn data quality` and `data plot` show what episodes have")
    return found


def _equal(a: Any, b: Any) -> bool:
    """As JSON: true is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def json_or_text(text: str) -> Any:
    """A JSON value, or the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text
