"""Twins: the other end of a device's wire, so that the production driver runs with no robot. See the folder's modules.

A twin is a server in a process of its own (``process.py``) that speaks the device's protocol, moves a ``plant`` and
misbehaves on command (``faults.py``).
"""
