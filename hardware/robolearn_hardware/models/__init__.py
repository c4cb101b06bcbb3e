"""MuJoCo models of arms as MJCF text: a joint for each joint of the arm, in order, and a site "flange".

``chains.py`` holds the kinematics that makers publish. ``so101.xml`` also has shapes, masses and a gripper.
"""

from __future__ import annotations

from importlib.resources import files

from robolearn_hardware.devices import DeviceError
from robolearn_hardware.models.chains import CHAINS, chain_xml

FILES = {"so101": "so101.xml"}
MODELS = tuple(sorted([*CHAINS, *FILES]))
"""Those that there is a model of."""

ROBOSUITE = {"fer": "panda", "fr3": "panda", "ur5e": "ur5e", "xarm7": "xarm7"}
"""Model -> folder in robosuite's wheel of the one with meshes and masses. (The FR3 differs from the FER inside.)"""


def arm_xml(model: str) -> str:
    """The MJCF text of an arm; its world is the arm's base frame.

    Raises:
        DeviceError: there is no model of it.
    """
    if model in FILES:
        return files(__name__).joinpath(FILES[model]).read_text()
    if model not in CHAINS:
        raise DeviceError(f"there is no kinematic model of an arm {model!r}; valid: {', '.join(MODELS)}")
    return chain_xml(model)
