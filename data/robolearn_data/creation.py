"""Making the arrays of a new, empty dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import zarr

from robolearn_data import storage
from robolearn_data.bucket import ROOT
from robolearn_data.location import Location
from robolearn_data.schema import Schema, SchemaError, Stream

TIME = Stream(shape=(), dtype="int64", kind="info")
VALID = Stream(shape=(), dtype="bool", kind="info")


def lay_out(
    location: Location, schema: Schema, metadata: Mapping[str, Any] | None, compression: Mapping[str, str] | None
) -> None:
    """Write an empty dataset into a location that is empty; see ``DatasetWriter.create``.

    Raises:
        SchemaError: as there.
    """
    if all(s.is_native for s in schema.streams.values()) or storage.TICK in schema.streams:
        raise SchemaError(
            f"a dataset needs at least one stream sampled once per control step, and none named {storage.TICK!r}"
        )
    unknown = set(compression or {}) - set(schema.streams)
    if unknown:
        raise SchemaError(f"compression names streams that do not exist: {', '.join(sorted(unknown))}")
    attributes = {"format": storage.FORMAT, "schema": schema.to_json(), "metadata": dict(metadata or {})}
    root = {"attributes": {storage.ATTRIBUTE: attributes}, "zarr_format": 3, "node_type": "group"}
    location.put(ROOT, json_text(root, "metadata").encode(), durable=False)
    store = location.store(read_only=False)
    for name, stream in schema.streams.items():
        how = (compression or {}).get(name)
        storage.create_array(store, storage.values_of(name, stream), stream, compression=how)
        if stream.is_native:
            for times in (f"streams/{name}/time", f"streams/{name}/received", f"index/{name}"):
                storage.create_array(store, times, TIME)
            zarr.create_array(store, name=f"streams/{name}/ends", shape=(0,), dtype="int64", chunks=(4096,))
    zarr.create_array(store, name=storage.ENDS, shape=(0,), dtype="int64", chunks=(4096,))
    zarr.create_array(store, name=storage.INFO, shape=(0,), dtype="str", chunks=(64,))


def json_text(value: Mapping[str, Any], what: str) -> str:
    """``value`` as JSON. Raises SchemaError where it is not."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{what} must be JSON values: {error}") from None
