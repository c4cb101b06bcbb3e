"""How the arms of a rig become the streams of a dataset and the vectors of a policy, the same when collecting as when
deploying.

One vector holds all arms in the order of the rig: of each its joints (rad), then its gripper (0 closed, 1 open) where
it has one. "state" is that vector as measured, "action" as commanded. N is its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robolearn_data.recorder import ACTION_STAGES
from robolearn_data.schema import Schema, Stream
from robolearn_hardware.devices import ArmInfo, ArmState, CameraInfo

INSTRUCTION_BYTES = 256


@dataclass(frozen=True)
class RigLayout:
    """Where each arm stands in the vector."""

    arms: tuple[ArmInfo, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the N components: "shoulder_pan", or "left/shoulder_pan" where there are several arms."""
        found = []
        for arm in self.arms:
            prefix = f"{arm.name}/" if len(self.arms) > 1 else ""
            found += [prefix + name for name in (*arm.joint_names, *(("gripper",) if arm.has_gripper else ()))]
        return tuple(found)

    @property
    def grippers(self) -> tuple[int, ...]:
        """The components that are grippers."""
        return tuple(i for i, name in enumerate(self.names) if name.rpartition("/")[2] == "gripper")

    @property
    def slices(self) -> tuple[slice, ...]:
        """Of each arm in the vector, with its gripper."""
        ends = np.cumsum([arm.joints + arm.has_gripper for arm in self.arms]).tolist()
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))

    def join(self, states: Sequence[ArmState]) -> np.ndarray:
        """The positions of all arms, (N,) float64."""
        parts = []
        for arm, state in zip(self.arms, states, strict=True):
            parts.append(state.positions)
            if arm.has_gripper:
                parts.append([state.gripper])
        return np.concatenate(parts, dtype=np.float64)

    def split(self, vector: np.ndarray) -> list[tuple[np.ndarray, float | None]]:
        """Joints (J,) and gripper of each arm; None where it has none."""
        parts = [vector[part] for part in self.slices]
        return [
            (part[:-1], float(np.clip(part[-1], 0, 1))) if arm.has_gripper else (part, None)
            for arm, part in zip(self.arms, parts, strict=True)
        ]

    def state(self, rate_hz: float = 0.0) -> Stream:
        """The stream "state", recorded at ``rate_hz`` of its own (0: at the control steps)."""
        unit = ",".join("" if i in self.grippers else "rad" for i in range(len(self.names)))
        return Stream(
            (len(self.names),), "float32", names=self.names, unit=unit, rate_hz=rate_hz, interpolation="linear"
        )

    def action(self) -> Stream:
        """The stream "action": targets of position."""
        return Stream((len(self.names),), "float32", "action", names=self.names, unit=self.state().unit)

    def schema(
        self, rate_hz: float, servo_hz: float, cameras: Mapping[str, CameraInfo], *, wrench: bool = False
    ) -> Schema:
        """What a session at this rig records: actions at ``rate_hz``, everything else at its own rate.

        Of an action it keeps what was asked for, what the limits left of it, what was sent and what the arms did.
        "control_state" is a ``stall.State``; "intervention" is 1 where a person had taken over.

        Args:
            wrench: the arms measure forces: the stream "wrench", 6 values (N, N m) for each arm.
        """
        action = self.action()
        streams = {"state": self.state(servo_hz)}
        if wrench:
            streams["wrench"] = Stream(
                (6 * len(self.arms),), rate_hz=servo_hz, unit=",".join(["N,N,N,Nm,Nm,Nm"] * len(self.arms))
            )
        for name, camera in cameras.items():
            streams[name] = Stream((camera.height, camera.width, 3), "uint8", "image", rate_hz=camera.rate_hz)
        streams |= dict.fromkeys(ACTION_STAGES, action)
        streams["control_state"] = Stream((), "uint8", "info")  # stall.State
        streams["intervention"] = Stream((), "uint8", "info")
        streams["instruction"] = Stream((INSTRUCTION_BYTES,), "uint8", "text", rate_hz=1.0)
        return Schema(rate_hz, streams)
