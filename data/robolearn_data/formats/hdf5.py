"""HDF5 read with distrust: no links, nothing stored in other files, no Python objects, every fault names its place."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.formats.transfer import ImportFormatError, check_size, missing, one_line
from robolearn_data.schema import UserError


@contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """The ``h5py.File`` at ``path``, for reading.

    Raises:
        ImportFormatError: not there, not HDF5, cut short.
        UserError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise missing("h5py") from None
    if not path.is_file():
        raise ImportFormatError(f"no such file: {path}; check the path")
    try:
        # Without a cache of 1 MB for each array: everything is read once, and a file has thousands of arrays.
        file = h5py.File(path, "r", rdcc_nbytes=0)
    except PermissionError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        raise ImportFormatError(f"{path} is not an HDF5 file, or is damaged: {one_line(error)}") from None
    with file, damage(str(path)):
        yield file


@contextmanager
def damage(where: str, what: str = "cannot be read") -> Iterator[None]:
    """Whatever h5py raises on bytes that are not what they should be becomes an ImportFormatError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raised_in = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
        if not raised_in.startswith("h5py"):
            raise
        raise ImportFormatError(f"{where} {what}: {one_line(error)}") from None


def members(group: Any) -> dict[str, Any]:
    """Name -> group or dataset of everything directly in ``group``.

    Raises:
        ImportFormatError: a link, which may lead to another file.
    """
    import h5py

    with damage(place(group)):
        links = {str(name): group.get(name, getlink=True) for name in group}
        for name, link in links.items():
            if not isinstance(link, h5py.HardLink):
                raise ImportFormatError(f"{place(group, name)} is a link, maybe to another file; store the data itself")
        return {name: group[name] for name in links}


def subgroup(group: Any, name: str) -> Any:
    """The group ``name`` in ``group``.

    Raises:
        ImportFormatError: it is missing, a dataset or a link.
    """
    import h5py

    found = members(group).get(name)
    if not isinstance(found, h5py.Group):
        raise ImportFormatError(f"{place(group)} has no group {name!r}; it has {', '.join(group) or 'nothing'}")
    return found


def arrays(group: Any) -> dict[str, Any]:
    """The datasets directly in ``group`` that are arrays; single values and groups are left out.

    Raises:
        ImportFormatError: values in other files, Python objects, or an absurd size.
    """
    import h5py

    found = {name: item for name, item in members(group).items() if isinstance(item, h5py.Dataset) and item.ndim}
    for array in found.values():
        if array.external or array.is_virtual:
            raise ImportFormatError(f"{place(array)} keeps its values in another file; store the data itself")
        if array.dtype.kind not in "fiub":
            raise ImportFormatError(f"{place(array)} is {array.dtype}, not numeric; valid: floats, integers, bool")
        check_size(place(array), array.shape, array.dtype, array.id.get_storage_size())
        if array.chunks:
            check_size(f"{place(array)}, a chunk of which", (1, *array.chunks), array.dtype, 0)
    return found


def read(array: Any, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) of a dataset.

    Raises:
        ImportFormatError: they cannot be read or decoded.
    """
    with damage(place(array), f"cannot be read near row {start}"):
        return np.asarray(array[start:stop])


def attributes(item: Any) -> dict[str, Any]:
    """The attributes that are text or finite numbers, or up to 64 of these, as JSON values; others are left out."""
    kept: dict[str, Any] = {}
    for name in item.attrs:
        try:
            value = item.attrs[name]
        except (OSError, RuntimeError, KeyError, TypeError, ValueError):
            continue
        if isinstance(value, str | bytes):
            kept[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
        elif isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "fiub" and value.size <= 64:
            kept |= {name: value.tolist()} if np.isfinite(value).all() else {}
    return kept


def place(item: Any, name: str = "") -> str:
    """File and path within it, for messages."""
    return f"{item.file.filename}: {item.name.rstrip('/')}{f'/{name}' if name else ''}".rstrip(": ")
