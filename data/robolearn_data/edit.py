"""Making datasets out of datasets: merge, split, delete, convert. See ``relabel`` for changing infos in place.

Each makes a new copy that appears when it is whole; no source is changed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from robolearn_data.copying import EpisodeCopier, Progress, compression_of, new_dataset, no_writer
from robolearn_data.dataset import Dataset
from robolearn_data.folder import DatasetError, Folder, sync_folder
from robolearn_data.schema import Schema, UserError
from robolearn_data.selection import SelectionError, episode_infos


class EditError(UserError):
    """Datasets cannot be changed as asked."""


def schema_differences(a: Schema, b: Schema) -> list[str]:
    """What differs from ``a`` to ``b``, one line each; empty where they are equal."""
    found = [] if a.rate_hz == b.rate_hz else [f"rate_hz is {a.rate_hz:g} and {b.rate_hz:g}"]
    for name in sorted(a.streams.keys() ^ b.streams.keys()):
        found.append(f"stream {name!r} is only in the {'first' if name in a.streams else 'second'}")
    for name in sorted(a.streams.keys() & b.streams.keys()):
        ours, theirs = asdict(a.streams[name]), asdict(b.streams[name])
        found += [f"stream {name!r} has {k} {ours[k]!r} and {theirs[k]!r}" for k in ours if ours[k] != theirs[k]]
    return found


def merge(
    sources: Sequence[Path], target: Path, *, skip_duplicates: bool = False, progress: Progress | None = None
) -> tuple[int, int]:
    """Copy the episodes of all ``sources``, in this order, into a new dataset. Returns episodes copied and skipped.

    Args:
        skip_duplicates: leave out episodes whose uuid came before.
        progress: called with (steps done, steps in all).

    Raises:
        EditError: no sources, schemas that differ, or the same uuid twice.
        DatasetError: a source cannot be read, or ``target`` exists.
    """
    if not sources:
        raise EditError("nothing to merge; name at least one dataset")
    datasets = [Dataset.open(path) for path in sources]
    first = datasets[0]
    for other in datasets[1:]:
        differences = schema_differences(first.schema, other.schema)
        if differences:
            raise EditError(f"{first.path} and {other.path} do not fit together: {'; '.join(differences)}")
    seen: dict[str, str] = {}
    keep: list[list[int]] = []
    for dataset in datasets:
        keep.append([])
        for episode, info in enumerate(episode_infos(dataset)):
            where = f"episode {episode} of {dataset.path}"
            uuid = str(info.get("uuid"))
            if uuid not in seen:
                keep[-1].append(episode)
            elif not skip_duplicates:
                raise EditError(f"{where} is the same as {seen[uuid]} (uuid {uuid}); --skip-duplicates leaves it out")
            seen.setdefault(uuid, where)
    same = all(dataset.metadata == first.metadata for dataset in datasets)
    merged = [{"name": dataset.path.name, "metadata": dataset.metadata} for dataset in datasets]
    count = _Count(progress, sum(_steps(d, k) for d, k in zip(datasets, keep, strict=True)))
    metadata = first.metadata if same else {"merged_from": merged}
    with new_dataset(target, first.schema, metadata, compression_of(first)) as writer:
        for dataset, episodes in zip(datasets, keep, strict=True):
            copier = EpisodeCopier(dataset)
            for episode in episodes:
                copier.copy(episode, writer)
                count.add(_steps(dataset, [episode]))
    copied = sum(map(len, keep))
    return copied, sum(dataset.episodes for dataset in datasets) - copied


def split(
    source: Path, train: Path, held_out: Path, episodes: Collection[int], *, progress: Progress | None = None
) -> None:
    """Copy the episodes numbered ``episodes`` to ``held_out`` and the others to ``train``, in their order.

    Raises:
        EditError: one of the two would be empty.
        DatasetError: the source cannot be read, or a target exists.
    """
    dataset = Dataset.open(source)
    rest = _others(dataset, episodes)
    if not rest or not episodes:
        raise EditError("one part of the split would be empty; hold out some episodes and not all")
    for target in (train, held_out):
        if target.exists():
            raise DatasetError(f"{target} exists; choose another path")
    if train.absolute() == held_out.absolute():
        raise EditError("both parts have the same path; give two")
    count = _Count(progress, dataset.steps)
    try:
        _copy(dataset, rest, train, count)
        _copy(dataset, sorted(set(episodes)), held_out, count)
    except BaseException:
        if train.exists() and not held_out.exists():
            shutil.rmtree(train)  # made above, and half a split is none
        raise


def delete(
    path: Path, episodes: Collection[int], *, undo: bool = True, progress: Progress | None = None
) -> Path | None:
    """Remove episodes from the dataset at ``path``. Returns where the dataset as it was is kept, if ``undo``.

    A copy without them is made in a hidden folder beside and takes the dataset's place in one instant: killed at any
    moment the dataset is there as it was or as it shall be. The former one becomes ``<name>.before-delete`` (numbered
    if that exists); where a kill came before that, the next ``delete`` or ``finish_delete`` sees to it.

    Raises:
        EditError: no episode would remain.
        DatasetError: not a dataset, someone is writing to it, or it has an unfinished episode.
    """
    path = path.resolve()
    with no_writer(path):
        finish_delete(path)
        dataset = Dataset.open(path)
        rest = _others(dataset, episodes)
        if not rest:
            raise EditError(f"no episode of {path} would remain; remove the folder instead if you mean that")
        copy = _hidden(path)
        try:
            _copy(dataset, rest, copy, _Count(progress, _steps(dataset, rest)))
            exchange(copy, path)
        except BaseException:
            finish_delete(path)
            raise
    if undo:
        return _keep(copy, path)
    _remove(copy)
    return None


def finish_delete(path: Path) -> Path | None:
    """Clear what a killed ``delete`` left beside the dataset. Returns where the dataset as it was is kept, if there.

    A copy that had not taken the dataset's place is removed, a former dataset gets the name that it should have.
    """
    hidden = Folder(_hidden(path))
    for folder in hidden.abandoned():
        shutil.rmtree(folder, ignore_errors=True)
    if not hidden.exists():
        return None
    here, there = ({str(i.get("uuid")) for i in episode_infos(Dataset.open(p))} for p in (path, hidden.path))
    if there - here:
        return _keep(hidden.path, path)
    _remove(hidden.path)
    return None


def convert(
    source: Path,
    target: Path,
    *,
    compression: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Write a dataset anew with other compressions or dtypes (stream -> name), and read it back to compare.

    Returns:
        Stream -> largest difference between what was and what is now read; 0.0 where nothing was lost.

    Raises:
        SchemaError: unknown stream, compression or dtype, or values that the dtype cannot hold exactly.
        DatasetError: the source cannot be read, or ``target`` exists.
    """
    dataset = Dataset.open(source)
    for name in (*(compression or {}), *(dtypes or {})):
        dataset.schema.stream(name)
    streams = {n: replace(s, dtype=(dtypes or {}).get(n, s.dtype)) for n, s in dataset.schema.streams.items()}
    schema = Schema(dataset.schema.rate_hz, streams)
    how = {**compression_of(dataset), **(compression or {})}
    count = _Count(progress, 2 * dataset.steps)
    lost = dict.fromkeys(streams, 0.0)
    with new_dataset(target, schema, dataset.metadata, how) as writer:
        copier = EpisodeCopier(dataset)
        for episode in range(dataset.episodes):
            copier.copy(episode, writer)
            count.add(_steps(dataset, [episode]))
        copy = Dataset.open(writer.location)
        for episode in range(dataset.episodes):
            for name in streams:
                for row, block in copy.blocks(name, dataset.rows(episode)):
                    before = dataset.read(name, slice(row, row + len(block)))
                    if not np.array_equal(before, block):
                        difference = np.abs(before.astype(np.float64) - block).max()
                        lost[name] = max(lost[name], float(difference))
            count.add(_steps(dataset, [episode]))
    return lost


