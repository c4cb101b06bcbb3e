"""The variables of RTDE and their types, as the Real-Time Data Exchange guide of Universal Robots lists them."""

from __future__ import annotations

FORMATS = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT32": "I",
    "UINT64": "Q",
    "INT32": "i",
    "DOUBLE": "d",
    "VECTOR3D": "3d",
    "VECTOR6D": "6d",
    "VECTOR6INT32": "6i",
    "VECTOR6UINT32": "6I",
}
"""Type -> its letters for ``struct``; big-endian on the wire."""

NOT_FOUND = "NOT_FOUND"
"""What the controller answers in place of the type of a variable that it does not have."""

_OUTPUTS = {
    "DOUBLE": """timestamp target_speed_fraction speed_scaling actual_momentum actual_main_voltage actual_robot_voltage
        actual_robot_current payload io_current tcp_force_scalar actual_execution_time standard_analog_input0
        standard_analog_input1 standard_analog_output0 standard_analog_output1""",
    "VECTOR6D": """target_q target_qd target_qdd target_current target_moment actual_q actual_qd actual_current
        actual_current_as_torque joint_control_output actual_TCP_pose actual_TCP_speed actual_TCP_force target_TCP_pose
        target_TCP_speed joint_temperatures actual_joint_voltage ft_raw_wrench payload_inertia""",
    "VECTOR3D": "actual_tool_accelerometer payload_cog elbow_position elbow_velocity",
    "VECTOR6INT32": "joint_mode",
    "UINT64": "actual_digital_input_bits actual_digital_output_bits",
    "INT32": "robot_mode safety_mode safety_status",
    "UINT32": "runtime_state robot_status_bits safety_status_bits",
    "UINT8": "tool_output_mode",
}
_INPUTS = {
    "UINT32": "speed_slider_mask",
    "DOUBLE": "speed_slider_fraction standard_analog_output_0 standard_analog_output_1",
    "UINT8": """standard_digital_output_mask standard_digital_output configurable_digital_output_mask
        configurable_digital_output tool_digital_output_mask tool_digital_output standard_analog_output_mask
        standard_analog_output_type""",
    "VECTOR6D": "external_force_torque",
}
REGISTERS = 48
"""Integer and double registers in each direction."""


def _table(groups: dict[str, str], registers: str) -> dict[str, str]:
    types = {name: kind for kind, names in groups.items() for name in names.split()}
    for i in range(REGISTERS):
        types[f"{registers}_int_register_{i}"] = "INT32"
        types[f"{registers}_double_register_{i}"] = "DOUBLE"
    return types


OUTPUTS = _table(_OUTPUTS, "output")
"""What a controller can send: name -> type."""
INPUTS = _table(_INPUTS, "input")
"""What it can be sent: name -> type."""


def types_of(names: list[str], known: dict[str, str]) -> list[str]:
    """The type of each, or NOT_FOUND."""
    return [known.get(name, NOT_FOUND) for name in names]


def layout(types: list[str]) -> str:
    """The format for ``struct`` of a data package's values, without its recipe's number."""
    return ">" + "".join(FORMATS[kind] for kind in types)


def width(kind: str) -> int:
    """How many values a variable has."""
    letters = FORMATS[kind]
    return int(letters[:-1] or 1)
