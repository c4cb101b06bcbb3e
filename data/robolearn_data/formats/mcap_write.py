"""Export of episodes to MCAP, the file of Foxglove and of ROS 2 tools (https://mcap.dev/spec).

Pictures are ``foxglove.CompressedImage``, depth ``foxglove.RawImage``, both protobuf; everything else is JSON with a
JSON schema that tells names and units.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.formats import OnLoss, Progress
from robolearn_data.formats.tracks import Track, chosen, is_depth, is_picture, track
from robolearn_data.formats.transfer import appearing, missing
from robolearn_data.schema import Stream, read_text

_TYPES = {"f": "number", "i": "integer", "u": "integer", "b": "boolean"}


def export_mcap(
    source: str | Path,
    target: Path,
    *,
    episodes: str = "all",
    on_loss: OnLoss | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write episodes as one MCAP file: a topic "/<stream>" for each stream, with each sample once, at its own rate.

    The log time of a message is when its sample was captured, the publish time when it was received, as
    ``tracks.Track`` says. "/episode" has a message at the start of each episode with its number and info; the metadata
    record "robolearn" holds the schema and the dataset's metadata. Stored JPEGs go out as they are.

    Args:
        episodes: which, see ``selection.select_episodes``.
        on_loss: called with one line where something is left out.
        progress: called with (steps done, steps in all).

    Returns:
        Episodes and steps.

    Raises:
        DatasetError: ``source`` is not a dataset or damaged, or ``target`` exists.
        UserError: no such episodes, or the packages of the extra "viewers" are missing.
    """
    try:
        from mcap.writer import CompressionType, Writer
    except ImportError:
        raise missing("mcap", "viewers") from None
    dataset = Dataset.open(source)
    numbers = chosen(dataset, episodes)
    total = sum(dataset.rows(number).stop - dataset.rows(number).start for number in numbers)
    done = 0
    with appearing(target) as unfinished, unfinished.open("wb") as file:
        writer = Writer(file, compression=CompressionType.ZSTD)
        writer.start(profile="", library="robolearn")
        about = {"schema": dataset.schema.to_json(), "metadata": dataset.metadata}
        writer.add_metadata("robolearn", {key: json.dumps(value) for key, value in about.items()})
        schema = writer.register_schema("robolearn.episode", "jsonschema", b'{"type": "object"}')
        marks = writer.register_channel("/episode", "json", schema)
        topics = {name: _Topic(writer, dataset, name) for name in dataset.schema.streams}
        for number in numbers:
            tracks = [track(dataset, name, number) for name in topics]
            begin = min((int(each.time_ns[0]) for each in tracks if len(each.time_ns)), default=0)
            text = json.dumps({"episode": number, "info": dataset.episode_info(number)})
            writer.add_message(marks, begin, text.encode(), begin)
            for each in tracks:
                topics[each.name].write(each)
            done += dataset.rows(number).stop - dataset.rows(number).start
            if progress:
                progress(done, total)
        writer.finish()
    return len(numbers), total


class _Topic:
    """The channel of one stream."""

    def __init__(self, writer: Any, dataset: Dataset, name: str) -> None:
        try:
            from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
            from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
            from mcap_protobuf.schema import register_schema
        except ImportError:
            raise missing("foxglove-schemas-protobuf", "viewers") from None
        self._writer, self._dataset = writer, dataset
        self._stream = stream = dataset.schema.stream(name)
        self._compressed, self._raw = CompressedImage, RawImage
        self.kind = _kind(dataset, name)
        self._names = _names(stream)
        if self.kind in ("values", "text"):
            text = json.dumps(_json_schema(stream, self._names))
            schema, encoding = writer.register_schema(f"robolearn.{name}", "jsonschema", text.encode()), "json"
        else:
            image = RawImage if self.kind == "depth" else CompressedImage
            schema, encoding = register_schema(writer, image), "protobuf"
        about = {"kind": stream.kind, "unit": stream.unit, "frame": stream.frame, "shape": json.dumps(stream.shape)}
        about["rate_hz"] = f"{stream.rate_hz or dataset.schema.rate_hz:g}"
        self._channel = writer.register_channel(f"/{name}", encoding, schema, about)

    def write(self, track: Track) -> None:
        for part, messages in self._messages(track):
            times = zip(track.time_ns[part].tolist(), track.received_ns[part].tolist(), messages, strict=True)
            for time_ns, received_ns, message in times:
                if not isinstance(message, bytes):
                    message.timestamp.FromNanoseconds(time_ns)
                    message.frame_id = self._stream.frame or track.name
                    message = message.SerializeToString()
                self._writer.add_message(self._channel, time_ns, message, received_ns)

    def _messages(self, track: Track) -> Any:
        """(slice, messages): JSON bytes, or protobuf messages that still lack their time."""
        if self.kind == "picture":
            for part, files in track.pictures(self._dataset):
                yield part, [self._compressed(data=data, format="jpeg") for data in files]
        elif self.kind == "depth":
            height, width, _ = self._stream.shape
            encoding, size = ("16UC1", 2) if self._stream.dtype == "uint16" else ("32FC1", 4)
            for part, values in track.values(self._dataset):
                pixels = values.astype(np.dtype(self._stream.dtype).newbyteorder("<"))
                about: dict[str, Any] = {"height": height, "width": width, "encoding": encoding, "step": width * size}
                yield part, [self._raw(data=row.tobytes(), **about) for row in pixels]
        elif self.kind == "text":
            for part, values in track.values(self._dataset):
                yield part, [json.dumps({"text": read_text(value)}).encode() for value in values]
        else:
            for part, values in track.values(self._dataset):
                rows = values.reshape(len(values), -1).tolist()
                as_dicts = (
                    dict(zip(self._names, row, strict=True)) if self._names else {"values": row} for row in rows
                )
                yield part, [json.dumps(message).encode() for message in as_dicts]


def _kind(dataset: Dataset, name: str) -> str:
    stream = dataset.schema.stream(name)
    if stream.kind == "text":
        return "text"
    if is_depth(stream):
        return "depth"
    return "picture" if is_picture(dataset, name) else "values"


def _names(stream: Stream) -> tuple[str, ...]:
    """A field for each component; none where they have no names of their own: then one list "values"."""
    if stream.size == 1:
        return stream.names or ("value",)
    named = len(stream.shape) == 1 and len(set(stream.names)) == stream.size
    return stream.names if named else ()


def _json_schema(stream: Stream, names: tuple[str, ...]) -> dict[str, Any]:
    if stream.kind == "text":
        return {"type": "object", "properties": {"text": {"type": "string"}}}
    kind = _TYPES[np.dtype(stream.dtype).kind]
    units = stream.unit.split(",")
    units = units if len(units) == stream.size else [stream.unit] * stream.size
    if names:
        fields: dict[str, Any] = {
            name: {"type": kind, **({"description": unit} if unit else {})}
            for name, unit in zip(names, units, strict=True)
        }
    else:
        about = f"shape {list(stream.shape)}" + (f", {stream.unit}" if stream.unit else "")
        fields = {"values": {"type": "array", "items": {"type": kind}, "description": about}}
    return {"type": "object", "properties": fields}
