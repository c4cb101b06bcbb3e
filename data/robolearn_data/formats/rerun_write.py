"""Export of episodes to an .rrd file of Rerun (https://rerun.io)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from robolearn_data.dataset import Dataset
from robolearn_data.formats import OnLoss, Progress
from robolearn_data.formats.tracks import Track, chosen, is_depth, is_picture, track
from robolearn_data.formats.transfer import appearing, missing
from robolearn_data.schema import read_text


def export_rerun(
    source: str | Path,
    target: Path,
    *,
    episodes: str = "all",
    on_loss: OnLoss | None = None,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Write episodes as one recording: the entity "episode_<i>/<stream>" for each stream, at its own rate.

    Timelines are "captured" and "received" as ``tracks.Track`` says, and "elapsed", from the start of the episode, on
    which episodes lie one over the other. Vectors are Scalars under their names, pictures EncodedImage (stored JPEGs as
    they are), depth DepthImage, texts TextLog; "episode_<i>" has the episode's info as text.

    Args and errors are those of ``mcap_write.export_mcap``. Arrays of other images are left out, as ``on_loss`` tells.
    """
    try:
        import rerun
    except ImportError:
        raise missing("rerun-sdk", "viewers") from None
    dataset = Dataset.open(source)
    numbers = chosen(dataset, episodes)
    total = sum(dataset.rows(number).stop - dataset.rows(number).start for number in numbers)
    kinds = {name: _kind(dataset, name) for name in dataset.schema.streams}
    lost = [name for name, kind in kinds.items() if kind == ""]
    if lost and on_loss:
        on_loss(f"streams that Rerun cannot show: {', '.join(lost)}")
    done = 0
    with appearing(target) as unfinished:
        recording = rerun.RecordingStream("robolearn", recording_id=_recording_id(dataset, numbers))
        recording.save(unfinished)
        for number in numbers:
            tracks = [track(dataset, name, number) for name, kind in kinds.items() if kind]
            begin = min((int(each.time_ns[0]) for each in tracks if len(each.time_ns)), default=0)
            info = json.dumps(dataset.episode_info(number), indent=1)
            recording.log(f"episode_{number}", rerun.TextDocument(info), static=True)
            for each in tracks:
                _log(recording, dataset, f"episode_{number}/{each.name}", kinds[each.name], each, begin)
            done += dataset.rows(number).stop - dataset.rows(number).start
            if progress:
                progress(done, total)
        recording.flush(blocking=True)
        recording.disconnect()
    return len(numbers), total


def _kind(dataset: Dataset, name: str) -> str:
    stream = dataset.schema.stream(name)
    if is_depth(stream):
        return "depth"
    if stream.kind != "image":
        return "text" if stream.kind == "text" else "values"
    return "picture" if is_picture(dataset, name) else ""


def _recording_id(dataset: Dataset, numbers: list[int]) -> str:
    """The same for the same episodes, so that opening a file twice shows it once."""
    return str(dataset.episode_info(numbers[0]).get("uuid", "")) + f"-{len(numbers)}"


def _log(recording: Any, dataset: Dataset, entity: str, kind: str, track: Track, begin_ns: int) -> None:
    import rerun

    def send(part: slice, columns: Any) -> None:
        captured, received = track.time_ns[part], track.received_ns[part]
        times = [
            rerun.TimeColumn("captured", timestamp=captured.astype("datetime64[ns]")),
            rerun.TimeColumn("received", timestamp=received.astype("datetime64[ns]")),
            rerun.TimeColumn("elapsed", duration=(captured - begin_ns).astype("timedelta64[ns]")),
        ]
        rerun.send_columns(entity, times, columns, recording=recording)

    if kind == "picture":
        for part, files in track.pictures(dataset):
            send(part, rerun.EncodedImage.columns(blob=files, media_type=["image/jpeg"] * len(files)))
    elif kind == "depth":
        height, width, _ = track.stream.shape
        types = {"uint16": rerun.ChannelDatatype.U16, "float32": rerun.ChannelDatatype.F32}
        form = rerun.components.ImageFormat(width=width, height=height, channel_datatype=types[track.stream.dtype])
        for part, values in track.values(dataset):
            blobs = [row.tobytes() for row in np.ascontiguousarray(values)]
            send(part, rerun.DepthImage.columns(buffer=blobs, format=[form] * len(blobs)))
    elif kind == "text":
        for part, values in track.values(dataset):
            send(part, rerun.TextLog.columns(text=[read_text(value) for value in values]))
    else:
        names = list(track.stream.names) if len(track.stream.names) == track.stream.size else []
        if names:
            recording.log(entity, rerun.SeriesLines(names=names), static=True)
        for part, values in track.values(dataset):
            flat = values.reshape(len(values), -1).astype(np.float64)
            send(part, rerun.Scalars.columns(scalars=flat.ravel()).partition([flat.shape[1]] * len(flat)))