def exchange(a: Path, b: Path) -> None:
    """Let two folders of one file system take each other's name in one instant (Linux, renameat2).

    Raises:
        OSError: not possible on this file system.
    """
    call = ctypes.CDLL(None, use_errno=True).renameat2
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(a), here, os.fsencode(b), swap):
        number = ctypes.get_errno()
        if number == errno.EINVAL:
            raise EditError(f"the file system of {b} cannot exchange folders; `robolearn data split` copies instead")
        raise OSError(number, os.strerror(number), str(a))
    sync_folder(a.parent)
    if b.parent != a.parent:
        sync_folder(b.parent)


def _copy(dataset: Dataset, episodes: Sequence[int], target: Path, count: _Count) -> None:
    with new_dataset(target, dataset.schema, dataset.metadata, compression_of(dataset)) as writer:
        copier = EpisodeCopier(dataset)
        for episode in episodes:
            copier.copy(episode, writer)
            count.add(_steps(dataset, [episode]))


def _others(dataset: Dataset, episodes: Collection[int]) -> list[int]:
    for episode in episodes:
        if not 0 <= episode < dataset.episodes:
            raise SelectionError(f"no episode {episode}; the dataset has {dataset.episodes}")
    return [episode for episode in range(dataset.episodes) if episode not in set(episodes)]


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.delete")


def _remove(folder: Path) -> None:
    """Remove a dataset that no kill can leave half removed under its own name."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _keep(former: Path, path: Path) -> Path:
    """Give the dataset as it was a name that a person sees."""
    candidate, number = path.with_name(f"{path.name}.before-delete"), 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.before-delete-{number}")
    former.rename(candidate)
    sync_folder(path.parent)
    return candidate


def _steps(dataset: Dataset, episodes: Sequence[int]) -> int:
    return sum((rows := dataset.rows(episode)).stop - rows.start for episode in episodes)


class _Count:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, steps: int) -> None:
        self._done += steps
        if self._progress:
            self._progress(self._done, self._total)
