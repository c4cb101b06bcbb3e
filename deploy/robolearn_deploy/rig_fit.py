"""Which streams a run on a rig has, and whether a policy, a dataset or a person's devices fit it."""

from __future__ import annotations

from typing import Any

import numpy as np

from robolearn.policies.spec import PolicySpec, SpecError
from robolearn_data.dataset import Dataset, DatasetError
from robolearn_data.schema import Schema, Stream, UserError
from robolearn_data.writer import DatasetWriter
from robolearn_deploy.rig_options import RigOptions
from robolearn_hardware.rig import Rig


def force_streams(rig: Rig) -> dict[str, Stream]:
    """The streams of its force sensors, at their own rates: "wrench_tip"."""
    return {
        f"wrench_{name}": Stream(
            (6,),
            names=("fx", "fy", "fz", "tx", "ty", "tz"),
            unit="N,N,N,Nm,Nm,Nm",
            frame=name,
            rate_hz=config.open(name).rate_hz,
            interpolation="linear",
        )
        for name, config in rig.force_sensors.items()
    }


def schema_difference(there: Schema, here: Schema) -> str:
    """Of the schema of a dataset and that of a rig, in words."""
    if there.rate_hz != here.rate_hz:
        return f"it has {there.rate_hz:g} control steps a second, this session {here.rate_hz:g}"
    for name in sorted(there.streams.keys() | here.streams.keys()):
        if name not in here.streams or name not in there.streams:
            return f"the stream {name!r} is {'not of this rig' if name in there.streams else 'not in it'}"
        if there.streams[name] != here.streams[name]:
            return f"the stream {name!r} is another one: {there.streams[name]} there, {here.streams[name]} here"
    return "its streams differ"


def check_fits(spec: PolicySpec, schema: Schema, rig: str) -> None:
    """Raises SpecError: the policy observes or moves something that the rig does not have."""
    texts = {name: stream for name, stream in spec.observation.items() if stream.kind == "text"}
    spec.check_fits(Schema(schema.rate_hz, {**schema.streams, **texts}), f"the rig {rig!r}")
    names, wanted = schema.streams["action"].names, spec.action.names
    if wanted and names != wanted:
        raise SpecError(f"the policy moves {', '.join(wanted)}; the rig {rig!r} has {', '.join(names)}")


def teleoperator_pairs(rig: Rig, options: RigOptions) -> dict[str, str]:
    """Teleoperator, or "page" -> the arm that it moves. Raises UserError: one of them is not there."""
    for teleoperator, arm in options.teleoperators.items():
        there = [*rig.teleoperators, *(["page"] if options.page is not None else [])]
        if teleoperator not in there or arm not in rig.arms:
            valid = f"{', '.join(there) or 'none'}; arms: {', '.join(rig.arms)}"
            raise UserError(f"{teleoperator}:{arm} is not in rig {rig.name}; its teleoperators: {valid}")
    return dict(options.teleoperators)


def prepare_dataset(options: RigOptions, rig: Rig, schema: Schema, start_pose: np.ndarray) -> None:
    """A dataset at ``options.out``: a new one, or the one that the run goes on with.

    Raises:
        DatasetError: it cannot be made; the one that is there has other streams.
    """
    assert options.out is not None
    if not options.resume:
        facts = {"rig": rig.name, "rig_fingerprint": rig.fingerprint}
        metadata: dict[str, Any] = {**facts, "start_pose": start_pose.tolist(), **options.metadata}
        DatasetWriter.create(options.out, schema, metadata=metadata).close()
        return
    there = Dataset.open(options.out).schema
    if there != schema:
        raise DatasetError(f"{options.out} cannot be continued here: {schema_difference(there, schema)}")
