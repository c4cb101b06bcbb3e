"""What a person holds that moves the tool by so much a second: SpaceMouse, gamepad, keyboard.

Each is a kind in a rig file. What they share (deadman, frames, scales, gripper) is ``relative``. Leader arms are in
``robolearn_hardware.servo``, pages for browsers in ``robolearn_deploy.dashboard``.
"""
