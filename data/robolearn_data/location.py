"""Where a dataset lies: a folder, or a prefix in an object store (S3, Google Cloud, Azure, memory) at a URL.

A dataset is files under keys such as "data/state/zarr.json". Both kinds of place replace a file whole or not at all,
and that is all that publishing last needs.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import zarr
from zarr.storage import LocalStore

from robolearn_data.bucket import Bucket, BucketStore
from robolearn_data.folder import Folder

Location = Folder | Bucket


def locate(where: str | Path | Location) -> Location:
    """The location of a path or URL.

    Raises:
        DatasetError: a URL of a kind that is not known, or without the package that it needs.
    """
    if isinstance(where, Folder | Bucket):
        return where
    if isinstance(where, Path) or "://" not in where:
        return Folder(Path(where))
    if where.startswith("file://"):
        return Folder(Path(urlsplit(where).path))
    bucket = Bucket(where)
    _ = bucket.client
    return bucket


def location_of(array: zarr.Array) -> tuple[Location, str] | None:
    """Where the files of an array are, and its key; None where it is neither in a folder nor in a bucket of ours."""
    store = array.store_path.store
    if isinstance(store, BucketStore):
        return store.bucket, array.store_path.path
    return (Folder(Path(store.root)), array.store_path.path) if isinstance(store, LocalStore) else None
